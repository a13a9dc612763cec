use std::sync::Arc;

use heddle_ebpf_common::REMOTE_TUNNEL;
use heddle_model::{Mac, Protocol};

use super::*;

fn name(n: u8) -> NodeName {
    NodeName(format!("n{n}").into())
}

fn backend(host: u8, node: Option<u8>, state: BackendState) -> Backend {
    Backend { ip: [10, 244, host, 2].into(), port: 8080, proto: Protocol::Tcp, node: node.map(name), state }
}

fn table() -> ServiceTable {
    let node = |host: u8, mac: bool| ServiceNode {
        addresses: [[192, 168, 77, host].into()].into(),
        node_ports: if host == 1 { [[192, 168, 77, 1].into()].into() } else { BTreeSet::new() },
        down: host == 2,
        overlay: [[10, 244, host, 0].into()].into(),
        mac: mac.then_some(Mac([2, 0, 0, 0, 0, host])),
        ..ServiceNode::default()
    };
    let backends = [
        backend(1, Some(1), BackendState::Active),
        backend(2, Some(2), BackendState::Draining),
        backend(3, Some(3), BackendState::Active),
        backend(9, None, BackendState::Active),
    ];
    let web = Frontend {
        name: "default/web:http".into(),
        backends: backends.into(),
        outside: Some(Outside::Cluster),
        affinity: Some(300),
        ..Frontend::default()
    };
    let local = Frontend {
        name: "default/near:".into(),
        backends: [backend(3, Some(3), BackendState::Active)].into(),
        outside: Some(Outside::Local { backends: BTreeSet::new(), refusal: Refusal::Drop }),
        sources: Some(["10.0.0.0/8".parse().unwrap()].into()),
        ..Frontend::default()
    };
    let torn = Frontend { refusal: Refusal::Drop, ..Frontend::default() };
    let at = |ip: [u8; 4], port| FrontendAddr::new(ip.into(), port, Protocol::Tcp);
    ServiceTable {
        frontends: [
            (at([0, 0, 0, 0], 30080), Arc::new(web)),
            (at([10, 96, 0, 1], 80), Arc::new(torn)),
            (at([203, 0, 113, 1], 80), Arc::new(local)),
        ]
        .into(),
        nodes: (1..=3).map(|n| (name(n), node(n, n < 3))).collect(),
        local: Some(name(1)),
    }
}

fn example(filter: Option<&str>) -> Status {
    let at = FrontendAddr::new([0, 0, 0, 0].into(), 30080, Protocol::Tcp);
    let load = |answered, unanswered| Load { answered, unanswered, packets: 20, bytes: 12_345, given: 7 };
    let loads =
        [((at, [10, 244, 1, 2].into(), 8080), load(2, 0)), ((at, [10, 244, 3, 2].into(), 8080), load(0, 1))];
    let view = View {
        table: table(),
        loads: loads.into(),
        stale: 1,
        counters: crate::dataplane::Counters([("flow_new".into(), 3), ("drop_ttl".into(), 0)].into()),
        flows: FlowCounts { answered: 4, unanswered: 4 },
        config: heddle_ebpf_common::Config { remote: REMOTE_TUNNEL, vxlan_ifindex: 7, ..Default::default() },
        links: Vec::new(),
    };
    let filter: Option<Filter> = filter.map(|filter| filter.parse().unwrap());
    let mut status = of(view, filter.as_ref());
    status.hooks.push(Hook { program: "pod".into(), at: "hdl1".into(), program_id: 7, dead: false });
    status
}

