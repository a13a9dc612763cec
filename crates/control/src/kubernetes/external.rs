//! Where a Service (core/v1) is reached from outside, but for node ports, and by whom.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::cursor::Cursor;
use crate::tree::Error;

#[derive(Debug, Default)]
pub struct External {
    pub external_ips: BTreeSet<IpAddr>,
    pub balancer_ips: BTreeSet<IpAddr>,
    pub source_ranges: Option<BTreeSet<IpNetwork>>,
    pub refused: Vec<String>,
}

/// `balanced`: the service is of type LoadBalancer; of the others the status says nothing.
pub fn of(object: &Cursor<'_>, spec: &Cursor<'_>, balanced: bool) -> Result<External, Error> {
    let mut external = External::default();
    for ip in spec.list("externalIPs")? {
        external.external_ips.insert(ip.parse("IP address")?);
    }
    if !balanced {
        return Ok(external);
    }
    let status = match object.get("status")? {
        Some(status) => status.get("loadBalancer")?,
        None => None,
    };
    for ingress in status.map_or(Ok(Vec::new()), |status| status.list("ingress"))? {
        // `Proxy`, and whatever may come: the load balancer itself is what answers there.
        let is_ours = matches!(ingress.text_at("ipMode")?, None | Some("VIP"));
        match ingress.get("ip")? {
            Some(ip) if is_ours && !ip.text()?.is_empty() => {
                external.balancer_ips.insert(ip.parse("IP address")?);
            }
            _ => {}
        }
    }
    let ranges = spec.list("loadBalancerSourceRanges")?;
    if !ranges.is_empty() {
        external.source_ranges = Some(sources(&ranges, &mut external.refused)?);
    }
    Ok(external)
}

/// Who may come. A range that is none admits nobody, and does not take the others with it; if none is left,
/// nobody may come at all.
fn sources(ranges: &[Cursor<'_>], refused: &mut Vec<String>) -> Result<BTreeSet<IpNetwork>, Error> {
    let mut sources = BTreeSet::new();
    for at in ranges {
        // The API admits blanks around it.
        let text = at.text()?.trim();
        match text.parse::<IpNetwork>() {
            Ok(range) if text.contains('/') => {
                sources.insert(IpNetwork::new(range.network(), range.prefix()).unwrap_or(range));
            }
            _ => refused.push(
                at.error(format!("{text:?} is no range of addresses: nobody is admitted by it")).message,
            ),
        }
    }
    Ok(sources)
}
