//! The objects that tests apply: pods of the inmate, and services before them.

use std::net::IpAddr;

use heddle_runtime::image;
use serde_json::{Value, json};

/// The port on which pods serve, TCP and UDP.
pub const PORT: u16 = 8080;

/// What is in a pod: the inmate, which answers by the pod's name. It is no process 1, so that SIGTERM ends it.
fn spec() -> Value {
    json!({
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "shareProcessNamespace": true,
        "terminationGracePeriodSeconds": 5,
        "containers": [{
            "name": "inmate", "image": image::IMAGE, "imagePullPolicy": "Never",
            "args": [PORT.to_string(), "$(NAME)"],
            "env": [{ "name": "NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }],
            "readinessProbe": { "tcpSocket": { "port": PORT }, "periodSeconds": 1 },
        }],
    })
}

/// A pod on `node` with the label `app`.
pub fn pod(name: &str, app: &str, node: &str) -> Value {
    let mut spec = spec();
    spec["nodeName"] = node.into();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "default", "labels": { "app": app } },
        "spec": spec,
    })
}

/// A Deployment whose pods have the label `app`, its name. A pod that is to end serves for a second yet.
pub fn deployment(name: &str, replicas: usize) -> Value {
    let mut spec = spec();
    spec["containers"][0]["lifecycle"] = json!({ "preStop": { "sleep": { "seconds": 1 } } });
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": name } },
            "template": { "metadata": { "labels": { "app": name } }, "spec": spec },
        },
    })
}

/// A Service of both families before the pods with the label `app`; port 80, TCP and UDP.
pub fn service(name: &str, app: &str) -> Value {
    let port = |proto: &str| json!({ "name": proto.to_lowercase(), "protocol": proto, "port": 80, "targetPort": PORT });
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "selector": { "app": app },
            "ipFamilyPolicy": "RequireDualStack",
            "ports": [port("TCP"), port("UDP")],
        },
    })
}

/// An address of an object, of a family: `podIPs` of a pod, `clusterIPs` of a service.
pub fn ip(object: &Value, v4: bool) -> Option<IpAddr> {
    let pods = object["status"]["podIPs"].as_array().into_iter().flatten().map(|ip| &ip["ip"]);
    let services = object["spec"]["clusterIPs"].as_array().into_iter().flatten();
    let texts = pods.chain(services).filter_map(Value::as_str);
    texts.filter_map(|text| text.parse().ok()).find(|ip: &IpAddr| ip.is_ipv4() == v4)
}

/// The name of an object.
pub fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// The node of a pod.
pub fn node(pod: &Value) -> &str {
    pod["spec"]["nodeName"].as_str().unwrap_or_default()
}
