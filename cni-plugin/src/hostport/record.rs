//! What each pod publishes, in a file of its own: `<runDir>/ports/<host side>`.
//!
//! The kernel holds what is in force; the records are there to find it again without looking through everything, to
//! put it back when somebody has flushed the rules, and for others on this node who want to know. /run does not outlive
//! the kernel that it describes.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use heddle_netlink::nft::{Entry, port};
use heddle_spec::{Failure, code};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use serde::{Deserialize, Serialize};

use super::rules::Place;
use crate::conf::Protocol;

/// 65,535 ports of three protocols and two families fit.
const LONGEST: u64 = 64 << 20;

/// What a pod publishes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Cookie of the network namespace that the rules are in.
    pub namespace: u64,
    pub network: String,
    #[serde(rename = "containerID")]
    pub container: String,
    pub ifname: String,
    /// The device by which the pod's packets reach the host.
    pub device: String,
    /// Whether the client's address is translated where the answer would not come back through the host.
    pub snat: bool,
    /// Whether every client's address is translated.
    pub masquerade_all: bool,
    pub ports: Vec<Port>,
}

/// One port of one family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    pub protocol: Protocol,
    /// All of the node's own addresses of the family if `None`.
    #[serde(rename = "hostIP", skip_serializing_if = "Option::is_none", default)]
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    /// The pod's address and port.
    pub address: IpAddr,
    pub port: u16,
}

impl Record {
    /// The elements by which this is in force; `host` is the name of the pod's host side.
    pub fn entries(&self, host: &str) -> Vec<(Place, Entry)> {
        let comment = format!("{host} {} {} {}", self.network, self.container, self.ifname);
        let entry = |key, data| Entry { key, data, comment: comment.clone() };
        let mut entries = Vec::new();
        for port in &self.ports {
            let v4 = port.address.is_ipv4();
            let place = if port.host_ip.is_some() { Place::One { v4 } } else { Place::Any { v4 } };
            let number = port.protocol.number();
            let key = port::key(port.host_ip, number, port.host_port);
            entries.push((place, entry(key, port::data(port.address, port.port))));
            if self.masquerade_all {
                let key = port::key(Some(port.address), number, port.port);
                entries.push((Place::Masquerade { v4 }, entry(key, Vec::new())));
            }
            if self.snat {
                let key = port::device_and_address(&self.device, port.address);
                entries.push((Place::Hairpin { v4 }, entry(key, Vec::new())));
                if self.device != host {
                    let key = port::pair(port.address, port.address);
                    entries.push((Place::Itself { v4 }, entry(key, Vec::new())));
                }
            }
        }
        entries.sort_by(|a, b| (a.0, &a.1.key).cmp(&(b.0, &b.1.key)));
        entries.dedup_by(|a, b| (a.0, &a.1.key) == (b.0, &b.1.key));
        entries
    }
}

/// The directory of the records, locked: who publishes or withdraws is alone.
#[derive(Debug)]
pub struct Records {
    dir: File,
    path: PathBuf,
}

impl Records {
    /// Opens the directory, which is made if it is missing.
    pub fn open(run_dir: &Path, patience: Duration) -> Result<Self, Failure> {
        let path = run_dir.join("ports");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|error| failed("create directory", &path, &error))?;
        Self::lock(path, patience)
    }

    /// Opens the directory if it is there.
    pub fn open_existing(run_dir: &Path, patience: Duration) -> Result<Option<Self>, Failure> {
        let path = run_dir.join("ports");
        if exists(&path)? { Self::lock(path, patience).map(Some) } else { Ok(None) }
    }

    /// Whether there is a record of a pod. Nothing is opened: this is what every DEL asks.
    pub fn has(run_dir: &Path, host: &str) -> Result<bool, Failure> {
        exists(&run_dir.join("ports").join(host))
    }

    fn lock(path: PathBuf, patience: Duration) -> Result<Self, Failure> {
        let dir = File::open(&path).map_err(|error| failed("open directory", &path, &error))?;
        match dir.try_lock() {
            Ok(()) => return Ok(Self { dir, path }),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(failed("lock directory", &path, &error)),
        }
        // flock(2) knows no time limit: a thread waits. If we give up, it ends with this short-lived process.
        let (sender, receiver) = mpsc::channel();
        thread::Builder::new()
            .name("ports".into())
            .spawn(move || {
                let locked = dir.lock().map(|()| dir);
                drop(sender.send(locked));
            })
            .map_err(|error| failed("lock directory", &path, &error))?;
        match receiver.recv_timeout(patience) {
            Ok(Ok(dir)) => Ok(Self { dir, path }),
            Ok(Err(error)) => Err(failed("lock directory", &path, &error)),
            Err(_) => Err(Failure::new(
                code::TRY_LATER,
                format!("another program has held the lock of {} for {patience:?}", path.display()),
            )),
        }
    }

    /// The record of a pod. One that cannot be understood is as none: it is not ours.
    pub fn read(&self, host: &str) -> Result<Option<Record>, Failure> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
        let file = match openat(&self.dir, host, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::ENOENT | Errno::ELOOP) => return Ok(None),
            Err(errno) => return Err(self.failed("open", host, errno)),
        };
        let mut content = Vec::new();
        match file.take(LONGEST).read_to_end(&mut content) {
            Ok(_) => Ok(serde_json::from_slice(&content).ok()),
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => Ok(None),
            Err(error) => Err(failed("read", &self.path.join(host), &error)),
        }
    }

    /// Whether there is a record of a pod, be it one that cannot be understood.
    pub fn contains(&self, host: &str) -> Result<bool, Failure> {
        exists(&self.path.join(host))
    }

    /// All records of this network namespace, by host side.
    pub fn all(&self, namespace: u64) -> Result<Vec<(String, Record)>, Failure> {
        let listed = |errno: Errno| failed("list", &self.path, &errno.into());
        // That of the standard library panics if the kernel refuses to close it.
        let mut list =
            Dir::openat(&self.dir, ".", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).map_err(listed)?;
        let mut all = Vec::new();
        for file in list.iter() {
            let file = file.map_err(listed)?;
            let Ok(host) = file.file_name().to_str() else { continue };
            if matches!(host, "." | "..") {
                continue;
            }
            if let Some(record) = self.read(host)?.filter(|record| record.namespace == namespace) {
                all.push((host.to_owned(), record));
            }
        }
        all.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(all)
    }

    /// Writes the record of a pod that has none: with its content or not at all.
    pub fn write(&self, host: &str, record: &Record) -> Result<(), Failure> {
        let content =
            serde_json::to_vec(record).map_err(|error| Failure::new(code::INTERNAL, error.to_string()))?;
        let flags = OFlag::O_TMPFILE | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let file = openat(&self.dir, ".", flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|errno| self.failed("create", host, errno))?;
        let mut file = File::from(file);
        file.write_all(&content).map_err(|error| failed("write", &self.path.join(host), &error))?;
        let through = format!("/proc/self/fd/{}", file.as_raw_fd());
        linkat(AT_FDCWD, through.as_str(), &self.dir, host, AtFlags::AT_SYMLINK_FOLLOW)
            .map_err(|errno| self.failed("create", host, errno))
    }

    /// Deletes the record of a pod, if there is one.
    pub fn remove(&self, host: &str) -> Result<(), Failure> {
        match unlinkat(&self.dir, host, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(self.failed("delete", host, errno)),
        }
    }

    fn failed(&self, operation: &str, host: &str, errno: Errno) -> Failure {
        failed(operation, &self.path.join(host), &errno.into())
    }
}

