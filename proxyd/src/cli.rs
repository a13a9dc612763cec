//! The command line. Every option is also a key of the TOML file and a `HEDDLE_*` variable.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use heddle_control::Spec;
use heddle_daemon::{Common, Output};
use heddle_model::NodeName;
use heddle_model::resolve::{self, NodePorts, Rules};
use ipnetwork::IpNetwork;

use crate::ctl::Filter;
use crate::ebpf::{MapSizes, Remote, Xdp};

/// The service proxy and routing mesh: every service address reaches a living backend, from every node
///
/// Makes the services and endpoints that the sources name true in the kernel, and puts right what others
/// undo. Ends with SIGTERM, which leaves the datapath in place and working; `proxyd cleanup` removes it.
#[derive(Debug, Parser)]
#[command(name = "proxyd", version)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    /// The mechanism of the kernel that services are made with
    #[arg(long, default_value = "ebpf", global = true)]
    pub mode: Mode,
    /// Where services, endpoints and nodes are read from: manifests:DIR, kubernetes (in a pod), kubernetes:KUBECONFIG;
    /// may be given several times
    #[arg(long, value_name = "KIND[:WHERE]")]
    pub source: Vec<Spec>,
    /// Where the Kubernetes API server is, in place of the address in the kubeconfig or in the pod's environment; may be
    /// given several times (as in https://10.0.0.1:6443)
    #[arg(long, value_name = "URL")]
    pub kube_api: Vec<heddle_control::kubernetes::api::Url>,
    /// This node's name, as the sources spell it
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// The device where traffic from outside arrives [default: those that have this node's addresses]
    #[arg(long, value_name = "IFACE", value_parser = heddle_netlink::link::parse_name)]
    pub underlay: Option<String>,
    /// The cgroup2 directory whose processes are served [default: the whole hierarchy]
    #[arg(long, value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,
    /// The BPF file system that programs and maps are pinned in
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf", global = true)]
    pub bpf_root: PathBuf,
    /// How a backend on another node is reached by clients from outside
    #[arg(long, default_value = "tunnel")]
    pub remote: Remote,
    /// Pass on what only goes through this node before there is a socket buffer for it: by the driver of the underlay
    /// device (`native`), or by the kernel on any device (`generic`)
    #[arg(long, value_name = "MODE", default_value = "off")]
    pub xdp: Xdp,
    /// VXLAN network identifier of the overlay; its device is called `heddle.VNI`
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..0x100_0000))]
    pub vni: u32,
    /// UDP port of the overlay's VXLAN packets
    #[arg(long, default_value_t = 8472, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: u16,
    #[command(flatten)]
    pub services: ServiceRules,
    /// How long services must have been gone before they are removed, where most of them go at once: the source may
    /// be mistaken; 0: not at all
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub removal_delay: u32,
    /// Take away the rules that kube-proxy has left on this node, as soon as it does not run any more and services are
    /// served
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value_t = false, default_missing_value = "true",
        require_equals = true)]
    pub remove_kube_proxy_rules: bool,
    #[command(flatten)]
    pub sizes: MapSizes,
    /// Where Prometheus finds metrics: an address and port, or off
    #[arg(long, value_name = "ADDRESS:PORT|off", default_value = "127.0.0.1:10249")]
    pub metrics_address: crate::http::Listen,
    /// Where load balancers and the kubelet ask for /healthz and /livez: an address and port (0.0.0.0: every address
    /// of either family), or off
    #[arg(long, value_name = "ADDRESS:PORT|off", default_value = "0.0.0.0:10256")]
    pub healthz_address: crate::http::Listen,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What services may have.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ServiceRules {
    /// A range of addresses that is kept for services: no node has an address or pods there, and no service an
    /// external address; may be given several times
    #[arg(long, value_name = "CIDR", value_parser = resolve::range)]
    pub service_range: Vec<IpNetwork>,
    /// A range of addresses in which `externalIPs` of services are answered; may be given several times [default:
    /// none, as whoever may write a service could take over any address]
    #[arg(long, value_name = "CIDR", value_parser = resolve::range)]
    pub external_range: Vec<IpNetwork>,
    /// Where node ports answer: a range of addresses of nodes, or `primary` for the first address of each family;
    /// may be given several times [default: all addresses of each node]
    #[arg(long, value_name = "CIDR|primary")]
    pub nodeport_addresses: Vec<NodePorts>,
}

impl Cli {
    /// What the servers are started with.
    pub fn seeing(&self, node: &NodeName) -> crate::seeing::Options {
        crate::seeing::Options {
            node: node.clone(),
            rules: self.rules(),
            bpf_root: self.bpf_root.clone(),
            metrics: self.metrics_address,
            healthz: self.healthz_address,
        }
    }

