//! A lab that stands.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::builder::Builder;
use crate::cgroup::Cgroup;
use crate::error::{Result, mkdir};
use crate::manifests::Manifests;
use crate::node::{Client, Node};
use crate::owner;
use crate::spawner::Spawner;
use crate::switch::Switch;

/// What a lab has on the machine besides namespaces. Dropped, it is gone.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) spawner: Arc<Spawner>,
    pub(crate) cgroup: Cgroup,
    pub(crate) dir: PathBuf,
}

impl Frame {
    pub(crate) fn new(threaded: bool) -> Result<Self> {
        owner::start_janitor()?;
        owner::sweep();
        let name = owner::new_name();
        let cgroup = Cgroup::for_lab(&name, threaded)?;
        let dir = owner::temp_base().join(&name);
        let spawner = mkdir(dir.join("logs")).and_then(|()| Spawner::new(dir.join("logs")));
        match spawner {
            Ok(spawner) => Ok(Self { spawner: Arc::new(spawner), cgroup, dir }),
            Err(e) => {
                let _ = fs::remove_dir_all(&dir);
                cgroup.remove();
                Err(e)
            }
        }
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        self.spawner.stop();
        self.cgroup.remove();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Nodes, clients and the switch between them. Dropped, everything in it ends and nothing is left; when a
/// test panics, what its daemons have printed is shown.
#[derive(Debug)]
pub struct Lab {
    shape: Builder,
    switch: Switch,
    nodes: Vec<Node>,
    clients: Vec<Client>,
    manifests: Manifests,
    /// Last, so that it is dropped last.
    frame: Frame,
}

impl Lab {
    /// Describes a lab.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn new(
        shape: Builder,
        frame: Frame,
        switch: Switch,
        nodes: Vec<Node>,
        clients: Vec<Client>,
        manifests: Manifests,
    ) -> Self {
        Self { shape, switch, nodes, clients, manifests, frame }
    }

    /// Node `index`; 1 is the first.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index.checked_sub(1).expect("nodes are counted from 1")]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The first outside client.
    ///
    /// # Panics
    /// When the lab has none.
    pub fn client(&self) -> &Client {
        &self.clients[0]
    }

    /// All outside clients.
    pub fn clients(&self) -> &[Client] {
        &self.clients
    }

    /// The underlay.
    pub fn switch(&self) -> &Switch {
        &self.switch
    }

    /// What the lab's daemons are told of the cluster.
    pub fn manifests(&self) -> &Manifests {
        &self.manifests
    }

    /// How it was described.
    pub fn shape(&self) -> &Builder {
        &self.shape
    }

    /// A directory of this lab for what a test likes; all nodes see it under the same path.
    pub fn dir(&self) -> &Path {
        &self.frame.dir
    }

    /// What the programs started with [`spawn`](crate::Place::spawn) have printed so far, by file name.
    pub fn logs(&self) -> Vec<(String, String)> {
        self.frame.spawner.logs()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (name, text) in self.logs() {
                eprintln!("---- {name}\n{text}");
            }
            if let Ok(pairs) = self.switch.foreigners()
                && !pairs.is_empty()
            {
                eprintln!("---- foreign packets at the switch: {}", pairs.join(", "));
            }
        }
    }
}
