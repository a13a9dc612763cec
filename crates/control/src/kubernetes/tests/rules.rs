//! Each rule of a Service, from its field.

use heddle_model::{Distribution, Endpoints, Node, Service, TrafficPolicy};

use super::*;

/// A service of type LoadBalancer with these fields, and this status of its load balancer.
fn text(spec: &str, ingress: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  type: LoadBalancer\n  \
         clusterIPs: [10.96.0.1]\n  ports: [{{port: 80, nodePort: 30080}}]\n{spec}\n\
         status: {{loadBalancer: {{ingress: [{ingress}]}}}}\n"
    )
}

fn balanced(spec: &str, ingress: &str) -> Service {
    match one(&text(spec, ingress)) {
        Value::Service(service) => Service::clone(&service),
        other => panic!("{other:?}"),
    }
}

fn strings<T: ToString>(all: impl IntoIterator<Item = T>) -> Vec<String> {
    all.into_iter().map(|one| one.to_string()).collect()
}

#[test]
fn fault_097_another_proxy_s_services_and_headless_ones_are_left_alone() {
    for label in ["service.kubernetes.io/service-proxy-name: other", "service.kubernetes.io/headless: ''"] {
        let labelled = text("", "").replace("{name: web}", &format!("{{name: web, labels: {{{label}}}}}"));
        assert_eq!(one(&labelled), Value::NotOurs, "{label}");
        assert_eq!(
            one(&SLICE.replace("labels: {", &format!("labels: {{{label}, "))),
            Value::NotOurs,
            "{label}"
        );
    }
    for headless in ["clusterIPs: [None]", "clusterIP: None", "clusterIP: None\n  clusterIPs: [None]"] {
        let text =
            text("  externalIPs: [8.8.8.8]", "{ip: 1.2.3.4}").replace("clusterIPs: [10.96.0.1]", headless);
        assert_eq!(one(&text), Value::NotOurs, "{headless}");
    }
}

#[test]
fn fault_099_an_address_that_a_load_balancer_answers_itself_is_not_ours() {
    let ingress = "{ip: 1.2.3.4}, {ip: 1.2.3.5, ipMode: VIP}, {ip: 1.2.3.6, ipMode: Proxy}, \
                   {ip: 'fd00::7'}, {hostname: lb.example.com}, {ip: 1.2.3.8, ipMode: Other}";
    assert_eq!(strings(balanced("", ingress).balancer_ips), ["1.2.3.4", "1.2.3.5", "fd00::7"]);
    let text = text("", ingress).replace("type: LoadBalancer", "type: NodePort");
    let Value::Service(other) = one(&text) else { panic!() };
    assert!(other.balancer_ips.is_empty(), "what a status says that is no load balancer's");
}

#[test]
fn fault_098_source_ranges() {
    let ranges = |spec: &str| {
        let service = balanced(spec, "");
        (service.source_ranges.map(strings), service.refused)
    };
    assert_eq!(ranges(""), (None, vec![]));
    assert_eq!(ranges("  loadBalancerSourceRanges: []"), (None, vec![]));
    let (some, refused) =
        ranges("  loadBalancerSourceRanges: [0.0.0.0/0, ' 10.1.2.3/8 ', 'fd00::/8', 10.0.0.0/8]");
    assert_eq!(some.unwrap(), ["0.0.0.0/0", "10.0.0.0/8", "fd00::/8"]);
    assert!(refused.is_empty());
    let (some, refused) = ranges("  loadBalancerSourceRanges: [10.0.0.0/33, 10.0.0.1, 10.0.0.0/8, x]");
    assert_eq!(some.unwrap(), ["10.0.0.0/8"]);
    assert_eq!(refused.len(), 3);
    assert_eq!(
        refused[0],
        "spec.loadBalancerSourceRanges[0]: \"10.0.0.0/33\" is no range of addresses: nobody is admitted by it"
    );
    let (none, refused) = ranges("  loadBalancerSourceRanges: [anybody]");
    assert_eq!((none, refused.len()), (Some(vec![]), 1), "closed, not open");
}

