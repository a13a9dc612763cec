//! The result of ADD (section 5), in the shape of each version.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::add::mac;
use crate::bench::Pod;
use crate::stage::{Stage, said};
use crate::subject::{BRIDGE, Check, IPAM, Part, WIRED};

const WITH_IPAM: &[Part] = &[Part::Ptp, Part::Bridge, Part::Ipam];

pub const CHECKS: &[Check] = &[
    Check {
        section: "5 Success",
        parts: WITH_IPAM,
        name: "the shape of 0.1.0: ip4, routes in it",
        run: shape_0_1_0,
    },
    Check {
        section: "5 Success",
        parts: WITH_IPAM,
        name: "the shape of 0.2.0: ip4 and ip6",
        run: shape_0_2_0,
    },
    Check {
        section: "5 Success",
        parts: WITH_IPAM,
        name: "the shape of 0.3.0: a list, with version",
        run: shape_0_3_0,
    },
    Check { section: "5 Success", parts: WITH_IPAM, name: "the shape of 0.3.1", run: shape_0_3_1 },
    Check { section: "5 Success", parts: WITH_IPAM, name: "the shape of 0.4.0", run: shape_0_4_0 },
    Check {
        section: "5 Success",
        parts: WITH_IPAM,
        name: "the shape of 1.0.0: no version in ips",
        run: shape_1_0_0,
    },
    Check { section: "5 Success", parts: WITH_IPAM, name: "the shape of 1.1.0", run: shape_1_1_0 },
    Check {
        section: "5 Success",
        parts: WIRED,
        name: "1.1.0: the result tells the MTU of the interfaces",
        run: mtu_is_told,
    },
    Check {
        section: "5 Success",
        parts: WIRED,
        name: "1.1.0: mtu, priority, table and scope of a route are told and made",
        run: route_attributes,
    },
    Check {
        section: "5 Success",
        parts: WIRED,
        name: "the pod's interface has its path as sandbox, the host's has none",
        run: sandboxes,
    },
    Check {
        section: "5 Success",
        parts: WIRED,
        name: "the Ethernet addresses that are told are those of the devices",
        run: ethernet_addresses,
    },
    Check {
        section: "5 Success",
        parts: WIRED,
        name: "ips say which interface they are of: the pod's",
        run: index_of_the_interface,
    },
    Check {
        section: "5 Success",
        parts: BRIDGE,
        name: "the bridge is among the interfaces",
        run: bridge_is_told,
    },
    Check {
        section: "5 Success",
        parts: WIRED,
        name: "dns of the configuration is in the result",
        run: dns_is_told,
    },
    Check {
        section: "5 Success",
        parts: WITH_IPAM,
        name: "resolvConf: what the file says is the result's dns",
        run: resolv_conf,
    },
    Check {
        section: "5 Success",
        parts: IPAM,
        name: "an IPAM plugin tells addresses, gateways and routes, and no interfaces",
        run: ipam_result,
    },
];

/// ADD in this version; the result.
fn result(stage: &Stage, version: &str) -> Result<Value> {
    let result = stage.add(&Pod::new("abc"), &stage.list().version(version))?;
    ensure!(result["cniVersion"] == version, "cniVersion is {}", result["cniVersion"]);
    Ok(result)
}

fn old_shape(stage: &Stage, version: &str) -> Result<()> {
    let result = result(stage, version)?;
    let wanted = if stage.ptp() && stage.ours() { "10.1.0.2/32" } else { "10.1.0.2/24" };
    ensure!(result["ip4"]["ip"] == wanted, "ip4.ip is {}", result["ip4"]["ip"]);
    ensure!(result["ip4"]["gateway"] == "10.1.0.1", "ip4.gateway is {}", result["ip4"]["gateway"]);
    ensure!(result["ip4"]["routes"][0]["dst"] == "0.0.0.0/0", "ip4.routes is {}", result["ip4"]["routes"]);
    for key in ["ips", "interfaces", "routes"] {
        ensure!(result.get(key).is_none(), "there is {key}");
    }
    Ok(())
}

fn shape_0_1_0(stage: &Stage) -> Result<()> {
    old_shape(stage, "0.1.0")
}

fn shape_0_2_0(stage: &Stage) -> Result<()> {
    old_shape(stage, "0.2.0")?;
    let result = stage.add(&Pod::new("dual"), &stage.dual().version("0.2.0"))?;
    ensure!(
        result["ip6"]["ip"].as_str().is_some_and(|ip| ip.starts_with("fd01::2/")),
        "ip6 is {}",
        result["ip6"]
    );
    Ok(())
}

fn new_shape(stage: &Stage, version: &str) -> Result<()> {
    let result = result(stage, version)?;
    let wanted = if stage.ptp() && stage.ours() { "10.1.0.2/32" } else { "10.1.0.2/24" };
    let ip = &result["ips"][0];
    ensure!(ip["address"] == wanted, "the address is {}", ip["address"]);
    ensure!(ip["gateway"] == "10.1.0.1", "the gateway is {}", ip["gateway"]);
    ensure!(result["routes"] == json!([{"dst": "0.0.0.0/0"}]), "the routes are {}", result["routes"]);
    let says = ip.get("version");
    if matches!(version, "0.3.0" | "0.3.1" | "0.4.0") {
        ensure!(says == Some(&json!("4")), "ips[0].version is {says:?}");
    } else {
        ensure!(says.is_none(), "there is a version in ips");
    }
    ensure!(result.get("ip4").is_none(), "there is ip4");
    Ok(())
}

