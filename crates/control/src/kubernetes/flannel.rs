//! What flannel, and vxland after it, writes into the annotations of a node object of its end of the tunnels, so that
//! the nodes of both reach each other (flannel's pkg/subnet/kube/annotations.go and pkg/backend/vxlan).

use heddle_model::{Announced, Mac, Vtep};
use std::net::IpAddr;

use super::cursor::Cursor;
use crate::tree::{Error, Value, json};

/// How the names of the annotations begin.
pub const PREFIX: &str = "flannel.alpha.coreos.com/";
/// `true`: the node has tunnels, and takes its pod ranges from its node object. Flannel passes over nodes without it.
pub const MANAGED: &str = "flannel.alpha.coreos.com/kube-subnet-manager";
/// Which kind of tunnels: `vxlan`.
pub const TYPE: &str = "flannel.alpha.coreos.com/backend-type";
/// VNI and Ethernet address of the VXLAN device for pods with IPv4 addresses, as JSON.
pub const DATA: &str = "flannel.alpha.coreos.com/backend-data";
/// The same for IPv6.
pub const DATA_V6: &str = "flannel.alpha.coreos.com/backend-v6-data";
/// Where the outer packets for IPv4 go to.
pub const ADDRESS: &str = "flannel.alpha.coreos.com/public-ip";
/// The same for IPv6.
pub const ADDRESS_V6: &str = "flannel.alpha.coreos.com/public-ipv6";

/// What the annotations announce; nothing, if the node is not managed. What cannot be read is told and left out: the
/// node object counts all the same.
///
/// # Errors
/// Where an annotation is no text, which no API server lets pass.
pub fn announced(annotations: &Cursor<'_>) -> Result<Option<Box<Announced>>, Error> {
    if annotations.text_at(MANAGED)? != Some("true") {
        return Ok(None);
    }
    let mut announced = Announced::default();
    match annotations.text_at(TYPE)? {
        Some("vxlan") => {}
        None => return Ok(None),
        Some(other) => announced.other = Some(shortened(other).into()),
    }
    for (v4, data, address) in [(true, DATA, ADDRESS), (false, DATA_V6, ADDRESS_V6)] {
        // What flannel writes for a family that it has no tunnels for.
        let Some(text) = annotations.text_at(data)?.filter(|text| !matches!(*text, "" | "null")) else {
            continue;
        };
        let underlay = match annotations.text_at(address)?.map(str::parse::<IpAddr>) {
            Some(Ok(ip)) if ip.is_ipv4() == v4 => Some(ip),
            None => None,
            Some(_) => {
                announced.refused.push(format!("annotation {address} ignored: no address of its family"));
                None
            }
        };
        match vtep(text, underlay) {
            Ok(vtep) if v4 => announced.v4 = Some(vtep),
            Ok(vtep) => announced.v6 = Some(vtep),
            Err(why) => announced.refused.push(format!("annotation {data} ignored: {why}")),
        }
    }
    Ok(Some(Box::new(announced)))
}

/// `{"VNI":1,"VtepMAC":"0a:..."}`
fn vtep(text: &str, underlay: Option<IpAddr>) -> Result<Vtep, String> {
    let tree = &json(text).map_err(|error| error.message)?;
    let read = || -> Result<(u32, Mac), Error> {
        let data = Cursor::new(tree);
        // Older versions of flannel leave the VNI out.
        let vni = data.get("VNI")?.map_or(Ok(1), |vni| vni.number("VNI"))?;
        Ok((vni, data.need("VtepMAC")?.parse("Ethernet address")?))
    };
    if !matches!(tree.value, Value::Map(_)) {
        return Err("it is no JSON object".to_owned());
    }
    match read() {
        Ok((_, mac)) if !mac.is_unicast() => Err(format!("{mac} is the address of no device")),
        Ok((vni, mac)) => Ok(Vtep { vni, mac, underlay }),
        Err(error) => Err(error.message),
    }
}

/// Whoever writes a novel there gets a line of it back.
fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(40).collect()
}
