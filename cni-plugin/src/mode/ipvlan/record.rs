//! Which pods have a device in mode ipvlan, a file for each: `<runDir>/ipvlan/<name>`.
//!
//! The host keeps nothing of such a pod: its device is in its own namespace. The record says where that is, for a DEL
//! or GC that is not told, and what mode its master is in, which the kernel tells nobody and changes for all. It is
//! there before the device, and goes after it.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use heddle_netlink::{NetNs, Socket};
use heddle_spec::{Failure, Owner, code};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::linkat;
use serde::{Deserialize, Serialize};

/// A record holds a few names and a path.
const LONGEST: u64 = 16 << 10;

/// A pod's device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub network: String,
    pub container: String,
    pub ifname: String,
    /// Where the pod's namespace was found, and which one it is: `SO_NETNS_COOKIE`, never given again.
    pub path: PathBuf,
    pub cookie: u64,
    /// The namespace that the master is in, likewise, and its index there.
    pub place: u64,
    pub master: u32,
    /// What the master's mode was to be: l2, l3 or l3s.
    pub mode: String,
}

impl Record {
    pub fn owner(&self) -> Option<Owner> {
        Owner::new(&self.container, &self.ifname).ok()
    }

    /// The pod's namespace and a socket in it, if the path still leads there.
    pub fn namespace(&self) -> Result<Option<(NetNs, Socket)>, Failure> {
        let ns = match NetNs::open(&self.path) {
            Ok(ns) => ns,
            // Gone, or something else by now.
            Err(error) if error.not_found() || matches!(error, heddle_netlink::Error::Invalid { .. }) => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let socket = Socket::open_in(&ns)?;
        Ok((socket.namespace_cookie()? == self.cookie).then_some((ns, socket)))
    }
}

/// The records of a machine.
#[derive(Debug)]
pub struct Records {
    dir: PathBuf,
}

impl Records {
    pub fn new(run_dir: &Path) -> Self {
        Self { dir: run_dir.join("ipvlan") }
    }

    /// Reads one. What cannot be understood is not ours.
    pub fn read(&self, name: &str) -> Result<Option<Record>, Failure> {
        let path = self.dir.join(name);
        let content = match File::open(&path) {
            Ok(file) => io::read_to_string(io::Read::take(file, LONGEST)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => Err(error),
        };
        match content {
            Ok(content) => Ok(serde_json::from_str(&content).ok()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
            Err(error) => Err(failed("read", &path, &error)),
        }
    }

    /// All of them, with their names.
    pub fn all(&self) -> Result<Vec<(String, Record)>, Failure> {
        let list = match std::fs::read_dir(&self.dir) {
            Ok(list) => list,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("list", &self.dir, &error)),
        };
        let mut all = Vec::new();
        for file in list {
            let file = file.map_err(|error| failed("list", &self.dir, &error))?;
            let Ok(name) = file.file_name().into_string() else { continue };
            if let Some(record) = self.read(&name)? {
                all.push((name, record));
            }
        }
        Ok(all)
    }

    /// Writes one, in place of what an ADD left that was killed: as a whole or not at all.
    pub fn write(&self, name: &str, record: &Record) -> Result<(), Failure> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(|error| failed("create directory", &self.dir, &error))?;
        self.remove(name)?;
        let path = self.dir.join(name);
        let refused = |errno: Errno| failed("create", &path, &errno.into());
        let content =
            serde_json::to_vec(record).map_err(|error| Failure::new(code::INTERNAL, error.to_string()))?;
        let flags = OFlag::O_TMPFILE | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let file = open(&self.dir, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(refused)?;
        let mut file = File::from(file);
        file.write_all(&content).map_err(|error| failed("write", &path, &error))?;
        let through = format!("/proc/self/fd/{}", file.as_raw_fd());
        linkat(AT_FDCWD, through.as_str(), AT_FDCWD, &path, AtFlags::AT_SYMLINK_FOLLOW).map_err(refused)
    }

    /// Deletes one, if it is there.
    pub fn remove(&self, name: &str) -> Result<(), Failure> {
        let path = self.dir.join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("delete", &path, &error)),
            _ => Ok(()),
        }
    }
}

fn failed(what: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::new(code::IO, format!("cannot {what} {}: {error}", path.display()))
}
