//! What can go wrong with a cluster.

use std::fmt;

/// A failure of the cluster, or of the way to it.
#[derive(thiserror::Error)]
pub enum Error {
    /// The API server refused a request.
    #[error("{request}: {code} {reason}: {message}")]
    Status { request: String, code: u16, reason: String, message: String },
    /// The Lab's own failure.
    #[error(transparent)]
    Lab(#[from] heddle_lab::Error),
    /// A container runtime's.
    #[error(transparent)]
    Runtime(#[from] heddle_runtime::Error),
    /// Something else, on the way.
    #[error("cannot {what}: {why}")]
    Other { what: String, why: String },
}

impl Error {
    /// `what` completes "cannot ...".
    pub fn new(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self::Other { what: what.into(), why: why.to_string() }
    }

    /// The HTTP status with which the API server refused.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Status { code, .. } => Some(*code),
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

/// The result of everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

pub(crate) fn write(path: &std::path::Path, content: impl AsRef<[u8]>) -> Result<()> {
    std::fs::write(path, content).map_err(|e| Error::new(format!("write {}", path.display()), e))
}

pub(crate) fn mkdir(path: &std::path::Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|e| Error::new(format!("create {}", path.display()), e))
}
