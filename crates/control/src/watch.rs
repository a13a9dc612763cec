//! What happens in the directory, from inotify. An event is never more than a reason to look.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

/// Quiet time after an event before the directory is read: a writer of many files writes all.
pub const QUIET: Duration = Duration::from_millis(20);
/// ... but not for ever.
const LONGEST: Duration = Duration::from_millis(200);
/// A file alone, and the first of many, is told of as soon as it is whole: so many times in so long. It may take two: a
/// file is written under another name, and renamed.
const PROMPT: (usize, Duration) = (4, Duration::from_millis(100));
/// A file that was written to is read when it is closed, or when nothing was written for this long.
const SETTLED: Duration = Duration::from_secs(2);

/// What may have changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Read these again, whatever their times say.
    pub names: BTreeSet<OsString>,
    /// Events were lost: read everything again.
    pub all: bool,
    /// The directory itself is gone, or elsewhere now.
    pub gone: bool,
    /// When the first of it was heard of.
    pub heard: Option<std::time::Instant>,
}

#[derive(Debug)]
pub struct Watch {
    inotify: AsyncFd<Raw>,
    /// Files that somebody is writing, and when he last did.
    writing: BTreeMap<OsString, Instant>,
    /// Files that came into being and were not closed since: what they are is not known yet.
    open: BTreeSet<OsString>,
    /// When changes were told last, as many as matter.
    told: VecDeque<Instant>,
}

#[derive(Debug)]
struct Raw(Inotify);

impl AsRawFd for Raw {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watch {
    /// Watches a directory. Must be called in a tokio runtime.
    pub fn open(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let events = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(path, events)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe; `Raw` owns its descriptor and never replaces it"
        )]
        let inotify = AsyncFd::new(Raw(inotify))?;
        Ok(Self { inotify, writing: BTreeMap::new(), open: BTreeSet::new(), told: VecDeque::new() })
    }

    /// Whether somebody is in the middle of writing this file.
    pub fn is_being_written(&self, name: &str) -> bool {
        self.writing.contains_key(std::ffi::OsStr::new(name))
    }

    /// Waits until something changed and it is quiet again, or `patience` is over.
    pub async fn changed(&mut self, patience: Duration) -> io::Result<Changes> {
        let mut changes = Changes::default();
        let settled = self.writing.values().min().map(|last| *last + SETTLED);
        tokio::select! {
            outcome = read(&self.inotify) => self.take(outcome?, &mut changes),
            () = sleep(patience) => {}
            () = sleep_until(settled.unwrap_or_else(Instant::now)), if settled.is_some() => {}
        }
        let limit = Instant::now() + LONGEST;
        // Not much happened before, so this may be all there is.
        let (times, within) = PROMPT;
        let calm = self.told.len() < times || self.told.front().is_none_or(|told| told.elapsed() >= within);
        let whole = |watch: &Self, changes: &Changes| {
            let half = |name| watch.open.contains(name) || watch.writing.contains_key(name);
            !changes.names.is_empty() && !changes.names.iter().any(half)
        };
        while !(calm && whole(self, &changes)) {
            let quiet = (Instant::now() + QUIET).min(limit);
            // An event that comes as the time runs out stays in the queue.
            match timeout_at(quiet, read(&self.inotify)).await {
                Ok(outcome) => self.take(outcome?, &mut changes),
                Err(_) => break,
            }
        }
        let now = Instant::now();
        let (open, settled) = std::mem::take(&mut self.writing)
            .into_iter()
            .partition(|(_, last)| now.duration_since(*last) < SETTLED);
        self.writing = open;
        self.open.clear();
        self.told.push_back(now);
        if self.told.len() > times {
            self.told.pop_front();
        }
        changes.names.extend(settled.into_keys());
        Ok(changes)
    }

    fn take(&mut self, events: Events, changes: &mut Changes) {
        changes.heard.get_or_insert_with(std::time::Instant::now);
        for (mask, name) in events {
            changes.all |= mask.contains(AddWatchFlags::IN_Q_OVERFLOW);
            let gone = AddWatchFlags::IN_DELETE_SELF
                | AddWatchFlags::IN_MOVE_SELF
                | AddWatchFlags::IN_IGNORED
                | AddWatchFlags::IN_UNMOUNT;
            changes.gone |= mask.intersects(gone);
            let Some(name) = name else { continue };
            if mask.contains(AddWatchFlags::IN_MODIFY) {
                self.writing.insert(name.clone(), Instant::now());
            } else if mask.contains(AddWatchFlags::IN_CREATE) {
                self.open.insert(name.clone());
            } else if !mask.contains(AddWatchFlags::IN_ATTRIB) {
                self.writing.remove(&name);
                self.open.remove(&name);
            }
            changes.names.insert(name);
        }
        if changes.all {
            // Among what was lost may be the end of a writing.
            self.writing.clear();
        }
    }
}

type Events = Vec<(AddWatchFlags, Option<OsString>)>;

async fn read(inotify: &AsyncFd<Raw>) -> io::Result<Events> {
    loop {
        let mut ready = inotify.readable().await?;
        match ready.get_inner().0.read_events() {
            Ok(events) => return Ok(events.into_iter().map(|event| (event.mask, event.name)).collect()),
            Err(Errno::EAGAIN) => ready.clear_ready(),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Between two attempts at something that does not work.
pub async fn pause() {
    sleep(Duration::from_secs(1)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_is_not_closed_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = Watch::open(dir.path()).unwrap();
        let began = Instant::now();
        let file = std::fs::File::create(dir.path().join("a")).unwrap();
        watch.changed(SETTLED).await.unwrap();
        assert!(began.elapsed() >= QUIET, "what it is to be is not known yet");
        drop(file);
        assert_eq!(watch.changed(SETTLED).await.unwrap().names.len(), 1);
    }

    #[tokio::test]
    async fn events_become_changes() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = Watch::open(dir.path()).unwrap();
        let mut take = |events: &[(AddWatchFlags, &str)]| {
            let mut changes = Changes::default();
            let named = |name: &str| (!name.is_empty()).then(|| name.into());
            watch.take(events.iter().map(|(mask, name)| (*mask, named(name))).collect(), &mut changes);
            (changes, watch.writing.keys().cloned().collect::<Vec<_>>())
        };
        let (changes, writing) = take(&[(AddWatchFlags::IN_CREATE, "a"), (AddWatchFlags::IN_MODIFY, "a")]);
        assert_eq!((changes.names.len(), writing.len()), (1, 1));
        assert_eq!(take(&[(AddWatchFlags::IN_ATTRIB, "a")]).1.len(), 1, "still being written");
        assert_eq!(take(&[(AddWatchFlags::IN_CLOSE_WRITE, "a")]).1.len(), 0);
        take(&[(AddWatchFlags::IN_MODIFY, "b")]);
        let (changes, writing) = take(&[(AddWatchFlags::IN_Q_OVERFLOW, "")]);
        assert!(changes.all && !changes.gone && writing.is_empty());
        assert!(take(&[(AddWatchFlags::IN_IGNORED, "")]).0.gone);
    }
}
