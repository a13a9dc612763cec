//! What Heddle is measured against: the reference plugins, routes that somebody has set by hand, and kube-proxy.
//!
//! The same checks pass with it, so a check that fails says something about Heddle.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use heddle_lab::Cmd;
use heddle_lab::Process;
use serde_json::{Value, json};

use crate::cluster::{Cluster, LIMIT};
use crate::control_plane::POD_RANGES;
use crate::error::{Error, Result, write};
use crate::node::{KubeNode, PLUGINS};
use crate::programs::{self, program};

/// Where Debian's package containernetworking-plugins has them.
const REFERENCE: &str = "/usr/lib/cni";
/// Those that a cluster uses.
const USED: [&str; 4] = ["host-local", "loopback", "portmap", "ptp"];

/// What leaves the cluster does so in its node's name, as with ip-masq-agent: nobody outside knows the way to a pod.
const MASQUERADE: &str = "\
table inet byhand {
    chain leave {
        type nat hook postrouting priority srcnat;
        ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade
        ip6 saddr fd00:10:244::/56 ip6 daddr != fd00:10:244::/56 masquerade
    }
}
";

/// Why it cannot be installed on this machine.
pub fn missing() -> Option<String> {
    let absent = USED.iter().find(|name| !Path::new(REFERENCE).join(name).exists());
    let absent =
        absent.map(|name| format!("{REFERENCE}/{name} is not there (Debian: containernetworking-plugins)"));
    absent.or_else(|| programs::missing(&["kube-proxy"]))
}

/// Installs it on all nodes: kube-proxies, which run until they are dropped.
///
/// # Errors
/// When something cannot be written or started.
pub fn install(cluster: &Cluster) -> Result<Vec<Process>> {
    let ranges = ranges(cluster)?;
    for range in ranges.iter().flatten() {
        cluster.lab().switch().admit_range(range)?;
    }
    for (node, own) in cluster.nodes().iter().zip(&ranges) {
        plugins(node, own)?;
        node.node().run(Cmd::new("nft").args(["-f", "-"]).stdin(MASQUERADE))?;
        for (other, ranges) in cluster.nodes().iter().zip(&ranges) {
            if other.node().name() != node.node().name() {
                for range in ranges {
                    let via = other.node().ip(!range.contains(':'));
                    node.node().run(format!("ip route add {range} via {via}"))?;
                }
            }
        }
    }
    let (kubeconfig, _) = cluster.plane().user("system:kube-proxy", None, &cluster.plane().url(true))?;
    cluster.nodes().iter().map(|node| kube_proxy(cluster, node, &kubeconfig)).collect()
}

/// The pod ranges of the nodes, once they have them.
fn ranges(cluster: &Cluster) -> Result<Vec<Vec<String>>> {
    let of = |node: &Value| {
        let ranges = node["spec"]["podCIDRs"].as_array().into_iter().flatten();
        ranges.filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
    };
    let two = move |node: Option<&Value>| node.is_some_and(|node| of(node).len() == 2);
    let nodes = cluster.nodes().iter().map(|node| node.node().name());
    nodes
        .map(|name| {
            let node = cluster.api().wait("v1/Node", name, LIMIT, two)?;
            node.as_ref().map(of).ok_or_else(|| Error::new(format!("find the node {name}"), "it is gone"))
        })
        .collect()
}

/// The plugins, and the configuration that has the runtime use them.
fn plugins(node: &KubeNode, ranges: &[String]) -> Result<()> {
    for name in USED {
        let (from, to) = (Path::new(REFERENCE).join(name), node.node().path(PLUGINS).join(name));
        let _ = fs::remove_file(&to);
        symlink(&from, &to).map_err(|e| Error::new(format!("link {}", from.display()), e))?;
    }
    let ranges: Vec<_> = ranges.iter().map(|range| json!([{ "subnet": range }])).collect();
    let conflist = json!({
        "cniVersion": "1.0.0", "name": "reference",
        "plugins": [
            {
                "type": "ptp",
                "ipam": {
                    "type": "host-local", "ranges": ranges,
                    "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
                },
            },
            { "type": "portmap", "snat": true, "capabilities": { "portMappings": true } },
        ],
    });
    write(&node.node().path("/etc/cni/net.d/10-reference.conflist"), conflist.to_string())
}

/// It has the node's own nf_tables and sets no limits of conntrack, which are not the namespace's to set.
fn kube_proxy(cluster: &Cluster, node: &KubeNode, kubeconfig: &Path) -> Result<Process> {
    let name = node.node().name();
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": { "kubeconfig": kubeconfig },
        "clusterCIDR": POD_RANGES,
        // A pod that ends serves for a second yet, and by itself it writes once a second.
        "nftables": { "minSyncPeriod": "50ms" },
        "conntrack": { "maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s" },
        "hostnameOverride": name,
    });
    let file = cluster.dir().join(format!("kube-proxy-{name}.json"));
    write(&file, config.to_string())?;
    Ok(node.node().spawn(Cmd::new(program("kube-proxy")?).arg(format!("--config={}", file.display())))?)
}
