//! A lab is what it says it is.

use std::time::Instant;

use heddle_lab::{Ask, Lab, Result};

#[test]
fn three_nodes_reach_each_other_and_the_client() -> Result<()> {
    let begun = Instant::now();
    let lab = Lab::builder().build()?;
    println!("three nodes and a client stand after {:?}", begun.elapsed());
    let servers: Vec<_> = lab.nodes().iter().map(|n| n.serve(n.name(), 80)).collect::<Result<_>>()?;
    let places = lab.nodes().iter().map(|n| (n.place(), [n.ip4(), n.ip6()]));
    let client = (lab.client().place(), [lab.client().ip(true), lab.client().ip(false)]);
    for (place, own) in places.chain([client]) {
        for (node, server) in lab.nodes().iter().zip(&servers) {
            for (to, own) in [node.ip4(), node.ip6()].into_iter().zip(own) {
                for reply in [Ask::new((to, 80)).tcp(place)?, Ask::new((to, 80)).udp(place)?] {
                    assert_eq!((reply.server.as_str(), reply.client.ip()), (server.name(), own));
                    assert_eq!(reply.local, reply.client);
                }
            }
        }
    }
    assert_eq!(lab.switch().foreign()?, 0);
    Ok(())
}

#[test]
fn a_node_has_files_devices_and_a_cgroup_of_its_own() -> Result<()> {
    let lab = Lab::builder().nodes(2).build()?;
    lab.node(1).run("touch /run/heddle-was-here /var/lib/x /etc/cni/net.d/x /sys/fs/bpf")?;
    assert!(lab.node(1).path("/run/heddle-was-here").exists());
    assert!(!lab.node(2).path("/run/heddle-was-here").exists());
    assert!(!std::path::Path::new("/run/heddle-was-here").exists());
    assert_eq!(lab.node(1).run("ls /sys/class/net")?.split_whitespace().collect::<Vec<_>>(), ["eth0", "lo"]);
    assert_eq!(lab.node(1).run("stat -f -c %T /sys/fs/bpf")?.trim(), "bpf_fs");
    assert_eq!(lab.node(1).run("stat -f -c %T /sys/fs/cgroup")?.trim(), "cgroup2fs");
    let mounts = lab.node(1).run("cat /proc/self/mountinfo")?;
    assert_eq!(mounts.lines().filter(|line| line.contains(" - cgroup2 ")).count(), 1, "{mounts}");
    lab.node(1).run("cat /etc/passwd /etc/hosts")?;
    let thread = lab.node(1).enter(|| {
        let group = std::fs::read_to_string("/proc/thread-self/cgroup").unwrap_or_default();
        (group, std::path::Path::new("/run/heddle-was-here").exists())
    })?;
    assert!(thread.0.contains("heddle-lab") && thread.0.contains("n1"), "{}", thread.0);
    assert!(thread.1);
    Ok(())
}
