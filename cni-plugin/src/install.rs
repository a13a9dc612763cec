//! `heddle install` and `heddle uninstall`: the plugins' own way into the runtime's directory of plugins, and out.
//!
//! For whoever has nothing but this program: an image without a shell. A file appears whole under its name or not at
//! all, as a runtime may start it at any moment; it is root's, 0755, and never runs with another's rights (no SUID:
//! CVE-2024-33522). A directory that others could write to is refused (CVE-2023-27593).
//!
//! It also mounts the BPF file system that proxyd pins its programs in, where the machine has none: the daemons do
//! not have the right to mount.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use heddle_netlink::nft::{Batch, Family, Nft};
use heddle_netlink::{Socket, link};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// What is installed, from the directory that this program is in.
const PLUGINS: [&str; 2] = ["heddle", "heddle-ipam"];
/// containerd calls a plugin of this name for every pod. It is `heddle`'s where nobody else has brought one.
const LOOPBACK: &str = "loopback";
/// Host sides of pods' interfaces begin so.
const POD_PREFIX: &str = "hdl";
/// Of the network that vxland names in its configuration.
const NETWORK: &str = "heddle";

/// What went wrong, as a sentence.
pub type Result<T> = std::result::Result<T, String>;

fn failed(operation: &str, path: &Path) -> impl FnOnce(io::Error) -> String {
    let text = format!("cannot {operation} {}", path.display());
    move |error| format!("{text}: {error}")
}

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Ask {
    Install { to: Option<PathBuf>, bpf_root: Option<PathBuf> },
    Uninstall { from: PathBuf, leases: PathBuf, run: PathBuf, stay: bool },
}

impl Ask {
    /// `None`: it is neither.
    pub fn parse(arguments: &[&str]) -> Option<Result<Self>> {
        let (first, rest) = arguments.split_first()?;
        match *first {
            "install" => Some(Self::install(rest)),
            "uninstall" => Some(Self::uninstall(rest)),
            _ => None,
        }
    }

    fn install(rest: &[&str]) -> Result<Self> {
        let (to, bpf_root) = match rest {
            ["--to", to] => (Some(to), None),
            ["--bpf-root", root] => (None, Some(root)),
            ["--to", to, "--bpf-root", root] | ["--bpf-root", root, "--to", to] => (Some(to), Some(root)),
            _ => return Err("usage: heddle install [--to DIR] [--bpf-root DIR]".into()),
        };
        Ok(Self::Install { to: to.map(PathBuf::from), bpf_root: bpf_root.map(PathBuf::from) })
    }

    fn uninstall(mut rest: &[&str]) -> Result<Self> {
        let (mut from, mut stay) = (None, false);
        let (mut leases, mut run) =
            (PathBuf::from(heddle_ipam::DEFAULT_DATA_DIR), PathBuf::from("/run/heddle"));
        loop {
            rest = match rest {
                [] => break,
                ["--from", dir, rest @ ..] => {
                    from = Some(dir.into());
                    rest
                }
                ["--leases", dir, rest @ ..] => {
                    leases = dir.into();
                    rest
                }
                ["--run-dir", dir, rest @ ..] => {
                    run = dir.into();
                    rest
                }
                ["--stay", rest @ ..] => {
                    stay = true;
                    rest
                }
                _ => {
                    from = None;
                    break;
                }
            }
        }
        let from = from
            .ok_or("usage: heddle uninstall --from DIR [--leases DIR] [--run-dir DIR] [--stay]".to_owned())?;
        Ok(Self::Uninstall { from, leases, run, stay })
    }

    /// Does it, and says what was done.
    pub fn act(&self, say: impl Fn(&str)) -> Result<()> {
        match self {
            Self::Install { to, bpf_root } => {
                if let Some(root) = bpf_root {
                    mount_bpf(root, &say)?;
                }
                let Some(to) = to else { return Ok(()) };
                let own = std::env::current_exe()
                    .map_err(|error| format!("cannot tell where this program is: {error}"))?;
                install(own.parent().unwrap_or(Path::new("/")), to, say)
            }
            Self::Uninstall { from, leases, run, stay } => {
                // Before the work: a SIGTERM that comes meanwhile is not lost.
                let mut ends = SigSet::empty();
                [Signal::SIGTERM, Signal::SIGINT].into_iter().for_each(|signal| ends.add(signal));
                if *stay {
                    ends.thread_block().map_err(|error| format!("cannot wait for signals: {error}"))?;
                }
                uninstall(from, &say)?;
                leave(leases, run, &say)?;
                if *stay {
                    say("done; waiting for SIGTERM");
                    ends.wait().map_err(|error| format!("cannot wait for signals: {error}"))?;
                }
                Ok(())
            }
        }
    }
}

