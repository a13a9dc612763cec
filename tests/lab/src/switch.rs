//! The underlay: one bridge in a namespace of its own, with a port for every node and client.
//!
//! It lets through what has the IP addresses of nodes and clients on both ends, and drops and counts every
//! other packet: one that left a node with a pod's or a service's address is a fault of the overlay. With
//! default routes it is also their router, which knows no other network.

use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::driver::take_xdp;
use crate::error::{Error, Result};
use crate::owner::poll_until;
use crate::place::Place;
use crate::process::indent;
use crate::tools::{ip, nft, sysctls};

/// The switch's rules. Everything is decided in `judge`; `loss` holds what a test asked for.
const RULES: &str = "
table bridge lab {
    set hosts4 { type ipv4_addr; flags interval; }
    set hosts6 { type ipv6_addr; flags interval; }
    set foreign4 { type ipv4_addr . ipv4_addr; flags dynamic; size 256; }
    set foreign6 { type ipv6_addr . ipv6_addr; flags dynamic; size 256; }
    counter foreign { }
    counter lost { }
    chain loss { }
    chain judge {
        jump loss
        ether type arp accept
        ip saddr @hosts4 ip daddr @hosts4 accept
        ip6 saddr @hosts6 ip6 daddr @hosts6 accept
        ip6 saddr @hosts6 ip6 daddr { fe80::/10, ff02::/16 } accept
        ip6 saddr { ::, fe80::/10 } ip6 daddr { fe80::/10, ff02::/16 } accept
        ip6 saddr fe80::/10 ip6 daddr @hosts6 accept
        ip protocol igmp drop
        update @foreign4 { ip saddr . ip daddr }
        update @foreign6 { ip6 saddr . ip6 daddr }
        ether type { ip, ip6 } counter name foreign drop
        drop
    }
    chain forward { type filter hook forward priority 0; policy accept; jump judge; }
    chain input { type filter hook input priority 0; policy accept; jump judge; }
}
";

/// The underlay between nodes and clients.
#[derive(Debug)]
pub struct Switch {
    place: Place,
}

impl Switch {
    /// The address of the switch as router, where nodes have a default route.
    pub const GATEWAY4: &str = "192.168.77.254";
    /// The same for IPv6.
    pub const GATEWAY6: &str = "fd77::fffe";

    pub(crate) fn new(place: Place, router: bool, mtu: u32) -> Result<Self> {
        sysctls(&place, &[("ipv6/conf/default/disable_ipv6", "1"), ("ipv4/ip_forward", "0")])?;
        let mut batch = format!(
            "link set lo up\nlink add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
             link set br0 mtu {mtu}\n"
        );
        if router {
            let (v4, v6) = (Self::GATEWAY4, Self::GATEWAY6);
            batch += &format!("addr add {v4}/24 dev br0\n");
            ip(&place, &batch)?;
            sysctls(&place, &[("ipv6/conf/br0/accept_dad", "0"), ("ipv6/conf/br0/disable_ipv6", "0")])?;
            batch = format!("addr add {v6}/64 dev br0 nodad\n");
        }
        ip(&place, &format!("{batch}link set br0 up\n"))?;
        let router = if router {
            format!(
                "add element bridge lab hosts4 {{ {} }}\nadd element bridge lab hosts6 {{ {} }}\n",
                Self::GATEWAY4,
                Self::GATEWAY6
            )
        } else {
            String::new()
        };
        nft(&place, &format!("{RULES}\n{router}"))?;
        Ok(Self { place })
    }

    /// Its namespace, for a test that wants to look at the wire (`tcpdump` there sees every port).
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Plugs `eth0` of `place` in, as port `place.name()`, and lets packets of these addresses through.
    pub(crate) fn plug(&self, places: &[(&Place, String, String)], mtu: u32) -> Result<()> {
        let mut batch = String::new();
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (place, ip4, ip6) in places {
            let (port, net) = (place.name(), place.net().path());
            batch += &format!(
                "link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {net}\n\
                 link set {port} master br0 up\n"
            );
            v4.push(ip4.as_str());
            v6.push(ip6.as_str());
        }
        ip(&self.place, &batch)?;
        nft(
            &self.place,
            &format!(
                "add element bridge lab hosts4 {{ {} }}\nadd element bridge lab hosts6 {{ {} }}\n",
                v4.join(", "),
                v6.join(", ")
            ),
        )
    }

    /// Waits until these ports carry packets: the kernel opens them some time after the link is up, and what
    /// is sent before that is lost without a trace.
    pub(crate) fn await_open(&self, ports: &[&str]) -> Result<()> {
        let waited = Duration::from_secs(20);
        let mut seen = String::new();
        let open = poll_until(waited, || {
            seen = self.place.run("bridge link show").unwrap_or_default();
            let open = |port: &&str| {
                let is_it = |line: &&str| line.contains(&format!(": {port}@"));
                seen.lines().find(is_it).is_some_and(|line| line.contains("state forwarding"))
            };
            ports.iter().all(open)
        });
        let what = format!("opening of the switch's ports {}", ports.join(", "));
        open.then_some(()).ok_or_else(|| Error::Timeout { what, waited, detail: indent(&seen) })
    }

