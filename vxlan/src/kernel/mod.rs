//! The kernel's side: read what is there, take the steps of a plan.

mod apply;
mod observe;
#[cfg(test)]
mod tests;

pub use apply::{Applier, ApplyError};
pub use observe::{observe, underlay};

/// The VXLAN device's name.
pub fn device_name(vni: u32) -> String {
    format!("heddle.{vni}")
}

/// The name of the second device beside the one called `name`. No longer than the other: for the largest VNI that is as
/// long as a name may be (IFNAMSIZ).
pub fn beside_name(name: &str) -> String {
    name.replacen('.', "-", 1)
}
