//! What a person sees who starts the program by hand.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use heddle_spec::program;

use crate::install::Ask;

/// For a runtime that asks for nothing.
pub const SHORT: &str = "heddle: a CNI plugin, to be called by a container runtime; try heddle --help";

/// Wrong usage.
const USAGE: u8 = 2;

const HELP: &str = r#"It gives a pod its interface, its addresses and its routes, and takes them back.
A container runtime calls it for every pod; there is nothing to start.

Install it where the runtime looks for plugins:

  heddle install --to /opt/cni/bin          # with heddle-ipam; it does the work of `loopback`, too, if called so
  heddle install --bpf-root /sys/fs/bpf     # mounts the BPF file system, which proxyd needs, if there is none
  heddle uninstall --from /opt/cni/bin      # when the last pod has gone

and a network where it looks for networks, as /etc/cni/net.d/10-heddle.conflist (vxland writes this file itself):

{
  "cniVersion": "1.0.0",
  "cniVersions": [ "1.0.0", "1.1.0" ],
  "name": "pods",
  "plugins": [
    {
      "type": "heddle",
      "mode": "ptp",
      "capabilities": { "portMappings": true, "bandwidth": true },
      "ipam": {
        "type": "host-local",
        "ranges": [ [{ "subnet": "10.244.1.0/24" }], [{ "subnet": "fd00:10:244:1::/64" }] ],
        "routes": [ { "dst": "0.0.0.0/0" }, { "dst": "::/0" } ]
      }
    }
  ]
}

mode          ptp (default: every pod for itself, routed), bridge, ipvlan; each takes the keys of the reference
              plugin of that name
any mode      mtu, dns, and the keys of the reference plugin tuning: sysctl, promisc, allmulti, txQLen
ptp, bridge   ipMasq
ipam.type     host-local or heddle-ipam: built in; any other but dhcp: that plugin is run, from CNI_PATH
capabilities  portMappings, bandwidth, ips, mac, ipRanges, dns

To try it without a runtime, as root:

  echo '{ "cniVersion": "1.0.0", "name": "try", "type": "heddle",
          "ipam": { "type": "host-local", "subnet": "10.99.0.0/24" } }' > net.json
  export CNI_CONTAINERID=try CNI_NETNS=/var/run/netns/try CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin
  ip netns add try
  CNI_COMMAND=ADD /opt/cni/bin/heddle < net.json
  ip netns exec try ping -c 1 10.99.0.1
  CNI_COMMAND=DEL /opt/cni/bin/heddle < net.json && ip netns del try

docs/cni.md says what of the specification is built, and what the error codes mean; docs/ptp.md, docs/bridge.md and
docs/ipvlan.md, what the modes do; docs/capabilities.md, what a runtime can ask for."#;

/// Answers somebody who is no runtime. Without arguments, on standard error: should a program have forgotten
/// CNI_COMMAND, it shall not take this for an answer.
pub fn by_hand(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<_> = arguments.map(|one| one.to_string_lossy().into_owned()).collect();
    let head =
        format!("heddle {}: a CNI plugin. CNI versions: {}", env!("CARGO_PKG_VERSION"), program::supported());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let Some(asked) = Ask::parse(&arguments) {
        // Nobody may be there to read it; so below.
        let say = |what: &str| drop(writeln!(io::stderr(), "heddle: {what}"));
        return match asked {
            Ok(ask) => match ask.act(say) {
                Ok(()) => ExitCode::SUCCESS,
                Err(why) => {
                    say(&why);
                    ExitCode::FAILURE
                }
            },
            Err(usage) => {
                say(&usage);
                ExitCode::from(USAGE)
            }
        };
    }
    match arguments.as_slice() {
        [] => drop(writeln!(io::stderr(), "{head}\n{HELP}")),
        ["--help" | "-h" | "help"] => drop(writeln!(io::stdout(), "{head}\n{HELP}")),
        ["--version" | "-V" | "version"] => drop(writeln!(io::stdout(), "{head}")),
        [first, ..] => {
            let shown: String = first.chars().take(64).collect();
            drop(writeln!(io::stderr(), "heddle: {shown:?} is not known; try heddle --help"));
            return ExitCode::from(USAGE);
        }
    }
    ExitCode::SUCCESS
}
