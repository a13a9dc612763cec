//! The files of one network.

use std::cell::Cell;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use heddle_spec::{Network, Owner};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, futimens};
use nix::sys::time::TimeSpec;

use crate::file::{self, create, overwrite, read_at, remove, subdirectory};
use crate::lock::Lock;
use crate::{Error, Result};

/// Our own files, out of the way of the reference plugin's.
pub(crate) const OURS: &str = ".heddle";
pub(crate) const BOOT: &str = "boot";
/// By this mode a lease of ours is told from one of the reference plugin, which are writable.
const LEASE_MODE: u32 = 0o400;
/// The directory's time of modification says that every lease is one that we made and noted: we set it to this
/// when we have changed something, and whoever changes something else sets it to something else. (2001-09-09, and some
/// nanoseconds that no clock will hit.)
const MARK: (i64, i64) = (1_000_000_000, 72_073_077);
const ALL_NOTED: TimeSpec = TimeSpec::new(MARK.0, MARK.1);
/// What is shorter may be white space alone, which is no lease (bytes).
const SHORTEST_LEASE: i64 = 4;

/// The identity of the running boot.
pub fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    let id = fs::read_to_string(path).map_err(|source| Error::io("read", path, source))?;
    Ok(id.trim().to_owned())
}

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
    /// identity of the running boot ([`boot_id`]).
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
        let all_noted = fstat(&self.dir).is_ok_and(|stat| (stat.st_mtime, stat.st_mtime_nsec) == MARK);
        let locked =
            Locked { store: self, _lock: lock, all_noted: Cell::new(all_noted), changed: Cell::new(false) };
        locked.adopt_boot()?;
        Ok(locked)
    }

    /// The directory of our own files.
    pub(crate) const fn ours(&self) -> &OwnedFd {
        &self.ours
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
    /// Every lease is one that we made, and noted.
    all_noted: Cell<bool>,
    changed: Cell<bool>,
}

/// Says on the way out, before the lock goes, whether every lease here is noted.
impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if self.all_noted.get() && self.changed.get() {
            // Without the mark, all leases are read where a note would do.
            futimens(&self.store.dir, &TimeSpec::UTIME_OMIT, &ALL_NOTED).ok();
        }
    }
}