/// Makes `root` a BPF file system, with a directory that only root may enter.
fn mount_bpf(root: &Path, say: impl Fn(&str)) -> Result<()> {
    let there = statfs(root).map_err(|errno| failed("look at", root)(errno.into()))?;
    if there.filesystem_type() == BPF_FS_MAGIC {
        say(&format!("{} is a BPF file system", root.display()));
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), root, Some("bpf"), flags, Some("mode=0700"))
        .map_err(|errno| failed("mount a BPF file system on", root)(errno.into()))?;
    say(&format!("a BPF file system is mounted on {}", root.display()));
    Ok(())
}

/// Puts the plugins that are in `from` into `to`. What is there already is left alone.
pub fn install(from: &Path, to: &Path, say: impl Fn(&str)) -> Result<()> {
    fs::create_dir_all(to).map_err(failed("create", to))?;
    let meta = fs::metadata(to).map_err(failed("look at", to))?;
    if meta.mode() & 0o022 != 0 {
        let mode = meta.mode() & 0o7777;
        return Err(format!(
            "{} may be written to by others than its owner (mode {mode:04o}): they could replace what root runs for \
             every pod (chmod 0755 it first)",
            to.display()
        ));
    }
    for name in PLUGINS {
        let source = from.join(name);
        let program = fs::read(&source).map_err(failed("read", &source))?;
        let place = to.join(name);
        if stands(&place, &program) {
            say(&format!("{} is there", place.display()));
            continue;
        }
        write(&place, &program)?;
        say(&format!("{} installed", place.display()));
    }
    let loopback = to.join(LOOPBACK);
    if fs::symlink_metadata(&loopback).is_err() {
        symlink("heddle", &loopback).map_err(failed("create", &loopback))?;
        say(&format!("{} installed: a link to heddle", loopback.display()));
    }
    Ok(())
}

/// Whether it is this program already, as it should be.
fn stands(place: &Path, program: &[u8]) -> bool {
    let Ok(meta) = fs::symlink_metadata(place) else { return false };
    meta.is_file()
        && meta.mode() & 0o7777 == 0o755
        && meta.uid() == nix::unistd::geteuid().as_raw()
        && fs::read(place).is_ok_and(|there| there == program)
}

/// Under another name first, with its content on the disk; then renamed.
fn write(place: &Path, program: &[u8]) -> Result<()> {
    let new = new_name(place);
    // Of an attempt that was killed.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &new)(error)),
        _ => {}
    }
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(program)?;
        file.set_permissions(Permissions::from_mode(0o755))?;
        file.sync_all()?;
        fs::rename(&new, place)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&new);
        failed("write", place)(error)
    })
}

fn new_name(place: &Path) -> PathBuf {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    place.with_file_name(format!(".{name}.new"))
}

/// Takes the plugins out of `from`, when the last pod has gone: a runtime needs them to undo what they have made.
fn uninstall(from: &Path, say: impl Fn(&str)) -> Result<()> {
    let list = Socket::open().and_then(|mut socket| link::list(&mut socket));
    let links = list.map_err(|error| error.to_string())?;
    let pods: Vec<&str> =
        links.iter().map(|link| link.name.as_str()).filter(|name| name.starts_with(POD_PREFIX)).collect();
    if let [first, ..] = pods.as_slice() {
        return Err(format!(
            "{} pods of this node are still wired ({first}, ...): drain the node first, or their runtime could not \
             undo it",
            pods.len()
        ));
    }
    rules(&say).map_err(|error| error.to_string())?;
    let loopback = from.join(LOOPBACK);
    if fs::read_link(&loopback).is_ok_and(|to| to == Path::new("heddle")) {
        remove(&loopback, &say)?;
    }
    for name in PLUGINS {
        remove(&from.join(name), &say)?;
        remove(&new_name(&from.join(name)), &say)?;
    }
    Ok(())
}

