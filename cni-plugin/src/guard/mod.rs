//! What comes from a pod must come from that pod's addresses.
//!
//! In mode ptp that is one static rule for all pods, checked against the routing table. Frames on a bridge do
//! not meet the routing table: there a static rule set looks into sets of what each pod may call itself
//! ([`bridge`]).

mod bridge;

pub use bridge::{admit, all, held, lacks};

use heddle_netlink::nft::expr::{Side, address, iifname, source_is_spoofed};
use heddle_netlink::nft::frame::not_iifname;
use heddle_netlink::nft::{Base, Batch, Chain, Family, Hook, Nft, Rule, Ruleset, Verdict, priority};
use heddle_spec::{Failure, code};
use ipnetwork::IpNetwork;

use crate::veth::PREFIX;

/// The table of all of our rules, in the families inet and bridge.
pub const TABLE: &str = "heddle";
const CHAIN: &str = "spoofing";

/// Makes sure of the rules for mode ptp, before connection tracking:
///
/// ```text
/// iifname != "lo" ip daddr 127.0.0.0/8 drop
/// iifname "hdl*" fib saddr . iif oif missing drop
/// ```
///
/// They stay when the last pod goes: they cost nothing, and an ADD that runs beside that DEL relies on them.
pub fn ensure() -> Result<(), Failure> {
    let ruleset = ruleset()?;
    let mut nft = Nft::open()?;
    let missing = nft.missing(&ruleset)?;
    if missing.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::new();
    nft.mend(&mut batch, &ruleset, &missing)?;
    Ok(nft.commit(&batch)?)
}

/// Whether the rules for mode ptp are there.
pub fn is_there() -> Result<bool, Failure> {
    Ok(Nft::open()?.missing(&ruleset()?)?.is_empty())
}

fn ruleset() -> Result<Ruleset, Failure> {
    let loopback = IpNetwork::new([127, 0, 0, 0].into(), 8)
        .map_err(|error| Failure::new(code::INTERNAL, error.to_string()))?;
    let rules = vec![
        // The kernel says so too, unless somebody sets route_localnet.
        Rule::new(
            "only this host itself sends to 127.0.0.0/8",
            [not_iifname("lo"), address(Side::Destination, loopback)],
            Verdict::Drop,
        ),
        Rule::new(
            "a pod sends from its own addresses",
            [iifname(&pods()), source_is_spoofed()],
            Verdict::Drop,
        ),
    ];
    let base = Some(Base::filter(Hook::Prerouting, priority::RAW));
    let chain = Chain { name: CHAIN.into(), base, rules };
    Ok(Ruleset { family: Family::Inet, table: TABLE, sets: Vec::new(), chains: vec![chain] })
}

fn pods() -> String {
    format!("{PREFIX}*")
}
