//! Who holds a network namespace: looked up in all of `/proc`.
//!
//! A namespace lives as long as a process or thread is in it, a descriptor or a mount is open on it. A path that
//! leads nowhere is therefore no proof of death: the file may be mounted in another mount namespace, or deleted
//! under a process that runs on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use heddle_netlink::NetNs;
use nix::errno::Errno;

/// The living namespaces that have one of these `inodes` now, with their cookies; without, where it cannot be told.
///
/// `None`: `/proc` does not show everything to us, so nothing can be said.
pub(crate) fn living(inodes: &BTreeSet<u64>) -> Option<BTreeMap<u64, Option<u64>>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    if hides_processes(&mounts) {
        return None;
    }
    living_in(Path::new("/proc"), inodes).ok()
}

/// Whether `/proc` is mounted so that it leaves out other users' processes without a word (proc(5), `hidepid`).
fn hides_processes(mounts: &str) -> bool {
    mounts.lines().filter(|line| line.split(' ').nth(4) == Some("/proc")).any(|line| {
        line.split([' ', ','])
            .any(|option| option.strip_prefix("hidepid=").is_some_and(|value| !matches!(value, "0" | "off")))
    })
}

fn living_in(proc: &Path, inodes: &BTreeSet<u64>) -> io::Result<BTreeMap<u64, Option<u64>>> {
    let mut search = Search { inodes, found: BTreeMap::new(), mounts: BTreeSet::new() };
    let mut processes = 0;
    for entry in fs::read_dir(proc)? {
        let name = entry?.file_name();
        if name.to_str().is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit())) {
            processes += 1;
            match search.process(&proc.join(&name)) {
                // Whoever starts us can look at its pods, which have no more rights than itself. The first process
                // may have more rights than we (in a sandbox); it is no pod's.
                Err(error) if error.kind() == ErrorKind::PermissionDenied && name == "1" => {}
                other => other?,
            }
        }
    }
    // We are one ourselves. Where not even that is seen, nothing is.
    if processes == 0 {
        return Err(ErrorKind::NotFound.into());
    }
    Ok(search.found)
}

struct Search<'a> {
    inodes: &'a BTreeSet<u64>,
    found: BTreeMap<u64, Option<u64>>,
    /// Mount namespaces that were read.
    mounts: BTreeSet<PathBuf>,
}

impl Search<'_> {
    fn process(&mut self, process: &Path) -> io::Result<()> {
        for thread in entries(&process.join("task"))? {
            self.link(&thread.join("ns/net"))?;
        }
        for descriptor in entries(&process.join("fd"))? {
            self.link(&descriptor)?;
        }
        let Some(mounts) = gone_is_none(fs::read_link(process.join("ns/mnt")))? else { return Ok(()) };
        if self.mounts.insert(mounts) {
            self.mounts_of(process)?;
        }
        Ok(())
    }

    /// A link of the form `net:[4026532345]`, which leads to the namespace.
    fn link(&mut self, link: &Path) -> io::Result<()> {
        if let Some(target) = gone_is_none(fs::read_link(link))?
            && let Some(inode) = target.to_str().and_then(inode_of)
        {
            self.note(inode, link);
        }
        Ok(())
    }

    /// The files of namespaces that are mounted where `process` is (proc_pid_mountinfo(5): field 4 is the root
    /// of the mount within its file system, field 5 where it is mounted).
    fn mounts_of(&mut self, process: &Path) -> io::Result<()> {
        let Some(table) = gone_is_none(fs::read(process.join("mountinfo")))? else { return Ok(()) };
        for line in String::from_utf8_lossy(&table).lines() {
            let mut fields = line.split(' ').skip(3);
            let (Some(root), Some(place)) = (fields.next(), fields.next()) else { continue };
            if let Some(inode) = inode_of(root) {
                self.note(inode, &process.join("root").join(unescaped(place).trim_start_matches('/')));
            }
        }
        Ok(())
    }

    /// `path` leads to the namespace `inode`.
    fn note(&mut self, inode: u64, path: &Path) {
        // What could not be opened here is tried wherever else it is seen.
        if !self.inodes.contains(&inode) || self.found.get(&inode).is_some_and(Option::is_some) {
            return;
        }
        let ns = NetNs::open(path).ok().filter(|ns| ns.inode() == inode);
        self.found.insert(inode, ns.and_then(|ns| ns.cookie().ok()));
    }
}

