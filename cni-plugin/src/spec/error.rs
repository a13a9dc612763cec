//! Failures as the specification wants them told (section 5, "Error").

use serde_json::{Value, json};

use super::Version;

/// Error codes: below 100 those of the specification, from 100 on ours.
pub mod code {
    /// The configuration's `cniVersion` is not one that we speak.
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    /// A key that we know is set to something that we cannot do.
    pub const UNSUPPORTED_FIELD: u32 = 2;
    /// The container does not exist; nothing needs to be cleaned up.
    pub const UNKNOWN_CONTAINER: u32 = 3;
    /// A `CNI_*` variable is missing or makes no sense.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// A file cannot be read or written.
    pub const IO: u32 = 5;
    /// What came on standard input is not JSON.
    pub const DECODE: u32 = 6;
    /// The configuration makes no sense.
    pub const INVALID_CONFIG: u32 = 7;
    /// Trying again later may help.
    pub const TRY_LATER: u32 = 11;
    /// STATUS: no ADD would succeed now.
    pub const NOT_AVAILABLE: u32 = 50;
    /// No address is free.
    pub const NO_ADDRESS: u32 = 100;
    /// The kernel refused.
    pub const KERNEL: u32 = 101;
    /// The interface exists already.
    pub const EXISTS: u32 = 102;
    /// We did something that we did not mean to.
    pub const INTERNAL: u32 = 999;
}

/// A failure: what standard output will say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: u32,
    pub msg: String,
    pub details: String,
}

impl Failure {
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The object that the specification wants on standard output.
    pub fn to_json(&self, version: Version) -> Value {
        let mut object = json!({ "cniVersion": version.as_str(), "code": self.code, "msg": self.msg });
        if !self.details.is_empty() {
            object["details"] = self.details.clone().into();
        }
        object
    }
}

impl From<heddle_netlink::Error> for Failure {
    fn from(error: heddle_netlink::Error) -> Self {
        Self::new(code::KERNEL, error.to_string())
    }
}

impl From<heddle_ipam::Error> for Failure {
    fn from(error: heddle_ipam::Error) -> Self {
        use heddle_ipam::Error;
        let code = match &error {
            Error::Config { .. } | Error::Unavailable { .. } | Error::Taken { .. } => code::INVALID_CONFIG,
            Error::Name { .. } => code::INVALID_ENVIRONMENT,
            Error::Exhausted { .. } => code::NO_ADDRESS,
            Error::Locked { .. } => code::TRY_LATER,
            Error::Io { .. } => code::IO,
        };
        Self::new(code, error.to_string())
    }
}

impl From<heddle_bpf::Error> for Failure {
    fn from(error: heddle_bpf::Error) -> Self {
        Self::new(code::KERNEL, error.to_string())
    }
}
