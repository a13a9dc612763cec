//! What the kernel refused, to do what, in its own words.

use std::fmt;
use std::io;

use nix::errno::Errno;

/// A failed operation on the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel answered with an error.
    #[error("cannot {operation} {object}: {}{}", words(*.errno), detail(.message.as_deref(), *.errno))]
    Kernel {
        /// What was tried: `add`, `delete`, `list`.
        operation: &'static str,
        /// To what: `route 10.1.2.0/24`.
        object: String,
        errno: Errno,
        /// The kernel's explanation (NETLINK_EXT_ACK), where it gave one.
        message: Option<String>,
    },
    /// The conversation with the kernel failed, or a file of /proc or a namespace.
    #[error("cannot {operation} {object}: {source}")]
    Io { operation: &'static str, object: String, source: io::Error },
    /// The kernel's answer makes no sense to us.
    #[error("cannot {operation} {object}: the kernel's answer is not understood: {detail}")]
    Answer { operation: &'static str, object: String, detail: String },
    /// What was asked for cannot be asked of the kernel.
    #[error("cannot {operation} {object}: {detail}")]
    Invalid { operation: &'static str, object: String, detail: String },
}

/// The result of an operation on the kernel.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn kernel(
        operation: &'static str,
        object: impl fmt::Display,
        errno: Errno,
        message: Option<String>,
    ) -> Self {
        Self::Kernel { operation, object: object.to_string(), errno, message }
    }

    pub(crate) fn io(operation: &'static str, object: impl fmt::Display, source: io::Error) -> Self {
        Self::Io { operation, object: object.to_string(), source }
    }

    pub(crate) fn errno_of(operation: &'static str, object: impl fmt::Display, errno: Errno) -> Self {
        Self::Kernel { operation, object: object.to_string(), errno, message: None }
    }

    pub(crate) fn answer(
        operation: &'static str,
        object: impl fmt::Display,
        detail: impl fmt::Display,
    ) -> Self {
        Self::Answer { operation, object: object.to_string(), detail: detail.to_string() }
    }

    pub(crate) fn invalid(
        operation: &'static str,
        object: impl fmt::Display,
        detail: impl fmt::Display,
    ) -> Self {
        Self::Invalid { operation, object: object.to_string(), detail: detail.to_string() }
    }

    /// The kernel's error number, if it was the kernel that refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Kernel { errno, .. } => Some(*errno),
            Self::Io { source, .. } => source.raw_os_error().map(Errno::from_raw),
            Self::Answer { .. } | Self::Invalid { .. } => None,
        }
    }

    /// The object exists already (EEXIST).
    pub fn already_exists(&self) -> bool {
        self.errno() == Some(Errno::EEXIST)
    }

    /// The kernel was built without what was asked of it (EOPNOTSUPP).
    pub fn is_unsupported(&self) -> bool {
        self.errno() == Some(Errno::EOPNOTSUPP)
    }

    /// The object, or the device it belongs to, does not exist. The kernel has four words for it: ENOENT
    /// (files, neighbours, nf_tables), ENODEV (links), ESRCH (routes), EADDRNOTAVAIL (addresses).
    pub fn not_found(&self) -> bool {
        matches!(
            self.errno(),
            Some(Errno::ENOENT | Errno::ENODEV | Errno::ESRCH | Errno::EADDRNOTAVAIL | Errno::ENXIO)
        )
    }
}

/// The words of an error number as they read inside a sentence.
fn words(errno: Errno) -> String {
    let words = errno.desc();
    let mut letters = words.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => errno.to_string(),
    }
}

/// The kernel's explanation and our hint, in brackets.
fn detail(message: Option<&str>, errno: Errno) -> String {
    let hint = match errno {
        Errno::EPERM => Some("CAP_NET_ADMIN is needed in that namespace"),
        Errno::ENETUNREACH => Some("is the device up and the gateway on it?"),
        Errno::ENETDOWN => Some("the device is down"),
        Errno::EOPNOTSUPP => Some("does this kernel have the feature?"),
        _ => None,
    };
    match (message, hint) {
        (Some(message), Some(hint)) => format!(" ({message}; {hint})"),
        (Some(only), None) | (None, Some(only)) => format!(" ({only})"),
        (None, None) => String::new(),
    }
}

/// Turns an absent object into success, for deletions that are to be idempotent.
pub trait Absent {
    /// `Ok` where the object was not there in the first place.
    fn or_absent(self) -> Self;
}

impl Absent for Result<()> {
    fn or_absent(self) -> Self {
        match self {
            Err(error) if error.not_found() => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_operation_object_and_the_kernels_words() {
        let error = Error::kernel("add", "route 10.1.2.0/24 dev 7", Errno::ENETUNREACH, None);
        assert_eq!(
            error.to_string(),
            "cannot add route 10.1.2.0/24 dev 7: network is unreachable (is the device up and the gateway on it?)"
        );
        let error = Error::kernel("create", "link a", Errno::EINVAL, Some("bad name".into()));
        assert_eq!(error.to_string(), "cannot create link a: invalid argument (bad name)");
    }

    #[test]
    fn absence_is_success_only_for_absence() {
        let absent: Result<()> = Err(Error::errno_of("delete", "link a", Errno::ENODEV));
        assert!(absent.or_absent().is_ok());
        let refused: Result<()> = Err(Error::errno_of("delete", "link a", Errno::EPERM));
        assert!(refused.or_absent().is_err());
    }
}
