//! /healthz, /livez, healthCheckNodePort, /metrics.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use heddle_lab::addresses::cluster_ip;
use heddle_lab::manifests::node_yaml;
use heddle_lab::{Ask, Cluster, Cmd, Lab, Plan, Proto, Result, Service, bin, eventually};
use serde_json::Value;

use crate::http::{get, metric};
use crate::world::{WEB, World, ask, status, strict};

const LIMIT: Duration = Duration::from_secs(20);
const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// One node with proxyd alone.
fn lone() -> Result<Cluster> {
    let plan = Plan { vxland: None, ..Plan::default() };
    Cluster::start_with(Lab::builder().nodes(1).clients(1), plan)
}

#[test]
fn seeing_healthz_and_livez_answer_on_every_address() -> Result<()> {
    let cluster = lone()?;
    let (node, client) = (cluster.node(1), cluster.client());
    for (place, ip) in
        [(node.place(), LOCALHOST.into()), (client.place(), node.ip4()), (client.place(), node.ip6())]
    {
        for (path, eligible) in [("/healthz", Value::Bool(true)), ("/livez", Value::Null)] {
            // A busy machine: the daemon may be ready before its server has had its turn.
            eventually("an answer", LIMIT, || Ok(get(place, (ip, 10256).into(), path)?.status == 200))?;
            let said = get(place, (ip, 10256).into(), path)?;
            let body: Value = serde_json::from_str(&said.body).unwrap_or_default();
            assert_eq!((said.status, &body["nodeEligible"]), (200, &eligible), "{said:?}");
            assert!(body["lastUpdated"].is_string() && body["currentTime"].is_string(), "{said:?}");
        }
    }
    // The cluster is about to remove the node: load balancers are to go elsewhere, the daemon is well.
    let tainted = node_yaml(node).replace(
        "spec:\n",
        "spec:\n  taints:\n    - key: ToBeDeletedByClusterAutoscaler\n      effect: NoSchedule\n",
    );
    cluster.manifests().put("node-n1.yaml", &tainted)?;
    let at = (node.ip4(), 10256).into();
    eventually("503", LIMIT, || Ok(get(client, at, "/healthz")?.status == 503))?;
    assert_eq!(get(client, at, "/livez")?.status, 200);
    cluster.manifests().node(node)?;
    eventually("200", LIMIT, || Ok(get(client, at, "/healthz")?.status == 200))
}

#[test]
fn seeing_metrics_tell_what_happens() -> Result<()> {
    let world = World::start(strict())?;
    let (node, client) = (world.cluster.node(1), world.cluster.client());
    let at: SocketAddr = (LOCALHOST, 10249).into();
    let page = || Ok(get(node.place(), at, "/metrics")?.body);
    let before: String = page()?;
    for name in [
        "kubeproxy_sync_proxy_rules_duration_seconds_count",
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
        "kubeproxy_sync_proxy_rules_service_changes_total",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total",
        "heddle_ready",
        "heddle_map_bytes{map=\"ct\"}",
        "heddle_map_max_entries{map=\"frontends\"}",
    ] {
        assert!(metric(&before, name).is_some_and(|value| value > 0.0), "{name}:\n{before}");
    }
    assert_eq!(
        metric(&before, "heddle_map_entries{map=\"frontends\"}"),
        Some(32.0),
        "4 services in 8 frontends"
    );
    assert_eq!(metric(&before, "kubeproxy_sync_proxy_rules_endpoint_changes_pending"), Some(0.0));
    let flows = |page: &str| metric(page, "heddle_flows_total").unwrap_or(0.0);
    let rejects = |page: &str| metric(page, "heddle_rejects_total{reason=\"no_backend\"}").unwrap_or(0.0);
    ask(5, crate::world::By::Tcp, WEB.published(node.ip4()), client)?;
    assert!(Ask::new(crate::world::NONE.published(node.ip4())).tcp(client).is_err());
    eventually("they are counted", LIMIT, || {
        let now = page()?;
        Ok(flows(&now) - flows(&before) >= 5.0 && rejects(&now) - rejects(&before) >= 1.0)
    })?;
    let now = page()?;
    let series: Vec<&str> = now.lines().filter(|line| line.starts_with("heddle_service_flows{")).collect();
    assert!(series.iter().any(|line| line.contains("service=\"default/web\"")), "{series:?}");
    let given: f64 = now
        .lines()
        .filter(|line| line.starts_with("heddle_backend_given_total{service=\"default/web\",port=\"tcp\""))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum();
    assert_eq!(given, 5.0, "{now}");
    // Every name has its help and type once, before its samples.
    let mut typed = std::collections::BTreeSet::new();
    for line in now.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            assert!(typed.insert(rest.split(' ').next().unwrap_or("")), "twice: {line}");
        }
    }
    assert_eq!(get(node.place(), at, "/proxyMode")?.body, "ebpf");
    assert!(get(client, (node.ip4(), 10249).into(), "/metrics").is_err(), "for the node itself only");
    Ok(())
}

