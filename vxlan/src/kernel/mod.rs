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
