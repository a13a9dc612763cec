//! The commands of the specification.

pub mod add;
pub mod check;
pub mod del;
pub mod equip;
pub mod gc;
pub mod status;

use std::time::Duration;

use heddle_spec::{Failure, code};

/// How long another program may hold the leases' lock before we give up. Kubelet's own limit is minutes.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The identity of the running boot.
pub fn boot_id() -> Result<String, Failure> {
    let path = "/proc/sys/kernel/random/boot_id";
    std::fs::read_to_string(path)
        .map(|id| id.trim().to_owned())
        .map_err(|error| Failure::new(code::IO, format!("cannot read {path}: {error}")))
}
