//! The command line. Every option is also a key of the TOML file and a `HEDDLE_*` variable.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use heddle_control::Spec;
use heddle_daemon::{Common, Output};
use ipnetwork::IpNetwork;

use crate::edge::checksums::Choice;

/// The VXLAN overlay agent: every node reaches every other node's pods
///
/// Makes the VXLAN device, and a route, a neighbour and an FDB entry for every other node, out of what the
/// sources say; puts them right when others undo them; writes this node's CNI configuration when pods can be
/// made. Ends with SIGTERM, which leaves everything in place; `vxland cleanup` removes it.
#[derive(Debug, Parser)]
#[command(name = "vxland", version, args_conflicts_with_subcommands = false)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    /// Where nodes are read from: manifests:DIR, kubernetes (in a pod), kubernetes:KUBECONFIG;
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
    /// The device that carries the packets between nodes [default: the one that has this node's address]
    #[arg(long, value_name = "IFACE", global = true, value_parser = heddle_netlink::link::parse_name)]
    pub underlay: Option<String>,
    /// VXLAN network identifier, the same on all nodes; the device is called heddle.<VNI>
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..0x100_0000), global = true)]
    pub vni: u32,
    /// UDP port of VXLAN packets, the same on all nodes
    #[arg(long, default_value_t = 8472, value_parser = clap::value_parser!(u16).range(1..), global = true)]
    pub port: u16,
    /// A range of addresses that is kept for services: no node has pods there; may be given several times
    #[arg(long, value_name = "CIDR", value_parser = heddle_model::resolve::range)]
    pub service_range: Vec<IpNetwork>,
    /// MTU of the overlay and of pods [default: what the underlay carries, less 50 bytes (IPv4) or 70 (IPv6)]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(68..=65535))]
    pub mtu: Option<u32>,
    /// Whether pods' packets that leave the cluster leave with this node's address as source
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub masquerade: bool,
    /// A range outside the cluster that sees pods' own addresses all the same; may be given several times
    #[arg(long, value_name = "CIDR", value_parser = heddle_model::resolve::range)]
    pub no_masquerade: Vec<IpNetwork>,
    /// Packets between pods of nodes on one link go straight there, and not through the tunnel; the same on all nodes
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value_t = false, default_missing_value = "true",
        require_equals = true)]
    pub direct_routing: bool,
    /// How long nodes must have been gone before they are forgotten, where most of them go at once: the source may be
    /// mistaken; 0: not at all
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub removal_delay: u32,
    /// Whether the checksums of what goes into the tunnel are left to the device that sends it
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    pub checksum_offload: Choice,
    /// Where the kubelet asks for /healthz and /livez: an address and port, or off
    #[arg(long, value_name = "ADDRESS:PORT|off", default_value = "127.0.0.1:10247")]
    pub healthz_address: heddle_daemon::http::Listen,
    /// Where this node's CNI configuration is written
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d", global = true)]
    pub cni_conf_dir: PathBuf,
    /// What the network of the pods is called in it: their leases are kept under this name. That of the list that a node
    /// had before (flannel: cbr0) keeps addresses that are in use from being given away again
    #[arg(long, value_name = "NAME", default_value = "heddle", value_parser = network_name)]
    pub network: String,
    /// Take this node over from flannel: its VXLAN device makes room for ours, and its rules and CNI list go. Refused
    /// while flannel runs
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value_t = false, default_missing_value = "true",
        require_equals = true)]
    pub replace_flannel: bool,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// A name as the CNI specification wants it ("Network configuration format").
fn network_name(text: &str) -> Result<String, &'static str> {
    let mut bytes = text.bytes();
    let good = bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if good {
        Ok(text.to_owned())
    } else {
        Err("it begins with a letter or digit, and goes on with those, _, . and -")
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what the kernel holds and what is wrong with it; exit code 1 if something is
    Status(Output),
    /// Remove everything of vxland from this node
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
            ("source", "manifests:/x"),
            ("kube-api", "https://10.0.0.1:6443"),
            ("node-name", "n1"),
            ("underlay", "eth7"),
            ("vni", "7"),
            ("port", "4789"),
            ("service-range", "10.96.0.0/12"),
            ("mtu", "1400"),
            ("masquerade", "false"),
            ("no-masquerade", "10.0.0.0/8"),
            ("checksum-offload", "off"),
            ("direct-routing", "true"),
            ("removal-delay", "0"),
            ("healthz-address", "off"),
            ("cni-conf-dir", "/y"),
            ("network", "cbr0"),
            ("replace-flannel", "true"),
        ];
        heddle_daemon::config::layers_agree::<Cli>(&samples, scratch.path()).unwrap();
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in
            [["--vni", "0"], ["--vni", "16777216"], ["--port", "0"], ["--mtu", "67"], ["--underlay", "a/b"]]
        {
            assert!(Cli::try_parse_from(["vxland"].iter().chain(&bad)).is_err(), "{bad:?}");
        }
    }
}
