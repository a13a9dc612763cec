use std::collections::BTreeMap;
use std::net::SocketAddr;

use heddle_model::ServiceName;
use heddle_model::resolve::HealthCheck;
use hyper::StatusCode;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{advance, timeout};

use super::*;
use crate::http::Site;
use crate::metrics::Record;
use crate::notices::Notices;

async fn probe(probes: &Probes, path: &str) -> (u16, Value) {
    let answer = probes.answer(path).await;
    (answer.status.as_u16(), serde_json::from_str(&answer.body).unwrap_or_default())
}

/// kube-proxy's meaning: 503 when what is to be done is not done for a minute; a node that is about to go is well
/// alive, but not to be sent anything.
#[tokio::test(start_paused = true)]
async fn healthz_is_about_the_node_and_livez_about_the_daemon() {
    let health = Health::default();
    let probes = Probes::new(health.clone(), Record::default());
    let status = async || (probe(&probes, "/healthz").await.0, probe(&probes, "/livez").await.0);
    assert_eq!(status().await, (200, 200), "at the start");
    health.queued();
    advance(LATE - Duration::from_millis(1)).await;
    health.queued();
    assert_eq!(status().await, (200, 200), "not late yet");
    advance(Duration::from_millis(1)).await;
    assert_eq!(status().await, (503, 503), "the oldest counts");
    health.updated();
    assert_eq!(status().await, (200, 200));
    health.set_node_eligible(false);
    assert_eq!(status().await, (503, 200));
    let (_, body) = probe(&probes, "/healthz").await;
    assert_eq!(body["nodeEligible"], false);
    assert!(body["lastUpdated"].as_str().unwrap() <= body["currentTime"].as_str().unwrap());
    let (_, body) = probe(&probes, "/livez").await;
    assert!(body["nodeEligible"].is_null() && body["currentTime"].is_string(), "{body}");
    assert_eq!(probes.answer("/").await.status, StatusCode::NOT_FOUND);
}

#[test]
fn times_are_written_as_everybody_reads_them() {
    let at =
        |seconds, micros| rfc3339(UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(micros));
    assert_eq!(at(0, 0), "1970-01-01T00:00:00.000000Z");
    assert_eq!(at(951_782_399, 999_999), "2000-02-28T23:59:59.999999Z");
    assert_eq!(at(951_782_400, 0), "2000-02-29T00:00:00.000000Z");
    assert_eq!(at(1_795_182_245, 1), "2026-11-20T13:44:05.000001Z");
    assert_eq!(at(4_107_542_400, 0), "2100-03-01T00:00:00.000000Z", "2100 has no leap day");
}

async fn ask(at: SocketAddr) -> Option<(u16, String, Value)> {
    let mut stream = TcpStream::connect(at).await.ok()?;
    stream.write_all(b"GET /anything HTTP/1.1\r\nHost: x\r\n\r\n").await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let weight = head.lines().find_map(|line| line.strip_prefix("x-load-balancing-endpoint-weight: "))?;
    Some((status, weight.to_owned(), serde_json::from_str(body).ok()?))
}

/// Until the server is as wanted.
async fn await_answer(at: SocketAddr, wanted: impl Fn(Option<&(u16, String, Value)>) -> bool) {
    let asking = async { while !wanted(ask(at).await.as_ref()) {} };
    timeout(Duration::from_secs(10), asking).await.unwrap();
}

#[tokio::test]
async fn a_service_has_a_server_as_long_as_it_has_a_port() {
    let free = async || TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let (port, other) = (free().await, free().await);
    let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let check = |name: &str, local| HealthCheck { service: ServiceName::new("default", name), local };
    let health = Health::default();
    let notices = Notices::default();
    let mut checks = Checks::new(health.clone(), notices.clone());
    let here = [[127, 0, 0, 1].into()];
    checks.set([(port, check("web", 2))].into(), &here);
    await_answer(at(port), |answer| answer.is_some()).await;
    let (status, weight, body) = ask(at(port)).await.unwrap();
    assert_eq!((status, weight.as_str()), (200, "2"));
    let expected =
        r#"{"localEndpoints":2,"service":{"name":"web","namespace":"default"},"serviceProxyHealthy":true}"#;
    assert_eq!(body.to_string(), expected);
    checks.set([(port, check("web", 0))].into(), &here);
    let (status, weight, _) = ask(at(port)).await.unwrap();
    assert_eq!((status, weight.as_str()), (503, "0"));
    // Another port, another service on the first one.
    checks.set([(other, check("web", 1)), (port, check("api", 3))].into(), &here);
    await_answer(at(port), |answer| answer.is_some_and(|a| a.2["service"]["name"] == "api")).await;
    await_answer(at(other), |answer| answer.is_some_and(|a| a.0 == 200)).await;
    // Nobody's any more, and an address that is not this node's any more.
    checks.set([(other, check("web", 1))].into(), &[]);
    await_answer(at(port), |answer| answer.is_none()).await;
    await_answer(at(other), |answer| answer.is_none()).await;
    checks.set(BTreeMap::new(), &here);
    assert!(notices.watch().borrow().is_empty());
}