    /// Makes the port of a node take what the driver of the node's device sends by itself (XDP), for as long as
    /// what is returned is there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn take_xdp(&self, port: &str) -> Result<OwnedFd> {
        take_xdp(&self.place, port)
    }

    /// Lets through one more address, which a node or client has by now.
    ///
    /// # Errors
    /// nft's.
    pub fn admit(&self, ip: std::net::IpAddr) -> Result<()> {
        let family = if ip.is_ipv4() { 4 } else { 6 };
        nft(&self.place, &format!("add element bridge lab hosts{family} {{ {ip} }}\n"))
    }

    /// Lets through a range (`10.244.1.0/24`), where nodes reach each other's pods without an overlay.
    ///
    /// # Errors
    /// nft's.
    pub fn admit_range(&self, range: &str) -> Result<()> {
        let family = if range.contains(':') { 6 } else { 4 };
        nft(&self.place, &format!("add element bridge lab hosts{family} {{ {range} }}\n"))
    }

    /// Pulls the cable of a port: the node sees its link go down.
    ///
    /// # Errors
    /// When there is no such port.
    pub fn cut(&self, port: &str) -> Result<()> {
        ip(&self.place, &format!("link set {port} down\n"))
    }

    /// Plugs the cable back in, and waits until packets pass.
    ///
    /// # Errors
    /// When there is no such port.
    pub fn restore(&self, port: &str) -> Result<()> {
        ip(&self.place, &format!("link set {port} up\n"))?;
        self.await_open(&[port])
    }

    /// Loses `percent` of the packets to and from each of these ports, at random; replaces what was asked
    /// before. 100: the link is up and nothing passes. No ports: nothing is lost any more.
    ///
    /// # Errors
    /// nft's.
    pub fn lossy(&self, ports: &[(&str, u8)]) -> Result<()> {
        let mut script = String::from("flush chain bridge lab loss\n");
        for (port, percent) in ports {
            for side in ["iifname", "oifname"] {
                script += &format!(
                    "add rule bridge lab loss {side} {port} numgen random mod 100 < {percent} counter name lost drop\n"
                );
            }
        }
        nft(&self.place, &script)
    }

    /// Delays what goes to a port; zero takes the delay away.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the kernel has no netem.
    pub fn delay(&self, port: &str, delay: Duration) -> Result<()> {
        if delay.is_zero() {
            return self.place.run(format!("tc qdisc del dev {port} root")).map(drop);
        }
        let line = format!("tc qdisc replace dev {port} root netem delay {}us", delay.as_micros());
        let output = self.place.output(line.as_str())?;
        if output.status.success() {
            return Ok(());
        }
        if output.stderr.contains("qdisc kind is unknown") || output.stderr.contains("No such file") {
            return Err(Error::Unsupported("netem, which delays packets, is not in this kernel".into()));
        }
        let (place, status) = (self.place.name().into(), output.status.to_string());
        Err(Error::Command { command: line, place, status, output: indent(&output.stderr) })
    }

    /// Packets dropped since the start because an end of them is neither a node nor a client.
    ///
    /// # Errors
    /// nft's.
    pub fn foreign(&self) -> Result<u64> {
        self.counter("foreign")
    }

    /// Who sent what [`foreign`](Self::foreign) counts to whom, `source . destination`.
    ///
    /// # Errors
    /// nft's.
    pub fn foreigners(&self) -> Result<Vec<String>> {
        let mut pairs = Vec::new();
        for set in ["foreign4", "foreign6"] {
            let text = self.place.run(format!("nft list set bridge lab {set}"))?;
            let elements = text.split_once("elements = {").and_then(|(_, rest)| rest.split_once('}'));
            let elements = elements.map(|(list, _)| list.split(',')).into_iter().flatten();
            pairs.extend(elements.map(|pair| pair.trim().to_owned()));
        }
        Ok(pairs)
    }

    /// Packets lost because of [`lossy`](Self::lossy).
    ///
    /// # Errors
    /// nft's.
    pub fn lost(&self) -> Result<u64> {
        self.counter("lost")
    }

    fn counter(&self, name: &str) -> Result<u64> {
        let text = self.place.run(format!("nft list counter bridge lab {name}"))?;
        let mut words = text.split_whitespace().skip_while(|word| *word != "packets").skip(1);
        words
            .next()
            .and_then(|number| number.parse().ok())
            .ok_or_else(|| Error::Oracle(format!("nft printed no counter `{name}`: {text}")))
    }
}
