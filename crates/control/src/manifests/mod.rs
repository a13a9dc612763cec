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

mod files;
mod objects;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use heddle_model::store;
use nix::errno::Errno;

use crate::directory::Directory;
use crate::source::Source;
use crate::watch::{self, Changes, Watch};
use files::Files;

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
        run(&self.path, slice, Watch::open).await
    }
}

async fn run(path: &Path, slice: store::Source, open: fn(&Path) -> io::Result<Watch>) -> Infallible {
    let mut files = Files::new(path);
    loop {
        let error = match follow(path, &mut files, &slice, open).await {
            Ok(()) => continue,
            Err(error) => error,
        };
        files.unreadable(&error);
        slice.replace(files.slice());
        watch::pause().await;
    }
}

/// Follows the directory until it is another one (`Ok`) or cannot be read.
async fn follow(
    path: &Path,
    files: &mut Files,
    slice: &store::Source,
    open: fn(&Path) -> io::Result<Watch>,
) -> io::Result<()> {
    // The watch first: what changes while we read is heard.
    let mut watch = watch(path, files, open)?;
    let directory = Directory::open(path)?;
    let mut changes = Changes { all: true, ..Changes::default() };
    loop {
        files.scan(&directory, &changes, |name| {
            watch.as_ref().is_some_and(|watch| watch.is_being_written(name))
        });
        // A file is an event, however often it was heard of.
        slice.replace_heard(files.slice(), changes.heard.into_iter().cycle().take(changes.names.len()));
        if files.is_complete() {
            slice.synced();
        }
        changes = match &mut watch {
            Some(watch) => watch.changed(LOOK).await?,
            None => {
                watch::pause().await;
                watch = self::watch(path, files, open)?;
                Changes::default()
            }
        };
        if changes.gone || !directory.is(path) {
            return Ok(());
        }
    }
}

/// A watch, or none where there is none to be had: the kernel counts them, and other programs may have taken
/// all. Then the directory is looked at every second.
fn watch(path: &Path, files: &mut Files, open: fn(&Path) -> io::Result<Watch>) -> io::Result<Option<Watch>> {
    let lacking = match open(path) {
        Ok(watch) => {
            files.unwatched = None;
            return Ok(Some(watch));
        }
        Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
            Errno::EMFILE => "no inotify instance is left (raise fs.inotify.max_user_instances)",
            Errno::ENOSPC => "no inotify watch is left (raise fs.inotify.max_user_watches)",
            _ => return Err(error),
        },
    };
    files.unwatched =
        Some(format!("{lacking}: looked at every second, so that a file may be read half-written"));
    Ok(None)
}
