//! Host ports and bandwidth, as kubelet asks for them.

use heddle_lab::Ask;
use heddle_runtime::{Plan, Result};

use super::bench::{Bench, answered_by, tcp};

#[test]
fn a_host_port_is_reached_from_outside_from_the_node_and_from_pods() -> Result<()> {
    let Some(bench) = Bench::start()? else { return Ok(()) };
    let (node, client) = (bench.lab.node(1), bench.lab.client().place());
    let one = node.ip4().to_string();
    let ports = vec![tcp(30080, ""), tcp(30081, &one)];
    let web = bench.pod(&Plan { ports, ..Plan::new("web") })?;
    let other = bench.pod(&Plan::new("other"))?;

    for place in [client, node.place(), &other.place, &web.place] {
        for ip in [node.ip4(), node.ip6()] {
            answered_by(place, (ip, 30080), "web")?;
        }
        answered_by(place, (node.ip4(), 30081), "web")?;
        let refused = Ask::new((node.ip6(), 30081)).tcp(place);
        assert!(refused.is_err(), "published on {one} only, but {refused:?}");
    }

    // A container that is made anew under the same name takes the ports over.
    let id = web.id.clone();
    let plan = Plan { attempt: 1, ..web.plan.clone() };
    drop(web);
    bench.containerd.stop(&id)?;
    assert!(Ask::new((node.ip4(), 30080)).tcp(client).is_err(), "nobody serves it");
    let web = bench.pod(&plan)?;
    bench.containerd.remove(&id)?;
    answered_by(client, (node.ip4(), 30080), "web")?;

    let ids = [web.id.clone(), other.id.clone()];
    drop((web, other));
    for id in ids {
        bench.containerd.stop(&id)?;
        bench.containerd.remove(&id)?;
    }
    bench.assert_no_leak()
}

#[test]
fn bandwidth_is_what_the_annotations_of_a_pod_say() -> Result<()> {
    let Some(bench) = Bench::start()? else { return Ok(()) };
    let annotation = |way: &str, rate: &str| (format!("kubernetes.io/{way}-bandwidth"), rate.to_owned());
    let annotations = [annotation("ingress", "20M"), annotation("egress", "30M")].into();
    let pod = bench.pod(&Plan { annotations, ..Plan::new("limited") })?;
    // What it receives is limited where the host sends to it, what it sends in the pod itself.
    for (place, rate) in [(bench.lab.node(1).place(), "rate 20Mbit"), (&pod.place, "rate 30Mbit")] {
        let queues = place.run("tc qdisc show")?;
        assert_eq!(queues.matches(rate).count(), 1, "{rate} in {}: {queues}", place.name());
    }
    let id = pod.id.clone();
    drop(pod);
    bench.containerd.stop(&id)?;
    bench.containerd.remove(&id)?;
    bench.assert_no_leak()
}
