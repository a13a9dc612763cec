//! The table.

mod add;
mod attachments;
mod bridge;
mod chain;
mod check;
mod del;
mod delegation;
mod ipam;
mod loopback;
mod packets;
mod parameters;
mod ports;
mod results;
mod shaping;

use super::subject::Check;

/// Those that not every kernel can carry out, and so are not on the page.
pub use bridge::VLANS;

/// All checks, in the order of the page.
pub fn all() -> impl Iterator<Item = &'static Check> {
    [
        parameters::CHECKS,
        add::CHECKS,
        del::CHECKS,
        check::CHECKS,
        attachments::CHECKS,
        chain::CHECKS,
        delegation::CHECKS,
        results::CHECKS,
        packets::CHECKS,
        bridge::CHECKS,
        ports::CHECKS,
        shaping::CHECKS,
        ipam::CHECKS,
        loopback::CHECKS,
    ]
    .into_iter()
    .flatten()
}
