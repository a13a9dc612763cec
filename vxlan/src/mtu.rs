//! How large a packet fits into the overlay.

use std::net::IpAddr;

/// What VXLAN puts in front of an inner IP packet: outer IP header, UDP (8), VXLAN (8, RFC 7348 section
/// 5), inner Ethernet (14).
const fn overhead(underlay_v4: bool) -> u32 {
    (if underlay_v4 { 20 } else { 40 }) + 8 + 8 + 14
}

/// The smallest MTU that a link may have: RFC 8200 section 5 for IPv6, RFC 791 for IPv4.
const fn least(ipv6_inside: bool) -> u32 {
    if ipv6_inside { 1280 } else { 68 }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MtuError {
    #[error(
        "mtu {wanted} is too large: {device} carries {underlay} bytes, of which VXLAN takes {overhead}; use at \
         most {most} or none (it is then computed)"
    )]
    TooLarge { wanted: u32, most: u32, underlay: u32, overhead: u32, device: String },
    #[error(
        "mtu {mtu} is too small for the overlay: {least} bytes are needed (the underlay {device} carries {underlay})"
    )]
    TooSmall { mtu: u32, least: u32, underlay: u32, device: String },
}

/// The MTU of the VXLAN device, and of the pods: `wanted`, or the largest that the underlay carries.
pub fn overlay_mtu(
    device: &str,
    underlay: u32,
    local: IpAddr,
    ipv6_inside: bool,
    wanted: Option<u32>,
) -> Result<u32, MtuError> {
    let overhead = overhead(local.is_ipv4());
    // A loopback device says 65536, but no IP packet is larger than 65535.
    let most = underlay.min(65535).saturating_sub(overhead);
    let mtu = wanted.unwrap_or(most);
    let device = device.to_owned();
    if mtu > most {
        return Err(MtuError::TooLarge { wanted: mtu, most, underlay, overhead, device });
    }
    let least = least(ipv6_inside);
    if mtu < least {
        return Err(MtuError::TooSmall { mtu, least, underlay, device });
    }
    Ok(mtu)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 77, 1));
    const V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1));

    #[test]
    fn fifty_bytes_for_ipv4_seventy_for_ipv6() {
        assert_eq!(overlay_mtu("eth0", 1500, V4, true, None), Ok(1450));
        assert_eq!(overlay_mtu("eth0", 1500, V6, true, None), Ok(1430));
        assert_eq!(overlay_mtu("eth0", 9000, V4, true, None), Ok(8950));
        assert_eq!(overlay_mtu("lo", 65536, V4, true, None), Ok(65485));
    }

    #[test]
    fn an_explicit_mtu_must_fit() {
        assert_eq!(overlay_mtu("eth0", 1500, V4, true, Some(1400)), Ok(1400));
        assert_eq!(overlay_mtu("eth0", 1500, V4, true, Some(1450)), Ok(1450));
        let error = overlay_mtu("eth0", 1500, V4, true, Some(1451)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "mtu 1451 is too large: eth0 carries 1500 bytes, of which VXLAN takes 50; use at most 1450 or none \
             (it is then computed)"
        );
    }

    #[test]
    fn ipv6_needs_1280() {
        assert_eq!(overlay_mtu("eth0", 1330, V4, true, None), Ok(1280));
        assert!(matches!(
            overlay_mtu("eth0", 1329, V4, true, None),
            Err(MtuError::TooSmall { least: 1280, .. })
        ));
        assert_eq!(overlay_mtu("eth0", 1329, V4, false, None), Ok(1279));
        assert!(matches!(overlay_mtu("eth0", 40, V6, false, None), Err(MtuError::TooSmall { mtu: 0, .. })));
    }
}
