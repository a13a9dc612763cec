//! The source `kubernetes` (in a pod, by its service account) or `kubernetes:KUBECONFIG`: the API server's Nodes, Services
//! and EndpointSlices, listed and watched.
//!
//! - The datapath never depends on the API server: what was heard last stands, for as long as nothing is heard.
//! - What is held is always a state that the API server was in, or is on the way to the next one: see [`machine`] for what
//!   is believed and what is not.
//! - Somebody who was away for hours is noticed again within two seconds: see [`pace`].
//! - Certificates, tokens and addresses may change at any time: see [`access`].
//! - Memory is that of the objects, in the model's form; events are not queued: whoever is slow gets the newest state.

pub mod access;
mod combined;
mod connect;
mod failure;
mod follow;
mod item;
mod machine;
mod own_node;
mod pace;
mod request;
mod shared;
mod trimmed;
mod wall_clock;

use std::convert::Infallible;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use heddle_model::store;

pub use access::{Access, Url};
pub use item::Kind;
pub use machine::DOUBT;
pub use own_node::{OwnNode, Wish};

use self::follow::Follower;
use self::machine::Machine;
use self::pace::Pace;
use self::shared::Shared;
use super::Words;
use crate::source::Source;

/// The source.
#[derive(Debug)]
pub struct Kubernetes {
    name: String,
    access: Access,
    kinds: Vec<Kind>,
    doubt: Duration,
}

impl Kubernetes {
    /// `name`: as on the command line. `kinds`: what is followed; for others there need be no rights.
    pub fn new(name: String, access: Access, kinds: &[Kind]) -> Self {
        Self { name, access, kinds: kinds.to_vec(), doubt: DOUBT }
    }

    /// How long a list that lacks most of what is held is doubted.
    #[must_use]
    pub fn doubting(self, doubt: Duration) -> Self {
        Self { doubt, ..self }
    }
}

impl Source for Kubernetes {
    fn name(&self) -> String {
        self.name.clone()
    }

    async fn run(self, slice: store::Source) -> Infallible {
        let shared = Arc::new(Shared::new(slice, self.name, &self.kinds));
        let follower = |kind: Kind| Follower {
            kind,
            access: self.access.clone(),
            machine: Machine::new(self.doubt),
            pace: Pace::new(seed()),
            shared: Arc::clone(&shared),
            words: Words::default(),
        };
        let followers = self.kinds.iter().map(|kind| follower(*kind).run());
        join_all(followers).await;
        std::future::pending().await
    }
}

/// Not the same on any two nodes.
fn seed() -> u64 {
    RandomState::new().hash_one("kubernetes")
}
