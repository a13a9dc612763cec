//! The configuration of kubelet.

use std::path::Path;

use heddle_runtime::containerd;
use serde_json::{Value, json};

use crate::dns;

/// The domain of the cluster's services.
const DOMAIN: &str = "cluster.local";

/// The node's cgroup has no controllers where the machine has them in version 1, so pods have no groups of their own:
/// everything of the node is below the node's, which is what its socket programs are attached to.
pub(super) fn configuration(ca: &Path, dir: &Path) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false }, "webhook": { "enabled": false },
            "x509": { "clientCAFile": ca },
        },
        "authorization": { "mode": "AlwaysAllow" },
        "containerRuntimeEndpoint": format!("unix://{}", containerd::SOCKET),
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": false,
        "enforceNodeAllocatable": [],
        "failCgroupV1": false,
        "failSwapOn": false,
        "clusterDNS": [dns::ADDRESS],
        "clusterDomain": DOMAIN,
        "resolvConf": dir.join("resolv.conf"),
        // The machine's disk is nobody's business; images are made by hand and cannot be pulled again.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": { "memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%" },
        "localStorageCapacityIsolation": false,
        // Rules of netfilter are the business of what does services.
        "makeIPTablesUtilChains": false,
        "maxPods": 110,
        "kubeAPIQPS": 200, "kubeAPIBurst": 400,
        "runtimeRequestTimeout": "2m",
        "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        "volumeStatsAggPeriod": "-1s",
        "shutdownGracePeriod": "0s",
    })
}
