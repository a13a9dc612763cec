//! Node (core/v1).

use std::sync::Arc;

use heddle_model::{Node, NodeName};
use ipnetwork::IpNetwork;

use super::cursor::Cursor;
use super::flannel;
use super::{Key, Meta, Value};
use crate::tree::Error;

/// The label that says in which zone a node is.
const ZONE: &str = "topology.kubernetes.io/zone";
/// The taint by which the cluster autoscaler says that it is about to remove a node.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

pub fn node(object: &Cursor<'_>) -> Result<(Key, Value), Error> {
    let meta = Meta::of(object)?;
    let mut addresses = Vec::new();
    let mut down = false;
    if let Some(status) = object.get("status")? {
        for address in status.list("addresses")? {
            if address.text_at("type")? == Some("InternalIP") {
                addresses.push(address.need("address")?.parse("IP address")?);
            }
        }
        // `False`: its kubelet says so. `Unknown`: nothing is heard of it.
        for condition in status.list("conditions")? {
            let ready = condition.text_at("type")? == Some("Ready");
            down |= ready && condition.text_at("status")? != Some("True");
        }
    }
    let (mut leaving, mut announced) = (false, None);
    if let Some(metadata) = object.get("metadata")? {
        leaving = metadata.text_at("deletionTimestamp")?.is_some();
        announced = metadata.get("annotations")?.map(|all| flannel::announced(&all)).transpose()?.flatten();
    }
    let mut pod_ranges = Vec::new();
    if let Some(spec) = object.get("spec")? {
        for taint in spec.list("taints")? {
            leaving |= taint.text_at("key")? == Some(TO_BE_DELETED);
        }
        // `podCIDR` is the first of `podCIDRs`, for clients that know one only.
        let list = spec.list("podCIDRs")?;
        for range in if list.is_empty() { spec.get("podCIDR")?.into_iter().collect() } else { list } {
            pod_ranges.push(range_of(&range)?);
        }
    }
    let zone = meta.label(ZONE)?.filter(|zone| !zone.is_empty()).map(Into::into);
    let name = NodeName(meta.name.clone());
    let created = meta.created;
    let node = Node { name, created, addresses, pod_ranges, zone, down, leaving, announced };
    Ok((Key::Node(meta.name), Value::Node(Arc::new(node))))
}

fn range_of(at: &Cursor<'_>) -> Result<IpNetwork, Error> {
    let range: IpNetwork = at.parse("range of addresses")?;
    // `IpNetwork` takes a bare address for a range of one.
    match at.text()?.contains('/') {
        true => Ok(range),
        false => Err(at.error("not a range of addresses: the prefix length is missing")),
    }
}
