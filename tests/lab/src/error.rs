//! What can go wrong while a lab is built or used.

use std::fmt;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// A failure of the lab itself or of a program run in it.
#[derive(thiserror::Error)]
pub enum Error {
    /// The kernel refused something.
    #[error("cannot {what}: {source}")]
    Io { what: String, source: io::Error },
    /// A program ended with a failure.
    #[error("`{command}` in {place} failed: {status}{output}")]
    Command { command: String, place: String, status: String, output: String },
    /// Something awaited did not happen.
    #[error("{what} did not happen within {waited:?}{detail}")]
    Timeout { what: String, waited: Duration, detail: String },
    /// A CNI plugin answered with an error, or with something that is no answer.
    #[error("CNI {command} of `{plugin}` for {pod}: {message}")]
    Cni { command: &'static str, plugin: String, pod: String, message: String },
    /// A client was not answered.
    #[error("{to}/{proto} did not answer {place}: {source}")]
    NoAnswer { to: SocketAddr, proto: &'static str, place: String, source: io::Error },
    /// This machine lacks something; the test that needs it is to be skipped by name.
    #[error("not possible here: {0}")]
    Unsupported(String),
    /// What an oracle found.
    #[error("{0}")]
    Oracle(String),
}

impl Error {
    /// What the kernel said, where it was the kernel.
    pub fn kind(&self) -> Option<io::ErrorKind> {
        match self {
            Self::Io { source, .. } | Self::NoAnswer { source, .. } => Some(source.kind()),
            _ => None,
        }
    }
}

/// As [`Display`](fmt::Display), because this is what a test prints that ends with an error.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The result of everything in the lab.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Names the operation that failed.
pub(crate) trait Context<T> {
    /// `what` completes "cannot ...".
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::Io { what: what(), source: e.into() })
    }
}

pub(crate) fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> Result<()> {
    let path = path.as_ref();
    std::fs::write(path, content).context(|| format!("write {}", path.display()))
}

pub(crate) fn mkdir(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    std::fs::create_dir_all(path).context(|| format!("create directory {}", path.display()))
}

/// Says, past libtest's capture, that this test cannot run on this machine; the test then returns. `./x test`
/// lists what was skipped, and fails under `CI=true`.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let line = format!("skipped: {}: {reason}\n", thread.name().unwrap_or("a test"));
    let _ = io::stderr().write_all(line.as_bytes());
}
