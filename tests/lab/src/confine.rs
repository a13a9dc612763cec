//! Programs that may do only what they are shipped with.

use std::io;

use nix::libc;

/// A capability (linux/capability.h) that a program of ours is shipped with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    NetAdmin = 12,
    SysAdmin = 21,
    Perfmon = 38,
    Bpf = 39,
}

impl Capability {
    /// As Kubernetes writes it: without `CAP_`.
    pub fn name(self) -> &'static str {
        match self {
            Self::NetAdmin => "NET_ADMIN",
            Self::SysAdmin => "SYS_ADMIN",
            Self::Perfmon => "PERFMON",
            Self::Bpf => "BPF",
        }
    }

    /// As /proc/PID/status shows a set of them.
    pub fn mask(set: &[Self]) -> u64 {
        set.iter().fold(0, |mask, one| mask | 1 << *one as u8)
    }
}

/// What a daemon gets in deploy/kubernetes and deploy/systemd, and in every test.
pub fn shipped(program: &str) -> &'static [Capability] {
    match program {
        "vxland" => &[Capability::NetAdmin],
        "proxyd" => &[Capability::NetAdmin, Capability::Bpf, Capability::Perfmon],
        "proxyd-sockets" => &[Capability::NetAdmin, Capability::SysAdmin],
        _ => &[],
    }
}

/// The last one that the kernel could know.
const LAST: u8 = 63;

/// Takes from this process all but `mask` of what the next program would get, and the way to more. To be called between
/// fork and exec.
pub(crate) fn confine(mask: u64) -> io::Result<()> {
    for capability in (0..=LAST).filter(|capability| mask & 1 << capability == 0) {
        // SAFETY: numbers only.
        let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
        // EINVAL: this kernel has no such capability.
        if done != 0 && io::Error::last_os_error().raw_os_error() != Some(libc::EINVAL) {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: numbers only.
    match unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