impl Drop for Records {
    /// GC takes the lock several times: a descriptor that could not be closed must not keep it.
    fn drop(&mut self) {
        drop(self.dir.unlock());
    }
}

fn exists(path: &Path) -> Result<bool, Failure> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("look at", path, &error)),
    }
}

fn failed(operation: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::new(code::IO, format!("cannot {operation} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let port = |host_ip: Option<&str>, address: &str, protocol| Port {
            protocol,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_port: 8080,
            address: address.parse().unwrap(),
            port: 80,
        };
        Record {
            namespace: 7,
            network: "net".into(),
            container: "abc".into(),
            ifname: "eth0".into(),
            device: "cni0".into(),
            snat: true,
            masquerade_all: false,
            ports: vec![
                port(None, "10.1.0.2", Protocol::Tcp),
                port(Some("192.0.2.1"), "10.1.0.2", Protocol::Tcp),
                port(None, "fd00::2", Protocol::Udp),
            ],
        }
    }

    #[test]
    fn elements_name_their_owner_and_occur_once() {
        let entries = record().entries("hdl0");
        let places: Vec<_> = entries.iter().map(|(place, _)| place.set()).collect();
        let wanted = [
            "hostports6",
            "hostports4",
            "hostports4_on",
            "hostport_hairpins6",
            "hostport_hairpins4",
            "hostport_selves6",
            "hostport_selves4",
        ];
        assert_eq!(places, wanted);
        assert!(entries.iter().all(|(_, entry)| entry.comment == "hdl0 net abc eth0"));
        let all = Record { masquerade_all: true, snat: false, ..record() }.entries("hdl0");
        assert!(all.iter().any(|(place, _)| place.set() == "hostport_masq4"));
        assert!(!all.iter().any(|(place, _)| place.set() == "hostport_hairpins4"));
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let dir = std::env::temp_dir().join(format!("heddle-ports-{}", std::process::id()));
        assert!(Records::open_existing(&dir, Duration::from_secs(1)).unwrap().is_none());
        let records = Records::open(&dir, Duration::from_secs(1)).unwrap();
        assert!(!Records::has(&dir, "hdl0").unwrap());
        records.write("hdl0", &record()).unwrap();
        assert!(Records::has(&dir, "hdl0").unwrap());
        assert_eq!(records.read("hdl0").unwrap(), Some(record()));
        assert!(records.write("hdl0", &record()).is_err(), "it is not written over");
        std::fs::write(dir.join("ports/garbage"), "{").unwrap();
        std::os::unix::fs::symlink("hdl0", dir.join("ports/link")).unwrap();
        std::fs::create_dir(dir.join("ports/dir")).unwrap();
        assert_eq!(records.all(7).unwrap(), [("hdl0".to_owned(), record())]);
        assert!(records.all(8).unwrap().is_empty(), "another namespace's");
        // Somebody else who wants it gets an answer in time.
        let other = Records::open(&dir, Duration::from_millis(10)).unwrap_err();
        assert_eq!(other.code, code::TRY_LATER);
        records.remove("hdl0").unwrap();
        records.remove("hdl0").unwrap();
        assert_eq!(records.read("hdl0").unwrap(), None);
        drop(records);
        Records::open(&dir, Duration::from_millis(10)).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
