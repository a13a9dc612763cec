//! Files below an open directory: read whole, created whole, never followed out of it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

/// What a file is called that is about to get its name.
pub(crate) const TEMPORARY: &str = ".heddle-";
/// A lease is one line of each of two names, a note a path and a few addresses: what is longer is neither.
pub(crate) const LONGEST_FILE: u64 = 4096;

/// Opens a subdirectory, creating it if it is missing. It is not followed if it is a symlink.
pub(crate) fn subdirectory(parent: &OwnedFd, name: &str) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    match openat2(parent, name, how) {
        Err(Errno::ENOENT) => match mkdirat(parent, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => openat2(parent, name, how),
            Err(errno) => Err(errno),
        },
        other => other,
    }
}

/// The content of a regular file; `None` if there is no file.
pub(crate) fn read_at(dir: &OwnedFd, name: &str) -> nix::Result<Option<Vec<u8>>> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = match openat(dir, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let io = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32));
    if !file.metadata().map_err(io)?.is_file() {
        return Err(Errno::EINVAL);
    }
    let mut content = Vec::new();
    file.take(LONGEST_FILE).read_to_end(&mut content).map_err(io)?;
    Ok(Some(content))
}

/// Creates a file with its content, in one step. `false`: there is one.
pub(crate) fn create(
    dir: &OwnedFd,
    name: &str,
    content: &[u8],
    mode: u32,
    durable: bool,
) -> nix::Result<bool> {
    let mode = Mode::from_bits_truncate(mode);
    let write = |file: OwnedFd| -> nix::Result<File> {
        let mut file = File::from(file);
        let io = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32));
        file.write_all(content).map_err(io)?;
        if durable {
            file.sync_all().map_err(io)?;
        }
        Ok(file)
    };
    let linked = match openat(dir, ".", OFlag::O_TMPFILE | OFlag::O_WRONLY | OFlag::O_CLOEXEC, mode) {
        Ok(file) => {
            let file = write(file)?;
            let through = format!("/proc/self/fd/{}", file.as_raw_fd());
            linkat(AT_FDCWD, through.as_str(), dir, name, AtFlags::AT_SYMLINK_FOLLOW)
        }
        // A file system without O_TMPFILE (NFS, old overlays): a name of our own, linked and taken away.
        Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL) => {
            let temporary = format!("{TEMPORARY}{}-{name}", std::process::id());
            remove(dir, &temporary)?;
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
            let written = openat(dir, temporary.as_str(), flags, mode).and_then(write);
            let linked = written.and_then(|_| linkat(dir, temporary.as_str(), dir, name, AtFlags::empty()));
            remove(dir, &temporary)?;
            linked
        }
        Err(errno) => return Err(errno),
    };
    match linked {
        Ok(()) => {}
        Err(Errno::EEXIST) => return Ok(false),
        Err(errno) => return Err(errno),
    }
    if durable {
        nix::unistd::fsync(dir)?;
    }
    Ok(true)
}

/// Puts a file in the place of another, in one step.
pub(crate) fn replace(dir: &OwnedFd, name: &str, content: &[u8], mode: u32) -> nix::Result<()> {
    let temporary = format!("{TEMPORARY}new-{name}");
    remove(dir, &temporary)?;
    create(dir, &temporary, content, mode, false)?;
    renameat(dir, temporary.as_str(), dir, name)
}

/// Replaces the content of a file in place. Emptying it first would be simpler and cost 2 ms: ext4 writes a file
/// that was emptied to disk at once.
pub(crate) fn overwrite(mut file: File, content: &[u8]) -> std::io::Result<()> {
    file.write_all(content)?;
    if file.metadata()?.len() > content.len() as u64 {
        file.set_len(content.len() as u64)?;
    }
    Ok(())
}

/// Deletes a file; it need not be there.
pub(crate) fn remove(dir: &OwnedFd, name: &str) -> nix::Result<()> {
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// The names in a directory.
pub(crate) fn names(dir: &OwnedFd) -> nix::Result<Vec<String>> {
    let mut names = Vec::new();
    each_name(dir, |name| names.push(name.to_owned()))?;
    Ok(names)
}

/// Tells every name in a directory that is text. There may be tens of thousands.
pub(crate) fn each_name(dir: &OwnedFd, mut tell: impl FnMut(&str)) -> nix::Result<()> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let mut listing = Dir::openat(dir, ".", flags, Mode::empty())?;
    for entry in listing.iter() {
        if let Ok(name) = entry?.file_name().to_str()
            && name != "."
            && name != ".."
        {
            tell(name);
        }
    }
    Ok(())
}
