//! What a check is, and what it is run against.

use std::fmt;
use std::process::Command;

use anyhow::Result;

use super::stage::Stage;

/// Whose plugins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// `heddle` and `heddle-ipam`: one plugin does it all.
    Ours,
    /// The reference plugins, in a chain where a task is that of several.
    Theirs,
}

/// Which plugin of theirs, and what ours does in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Ptp,
    Bridge,
    Ipam,
    Loopback,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ptp => "ptp",
            Self::Bridge => "bridge",
            Self::Ipam => "host-local",
            Self::Loopback => "loopback",
        })
    }
}

/// One thing that checks are run against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject {
    pub who: Who,
    pub part: Part,
}

/// A sentence that should be true.
#[derive(Debug)]
pub struct Check {
    /// Of the CNI specification 1.1.0, or of what else asks for it.
    pub section: &'static str,
    pub parts: &'static [Part],
    pub name: &'static str,
    /// Fails with what the subject does instead; the same words at every run.
    pub run: fn(&Stage) -> Result<()>,
}

/// Of the plugins that wire a pod.
pub const WIRED: &[Part] = &[Part::Ptp, Part::Bridge];
/// Of one of them, where the other would show the same.
pub const PTP: &[Part] = &[Part::Ptp];
pub const BRIDGE: &[Part] = &[Part::Bridge];
pub const IPAM: &[Part] = &[Part::Ipam];
pub const LOOPBACK: &[Part] = &[Part::Loopback];
pub const ALL: &[Part] = &[Part::Ptp, Part::Bridge, Part::Ipam, Part::Loopback];

/// The version of the reference plugins here, e.g. `1.1.1`. They do not know it themselves.
pub fn reference_version() -> Option<String> {
    let query = ["-W", "-f", "${Version}", "containernetworking-plugins"];
    let output = Command::new("dpkg-query").args(query).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.split(['+', '-', '~']).next()?;
    (!version.is_empty()).then(|| version.to_owned())
}
