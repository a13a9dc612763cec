//! CoreDNS, as kubeadm deploys it.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use heddle_lab::Lab;
use heddle_runtime::image;
use serde_json::{Value, json};

use crate::error::Result;
use crate::programs::{self, program};

/// The address of the cluster's DNS, which kubelet writes into the resolv.conf of pods.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

const IMAGE: &str = "registry.k8s.io/coredns/coredns:heddle";
const NAME: &str = "coredns";
const NAMESPACE: &str = "kube-system";

/// Outside the cluster's domain there is nothing: that is refused at once, and no resolver waits.
const COREFILE: &str = "\
.:53 {
    errors
    health
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
    cache 30
    reload
    loadbalance
}
";

/// Why it cannot be deployed.
pub fn missing() -> Option<String> {
    programs::missing(&[NAME])
}

/// Its image, if it has been built.
///
/// # Errors
/// When it cannot be written.
pub fn archives(lab: &Lab) -> Result<Vec<PathBuf>> {
    if missing().is_some() {
        return Ok(Vec::new());
    }
    let (dir, coredns) = (lab.dir().join(NAME), program(NAME)?);
    Ok(vec![image::write_of(lab.client(), &dir, &[IMAGE], &[(&coredns, NAME)], &["/coredns"])?])
}

/// What is applied.
pub fn objects() -> Vec<Value> {
    let meta = json!({ "name": NAME, "namespace": NAMESPACE, "labels": { "k8s-app": "kube-dns" } });
    let role =
        json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:coredns" });
    let read = |group: &str, resources: &[&str]| json!({ "apiGroups": [group], "resources": resources, "verbs": ["list", "watch"] });
    let port = |name: &str, proto: &str| json!({ "name": name, "port": 53, "protocol": proto });
    let probe =
        |path: &str, port: u16| json!({ "httpGet": { "path": path, "port": port }, "periodSeconds": 1 });
    vec![
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": { "name": "system:coredns" },
            "rules": [
                read("", &["endpoints", "services", "pods", "namespaces"]),
                read("discovery.k8s.io", &["endpointslices"]),
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": { "name": "system:coredns" }, "roleRef": role,
            "subjects": [{ "kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE }],
        }),
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": { "Corefile": COREFILE } }),
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "kube-dns", "namespace": NAMESPACE },
            "spec": {
                "clusterIP": ADDRESS, "selector": { "k8s-app": "kube-dns" },
                "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")],
            },
        }),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta,
            "spec": {
                "replicas": 2,
                "selector": { "matchLabels": { "k8s-app": "kube-dns" } },
                "template": {
                    "metadata": { "labels": { "k8s-app": "kube-dns" } },
                    "spec": {
                        "serviceAccountName": NAME,
                        "dnsPolicy": "Default",
                        "containers": [{
                            "name": NAME, "image": IMAGE, "imagePullPolicy": "Never",
                            "args": ["-conf", "/etc/coredns/Corefile"],
                            "volumeMounts": [{ "name": "config", "mountPath": "/etc/coredns" }],
                            "readinessProbe": probe("/ready", 8181),
                            "livenessProbe": probe("/health", 8080),
                            "securityContext": {
                                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                                "capabilities": { "add": ["NET_BIND_SERVICE"], "drop": ["ALL"] },
                            },
                        }],
                        "volumes": [{ "name": "config", "configMap": { "name": NAME } }],
                    },
                },
            },
        }),
    ]
}
