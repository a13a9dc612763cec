//! Clusters one after the other leave nothing behind, neither on their nodes nor on the machine. The only test
//! of its file, so that nothing else in this process changes what is counted.

use std::time::Duration;

use heddle_e2e::addresses::cluster_ip;
use heddle_e2e::oracle::bpf_objects;
use heddle_e2e::{Ask, Cluster, Cmd, Endpoint, Lab, Proto, Result, Service, Snapshot, bin, eventually};

/// How many rounds; `HEDDLE_ROUNDS=100` for a proof.
fn rounds() -> usize {
    std::env::var("HEDDLE_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(2)
}

/// `HEDDLE_ALONE=1` says that nobody else loads BPF objects meanwhile: then the machine's are counted, too.
fn alone() -> bool {
    std::env::var_os("HEDDLE_ALONE").is_some()
}

/// A cluster as large as the demo's, used, and ended as it should be (`clean`) or just dropped.
fn round(clean: bool) -> Result<()> {
    let lab = Lab::builder().build()?;
    for node in lab.nodes() {
        lab.manifests().node(node)?;
    }
    let before = Snapshot::of(&lab)?;
    let mut cluster = Cluster::on(lab, heddle_e2e::Plan::default())?;
    let web = Service::new("web")
        .cluster_ip(cluster_ip(10, true))
        .cluster_ip(cluster_ip(10, false))
        .port("http", Proto::Tcp, 80, 8080)
        .node_port(30080);
    let mut pods = Vec::new();
    for number in 0..6 {
        pods.push(cluster.backend(number % 3 + 1, &format!("web-{number}"), 8080)?);
    }
    let endpoints: Vec<Endpoint> = pods.iter().map(|pod| pod.endpoint()).collect();
    cluster.publish(&web, &endpoints)?;
    for node in cluster.nodes() {
        cluster.await_answer(cluster.client(), Ask::new((node.ip4(), 30080)))?;
        cluster.await_answer(cluster.client(), Ask::new((node.ip6(), 30080)))?;
    }
    if !clean {
        return Ok(());
    }
    for mut pod in pods {
        pod.stop_server();
        pod.pod().cni_del()?;
    }
    for node in 1..=3 {
        for program in ["proxyd", "vxland"] {
            cluster.stop_daemon(node, program)?;
            cluster.node(node).run(Cmd::new(bin(program)).arg("cleanup"))?;
        }
    }
    // Locks, and the note which address was given last, may stay.
    before.without(&["files"]).same_as(&Snapshot::of(&cluster)?.without(&["files"]))?;
    for node in cluster.nodes() {
        let leases = node.run("find /var/lib/cni/networks -name 10.* -o -name fd*")?;
        assert_eq!(leases, "", "leases are left on {}", node.name());
    }
    Ok(())
}

#[test]
fn clusters_leave_nothing_behind() -> Result<()> {
    round(true)?;
    let (machine, objects) = (Snapshot::of_machine()?, bpf_objects());
    for number in 0..rounds() {
        round(number % 2 == 0)?;
    }
    machine.same_as(&Snapshot::of_machine()?)?;
    if alone() {
        eventually("the end of all BPF objects of the clusters", Duration::from_secs(60), || {
            Ok(bpf_objects().new_since(&objects) == (0, 0, 0))
        })?;
    }
    Ok(())
}
