//! The files of one network.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use heddle_spec::{Network, Owner};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{Mode, SFlag, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use crate::lock::Lock;
use crate::{Error, Result};

/// Our own files, out of the way of the reference plugin's.
const OURS: &str = ".heddle";
const BOOT: &str = "boot";
/// What a file is called that is about to get its name.
const TEMPORARY: &str = ".heddle-";
/// What a note begins with. It keeps the reference plugin from taking the file for a lease of a container that is
/// called like an address.
const NOTE: &str = "leases ";
/// By this mode a lease of ours is told from one of the reference plugin, which are writable.
const LEASE_MODE: u32 = 0o400;
/// A lease is one line of each of two names: what is longer is none.
const LONGEST_FILE: u64 = 4096;

/// The directory of one network.
#[derive(Debug)]
pub struct Store {
    dir: OwnedFd,
    ours: OwnedFd,
    path: PathBuf,
    boot: String,
    durable: bool,
}

/// What is at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lease {
    Free,
    /// A lease without an owner: its writer was killed, or the disk was full.
    Empty,
    /// The content of the lease.
    Held(String),
    /// Something that is no file, or cannot be read. It counts as taken.
    Strange,
}

impl Store {
    /// Opens the directory of `network` below `data_dir`, creating what is missing. `boot` is the
    /// identity of the running boot (/proc/sys/kernel/random/boot_id).
    pub fn open(data_dir: &Path, network: &Network, boot: &str, durable: bool) -> Result<Self> {
        let path = data_dir.join(network.as_str());
        let failed = |errno: Errno| Error::io("open", &path, errno);
        fs::create_dir_all(data_dir).map_err(|source| Error::io("create", data_dir, source))?;
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        // The operator may have made a symlink of the data directory; below it, nobody has a reason to.
        let base =
            open(data_dir, flags, Mode::empty()).map_err(|errno| Error::io("open", data_dir, errno))?;
        let dir = subdirectory(&base, network.as_str()).map_err(failed)?;
        let ours = subdirectory(&dir, OURS).map_err(failed)?;
        Ok(Self { dir, ours, path, boot: boot.to_owned(), durable })
    }

    /// Opens the directory of `network` if there is one.
    pub fn open_existing(data_dir: &Path, network: &Network, boot: &str) -> Result<Option<Self>> {
        match fs::symlink_metadata(data_dir.join(network.as_str())) {
            Ok(_) => Self::open(data_dir, network, boot, false).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::io("open", data_dir.join(network.as_str()), source)),
        }
    }

    /// Locks the directory and frees what an earlier boot left.
    ///
    /// # Errors
    /// [`Error::Locked`] if another program keeps it locked for longer than `patience`.
    pub fn lock(&self, patience: Duration) -> Result<Locked<'_>> {
        let lock = Lock::take(&self.dir, &self.path, patience)?;
        let locked = Locked { store: self, _lock: lock };
        locked.adopt_boot()?;
        Ok(locked)
    }

    /// The directory, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The directory, locked: all that reads or changes leases is here.
#[derive(Debug)]
pub struct Locked<'a> {
    store: &'a Store,
    _lock: Lock,
}

