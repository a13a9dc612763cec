//! From what a node does to what it must do: the difference of two tables as an ordered plan.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::addr::FrontendAddr;
use crate::node::NodeName;
use crate::service::{Frontend, ServiceNode, ServiceTable};
use crate::shared_map::{SharedMap, differences};

/// A part of a [`ServiceTable`] that is written, fails and is retried by itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Part {
    /// Which node is this one.
    Local,
    Node(NodeName),
    Frontend(FrontendAddr),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("this node"),
            Self::Node(name) => write!(f, "node {name}"),
            Self::Frontend(at) => write!(f, "frontend {at}"),
        }
    }
}

/// What a step does to its part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// There was nothing.
    Create,
    Change,
    Remove,
}

/// One change. Every step can be done again without harm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    SetLocal {
        name: Option<NodeName>,
        effect: Effect,
    },
    PutNode {
        name: NodeName,
        node: ServiceNode,
        effect: Effect,
    },
    /// The whole frontend. Within it a dataplane makes before it breaks: new backends are in place before
    /// the frontend leads to them, and old ones are let go after.
    PutFrontend {
        at: FrontendAddr,
        frontend: Arc<Frontend>,
        effect: Effect,
    },
    RemoveFrontend {
        at: FrontendAddr,
    },
    RemoveNode {
        name: NodeName,
    },
}

impl Step {
    /// The part that it changes.
    pub fn part(&self) -> Part {
        match self {
            Self::SetLocal { .. } => Part::Local,
            Self::PutNode { name, .. } | Self::RemoveNode { name } => Part::Node(name.clone()),
            Self::PutFrontend { at, .. } | Self::RemoveFrontend { at } => Part::Frontend(*at),
        }
    }

    pub const fn effect(&self) -> Effect {
        match self {
            Self::SetLocal { effect, .. }
            | Self::PutNode { effect, .. }
            | Self::PutFrontend { effect, .. } => *effect,
            Self::RemoveFrontend { .. } | Self::RemoveNode { .. } => Effect::Remove,
        }
    }

    /// Does it to a table.
    pub fn apply(&self, table: &mut ServiceTable) {
        match self {
            Self::SetLocal { name, .. } => table.local.clone_from(name),
            Self::PutNode { name, node, .. } => {
                table.nodes.insert(name.clone(), node.clone());
            }
            Self::PutFrontend { at, frontend, .. } => {
                table.frontends.insert(*at, frontend.clone());
            }
            Self::RemoveFrontend { at } => {
                table.frontends.remove(at);
            }
            Self::RemoveNode { name } => {
                table.nodes.remove(name);
            }
        }
    }
}

/// Steps in the order in which they are to be done: this node, nodes, frontends that appear or change,
/// then what goes: frontends, nodes. So no frontend ever leads to a backend on a node that the dataplane
/// does not know. At most one step per [`Part`].
pub type Plan = Vec<Step>;

/// What turns `observed` into `desired`. Empty if they are equal; pure; one function for every dataplane.
pub fn diff(observed: &ServiceTable, desired: &ServiceTable) -> Plan {
    let mut plan = Plan::new();
    if observed.local != desired.local {
        let effect = match (&observed.local, &desired.local) {
            (None, _) => Effect::Create,
            (Some(_), Some(_)) => Effect::Change,
            (Some(_), None) => Effect::Remove,
        };
        plan.push(Step::SetLocal { name: desired.local.clone(), effect });
    }
    let (put, gone_nodes) = differ(&observed.nodes, &desired.nodes);
    for (name, node, effect) in put {
        plan.push(Step::PutNode { name: name.clone(), node: node.clone(), effect });
    }
    // Most frontends are the very same: two `Arc`s are compared by their addresses first.
    let (put, gone) = differ(&observed.frontends, &desired.frontends);
    for (at, frontend, effect) in put {
        plan.push(Step::PutFrontend { at: *at, frontend: Arc::clone(frontend), effect });
    }
    plan.extend(gone.into_iter().map(|at| Step::RemoveFrontend { at: *at }));
    plan.extend(gone_nodes.into_iter().map(|name| Step::RemoveNode { name: name.clone() }));
    plan
}

type Differences<'a, K, V> = (Vec<(&'a K, &'a V, Effect)>, Vec<&'a K>);

/// What is new or other, and what is gone; what the maps share is passed over.
fn differ<'a, K: Ord, V: PartialEq>(
    observed: &'a SharedMap<K, V>,
    desired: &'a SharedMap<K, V>,
) -> Differences<'a, K, V> {
    let (mut put, mut gone) = (Vec::new(), Vec::new());
    for (key, before, now) in differences(observed, desired) {
        match (before, now) {
            (None, Some(value)) => put.push((key, value, Effect::Create)),
            (Some(_), Some(value)) => put.push((key, value, Effect::Change)),
            (_, None) => gone.push(key),
        }
    }
    (put, gone)
}