fn inode_of(link: &str) -> Option<u64> {
    link.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
}

/// Spaces and the like are `\040` in mountinfo.
fn unescaped(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, character)| text.replace(code, character))
}

/// The entries of a directory of a process, none if the process is gone.
fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let Some(listing) = gone_is_none(fs::read_dir(directory))? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in listing {
        match gone_is_none(entry)? {
            Some(entry) => found.push(entry.path()),
            None => break,
        }
    }
    Ok(found)
}

/// Processes end while one looks at them.
fn gone_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::ESRCH | Errno::EINVAL) => Ok(None),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    fn seen(inode: u64) -> Option<Option<u64>> {
        living(&BTreeSet::from([inode])).unwrap().remove(&inode)
    }

    #[test]
    fn a_namespace_is_held_by_a_descriptor() {
        let ns = NetNs::create().unwrap();
        let (inode, cookie) = (ns.inode(), ns.cookie().unwrap());
        assert_eq!(seen(inode), Some(Some(cookie)));
        drop(ns);
        // Another test may have been given the number by now.
        assert_ne!(seen(inode), Some(Some(cookie)));
    }

    #[test]
    fn a_thread_holds_its_namespace() {
        let (send, receive) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let ns = NetNs::create().unwrap();
            send.send((ns.inode(), ns.cookie().unwrap())).unwrap();
            ns.enter().unwrap();
            drop(ns);
            send.send((0, 0)).unwrap();
            ended.recv().unwrap_err();
        });
        let (inode, cookie) = receive.recv().unwrap();
        receive.recv().unwrap();
        assert_eq!(seen(inode), Some(Some(cookie)));
        drop(end);
        thread.join().unwrap();
        assert_ne!(seen(inode), Some(Some(cookie)));
    }

    /// Unmounts what was mounted, however the test ends.
    struct Mounted(PathBuf);

    impl Drop for Mounted {
        fn drop(&mut self) {
            nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).ok();
        }
    }

    #[test]
    fn a_mount_holds_its_namespace() {
        use nix::mount::{MsFlags, mount};
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a b");
        fs::write(&file, "").unwrap();
        let ns = NetNs::create().unwrap();
        let (inode, cookie) = (ns.inode(), ns.cookie().unwrap());
        let source = format!("/proc/self/fd/{}", ns.as_raw_fd());
        mount(Some(source.as_str()), &file, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let mounted = Mounted(file);
        drop(ns);
        assert_eq!(seen(inode), Some(Some(cookie)));
        drop(mounted);
        assert_ne!(seen(inode), Some(Some(cookie)));
    }

    #[test]
    fn a_proc_that_hides_processes_says_nothing_of_them() {
        let line = |options: &str| {
            format!(
                "23 28 0:21 / /sys rw - sysfs sysfs rw,hidepid=2\n24 28 0:22 / /proc rw,nosuid - proc proc {options}\n"
            )
        };
        for options in ["rw", "rw,hidepid=0", "rw,hidepid=off", "rw,gid=4"] {
            assert!(!hides_processes(&line(options)), "{options}");
        }
        for options in ["rw,hidepid=2", "rw,gid=4,hidepid=invisible", "hidepid=ptraceable", "rw,hidepid=1"] {
            assert!(hides_processes(&line(options)), "{options}");
        }
    }

    #[test]
    fn where_proc_shows_nothing_nothing_is_said() {
        let empty = tempfile::tempdir().unwrap();
        assert!(living_in(empty.path(), &BTreeSet::from([1])).is_err());
    }
}
