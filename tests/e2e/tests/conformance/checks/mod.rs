//! The table.

mod add;
mod attachments;
mod check;
mod del;
mod ipam;
mod loopback;
mod packets;
mod parameters;
mod results;

use super::subject::Check;

/// All checks, in the order of the page.
pub fn all() -> impl Iterator<Item = &'static Check> {
    [
        parameters::CHECKS,
        add::CHECKS,
        del::CHECKS,
        check::CHECKS,
        attachments::CHECKS,
        results::CHECKS,
        packets::CHECKS,
        ipam::CHECKS,
        loopback::CHECKS,
    ]
    .into_iter()
    .flatten()
}
