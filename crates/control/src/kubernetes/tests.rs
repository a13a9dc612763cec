use heddle_model::{Announced, Vtep};

use super::*;
use crate::tree;

mod rules;

fn read(text: &str) -> Result<Vec<Object>, String> {
    let documents = tree::yaml(text).map_err(|error| error.to_string())?;
    let mut all = Vec::new();
    for document in documents {
        all.extend(objects(&document).map_err(|error| error.to_string())?);
    }
    Ok(all)
}

fn one(text: &str) -> Value {
    read(text).unwrap().remove(0).value
}

fn fails(text: &str) -> String {
    read(text).unwrap_err()
}

/// As `kubectl get -o yaml` prints it: keys sorted, fields that nobody asked for.
const SERVICE: &str = r#"
apiVersion: v1
kind: Service
metadata:
  annotations:
    kubectl.kubernetes.io/last-applied-configuration: |
      {"apiVersion":"v1","kind":"Service","spec":{"ports":[{"port":80}]}}
  creationTimestamp: "2026-11-20T08:00:00Z"
  labels:
    app: web
  name: web
  namespace: shop
  resourceVersion: "1234"
  uid: 4a1c4c2e-0000-4000-8000-000000000000
spec:
  clusterIP: 10.96.0.10
  clusterIPs:
  - 10.96.0.10
  - fd00:10:96::a
  externalTrafficPolicy: Cluster
  internalTrafficPolicy: Local
  ipFamilies:
  - IPv4
  - IPv6
  ipFamilyPolicy: PreferDualStack
  ports:
  - name: http
    nodePort: 30080
    port: 80
    protocol: TCP
    targetPort: http
  - name: dns
    port: 53
    protocol: UDP
    targetPort: 5353
  selector:
    app: web
  sessionAffinity: None
  type: NodePort
status:
  loadBalancer: {}
"#;

#[test]
fn a_service() {
    let Value::Service(service) = one(SERVICE) else { panic!() };
    assert_eq!(service.name, ServiceName::new("shop", "web"));
    assert_eq!(service.created, Created(1_795_161_600));
    assert_eq!(
        service.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.96.0.10", "fd00:10:96::a"]
    );
    assert!(service.families.v4 && service.families.v6);
    let ports: Vec<_> =
        service.ports.iter().map(|p| (p.name.as_str(), p.port, p.proto.number(), p.node_port)).collect();
    assert_eq!(ports, [("http", 80, 6, Some(30080)), ("dns", 53, 17, None)]);
    assert_eq!(service.internal_policy, heddle_model::TrafficPolicy::Local);
    assert!(service.refused.is_empty());
}

#[test]
fn services_of_other_types() {
    let with = |change: &[(&str, &str)]| {
        let text = change.iter().fold(SERVICE.to_owned(), |text, (from, to)| text.replace(from, to));
        one(&text)
    };
    let Value::Service(cluster) = with(&[("type: NodePort", "type: ClusterIP")]) else { panic!() };
    assert_eq!(
        cluster.ports[0].node_port, None,
        "a ClusterIP service has no node ports, whatever the field says"
    );
    assert_eq!(with(&[("10.96.0.10", "None"), ("  - fd00:10:96::a\n", "")]), Value::NotOurs, "headless");
    assert_eq!(with(&[("type: NodePort", "type: ExternalName")]), Value::NotOurs);
    assert_eq!(with(&[("app: web", "service.kubernetes.io/service-proxy-name: other")]), Value::NotOurs);
    assert_eq!(with(&[("app: web", "service.kubernetes.io/headless: ''")]), Value::NotOurs);
}

#[test]
fn a_node() {
    let text = r#"
apiVersion: v1
kind: Node
metadata: {name: n1, creationTimestamp: null}
spec:
  podCIDR: 10.244.1.0/24
  podCIDRs: [10.244.1.0/24, "fd00:10:244:1::/64"]
status:
  addresses:
  - {address: 192.168.77.1, type: InternalIP}
  - {address: fd77::1, type: InternalIP}
  - {address: 203.0.113.1, type: ExternalIP}
  - {address: n1, type: Hostname}
"#;
    let Value::Node(node) = one(text) else { panic!() };
    assert_eq!((&*node.name.0, node.created), ("n1", Created::UNKNOWN));
    assert_eq!(
        node.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["192.168.77.1", "fd77::1"]
    );
    assert_eq!(
        node.pod_ranges.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.244.1.0/24", "fd00:10:244:1::/64"]
    );
    let Value::Node(bare) =
        one("{apiVersion: v1, kind: Node, metadata: {name: n}, spec: {podCIDR: 10.0.0.0/24}}")
    else {
        panic!()
    };
    assert_eq!((bare.pod_ranges.len(), bare.addresses.len()), (1, 0));
}