/// A port that another program has: said, with a way out; the datapath goes on; taken when it is free.
#[test]
fn seeing_a_port_in_use_is_told_and_taken_when_it_is_free() -> Result<()> {
    let lab = Lab::builder().nodes(1).clients(0).build()?;
    let node = lab.node(1);
    lab.manifests().node(node)?;
    let holder = node.enter(|| std::net::TcpListener::bind("127.0.0.1:10249"))?;
    let plan = Plan { vxland: None, ..Plan::default() };
    let cluster = Cluster::on(lab, plan)?;
    let node = cluster.node(1);
    let told = || -> Result<Option<String>> {
        Ok(status(node)?["daemon"]["troubles"]["metrics"]["what"].as_str().map(str::to_owned))
    };
    eventually("the trouble", LIMIT, || Ok(told()?.is_some()))?;
    let what = told()?.unwrap_or_default();
    assert!(what.contains("127.0.0.1:10249: another program does (name another address by"), "{what}");
    assert!(status(node)?["daemon"]["ready"].as_bool().unwrap_or(false), "all the rest is as it must be");
    drop(holder);
    eventually("it listens", LIMIT, || {
        Ok(get(node.place(), (LOCALHOST, 10249).into(), "/metrics").is_ok() && told()?.is_none())
    })
}

#[test]
fn seeing_health_checks_of_services_come_and_go() -> Result<()> {
    let plan = Plan::default().proxyd_arg("--nodeport-addresses").proxyd_arg("192.168.77.0/24");
    let cluster = Cluster::start_with(Lab::builder().nodes(1).clients(1), plan)?;
    let (node, client) = (cluster.node(1), cluster.client());
    let pod = cluster.backend(1, "web-1", 8080)?;
    let service = |port: u16| {
        Service::new("web")
            .cluster_ip(cluster_ip(10, true))
            .port("http", Proto::Tcp, 80, 8080)
            .node_port(30010)
            .spec("externalTrafficPolicy: Local")
            .spec(format!("healthCheckNodePort: {port}"))
    };
    let balanced = |port| service(port).to_yaml().replace("type: NodePort", "type: LoadBalancer");
    let publish = |port: u16, endpoints: &[heddle_lab::Endpoint]| {
        cluster.manifests().endpoints(&service(port), endpoints)?;
        cluster.manifests().put("service-web.yaml", &balanced(port))
    };
    let at = |port: u16| SocketAddr::from((node.ip4(), port));
    publish(32000, &[pod.endpoint()])?;
    eventually("200", LIMIT, || Ok(get(client, at(32000), "/")?.status == 200))?;
    let said = get(client, at(32000), "/healthz")?;
    assert!(said.head.contains("x-load-balancing-endpoint-weight: 1"), "{said:?}");
    let body: Value = serde_json::from_str(&said.body).unwrap_or_default();
    assert_eq!(body["service"], serde_json::json!({ "namespace": "default", "name": "web" }));
    assert_eq!((&body["localEndpoints"], &body["serviceProxyHealthy"]), (&1.into(), &true.into()));
    assert!(get(client, (node.ip6(), 32000).into(), "/").is_err(), "not one of the addresses of node ports");
    publish(32000, &[])?;
    eventually("503", LIMIT, || Ok(get(client, at(32000), "/")?.status == 503))?;
    publish(32001, &[pod.endpoint()])?;
    eventually("another port", LIMIT, || Ok(get(client, at(32001), "/")?.status == 200))?;
    assert!(get(client, at(32000), "/").is_err(), "the first one is closed");
    cluster.manifests().remove("service-web.yaml")?;
    eventually("closed", LIMIT, || Ok(get(client, at(32001), "/").is_err()))?;
    let text = node.run(Cmd::new(bin("proxyd")).arg("status"))?;
    assert!(!text.contains("health check"), "{text}");
    Ok(())
}
