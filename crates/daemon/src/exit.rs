//! Exit codes, and how an error is told at the end.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

/// Something failed at run time.
pub const FAILED: u8 = 1;
/// The command line or the configuration is wrong; starting again will not help.
pub const USAGE: u8 = 2;
/// The kernel, or this build, lacks something that is needed (`EX_CONFIG` of sysexits.h).
pub const UNSUPPORTED: u8 = 78;

type Cause = Box<dyn Error + Send + Sync>;

/// Why a program ends unsuccessfully; decides the exit code. Any error becomes `Runtime` by `?`.
#[derive(Debug)]
pub enum Failure {
    Runtime(Cause),
    Usage(Cause),
    Unsupported(Cause),
}

impl Failure {
    pub fn usage(cause: impl Into<Cause>) -> Self {
        Self::Usage(cause.into())
    }

    pub fn unsupported(cause: impl Into<Cause>) -> Self {
        Self::Unsupported(cause.into())
    }

    pub fn runtime(cause: impl Into<Cause>) -> Self {
        Self::Runtime(cause.into())
    }

    /// The exit code.
    pub const fn code(&self) -> u8 {
        match self {
            Self::Runtime(_) => FAILED,
            Self::Usage(_) => USAGE,
            Self::Unsupported(_) => UNSUPPORTED,
        }
    }

    pub fn cause(&self) -> &(dyn Error + Send + Sync + 'static) {
        match self {
            Self::Runtime(cause) | Self::Usage(cause) | Self::Unsupported(cause) => cause.as_ref(),
        }
    }
}

// `Failure` is no `Error` itself: that is what makes this conversion possible.
impl<E: Into<Cause>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Runtime(error.into())
    }
}

/// What `main` returns: the outcome, with an error printed to stderr as `program: error: cause: cause`.
pub fn report(program: &str, outcome: Result<(), Failure>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(program, failure.cause());
            failure.code().into()
        }
    }
}

pub(crate) fn complain(program: &str, error: &dyn Error) {
    // There is nobody left to tell when stderr is closed.
    let _ = writeln!(std::io::stderr(), "{program}: {}", chain(error));
}

/// An error and its causes on one line. A cause that the messages above it already tell is not repeated.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the door")]
    struct Door(#[source] std::io::Error);

    #[test]
    fn causes_are_told_once() {
        let error = Door(std::io::Error::other("no key"));
        assert_eq!(chain(&error), "cannot open the door: no key");
        assert_eq!(Failure::from(error).code(), FAILED);
        assert_eq!(Failure::usage("x").code(), USAGE);
        assert_eq!(Failure::unsupported("x").code(), UNSUPPORTED);
    }
}
