//! Where the programs go: the root of the cgroups, and what the kernel must have.

use std::path::{Path, PathBuf};

use heddle_daemon::exit::Failure;
use nix::libc;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

/// The kernel, or how it is set up, lacks something; each says the way out. Exit code 78.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Lack {
    #[error(
        "no cgroup2 file system is mounted (mount -t cgroup2 none /sys/fs/cgroup, or name one by --cgroup-root)"
    )]
    NoCgroup2,
    #[error("{} is no directory of a cgroup2 file system (name one by --cgroup-root)", .0.display())]
    NotCgroup2(PathBuf),
    #[error("kernel {0} has no tcx: Linux 6.6 or newer is needed (or use --mode ipvs)")]
    NoTcx(String),
    #[error("{0} (CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed)")]
    Capability(String),
    #[error("{0}")]
    Other(String),
}

/// The cgroup2 directory whose processes' sockets are served: the one that is named, else the mount of the
/// whole hierarchy.
pub fn cgroup_root(
    named: Option<&Path>,
    mountinfo: &str,
    is_cgroup2: impl Fn(&Path) -> bool,
) -> Result<PathBuf, Lack> {
    if let Some(dir) = named {
        // Where a machine has both versions, the second one is there.
        let found = [dir.to_owned(), dir.join("unified")].into_iter().find(|dir| is_cgroup2(dir));
        return found.ok_or_else(|| Lack::NotCgroup2(dir.to_owned()));
    }
    let mut mounts: Vec<(bool, PathBuf)> = mountinfo.lines().filter_map(cgroup2_mount).collect();
    // Another mount may lie over it.
    mounts.retain(|(_, dir)| is_cgroup2(dir));
    // The last one lies over those before it; a mount of a part of the hierarchy is only a makeshift.
    mounts.reverse();
    mounts.sort_by_key(|(whole, _)| !*whole);
    mounts.into_iter().next().map(|(_, dir)| dir).ok_or(Lack::NoCgroup2)
}

/// Whether a path leads into a cgroup2 file system.
pub fn is_cgroup2(dir: &Path) -> bool {
    statfs(dir).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// proc_pid_mountinfo(5): `id parent device root mount-point options [fields] - type source options`.
fn cgroup2_mount(line: &str) -> Option<(bool, PathBuf)> {
    let (mount, kind) = line.split_once(" - ")?;
    if kind.split(' ').next()? != "cgroup2" {
        return None;
    }
    let mut fields = mount.split(' ').skip(3);
    let root = fields.next()?;
    Some((root == "/", unescape(fields.next()?).into()))
}

/// Space, tab, line break and backslash stand there as `\` and three octal digits.
fn unescape(text: &str) -> String {
    let mut rest = text;
    let mut plain = String::new();
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        match after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                plain.push('\\');
                rest = after;
            }
        }
    }
    plain + rest
}

/// tcx came with Linux 6.6.
pub fn check_release(release: &str) -> Result<(), Lack> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < (6, 6) { Err(Lack::NoTcx(release.trim().to_owned())) } else { Ok(()) }
}

/// The rights that it cannot do without, by their numbers (linux/capability.h).
const RIGHTS: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
/// CAP_SYS_ADMIN stands for the last two.
const ADMIN: u32 = 21;

/// Without CAP_PERFMON the verifier refuses programs in words that nobody understands. `status`: /proc/self/status.
pub fn check_rights(status: &str) -> Result<(), Lack> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(held) = line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()) else { return Ok(()) };
    let has = |number: u32| held & 1 << number != 0;
    let lacks = |number: u32| !has(number) && (number < 38 || !has(ADMIN));
    let missing: Vec<_> = RIGHTS.iter().filter(|(number, _)| lacks(*number)).map(|(_, name)| *name).collect();
    match missing.as_slice() {
        [] => Ok(()),
        missing => Err(Lack::Capability(format!("this process does not have {}", missing.join(", ")))),
    }
}

/// What an error at the start means for whoever starts the daemon.
pub fn failure(error: heddle_bpf::Error) -> Failure {
    use heddle_bpf::Error as E;
    match &error {
        _ if is_denied(&error) => Failure::unsupported(Lack::Capability(error.to_string())),
        // What the verifier refuses it refuses again.
        E::NotEmbedded | E::NotBpffs { .. } | E::NoProgram { .. } | E::Load { .. } | E::Program { .. } => {
            Failure::unsupported(error)
        }
        E::Pin { path, source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            let hint = "(mount -t bpf bpf /sys/fs/bpf, or name one by --bpf-root)";
            Failure::unsupported(Lack::Other(format!(
                "no BPF file system at {}: {source} {hint}",
                path.display()
            )))
        }
        _ => Failure::runtime(error),
    }
}

/// EPERM, somewhere below. (EACCES is the verifier's word for a program that it refuses.)
fn is_denied(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let errno = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        if errno == Some(libc::EPERM) {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
25 1 0:22 / /proc rw - proc proc rw
31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
40 30 0:36 /docker/x /mnt/part rw shared:1 - cgroup2 cgroup2 rw
41 30 0:36 / /sys/fs/cgroup/uni\\040fied rw shared:1 - cgroup2 cgroup2 rw
";

    #[test]
    fn the_whole_hierarchy_is_found() {
        let find = |mountinfo| cgroup_root(None, mountinfo, |_| true);
        assert_eq!(find(HYBRID), Ok("/sys/fs/cgroup/uni fied".into()));
        let hidden = |dir: &Path| !dir.ends_with("uni fied");
        assert_eq!(cgroup_root(None, HYBRID, hidden), Ok("/mnt/part".into()));
        let part: String = HYBRID.lines().filter(|line| !line.contains("uni")).collect::<Vec<_>>().join("\n");
        assert_eq!(find(&part), Ok("/mnt/part".into()));
        assert_eq!(find("25 1 0:22 / /proc rw - proc proc rw"), Err(Lack::NoCgroup2));
        let named = Path::new("/host");
        assert_eq!(cgroup_root(Some(named), "", |dir| dir.ends_with("unified")), Ok("/host/unified".into()));
        assert_eq!(cgroup_root(Some(named), "", |_| true), Ok("/host".into()));
        assert_eq!(cgroup_root(Some(Path::new("/")), "", is_cgroup2), Err(Lack::NotCgroup2("/".into())));
    }

    #[test]
    fn fault_s17_rights_that_are_missing_are_named() {
        let check =
            |set: u64| check_rights(&format!("Name:\tx\nCapEff:\t{set:016x}\n")).map_err(|e| e.to_string());
        assert_eq!(check(1 << 12 | 1 << 38 | 1 << 39), Ok(()));
        assert_eq!(check(1 << 12 | 1 << 21), Ok(()));
        let refused = check(1 << 12 | 1 << 39).unwrap_err();
        assert!(refused.starts_with("this process does not have CAP_PERFMON (CAP_BPF, "), "{refused}");
        assert!(check(1 << 21).unwrap_err().starts_with("this process does not have CAP_NET_ADMIN ("));
        assert_eq!(check_rights("nothing"), Ok(()));
    }

    #[test]
    fn kernels_without_tcx_are_refused() {
        assert_eq!(check_release("6.6.0-1-amd64"), Ok(()));
        assert_eq!(check_release("6.18.44-fc"), Ok(()));
        let refused = check_release("6.1.0-44-cloud-amd64\n").unwrap_err().to_string();
        assert!(refused.starts_with("kernel 6.1.0-44-cloud-amd64 has no tcx"), "{refused}");
    }
}
