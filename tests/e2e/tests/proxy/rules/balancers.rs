//! Addresses that load balancers give, who may use them, and external addresses.

use std::io::ErrorKind;
use std::net::SocketAddr;

use heddle_lab::{Ask, Error, Place, Result, Service};

use super::{
    FAMILIES, SILENCE, Setting, assert_error, assert_kept, assert_kept_away, assert_only, assert_silence,
    cluster, published, service, vip,
};
use crate::world::{assert_no_foreign, list, status};

#[test]
fn rule_balancer_addresses() -> Result<()> {
    let setting = Setting::start(&[])?;
    address(&setting)?;
    proxy(&setting)?;
    source_ranges(&setting)
}

const ALL: [&str; 3] = ["p1", "p2", "p3"];

fn balanced(service: Service, last: u8, mode: &'static str) -> Service {
    service.balancer_ip(vip(last, true), mode).balancer_ip(vip(last, false), mode)
}

/// The address is answered by every node, to everybody; a client outside is seen by his own address.
fn address(setting: &Setting) -> Result<()> {
    setting.admit(7)?;
    setting.publish(&balanced(service("balanced", 20), 7, "VIP"), &[1, 2, 3])?;
    let client = setting.cluster.client();
    for v4 in FAMILIES {
        let at = SocketAddr::new(vip(7, v4), 80);
        for node in 1..=3 {
            setting.by_node(1, at.ip(), node)?;
            assert_kept(at, client, 5, &ALL)?;
        }
        for asker in setting.insiders()? {
            for reply in assert_only(at, &asker.place, 5, &ALL)? {
                let own = setting.pods[asker.node - 1].pod().ip(v4);
                let itself = reply.server == format!("p{}", asker.node);
                assert!(
                    !asker.is_pod || itself || Some(reply.client.ip()) == own,
                    "a pod's own address: {reply:?}"
                );
            }
        }
    }
    // Nobody is behind it: refused to everybody.
    setting.publish(&balanced(service("balanced", 20), 7, "VIP"), &[])?;
    for v4 in FAMILIES {
        let at = SocketAddr::new(vip(7, v4), 80);
        assert_error(at, client, ErrorKind::ConnectionRefused);
        for asker in setting.insiders()? {
            assert_error(at, &asker.place, ErrorKind::ConnectionRefused);
        }
    }
    assert_no_foreign(&setting.cluster)?;
    setting.withdraw("balanced")
}

/// `ipMode: Proxy`: the load balancer itself answers there, to pods and nodes too, and sends to the node ports.
fn proxy(setting: &Setting) -> Result<()> {
    setting.admit(8)?;
    let balancer = &setting.cluster.clients()[1];
    let _server = balancer.serve("balancer", 80)?;
    for v4 in FAMILIES {
        let (ip, len) = (vip(8, v4), if v4 { "32" } else { "128 nodad" });
        balancer.run(format!("ip addr add dev eth0 {ip}/{len}").as_str())?;
        for node in setting.cluster.nodes() {
            node.run(format!("ip route add {ip} via {}", balancer.ip(v4)).as_str())?;
        }
    }
    setting.publish(&balanced(published("proxied", 20), 8, "Proxy"), &[1, 2])?;
    for v4 in FAMILIES {
        let at = SocketAddr::new(vip(8, v4), 80);
        for index in 1..=3 {
            for asker in setting.host(index)? {
                assert_only(at, &asker.place, 1, &["balancer"])?;
            }
            for asker in setting.pod(index)? {
                // Whether pods may go there, their node's firewall says; nobody else answers.
                let heard = Ask::new(at).limit(SILENCE).tcp(&asker.place);
                assert!(heard.is_err() || heard.is_ok_and(|reply| reply.server == "balancer"));
            }
        }
        for node in 1..=3 {
            assert_kept(setting.node_port(node, v4), balancer, 3, &["p1", "p2"])?;
        }
    }
    setting.withdraw("proxied")
}

