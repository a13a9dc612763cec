//! The versions of the specification and how their results differ.

use std::fmt;

use crate::{Failure, code};

/// A version of the specification. Its result has one of three shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    V0_1_0,
    V0_2_0,
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

/// All that we speak, oldest first.
pub const SUPPORTED: [Version; 7] = [
    Version::V0_1_0,
    Version::V0_2_0,
    Version::V0_3_0,
    Version::V0_3_1,
    Version::V0_4_0,
    Version::V1_0_0,
    Version::V1_1_0,
];

impl Version {
    /// The newest that we speak; for answers to requests that do not say which.
    pub const LATEST: Self = Self::V1_1_0;

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Reads `cniVersion`. A configuration without one is of 0.1.0, which did not know the key.
    pub fn parse(text: Option<&str>) -> Result<Self, Failure> {
        let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(Self::V0_1_0) };
        SUPPORTED.into_iter().find(|version| version.as_str() == text).ok_or_else(|| {
            let known: Vec<_> = SUPPORTED.iter().map(|version| version.as_str()).collect();
            Failure::new(code::INCOMPATIBLE_VERSION, format!("cniVersion {text:?} is not supported"))
                .with_details(format!("supported are {}", known.join(", ")))
        })
    }

    /// Results with `ip4` and `ip6` instead of a list.
    pub const fn has_one_address_a_family(self) -> bool {
        matches!(self, Self::V0_1_0 | Self::V0_2_0)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
