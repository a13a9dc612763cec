//! Service (core/v1).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use heddle_model::{Distribution, Families, Service, TrafficPolicy};

use super::cursor::Cursor;
use super::external::{self, External};
use super::{Key, Meta, Value, ports};
use crate::tree::Error;

/// How long a client keeps its backend if the service does not say it (the API's default).
const AFFINITY: u32 = 10_800;
/// The longest that the API allows: a day.
const LONGEST_AFFINITY: u32 = 86_400;

pub fn service(object: &Cursor<'_>) -> Result<(Key, Value), Error> {
    let meta = Meta::of(object)?;
    let key = Key::Service(meta.service_name());
    let spec = object.need("spec")?;
    let kind = spec.text_at("type")?.unwrap_or("ClusterIP");
    let Some(addresses) = addresses(&spec)?.filter(|_| kind != "ExternalName") else {
        return Ok((key, Value::NotOurs));
    };
    if meta.is_left_alone()? {
        return Ok((key, Value::NotOurs));
    }
    let has_node_ports = matches!(kind, "NodePort" | "LoadBalancer");
    let External { external_ips, balancer_ips, source_ranges, refused } =
        external::of(object, &spec, kind == "LoadBalancer")?;
    // As the API has it: the field of a service that nobody reaches from outside says nothing.
    let external_policy = match has_node_ports || !external_ips.is_empty() {
        true => policy(&spec, "externalTrafficPolicy")?,
        false => TrafficPolicy::Cluster,
    };
    let health_check_port = match spec.get("healthCheckNodePort")? {
        Some(port) if kind == "LoadBalancer" && external_policy == TrafficPolicy::Local => {
            Some(port.port()?).filter(|port| *port != 0)
        }
        _ => None,
    };
    let service = Service {
        name: meta.service_name(),
        created: meta.created,
        families: families(&spec, &addresses)?,
        addresses,
        ports: ports::of_service(&spec, has_node_ports)?,
        internal_policy: policy(&spec, "internalTrafficPolicy")?,
        external_policy,
        external_ips,
        balancer_ips,
        source_ranges,
        affinity: affinity(&spec)?,
        distribution: distribution(&spec)?,
        publish_not_ready: spec.get("publishNotReadyAddresses")?.map_or(Ok(false), |field| field.truth())?,
        health_check_port,
        refused,
    };
    Ok((key, Value::Service(Arc::new(service))))
}

/// `None`: it is headless. An empty text stands for an address that the API server has not given it yet.
fn addresses(spec: &Cursor<'_>) -> Result<Option<BTreeSet<IpAddr>>, Error> {
    let mut fields = spec.list("clusterIPs")?;
    if fields.is_empty() {
        fields.extend(spec.get("clusterIP")?);
    }
    let mut addresses = BTreeSet::new();
    for field in fields {
        match field.text()? {
            "None" => return Ok(None),
            "" => {}
            _ => {
                addresses.insert(field.parse("IP address")?);
            }
        }
    }
    Ok(Some(addresses))
}

/// What the API server has decided, else the families of the addresses, else (a manifest that no API server
/// has seen) both.
fn families(spec: &Cursor<'_>, addresses: &BTreeSet<IpAddr>) -> Result<Families, Error> {
    let mut families = Families::default();
    for family in spec.list("ipFamilies")? {
        match family.text()? {
            "IPv4" => families.v4 = true,
            "IPv6" => families.v6 = true,
            other => family.unknown(format!("{other:?} is no address family (IPv4, IPv6)"), ())?,
        }
    }
    if families == Families::default() {
        families.v4 = addresses.iter().any(IpAddr::is_ipv4);
        families.v6 = addresses.iter().any(IpAddr::is_ipv6);
    }
    Ok(if families == Families::default() { Families { v4: true, v6: true } } else { families })
}

fn policy(spec: &Cursor<'_>, key: &str) -> Result<TrafficPolicy, Error> {
    let Some(field) = spec.get(key)? else { return Ok(TrafficPolicy::Cluster) };
    match field.text()? {
        "Cluster" => Ok(TrafficPolicy::Cluster),
        "Local" => Ok(TrafficPolicy::Local),
        // As kube-proxy has it.
        other => {
            field.unknown(format!("{other:?} is no traffic policy (Cluster, Local)"), TrafficPolicy::Cluster)
        }
    }
}

fn affinity(spec: &Cursor<'_>) -> Result<Option<u32>, Error> {
    let Some(field) = spec.get("sessionAffinity")? else { return Ok(None) };
    match field.text()? {
        "None" => return Ok(None),
        "ClientIP" => {}
        other => {
            return field.unknown(format!("{other:?} is no session affinity (None, ClientIP)"), None);
        }
    }
    let Some(config) = spec.get("sessionAffinityConfig")? else { return Ok(Some(AFFINITY)) };
    let Some(client) = config.get("clientIP")? else { return Ok(Some(AFFINITY)) };
    let Some(timeout) = client.get("timeoutSeconds")? else { return Ok(Some(AFFINITY)) };
    match timeout.number("number of seconds")? {
        seconds @ 1..=LONGEST_AFFINITY => Ok(Some(seconds)),
        other => Err(timeout.error(format!("{other} is no time-out (1 to {LONGEST_AFFINITY} seconds)"))),
    }
}

/// Other values than those known here may come: the API lets implementations ignore them.
fn distribution(spec: &Cursor<'_>) -> Result<Option<Distribution>, Error> {
    Ok(match spec.text_at("trafficDistribution")? {
        Some("PreferClose" | "PreferSameZone") => Some(Distribution::SameZone),
        Some("PreferSameNode") => Some(Distribution::SameNode),
        _ => None,
    })
}
