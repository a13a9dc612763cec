//! What a node does all day: pods come, talk, and go, and containerd is restarted meanwhile.

use std::time::Instant;

use heddle_lab::{Load, Place};
use heddle_runtime::{Plan, Pod, Result};
use nix::sys::signal::Signal;

use serde_json::json;

use super::bench::{BRIDGE, Bench, PORT, ask, at_once, conflist, figure};

/// Every `step`th pod asks every `step`th one.
fn talk(pods: &[Pod], step: usize) -> Result<()> {
    let sample: Vec<_> = pods.iter().step_by(step).collect();
    at_once(&sample, |from| sample.iter().try_for_each(|to| ask(&from.place, to)))?;
    Ok(())
}

#[test]
fn fifty_pods_talk_while_containerd_is_restarted() -> Result<()> {
    let Some(bench) = Bench::start()? else { return Ok(()) };
    let containerd = &bench.containerd;
    let plans: Vec<_> = (0..50).map(|n| Plan::new(format!("pod-{n}"))).collect();

    let began = Instant::now();
    let pods = at_once(&plans, |plan| bench.pod(plan))?;
    figure("50 pods up", began);
    let addresses: std::collections::BTreeSet<_> = pods.iter().flat_map(|pod| &pod.ips).collect();
    assert_eq!(addresses.len(), 100, "two addresses a pod, each once");
    // The node reaches all of them, and a sample of them each other.
    pods.iter().try_for_each(|pod| ask(bench.lab.node(1), pod))?;
    talk(&pods, 7)?;

    // Somebody talks all the time: the node with a pod, a pod with another.
    let load = |place: &Place, to: &Pod| {
        let load = Load::connects((to.ip(true), PORT)).rate(100).expect([to.plan.name.as_str()]);
        load.start(place)
    };
    let loads = [load(bench.lab.node(1), &pods[0])?, load(&pods[1].place, &pods[2])?];
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        containerd.end(signal)?;
        talk(&pods, 10)?;
        containerd.start_again()?;
        talk(&pods, 10)?;
        let known = containerd.sandboxes()?;
        assert_eq!(
            known.iter().filter(|sandbox| sandbox.state == 0).count(),
            50,
            "after {signal}: {known:?}"
        );
        for pod in &pods {
            let now = containerd.pod(&pod.plan, &pod.id)?;
            assert_eq!(now.ips, pod.ips, "{} after {signal}", pod.plan.name);
        }
    }
    loads.into_iter().for_each(|load| load.stop().assert_clean());
    // What containerd wires now, those who were there before reach, and the reverse.
    let late = bench.pod(&Plan::new("late"))?;
    ask(&late.place, &pods[0])?;
    ask(&pods[49].place, &late)?;

    let began = Instant::now();
    let ids: Vec<_> = pods.iter().chain([&late]).map(|pod| pod.id.clone()).collect();
    drop((pods, late));
    at_once(&ids, |id| containerd.stop(id).and_then(|()| containerd.remove(id)))?;
    figure("51 pods gone", began);
    assert_eq!(bench.leases()?, Vec::<String>::new());
    bench.assert_no_leak()
}

#[test]
fn interfaces_left_to_the_namespace_go_with_it() -> Result<()> {
    let mut list = conflist();
    list["plugins"][0]["deleteInterface"] = json!("withNamespace");
    let Some(bench) = Bench::with(&list, |_| Ok(()))? else { return Ok(()) };
    let plans: Vec<_> = (0..10).map(|n| Plan::new(format!("pod-{n}"))).collect();
    // Twice: the second time pods come while devices of the first may still be on their way out.
    for attempt in 0..2 {
        let ids = at_once(&plans, |plan| {
            let pod = bench.pod(&Plan { attempt, ..plan.clone() })?;
            ask(bench.lab.node(1), &pod)?;
            Ok(pod.id)
        })?;
        at_once(&ids, |id| bench.containerd.stop(id).and_then(|()| bench.containerd.remove(id)))?;
        assert_eq!(bench.leases()?, Vec::<String>::new());
    }
    bench.assert_no_leak()
}

/// A configuration as they were written years ago: one version of the specification that knows no lists of addresses.
#[test]
fn a_bridge_of_an_old_configuration() -> Result<()> {
    let list = json!({
        "cniVersion": "0.2.0",
        "name": "myplugin",
        "plugins": [{
            "type": "heddle",
            "bridge": BRIDGE,
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "subnet": "10.244.1.0/24",
                "gateway": "10.244.1.1",
                "routes": [{ "dst": "1.1.1.1/32", "gw": "10.244.1.254" }],
            },
            "capabilities": { "portMappings": true },
        }],
    });
    let Some(bench) = Bench::with(&list, |_| Ok(()))? else { return Ok(()) };
    let plans: Vec<_> = (0..5).map(|n| Plan::new(format!("pod-{n}"))).collect();
    let pods = at_once(&plans, |plan| bench.pod(plan))?;
    for pod in &pods {
        assert_eq!(pod.ips.len(), 1, "{pod:?}");
        let routes = pod.place.run("ip route")?;
        assert!(routes.contains("1.1.1.1 via 10.244.1.254 dev eth0"), "{routes}");
    }
    talk(&pods, 1)?;
    let ids: Vec<_> = pods.into_iter().map(|pod| pod.id).collect();
    at_once(&ids, |id| bench.containerd.stop(id).and_then(|()| bench.containerd.remove(id)))?;
    assert_eq!(bench.leases()?, Vec::<String>::new());
    bench.assert_no_leak()
}
