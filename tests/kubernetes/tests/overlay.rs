//! vxland on three nodes, told by the real API server, with the rights that it is shipped with: it makes the overlay of
//! what the node objects say, and says there in flannel's words how this node is reached, and that pods have a network.
#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::path::Path;
use std::time::Duration;

use heddle_kubernetes::control_plane::{Component, ControlPlane, Options};
use heddle_lab::{Ask, Backend, Cmd, Lab, Node, Process, await_ready, bin, eventually};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(10);
const SOON: Duration = Duration::from_secs(2);
const PREFIX: &str = "flannel.alpha.coreos.com";

fn vxland(node: &Node, kubeconfig: &Path) -> Process {
    let source = format!("kubernetes:{}", kubeconfig.display());
    node.spawn(Cmd::new(bin("vxland")).args(["--source", &source, "--node-name", node.name()])).unwrap()
}

/// The node's object as a kubelet that has just joined makes it, or one of a cluster that flannel has had.
fn declare(plane: &ControlPlane, node: &Node, ranges: &[String], annotations: &Value) {
    let name = node.name();
    let object = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "annotations": annotations },
        "spec": if ranges.is_empty() { json!({}) } else { json!({ "podCIDR": ranges[0], "podCIDRs": ranges }) },
    });
    plane.api().apply(&object).unwrap();
    let status = json!({ "status": {
        "addresses": [
            { "type": "InternalIP", "address": node.ip4() }, { "type": "InternalIP", "address": node.ip6() },
            { "type": "Hostname", "address": name },
        ],
        "conditions": [{ "type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated", "message": "-" }],
    }});
    plane.api().patch_status("v1/Node", name, &status).unwrap();
}

fn object(plane: &ControlPlane, node: &Node) -> Value {
    plane.api().get("v1/Node", node.name()).unwrap().unwrap()
}

fn mac(node: &Node) -> String {
    node.run("cat /sys/class/net/heddle.1/address").unwrap().trim().to_owned()
}

/// Whether the node's object says what it must, and still what others have written.
fn told(plane: &ControlPlane, node: &Node) -> bool {
    let object = object(plane, node);
    let has = &object["metadata"]["annotations"];
    let said = |name: &str| has[format!("{PREFIX}/{name}")].as_str().unwrap_or_default().to_owned();
    let data = format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(node));
    let condition = object["status"]["conditions"].as_array().into_iter().flatten();
    let mut condition = condition.filter(|one| one["type"] == "NetworkUnavailable");
    said("kube-subnet-manager") == "true"
        && said("backend-type") == "vxlan"
        && said("backend-data") == data
        && said("backend-v6-data") == data
        && said("public-ip") == node.ip4().to_string()
        && said("public-ipv6") == node.ip6().to_string()
        && has["of-others"] == "kept"
        && condition.next().is_some_and(|one| one["status"] == "False" && one["reason"] == "HeddleIsUp")
}

