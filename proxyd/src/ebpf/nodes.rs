//! The nodes: how their part of the maps is written.
//!
//! A node has its index, then its name, then its addresses and ranges; it loses them in reverse. A daemon that
//! dies in between leaves an index without a name, or a name without addresses: both are found and repaired.

use std::collections::BTreeMap;

use heddle_ebpf_common::{
    Addr, BACKEND_ACTIVE, BACKEND_DRAINING, Backend, NODE_DOWN, NODE_SELF, NODE_UP, Node,
};
use heddle_model::{NodeName, ServiceNode};
use ipnetwork::IpNetwork;

use super::compile::Refused;
use super::encode;
use super::state::{NodeEntry, State};
use super::write::{Maps, Write};

impl State {
    /// Makes a node what is wanted.
    pub fn upsert_node<M: Maps>(
        &mut self,
        name: &NodeName,
        wanted: &ServiceNode,
        maps: &mut M,
    ) -> Result<(), Refused> {
        let (index, named) = match self.nodes.get(name) {
            Some(entry) => (entry.index, true),
            None => (self.free_node()?, false),
        };
        let old = self.nodes.get(name).cloned();
        let value = Node {
            state: if wanted.down { NODE_DOWN } else { NODE_UP },
            mac: wanted.mac.map_or([0; 6], |mac| mac.0),
            overlay: u8::from(wanted.mac.is_some()),
            underlay: wanted.underlay.map_or(Addr::ANY6, encode::addr),
            ..Node::default()
        };
        let mut writes = Vec::new();
        let before = old.as_ref().map(|entry| entry.value).unwrap_or_default();
        if before != value {
            // The addresses are longer than a word and can tear: they change while nobody reads them.
            if (before.mac, before.underlay) != (value.mac, value.underlay) {
                let hidden = |node: Node| Write::Node(index, Node { overlay: 0, ..node });
                writes.extend((before.overlay == 1).then(|| hidden(before)));
                writes.extend((value.overlay == 1).then(|| hidden(value)));
            }
            writes.push(Write::Node(index, value));
        }
        if !named {
            writes.push(Write::NodeName(index, Some(name.0.to_string())));
        }
        let entry = NodeEntry {
            index,
            value,
            addresses: wanted.addresses.clone(),
            node_ports: wanted.node_ports.clone(),
            overlay: wanted.overlay.clone(),
            ranges: wanted.ranges.clone(),
        };
        let had = old.as_ref().map(NodeEntry::addrs).unwrap_or_default();
        self.ledger.set_node(index, &entry.addrs(), &had);
        let had = old.map(|entry| entry.ranges).unwrap_or_default();
        let fresh = wanted.ranges.difference(&had);
        writes.extend(fresh.map(|range| Write::Range(*range, Some(index))));
        let lost = had.difference(&wanted.ranges).filter(|range| !self.ranges_of_others(range, name));
        writes.extend(lost.map(|range| Write::Range(*range, None)));
        for write in &writes {
            maps.write(write).map_err(|error| Refused::Write(error.to_string()))?;
        }
        self.pay(maps).map_err(|error| Refused::Write(error.to_string()))?;
        self.indices.insert(index, name.clone());
        self.nodes.insert(name.clone(), entry);
        self.last_node = self.last_node.max(index);
        Ok(())
    }

    /// Whether a frontend still leads to a backend there.
    pub fn is_used(&self, name: &NodeName) -> bool {
        let index = self.node_index(Some(name));
        let leads = |backend: &Backend| {
            backend.node == index && matches!(backend.state, BACKEND_ACTIVE | BACKEND_DRAINING)
        };
        !matches!(index, 0 | NODE_SELF) && self.backends.iter().any(leads)
    }

    /// Removes a node; the frontends have been told before. This node's own name stays.
    pub fn remove_node<M: Maps>(&mut self, name: &NodeName, maps: &mut M) -> Result<(), Refused> {
        let Some(entry) = self.nodes.get(name) else { return Ok(()) };
        let index = entry.index;
        let had = entry.addrs();
        let mut writes = Vec::new();
        let lost = entry.ranges.iter().filter(|range| !self.ranges_of_others(range, name));
        writes.extend(lost.map(|range| Write::Range(*range, None)));
        if index != NODE_SELF {
            writes.push(Write::NodeName(index, None));
        }
        writes.push(Write::Node(index, Node::default()));
        self.ledger.set_node(index, &BTreeMap::new(), &had);
        self.pay(maps).map_err(|error| Refused::Write(error.to_string()))?;
        for write in &writes {
            maps.write(write).map_err(|error| Refused::Write(error.to_string()))?;
        }
        if index == NODE_SELF {
            self.nodes.insert(name.clone(), NodeEntry::nobody());
        } else {
            self.nodes.remove(name);
            self.indices.remove(&index);
        }
        Ok(())
    }

    fn ranges_of_others(&self, range: &IpNetwork, name: &NodeName) -> bool {
        self.nodes.iter().any(|(other, entry)| other != name && entry.ranges.contains(range))
    }

    /// Makes `name` this node's, at [`NODE_SELF`]: so its backends have an index before the cluster knows it.
    pub fn set_local<M: Maps>(&mut self, name: Option<&NodeName>, maps: &mut M) -> Result<(), Refused> {
        let old = self.local().cloned();
        if old.as_ref() == name {
            return Ok(());
        }
        // What it was, and what the new name was, is found wrong by the next observation, and put right.
        for stale in old.iter().chain(name) {
            self.remove_node(stale, maps)?;
        }
        maps.write(&Write::NodeName(NODE_SELF, name.map(|name| name.0.to_string())))
            .map_err(|error| Refused::Write(error.to_string()))?;
        self.nodes.retain(|_, entry| entry.index != NODE_SELF);
        self.indices.remove(&NODE_SELF);
        if let Some(name) = name {
            self.indices.insert(NODE_SELF, name.clone());
            self.nodes.insert(name.clone(), NodeEntry::nobody());
        }
        Ok(())
    }

    /// A node index that was not in use for as long as possible.
    fn free_node(&self) -> Result<u32, Refused> {
        let size = self.limits.nodes;
        let after = self.last_node.saturating_add(1)..size;
        let around = NODE_SELF + 1..self.last_node.saturating_add(1).min(size);
        after.chain(around).find(|index| !self.indices.contains_key(index)).ok_or(Refused::Full {
            map: "nodes",
            need: 1,
            free: 0,
            size,
        })
    }
}
