//! EndpointSlice (discovery.k8s.io/v1) and Endpoints (core/v1).

use std::net::IpAddr;
use std::sync::Arc;

use heddle_model::{Endpoint, EndpointPort, Endpoints, EndpointsName, NodeName, ServiceName};

use super::cursor::Cursor;
use super::service::{not_zero, protocol};
use super::{Key, Meta, Value};
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
        endpoints.push(Endpoint { node, serving, terminating, ..Endpoint::new(ip) });
    }
    let service = ServiceName::new(&meta.namespace, service.unwrap_or_default());
    let name = EndpointsName { service, part: meta.name };
    Ok((key, Value::Slice(Arc::new(Endpoints { name, ports: ports(object)?, endpoints }))))
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

fn ports(object: &Cursor<'_>) -> Result<Vec<EndpointPort>, Error> {
    let mut ports = Vec::new();
    for at in object.list("ports")? {
        // Without a number it stands for all ports, which no Service can name.
        let Some(port) = at.get("port")? else { continue };
        ports.push(EndpointPort {
            name: at.text_at("name")?.unwrap_or_default().to_owned(),
            port: not_zero(&port)?,
            proto: protocol(&at)?,
        });
    }
    Ok(ports)
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
        parts.push(Arc::new(Endpoints { name, ports: ports(subset)?, endpoints: list }));
    }
    Ok((key, Value::Endpoints(parts)))
}
