//! A host, its pods, and calls of the plugin.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use heddle_netlink::nft::Nft;
use heddle_netlink::route::Filter;
use heddle_netlink::{NetNs, Socket, addr, link, neigh, route};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A host: a network namespace and a directory for leases.
pub struct Host {
    pub ns: NetNs,
    dir: TempDir,
}

/// A pod: a network namespace. Its loopback is up, as a runtime leaves it.
pub struct Pod {
    pub ns: NetNs,
    pub id: String,
}

/// What the plugin answered.
#[derive(Debug)]
pub struct Answer {
    pub success: bool,
    pub json: Value,
    pub stdout: String,
    pub stderr: String,
}

impl Answer {
    /// The code of the error object; 0 for success.
    pub fn code(&self) -> u64 {
        if self.success { 0 } else { self.json["code"].as_u64().unwrap_or(u64::MAX) }
    }

    pub fn msg(&self) -> &str {
        self.json["msg"].as_str().unwrap_or_default()
    }

    /// The addresses of a result of 0.3.0 or newer, without prefix lengths.
    pub fn ips(&self) -> Vec<String> {
        let list = self.json["ips"].as_array().unwrap_or_else(|| panic!("no ips in {self:?}"));
        list.iter().map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned()).collect()
    }
}

impl Host {
    pub fn new() -> Self {
        let host = Self { ns: namespace(), dir: tempfile::tempdir().unwrap() };
        // As every host, it has devices before pods come.
        let uplink = link::VethEnd { name: "uplink", ..link::VethEnd::default() };
        let switch = link::VethEnd { name: "switch", ..link::VethEnd::default() };
        link::create_veth(&mut host.socket(), &uplink, &switch).unwrap();
        host
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("networks")
    }

    /// A host on which a pod has come and gone, so that what stays for good is there; the pod, its
    /// configuration, and what must be left when it has gone again.
    pub fn settled() -> (Self, Value, Pod, BTreeSet<String>) {
        let host = Self::new();
        let conf = host.conf();
        let pod = Pod::new("abc");
        host.add(&pod, &conf);
        host.del(&pod, &conf);
        let before = host.state();
        (host, conf, pod, before)
    }