#[test]
fn people_read_this() {
    let expected = "\
mode ebpf, node n1, remote backends by tunnel, flows: 2 answered, 2 unanswered (1 of backends that are gone)

FRONTEND              NAME              BACKEND          STATE     NODE       BY      GIVEN  FLOWS              BYTES
node(ipv4):30080/tcp  default/web:http  10.244.1.2:8080  active    n1         local   7      2                  12.3k
                                        10.244.2.2:8080  draining  n2 (down)  tunnel  0      0                  0
                                        10.244.3.2:8080  active    n3         snat    7      0 (+1 unanswered)  12.3k
                                        10.244.9.2:8080  active    -          snat    0      0                  0
10.96.0.1:80/tcp      (half written)    (none: dropped)
203.0.113.1:80/tcp    default/near:     10.244.3.2:8080  active    n3         snat    0      0                  0

FRONTEND              RULE
node(ipv4):30080/tcp  a client keeps its backend for 300s
10.96.0.1:80/tcp      clients in the cluster: no backend may take them (drop)
203.0.113.1:80/tcp    clients from outside: backends of this node only; there is none (drop); only for 10.0.0.0/8

NODE  STATE  ADDRESSES                     OVERLAY     MAC
n1    up     192.168.77.1                  10.244.1.0  02:00:00:00:00:01
n2    down   192.168.77.2 (no node ports)  10.244.2.0  02:00:00:00:00:02
n3    up     192.168.77.3 (no node ports)  10.244.3.0  (no overlay)

HOOK  AT
pod   hdl1

COUNTER   COUNT
flow_new  3
";
    assert_eq!(example(None).text(), expected);
}

#[test]
fn one_service_is_shown_alone() {
    let text = example(Some("default/near")).text();
    assert!(
        text.contains("203.0.113.1:80/tcp") && !text.contains("30080") && !text.contains("HOOK"),
        "{text}"
    );
    assert_eq!(example(Some("default/")).frontends.len(), 2);
    assert_eq!(example(Some("10.96.0.1")).frontends.len(), 1);
    let nothing = example(Some("default/nobody")).text();
    assert!(nothing.ends_with("\nno frontend is called so\n"), "{nothing}");
}

#[test]
fn many_services_are_summed_up() {
    let mut status = example(None);
    let web = status.frontends.swap_remove(0);
    status.frontends = (0..300)
        .map(|n| FrontendStatus {
            name: Some(format!("default/web{}:{}", n / 2, n % 2)),
            address: format!("10.96.{}.{}:80/tcp", n / 200, n % 200),
            ..web.clone()
        })
        .collect();
    let text = status.text();
    assert!(
        text.contains("SERVICE         FRONTENDS  BACKENDS  ACTIVE  GIVEN  FLOWS              BYTES\n"),
        "{text}"
    );
    assert!(
        text.contains("default/web149  2          4         3       28     4 (+2 unanswered)  49.4k\n"),
        "{text}"
    );
    assert!(text.contains("proxyd status NAMESPACE/NAME"), "{text}");
}

#[test]
fn programs_read_this() {
    let json = serde_json::to_value(example(None)).unwrap();
    let web = &json["frontends"][0];
    assert_eq!(web["backends"][1]["state"], "draining");
    assert_eq!(web["backends"][2]["by"], "snat");
    assert_eq!(web["backends"][0]["flows"]["answered"], 2);
    assert_eq!((&web["affinity"], &web["local"]), (&300.into(), &false.into()));
    assert_eq!(
        (&web["backends"][0]["outside"], &web["backends"][1]["outside"]),
        (&true.into(), &false.into())
    );
    let near = &json["frontends"][2];
    assert_eq!((&near["refusalOutside"], &near["sources"][0]), (&"drop".into(), &"10.0.0.0/8".into()));
    assert_eq!(near["backends"][0]["outside"], false);
    assert_eq!(json["counters"]["drop_ttl"], 0);
    assert_eq!(json["hooks"][0]["programId"], 7);
    assert_eq!(json["flows"]["answered"], 4);
    assert_eq!((&json["staleFlows"], &json["nodes"][1]["down"]), (&1.into(), &true.into()));
    let nothing = serde_json::to_value(Status::default()).unwrap();
    assert!(nothing["mode"].is_null() && nothing["frontends"].as_array().unwrap().is_empty());
}