    /// What the services of this node are resolved by.
    pub fn rules(&self) -> Rules {
        let ServiceRules { service_range, external_range, nodeport_addresses } = self.services.clone();
        Rules {
            vni: self.vni,
            service_ranges: service_range,
            external_ranges: external_range,
            node_ports: nodeport_addresses,
        }
    }
}

/// `--mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// eBPF programs at sockets and devices
    Ebpf,
    /// IPVS and nf_tables, for kernels without tcx (not built yet)
    Ipvs,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show services, backends, flows and counters, as the kernel has them
    Status {
        /// NAMESPACE/NAME of a service (or NAMESPACE/), or one of its addresses: only that one is shown
        service: Option<Filter>,
        #[command(flatten)]
        output: Output,
    },
    /// Tell what becomes of a connection from here: which service, which backends and why, or why none
    Explain {
        /// The client: an address, with its port or without, or `host` for a process of this node
        #[arg(value_name = "SRC")]
        from: crate::ctl::explain::Source,
        /// What it asks for: ADDRESS[:PORT][/tcp|udp|sctp]
        #[arg(value_name = "DST")]
        to: crate::ctl::explain::Destination,
        #[command(flatten)]
        output: Output,
    },
    /// Show flows, refusals and drops as they happen
    Monitor {
        #[command(flatten)]
        options: crate::ctl::monitor::Options,
        #[command(flatten)]
        output: Output,
    },
    /// Look at this node, and say what is missing and the way out (ends with 1 if something does not work)
    Doctor(Output),
    /// Show what kube-proxy has left on this node, or take it away
    KubeProxy {
        /// Take it away; refused while kube-proxy runs
        #[arg(long)]
        remove: bool,
        /// With --remove: also end the connections that still go through kube-proxy's address translation
        #[arg(long, requires = "remove")]
        end_connections: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Remove everything of proxyd from this node
    Cleanup(Output),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_known_to_flag_environment_and_file() {
        let scratch = tempfile::NamedTempFile::new().unwrap();
        let samples = [
            ("log-format", "json"),
            ("log-level", "debug"),
            ("run-dir", "/x"),
            ("mode", "ipvs"),
            ("source", "manifests:/x"),
            ("kube-api", "https://10.0.0.1:6443"),
            ("node-name", "n1"),
            ("underlay", "eth7"),
            ("cgroup-root", "/c"),
            ("bpf-root", "/b"),
            ("remote", "snat"),
            ("xdp", "native"),
            ("vni", "7"),
            ("port", "4789"),
            ("service-range", "10.96.0.0/12"),
            ("external-range", "203.0.113.0/24"),
            ("nodeport-addresses", "primary"),
            ("removal-delay", "0"),
            ("remove-kube-proxy-rules", "true"),
            ("max-frontends", "100"),
            ("max-backends", "1000"),
            ("max-flows", "1000000"),
            ("metrics-address", "[::1]:10249"),
            ("healthz-address", "off"),
        ];
        heddle_daemon::config::layers_agree::<Cli>(&samples, scratch.path()).unwrap();
    }

    #[test]
    fn the_documented_command_lines_parse() {
        for line in [
            "proxyd --mode ebpf --source manifests:/m --node-name n1",
            "proxyd --mode ipvs --source manifests:/m --node-name n1 --underlay eth0 --cgroup-root /c --bpf-root /b --remote snat --config /dev/null",
            "proxyd status",
            "proxyd status default/web",
            "proxyd explain 10.244.1.5 10.96.0.10:53/udp",
            "proxyd doctor -o json",
            "proxyd kube-proxy",
            "proxyd kube-proxy --remove --end-connections -o json",
            "proxyd --source manifests:/m --node-name n1 --remove-kube-proxy-rules",
            "proxyd monitor default/web --only drop --only reject --reason ttl --count 3 -o json",
            "proxyd explain host [fd00::1]:80 -o json",
            "proxyd status 10.96.0.1 -o json",
            "proxyd status -o json --bpf-root /b",
            "proxyd --bpf-root /b cleanup -o text",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap();
        }
        for bad in [
            "proxyd --mode iptables",
            "proxyd --underlay a/b",
            "proxyd --source etcd:x",
            "proxyd status -o xml",
            "proxyd status web",
            "proxyd kube-proxy --end-connections",
        ] {
            assert!(Cli::try_parse_from(bad.split(' ')).is_err(), "{bad}");
        }
    }
}
