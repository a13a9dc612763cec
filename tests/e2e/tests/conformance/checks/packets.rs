//! Whether packets pass, and which do not.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use heddle_netlink::addr::{self, Addr};
use heddle_netlink::sysctl::{self, Key};
use serde_json::json;

use crate::bench::Pod;
use crate::list::List;
use crate::stage::{HOST4, HOST6, Stage, device, ips};
use crate::subject::{Check, WIRED};
use crate::traffic::{Echo, tcp, udp};

pub const CHECKS: &[Check] = &[
    Check { section: "packets", parts: WIRED, name: "host to pod, both families", run: host_to_pod },
    Check { section: "packets", parts: WIRED, name: "pod to host, both families", run: pod_to_host },
    Check {
        section: "packets",
        parts: WIRED,
        name: "pod to pod with its own address, both families",
        run: pod_to_pod,
    },
    Check {
        section: "packets",
        parts: WIRED,
        name: "pod to a machine outside, and back, both families",
        run: pod_to_outside,
    },
    Check {
        section: "packets",
        parts: WIRED,
        name: "the pod reaches its gateway's address",
        run: pod_to_gateway,
    },
    Check {
        section: "packets",
        parts: WIRED,
        name: "a source address that is not the pod's reaches nobody",
        run: spoofed_source,
    },
    Check {
        section: "packets",
        parts: WIRED,
        name: "the host's side of the pod takes no router advertisements and no redirects",
        run: no_advertisements,
    },
    Check { section: "packets", parts: WIRED, name: "route_localnet stays off", run: no_route_localnet },
];

fn each_family(stage: &Stage, try_it: impl Fn(usize, IpAddr, &Pod) -> Result<()>) -> Result<()> {
    let (pod, list) = (Pod::new("abc"), stage.dual());
    let own = ips(&stage.add(&pod, &list)?);
    ensure!(own.len() == 2, "the pod has {} addresses", own.len());
    stage.await_addresses(&[&pod])?;
    own.into_iter().enumerate().try_for_each(|(family, ip)| {
        try_it(family, ip, &pod).with_context(|| if family == 0 { "IPv4" } else { "IPv6" })
    })
}

fn host_to_pod(stage: &Stage) -> Result<()> {
    each_family(stage, |_, ip, pod| {
        let echo = Echo::new(&pod.ns, ip);
        tcp(&stage.host.ns, echo.at)?;
        udp(&stage.host.ns, echo.at).map(drop).context("UDP")
    })
}

fn pod_to_host(stage: &Stage) -> Result<()> {
    let _outside = stage.outside();
    each_family(stage, |family, own, pod| {
        let echo = Echo::new(&stage.host.ns, [HOST4, HOST6][family].parse()?);
        let seen = tcp(&pod.ns, echo.at)?;
        ensure!(seen == own.to_string(), "the host sees {seen}");
        Ok(())
    })
}

fn pod_to_pod(stage: &Stage) -> Result<()> {
    let other = Pod::new("other");
    let theirs = ips(&stage.add(&other, &stage.dual())?);
    stage.await_addresses(&[&other])?;
    each_family(stage, |family, own, pod| {
        let echo = Echo::new(&other.ns, theirs[family]);
        let seen = tcp(&pod.ns, echo.at)?;
        ensure!(seen == own.to_string(), "the other sees {seen}");
        udp(&pod.ns, echo.at).map(drop).context("UDP")
    })
}

fn pod_to_outside(stage: &Stage) -> Result<()> {
    let outside = stage.outside();
    each_family(stage, |family, own, pod| {
        let echo = Echo::new(&outside.ns, [crate::stage::OUTSIDE4, crate::stage::OUTSIDE6][family].parse()?);
        let seen = tcp(&pod.ns, echo.at)?;
        ensure!(seen == own.to_string(), "the machine sees {seen}");
        let echo = Echo::new(&pod.ns, own);
        tcp(&outside.ns, echo.at).map(drop).context("from outside")
    })
}

fn pod_to_gateway(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    let result = stage.add(&pod, &stage.list())?;
    let gateway: IpAddr = result["ips"][0]["gateway"].as_str().context("no gateway is told")?.parse()?;
    let echo = Echo::new(&stage.host.ns, gateway);
    tcp(&pod.ns, echo.at).map(drop).map_err(Into::into)
}

fn spoofed_source(stage: &Stage) -> Result<()> {
    let list: List = stage.list();
    let (liar, victim) = (Pod::new("liar"), Pod::new("victim"));
    stage.add(&liar, &list)?;
    let target = ips(&stage.add(&victim, &list)?)[0];
    let receiver = victim.ns.run(|| std::net::UdpSocket::bind((target, 0)))??;
    let at = receiver.local_addr()?;
    let eth0 = device(&liar, "eth0")?.index;
    let lie: IpAddr = "10.1.0.77".parse()?;
    addr::add(&mut liar.socket(), &Addr::new(eth0, "10.1.0.77/32".parse()?)).unwrap();
    let send = |from: IpAddr, text: &[u8]| -> Result<()> {
        liar.ns
            .run(|| std::net::UdpSocket::bind((from, 0)).and_then(|socket| socket.send_to(text, at)))??;
        Ok(())
    };
    // The second says that the first would have been there by now.
    send(lie, b"lie")?;
    send("10.1.0.2".parse()?, b"truth")?;
    receiver.set_read_timeout(Some(crate::traffic::DEADLINE))?;
    let mut buffer = [0; 16];
    let (length, _) = receiver.recv_from(&mut buffer)?;
    ensure!(&buffer[..length] == b"truth", "it reaches another pod");
    Ok(())
}

fn no_advertisements(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    let result = stage.add(&pod, &stage.dual())?;
    for one in result["interfaces"].as_array().unwrap() {
        let name = one["name"].as_str().unwrap();
        if name == "eth0" {
            continue;
        }
        for key in ["accept_ra", "accept_redirects"] {
            let value = sysctl::read_in(&stage.host.ns, &Key::ipv6_conf(name, key)).unwrap();
            ensure!(
                value == "0",
                "{key} of {} is {value}",
                if name == "br0" { "the bridge" } else { "the host side" }
            );
        }
    }
    Ok(())
}

fn no_route_localnet(stage: &Stage) -> Result<()> {
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let list = stage.with_ports(stage.list(), ports);
    let pod = Pod::new("abc");
    let result = stage.add(&pod, &list)?;
    let mut names = vec!["all".to_owned()];
    names.extend(
        result["interfaces"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|one| one["name"] != "eth0")
            .map(|one| one["name"].as_str().unwrap().to_owned()),
    );
    for name in names {
        let value = sysctl::read_in(&stage.host.ns, &Key::ipv4_conf(&name, "route_localnet")).unwrap();
        ensure!(value == "0", "it is on for the host side of a pod with a host port");
    }
    Ok(())
}
