//! Bandwidth limits and settings of the pod's interface: the capability `bandwidth` (conventions), and what the
//! plugin tuning sets.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use heddle_netlink::NetNs;
use heddle_netlink::sysctl::{self, Key};
use serde_json::{Value, json};

use crate::bench::Pod;
use crate::list::List;
use crate::stage::{HOST4, Stage, device, ips, said};
use crate::subject::{Check, PTP, WIRED};

pub const CHECKS: &[Check] = &[
    Check {
        section: "conventions: bandwidth",
        parts: WIRED,
        name: "what a pod receives is limited to ingressRate",
        run: ingress,
    },
    Check {
        section: "conventions: bandwidth",
        parts: WIRED,
        name: "what a pod sends is limited to egressRate",
        run: egress,
    },
    Check {
        section: "conventions: bandwidth",
        parts: PTP,
        name: "without limits there is nothing that limits",
        run: unlimited,
    },
    Check {
        section: "2 DEL",
        parts: WIRED,
        name: "after DEL of a pod with limits nothing is left",
        run: limits_leave_nothing,
    },
    Check { section: "2 CHECK", parts: WIRED, name: "CHECK finds that a limit is gone", run: limit_gone },
    Check {
        section: "tuning",
        parts: WIRED,
        name: "sysctl: settings of the pod's namespace are made",
        run: sysctls,
    },
    Check {
        section: "tuning",
        parts: PTP,
        name: "sysctl: a setting that is not of the network is refused",
        run: foreign_sysctl,
    },
    Check {
        section: "tuning",
        parts: PTP,
        name: "sysctl: a path that leads out is refused",
        run: hostile_sysctl,
    },
    Check { section: "tuning", parts: PTP, name: "promisc and allmulti are set", run: flags },
    Check { section: "tuning", parts: PTP, name: "mtu: of the pod's interface", run: mtu },
    Check {
        section: "conventions: mac",
        parts: WIRED,
        name: "the capability mac: the interface has that Ethernet address, and the result tells it",
        run: mac,
    },
    Check {
        section: "conventions: mac",
        parts: PTP,
        name: "with the capability mac, packets pass",
        run: mac_passes,
    },
    Check {
        section: "2 CHECK",
        parts: PTP,
        name: "CHECK finds that a sysctl has been changed",
        run: sysctl_changed,
    },
];

/// 4 Mbit/s, and 64 KiB at once.
fn limit(direction: &str) -> Value {
    json!({format!("{direction}Rate"): 4_000_000, format!("{direction}Burst"): 524_288})
}

fn limited(stage: &Stage, list: List, limits: Value) -> List {
    let mut list = list;
    if stage.ours() {
        return list.capability("bandwidth", limits);
    }
    list.plugins.push(json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}));
    list.runtime.insert("bandwidth".into(), limits);
    list
}

/// How long 512 KiB take from one namespace to another's address.
fn transfer(from: &NetNs, to: &NetNs, address: IpAddr) -> Result<Duration> {
    let listener = to.run(|| TcpListener::bind((address, 0)))??;
    let at = listener.local_addr()?;
    let receiver = std::thread::spawn(move || -> Result<Instant> {
        let (mut stream, _) = listener.accept()?;
        std::io::copy(&mut stream, &mut std::io::sink())?;
        Ok(Instant::now())
    });
    let begin = Instant::now();
    let stream = from.run(|| TcpStream::connect_timeout(&at, crate::traffic::DEADLINE))?;
    let mut stream = stream?;
    stream.write_all(&vec![0; 512 * 1024])?;
    drop(stream);
    let end = receiver.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))??;
    Ok(end - begin)
}

/// At 0.5 MB/s, what does not fit into the burst takes 0.9 s; without a limit a few milliseconds.
const LEAST: Duration = Duration::from_millis(600);

fn ingress(stage: &Stage) -> Result<()> {
    let _outside = stage.outside();
    let pod = Pod::new("abc");
    let own = ips(&stage.add(&pod, &limited(stage, stage.list(), limit("ingress")))?)[0];
    ensure!(transfer(&stage.host.ns, &pod.ns, own)? > LEAST, "it is not limited");
    ensure!(transfer(&pod.ns, &stage.host.ns, HOST4.parse()?)? < LEAST, "what it sends is limited too");
    Ok(())
}

fn egress(stage: &Stage) -> Result<()> {
    let _outside = stage.outside();
    let pod = Pod::new("abc");
    let own = ips(&stage.add(&pod, &limited(stage, stage.list(), limit("egress")))?)[0];
    ensure!(transfer(&pod.ns, &stage.host.ns, HOST4.parse()?)? > LEAST, "it is not limited");
    ensure!(transfer(&stage.host.ns, &pod.ns, own)? < LEAST, "what it receives is limited too");
    Ok(())
}

fn unlimited(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    let own = ips(&stage.add(&pod, &limited(stage, stage.list(), json!({})))?)[0];
    ensure!(transfer(&stage.host.ns, &pod.ns, own)? < LEAST, "it is limited");
    let state = stage.state();
    ensure!(!state.iter().any(|line| line.contains("tbf")), "there is a token bucket");
    Ok(())
}

fn both() -> Value {
    json!({"ingressRate": 4_000_000, "ingressBurst": 524_288, "egressRate": 4_000_000, "egressBurst": 524_288})
}

fn limits_leave_nothing(stage: &Stage) -> Result<()> {
    let list = limited(stage, stage.list(), both());
    stage.settle(&list)?;
    let before = stage.state();
    let pod = Pod::new("abc");
    let result = stage.add(&pod, &list)?;
    stage.del(&pod, &list, Some(&result))?;
    stage.nothing_more_than(&before)
}

