//! The CNI IPAM plugin: gives an interface its addresses and takes them back, for any plugin that wires interfaces.
//!
//! The configuration and the files are those of the reference plugin `host-local`; see `docs/ipam.md`. No daemon,
//! no program is started, nothing of the network is changed.
#![forbid(unsafe_code)]

mod call;
mod conf;

use std::process::ExitCode;

use heddle_spec::program;

fn main() -> ExitCode {
    program::main("heddle-ipam", &about(), call::serve)
}

/// What a person sees who starts the program by hand.
fn about() -> String {
    let (version, supported) = (env!("CARGO_PKG_VERSION"), program::supported());
    format!(
        r#"heddle-ipam {version}: gives pods their addresses, from ranges of this node.

A CNI plugin calls it, by the `ipam` section of a network configuration; there is nothing to start. Install it
beside the plugin that calls it (usually /opt/cni/bin), and name it, for example for the plugin `bridge`:

  {{
    "cniVersion": "1.0.0", "name": "pods", "type": "bridge", "bridge": "cni0", "isGateway": true,
    "ipam": {{
      "type": "heddle-ipam",
      "ranges": [ [{{ "subnet": "10.244.1.0/24" }}], [{{ "subnet": "fd00:10:244:1::/64" }}] ],
      "routes": [ {{ "dst": "0.0.0.0/0" }}, {{ "dst": "::/0" }} ]
    }}
  }}

Keys and files are those of host-local, and either program can take over from the other. To see what it does:

  echo '{{ "cniVersion": "1.0.0", "name": "try", "ipam": {{ "type": "heddle-ipam", "subnet": "203.0.113.0/24",
    "dataDir": "/tmp/try" }} }}' | CNI_COMMAND=ADD CNI_CONTAINERID=a CNI_NETNS=/dev/null CNI_IFNAME=eth0 \
    CNI_PATH=. heddle-ipam

CNI versions: {supported}
The plugin `heddle` has all of this built in and needs no heddle-ipam."#
    )
}
