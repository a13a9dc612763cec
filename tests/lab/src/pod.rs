//! Pods: a network namespace on a node, wired by the CNI plugin as kubelet would have it.

use std::net::IpAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::cni::{self, Call, CniResult, Verb};
use crate::error::Result;
use crate::filesystem::{name_netns, unname_netns};
use crate::namespace::NetNs;
use crate::node::Node;
use crate::place::Place;
use crate::process::lock;
use crate::tools::ip;

/// A pod. What a [`Place`] can do, it can: programs run in its network and cgroup, with the files of its
/// node. Dropped, its processes are killed and its namespace is gone; the plugin is *not* called, as when a
/// machine fails; [`cni_del`](Self::cni_del) does.
#[derive(Debug)]
pub struct Pod {
    name: String,
    node: Node,
    place: Place,
    netns: PathBuf,
    result: Mutex<Option<CniResult>>,
}

impl Pod {
    pub(crate) fn new(node: &Node, name: &str) -> Result<Self> {
        let net = NetNs::new()?;
        let netns = PathBuf::from(format!("/run/netns/{name}"));
        node.enter(|| name_netns(&net.path(), &netns))??;
        let cgroup = node.cgroup().child("pods")?.child(name)?;
        let place = node.place().inside(&format!("{}/{name}", node.name()), net, cgroup);
        // The container runtime does it (by the `loopback` plugin), and a pod cannot talk to itself without.
        ip(&place, "link set lo up")?;
        Ok(Self { name: name.into(), node: node.clone(), place, netns, result: Mutex::new(None) })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node that it is on.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Where its programs run.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// `CNI_NETNS`, as its node sees it.
    pub fn netns_path(&self) -> &Path {
        &self.netns
    }

    /// `CNI_CONTAINERID`: 64 hex digits that follow from the names of node and pod.
    pub fn container_id(&self) -> String {
        // FNV-1a, four times over the same words with another start: an id, not a secret.
        (0..4u64)
            .map(|round| {
                let start = 0xcbf2_9ce4_8422_2325 ^ round;
                let words = self.node.name().bytes().chain(*b"/").chain(self.name.bytes());
                let hash = words
                    .fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
                format!("{hash:016x}")
            })
            .collect()
    }

    /// Calls every plugin of the node's configuration with ADD, as kubelet would.
    ///
    /// # Errors
    /// [`Error::Cni`](crate::Error::Cni) with the plugin's words.
    pub fn cni_add(&self) -> Result<CniResult> {
        let result = self.call(Verb::Add)?;
        *lock(&self.result) = Some(result.clone());
        Ok(result)
    }

    /// Calls every plugin of the node's configuration with CHECK.
    ///
    /// # Errors
    /// As [`cni_add`](Self::cni_add).
    pub fn cni_check(&self) -> Result<()> {
        self.call(Verb::Check).map(drop)
    }

    /// Calls every plugin of the node's configuration with DEL, in reverse.
    ///
    /// # Errors
    /// As [`cni_add`](Self::cni_add).
    pub fn cni_del(&self) -> Result<()> {
        self.call(Verb::Del)?;
        *lock(&self.result) = None;
        Ok(())
    }

    fn call(&self, verb: Verb) -> Result<CniResult> {
        let config = cni::node_config(&self.node)?;
        let netns = self.netns.clone();
        let call = Call {
            verb,
            pod: self.place.name(),
            node: self.node.place(),
            container_id: self.container_id(),
            netns,
            previous: lock(&self.result).clone(),
        };
        call.run(&config)
    }

    /// What ADD answered, while the pod is wired.
    pub fn result(&self) -> Option<CniResult> {
        lock(&self.result).clone()
    }

    /// Its address of a family, as ADD answered.
    pub fn ip(&self, v4: bool) -> Option<IpAddr> {
        self.result()?.ips.into_iter().find(|ip| ip.is_ipv4() == v4)
    }

    /// Its IPv4 address.
    ///
    /// # Panics
    /// When ADD gave it none.
    pub fn ip4(&self) -> IpAddr {
        self.ip(true).expect("the pod has an IPv4 address")
    }

    /// Its IPv6 address.
    ///
    /// # Panics
    /// When ADD gave it none.
    pub fn ip6(&self) -> IpAddr {
        self.ip(false).expect("the pod has an IPv6 address")
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.place.cgroup().remove();
        let _ = self.node.enter(|| unname_netns(&self.netns));
    }
}

impl Deref for Pod {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}