#[test]
fn policies_and_the_port_of_health_checks() {
    let local = balanced("  externalTrafficPolicy: Local\n  healthCheckNodePort: 32000", "");
    assert_eq!((local.external_policy, local.health_check_port), (TrafficPolicy::Local, Some(32000)));
    let cluster = balanced("  healthCheckNodePort: 32000", "");
    assert_eq!((cluster.external_policy, cluster.health_check_port), (TrafficPolicy::Cluster, None));
    let policy = |spec: &str, kind: &str| match one(&text(spec, "").replace("LoadBalancer", kind)) {
        Value::Service(service) => (service.external_policy, service.health_check_port),
        other => panic!("{other:?}"),
    };
    let asked = "  externalTrafficPolicy: Local\n  healthCheckNodePort: 32000";
    assert_eq!(policy(asked, "NodePort"), (TrafficPolicy::Local, None));
    assert_eq!(policy(asked, "ClusterIP"), (TrafficPolicy::Cluster, None));
    let external = format!("{asked}\n  externalIPs: [8.8.8.8]");
    assert_eq!(policy(&external, "ClusterIP"), (TrafficPolicy::Local, None));
    assert!(
        fails(&text("  externalTrafficPolicy: Near", ""))
            .ends_with("\"Near\" is no traffic policy (Cluster, Local)")
    );
    let bare =
        text("  allocateLoadBalancerNodePorts: false", "{ip: 1.2.3.4}").replace(", nodePort: 30080", "");
    let Value::Service(bare) = one(&bare) else { panic!() };
    assert_eq!((bare.ports[0].node_port, bare.balancer_ips.len()), (None, 1));
}

#[test]
fn affinity_and_distribution() {
    let affinity = |spec: &str| balanced(spec, "").affinity;
    assert_eq!(affinity(""), None);
    assert_eq!(affinity("  sessionAffinity: None"), None);
    assert_eq!(affinity("  sessionAffinity: ClientIP"), Some(10_800));
    let config = "  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 7}}";
    assert_eq!(affinity(config), Some(7));
    assert_eq!(affinity(&config.replace("ClientIP\n", "None\n")), None);
    for bad in ["0", "86401", "-1", "x"] {
        assert!(fails(&text(&config.replace('7', bad), "")).contains("timeoutSeconds: "), "{bad}");
    }
    let wish = |spec: &str| balanced(&format!("  trafficDistribution: {spec}"), "").distribution;
    assert_eq!(wish("PreferClose"), Some(Distribution::SameZone));
    assert_eq!(wish("PreferSameZone"), Some(Distribution::SameZone));
    assert_eq!(wish("PreferSameNode"), Some(Distribution::SameNode));
    assert_eq!(wish("SomethingNew"), None);
    let service = balanced("  publishNotReadyAddresses: true\n  externalIPs: [8.8.8.8, 'fd00::8']", "");
    assert!(service.publish_not_ready);
    assert_eq!(strings(service.external_ips), ["8.8.8.8", "fd00::8"]);
}

#[test]
fn zones_and_hints_of_endpoints() {
    let hinted = SLICE.replace(
        "  nodeName: n1\n",
        "  nodeName: n1\n  zone: east\n  hints: {forZones: [{name: east}, {name: west}], forNodes: [{name: n1}]}\n",
    );
    let Value::Slice(list) = one(&hinted) else { panic!() };
    let [first, second, ..] = &Endpoints::clone(&list).endpoints[..] else { panic!() };
    assert_eq!(first.zone.as_deref(), Some("east"));
    let hints = first.hints.as_deref().unwrap();
    assert_eq!(
        (strings(&hints.zones), strings(&hints.nodes)),
        (vec!["east".into(), "west".into()], vec!["n1".into()])
    );
    assert_eq!((&second.zone, &second.hints), (&None, &None));
    assert!(fails(&hinted.replace("{name: west}", "{zone: west}")).contains("hints.forZones[1]"));
}

#[test]
fn a_node_s_zone_and_whether_it_is_ready() {
    let node = |labels: &str, conditions: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: n1, labels: {{{labels}}}}}\nstatus: {{conditions: [{conditions}]}}\n"
        );
        match one(&text) {
            Value::Node(node) => Node::clone(&node),
            other => panic!("{other:?}"),
        }
    };
    let zone = node("topology.kubernetes.io/zone: east", "").zone;
    assert_eq!((zone.as_deref(), node("", "").zone), (Some("east"), None));
    let other = "{type: DiskPressure, status: 'False'}";
    for (ready, down) in [("'True'", false), ("'False'", true), ("Unknown", true)] {
        assert_eq!(node("", &format!("{other}, {{type: Ready, status: {ready}}}")).down, down, "{ready}");
    }
    assert!(!node("", other).down, "nothing is said of it");
}
