//! The lab is built and examined with other people's programs, `ip`, `bridge`, `nft` and `tc`: a mistake in
//! Heddle's own netlink code must not be able to hide itself.

use crate::cmd::Cmd;
use crate::error::Result;
use crate::place::Place;

/// Carries out lines of `ip -batch`.
pub(crate) fn ip(place: &Place, batch: &str) -> Result<()> {
    place.run(Cmd::from("ip -batch -").stdin(batch)).map(drop)
}

/// Carries out an nft script, as one transaction.
pub(crate) fn nft(place: &Place, script: &str) -> Result<()> {
    place.run(Cmd::from("nft -f -").stdin(script)).map(drop)
}

/// Sets sysctls below `/proc/sys/net`, e.g. `ipv4/ip_forward` to `0`.
pub(crate) fn sysctls(place: &Place, values: &[(&str, &str)]) -> Result<()> {
    place.enter(|| {
        values.iter().try_for_each(|(key, value)| crate::error::write(format!("/proc/sys/net/{key}"), value))
    })?
}