impl Locked<'_> {
    fn failed(&self, operation: &'static str, name: &str, errno: Errno) -> Error {
        Error::io(operation, self.store.path.join(name), errno)
    }

    /// Sweeps our leases of an earlier boot, once.
    fn adopt_boot(&self) -> Result<()> {
        let recorded = read_at(&self.store.ours, BOOT).map_err(|errno| self.failed("read", BOOT, errno))?;
        if recorded.as_deref() == Some(self.store.boot.as_bytes()) {
            return Ok(());
        }
        if recorded.is_some() {
            for (name, _) in self.addresses()? {
                let stat = fstatat(&self.store.dir, name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
                if stat.is_ok_and(|stat| is_ours(stat.st_mode)) {
                    self.unlink(&name)?;
                }
            }
            for name in names(&self.store.ours).map_err(|errno| self.failed("list", OURS, errno))? {
                remove(&self.store.ours, &name).map_err(|errno| self.failed("delete", &name, errno))?;
            }
        }
        // Last: if we are killed before, the next one sweeps again.
        self.write_ours(BOOT, self.store.boot.as_bytes())
    }

    /// The directory, for messages.
    pub(crate) fn directory(&self) -> std::path::Display<'_> {
        self.store.path.display()
    }

    /// The addresses that are leased, by file name.
    pub(crate) fn addresses(&self) -> Result<Vec<(String, IpAddr)>> {
        let names = names(&self.store.dir).map_err(|errno| self.failed("list", "", errno))?;
        Ok(names
            .into_iter()
            .filter_map(|name| {
                let ip: IpAddr = name.parse().ok()?;
                (ip.to_string() == name).then_some((name, ip))
            })
            .collect())
    }

    /// What is at `ip`.
    pub(crate) fn lease(&self, ip: IpAddr) -> Lease {
        match read_at(&self.store.dir, &ip.to_string()) {
            Ok(None) => Lease::Free,
            Ok(Some(content)) => match String::from_utf8(content) {
                Ok(text) if text.trim().is_empty() => Lease::Empty,
                Ok(text) => Lease::Held(text.trim().to_owned()),
                Err(_) => Lease::Strange,
            },
            Err(_) => Lease::Strange,
        }
    }

    /// Leases `ip` to `owner`. `false`: it is leased already.
    pub(crate) fn create(&self, ip: IpAddr, owner: &Owner) -> Result<bool> {
        let name = ip.to_string();
        let created =
            create(&self.store.dir, &name, content(owner).as_bytes(), LEASE_MODE, self.store.durable);
        created.map_err(|errno| self.failed("create lease", &name, errno))
    }

    /// Whether `ip` is leased to `owner`. Old versions of the reference plugin wrote the container's id alone.
    pub(crate) fn holds(&self, owner: &Owner, ip: IpAddr) -> bool {
        matches!(self.lease(ip), Lease::Held(held) if held == content(owner) || held == owner.container())
    }

    /// Frees `ip` if it is leased to `owner`. Returns whether it was.
    pub(crate) fn free(&self, ip: IpAddr, owner: &Owner) -> Result<bool> {
        let theirs = self.holds(owner, ip);
        if theirs {
            self.unlink(&ip.to_string())?;
        }
        Ok(theirs)
    }

    /// Frees a lease that belongs to nobody.
    pub(crate) fn reclaim(&self, ip: IpAddr) -> Result<()> {
        self.unlink(&ip.to_string())
    }

    fn unlink(&self, name: &str) -> Result<()> {
        remove(&self.store.dir, name).map_err(|errno| self.failed("delete lease", name, errno))
    }

    /// The address that range set `n` gave last.
    pub(crate) fn last(&self, n: usize) -> Option<IpAddr> {
        let content = read_at(&self.store.dir, &format!("last_reserved_ip.{n}")).ok()??;
        String::from_utf8(content).ok()?.trim().parse().ok()
    }

    /// Notes the address that range set `n` gave last. Only the order of giving depends on it.
    pub(crate) fn set_last(&self, n: usize, ip: IpAddr) -> Result<()> {
        let name = format!("last_reserved_ip.{n}");
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let file = openat(&self.store.dir, name.as_str(), flags, Mode::from_bits_truncate(0o644))
            .map_err(|errno| self.failed("write", &name, errno))?;
        overwrite(File::from(file), ip.to_string().as_bytes())
            .map_err(|source| Error::io("write", self.store.path.join(&name), source))
    }

    /// What `owner` was given, as far as our own notes say; `None` if they say nothing. The leases are
    /// the truth: each must be looked at.
    pub(crate) fn noted(&self, owner: &Owner) -> Option<Vec<IpAddr>> {
        let content = read_at(&self.store.ours, &index_name(owner)).ok()??;
        let text = String::from_utf8(content).ok()?;
        text.strip_prefix(NOTE).map(|list| list.split(' ').filter_map(|ip| ip.parse().ok()).collect())
    }

    /// Notes what `owner` is about to be given. Before the leases: a lease that no note names would be
    /// found only by reading all leases.
    pub(crate) fn note(&self, owner: &Owner, ips: &[IpAddr]) -> Result<()> {
        let list: Vec<_> = ips.iter().map(ToString::to_string).collect();
        self.write_ours(&index_name(owner), format!("{NOTE}{}", list.join(" ")).as_bytes())
    }

    pub(crate) fn forget(&self, owner: &Owner) -> Result<()> {
        let name = index_name(owner);
        remove(&self.store.ours, &name).map_err(|errno| self.failed("delete", &name, errno))
    }

    /// Deletes what writers left that were killed: notes that name no lease of their owner, and files that were
    /// about to get their name. Nobody else writes while we have the lock.
    pub fn sweep(&self) -> Result<()> {
        for name in names(&self.store.ours).map_err(|errno| self.failed("list", OURS, errno))? {
            let stray = match read_at(&self.store.ours, &name) {
                _ if name == BOOT => false,
                _ if name.starts_with(TEMPORARY) => true,
                Ok(Some(content)) => !self.is_of_use(&name, &content),
                _ => false,
            };
            if stray {
                remove(&self.store.ours, &name).map_err(|errno| self.failed("delete", &name, errno))?;
            }
        }
        let all = names(&self.store.dir).map_err(|errno| self.failed("list", "", errno))?;
        for name in all.iter().filter(|name| name.starts_with(TEMPORARY)) {
            self.unlink(name)?;
        }
        Ok(())
    }

    /// Whether a note names an address that its owner holds.
    fn is_of_use(&self, name: &str, content: &[u8]) -> bool {
        let text = String::from_utf8_lossy(content);
        let mut ips = text.strip_prefix(NOTE).unwrap_or_default().split(' ').filter_map(|ip| ip.parse().ok());
        ips.any(|ip| match self.lease(ip) {
            Lease::Held(content) => owner_of(&content).is_some_and(|owner| index_name(&owner) == name),
            Lease::Free | Lease::Empty | Lease::Strange => false,
        })
    }

    /// Replaces a file of ours as a whole.
    fn write_ours(&self, name: &str, content: &[u8]) -> Result<()> {
        let failed = |errno| self.failed("write", name, errno);
        if create(&self.store.ours, name, content, 0o600, false).map_err(failed)? {
            return Ok(());
        }
        remove(&self.store.ours, name).map_err(failed)?;
        create(&self.store.ours, name, content, 0o600, false).map_err(failed)?;
        Ok(())
    }
}

