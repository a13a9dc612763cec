//! The nodes: how their part of the maps is written.
//!
//! A node has its index, then its name, then its addresses and ranges; it loses them in reverse. A daemon that
//! dies in between leaves an index without a name, or a name without addresses: both are found and repaired.

use std::collections::BTreeSet;

use heddle_ebpf_common::{Addr, KnownAddr, NODE_DOWN, NODE_SELF, NODE_UP, Node};
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
    ) -> Result<(), Refused<M::Error>> {
        let (index, named) = match self.nodes.get(name) {
            Some(entry) => (entry.index, true),
            None => (self.free_node()?, false),
        };
        let old = self.nodes.get(name).cloned();
        let value = Node {
            state: if wanted.down { NODE_DOWN } else { NODE_UP },
            mac: wanted.mac.map_or([0; 6], |mac| mac.0),
            overlay: u8::from(wanted.mac.is_some()),
            ..Node::default()
        };
        let mut writes = Vec::new();
        let before = old.as_ref().map(|entry| entry.value).unwrap_or_default();
        if before != value {
            // The Ethernet address is six bytes and can tear: it changes while nobody reads it.
            if before.mac != value.mac {
                let hidden = |node: Node| Write::Node(index, Node { overlay: 0, ..node });
                writes.extend((before.overlay == 1).then(|| hidden(before)));
                writes.extend((value.overlay == 1).then(|| hidden(value)));
            }
            writes.push(Write::Node(index, value));
        }
        if !named {
            writes.push(Write::NodeName(index, Some(name.0.clone())));
        }
        let had = old.as_ref().map(|entry| Self::addrs(&entry.service_node())).unwrap_or_default();
        let has = Self::addrs(wanted);
        for (addr, kind) in &has {
            if had.get(addr) != Some(kind) {
                writes.push(Write::KnownAddr(*addr, Some(KnownAddr { node: index, kind: *kind })));
            }
        }
        let lost = had.keys().filter(|addr| !has.contains_key(*addr) && !self.belongs_to_other(addr, name));
        writes.extend(lost.map(|addr| Write::KnownAddr(*addr, None)));
        let had = old.map(|entry| entry.ranges).unwrap_or_default();
        let fresh = wanted.ranges.difference(&had);
        writes.extend(fresh.map(|range| Write::Range(*range, Some(index))));
        let lost = had.difference(&wanted.ranges).filter(|range| !self.ranges_of_others(range, name));
        writes.extend(lost.map(|range| Write::Range(*range, None)));
        for write in &writes {
            maps.write(write).map_err(Refused::Write)?;
        }
        let entry = NodeEntry {
            index,
            value,
            addresses: wanted.addresses.clone(),
            node_ports: wanted.node_ports.clone(),
            overlay: wanted.overlay.clone(),
            ranges: wanted.ranges.clone(),
        };
        self.nodes.insert(name.clone(), entry);
        self.last_node = self.last_node.max(index);
        Ok(())
    }

    /// Whether a frontend still leads to a backend there.
    pub fn is_used(&self, name: &NodeName) -> bool {
        let index = self.node_index(Some(name));
        let mut members = self.frontends.values().flat_map(|entry| entry.members.keys());
        index != NODE_SELF && members.any(|member| member.node == index)
    }

    /// Removes a node; the frontends have been told before. This node's own name stays.
    pub fn remove_node<M: Maps>(&mut self, name: &NodeName, maps: &mut M) -> Result<(), Refused<M::Error>> {
        let Some(entry) = self.nodes.get(name) else { return Ok(()) };
        let index = entry.index;
        let addrs = Self::addrs(&entry.service_node());
        let lost = addrs.into_keys().filter(|addr| !self.belongs_to_other(addr, name));
        let mut writes: Vec<_> = lost.map(|addr| Write::KnownAddr(addr, None)).collect();
        let lost = entry.ranges.iter().filter(|range| !self.ranges_of_others(range, name));
        writes.extend(lost.map(|range| Write::Range(*range, None)));
        if index != NODE_SELF {
            writes.push(Write::NodeName(index, None));
        }
        writes.push(Write::Node(index, Node::default()));
        for write in &writes {
            maps.write(write).map_err(Refused::Write)?;
        }
        if index == NODE_SELF {
            self.nodes.insert(name.clone(), NodeEntry::nobody());
        } else {
            self.nodes.remove(name);
        }
        Ok(())
    }

    /// Whether an address has moved to another node already.
    fn belongs_to_other(&self, addr: &Addr, name: &NodeName) -> bool {
        let ip = encode::ip(*addr);
        let has = |entry: &NodeEntry| entry.addresses.contains(&ip) || entry.overlay.contains(&ip);
        self.nodes.iter().any(|(other, entry)| other != name && has(entry))
    }

    fn ranges_of_others(&self, range: &IpNetwork, name: &NodeName) -> bool {
        self.nodes.iter().any(|(other, entry)| other != name && entry.ranges.contains(range))
    }

    /// Makes `name` this node's, at [`NODE_SELF`]: so its backends have an index before the cluster knows it.
    pub fn set_local<M: Maps>(
        &mut self,
        name: Option<&NodeName>,
        maps: &mut M,
    ) -> Result<(), Refused<M::Error>> {
        let old = self.local().cloned();
        if old.as_ref() == name {
            return Ok(());
        }
        // What it was, and what the new name was, is found wrong by the next observation, and put right.
        for stale in old.iter().chain(name) {
            self.remove_node(stale, maps)?;
        }
        maps.write(&Write::NodeName(NODE_SELF, name.map(|name| name.0.clone()))).map_err(Refused::Write)?;
        self.nodes.retain(|_, entry| entry.index != NODE_SELF);
        if let Some(name) = name {
            self.nodes.insert(name.clone(), NodeEntry::nobody());
        }
        Ok(())
    }

    /// A node index that was not in use for as long as possible.
    fn free_node<E: std::fmt::Display>(&self) -> Result<u32, Refused<E>> {
        let used: BTreeSet<u32> = self.nodes.values().map(|entry| entry.index).collect();
        let size = self.limits.nodes;
        let after = self.last_node.saturating_add(1)..size;
        let around = NODE_SELF + 1..self.last_node.saturating_add(1).min(size);
        after.chain(around).find(|index| !used.contains(index)).ok_or(Refused::Full {
            map: "nodes",
            need: 1,
            free: 0,
            size,
        })
    }
}
