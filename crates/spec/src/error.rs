//! Failures as the specification wants them told (section 5, "Error").

use serde_json::{Value, json};

use crate::{InvalidName, Version};

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
    /// STATUS: as 50, and pods that are there may not be reached.
    pub const LIMITED: u32 = 51;
    /// No address is free.
    pub const NO_ADDRESS: u32 = 100;
    /// The kernel refused.
    pub const KERNEL: u32 = 101;
    /// The interface exists already.
    pub const EXISTS: u32 = 102;
    /// The IPAM plugin that the configuration names is not there, or did not answer as a plugin does.
    pub const DELEGATE: u32 = 103;
    /// Another pod has the port of the node that this one is to have.
    pub const PORT_TAKEN: u32 = 104;
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

    /// The kernel refused.
    pub fn kernel(error: impl std::fmt::Display) -> Self {
        Self::new(code::KERNEL, error.to_string())
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

/// What is at `key` of the configuration makes no sense.
pub fn invalid(key: &str, reason: impl std::fmt::Display) -> Failure {
    Failure::new(code::INVALID_CONFIG, format!("{key}: {reason}"))
}

impl From<heddle_netlink::Error> for Failure {
    fn from(error: heddle_netlink::Error) -> Self {
        Self::kernel(error)
    }
}

impl From<InvalidName> for Failure {
    fn from(error: InvalidName) -> Self {
        Self::new(code::INVALID_ENVIRONMENT, error.to_string())
    }
}
