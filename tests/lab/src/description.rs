//! What another process needs to know to find a lab and get into it.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Context, Result, write};
use crate::lab::Lab;
use crate::owner;
use crate::place::Place;
use crate::pod::Pod;

const FILE: &str = "lab.json";

/// A lab that stands, as its owner wrote it down.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Description {
    /// The process that holds it; when that ends, the lab is gone.
    pub pid: u32,
    /// Its directory: `logs/`, `manifests/`.
    pub dir: PathBuf,
    pub places: Vec<Door>,
}

/// The way into a place from any process of root.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Door {
    /// `n1`, `n1/web-1`, `client`, `switch`.
    pub name: String,
    /// Its network namespace.
    pub net: String,
    /// Its number, as in `/proc/<pid>/ns/net`.
    pub net_inode: u64,
    /// Its mount namespace and root directory, where it has its own.
    pub mounts: Option<(String, String)>,
    /// The directory of its cgroup.
    pub cgroup: PathBuf,
    /// For people: its addresses.
    pub addresses: Vec<String>,
}

impl Description {
    /// Describes `lab`, with `pods`.
    pub fn of(lab: &Lab, pods: &[&Pod]) -> Self {
        let mut places = Vec::new();
        for node in lab.nodes() {
            places.push(node.place().door(vec![node.ip4().to_string(), node.ip6().to_string()]));
        }
        for pod in pods {
            let ips = pod.result().map(|result| result.ips).unwrap_or_default();
            places.push(pod.place().door(ips.iter().map(ToString::to_string).collect()));
        }
        for client in lab.clients() {
            places.push(client.place().door(vec![client.ip(true).to_string(), client.ip(false).to_string()]));
        }
        places.push(lab.switch().place().door(Vec::new()));
        Self { pid: std::process::id(), dir: lab.dir().to_owned(), places }
    }

    /// Writes down `lab`, with `pods`, where [`standing`](Self::standing) finds it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn publish(lab: &Lab, pods: &[&Pod]) -> Result<Self> {
        let description = Self::of(lab, pods);
        let json = serde_json::to_string_pretty(&description).map_err(std::io::Error::from);
        write(lab.dir().join(FILE), json.context(|| "describe the lab".into())?)?;
        Ok(description)
    }

    /// The labs that have been published and stand.
    pub fn standing() -> Vec<Self> {
        owner::sweep();
        let dirs = owner::remains().into_iter();
        dirs.filter_map(|dir| Self::read(&dir)).collect()
    }

    fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(dir.join(FILE)).ok()?).ok()
    }

    /// The way into the place called `name`; a pod's node may be left out.
    pub fn door(&self, name: &str) -> Option<&Door> {
        let exact = self.places.iter().find(|door| door.name == name);
        exact.or_else(|| self.places.iter().find(|door| door.name.split('/').nth(1) == Some(name)))
    }
}

impl Place {
    fn door(&self, addresses: Vec<String>) -> Door {
        Door {
            name: self.name().into(),
            net: self.net().path(),
            net_inode: self.net().inode(),
            mounts: self.mount_paths(),
            cgroup: self.cgroup().path().to_owned(),
            addresses,
        }
    }
}
