//! One static rule for all pods: what comes from a pod must come from that pod's address.

use heddle_netlink::nft::expr::{iifname, source_is_spoofed};
use heddle_netlink::nft::{Base, Family, Hook, Nft, Rule, Verdict, priority};

use crate::spec::Failure;
use crate::veth::PREFIX;

const TABLE: &str = "heddle";
const CHAIN: &str = "spoofing";

/// Makes sure of the rule: `iifname "hdl*" fib saddr . iif oif missing drop`, before connection tracking.
///
/// The routing table is what it checks against, so it never has to be touched for a pod. It stays when the
/// last pod goes: it costs nothing, and an ADD that runs beside that DEL relies on it.
pub fn ensure() -> Result<(), Failure> {
    let spoofed = [iifname(&format!("{PREFIX}*")), source_is_spoofed()];
    let rule = Rule::new("a pod sends from its own addresses", spoofed, Verdict::Drop);
    let base = Base::filter(Hook::Prerouting, priority::RAW);
    Nft::open()?.ensure_chain(Family::Inet, TABLE, CHAIN, &base, &[rule])?;
    Ok(())
}