/// The plugin's tables, which outlive its pods.
fn rules(say: impl Fn(&str)) -> heddle_netlink::Result<()> {
    let mut nft = Nft::open()?;
    let mut batch = Batch::new();
    let chains = nft.chains()?;
    for family in [Family::Inet, Family::Bridge] {
        if chains.iter().any(|chain| chain.family == family && chain.table == NETWORK) {
            batch.delete_table(family, NETWORK);
            say(&format!("nftables table {family} {NETWORK} removed"));
        }
    }
    nft.commit(&batch)
}

/// What is left in directories of state when there is no lease and no daemon any more.
fn leave(leases: &Path, run: &Path, say: impl Fn(&str)) -> Result<()> {
    let store = leases.join(NETWORK);
    let is_lease = |name: &str| name.parse::<std::net::IpAddr>().is_ok();
    let names = |dir: &Path| -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    if store.is_dir() && !names(&store).iter().any(|name| is_lease(name)) {
        fs::remove_dir_all(&store).map_err(failed("remove", &store))?;
        say(&format!("{} removed", store.display()));
    }
    // The directory itself may be a mount.
    for name in names(run) {
        let path = run.join(&name);
        if is_held(&path) {
            return Err(format!(
                "{} is held: a daemon runs (stop it, and clean up after it)",
                path.display()
            ));
        }
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(failed("remove", &path))?;
        say(&format!("{} removed", path.display()));
    }
    let _ = fs::remove_dir(run);
    Ok(())
}

/// A lock file that somebody has locked.
fn is_held(path: &Path) -> bool {
    use nix::fcntl::{Flock, FlockArg};
    path.extension().is_some_and(|kind| kind == "lock")
        && fs::File::open(path).is_ok_and(|file| Flock::lock(file, FlockArg::LockSharedNonblock).is_err())
}