/// Whom the content of a lease names.
pub(crate) fn owner_of(content: &str) -> Option<Owner> {
    let (container, ifname) = content.split_once("\r\n")?;
    Owner::new(container, ifname).ok()
}

/// What a lease of `owner` holds.
fn content(owner: &Owner) -> String {
    format!("{}\r\n{}", owner.container(), owner.ifname())
}

/// A file name for `owner` of a fixed length: 128 bits of FNV-1a.
fn index_name(owner: &Owner) -> String {
    let hash = content(owner).bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    format!("{hash:032x}")
}

fn is_ours(mode: u32) -> bool {
    mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits() && mode & 0o7777 == LEASE_MODE
}

/// Opens a subdirectory, creating it if it is missing. It is not followed if it is a symlink.
fn subdirectory(parent: &OwnedFd, name: &str) -> nix::Result<OwnedFd> {
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
fn read_at(dir: &OwnedFd, name: &str) -> nix::Result<Option<Vec<u8>>> {
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
fn create(dir: &OwnedFd, name: &str, content: &[u8], mode: u32, durable: bool) -> nix::Result<bool> {
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

/// Replaces the content of a file in place. Emptying it first would be simpler and cost 2 ms: ext4 writes a file
/// that was emptied to disk at once.
fn overwrite(mut file: File, content: &[u8]) -> std::io::Result<()> {
    file.write_all(content)?;
    if file.metadata()?.len() > content.len() as u64 {
        file.set_len(content.len() as u64)?;
    }
    Ok(())
}

/// Deletes a file; it need not be there.
fn remove(dir: &OwnedFd, name: &str) -> nix::Result<()> {
    match unlinkat(dir, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// The names in a directory.
fn names(dir: &OwnedFd) -> nix::Result<Vec<String>> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let mut listing = Dir::openat(dir, ".", flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in listing.iter() {
        if let Ok(name) = entry?.file_name().to_str()
            && name != "."
            && name != ".."
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_that_differ_have_other_index_names() {
        let name = |container: &str, ifname: &str| index_name(&Owner::new(container, ifname).unwrap());
        assert_eq!(name("a", "eth0").len(), 32);
        assert_ne!(name("a", "eth0"), name("a", "eth1"));
        assert_ne!(name("a", "eth0"), name("b", "eth0"));
    }
}
