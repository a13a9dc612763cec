//! Reading the files of a directory, and of nothing else.
//!
//! A name is opened with `RESOLVE_BENEATH` (Linux 5.6): symbolic links are followed as long as they lead to
//! somewhere inside of the directory, which is what a mounted ConfigMap needs. Only regular files are read,
//! and an open never hangs on a FIFO.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, stat};

/// Largest file, in bytes. The nodes of a cluster of 5,000 as kubectl prints them fit twice.
const LARGEST: u64 = 64 << 20;
/// Most files.
const MOST: usize = 100_000;

/// Changes whenever the file does, by whatever way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    device: u64,
    inode: u64,
    size: i64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    /// When the content was written, in seconds and nanoseconds.
    pub const fn modified(&self) -> (i64, i64) {
        self.modified
    }
}

impl From<&FileStat> for Identity {
    fn from(stat: &FileStat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

/// A file that was read.
#[derive(Debug)]
pub struct Found {
    pub identity: Identity,
    pub text: Vec<u8>,
    /// It has another name as well, or this is a symbolic link: it may be written to without this name being told.
    pub is_linked: bool,
}

/// An open directory.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
}

impl Directory {
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self { fd: nix::fcntl::open(path, flags, Mode::empty())? })
    }

    /// Whether `path` (still) is this directory.
    pub fn is(&self, path: &Path) -> bool {
        match (fstat(&self.fd), stat(path)) {
            (Ok(here), Ok(there)) => (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino),
            _ => false,
        }
    }

    /// The names that `wanted` gives back, all in UTF-8.
    pub fn names(&self, wanted: fn(&OsStr) -> Option<&str>) -> io::Result<BTreeSet<String>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut dir = Dir::from_fd(openat(&self.fd, ".", flags, Mode::empty())?)?;
        let mut names = BTreeSet::new();
        for entry in dir.iter() {
            let name = entry?.file_name().to_bytes().to_vec();
            if let Some(name) = wanted(OsStr::from_bytes(&name)) {
                names.insert(name.to_owned());
            }
        }
        if names.len() > MOST {
            return Err(io::Error::other(format!("more than {MOST} files")));
        }
        Ok(names)
    }

    /// Reads a file, unless it is still the `known` one. `Ok(None)`: it is, or it is no file (a directory).
    pub fn read(&self, name: &str, known: Option<Identity>) -> io::Result<Option<Found>> {
        // O_PATH does not open what is there (a device would notice), and never waits.
        let Some(seen) = self.look(name, OFlag::O_PATH)? else { return Ok(None) };
        if known == Some(Identity::from(&seen.1)) {
            return Ok(None);
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let Some((fd, stat)) = self.look(name, flags)? else { return Ok(None) };
        let too_large = || io::Error::other(format!("larger than {LARGEST} bytes"));
        if u64::try_from(stat.st_size).map_or(true, |size| size > LARGEST) {
            return Err(too_large());
        }
        let mut text = Vec::new();
        File::from(fd).take(LARGEST + 1).read_to_end(&mut text)?;
        match text.len() as u64 > LARGEST {
            true => Err(too_large()),
            false => {
                let is_linked = stat.st_nlink > 1 || self.is_link(name);
                Ok(Some(Found { identity: Identity::from(&stat), text, is_linked }))
            }
        }
    }

    /// Whether there is something of this name, be it a link that leads nowhere.
    pub fn has(&self, name: &str) -> bool {
        fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
    }

    fn is_link(&self, name: &str) -> bool {
        fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK)
    }

    fn look(&self, name: &str, flags: OFlag) -> io::Result<Option<(OwnedFd, FileStat)>> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let fd = match openat2(self.fd.as_fd(), name, how) {
            Ok(fd) => fd,
            Err(Errno::EXDEV) => return Err(io::Error::other("it leads outside of the directory")),
            Err(error) => return Err(error.into()),
        };
        let stat = fstat(&fd)?;
        match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFREG => Ok(Some((fd, stat))),
            SFlag::S_IFDIR => Ok(None),
            _ => Err(io::Error::other("not a regular file")),
        }
    }
}