fn remove(path: &Path, say: impl Fn(&str)) -> Result<()> {
    match fs::remove_file(path) {
        Ok(()) => say(&format!("{} removed", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("remove", path)(error)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of the test's own.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("heddle-install-{name}-{}", std::process::id()));
            fs::create_dir_all(dir.join("from")).unwrap();
            for name in PLUGINS {
                fs::write(dir.join("from").join(name), format!("program {name}")).unwrap();
            }
            Self(dir)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn fault_s18_programs_are_roots_and_whole_and_never_suid() {
        let scratch = Scratch::new("s18");
        let (from, to) = (scratch.0.join("from"), scratch.0.join("to/bin"));
        install(&from, &to, |_| ()).unwrap();
        for name in PLUGINS {
            let meta = fs::symlink_metadata(to.join(name)).unwrap();
            assert!(meta.is_file() && meta.mode() & 0o7777 == 0o755 && meta.uid() == 0, "{name}");
        }
        assert_eq!(fs::read_link(to.join(LOOPBACK)).unwrap(), Path::new("heddle"));
        // What is right is not touched, what is not is replaced: also a link to somewhere else, and a mode.
        let inode = |name| fs::symlink_metadata(to.join(name)).unwrap().ino();
        let before = inode("heddle");
        fs::set_permissions(to.join("heddle-ipam"), Permissions::from_mode(0o4755)).unwrap();
        install(&from, &to, |_| ()).unwrap();
        assert_eq!(inode("heddle"), before);
        assert_eq!(fs::metadata(to.join("heddle-ipam")).unwrap().mode() & 0o7777, 0o755);
        fs::write(scratch.0.join("other"), "other").unwrap();
        fs::remove_file(to.join("heddle")).unwrap();
        symlink(scratch.0.join("other"), to.join("heddle")).unwrap();
        install(&from, &to, |_| ()).unwrap();
        assert_eq!(fs::read_to_string(scratch.0.join("other")).unwrap(), "other");
        assert_eq!(fs::read_to_string(to.join("heddle")).unwrap(), "program heddle");
        assert_eq!(fs::read_dir(&to).unwrap().count(), 3, "nothing else");
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        let scratch = Scratch::new("open");
        let to = scratch.0.join("to");
        fs::create_dir(&to).unwrap();
        fs::set_permissions(&to, Permissions::from_mode(0o777)).unwrap();
        let refused = install(&scratch.0.join("from"), &to, |_| ()).unwrap_err();
        assert!(refused.contains("mode 0777"), "{refused}");
        assert_eq!(fs::read_dir(&to).unwrap().count(), 0);
    }

    #[test]
    fn a_loopback_of_somebody_else_stays() {
        let scratch = Scratch::new("loopback");
        let to = scratch.0.join("to");
        fs::create_dir(&to).unwrap();
        fs::write(to.join(LOOPBACK), "theirs").unwrap();
        install(&scratch.0.join("from"), &to, |_| ()).unwrap();
        assert_eq!(fs::read_to_string(to.join(LOOPBACK)).unwrap(), "theirs");
    }

    #[test]
    fn leases_and_locks_that_are_held_stay() {
        let scratch = Scratch::new("leave");
        let (leases, run) = (scratch.0.join("leases"), scratch.0.join("run"));
        fs::create_dir_all(leases.join(NETWORK)).unwrap();
        fs::create_dir_all(run.join("ports")).unwrap();
        fs::write(leases.join(NETWORK).join("10.0.0.2"), "x").unwrap();
        let lock = run.join("vxland.lock");
        fs::write(&lock, "").unwrap();
        let file = fs::File::open(&lock).unwrap();
        let held = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).unwrap();
        assert!(leave(&leases, &run, |_| ()).unwrap_err().contains("is held"));
        assert!(lock.exists() && leases.join(NETWORK).exists());
        drop(held);
        fs::remove_file(leases.join(NETWORK).join("10.0.0.2")).unwrap();
        leave(&leases, &run, |_| ()).unwrap();
        assert!(!run.exists() && !leases.join(NETWORK).exists());
    }

    #[test]
    fn plugins_stay_as_long_as_there_are_pods_and_others_are_left_alone() {
        let scratch = Scratch::new("pods");
        let (from, to) = (scratch.0.join("from"), scratch.0.join("to"));
        install(&from, &to, |_| ()).unwrap();
        fs::write(to.join("bridge"), "theirs").unwrap();
        let run = || {
            let mut batch = Batch::new();
            batch.add_table(Family::Inet, NETWORK);
            batch.add_chain(Family::Inet, NETWORK, "spoofing", None);
            batch.add_table(Family::Inet, "of others");
            batch.add_chain(Family::Inet, "of others", "spoofing", None);
            Nft::open().unwrap().commit(&batch).unwrap();
            let end = |name| link::VethEnd { name, ..link::VethEnd::default() };
            link::create_veth(&mut Socket::open().unwrap(), &end("hdl0"), &end("b")).unwrap();
            let refused = uninstall(&to, |_| ()).unwrap_err();
            assert!(refused.starts_with("1 pods of this node are still wired (hdl0"), "{refused}");
            assert!(to.join("heddle").exists());
            link::delete_by_name(&mut Socket::open().unwrap(), "b").unwrap();
            uninstall(&to, |_| ()).unwrap();
            uninstall(&to, |_| ()).unwrap();
            let left = Nft::open().unwrap().chains().unwrap();
            assert_eq!(left.iter().map(|chain| chain.table.as_str()).collect::<Vec<_>>(), ["of others"]);
        };
        heddle_netlink::NetNs::create().unwrap().run(run).unwrap();
        let left: Vec<_> = fs::read_dir(&to).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["bridge"]);
    }

    #[test]
    fn command_lines() {
        assert_eq!(Ask::parse(&["--help"]), None);
        let install = Ask::Install { to: Some("/x".into()), bpf_root: None };
        assert_eq!(Ask::parse(&["install", "--to", "/x"]), Some(Ok(install)));
        let wrong =
            [&["install"][..], &["install", "/x"], &["uninstall"], &["uninstall", "--from", "/x", "y"]];
        for wrong in wrong {
            assert!(Ask::parse(wrong).unwrap().unwrap_err().starts_with("usage: "), "{wrong:?}");
        }
        let asked = Ask::parse(&["uninstall", "--from", "/x", "--stay"]).unwrap().unwrap();
        assert!(matches!(asked, Ask::Uninstall { stay: true, .. }), "{asked:?}");
    }
}
