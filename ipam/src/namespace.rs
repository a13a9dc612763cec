//! The network namespace that an address went to, and whether it lives.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use heddle_netlink::{NetNs, Socket};

use crate::note::Note;
use crate::store::OURS;

/// Longer paths are not noted: a note is one short file.
const LONGEST_PATH: usize = 1024;

/// A pod's network namespace as ADD met it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Where it was found (`CNI_NETNS`). It may be found elsewhere too.
    path: PathBuf,
    /// Device and inode. The kernel gives the number of a dead namespace to the next one that is made.
    id: (u64, u64),
    /// The kernel's name for it that is never given again (`SO_NETNS_COOKIE`).
    cookie: u64,
}

impl Namespace {
    /// The namespace at `path`. `None` if there is none, or one that cannot be noted.
    pub fn at(path: &Path) -> Option<Self> {
        let ns = NetNs::open(path).ok()?;
        Self::of(path, &ns, &Socket::open_in(&ns).ok()?)
    }

    /// The namespace `ns`, found at `path`, which `socket` is of.
    pub fn of(path: &Path, ns: &NetNs, socket: &Socket) -> Option<Self> {
        let text = path.to_str().filter(|text| text.starts_with('/') && text.len() <= LONGEST_PATH)?;
        if text.contains(|c: char| c.is_control()) {
            return None;
        }
        Some(Self { path: path.to_owned(), id: ns.id(), cookie: socket.namespace_cookie().ok()? })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The namespace, if it is still at its path: this very one, not a younger one with its number.
    pub fn open(&self) -> Option<NetNs> {
        let ns = NetNs::open(&self.path).ok().filter(|ns| ns.id() == self.id)?;
        (ns.cookie().ok()? == self.cookie).then_some(ns)
    }

    pub(crate) const fn inode(&self) -> u64 {
        self.id.1
    }

    pub(crate) const fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Whether the path still leads to it. (If it leads to a younger namespace with its number, we take that for
    /// it, and keep what might have been freed.)
    pub(crate) fn is_at_its_path(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.id)
    }

    pub(crate) fn to_line(&self) -> String {
        let (device, inode) = self.id;
        format!("netns {device}:{inode} {} {}", self.cookie, self.path.display())
    }

    pub(crate) fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("netns ")?.splitn(3, ' ');
        let (device, inode) = words.next()?.split_once(':')?;
        let id = (device.parse().ok()?, inode.parse().ok()?);
        let cookie = words.next()?.parse().ok()?;
        Some(Self { path: PathBuf::from(words.next()?), id, cookie })
    }
}

/// Where leases below `data_dir` went to, of all networks: as it is noted, whether it lives or not. Takes no lock, as
/// a note is written whole.
pub fn namespaces(data_dir: &Path) -> Vec<Namespace> {
    let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
    let notes = entries(data_dir).flat_map(|network| entries(&network.path().join(OURS)));
    let files = notes.filter(|note| note.file_type().is_ok_and(|kind| kind.is_file()));
    let read = |note: std::fs::DirEntry| Note::parse(&std::fs::read_to_string(note.path()).ok()?)?.namespace;
    files.filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_namespace_is_read_back_as_it_was_written() {
        let ns = NetNs::create().unwrap();
        let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), ns.as_raw_fd()));
        let noted = Namespace::at(&path).unwrap();
        assert_eq!(Namespace::parse(&noted.to_line()), Some(noted.clone()));
        assert!(noted.is_at_its_path());
        assert_eq!(noted.open().as_ref(), Some(&ns));
        assert_eq!(Namespace { cookie: noted.cookie + 1, ..noted.clone() }.open(), None, "a younger one");
        drop(ns);
        assert!(!noted.is_at_its_path() && noted.open().is_none());
        let spaces = Namespace { path: "/run/my netns/a b".into(), ..noted };
        assert_eq!(Namespace::parse(&spaces.to_line()), Some(spaces));
    }

    #[test]
    fn the_notes_of_all_networks_are_found() {
        let dir = tempfile::tempdir().unwrap();
        for (network, name, text) in [
            ("a", "1", "leases 10.1.0.2\nnetns 4:5 6 /run/netns/one"),
            ("a", "2", "leases 10.1.0.3"),
            ("a", "boot", "x"),
            ("b", "3", "leases fd00::2\nnetns 4:7 8 /run/netns/two"),
        ] {
            std::fs::create_dir_all(dir.path().join(network).join(OURS)).unwrap();
            std::fs::write(dir.path().join(network).join(OURS).join(name), text).unwrap();
        }
        let mut found: Vec<_> = namespaces(dir.path()).iter().map(|noted| noted.path.clone()).collect();
        found.sort();
        assert_eq!(found, [Path::new("/run/netns/one"), Path::new("/run/netns/two")]);
        assert!(namespaces(&dir.path().join("nowhere")).is_empty());
    }

    #[test]
    fn what_is_no_namespace_is_not_noted() {
        for path in ["/dev/null", "/nowhere", "relative", "/tmp", ""] {
            assert_eq!(Namespace::at(Path::new(path)), None, "{path}");
        }
        for line in ["", "netns", "netns 4:5", "netns 4:x 6 /a", "netns 4:5 6", "other 4:5 6 /a"] {
            assert_eq!(Namespace::parse(line), None, "{line}");
        }
    }
}
