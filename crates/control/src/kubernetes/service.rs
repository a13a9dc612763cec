//! Service (core/v1).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use heddle_model::{Families, Protocol, Service, ServicePort, TrafficPolicy};

use super::cursor::Cursor;
use super::{Key, Meta, Value};
use crate::tree::Error;

pub fn service(object: &Cursor<'_>) -> Result<(Key, Value), Error> {
    let meta = Meta::of(object)?;
    let key = Key::Service(meta.service_name());
    let spec = object.need("spec")?;
    let kind = spec.text_at("type")?.unwrap_or("ClusterIP");
    if kind == "ExternalName" || meta.is_left_alone()? {
        return Ok((key, Value::NotOurs));
    }
    let has_node_ports = matches!(kind, "NodePort" | "LoadBalancer");
    let addresses = addresses(&spec)?;
    let service = Service {
        name: meta.service_name(),
        created: meta.created,
        families: families(&spec, &addresses)?,
        addresses,
        ports: ports(&spec, has_node_ports)?,
        internal_policy: policy(&spec, "internalTrafficPolicy")?,
        not_built: not_built(object, &spec, has_node_ports)?,
        ..Service::default()
    };
    Ok((key, Value::Service(Arc::new(service))))
}

/// `None` is a headless service's; an empty text one that the API server has not given an address yet.
fn addresses(spec: &Cursor<'_>) -> Result<BTreeSet<IpAddr>, Error> {
    let mut fields = spec.list("clusterIPs")?;
    if fields.is_empty() {
        fields.extend(spec.get("clusterIP")?);
    }
    let mut addresses = BTreeSet::new();
    for field in fields {
        if !matches!(field.text()?, "None" | "") {
            addresses.insert(field.parse("IP address")?);
        }
    }
    Ok(addresses)
}

/// What the API server has decided, else the families of the addresses, else (a manifest that no API server
/// has seen) both.
fn families(spec: &Cursor<'_>, addresses: &BTreeSet<IpAddr>) -> Result<Families, Error> {
    let mut families = Families::default();
    for family in spec.list("ipFamilies")? {
        match family.text()? {
            "IPv4" => families.v4 = true,
            "IPv6" => families.v6 = true,
            other => return Err(family.error(format!("{other:?} is no address family (IPv4, IPv6)"))),
        }
    }
    if families == Families::default() {
        families.v4 = addresses.iter().any(IpAddr::is_ipv4);
        families.v6 = addresses.iter().any(IpAddr::is_ipv6);
    }
    Ok(if families == Families::default() { Families { v4: true, v6: true } } else { families })
}

fn ports(spec: &Cursor<'_>, has_node_ports: bool) -> Result<Vec<ServicePort>, Error> {
    let mut ports = Vec::new();
    for port in spec.list("ports")? {
        let number = port.need("port")?;
        let node_port = match port.get("nodePort")? {
            Some(field) if has_node_ports => Some(field.port()?).filter(|number| *number != 0),
            _ => None,
        };
        ports.push(ServicePort {
            name: name(&port)?,
            port: not_zero(&number)?,
            proto: protocol(&port)?,
            node_port,
        });
    }
    Ok(ports)
}

/// A DNS label (RFC 1123), or none.
fn name(port: &Cursor<'_>) -> Result<String, Error> {
    let Some(field) = port.get("name")? else { return Ok(String::new()) };
    let text = field.text()?;
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    match text.len() <= 63 && text.chars().all(fine) {
        true => Ok(text.to_owned()),
        false => Err(field.error("not a port name (at most 63 of a-z 0-9 -)")),
    }
}

pub fn not_zero(at: &Cursor<'_>) -> Result<u16, Error> {
    match at.port()? {
        0 => Err(at.error("0 is no port (1 to 65535)")),
        port => Ok(port),
    }
}

pub fn protocol(port: &Cursor<'_>) -> Result<Protocol, Error> {
    let Some(field) = port.get("protocol")? else { return Ok(Protocol::Tcp) };
    match field.text()? {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        other => Err(field.error(format!("{other:?} is no protocol (TCP, UDP, SCTP)"))),
    }
}

fn policy(spec: &Cursor<'_>, key: &str) -> Result<TrafficPolicy, Error> {
    let Some(field) = spec.get(key)? else { return Ok(TrafficPolicy::Cluster) };
    match field.text()? {
        "Cluster" => Ok(TrafficPolicy::Cluster),
        "Local" => Ok(TrafficPolicy::Local),
        other => Err(field.error(format!("{other:?} is no traffic policy (Cluster, Local)"))),
    }
}

/// What the service asks for and does not get. Never silent.
fn not_built(
    object: &Cursor<'_>,
    spec: &Cursor<'_>,
    has_node_ports: bool,
) -> Result<Vec<(String, String)>, Error> {
    let mut list = Vec::new();
    let mut say = |feature: &str, instead: &str| list.push((feature.to_owned(), instead.to_owned()));
    if has_node_ports && policy(spec, "externalTrafficPolicy")? == TrafficPolicy::Local {
        say("externalTrafficPolicy Local", "clients from outside reach the backends of all nodes");
    }
    if spec.text_at("sessionAffinity")?.is_some_and(|kind| kind != "None") {
        say("sessionAffinity", "each connection may get another backend");
    }
    if spec.get("trafficDistribution")?.is_some() {
        say("trafficDistribution", "near and far backends are chosen alike");
    }
    if !spec.list("externalIPs")?.is_empty() {
        say("externalIPs", "the service does not answer there");
    }
    let balancer = match object.get("status")? {
        Some(status) => status.get("loadBalancer")?,
        None => None,
    };
    if let Some(balancer) = balancer
        && !balancer.list("ingress")?.is_empty()
    {
        say("load balancer address", "the service does not answer there");
    }
    Ok(list)
}
