//! `externalTrafficPolicy` and `internalTrafficPolicy`.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use heddle_lab::{Error, Place, Result, eventually};

use super::{
    FAMILIES, LIMIT, Setting, assert_error, assert_kept, assert_kept_away, assert_only, assert_silence,
    cluster, published, service, vip,
};
use crate::world::assert_no_foreign;

const HEALTH: u16 = 32020;

#[test]
fn rule_traffic_policies_local() -> Result<()> {
    let setting = Setting::start(&[])?;
    external(&setting)?;
    internal(&setting)
}

/// The status of the answer to `GET /`.
fn health(place: &Place, at: SocketAddr) -> Result<u16> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET / HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = place.enter(ask)?.map_err(|error| Error::Oracle(format!("http://{at}/: {error}")))?;
    let code = text.split(' ').nth(1).and_then(|code| code.parse().ok());
    code.ok_or_else(|| Error::Oracle(format!("http://{at}/: {text}")))
}

/// Only nodes with a backend answer clients outside; everybody inside reaches every backend by any node's address.
fn external(setting: &Setting) -> Result<()> {
    setting.admit(7)?;
    let declared = published("local", 20)
        .balancer_ip(vip(7, true), "VIP")
        .balancer_ip(vip(7, false), "VIP")
        .spec("externalTrafficPolicy: Local")
        .spec(format!("healthCheckNodePort: {HEALTH}"));
    let client = setting.cluster.client();
    for here in [&[1][..], &[2, 3], &[]] {
        setting.publish(&declared, here)?;
        let names: Vec<_> = here.iter().map(|index| format!("p{index}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for node in 1..=3 {
            let own = format!("p{node}");
            for v4 in FAMILIES {
                setting.by_node(1, vip(7, v4), node)?;
                for at in [SocketAddr::new(vip(7, v4), 80), setting.node_port(node, v4)] {
                    if here.contains(&node) {
                        assert_kept(at, client, 5, &[&own])?;
                    } else if here.is_empty() {
                        assert_error(at, client, ErrorKind::ConnectionRefused);
                    } else {
                        assert_silence(at, client);
                    }
                }
                let at = (setting.cluster.node(node).ip(v4), HEALTH).into();
                let wanted = if here.contains(&node) { 200 } else { 503 };
                eventually("the health check", LIMIT, || Ok(health(client, at)? == wanted))?;
            }
        }
        for asker in setting.insiders()? {
            for v4 in FAMILIES {
                // Of a node with a backend, and of one without.
                let ports = [1, 3].into_iter().filter(|node| asker.reaches(*node));
                let ports = ports.map(|node| setting.node_port(node, v4));
                for at in ports.chain([SocketAddr::new(vip(7, v4), 80)]) {
                    if here.is_empty() {
                        assert_error(at, &asker.place, ErrorKind::ConnectionRefused);
                    } else {
                        assert_only(at, &asker.place, 2, &names)?;
                    }
                }
            }
        }
    }
    assert_no_foreign(&setting.cluster)?;
    setting.withdraw("local")
}

/// A ClusterIP leads to endpoints on the client's node only. A node without: an error by the socket hook, silence
/// past it. Nobody anywhere: refused.
fn internal(setting: &Setting) -> Result<()> {
    let declared = published("inner", 20).spec("internalTrafficPolicy: Local");
    setting.publish(&declared, &[1, 2])?;
    let insiders = setting.insiders()?;
    for v4 in FAMILIES {
        for asker in &insiders {
            match asker.node {
                3 => assert_kept_away(cluster(20, v4), asker),
                node => drop(assert_only(cluster(20, v4), &asker.place, 8, &[&format!("p{node}")])?),
            }
            // It is about ClusterIPs only.
            if asker.reaches(3) {
                assert_only(setting.node_port(3, v4), &asker.place, 2, &["p1", "p2"])?;
            }
        }
        assert_kept(setting.node_port(3, v4), setting.cluster.client(), 2, &["p1", "p2"])?;
    }
    setting.publish(&declared, &[])?;
    for v4 in FAMILIES {
        for asker in &insiders {
            assert_error(cluster(20, v4), &asker.place, ErrorKind::ConnectionRefused);
        }
    }
    // Without the policy all of them again.
    setting.publish(&service("inner", 20), &[2])?;
    for asker in &insiders {
        assert_only(cluster(20, true), &asker.place, 2, &["p2"])?;
    }
    assert_no_foreign(&setting.cluster)
}