impl Locked<'_> {
    pub(crate) fn failed(&self, operation: &'static str, name: &str, errno: Errno) -> Error {
        Error::io(operation, self.store.path.join(name), errno)
    }

    /// Sweeps our leases of an earlier boot, once.
    fn adopt_boot(&self) -> Result<()> {
        let recorded = read_at(&self.store.ours, BOOT).map_err(|errno| self.failed("read", BOOT, errno))?;
        if recorded.as_deref() == Some(self.store.boot.as_bytes()) {
            return Ok(());
        }
        if recorded.is_some() {
            for ip in self.addresses()? {
                if self.is_ours(ip)? {
                    self.reclaim(ip)?;
                }
            }
            let all = file::names(&self.store.ours).map_err(|errno| self.failed("list", OURS, errno))?;
            for name in all.into_iter().filter(|name| name != crate::turn::NAME) {
                remove(&self.store.ours, &name).map_err(|errno| self.failed("delete", &name, errno))?;
            }
        }
        if self.addresses()?.is_empty() {
            self.found_all_noted();
        }
        // Last: if we are killed before, the next one sweeps again.
        self.write_ours(BOOT, self.store.boot.as_bytes())
    }

    /// Where our own files are.
    pub(crate) fn ours(&self) -> &OwnedFd {
        &self.store.ours
    }

    /// Whether every lease is one that we made and noted, so that what has no note has no lease.
    pub(crate) fn all_noted(&self) -> bool {
        self.all_noted.get()
    }

    /// All leases were looked at: each is one that we made and noted.
    pub(crate) fn found_all_noted(&self) {
        self.all_noted.set(true);
        self.changed.set(true);
    }

    /// The directory, for messages.
    pub(crate) fn directory(&self) -> std::path::Display<'_> {
        self.store.path.display()
    }

    /// The files in the directory.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        file::names(&self.store.dir).map_err(|errno| self.failed("list", "", errno))
    }

    /// The addresses that are leased. Lists the directory; reads no file.
    pub(crate) fn addresses(&self) -> Result<Vec<IpAddr>> {
        let mut found = Vec::new();
        let listed = file::each_name(&self.store.dir, |name| found.extend(address_of(name)));
        listed.map_err(|errno| self.failed("list", "", errno))?;
        Ok(found)
    }

    fn stat(&self, ip: IpAddr) -> nix::Result<Option<FileStat>> {
        match fstatat(&self.store.dir, ip.to_string().as_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Whether the lease of `ip` is one that we made.
    pub(crate) fn is_ours(&self, ip: IpAddr) -> Result<bool> {
        let regular = |mode: u32| mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits();
        let stat = self.stat(ip).map_err(|errno| self.failed("examine lease", &ip.to_string(), errno))?;
        Ok(stat.is_some_and(|stat| regular(stat.st_mode) && stat.st_mode & 0o7777 == LEASE_MODE))
    }

    /// Whether `ip` can be leased, as far as files go. Reads no lease that is long enough to be one.
    pub(crate) fn is_free(&self, ip: IpAddr) -> Result<bool> {
        match self.stat(ip) {
            Ok(None) => Ok(true),
            Ok(Some(stat)) if stat.st_size >= SHORTEST_LEASE => Ok(false),
            Ok(Some(_)) if self.lease(ip)? == Lease::Empty => self.reclaim(ip).map(|()| true),
            Ok(Some(_)) => Ok(false),
            Err(errno) => Err(self.failed("examine lease", &ip.to_string(), errno)),
        }
    }

    /// What is at `ip`.
    ///
    /// # Errors
    /// If it cannot be read although it is a file: then nobody knows whose it is.
    pub(crate) fn lease(&self, ip: IpAddr) -> Result<Lease> {
        let name = ip.to_string();
        match read_at(&self.store.dir, &name) {
            Ok(None) => Ok(Lease::Free),
            Ok(Some(content)) => Ok(match String::from_utf8(content) {
                Ok(text) if text.trim().is_empty() => Lease::Empty,
                Ok(text) => Lease::Held(text.trim().to_owned()),
                Err(_) => Lease::Strange,
            }),
            // Not a file: a directory, a FIFO, a symlink, a socket.
            Err(Errno::EINVAL | Errno::EISDIR | Errno::ELOOP | Errno::ENXIO) => Ok(Lease::Strange),
            Err(errno) => Err(self.failed("read lease", &name, errno)),
        }
    }

    /// Leases `ip` to `owner`. `false`: it is leased already.
    pub(crate) fn create(&self, ip: IpAddr, owner: &Owner) -> Result<bool> {
        self.changed.set(true);
        let name = ip.to_string();
        let created =
            create(&self.store.dir, &name, content(owner).as_bytes(), LEASE_MODE, self.store.durable);
        created.map_err(|errno| self.failed("create lease", &name, errno))
    }

    /// Whether `ip` is leased to `owner`.
    pub(crate) fn holds(&self, owner: &Owner, ip: IpAddr) -> Result<bool> {
        Ok(matches!(self.lease(ip)?, Lease::Held(held) if names(&held, owner)))
    }

    /// Frees `ip` if it is leased to `owner`. Returns whether it was.
    pub(crate) fn free(&self, ip: IpAddr, owner: &Owner) -> Result<bool> {
        let theirs = self.holds(owner, ip)?;
        if theirs {
            self.unlink(&ip.to_string())?;
        }
        Ok(theirs)
    }

    /// Frees a lease that belongs to nobody.
    pub(crate) fn reclaim(&self, ip: IpAddr) -> Result<()> {
        self.unlink(&ip.to_string())
    }

    pub(crate) fn unlink(&self, name: &str) -> Result<()> {
        self.changed.set(true);
        remove(&self.store.dir, name).map_err(|errno| self.failed("delete lease", name, errno))
    }

    /// The address that range set `n` gave last.
    pub(crate) fn last(&self, n: usize) -> Option<IpAddr> {
        let content = read_at(&self.store.dir, &format!("last_reserved_ip.{n}")).ok()??;
        String::from_utf8(content).ok()?.trim().parse().ok()
    }

    /// Notes the address that range set `n` gave last. Only the order of giving depends on it.
    pub(crate) fn set_last(&self, n: usize, ip: IpAddr) -> Result<()> {
        self.changed.set(true);
        let name = format!("last_reserved_ip.{n}");
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let file = openat(&self.store.dir, name.as_str(), flags, Mode::from_bits_truncate(0o644))
            .map_err(|errno| self.failed("write", &name, errno))?;
        overwrite(File::from(file), ip.to_string().as_bytes())
            .map_err(|source| Error::io("write", self.store.path.join(&name), source))
    }
}

/// The address that a file is called like, if it is called as we would call it.
fn address_of(name: &str) -> Option<IpAddr> {
    if let Ok(ip) = name.parse::<Ipv4Addr>() {
        // There is one way to write it.
        return Some(ip.into());
    }
    name.parse::<Ipv6Addr>().ok().filter(|ip| ip.to_string() == name).map(IpAddr::from)
}

/// Whom the content of a lease names.
pub(crate) fn owner_of(content: &str) -> Option<Owner> {
    let (container, ifname) = content.split_once("\r\n")?;
    Owner::new(container, ifname).ok()
}

/// Whether the content of a lease names `owner`. Old versions of the reference plugin wrote the container's id alone.
pub(crate) fn names(held: &str, owner: &Owner) -> bool {
    held == content(owner) || held == owner.container()
}

/// What a lease of `owner` holds.
pub(crate) fn content(owner: &Owner) -> String {
    format!("{}\r\n{}", owner.container(), owner.ifname())
}