    /// The configuration that the node's daemon writes, with leases in this host's directory.
    pub fn conf(&self) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "heddle", "type": "heddle", "mode": "ptp", "mtu": 1450,
            "ipam": {
                "type": "host-local", "dataDir": self.data_dir(),
                "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:10:244:1::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
            }
        })
    }

    /// The owner's configuration, word for word but for `type` and the directory.
    pub fn bridge_conf(&self) -> Value {
        json!({
            "cniVersion": "0.2.0", "name": "myplugin", "type": "heddle", "bridge": "br0", "isGateway": true,
            "ipam": {
                "type": "host-local", "subnet": "10.244.1.0/24", "gateway": "10.244.1.1",
                "routes": [{"dst": "1.1.1.1/32", "gw": "10.244.1.254"}], "dataDir": self.data_dir()
            }
        })
    }

    /// The variables of a call for `pod`.
    pub fn variables(pod: &Pod, command: &str) -> Vec<(String, String)> {
        [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", &pod.id),
            ("CNI_NETNS", &pod.path()),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/usr/lib/cni"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    pub fn call(&self, pod: &Pod, command: &str, conf: &Value) -> Answer {
        self.raw(&Self::variables(pod, command), conf.to_string().as_bytes())
    }

    /// ADD, which must succeed.
    pub fn add(&self, pod: &Pod, conf: &Value) -> Answer {
        let answer = self.call(pod, "ADD", conf);
        assert!(answer.success, "{answer:?}");
        answer
    }

    /// DEL, which must succeed and say nothing.
    pub fn del(&self, pod: &Pod, conf: &Value) {
        let answer = self.call(pod, "DEL", conf);
        assert!(answer.success && answer.stdout.is_empty(), "{answer:?}");
    }

    /// Runs the plugin on this host with exactly these variables and this input.
    pub fn raw(&self, variables: &[(String, String)], input: &[u8]) -> Answer {
        self.run(&mut Command::new(heddle_lab::bin("heddle")), variables, input)
    }

    /// Runs a plugin, or a program that runs it, on this host.
    pub fn run(&self, command: &mut Command, variables: &[(String, String)], input: &[u8]) -> Answer {
        command.env_clear().envs(variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = self.output(command, input);
        let stdout = String::from_utf8(output.stdout).unwrap();
        Answer {
            success: output.status.success(),
            json: serde_json::from_str(&stdout).unwrap_or(Value::Null),
            stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn output(&self, command: &mut Command, input: &[u8]) -> Output {
        let mut child =
            self.ns.run(|| command.spawn()).unwrap().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let mut stdin = child.stdin.take().unwrap();
        // A plugin that has seen enough closes its end.
        drop(stdin.write_all(input));
        drop(stdin);
        child.wait_with_output().unwrap()
    }

    pub fn socket(&self) -> Socket {
        Socket::open_in(&self.ns).unwrap()
    }

    /// All that a pod can leave behind: links, addresses, routes, permanent neighbours, rules and elements of their
    /// sets, leases.
    pub fn state(&self) -> BTreeSet<String> {
        let mut socket = self.socket();
        let mut state = BTreeSet::new();
        state.extend(link::list(&mut socket).unwrap().iter().map(|link| format!("link {}", link.name)));
        // Link-local addresses of bridges and the like come by themselves, a moment later.
        let addresses = addr::list(&mut socket, None).unwrap();
        state.extend(
            addresses
                .iter()
                .filter(|a| !is_link_local(a.ip.ip()))
                .map(|a| format!("addr {} {}", a.ip, a.link)),
        );
        let routes = route::list(&mut socket, &Filter::default()).unwrap();
        let lasting = routes.iter().filter(|r| !is_link_local(r.dst.ip()) && !r.dst.ip().is_multicast());
        state.extend(lasting.map(|route| format!("route {route:?}")));
        let known = neigh::list(&mut socket, None).unwrap();
        state.extend(known.iter().filter(|n| n.permanent).map(|n| format!("neigh {n:?}")));
        let mut nft = Nft::open_in(&self.ns).unwrap();
        for table in nft.tables().unwrap() {
            let rules = nft.rules(table.family, &table.name, None).unwrap();
            state.extend(
                rules.iter().map(|rule| format!("rule {} {} {}", rule.table, rule.chain, rule.handle)),
            );
        }
        for set in nft.sets().unwrap() {
            let elements = nft.elements(set.family, &set.table, &set.name).unwrap().unwrap_or_default();
            state.extend(elements.iter().map(|one| format!("element {} {} {one:x?}", set.table, set.name)));
        }
        state.extend(self.leases());
        state
    }

    /// The files of all networks, without those that only say where to go on.
    pub fn leases(&self) -> BTreeSet<String> {
        fn walk(dir: &Path, found: &mut BTreeSet<String>) {
            let Ok(entries) = fs::read_dir(dir) else { return };
            for entry in entries {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap();
                if path.is_dir() {
                    walk(&path, found);
                } else if !name.starts_with("last_reserved_ip.") && !["lock", "boot", "turns"].contains(&name)
                {
                    found.insert(format!("lease {}", path.display()));
                }
            }
        }
        let mut found = BTreeSet::new();
        walk(&self.data_dir(), &mut found);
        found
    }
}

impl Pod {
    pub fn new(id: &str) -> Self {
        Self { ns: namespace(), id: id.to_owned() }
    }

    /// A path that leads every process to the namespace.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.ns.as_raw_fd())
    }

    pub fn socket(&self) -> Socket {
        Socket::open_in(&self.ns).unwrap()
    }
}

fn namespace() -> NetNs {
    let ns = NetNs::create().unwrap();
    let mut socket = Socket::open_in(&ns).unwrap();
    let lo = link::by_name(&mut socket, "lo").unwrap().unwrap();
    link::set_up(&mut socket, lo.index).unwrap();
    ns
}

fn is_link_local(ip: std::net::IpAddr) -> bool {
    matches!(ip, std::net::IpAddr::V6(ip) if ip.is_unicast_link_local())
}
