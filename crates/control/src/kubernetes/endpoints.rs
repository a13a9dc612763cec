//! EndpointSlice (discovery.k8s.io/v1) and Endpoints (core/v1).

use std::net::IpAddr;
use std::sync::Arc;

use heddle_model::{Endpoint, Endpoints, EndpointsName, Hints, NodeName, ServiceName};

use super::cursor::Cursor;
use super::{Key, Meta, Value, ports};
use crate::tree::Error;

/// The label that says whose an EndpointSlice is.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

pub fn slice(object: &Cursor<'_>) -> Result<(Key, Value), Error> {
    let meta = Meta::of(object)?;
    let key = Key::EndpointSlice { namespace: meta.namespace.clone(), name: meta.name.clone() };
    let service = meta.label(SERVICE_NAME)?.filter(|name| !name.is_empty());
    let family = object.need("addressType")?;
    let v4 = match (family.text()?, service) {
        ("IPv4", Some(_)) => true,
        ("IPv6", Some(_)) => false,
        ("IPv4" | "IPv6" | "FQDN", _) => return Ok((key, Value::NotOurs)),
        (other, _) => {
            let message = format!("{other:?} is no address type (IPv4, IPv6, FQDN)");
            return family.unknown(message, (key, Value::NotOurs));
        }
    };
    if meta.is_left_alone()? {
        return Ok((key, Value::NotOurs));
    }
    let list = object.list("endpoints")?;
    let mut endpoints = Vec::with_capacity(list.len());
    for at in list {
        // Up to 100 addresses are allowed, all of one endpoint; consumers use the first.
        let Some(address) = at.list("addresses")?.into_iter().next() else { continue };
        let ip: IpAddr = address.parse("IP address")?;
        if ip.is_ipv4() != v4 {
            return Err(address.error(format!("{ip} is not of the slice's addressType")));
        }
        let node = at.text_at("nodeName")?.map(|name| NodeName(name.into()));
        let (serving, terminating) = conditions(&at)?;
        let zone = at.text_at("zone")?.filter(|zone| !zone.is_empty()).map(Into::into);
        endpoints.push(Endpoint { ip, node, serving, terminating, zone, hints: hints(&at)? });
    }
    let service = ServiceName { namespace: meta.namespace, name: service.unwrap_or_default().into() };
    let name = EndpointsName { service, part: meta.name };
    Ok((key, Value::Slice(Arc::new(Endpoints { name, ports: ports::of_endpoints(object)?, endpoints }))))
}

fn hints(endpoint: &Cursor<'_>) -> Result<Option<Box<Hints>>, Error> {
    let Some(hints) = endpoint.get("hints")? else { return Ok(None) };
    let names = |key: &str| -> Result<Vec<Arc<str>>, Error> {
        hints.list(key)?.iter().map(|hint| Ok(hint.need("name")?.text()?.into())).collect()
    };
    let (zones, nodes) = (names("forZones")?, names("forNodes")?);
    let hints =
        Hints { zones: zones.into_iter().collect(), nodes: nodes.into_iter().map(NodeName).collect() };
    Ok((hints != Hints::default()).then(|| Box::new(hints)))
}

/// `ready` absent means ready, `serving` absent means as ready, `terminating` absent means not (as the API's
/// comments say). A Service with `publishNotReadyAddresses` says ready of all; so it is meant.
fn conditions(endpoint: &Cursor<'_>) -> Result<(bool, bool), Error> {
    let Some(conditions) = endpoint.get("conditions")? else { return Ok((true, false)) };
    let truth = |key: &str| conditions.get(key)?.map(|field| field.truth()).transpose();
    let ready = truth("ready")?.unwrap_or(true);
    let serving = truth("serving")?.unwrap_or(ready);
    let terminating = truth("terminating")?.unwrap_or(false);
    Ok(match (ready, serving && terminating) {
        (true, _) => (true, false),
        (false, true) => (true, true),
        (false, false) => (false, terminating),
    })
}

/// Every subset has ports of its own.
pub fn endpoints(object: &Cursor<'_>) -> Result<(Key, Value), Error> {
    let meta = Meta::of(object)?;
    let key = Key::Endpoints(meta.service_name());
    if meta.is_left_alone()? {
        return Ok((key, Value::NotOurs));
    }
    let mut parts = Vec::new();
    for (index, subset) in object.list("subsets")?.iter().enumerate() {
        let mut list = Vec::new();
        for (field, serving) in [("addresses", true), ("notReadyAddresses", false)] {
            for at in subset.list(field)? {
                let node = at.text_at("nodeName")?.map(|name| NodeName(name.into()));
                let ip = at.need("ip")?.parse("IP address")?;
                list.push(Endpoint { node, serving, ..Endpoint::new(ip) });
            }
        }
        let name =
            EndpointsName { service: meta.service_name(), part: format!("{}#{index}", meta.name).into() };
        parts.push(Arc::new(Endpoints { name, ports: ports::of_endpoints(subset)?, endpoints: list }));
    }
    Ok((key, Value::Endpoints(parts)))
}