#[test]
fn a_node_that_is_about_to_go() {
    let leaving = |text: &str| match one(text) {
        Value::Node(node) => node.leaving,
        other => panic!("{other:?}"),
    };
    assert!(!leaving("{apiVersion: v1, kind: Node, metadata: {name: n}, spec: {taints: [{key: x}]}}"));
    assert!(leaving(
        "{apiVersion: v1, kind: Node, metadata: {name: n, deletionTimestamp: '2026-01-01T00:00:00Z'}}"
    ));
    assert!(leaving(
        "{apiVersion: v1, kind: Node, metadata: {name: n}, spec: {taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]}}"
    ));
}

const SLICE: &str = r#"
addressType: IPv4
apiVersion: discovery.k8s.io/v1
endpoints:
- addresses: [10.244.1.5]
  conditions: {ready: true, serving: true, terminating: false}
  nodeName: n1
  targetRef: {kind: Pod, name: web-1}
- addresses: [10.244.1.6, 10.9.9.9]
  conditions: {ready: false, serving: true, terminating: true}
- addresses: [10.244.1.7]
  conditions: {ready: false, serving: false, terminating: true}
- addresses: [10.244.1.8]
- addresses: [10.244.1.9]
  conditions: {ready: false}
- addresses: [10.244.1.10]
  conditions: {ready: null, terminating: null}
kind: EndpointSlice
metadata:
  labels: {kubernetes.io/service-name: web}
  name: web-x1
  namespace: shop
ports:
- {name: http, port: 8080, protocol: TCP}
- {name: all}
"#;

#[test]
fn a_slice() {
    let Value::Slice(list) = one(SLICE) else { panic!() };
    assert_eq!(list.name.service, ServiceName::new("shop", "web"));
    assert_eq!(list.name.to_string(), "shop/web-x1");
    assert_eq!((list.ports.len(), list.ports[0].port), (1, 8080));
    let life: Vec<_> = list.endpoints.iter().map(|e| (e.ip.to_string(), e.serving, e.terminating)).collect();
    let expected = [
        ("5", true, false),
        ("6", true, true),
        ("7", false, true),
        ("8", true, false),
        ("9", false, false),
        ("10", true, false),
    ];
    assert_eq!(life, expected.map(|(ip, s, t)| (format!("10.244.1.{ip}"), s, t)));
    assert_eq!(list.endpoints[0].node.as_ref().unwrap().to_string(), "n1");
    assert_eq!(one(&SLICE.replace("IPv4", "FQDN")), Value::NotOurs);
    assert_eq!(one(&SLICE.replace("service-name", "other")), Value::NotOurs, "an orphan");
    assert_eq!(
        fails(&SLICE.replace("10.244.1.7", "fd00::7")),
        "11:15: endpoints[2].addresses[0]: fd00::7 is not of the slice's addressType"
    );
}

#[test]
fn endpoints_of_both_kinds_and_lists() {
    let text = r#"
apiVersion: v1
items:
- apiVersion: v1
  kind: Endpoints
  metadata: {name: web, namespace: shop}
  subsets:
  - addresses: [{ip: 10.0.0.1, nodeName: n1}]
    notReadyAddresses: [{ip: 10.0.0.2}]
    ports: [{port: 8080}]
  - addresses: [{ip: 10.0.0.3}]
    ports: [{name: x, port: 1, protocol: SCTP}]
- apiVersion: apps/v1
  kind: Deployment
  metadata: {name: web}
  spec: {ports: 5}
kind: List
---
apiVersion: v1
kind: NodeList
items:
- metadata: {name: n1}
- metadata: {name: n2}
"#;
    let all = read(text).unwrap();
    let keys: Vec<_> = all.iter().map(|object| format!("{} {}", object.line, object.key)).collect();
    assert_eq!(keys, ["4 Endpoints shop/web", "22 Node n1", "23 Node n2"]);
    let Value::Endpoints(parts) = &all[0].value else { panic!() };
    assert_eq!(parts.len(), 2);
    assert_eq!(parts[0].endpoints.iter().map(|e| e.serving).collect::<Vec<_>>(), [true, false]);
    assert_ne!(parts[0].name, parts[1].name);
}

