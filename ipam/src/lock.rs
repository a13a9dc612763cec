//! The lock of a network's directory: `flock(2)` on the file `lock`, as the reference plugin takes it.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstat, fstatat};

use crate::{Error, Result};

const NAME: &str = "lock";
/// How often we start anew because the file was replaced while we waited for it.
const ATTEMPTS: u32 = 16;

/// Holds the lock until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Locks the directory `dir`; `path` is its name in messages.
    ///
    /// # Errors
    /// [`Error::Locked`] after `patience`.
    pub fn take(dir: impl AsFd, path: &Path, patience: Duration) -> Result<Self> {
        let path = path.join(NAME);
        let failed = |source: io::Error| Error::io("lock", &path, source);
        for _ in 0..ATTEMPTS {
            let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
            let file =
                openat(&dir, NAME, flags, Mode::from_bits_truncate(0o644)).map_err(|e| failed(e.into()))?;
            let file = match wait(File::from(file), patience) {
                Ok(Some(file)) => file,
                Ok(None) => return Err(Error::Locked { path, waited: patience }),
                Err(source) => return Err(failed(source)),
            };
            // Whoever deletes the file makes two locks of it: ours must be the one that others will find.
            let ours = fstat(&file).map_err(|e| failed(e.into()))?;
            match fstatat(&dir, NAME, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(theirs) if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino) => {
                    return Ok(Self { _file: file });
                }
                Ok(_) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        Err(Error::Locked { path, waited: patience })
    }
}

/// Locks `file`, or gives up after `patience`.
fn wait(file: File, patience: Duration) -> io::Result<Option<File>> {
    match file.try_lock() {
        Ok(()) => return Ok(Some(file)),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(source)) => return Err(source),
    }
    // `flock` has no time limit, so it waits on a thread. If we give up, the thread keeps waiting until the
    // process, which is a short one, ends; then, or when it gets the lock, the lock is gone with the file.
    let (sender, receiver) = mpsc::channel();
    thread::Builder::new().name("lock".into()).spawn(move || {
        let locked = file.lock().map(|()| file);
        // Nobody listens any more if we gave up: the file is dropped, and with it the lock.
        drop(sender.send(locked));
    })?;
    match receiver.recv_timeout(patience) {
        Ok(locked) => locked.map(Some),
        Err(_) => Ok(None),
    }
}
