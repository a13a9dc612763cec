//! What kube-proxy would tell the kernel, for the same services: its rules in the shape of its nftables mode (a map
//! from address, protocol and port to the chain of a service; in it a random choice of the chain of an endpoint)
//! and of its iptables mode (a list of one rule a service, searched from the top).

use std::fmt::Write;
use std::net::Ipv4Addr;

use super::fleet::{Fleet, Served};

/// Packets with this mark are masqueraded, as kube-proxy does it.
const MARK: &str = "0x4000";

/// For `nft -f -`.
pub fn nftables(fleet: &Fleet, pods: &str) -> String {
    let mut text = String::from("add table ip kube-proxy\ndelete table ip kube-proxy\n");
    text.push_str("table ip kube-proxy {\n");
    let mut ips = String::new();
    let mut ports = String::new();
    let mut cluster = String::new();
    for service in &fleet.services {
        let name = chain(service.number);
        let _ = write!(ips, "{} . tcp . 80 : goto {name}, ", service.ip);
        let _ = write!(cluster, "{}, ", service.ip);
        if let Some(port) = service.node_port {
            let _ = write!(ports, "tcp . {port} : goto external-{name}, ");
            let _ = writeln!(text, "chain external-{name} {{ jump mark-for-masquerade\n goto {name}\n }}");
        }
        text.push_str(&nft_service(service, pods));
    }
    let _ = write!(
        text,
        "chain mark-for-masquerade {{ mark set mark or {MARK}; }}
map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; elements = {{ {ips} }} }}
map service-nodeports {{ type inet_proto . inet_service : verdict; {} }}
set cluster-ips {{ type ipv4_addr; elements = {{ {cluster} }} }}
chain services {{
  ip daddr . meta l4proto . th dport vmap @service-ips
  fib daddr type local meta l4proto . th dport vmap @service-nodeports
}}
chain cluster-ips-check {{ ip daddr @cluster-ips reject; }}
chain masquerading {{
  mark and {MARK} == 0 return
  mark set mark xor {MARK}
  masquerade fully-random
}}
chain filter-forward {{ type filter hook forward priority -110; ct state new jump cluster-ips-check; }}
chain filter-output {{ type filter hook output priority -110; ct state new jump cluster-ips-check; }}
chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
chain nat-output {{ type nat hook output priority -100; jump services; }}
chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}
}}
",
        if ports.is_empty() { String::new() } else { format!("elements = {{ {ports} }}") },
    );
    text
}

/// The chains of one service; in a table block.
fn nft_service(service: &Served, pods: &str) -> String {
    let (name, ip) = (chain(service.number), service.ip);
    let mut text = String::new();
    let mut choice = String::new();
    for (at, backend) in service.backends.iter().enumerate() {
        let _ = writeln!(
            text,
            "chain endpoint-{name}-{at} {{ ip saddr {backend} jump mark-for-masquerade\n meta l4proto tcp dnat to {backend}:{}\n }}",
            service.target
        );
        let _ = write!(choice, "{at} : goto endpoint-{name}-{at}, ");
    }
    let _ = writeln!(
        text,
        "chain {name} {{ ip daddr {ip} tcp dport 80 ip saddr != {pods} jump mark-for-masquerade\n numgen random mod {} vmap {{ {choice} }}\n }}",
        service.backends.len()
    );
    text
}

/// For `nft -f -`: one endpoint of one service is replaced.
pub fn nftables_change(service: &Served, at: usize, backend: Ipv4Addr) -> String {
    let chain = format!("endpoint-{}-{at}", chain(service.number));
    format!(
        "flush chain ip kube-proxy {chain}\n\
         add rule ip kube-proxy {chain} ip saddr {backend} jump mark-for-masquerade\n\
         add rule ip kube-proxy {chain} meta l4proto tcp dnat to {backend}:{}\n",
        service.target
    )
}

/// For `iptables-restore`.
pub fn iptables(fleet: &Fleet, pods: &str) -> String {
    let mut text = String::from(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n",
    );
    let mut rules = format!(
        "-A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n-A POSTROUTING -j KUBE-POSTROUTING\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark {MARK}\n\
         -A KUBE-POSTROUTING -m mark ! --mark {MARK}/{MARK} -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark {MARK}\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n"
    );
    for service in &fleet.services {
        let name = chain(service.number).to_uppercase();
        let ip = service.ip;
        let _ = writeln!(text, ":KUBE-SVC-{name} - [0:0]");
        let _ = writeln!(rules, "-A KUBE-SERVICES -d {ip}/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-{name}");
        let _ = writeln!(
            rules,
            "-A KUBE-SVC-{name} ! -s {pods} -d {ip}/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ"
        );
        if let Some(port) = service.node_port {
            let _ = writeln!(text, ":KUBE-EXT-{name} - [0:0]");
            let _ = writeln!(rules, "-A KUBE-NODEPORTS -p tcp -m tcp --dport {port} -j KUBE-EXT-{name}");
            let _ = writeln!(
                rules,
                "-A KUBE-EXT-{name} -j KUBE-MARK-MASQ\n-A KUBE-EXT-{name} -j KUBE-SVC-{name}"
            );
        }
        let count = service.backends.len();
        for (at, backend) in service.backends.iter().enumerate() {
            let _ = writeln!(text, ":KUBE-SEP-{name}-{at} - [0:0]");
            let chance = match count - at {
                1 => String::new(),
                left => format!("-m statistic --mode random --probability {:.10} ", 1.0 / left as f64),
            };
            let _ = writeln!(rules, "-A KUBE-SVC-{name} {chance}-j KUBE-SEP-{name}-{at}");
            let _ = writeln!(rules, "-A KUBE-SEP-{name}-{at} -s {backend}/32 -j KUBE-MARK-MASQ");
            let _ = writeln!(
                rules,
                "-A KUBE-SEP-{name}-{at} -p tcp -m tcp -j DNAT --to-destination {backend}:{}",
                service.target
            );
        }
    }
    // The last rule, as it is there.
    rules.push_str("-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n");
    format!("{text}{rules}COMMIT\n")
}

/// For `iptables-restore --noflush`: one endpoint of one service is replaced.
pub fn iptables_change(service: &Served, at: usize, backend: Ipv4Addr) -> String {
    let chain = format!("KUBE-SEP-{}-{at}", chain(service.number).to_uppercase());
    format!(
        "*nat\n:{chain} - [0:0]\n-A {chain} -s {backend}/32 -j KUBE-MARK-MASQ\n\
         -A {chain} -p tcp -m tcp -j DNAT --to-destination {backend}:{}\nCOMMIT\n",
        service.target
    )
}

/// Like the hash that kube-proxy ends its chains' names with.
fn chain(number: u32) -> String {
    format!("svc{number:08x}")
}
