//! Who does the checksums of what goes into the tunnel.
//!
//! Usually nobody before the device that sends the outer packet: the kernel leaves that to it. Some devices and
//! hypervisors claim that they can and cannot, for packets in packets: every TCP segment and UDP datagram then arrives
//! with a wrong checksum and is dropped, and connections stand still for 1, 3 or 63 s, or for ever. The node that sends
//! them sees nothing of it, so it is asked of another ([`super::probe`]); where the answer is clear the kernel does
//! them itself from then on, before the packet goes into the tunnel.

use std::sync::{Mutex, PoisonError};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What the administrator chose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// Left to the device until it turns out that it cannot do them
    #[default]
    Auto,
    /// Left to the device
    On,
    /// Done by the kernel
    Off,
}

/// What was found out.
#[derive(Debug, Default)]
pub struct Finding(Mutex<Option<String>>);

impl Finding {
    pub fn new(why: Option<String>) -> Self {
        Self(Mutex::new(why))
    }

    /// Why checksums must not be left to the device, if they must not.
    pub fn why(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set(&self, why: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }
}

impl Choice {
    /// Whether they are left to the device.
    pub fn leaves_them(self, finding: &Finding) -> bool {
        match self {
            Self::On => true,
            Self::Off => false,
            Self::Auto => finding.why().is_none(),
        }
    }

    pub const fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_out_counts_where_nothing_was_chosen() {
        let (well, broken) = (Finding::default(), Finding::new(Some("n2 says so".into())));
        let left = |choice: Choice| (choice.leaves_them(&well), choice.leaves_them(&broken));
        assert_eq!(left(Choice::Auto), (true, false));
        assert_eq!(left(Choice::On), (true, true));
        assert_eq!(left(Choice::Off), (false, false));
        well.set("late".into());
        assert!(!Choice::Auto.leaves_them(&well));
    }
}
