//! Host ports: what pods of this node publish, so that 127.0.0.1 and ::1 answer too. The CNI plugin `heddle` leaves a
//! record of each pod that publishes something below `<run-dir>/ports`, whole or not at all, and takes it away with
//! the pod.
//!
//! - The directory is made if it is not there (as the plugin does), and watched.
//! - A record that cannot be read or understood is reported and skipped; the others count.
//! - Of two records that name one port the younger counts: the older is that of a pod that went without DEL.
//! - Ports of one address of the node (`hostIP`) are not on loopback.
//! - The source says "synced" after its first look, whatever it saw: services do not wait for host ports.

mod records;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use heddle_model::store;

use crate::directory::Directory;
use crate::source::Source;
use crate::watch::{self, Changes, Watch};
use records::Records;

/// How often the directory is looked at when nothing is heard.
const LOOK: Duration = Duration::from_secs(10);

/// The source.
#[derive(Debug)]
pub struct HostPorts {
    path: PathBuf,
    namespace: Option<u64>,
}

impl HostPorts {
    /// `namespace`: the cookie (`SO_NETNS_COOKIE`) of the node's network namespace. `None`: the kernel does not tell it,
    /// and no record counts.
    pub fn new(run_dir: &Path, namespace: Option<u64>) -> Self {
        Self { path: run_dir.join("ports"), namespace }
    }
}

impl Source for HostPorts {
    fn name(&self) -> String {
        format!("host ports in {}", self.path.display())
    }

    async fn run(self, slice: store::Source) -> Infallible {
        let mut records = Records::new(&self.path, self.namespace);
        loop {
            if let Err(error) = follow(&self.path, &mut records, &slice).await {
                records.unreadable(&error);
                slice.replace(records.slice());
                slice.synced();
                watch::pause().await;
            }
        }
    }
}

/// Follows the directory until it is another one (`Ok`) or cannot be read.
async fn follow(path: &Path, records: &mut Records, slice: &store::Source) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    // The watch first: what changes while we read is heard. Where none is to be had, time alone says when.
    let mut watch = Watch::open(path).ok();
    let directory = Directory::open(path)?;
    let mut changes = Changes { all: true, ..Changes::default() };
    loop {
        let busy = |name: &str| watch.as_ref().is_some_and(|watch| watch.is_being_written(name));
        records.scan(&directory, &changes, busy)?;
        slice.replace(records.slice());
        slice.synced();
        changes = match &mut watch {
            Some(watch) => watch.changed(LOOK).await?,
            None => {
                watch::pause().await;
                watch = Watch::open(path).ok();
                Changes::default()
            }
        };
        if changes.gone || !directory.is(path) {
            return Ok(());
        }
    }
}