/// `loadBalancerSourceRanges`: at the load balancer's addresses, for everybody; not at node ports and ClusterIPs.
fn source_ranges(setting: &Setting) -> Result<()> {
    setting.admit(9)?;
    let [allowed, other] = [0, 1].map(|index| &setting.cluster.clients()[index]);
    let service = |ranges: &str| {
        let service = balanced(published("guarded", 20), 9, "VIP");
        service.spec(format!("loadBalancerSourceRanges: [{ranges}]"))
    };
    let at = |v4| SocketAddr::new(vip(9, v4), 80);
    let host = |place: &heddle_lab::Client, v4| format!("\"{}/{}\"", place.ip(v4), if v4 { 32 } else { 128 });
    setting.publish(&service(&format!("{}, {}", host(allowed, true), host(allowed, false))), &[1, 2])?;
    for v4 in FAMILIES {
        for node in [1, 3] {
            setting.by_node(1, vip(9, v4), node)?;
            setting.by_node(2, vip(9, v4), node)?;
            assert_kept(at(v4), allowed, 3, &["p1", "p2"])?;
            assert_silence(at(v4), other);
            assert_kept(setting.node_port(node, v4), other, 3, &["p1", "p2"])?;
        }
        for asker in setting.pod(3)?.into_iter().chain(setting.host(3)?) {
            if asker.is_pod {
                assert_silence(at(v4), &asker.place);
            } else {
                assert_kept_away(at(v4), &asker);
            }
            assert_only(cluster(20, v4), &asker.place, 3, &["p1", "p2"])?;
            assert_only(setting.node_port(1, v4), &asker.place, 3, &["p1", "p2"])?;
        }
    }
    // Pods of one node, and another node. IPv6 has no range: nobody may.
    let node = setting.cluster.node(2);
    let ranges = format!("\"{}\", \"{}/32\"", setting.cluster.node(1).pod_ranges()[0], node.ip4());
    setting.publish(&service(&ranges), &[1, 2])?;
    let may = |place: &Place, v4| -> Result<()> { assert_only(at(v4), place, 3, &["p1", "p2"]).map(drop) };
    for asker in setting.pod(1)?.into_iter().chain(setting.host(2)?) {
        may(&asker.place, true)?;
    }
    for asker in setting.pod(2)? {
        assert_silence(at(true), &asker.place);
    }
    for asker in setting.host(1)? {
        assert_kept_away(at(true), &asker);
    }
    for place in [allowed.place(), other.place(), setting.pods[0].pod().place()] {
        assert_silence(at(false), place);
    }
    assert_silence(at(true), allowed);
    assert_no_foreign(&setting.cluster)
}

/// `externalIPs` are answered where an `--external-range` allows them: nowhere by default.
#[test]
fn rule_external_addresses_are_off_unless_allowed() -> Result<()> {
    let mut setting = Setting::start(&[])?;
    setting.admit(7)?;
    let ips: Vec<_> = FAMILIES.iter().flat_map(|v4| [vip(7, *v4), vip(77, *v4)]).collect();
    let quoted: Vec<_> = ips.iter().map(|ip| format!("\"{ip}\"")).collect();
    let declared = service("public", 20).spec(format!("externalIPs: [{}]", quoted.join(", ")));
    setting.publish(&declared, &[1, 2])?;
    let insiders = setting.insiders()?;
    for ip in &ips {
        let at = SocketAddr::new(*ip, 80);
        setting.by_node(1, *ip, 3)?;
        assert_silence(at, setting.cluster.client());
        for asker in insiders.iter().filter(|asker| asker.node == 3) {
            assert_silence(at, &asker.place);
        }
    }
    let said = status(setting.cluster.node(1))?.to_string();
    for ip in &ips {
        assert!(said.contains(&ip.to_string()), "{ip} is reported: {said}");
    }
    // The first of each family is allowed.
    setting.cluster.plan_proxyd(&[
        "--mode",
        "ebpf",
        "--removal-delay",
        "0",
        "--external-range",
        "203.0.113.0/26",
        "--external-range",
        "2001:db8:7::7/128",
    ]);
    for index in 1..=3 {
        setting.cluster.start_daemon_on(index, "proxyd")?;
    }
    for ip in &ips {
        let at = SocketAddr::new(*ip, 80);
        if *ip == vip(7, ip.is_ipv4()) {
            assert_kept(at, setting.cluster.client(), 3, &["p1", "p2"])?;
        } else {
            assert_silence(at, setting.cluster.client());
        }
        for asker in insiders.iter().filter(|asker| asker.node == 3) {
            if *ip == vip(7, ip.is_ipv4()) {
                assert_only(at, &asker.place, 3, &["p1", "p2"])?;
            } else {
                assert_silence(at, &asker.place);
            }
        }
    }
    let status = status(setting.cluster.node(1))?;
    let found = list(&status["frontends"])
        .iter()
        .any(|f| f["address"].as_str().is_some_and(|a| a.contains("113.77:")));
    if found {
        return Err(Error::Oracle("203.0.113.77 is answered".into()));
    }
    Ok(())
}
