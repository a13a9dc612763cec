//! What can go wrong with leases.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use heddle_spec::{Failure, InvalidName, code};

/// A failure to lease or to free an address.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be meant. `key` is where: `ipam.ranges[0][1].rangeEnd`.
    #[error("{key}: {reason}")]
    Config { key: String, reason: String },
    /// A name that came from outside is not one.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// Every address of the range set is leased.
    #[error("no free address in {ranges}: {held}")]
    Exhausted { ranges: String, held: String },
    /// The address that was asked for belongs to another interface.
    #[error("address {address} is leased to {holder}")]
    Taken { address: std::net::IpAddr, holder: String },
    /// The address that was asked for is in none of the ranges, or is not for pods.
    #[error("address {address} cannot be given: {reason}")]
    Unavailable { address: std::net::IpAddr, reason: &'static str },
    /// Somebody holds the lock for too long.
    #[error("cannot lock {}: another program has held it for {} s", path.display(), waited.as_secs())]
    Locked { path: PathBuf, waited: Duration },
    /// The kernel would not say whose an address is.
    #[error(transparent)]
    Kernel(#[from] heddle_netlink::Error),
    /// The file system refused.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
}

/// The result of an operation on leases.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn config(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Config { key: key.into(), reason: reason.into() }
    }

    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::Io { operation, path: path.into(), source: source.into() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Config { .. } | Error::Unavailable { .. } | Error::Taken { .. } => code::INVALID_CONFIG,
            Error::Name(_) => code::INVALID_ENVIRONMENT,
            Error::Exhausted { .. } => code::NO_ADDRESS,
            Error::Locked { .. } => code::TRY_LATER,
            Error::Io { .. } => code::IO,
            Error::Kernel(_) => code::KERNEL,
        };
        Self::new(code, error.to_string())
    }
}
