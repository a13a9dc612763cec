//! Nodes and outside clients.

use std::net::IpAddr;
use std::ops::Deref;

use crate::addresses::{client_ip, node_ip, pod_range};
use crate::builder::Families;
use crate::error::Result;
use crate::place::Place;
use crate::pod::Pod;

/// A node of the cluster. What a [`Place`] can do, it can.
#[derive(Clone, Debug)]
pub struct Node {
    index: usize,
    place: Place,
    families: Families,
}

impl Node {
    pub(crate) fn new(index: usize, place: Place, families: Families) -> Self {
        Self { index, place, families }
    }

    /// 1 is the first.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Where its programs run.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Its address in the underlay.
    pub fn ip(&self, v4: bool) -> IpAddr {
        node_ip(self.index, v4)
    }

    /// Its address in the underlay, IPv4.
    pub fn ip4(&self) -> IpAddr {
        self.ip(true)
    }

    /// Its address in the underlay, IPv6.
    pub fn ip6(&self) -> IpAddr {
        self.ip(false)
    }

    /// Its pod ranges, of the lab's families.
    pub fn pod_ranges(&self) -> Vec<String> {
        let families = [(self.families.v4(), true), (self.families.v6(), false)];
        families.into_iter().filter(|(there, _)| *there).map(|(_, v4)| pod_range(self.index, v4)).collect()
    }

    /// A new pod: a network namespace that has a name in `/run/netns` of this node, and a cgroup. It has no
    /// interface before [`Pod::cni_add`].
    ///
    /// # Errors
    /// The kernel's; a name that is taken.
    pub fn pod(&self, name: &str) -> Result<Pod> {
        Pod::new(self, name)
    }

    /// Gives the node a CNI configuration; `vxland` writes its own.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_conflist(&self, json: &str) -> Result<()> {
        crate::error::write(self.place.path("/etc/cni/net.d/10-heddle.conflist"), json)
    }
}

impl Deref for Node {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

/// A machine in the underlay that is no node.
#[derive(Clone, Debug)]
pub struct Client {
    index: usize,
    place: Place,
}

impl Client {
    pub(crate) fn new(index: usize, place: Place) -> Self {
        Self { index, place }
    }

    /// 1 is the first.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Where its programs run.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Its address.
    pub fn ip(&self, v4: bool) -> IpAddr {
        client_ip(self.index, v4)
    }
}

impl Deref for Client {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}