#[test]
fn vxland_is_told_by_the_api_server_and_tells_it() {
    if let Some(reason) = ControlPlane::missing() {
        return heddle_lab::skip(&reason);
    }
    let lab = Lab::builder().build().unwrap();
    let plane = ControlPlane::raise(&lab, lab.client(), Options::default()).unwrap();
    let access = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/kubernetes/base/access.yaml");
    plane.kubectl(&["apply", "-f", access], "").unwrap();
    let account = plane.service_account("kube-system/heddle", &plane.url(true)).unwrap();
    let [n1, n2, n3] = [1, 2, 3].map(|n| lab.node(n));
    // Node 1 has no ranges yet; node 3 was flannel's.
    let kept = json!({ "of-others": "kept" });
    declare(&plane, n1, &[], &kept);
    declare(&plane, n2, &n2.pod_ranges(), &kept);
    let flannel = json!({
        "of-others": "kept",
        format!("{PREFIX}/kube-subnet-manager"): "true",
        format!("{PREFIX}/backend-type"): "vxlan",
        format!("{PREFIX}/backend-data"): r#"{"VNI":1,"VtepMAC":"0a:58:00:00:00:03"}"#,
        format!("{PREFIX}/backend-v6-data"): "null",
        format!("{PREFIX}/public-ip"): n3.ip4(),
    });
    declare(&plane, n3, &n3.pod_ranges(), &flannel);

    let mut daemons = [n1, n2].map(|node| vxland(node, &account));
    await_ready(n2, &daemons[1], "vxland").unwrap();
    eventually("node 3 as flannel left it", SOON, || {
        Ok(n2.run("bridge fdb")?.contains("0a:58:00:00:00:03 dev heddle.1"))
    })
    .unwrap();
    let third = vxland(n3, &account);
    await_ready(n3, &third, "vxland").unwrap();
    let why = "node n1 has no pod range (spec.podCIDRs is empty";
    eventually("the reason", LIMIT, || Ok(daemons[0].log().contains(why))).unwrap();
    let silent = object(&plane, n1);
    assert_eq!(silent["metadata"]["annotations"], kept, "nothing is told of what does not stand");
    assert_eq!(silent["status"]["conditions"][0]["status"], "True");

    let ranges = n1.pod_ranges();
    let spec = json!({ "spec": { "podCIDR": ranges[0], "podCIDRs": ranges } });
    plane.api().patch("v1/Node", "n1", &spec).unwrap();
    await_ready(n1, &daemons[0], "vxland").unwrap();
    for node in [n1, n2, n3] {
        eventually("what the object says", LIMIT, || Ok(told(&plane, node))).unwrap_or_else(|error| {
            panic!("{error}: {:#}\n{}", object(&plane, node), daemons[0].log());
        });
    }
    eventually("node 3 as it is", SOON, || {
        let fdb = n2.run("bridge fdb")?;
        Ok(fdb.contains(&mac(n3)) && !fdb.contains("0a:58:00:00:00:03"))
    })
    .unwrap();

    let backends: Vec<Backend> = lab
        .nodes()
        .iter()
        .map(|node| {
            let pod = node.pod(&format!("pod-{}", node.index())).unwrap();
            pod.cni_add().unwrap();
            Backend::serving(pod, 80).unwrap()
        })
        .collect();
    let all_talk = || {
        for v4 in [true, false] {
            for (from, to) in backends.iter().flat_map(|from| backends.iter().map(move |to| (from, to))) {
                let ask = Ask::new((to.pod().ip(v4).unwrap(), 80)).limit(Duration::from_secs(2));
                eventually("an answer", LIMIT, || {
                    let reply = ask.tcp(from.pod())?;
                    assert_eq!(
                        (reply.server.as_str(), Some(reply.client.ip())),
                        (to.name(), from.pod().ip(v4))
                    );
                    Ok(true)
                })
                .unwrap();
            }
        }
    };
    all_talk();

    // Somebody takes it away, or writes something else: it is said again, and nothing else is written.
    let spoiled = json!({ "metadata": { "annotations": {
        format!("{PREFIX}/backend-data"): r#"{"VNI":1,"VtepMAC":"0a:58:00:00:00:01"}"#,
        format!("{PREFIX}/public-ip"): null,
    }}});
    plane.api().patch("v1/Node", "n1", &spoiled).unwrap();
    eventually("it is said again", SOON, || Ok(told(&plane, n1))).unwrap();
    let version = |node| object(&plane, node)["metadata"]["resourceVersion"].clone();
    let before = [version(n1), version(n2)];

    // The API server is away, and a daemon starts meanwhile: what stands, stands.
    let entries = |node: &Node| {
        ["ip route", "ip -6 route", "ip neigh show dev heddle.1", "bridge fdb"]
            .map(|line| node.run(line).unwrap())
            .concat()
    };
    eventually("node 2 to have heard it", SOON, || {
        let has = entries(n2);
        Ok(has.contains(&mac(n1)) && has.contains("fd00:10:244:1::/64") && !has.contains("0a:58:00:00:00:01"))
    })
    .unwrap();
    let stands = entries(n2);
    plane.kill(Component::ApiServer);
    let old = std::mem::replace(&mut daemons[1], vxland(n2, &account));
    old.kill();
    all_talk();
    assert_eq!(entries(n2), stands);
    plane.start(Component::ApiServer).unwrap();
    await_ready(n2, &daemons[1], "vxland").unwrap();
    assert_eq!(
        (entries(n2), [version(n1), version(n2)]),
        (stands, before),
        "nothing is written without need"
    );

    // A node goes for good.
    let gone = mac(n3);
    plane.api().delete("v1/Node", "n3").unwrap();
    eventually("the end of node 3", SOON, || {
        let left = entries(n2);
        Ok(!["10.244.3.", "fd00:10:244:3:", &gone].iter().any(|what| left.contains(*what)))
    })
    .unwrap();
    for daemon in &daemons {
        assert!(daemon.is_running(), "{}", daemon.log());
    }
}
