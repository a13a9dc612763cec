//! Asking the helper.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::protocol::{self, Answer, Gone, Request};

/// How long it may take to look through all namespaces of a node.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why it did not answer.
#[derive(Debug, thiserror::Error)]
#[error("cannot ask {}: {source} (does proxyd-sockets run?)", path.display())]
pub struct Error {
    path: PathBuf,
    source: io::Error,
}

/// Is it there?
///
/// # Errors
/// If nobody answers.
pub fn hello(run_dir: &Path) -> Result<Answer, Error> {
    ask(&super::socket(run_dir), &Request::Hello)
}

/// Has sockets destroyed. `path`: where the helper listens.
///
/// # Errors
/// As [`hello`].
pub fn destroy(path: &Path, gone: Vec<Gone>) -> Result<Answer, Error> {
    ask(path, &Request::Destroy(gone))
}

fn ask(path: &Path, request: &Request) -> Result<Answer, Error> {
    let talk = || {
        let mut stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        protocol::send(&mut stream, request)?;
        protocol::receive(&mut stream)
    };
    talk().map_err(|source| Error { path: path.to_owned(), source })
}