fn limit_gone(stage: &Stage) -> Result<()> {
    let (pod, list) = (Pod::new("abc"), limited(stage, stage.list(), both()));
    let result = stage.add(&pod, &list)?;
    let whole = stage.check(&pod, &list, &result);
    ensure!(whole.success, "CHECK fails before: {}", said(&whole));
    let near = stage.host_side(&result)?;
    let delete = ["qdisc", "del", "dev", &near.name, "root"];
    let deleted = stage.host.ns.run(|| std::process::Command::new("tc").args(delete).output())??;
    ensure!(deleted.status.success(), "there is no token bucket at the host side");
    ensure!(!stage.check(&pod, &list, &result).success, "CHECK succeeds");
    Ok(())
}

/// With keys of the plugin tuning: ours has them itself.
fn tuned(stage: &Stage, keys: Value) -> List {
    let mut list = stage.list();
    if stage.ours() {
        for (key, value) in keys.as_object().unwrap() {
            list = list.with(key, value.clone());
        }
        return list;
    }
    let mut plugin = keys;
    plugin["type"] = json!("tuning");
    plugin["dataDir"] = json!(stage.bin().join("tuning-state"));
    list.plugins.push(plugin);
    list
}

fn sysctls(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    let keys = json!({"sysctl": {"net.core.somaxconn": "777", "net.ipv4.conf.eth0.arp_filter": "1"}});
    stage.add(&pod, &tuned(stage, keys))?;
    for (key, wanted) in
        [(Key::new(["net", "core", "somaxconn"]), "777"), (Key::ipv4_conf("eth0", "arp_filter"), "1")]
    {
        let value = sysctl::read_in(&pod.ns, &key).unwrap();
        ensure!(value == wanted, "it is {value}, not {wanted}");
    }
    Ok(())
}

fn foreign_sysctl(stage: &Stage) -> Result<()> {
    // What it is already, should it be written.
    let now = std::fs::read_to_string("/proc/sys/kernel/printk_ratelimit")?;
    let keys = json!({"sysctl": {"kernel.printk_ratelimit": now.trim()}});
    ensure!(!stage.try_add(&Pod::new("abc"), &tuned(stage, keys)).success, "ADD succeeds");
    Ok(())
}

fn hostile_sysctl(stage: &Stage) -> Result<()> {
    let now = std::fs::read_to_string("/proc/sys/kernel/printk_ratelimit")?;
    for key in ["net/../kernel/printk_ratelimit", "net/ipv4/../../kernel/printk_ratelimit"] {
        let keys = json!({"sysctl": {key: now.trim()}});
        ensure!(!stage.try_add(&Pod::new("abc"), &tuned(stage, keys)).success, "{key}: ADD succeeds");
    }
    Ok(())
}

fn flags(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    stage.add(&pod, &tuned(stage, json!({"promisc": true, "allmulti": true})))?;
    let eth0 = device(&pod, "eth0")?;
    ensure!(eth0.promiscuous, "it is not promiscuous");
    ensure!(eth0.all_multicast, "it does not take all multicast");
    Ok(())
}

fn mtu(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    stage.add(&pod, &tuned(stage, json!({"mtu": 1333})))?;
    ensure!(device(&pod, "eth0")?.mtu == 1333, "it is {}", device(&pod, "eth0")?.mtu);
    Ok(())
}

const MAC: &str = "02:11:22:33:44:55";

/// The capability is the bridge plugin's own; behind ptp, tuning has it.
fn with_mac(stage: &Stage) -> List {
    if stage.ours() || !stage.ptp() {
        return stage.list().capability("mac", json!(MAC));
    }
    let mut list = stage.list();
    let state = stage.bin().join("tuning-state");
    list.plugins.push(json!({"type": "tuning", "dataDir": state, "capabilities": {"mac": true}}));
    list.runtime.insert("mac".into(), json!(MAC));
    list
}

fn mac(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    let result = stage.add(&pod, &with_mac(stage))?;
    let own = device(&pod, "eth0")?.mac.map(|mac| heddle_netlink::DisplayMac(mac).to_string());
    ensure!(own.as_deref() == Some(MAC), "it has {own:?}");
    let told = result["interfaces"].as_array().unwrap().iter().find(|one| one["name"] == "eth0").unwrap();
    ensure!(told["mac"] == MAC, "it is told as {}", told["mac"]);
    Ok(())
}

fn mac_passes(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    let own = ips(&stage.add(&pod, &with_mac(stage))?)[0];
    let listener = pod.ns.run(|| TcpListener::bind((own, 0)))??;
    let at = listener.local_addr()?;
    let mut stream =
        stage.host.ns.run(|| TcpStream::connect_timeout(&at, crate::traffic::DEADLINE))?.context("TCP")?;
    drop(listener.accept()?);
    ensure!(stream.read(&mut [0])? == 0, "it says something");
    Ok(())
}

fn sysctl_changed(stage: &Stage) -> Result<()> {
    let (pod, list) = (Pod::new("abc"), tuned(stage, json!({"sysctl": {"net.core.somaxconn": "777"}})));
    let result = stage.add(&pod, &list)?;
    sysctl::write_in(&pod.ns, &[(Key::new(["net", "core", "somaxconn"]), "100")]).unwrap();
    ensure!(!stage.check(&pod, &list, &result).success, "CHECK succeeds");
    Ok(())
}
