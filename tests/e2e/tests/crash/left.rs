//! `deleteInterface: withNamespace`: DEL leaves the interface to the namespace, and everything else is as if it were gone.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use heddle_lab::trace::{Call, Fate};
use heddle_netlink::link;
use serde_json::{Value, json};

use super::bench::{Host, Pod};
use super::sweep::sweep;
use super::world::World;

fn left(host: &Host, bridge: bool) -> Value {
    let mut conf = host.conf();
    conf["deleteInterface"] = json!("withNamespace");
    // The other pod has one of the two addresses.
    conf["ipam"]["ranges"] =
        json!([[{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.10", "rangeEnd": "10.244.1.11"}]]);
    conf["ipam"]["routes"] = json!([]);
    if bridge {
        conf["mode"] = json!("bridge");
        conf["bridge"] = json!("br0");
        conf["isGateway"] = json!(true);
        conf["ipMasq"] = json!(true);
    }
    conf
}

/// Sends a datagram from the host to `ip`; whether it arrives in `pod`.
fn reaches(host: &Host, pod: &Pod, ip: &str) -> bool {
    let ip: IpAddr = ip.parse().unwrap();
    let Ok(inside) = pod.ns.run(|| UdpSocket::bind((ip, 0))).unwrap() else { return false };
    inside.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let to: SocketAddr = inside.local_addr().unwrap();
    let sent = host.ns.run(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"to you", to)).unwrap();
    match inside.recv(&mut [0; 16]) {
        Ok(length) => length == 6,
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error} {sent:?}");
            false
        }
    }
}

fn hosts_devices(host: &Host) -> usize {
    link::list(&mut host.socket()).unwrap().iter().filter(|link| link.name.starts_with("hdl")).count()
}

fn killed_and_reused(bridge: bool) {
    let moments = sweep(
        13,
        || World::new(|host| left(host, bridge)),
        |world, k| {
            let (host, conf) = (&world.host, &world.conf);
            // Of the pod that lives on, and of the one that came and went as the world was made.
            assert_eq!(hosts_devices(host), 2);
            let going = Pod::new("going");
            let ips = host.add(&going, conf).ips();
            let variables = Host::variables(&going, "DEL");
            let fate = |call: &Call| if call.index == k { Fate::Kills } else { Fate::Passes };
            let outcome = world.traced_with(variables, conf, fate);
            let what = format!("DEL killed at {k}: {outcome:?}");
            assert!(outcome.killed() || outcome.answer.success, "{what}");
            host.del(&going, conf);
            // The device is there still, and has the address: the next pod does not mind.
            assert_eq!(world.ips_of(&going).into_iter().collect::<Vec<_>>(), ips, "{what}");
            let next = Pod::new("next");
            assert_eq!(host.add(&next, conf).ips(), ips, "{what}: the only address that is free");
            assert!(reaches(host, &next, &ips[0]), "{what}: not the next pod");
            assert!(!reaches(host, &going, &ips[0]), "{what}: the pod that is going");
            assert!(reaches(host, &next, &ips[0]), "{what}: not the next pod any more");
            if k % 2 == 0 {
                // The same container may come back before its namespace went.
                host.del(&next, conf);
                host.add(&going, conf);
                assert!(reaches(host, &going, &ips[0]), "{what}: not the pod that came back");
                host.del(&going, conf);
            } else {
                host.del(&next, conf);
            }
            assert!(hosts_devices(host) > 2, "{what}");
            // With the namespaces, the rest goes.
            drop((going, next));
            let gone = || Ok(hosts_devices(host) == 2);
            heddle_lab::eventually("the devices are gone", Duration::from_secs(10), gone).unwrap();
            world.assert_host_clean(&what);
            outcome.killed()
        },
    );
    assert!(moments > 5, "{moments}");
}

#[test]
fn fault_042_an_interface_that_is_left_to_its_namespace() {
    killed_and_reused(false);
}

#[test]
fn fault_042_an_interface_that_is_left_to_its_namespace_on_a_bridge() {
    killed_and_reused(true);
}

#[test]
fn fault_043_gc_deletes_what_its_namespace_did_not() {
    let world = World::new(|host| left(host, false));
    assert_eq!(hosts_devices(&world.host), 2);
    let collected = world.gc();
    assert!(collected.success, "{collected:?}");
    assert_eq!(hosts_devices(&world.host), 1);
    assert!(world.ips_of(&world.pod).is_empty());
    let mut wrong = world.conf.clone();
    wrong["deleteInterface"] = json!("never");
    let refused = world.host.call(&world.pod, "ADD", &wrong);
    assert!(refused.code() == 7 && refused.msg().starts_with("deleteInterface"), "{refused:?}");
    // DEL takes away what it can, whatever the configuration has become.
    world.host.add(&world.pod, &world.conf);
    world.host.del(&world.pod, &wrong);
    assert_eq!(hosts_devices(&world.host), 1);
}
