//! What kubelet writes besides its own directory is the node's, not the machine's.

use std::path::Path;

use heddle_lab::{Cmd, Node};

use crate::error::{Result, mkdir, write};

/// Sysctls of the whole machine that kubelet sets (pkg/kubelet/cm, `setupKernelTunables`), and to what.
const SYSCTLS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Gives `node` directories and sysctls of its own. `dir`: for files, seen by the node under the same path.
pub(super) fn prepare(node: &Node, dir: &Path) -> Result<()> {
    write(&dir.join("resolv.conf"), "")?;
    let mount = |args: &[&str]| node.run(Cmd::new("mount").args(args.iter().copied()));
    for (sysctl, value) in SYSCTLS {
        let file = dir.join(sysctl.replace('/', "."));
        write(&file, value)?;
        mount(&["--bind", &file.display().to_string(), &format!("/proc/sys/{sysctl}")])?;
    }
    // Plugins are installed here, logs of containers written there.
    for at in ["/opt", "/var/log"] {
        mount(&["-t", "tmpfs", "-o", "mode=0755", "tmpfs", at])?;
    }
    for at in [super::PLUGINS, "/var/lib/kubelet", "/etc/kubernetes"] {
        if !node.path(at).exists() {
            mkdir(&node.path(at))?;
        }
    }
    // What a pod mounts there (a BPF file system) may be wanted by the next one.
    for at in ["/run", "/var/lib", "/etc", "/sys", "/opt"] {
        mount(&["--make-rshared", at])?;
    }
    Ok(())
}

/// Takes away what a node has in memory, and its pods and images.
pub(super) fn forget(node: &Node) -> Result<()> {
    let dirs = [
        "/run/netns",
        "/run/containerd",
        "/run/heddle",
        "/var/lib/kubelet",
        "/var/lib/containerd",
        "/var/lib/cni",
    ];
    let mounts = node.run("cat /proc/self/mountinfo")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let below = |point: &&str| dirs.iter().any(|dir| point.starts_with(&format!("{dir}/")));
    for point in points.filter(below).collect::<Vec<_>>().into_iter().rev() {
        node.run(Cmd::new("umount").args(["--lazy", point]))?;
    }
    let mut remove = Cmd::new("rm").arg("-rf").args(dirs.iter().filter(|dir| **dir != "/run/netns"));
    for dir in ["/run/netns", "/etc/cni/net.d", "/opt/cni/bin"] {
        let entries = std::fs::read_dir(node.path(dir)).into_iter().flatten().flatten();
        remove = remove.args(entries.map(|entry| Path::new(dir).join(entry.file_name())));
    }
    remove = remove.arg("/sys/fs/bpf/heddle");
    node.run(remove)?;
    node.run("nft flush ruleset")?;
    for device in node.run("ip -br link")?.lines().filter_map(|line| line.split_whitespace().next()) {
        let device = device.split('@').next().unwrap_or(device);
        if !["lo", "eth0"].contains(&device) {
            // The other end of a pair, or a pod that is gone already.
            drop(node.output(Cmd::new("ip").args(["link", "del", device]))?);
        }
    }
    mkdir(&node.path("/var/lib/kubelet"))
}