fn shape_0_3_0(stage: &Stage) -> Result<()> {
    new_shape(stage, "0.3.0")
}

fn shape_0_3_1(stage: &Stage) -> Result<()> {
    new_shape(stage, "0.3.1")
}

fn shape_0_4_0(stage: &Stage) -> Result<()> {
    new_shape(stage, "0.4.0")
}

fn shape_1_0_0(stage: &Stage) -> Result<()> {
    new_shape(stage, "1.0.0")
}

fn shape_1_1_0(stage: &Stage) -> Result<()> {
    new_shape(stage, "1.1.0")
}

fn mtu_is_told(stage: &Stage) -> Result<()> {
    let list = stage.list().version("1.1.0").with("mtu", json!(1400));
    let result = stage.add(&Pod::new("abc"), &list)?;
    for one in result["interfaces"].as_array().unwrap() {
        ensure!(one["mtu"] == 1400 || one["name"] == "br0", "{} has {}", one["name"], one["mtu"]);
    }
    Ok(())
}

fn route_attributes(stage: &Stage) -> Result<()> {
    use heddle_netlink::route::{self, Filter};
    let pod = Pod::new("abc");
    let wanted = json!({"dst": "198.51.100.0/24", "mtu": 1300, "priority": 77, "table": 100});
    let routes = json!([{"dst": "0.0.0.0/0"}, wanted]);
    let result = stage.add(&pod, &stage.list().version("1.1.0").ipam("routes", routes))?;
    let told = &result["routes"][1];
    for key in ["dst", "mtu", "priority", "table"] {
        ensure!(told[key] == wanted[key], "{key} is told as {}", told[key]);
    }
    let made = route::list(&mut pod.socket(), &Filter { table: Some(100), ..Filter::default() }).unwrap();
    let fits = made.iter().any(|route| route.mtu == Some(1300) && route.priority == Some(77));
    ensure!(fits, "it is not made so");
    Ok(())
}

fn sandboxes(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    let result = stage.add(&pod, &stage.list())?;
    for one in result["interfaces"].as_array().unwrap() {
        let inside = one["sandbox"] == json!(pod.path());
        ensure!(inside == (one["name"] == "eth0"), "the sandbox of {} is {}", one["name"], one["sandbox"]);
    }
    Ok(())
}

fn ethernet_addresses(stage: &Stage) -> Result<()> {
    let pod = Pod::new("abc");
    let result = stage.add(&pod, &stage.list())?;
    for one in result["interfaces"].as_array().unwrap() {
        let name = one["name"].as_str().unwrap();
        let socket = if name == "eth0" { &mut pod.socket() } else { &mut stage.host.socket() };
        let has = mac(socket, name);
        let told = one["mac"].as_str().map(str::to_lowercase);
        ensure!(has.is_some() && told == has, "that of {name} is told as {told:?}");
    }
    Ok(())
}

fn index_of_the_interface(stage: &Stage) -> Result<()> {
    let result = stage.add(&Pod::new("abc"), &stage.list())?;
    let index = result["ips"][0]["interface"].as_u64();
    let named = index.map(|index| &result["interfaces"][usize::try_from(index).unwrap()]["name"]);
    ensure!(named == Some(&json!("eth0")), "of {named:?}");
    Ok(())
}

fn bridge_is_told(stage: &Stage) -> Result<()> {
    let result = stage.add(&Pod::new("abc"), &stage.list())?;
    let names: Vec<_> = result["interfaces"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
    ensure!(names.len() == 3 && names[0] == "br0", "they are {names:?}");
    Ok(())
}

fn dns() -> Value {
    json!({"nameservers": ["10.96.0.10"], "domain": "example.org", "search": ["a.example.org"], "options": ["ndots:5"]})
}

fn dns_is_told(stage: &Stage) -> Result<()> {
    let result = stage.add(&Pod::new("abc"), &stage.list().with("dns", dns()))?;
    ensure!(result["dns"] == dns(), "it is {}", result["dns"]);
    Ok(())
}

fn resolv_conf(stage: &Stage) -> Result<()> {
    let file = stage.bin().join("resolv.conf");
    std::fs::write(
        &file,
        "# comment\nnameserver 10.96.0.10\ndomain example.org\nsearch a.example.org\noptions ndots:5\n",
    )
    .unwrap();
    let answer = stage.try_add(&Pod::new("abc"), &stage.list().ipam("resolvConf", json!(file)));
    ensure!(answer.success, "ADD fails: {}", said(&answer));
    ensure!(answer.json["dns"] == dns(), "it is {}", answer.json["dns"]);
    Ok(())
}

fn ipam_result(stage: &Stage) -> Result<()> {
    let result = stage.add(&Pod::new("abc"), &stage.dual())?;
    ensure!(result.get("interfaces").is_none(), "it tells interfaces");
    let told: Vec<_> =
        result["ips"].as_array().unwrap().iter().map(|ip| (&ip["address"], &ip["gateway"])).collect();
    let wanted = [("10.1.0.2/24", "10.1.0.1"), ("fd01::2/64", "fd01::1")].map(|(a, g)| (json!(a), json!(g)));
    let wanted: Vec<_> = wanted.iter().map(|(a, g)| (a, g)).collect();
    ensure!(told == wanted, "it tells {told:?}");
    ensure!(
        result["routes"] == json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]),
        "routes: {}",
        result["routes"]
    );
    Ok(())
}
