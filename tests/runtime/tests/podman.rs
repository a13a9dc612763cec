//! podman calls the plugin: a caller that is no Kubernetes, with networks that users write by hand.

use std::net::IpAddr;

use heddle_lab::{Ask, Lab, Place, Snapshot, eventually, skip};
use heddle_runtime::{Podman, Result, image};
use serde_json::{Value, json};

/// Where the servers listen.
const PORT: &str = "8080";

/// A network without a bridge: what a cluster's node has.
fn routed() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "routed",
        "plugins": [{
            "type": "heddle",
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": "10.244.1.0/24" }], [{ "subnet": "fd00:10:244:1::/64" }]],
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
            },
            "capabilities": { "portMappings": true, "ips": true, "mac": true },
        }],
    })
}

/// What podman writes for its own default network (`87-podman-bridge.conflist`), with `heddle` in place of
/// `bridge`, and without the plugins behind it.
fn bridged() -> Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "bridged",
        "plugins": [{
            "type": "heddle",
            "mode": "bridge",
            "bridge": "cni-podman0",
            "isGateway": true,
            "ipMasq": true,
            "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "routes": [{ "dst": "0.0.0.0/0" }],
                "ranges": [[{ "subnet": "10.88.0.0/16", "gateway": "10.88.0.1" }]],
            },
            "capabilities": { "portMappings": true, "ips": true, "mac": true },
        }],
    })
}

struct Bench {
    podman: Podman,
    lab: Lab,
}

impl Bench {
    /// `None`: this machine cannot; the test has been shown as skipped.
    fn start() -> Result<Option<Self>> {
        if let Some(why) = Podman::missing() {
            skip(&why);
            return Ok(None);
        }
        let lab = Lab::builder().nodes(1).threaded(false).build()?;
        let podman = Podman::prepare(&lab, &[routed(), bridged()])?;
        Ok(Some(Self { podman, lab }))
    }

    /// A container whose server answers. Gives its address.
    fn run(&self, name: &str, network: &str, options: &[&str]) -> Result<IpAddr> {
        let fixed = ["run", "--detach", "--name", name, "--network", network];
        let args: Vec<_> = fixed.iter().chain(options).chain(&[image::IMAGE, PORT, name]).copied().collect();
        self.podman.run(&args)?;
        self.address(name, network)
    }

    /// The address that podman tells, once its server answers.
    fn address(&self, name: &str, network: &str) -> Result<IpAddr> {
        let format = format!("{{{{(index .NetworkSettings.Networks {network:?}).IPAddress}}}}");
        let ip = self.podman.run(&["inspect", name, "--format", &format])?;
        let ip: IpAddr = ip.trim().parse().unwrap_or_else(|e| panic!("{name} has the address {ip:?}: {e}"));
        eventually("a container's server answering", heddle_lab::READY_LIMIT, || {
            Ok(Ask::new((ip, 8080)).tcp(self.lab.node(1)).is_ok_and(|reply| reply.server == name))
        })?;
        Ok(ip)
    }

    /// A place in the network of a container.
    fn inside(&self, name: &str) -> Result<Place> {
        let pid = self.podman.run(&["inspect", name, "--format", "{{.State.Pid}}"])?;
        Ok(self.lab.node(1).in_netns(name, format!("/proc/{}/ns/net", pid.trim()).as_ref())?)
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.podman.run(&["rm", "--force", "--time", "0", name]).map(drop)
    }
}

/// The server at `to` is that of `name`.
fn answered(place: &Place, to: (IpAddr, u16), name: &str) -> Result<()> {
    let reply = Ask::new(to).tcp(place)?;
    assert_eq!(reply.server, name, "{to:?} from {}", place.name());
    Ok(())
}

#[test]
fn podman_runs_containers_in_routed_and_bridged_networks() -> Result<()> {
    let Some(bench) = Bench::start()? else { return Ok(()) };
    let node = bench.lab.node(1);
    // What stays for good is there when containers have come and gone.
    for network in ["routed", "bridged"] {
        bench.run("first", network, &["--publish", "30000:8080"])?;
        bench.remove("first")?;
    }
    // The kernel looks whether the bridge's own address is taken, and tells nobody when it has.
    let tentative = || Ok(node.run("ip -6 addr show tentative")?.trim().is_empty());
    eventually("the bridge's address settled", heddle_lab::READY_LIMIT, tentative)?;
    let before = Snapshot::of(&bench.lab)?;

    let web = bench.run("web", "routed", &["--publish", "30080:8080"])?;
    let other =
        bench.run("other", "routed", &["--ip", "10.244.1.77", "--mac-address", "02:00:00:00:00:77"])?;
    assert_eq!(other.to_string(), "10.244.1.77");
    let macs = bench.inside("other")?.run("ip -o link show eth0")?;
    assert!(macs.contains("link/ether 02:00:00:00:00:77 "), "{macs}");
    let wide = bench.run("wide", "bridged", &["--publish", "30081:8080/tcp"])?;
    let far = bench.run("far", "bridged", &[])?;
    for (from, to) in
        [("web", (other, "other")), ("other", (web, "web")), ("wide", (far, "far")), ("web", (wide, "wide"))]
    {
        answered(&bench.inside(from)?, (to.0, 8080), to.1)?;
    }
    // Behind the node's address, a container of a network with ipMasq reaches the world; there is one server in it.
    let outside = bench.lab.client().serve("world", 9000)?;
    let reply = Ask::new((bench.lab.client().ip(true), 9000)).tcp(&bench.inside("wide")?)?;
    assert_eq!(reply.client.ip(), node.ip4());
    drop(outside);

    for (port, name) in [(30080, "web"), (30081, "wide")] {
        for place in [bench.lab.client().place(), node.place(), &bench.inside("far")?] {
            answered(place, (node.ip4(), port), name)?;
        }
    }

    // A restart is DEL and ADD again.
    bench.podman.run(&["restart", "--time", "0", "web"])?;
    let web = bench.address("web", "routed")?;
    answered(&bench.inside("other")?, (web, 8080), "web")?;
    answered(bench.lab.client().place(), (node.ip4(), 30080), "web")?;

    for name in ["web", "other", "wide", "far"] {
        bench.remove(name)?;
    }
    // podman's monitors end after it has answered. podman's own storage does not count; what is gone (a monitor of the
    // first containers, a mount of others on this machine) is no leak.
    let vanished = |line: &str| {
        line.starts_with("- ") && [" mounts: ", " tasks: "].iter().any(|kind| line.contains(kind))
    };
    eventually("a node as it was before its containers", heddle_lab::READY_LIMIT, || {
        let mut left = before.changes(&Snapshot::of(&bench.lab)?);
        left.retain(|line| !line.contains(" /var/lib/containers/") && !line.contains("client mounts: "));
        left.retain(|line| !vanished(line));
        if left.is_empty() { Ok(true) } else { Err(heddle_lab::Error::Oracle(left.join("\n    "))) }
    })?;
    Ok(())
}