#[test]
fn errors_name_line_column_and_field() {
    let service = |from: &str, to: &str| fails(&SERVICE.replace(from, to));
    assert_eq!(
        service("port: 53", "port: 70000"),
        "33:11: spec.ports[1].port: 70000 is no port (0 to 65535)"
    );
    assert_eq!(service("port: 53", "port: 0"), "33:11: spec.ports[1].port: 0 is no port (1 to 65535)");
    assert_eq!(
        service("port: 53", "port: '53'"),
        "33:11: spec.ports[1].port: expected a port number, found the text \"53\""
    );
    assert_eq!(
        service("protocol: UDP", "protocol: udp"),
        "34:15: spec.ports[1].protocol: \"udp\" is no protocol (TCP, UDP, SCTP)"
    );
    let address = service("  - 10.96.0.10", "  - 10.96.0.010");
    assert!(address.starts_with("18:5: spec.clusterIPs[0]: \"10.96.0.010\" is no IP address"), "{address}");
    assert!(service("name: web", "name: ../web").contains("metadata.name: not a name"));
    assert!(
        service("name: web", "name: 8080").contains("metadata.name: expected a text, found the number 8080")
    );
    assert_eq!(fails("{apiVersion: v1, kind: Node}"), "1:1: the field `metadata` is missing");
    assert_eq!(fails("a: 1"), "1:1: no Kubernetes object: the field `kind` is missing");
    assert_eq!(fails("[]"), "1:1: expected a map, found a list");
    let range = fails("{apiVersion: v1, kind: Node, metadata: {name: n}, spec: {podCIDR: 10.0.0.0}}");
    assert_eq!(range, "1:67: spec.podCIDR: not a range of addresses: the prefix length is missing");
}

/// What flannel writes, and what of it counts.
#[test]
fn annotations_of_flannel() {
    let announced = |annotations: &[(&str, &str)]| {
        let lines: String = annotations
            .iter()
            .map(|(key, text)| format!("    flannel.alpha.coreos.com/{key}: '{text}'\n"))
            .collect();
        let text = format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: n1\n  annotations:\n    other: x\n{lines}"
        );
        let Value::Node(node) = one(&text) else { panic!() };
        node.announced.as_deref().cloned()
    };
    let managed = [("kube-subnet-manager", "true"), ("backend-type", "vxlan")];
    let with = |more: &[(&str, &str)]| announced(&[&managed[..], more].concat()).unwrap();
    let mac = |text: &str| text.parse().unwrap();
    assert_eq!(announced(&[]), None);
    assert_eq!(announced(&managed[1..]), None, "flannel passes over it as well");
    let both = with(&[
        ("backend-data", r#"{"VNI":1,"VtepMAC":"0a:1b:2c:3d:4e:5f"}"#),
        ("backend-v6-data", r#"{"VNI":7,"VtepMAC":"0a:1b:2c:3d:4e:60"}"#),
        ("public-ip", "192.168.77.1"),
        ("public-ipv6", "fd77::1"),
    ]);
    let underlay = Some("192.168.77.1".parse().unwrap());
    assert_eq!(both.v4, Some(Vtep { vni: 1, mac: mac("0a:1b:2c:3d:4e:5f"), underlay }));
    let underlay = Some("fd77::1".parse().unwrap());
    assert_eq!(both.v6, Some(Vtep { vni: 7, mac: mac("0a:1b:2c:3d:4e:60"), underlay }));
    assert_eq!((both.other, both.refused), (None, vec![]));
    assert_eq!(with(&[("backend-data", "null"), ("backend-v6-data", "null")]), Announced::default());
    let other = announced(&[("kube-subnet-manager", "true"), ("backend-type", "host-gw")]).unwrap();
    assert_eq!(other.other.as_deref(), Some("host-gw"));
    for bad in [
        "no json",
        "[1]",
        "{}",
        r#"{"VNI":1,"VtepMAC":"0a:1b:2c:3d:4e"}"#,
        r#"{"VNI":-1,"VtepMAC":"0a:1b:2c:3d:4e:5f"}"#,
        r#"{"VNI":1,"VtepMAC":"01:00:5e:00:00:01"}"#,
        r#"{"VNI":1,"VtepMAC":"00:00:00:00:00:00"}"#,
        r#"{"VNI":1,"VtepMAC":"ff:ff:ff:ff:ff:ff"}"#,
    ] {
        let announced = with(&[("backend-data", bad)]);
        assert_eq!((announced.v4, announced.refused.len()), (None, 1), "{bad}");
    }
    let strange =
        with(&[("backend-data", r#"{"VNI":1,"VtepMAC":"0a:1b:2c:3d:4e:5f"}"#), ("public-ip", "fd77::1")]);
    assert_eq!((strange.v4.unwrap().underlay, strange.refused.len()), (None, 1));
}
