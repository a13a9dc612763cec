//! Who asks for what.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use heddle_model::Protocol;

/// A client: `host` (a process of this node), or an address, with or without a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Host,
    Address(IpAddr, Option<u16>),
}

/// What it asks for: `ADDRESS[:PORT][/PROTOCOL]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    pub ip: IpAddr,
    /// `None`: which ports are there?
    pub port: Option<u16>,
    pub proto: Protocol,
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "host" {
            return Ok(Self::Host);
        }
        let (ip, port) = address(text)?;
        Ok(Self::Address(ip, port))
    }
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (at, proto) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((at, "tcp")) => (at, Protocol::Tcp),
            Some((at, "udp")) => (at, Protocol::Udp),
            Some((at, "sctp")) => (at, Protocol::Sctp),
            Some((_, other)) => return Err(format!("protocol {other:?} is none of tcp, udp, sctp")),
        };
        let (ip, port) = address(at)?;
        Ok(Self { ip, port, proto })
    }
}

/// `1.2.3.4`, `1.2.3.4:80`, `fd00::1`, `[fd00::1]`, `[fd00::1]:80`.
fn address(text: &str) -> Result<(IpAddr, Option<u16>), String> {
    if let Ok(at) = text.parse::<SocketAddr>() {
        return Ok((at.ip(), Some(at.port())));
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let ip = bare.parse().map_err(|_| format!("{text:?} is no address"))?;
    Ok((ip, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_written_as_people_write_addresses() {
        let to = |text: &str| text.parse::<Destination>().map(|to| (to.ip.to_string(), to.port, to.proto));
        assert_eq!(to("10.96.0.1:80"), Ok(("10.96.0.1".into(), Some(80), Protocol::Tcp)));
        assert_eq!(to("10.96.0.10:53/udp"), Ok(("10.96.0.10".into(), Some(53), Protocol::Udp)));
        assert_eq!(to("[fd00::1]:80/sctp"), Ok(("fd00::1".into(), Some(80), Protocol::Sctp)));
        assert_eq!(to("fd00::1"), Ok(("fd00::1".into(), None, Protocol::Tcp)));
        assert!(to("10.96.0.1/icmp").is_err() && to("web").is_err() && to("10.96.0.1:99999").is_err());
        assert_eq!("host".parse(), Ok(Source::Host));
        assert_eq!("10.0.0.1".parse(), Ok(Source::Address([10, 0, 0, 1].into(), None)));
        assert_eq!("10.0.0.1:7".parse(), Ok(Source::Address([10, 0, 0, 1].into(), Some(7))));
    }
}
