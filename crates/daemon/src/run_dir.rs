//! The run directory (`/run/heddle`, mode 0700): one instance of a program at a time, and the file that
//! says that it is ready.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}: {source}", path.display())]
pub struct Error {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error { what, path, source }
}

/// Whether an instance of `program` runs, ready or not.
pub fn is_running(dir: &Path, program: &str) -> Result<bool, Error> {
    let path = dir.join(format!("{program}.lock"));
    let file = match OpenOptions::new().append(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed("open", &path)(error)),
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(false),
        Err((_, Errno::EWOULDBLOCK)) => Ok(true),
        Err((_, error)) => Err(failed("lock", &path)(error.into())),
    }
}

/// The lock, or the file if somebody else has it.
fn lock(dir: &Path, path: &Path) -> Result<Result<Flock<File>, File>, Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("create directory", dir))?;
    let open = || OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    let file = open().map_err(failed("open", path))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Ok(lock)),
        Err((file, Errno::EWOULDBLOCK)) => Ok(Err(file)),
        Err((_, error)) => Err(failed("lock", path)(error.into())),
    }
}

/// This program's place in the run directory, held until it is dropped (or the process dies).
#[derive(Debug)]
pub struct Instance {
    ready: PathBuf,
    // Held for its lock.
    _lock: Flock<File>,
}

impl Instance {
    /// Takes the program's lock, waiting for another instance to end: in a rolling update the old one
    /// may still run. A ready file that an instance left behind (SIGKILL) is removed. Blocks the thread;
    /// `waiting` is called once if it must wait.
    pub fn take(dir: &Path, program: &str, waiting: impl FnOnce()) -> Result<Self, Error> {
        let path = dir.join(format!("{program}.lock"));
        match lock(dir, &path)? {
            Ok(lock) => Self::with(lock, dir, program),
            Err(mut file) => {
                waiting();
                loop {
                    match Flock::lock(file, FlockArg::LockExclusive) {
                        Ok(lock) => return Self::with(lock, dir, program),
                        Err((same, Errno::EINTR)) => file = same,
                        Err((_, error)) => return Err(failed("lock", &path)(error.into())),
                    }
                }
            }
        }
    }

    /// As [`take`](Self::take), but `None` while another instance runs.
    pub fn try_take(dir: &Path, program: &str) -> Result<Option<Self>, Error> {
        let path = dir.join(format!("{program}.lock"));
        lock(dir, &path)?.ok().map(|lock| Self::with(lock, dir, program)).transpose()
    }

    fn with(lock: Flock<File>, dir: &Path, program: &str) -> Result<Self, Error> {
        let ready = dir.join(format!("{program}.ready"));
        match fs::remove_file(&ready) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &ready)(error)),
            _ => Ok(Self { ready, _lock: lock }),
        }
    }

    /// Puts what the program knows of itself where [`published`] finds it, as JSON.
    pub fn publish(&self, status: &impl serde::Serialize) -> Result<(), Error> {
        let path = self.ready.with_extension("status");
        let write = || {
            let text = serde_json::to_vec(status)?;
            replace(&path, &text)
        };
        write().map_err(failed("write", &path))
    }

    /// Says that the program is ready: the ready file, holding the process id, appears with its content
    /// in one step.
    pub fn ready(&self) -> Result<(), Error> {
        let text = format!("{}\n", std::process::id());
        replace(&self.ready, text.as_bytes()).map_err(failed("write", &self.ready))
    }
}

/// A file appears with its content in one step.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text)?;
    fs::rename(&new, path)
}

/// What the running instance of `program` has published last. `None`: none runs, or it has not yet.
pub fn published<T: serde::de::DeserializeOwned>(dir: &Path, program: &str) -> Result<Option<T>, Error> {
    if !is_running(dir, program)? {
        return Ok(None);
    }
    let path = dir.join(format!("{program}.status"));
    let read = || match fs::read(&path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    read().map_err(failed("read", &path))
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Absent if the program never was ready; and there is nothing to do about another error.
        let _ = fs::remove_file(&self.ready);
        let _ = fs::remove_file(self.ready.with_extension("status"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn the_ready_file_lives_between_ready_and_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("heddle");
        fs::create_dir(&run).unwrap();
        let file = run.join("p.ready");
        fs::write(&file, "stale").unwrap();
        assert!(!is_running(&run, "p").unwrap());
        let instance = Instance::take(&run, "p", || panic!("nobody holds it")).unwrap();
        assert!(!file.exists(), "the one left behind is gone");
        assert!(is_running(&run, "p").unwrap());
        instance.ready().unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("{}\n", std::process::id()));
        drop(instance);
        assert!(!file.exists() && !is_running(&run, "p").unwrap());
    }

    #[test]
    fn the_second_instance_waits_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = Instance::take(dir.path(), "p", || panic!("nobody holds it")).unwrap();
        first.ready().unwrap();
        assert!(Instance::try_take(dir.path(), "p").unwrap().is_none());
        let (waits, waiting) = mpsc::channel();
        let (takes, taken) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let second = Instance::take(dir.path(), "p", || waits.send(()).unwrap()).unwrap();
                takes.send(()).unwrap();
                drop(second);
            });
            waiting.recv().unwrap();
            assert!(taken.try_recv().is_err() && dir.path().join("p.ready").exists());
            drop(first);
            taken.recv().unwrap();
        });
    }
}
