//! What a node sees of the machine's file system: everything, but what is the node's own.
//!
//! `/run` and `/var/lib` are empty, `/etc` can be written (what was in it is still there, by symbolic
//! links), `/sys` shows the node's own devices, `/sys/fs/bpf` is a BPF file system of its own, and
//! `/sys/fs/cgroup` is the node's cgroup. All of it is gone with the mount namespace.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

use crate::cgroup::{Cgroup, mount_points};
use crate::error::{Context, Result, mkdir};

/// Where what was in `/etc` is still to be found.
const MACHINE_ETC: &str = "/run/machine-etc";

/// Where the node's cgroup waits for `/sys`.
const OWN_CGROUP: &str = "/run/own-cgroup";

/// Makes the file system of a node in the mount namespace of this thread. `keep`: directories that have to
/// be seen as they are, even below `/run` or `/var/lib`.
pub(crate) fn make(cgroup: &Cgroup, keep: &[PathBuf]) -> Result<()> {
    let handle = |path: &Path| open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    let open_path = |path: &Path| handle(path).context(|| format!("open {}", path.display()));
    let cgroup_dir = open_path(cgroup.path())?;
    let etc = open_path(Path::new("/etc"))?;
    let hidden = |path: &&PathBuf| path.starts_with("/run") || path.starts_with("/var/lib");
    let kept = keep.iter().filter(hidden).map(|dir| Ok((dir, open_path(dir)?)));
    let kept: Vec<_> = kept.collect::<Result<_>>()?;

    mount_fs("tmpfs", "/run")?;
    mount_fs("tmpfs", "/var/lib")?;
    mkdir(MACHINE_ETC)?;
    bind(&etc, Path::new(MACHINE_ETC))?;
    mount_fs("tmpfs", "/etc")?;
    link_machine_etc().context(|| "link the machine's /etc into the node's".into())?;
    mkdir("/etc/cni/net.d")?;
    // The machine's /sys has to go: it is not the node's, and the machine's cgroups are below it.
    mkdir(OWN_CGROUP)?;
    bind(&cgroup_dir, Path::new(OWN_CGROUP))?;
    let _ = umount2("/sys", MntFlags::MNT_DETACH);
    mount_fs("sysfs", "/sys")?;
    mount(Some(OWN_CGROUP), "/sys/fs/cgroup", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .context(|| "move the node's cgroup to /sys/fs/cgroup".into())?;
    fs::remove_dir(OWN_CGROUP).context(|| format!("remove {OWN_CGROUP}"))?;
    hide_other_cgroups()?;
    mount_fs("bpf", "/sys/fs/bpf")?;
    for (dir, handle) in kept {
        mkdir(dir)?;
        bind(&handle, dir)?;
    }
    // Container runtimes bind the namespaces of their pods here.
    mkdir("/run/netns")
}

/// Programs look for cgroup2 in the list of mounts. One that the machine has elsewhere (a chroot's, a
/// container's) would have a node's daemon attach its socket programs to the whole machine.
fn hide_other_cgroups() -> Result<()> {
    for (at, _) in mount_points().iter().rev() {
        if at != Path::new("/sys/fs/cgroup") {
            umount2(at, MntFlags::MNT_DETACH).context(|| format!("unmount {}", at.display()))?;
        }
    }
    Ok(())
}

fn mount_fs(kind: &str, at: &str) -> Result<()> {
    let options = (kind == "tmpfs").then_some("mode=0755");
    mount(Some(kind), at, Some(kind), MsFlags::empty(), options).context(|| format!("mount {kind} on {at}"))
}

fn bind(from: &impl std::os::fd::AsRawFd, at: &Path) -> Result<()> {
    let from = format!("/proc/thread-self/fd/{}", from.as_raw_fd());
    mount(Some(from.as_str()), at, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .context(|| format!("bind a directory to {}", at.display()))
}

/// Symbolic links in `/etc` to what was there. `cni` is left out: the node has its own.
fn link_machine_etc() -> io::Result<()> {
    for entry in fs::read_dir(MACHINE_ETC)? {
        let entry = entry?;
        let at = Path::new("/etc").join(entry.file_name());
        if entry.file_name() == "cni" {
            continue;
        }
        // A relative link goes on meaning the same in the same directory.
        let target =
            if entry.file_type()?.is_symlink() { fs::read_link(entry.path())? } else { entry.path() };
        symlink(target, at)?;
    }
    Ok(())
}

/// Gives a network namespace a name in the mount namespace of this thread, as container runtimes do.
pub(crate) fn name_netns(net: &str, at: &Path) -> Result<()> {
    fs::File::create(at).context(|| format!("create {}", at.display()))?;
    mount(Some(net), at, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .context(|| format!("bind a network namespace to {}", at.display()))
}

/// Takes the name away again.
pub(crate) fn unname_netns(at: &Path) -> Result<()> {
    let _ = umount2(at, MntFlags::MNT_DETACH);
    fs::remove_file(at).context(|| format!("remove {}", at.display()))
}
