//! Capability `bandwidth`: what passes is what was asked for, in both directions and both modes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use heddle_netlink::{NetNs, link, tc};
use serde_json::{Value, json};

use super::bench::{Host, Pod};

/// Bits per second; an emulated machine does not come to 50 million.
fn rate() -> u64 {
    50_000_000 / heddle_lab::patient(Duration::from_secs(1)).as_secs()
}

fn limited(host: &Host, mode: &str) -> Value {
    let mut conf = host.conf();
    if mode == "bridge" {
        conf["mode"] = json!("bridge");
        conf["bridge"] = json!("br0");
        conf["isDefaultGateway"] = json!(true);
        conf["ipam"]["routes"] = json!([]);
    }
    // As containerd asks for it.
    conf["runtimeConfig"] = json!({"bandwidth": {
        "ingressRate": rate(), "ingressBurst": u32::MAX, "egressRate": rate(), "egressBurst": u32::MAX}});
    conf
}

/// How far above the limit a measurement may be: what a slow machine's reader left lying before it began counts in it.
fn most() -> f64 {
    if heddle_lab::patient(Duration::from_secs(1)) > Duration::from_secs(1) { 1.3 } else { 1.1 }
}

/// Megabits per second of payload from one namespace to another, over a second, begun when it runs.
fn throughput(from: &NetNs, to: &NetNs, address: &str) -> f64 {
    let listener = to.run(|| TcpListener::bind((address, 0)).unwrap()).unwrap();
    let at = listener.local_addr().unwrap();
    let sender = std::thread::spawn({
        let from = from.try_clone().unwrap();
        move || {
            let mut stream = from.run(|| TcpStream::connect(at).unwrap()).unwrap();
            // Until the other end has seen enough.
            while stream.write_all(&[0; 65_536]).is_ok() {}
        }
    });
    let (mut stream, _) = listener.accept().unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut receive = |time: Duration| {
        let (start, mut bytes) = (Instant::now(), 0);
        while start.elapsed() < time {
            bytes += stream.read(&mut buffer).unwrap();
        }
        bytes as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e6
    };
    // What may leave at once, and what the beginning of a connection has in store, is not the rate.
    receive(Duration::from_millis(300));
    let rate = receive(Duration::from_millis(1200));
    drop(stream);
    sender.join().unwrap();
    rate
}

fn holds(mode: &str) {
    let (host, slow, free) = (Host::new(), Pod::new("slow"), Pod::new("free"));
    let conf = limited(&host, mode);
    let mut without = conf.clone();
    without["runtimeConfig"] = Value::Null;
    let limit = rate() as f64 / 1e6;
    let (own, other) = (host.add(&slow, &conf).ips(), host.add(&free, &without).ips());
    for family in 0..2 {
        for (what, from, to, address) in [
            ("to the pod", &free.ns, &slow.ns, &own[family]),
            ("from the pod", &slow.ns, &free.ns, &other[family]),
        ] {
            // On a machine with other work a sender does not always come to its turn: more is always a fault, less
            // only if it is always less.
            let mut most: f64 = 0.0;
            let enough = (0..5).any(|_| {
                let rate = throughput(from, to, address);
                assert!(rate <= self::most() * limit, "{mode}, {what}, {address}: {rate:.1} Mbit/s");
                most = most.max(rate);
                rate >= 0.9 * limit
            });
            assert!(enough, "{mode}, {what}, {address}: at most {most:.1} Mbit/s");
        }
    }
    let unlimited = throughput(&host.ns, &free.ns, &other[0]);
    assert!(unlimited > 4.0 * limit, "{mode}: a pod without limits: {unlimited:.1} Mbit/s");
}

#[test]
fn ptp_fifty_megabits_are_fifty_megabits() {
    holds("ptp");
}

#[test]
fn bridge_fifty_megabits_are_fifty_megabits() {
    holds("bridge");
}

#[test]
fn a_check_compares_and_a_delete_leaves_nothing() {
    let (host, _, pod, before) = Host::settled();
    let mut conf = limited(&host, "ptp");
    let near = {
        let answer = host.add(&pod, &conf);
        conf["prevResult"] = answer.json.clone();
        answer.json["interfaces"][0]["name"].as_str().unwrap().to_owned()
    };
    let check = || host.call(&pod, "CHECK", &conf);
    assert!(check().success, "{:?}", check());
    for (mut socket, device, key) in
        [(host.socket(), near.as_str(), "ingressRate"), (pod.socket(), "eth0", "egressRate")]
    {
        let index = link::by_name(&mut socket, device).unwrap().unwrap().index;
        let (rate, limit) = tc::token_bucket(&mut socket, index).unwrap().unwrap();
        assert_eq!(rate, self::rate() / 8);
        let set = |socket: &mut _, rate| {
            tc::set_token_bucket(socket, index, &tc::TokenBucket { rate, burst: 65_536, limit }).unwrap();
        };
        set(&mut socket, 2 * rate);
        assert!(check().code() == 101 && check().msg().contains(key), "{:?}", check());
        tc::delete_root(&mut socket, index).unwrap();
        assert!(check().code() == 101 && check().msg().contains(device), "{:?}", check());
        set(&mut socket, rate);
        assert!(check().success, "{:?}", check());
    }
    host.del(&pod, &conf);
    assert_eq!(host.state(), before);
}

#[test]
fn limits_that_make_no_sense_are_refused() {
    let (host, _, pod, before) = Host::settled();
    for (key, value, code) in [
        ("egressBurst", json!(1000), 7),
        ("ingressRate", json!(-1), 7),
        ("unshapedSubnets", json!(["10.0.0.0/8"]), 2),
    ] {
        let mut conf = host.conf();
        conf[key] = value;
        let refused = host.call(&pod, "ADD", &conf);
        assert!(refused.code() == code && refused.msg().starts_with(key), "{refused:?}");
    }
    assert_eq!(host.state(), before);
}
