//! What a node lacks is named.

use heddle_lab::{Cluster, Cmd, Lab, Place, Plan, Result, await_ready, bin};

fn start() -> Result<Cluster> {
    let lab = Lab::builder().nodes(1).build()?;
    for node in lab.nodes() {
        lab.manifests().node(node)?;
    }
    Cluster::on(lab, Plan { vxland: None, proxyd: None })
}

/// Starts proxyd, which must refuse with exit code 78 (EX_CONFIG) and these words.
fn assert_refused(cluster: &Cluster, node: &Place, args: &[&str], words: &[&str]) -> Result<()> {
    let source = format!("manifests:{}", cluster.lab().manifests().dir().display());
    let cmd =
        Cmd::new(bin("proxyd")).args(["--mode", "ebpf", "--source", &source, "--node-name", node.name()]);
    let output = node.output(cmd.args(args.iter().copied()))?;
    let said = format!("{}{}", output.stdout, output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    for words in words {
        assert!(said.contains(words), "{said}");
    }
    Ok(())
}

/// FAULT 107: no BPF file system, no cgroup2, each named with the way out; and what is there late is found.
#[test]
fn fault_107_what_is_missing_is_named() -> Result<()> {
    let cluster = start()?;
    let node = cluster.node(1);
    node.run("umount /sys/fs/bpf")?;
    assert_refused(
        &cluster,
        node,
        &[],
        &["/sys/fs/bpf is no BPF file system", "mount -t bpf bpf /sys/fs/bpf"],
    )?;
    assert_refused(
        &cluster,
        node,
        &["--bpf-root", "/nowhere"],
        &["no BPF file system at /nowhere", "mount -t bpf"],
    )?;
    assert_refused(
        &cluster,
        node,
        &["--cgroup-root", "/proc"],
        &["/proc is no directory of a cgroup2", "--cgroup-root"],
    )?;
    // Late, but there; and without type information of the kernel, which nothing here needs.
    node.run("mount -t bpf bpf /sys/fs/bpf")?;
    node.run("mount -t tmpfs none /sys/kernel/btf")?;
    let proxyd = cluster.lab().start_proxyd(node, &["--mode", "ebpf"])?;
    await_ready(node, &proxyd, "proxyd")?;
    proxyd.kill();
    // Every cgroup2 mount is covered.
    let cover = "grep ' - cgroup2 ' /proc/self/mountinfo | cut -d' ' -f5 | while read dir; do mount -t tmpfs none $dir; done";
    node.run(Cmd::new("sh").args(["-c", cover]))?;
    assert_refused(&cluster, node, &[], &["no cgroup2 file system is mounted", "--cgroup-root"])
}
