//! What counts of that which a node announces of its end of the tunnels.
//!
//! An announcement is as little trusted as the rest of a node object: it names an Ethernet address, which is nobody
//! else's business, and which of its *own* addresses packets go to. Without any, or where it cannot be used, both
//! follow from the node's name and addresses.

use std::net::IpAddr;
use std::sync::Arc;

use crate::node::{Mac, Node, vtep_mac};

/// How tunnels to a node are made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tunnels {
    /// As between nodes of ours: one device, whose Ethernet address follows from the name. Where to, if the node says
    /// so, by family of the outer packets.
    #[default]
    Ours,
    OursAt([Option<IpAddr>; 2]),
    /// As flannel makes them: a device for each family of pods, with outer packets of the same family.
    Flannel([Option<(IpAddr, Mac)>; 2]),
    /// It has another network, in words for people.
    Others(Arc<str>),
}

const fn index(v4: bool) -> usize {
    if v4 { 0 } else { 1 }
}

impl Tunnels {
    /// What `node` announces, as far as it can be used, and what is wrong with it. `addresses`: those that count.
    pub(super) fn of(node: &Node, addresses: &[IpAddr], vni: u32) -> (Self, Vec<String>) {
        let Some(announced) = &node.announced else { return (Self::Ours, Vec::new()) };
        let mut wrong = announced.refused.clone();
        if let Some(other) = &announced.other {
            let which = format!("a network of flannel's of type {other:?}, not vxlan");
            return (Self::Others(which.into()), wrong);
        }
        let own = vtep_mac(&node.name, vni);
        let (mut at, mut flannel) = ([None; 2], [None; 2]);
        for v4 in [true, false] {
            let Some(vtep) = announced.of(v4) else { continue };
            if vtep.vni != vni {
                let which = format!("tunnels with VNI {}, and ours have {vni}", vtep.vni);
                return (Self::Others(which.into()), wrong);
            }
            let has = |ip: &IpAddr| addresses.contains(ip) && ip.is_ipv4() == v4;
            if let Some(stranger) = vtep.underlay.filter(|ip| !has(ip)) {
                wrong.push(format!(
                    "announces tunnels to {stranger}, which is none of its addresses: ignored"
                ));
            }
            let first = || addresses.iter().copied().find(|ip| ip.is_ipv4() == v4);
            at[index(v4)] = vtep.underlay.filter(has);
            if vtep.mac != own {
                flannel[index(v4)] = at[index(v4)].or_else(first).map(|ip| (ip, vtep.mac));
            }
        }
        match (flannel, at) {
            ([None, None], [None, None]) => (Self::Ours, wrong),
            ([None, None], at) => (Self::OursAt(at), wrong),
            (flannel, _) => (Self::Flannel(flannel), wrong),
        }
    }

    /// Where packets of a family are sent, where it is said.
    pub(super) fn underlay(&self, v4: bool) -> Option<IpAddr> {
        match self {
            Self::Ours | Self::Others(_) => None,
            Self::OursAt(at) => at[index(v4)],
            Self::Flannel(ends) => ends[index(v4)].map(|(ip, _)| ip),
        }
    }

    /// The end of the tunnels for pods of a family, where it is flannel's.
    pub(super) const fn flannel(&self, v4: bool) -> Option<(IpAddr, Mac)> {
        match self {
            Self::Flannel(ends) => ends[index(v4)],
            _ => None,
        }
    }

    /// Whether the node has our device, and with it what is made of it beyond plain packets from pod to pod.
    pub const fn are_ours(&self) -> bool {
        matches!(self, Self::Ours | Self::OursAt(_))
    }

    /// Whether outer packets of a family reach it.
    pub(super) const fn takes(&self, v4: bool) -> bool {
        match self {
            Self::Ours | Self::OursAt(_) => true,
            Self::Flannel(ends) => ends[index(v4)].is_some(),
            Self::Others(_) => false,
        }
    }
}
