//! Kernel parameters of a network namespace (/proc/sys/net).
//!
//! /proc/sys/net shows the parameters of the namespace of the thread that looks, not of the process
//! that mounted it: [`write_in`] and [`read_in`] look from a thread inside.
//!
//! In a container /proc/sys is read-only. Where the machine's is mounted as well, below [`MACHINE`], writing goes there.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::PathBuf;

use crate::{Error, NetNs, Result};

/// Where containers of ours find what of the machine's /proc/sys they may write to (deploy/kubernetes).
pub const MACHINE: &str = "/host/proc/sys";

/// A parameter by the components of its path below /proc/sys: a device name may hold dots.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Vec<String>);

impl Key {
    /// `Key::new(["net", "ipv4", "ip_forward"])`.
    pub fn new<S: Into<String>>(components: impl IntoIterator<Item = S>) -> Self {
        Self(components.into_iter().map(Into::into).collect())
    }

    /// A parameter of a device: `net/ipv6/conf/DEVICE/NAME`. `all` and `default` are devices here.
    pub fn ipv6_conf(device: &str, name: &str) -> Self {
        Self::new(["net", "ipv6", "conf", device, name])
    }

    /// A parameter of a device: `net/ipv4/conf/DEVICE/NAME`.
    pub fn ipv4_conf(device: &str, name: &str) -> Self {
        Self::new(["net", "ipv4", "conf", device, name])
    }

    fn path(&self, operation: &'static str) -> Result<PathBuf> {
        self.below("/proc/sys", operation)
    }

    fn below(&self, root: &str, operation: &'static str) -> Result<PathBuf> {
        let mut path = PathBuf::from(root);
        for component in &self.0 {
            if component.is_empty()
                || component == "."
                || component == ".."
                || component.contains(['/', '\0'])
            {
                return Err(Error::invalid(
                    operation,
                    format_args!("sysctl {self}"),
                    format_args!("{component:?} is no name"),
                ));
            }
            path.push(component);
        }
        Ok(path)
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join("/"))
    }
}

/// Reads a parameter of the calling thread's namespace, without the final line break.
pub fn read(key: &Key) -> Result<String> {
    let path = key.path("read")?;
    match fs::read_to_string(path) {
        Ok(value) => Ok(value.trim_end().to_owned()),
        Err(source) => Err(Error::io("read", format_args!("sysctl {key}"), source)),
    }
}

/// Writes a parameter of the calling thread's namespace.
pub fn write(key: &Key, value: &str) -> Result<()> {
    let mut file = open(key)?;
    std::io::Write::write_all(&mut file, value.as_bytes())
        .map_err(|source| Error::io("write", format_args!("sysctl {key} = {value}"), source))
}

/// Whether [`write`] would be allowed to, without writing: /proc/sys may be read-only, as in many containers.
pub fn check_writable(key: &Key) -> Result<()> {
    open(key).map(drop)
}

/// Opens it to be written to.
fn open(key: &Key) -> Result<File> {
    // No O_CREAT and no O_TRUNC: /proc knows neither, and says so in odd words.
    let open = |path| fs::OpenOptions::new().write(true).open(path);
    let opened = match open(key.path("write")?) {
        // The other word is that of AppArmor.
        Err(error) if matches!(error.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied) => {
            match open(key.below(MACHINE, "write")?) {
                Err(other) if other.kind() == ErrorKind::NotFound => Err(error),
                other => other,
            }
        }
        other => other,
    };
    opened.map_err(|source| Error::io("write", format_args!("sysctl {key}"), source))
}

/// Reads a parameter of `ns`.
pub fn read_in(ns: &NetNs, key: &Key) -> Result<String> {
    ns.run(|| read(key))?
}

/// Writes several parameters of `ns`, in order, up to the first failure.
pub fn write_in(ns: &NetNs, settings: &[(Key, &str)]) -> Result<()> {
    ns.run(|| settings.iter().try_for_each(|(key, value)| write(key, value)))?
}

/// Whether the error says that the kernel has no such parameter (IPv6 compiled out or disabled).
pub fn is_missing(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == ErrorKind::NotFound)
}
