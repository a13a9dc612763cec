//! A node of a cluster: vxland writes the network, containerd finds it.

use heddle_lab::{Ask, Cluster, Lab, Plan as Daemons, READY_LIMIT, eventually, skip};
use heddle_runtime::{Containerd, Plan, Result};

use super::bench::{PORT, answered_by, ask, ready, tcp};

#[test]
fn containerd_takes_what_vxland_writes() -> Result<()> {
    if let Some(why) = Containerd::missing() {
        skip(&why);
        return Ok(());
    }
    let cluster = Cluster::start_with(Lab::builder().nodes(2).threaded(false), Daemons::overlay())?;
    let containerd = Containerd::start(&cluster, None)?;
    assert!(ready(&containerd, "NetworkReady")?);
    let here = containerd.run_pod(&Plan { ports: vec![tcp(30080, "")], ..Plan::new("here") }, PORT)?;
    let there = cluster.backend(2, "there", PORT)?;
    eventually("the server of a pod listening", READY_LIMIT, || {
        Ok(Ask::new((here.ip(true), PORT)).tcp(cluster.node(1)).is_ok())
    })?;
    // Between the nodes, both families, with the pods' own addresses.
    for v4 in [true, false] {
        let reply = Ask::new((here.ip(v4), PORT)).tcp(there.pod())?;
        assert_eq!((reply.server.as_str(), Some(reply.client.ip())), ("here", there.pod().ip(v4)));
        let to = there.pod().ip(v4).expect("it has both families");
        let reply = Ask::new((to, PORT)).tcp(&here.place)?;
        assert_eq!((reply.server.as_str(), reply.client.ip()), ("there", here.ip(v4)));
    }
    ask(cluster.node(2), &here)?;
    // Its host port, from another node.
    answered_by(cluster.node(2), (cluster.node(1).ip4(), 30080), "here")?;
    containerd.stop(&here.id)?;
    containerd.remove(&here.id)?;
    Ok(())
}
