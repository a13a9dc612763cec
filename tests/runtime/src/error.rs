//! What can go wrong with a runtime.

use std::fmt;

/// A failure of a runtime, or of the way to it.
#[derive(thiserror::Error)]
pub enum Error {
    /// The runtime refused a call.
    #[error("{method}: {message} (gRPC status {code})")]
    Status { method: &'static str, code: i32, message: String },
    /// The Lab's own failure.
    #[error(transparent)]
    Lab(#[from] heddle_lab::Error),
    /// Something else, on the way.
    #[error("cannot {what}: {why}")]
    Other { what: String, why: String },
}

impl Error {
    /// `what` completes "cannot ...".
    pub fn new(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self::Other { what: what.into(), why: why.to_string() }
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
