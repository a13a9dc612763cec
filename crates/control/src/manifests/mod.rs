//! The source `manifests:DIR`: a directory of Kubernetes manifests (Node, Service, EndpointSlice, Endpoints,
//! lists of them), as `kubectl get -o yaml` prints them.
//!
//! - Read are `*.yaml`, `*.yml` and `*.json` in the directory itself, not hidden, not in directories below;
//!   links are followed as long as they stay inside of it (so a mounted ConfigMap works).
//! - The directory is watched. A file counts when it is closed, or moved into place: nobody's half-written
//!   file is acted upon, except when a writer pauses for 2 seconds in it.
//! - A file that is invalid, or cannot be read, is reported with line and column, and what it said when it
//!   was last good stands. A file that is deleted takes its objects with it. If the directory cannot be read,
//!   everything stands.
//! - The source says "synced" when every file there could be read once: a daemon that starts while a file is
//!   broken does not take that file's services down.

mod directory;
mod files;
#[cfg(test)]
mod tests;
mod watch;

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use heddle_model::store;

use crate::source::Source;
use directory::Directory;
use files::Files;
use watch::{Changes, Watch};

/// How often the directory is looked at when nothing is heard: some file systems tell inotify nothing.
const LOOK: Duration = Duration::from_secs(10);

/// The source.
#[derive(Debug)]
pub struct Manifests {
    path: PathBuf,
}

impl Manifests {
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }
}

impl Source for Manifests {
    fn name(&self) -> String {
        format!("manifests:{}", self.path.display())
    }

    async fn run(self, slice: store::Source) -> Infallible {
        let mut files = Files::new(&self.path);
        loop {
            let error = match follow(&self.path, &mut files, &slice).await {
                Ok(()) => continue,
                Err(error) => error,
            };
            files.unreadable(&error);
            slice.replace(files.slice());
            watch::pause().await;
        }
    }
}

/// Follows the directory until it is another one (`Ok`) or cannot be watched.
async fn follow(path: &Path, files: &mut Files, slice: &store::Source) -> io::Result<()> {
    // The watch first: what changes while we read is heard.
    let mut watch = Watch::open(path)?;
    let directory = Directory::open(path)?;
    let mut changes = Changes { all: true, ..Changes::default() };
    loop {
        files.scan(&directory, &changes, |name| watch.is_being_written(name));
        slice.replace(files.slice());
        if files.is_complete() {
            slice.synced();
        }
        changes = watch.changed(LOOK).await?;
        if changes.gone || !directory.is(path) {
            return Ok(());
        }
    }
}
