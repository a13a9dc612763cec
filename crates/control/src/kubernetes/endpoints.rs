//! EndpointSlice (discovery.k8s.io/v1) and Endpoints (core/v1).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use heddle_model::{Endpoint, Endpoints, EndpointsName, NodeName, ServiceName};

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
        (other, _) => return Err(family.error(format!("{other:?} is no address type (IPv4, IPv6, FQDN)"))),
    };
    if meta.is_left_alone()? {
        return Ok((key, Value::NotOurs));
    }
    let mut endpoints = Vec::new();
    for at in object.list("endpoints")? {
        // Up to 100 addresses are allowed, all of one endpoint; consumers use the first.
        let Some(address) = at.list("addresses")?.into_iter().next() else { continue };
        let ip: IpAddr = address.parse("IP address")?;
        if ip.is_ipv4() != v4 {
            return Err(address.error(format!("{ip} is not of the slice's addressType")));
        }
        let node = at.text_at("nodeName")?.map(|name| NodeName(name.to_owned()));
        let (serving, terminating) = conditions(&at)?;
        let zone = at.text_at("zone")?.filter(|zone| !zone.is_empty()).map(str::to_owned);
        let (for_zones, for_nodes) = hints(&at)?;
        endpoints.push(Endpoint { ip, node, serving, terminating, zone, for_zones, for_nodes });
    }
    let service = ServiceName::new(&meta.namespace, service.unwrap_or_default());
    let name = EndpointsName { service, part: meta.name };
    Ok((key, Value::Slice(Arc::new(Endpoints { name, ports: ports::of_endpoints(object)?, endpoints }))))
}

/// The zones and the nodes whose clients it is meant for.
fn hints(endpoint: &Cursor<'_>) -> Result<(BTreeSet<String>, BTreeSet<NodeName>), Error> {
    let Some(hints) = endpoint.get("hints")? else { return Ok(Default::default()) };
    let names = |key: &str| -> Result<Vec<String>, Error> {
        hints.list(key)?.iter().map(|hint| hint.need("name")?.text().map(str::to_owned)).collect()
    };
    let nodes = names("forNodes")?.into_iter().map(NodeName).collect();
    Ok((names("forZones")?.into_iter().collect(), nodes))
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
                let node = at.text_at("nodeName")?.map(|name| NodeName(name.to_owned()));
                let ip = at.need("ip")?.parse("IP address")?;
                list.push(Endpoint { node, serving, ..Endpoint::new(ip) });
            }
        }
        let name = EndpointsName { service: meta.service_name(), part: format!("{}#{index}", meta.name) };
        parts.push(Arc::new(Endpoints { name, ports: ports::of_endpoints(subset)?, endpoints: list }));
    }
    Ok((key, Value::Endpoints(parts)))
}
