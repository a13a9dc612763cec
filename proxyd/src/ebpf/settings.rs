//! The map `config`: what the programs must know of this node's devices.

use std::net::IpAddr;

use heddle_bpf::XdpMode;
use heddle_ebpf_common::{Addr, Config, REMOTE_DSR, REMOTE_SNAT, REMOTE_TUNNEL};

use super::encode;
use crate::dataplane::{Device, Devices};

/// How a backend on another node is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Remote {
    /// Inside VXLAN with its addresses untouched; the backend's node translates, and the backend sees the
    /// client's address.
    #[default]
    Tunnel,
    /// With this node's overlay address as source; the client's address is lost.
    Snat,
    /// As `tunnel`, but the backend's node answers the client directly (direct server return): the underlay must
    /// let a node send with another node's address.
    Dsr,
}

/// Which programs see frames of the underlay before there are socket buffers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Xdp {
    #[default]
    Off,
    /// The device's driver runs them.
    Native,
    /// The kernel runs them, over copies of socket buffers: for devices whose drivers cannot. Slower, and it passes on
    /// only what needs no other checksum.
    Generic,
}

impl Xdp {
    pub const fn mode(self) -> Option<XdpMode> {
        match self {
            Self::Off => None,
            Self::Native => Some(XdpMode::Native),
            Self::Generic => Some(XdpMode::Generic),
        }
    }
}

/// What the programs are told.
pub fn config(
    devices: &Devices,
    remote: Remote,
    vni: u32,
    vxlan_port: u16,
    (snat_port_min, snat_port_max): (u16, u16),
) -> Config {
    let underlay = devices.underlay.first();
    let overlay = devices.overlay.as_ref();
    let address = |device: Option<&Device>, v4: bool| {
        let found = device.and_then(|d| d.addresses.iter().find(|ip| ip.is_ipv4() == v4 && is_source(ip)));
        found.map_or(Addr::default(), |ip| encode::addr(*ip))
    };
    Config {
        remote: match remote {
            Remote::Tunnel => REMOTE_TUNNEL,
            Remote::Snat => REMOTE_SNAT,
            Remote::Dsr => REMOTE_DSR,
        },
        vxlan_ifindex: overlay.map_or(0, |device| device.index),
        underlay_ifindex: underlay.map_or(0, |device| device.index),
        tunnel_mtu: overlay.map_or(0, |device| device.mtu),
        overlay4: address(overlay, true),
        overlay6: address(overlay, false),
        underlay4: address(underlay, true),
        underlay6: address(underlay, false),
        snat_port_min,
        snat_port_max,
        vxlan_port,
        vni,
        ..Config::default()
    }
}

/// Whether packets to another node may have it as their source.
fn is_source(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_link_local() && !ip.is_loopback(),
        IpAddr::V6(ip) => !ip.is_unicast_link_local() && !ip.is_loopback(),
    }
}

/// The ports that `snat` takes, both inclusive: those above the range from which the kernel takes the
/// ports of its own connections (`ip_local_port_range`), or those below it where there are more.
/// Kubernetes' node ports (30000-32767) are never among them.
pub fn snat_ports(local_port_range: Option<(u16, u16)>) -> (u16, u16) {
    const DEFAULT: (u16, u16) = (61000, 65535);
    let Some((low, high)) = local_port_range else { return DEFAULT };
    let above = (high.saturating_add(1).max(32768), 65535);
    let below = (low.min(30000).saturating_sub(DEFAULT.1 - DEFAULT.0 + 1).max(1024), low.min(30000) - 1);
    let len = |(min, max): (u16, u16)| u32::from(max.saturating_sub(min));
    match () {
        () if high < 65535 && len(above) >= 1024 => (above.0.max(DEFAULT.0), above.1),
        () if low > 2048 && len(below) >= 1024 => below,
        // The kernel may take any of them; a collision makes one of the two flows fail to start.
        () => DEFAULT,
    }
}

/// `ip_local_port_range` as the kernel prints it: two numbers.
pub fn parse_port_range(text: &str) -> Option<(u16, u16)> {
    let mut numbers = text.split_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snat_takes_ports_that_nobody_else_takes() {
        assert_eq!(snat_ports(parse_port_range("32768\t60999\n")), (61000, 65535));
        assert_eq!(snat_ports(None), (61000, 65535));
        assert_eq!(snat_ports(Some((15000, 64000))), (64001, 65535));
        assert_eq!(snat_ports(Some((10240, 65535))), (5704, 10239));
        assert_eq!(snat_ports(Some((40000, 65535))), (25464, 29999), "node ports are left alone");
        assert_eq!(snat_ports(Some((1024, 65535))), (61000, 65535));
    }

    #[test]
    fn the_programs_are_told_what_the_devices_are() {
        let device = |index, mtu, addresses: &[&str]| Device {
            index,
            name: format!("d{index}"),
            mtu,
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
        };
        let devices = Devices {
            underlay: vec![device(2, 1500, &["192.168.77.1", "fe80::1", "fd77::1"])],
            overlay: Some(device(9, 1450, &["10.244.1.0"])),
        };
        let config = config(&devices, Remote::Snat, 1, 8472, (61000, 65535));
        assert_eq!((config.underlay_ifindex, config.vxlan_ifindex, config.tunnel_mtu), (2, 9, 1450));
        assert_eq!(encode::ip(config.overlay4), IpAddr::from([10, 244, 1, 0]));
        assert_eq!(encode::ip(config.underlay6), "fd77::1".parse::<IpAddr>().unwrap());
        assert_eq!((config.overlay6, config.remote), (Addr::default(), REMOTE_SNAT));
        assert_eq!(super::config(&Devices::default(), Remote::Tunnel, 1, 8472, (1, 2)).tunnel_mtu, 0);
    }
}
