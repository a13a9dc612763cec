//! The static rule set of host ports: the same for every pod; what pods publish is elements.
//!
//! A connection's first packet that is addressed to this host itself, and not to a loopback address, is looked up by its
//! protocol and port: first with its address, then without. Nothing else is touched: not what the host only
//! forwards, whatever its port (CVE-2025-67499), and not 127.0.0.1, which would need `route_localnet` and with it
//! open what listens there to the neighbours (CVE-2020-8558).
//!
//! The chains stand at the usual places of destination NAT (`dstnat`) and source NAT (`srcnat`).

use heddle_netlink::nft::{
    Base, Batch, Chain, Expr, Family, Hook, MapData, Nft, Rule, Ruleset, SetKey, Verdict, port, priority,
};
use heddle_spec::{Failure, code};
use ipnetwork::IpNetwork;

pub const FAMILY: Family = Family::Inet;
pub const TABLE: &str = "heddle";

/// Where an element stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Any address of the node's own, of this family.
    Any { v4: bool },
    /// One address.
    One { v4: bool },
    /// By this device to this pod: the answer would not come back through the host, so the client's address is
    /// translated too.
    Hairpin { v4: bool },
    /// From this pod to itself, likewise: with br_netfilter a frame that stays on its bridge is seen here without the
    /// device that it came in by.
    Itself { v4: bool },
    /// To this port of this pod: every client's address is translated.
    Masquerade { v4: bool },
}

/// All of them.
pub const PLACES: [Place; 10] = [
    Place::Any { v4: true },
    Place::Any { v4: false },
    Place::One { v4: true },
    Place::One { v4: false },
    Place::Hairpin { v4: true },
    Place::Hairpin { v4: false },
    Place::Itself { v4: true },
    Place::Itself { v4: false },
    Place::Masquerade { v4: true },
    Place::Masquerade { v4: false },
];

impl Place {
    /// The set's or map's name.
    pub const fn set(self) -> &'static str {
        match self {
            Self::Any { v4: true } => "hostports4",
            Self::Any { v4: false } => "hostports6",
            Self::One { v4: true } => "hostports4_on",
            Self::One { v4: false } => "hostports6_on",
            Self::Hairpin { v4: true } => "hostport_hairpins4",
            Self::Hairpin { v4: false } => "hostport_hairpins6",
            Self::Itself { v4: true } => "hostport_selves4",
            Self::Itself { v4: false } => "hostport_selves6",
            Self::Masquerade { v4: true } => "hostport_masq4",
            Self::Masquerade { v4: false } => "hostport_masq6",
        }
    }

    fn add(self, batch: &mut Batch) {
        let data = |v4| if v4 { MapData::Ipv4Port } else { MapData::Ipv6Port };
        let by_address = |v4| if v4 { SetKey::Ipv4Port } else { SetKey::Ipv6Port };
        match self {
            Self::Any { v4 } => batch.add_map(FAMILY, TABLE, self.set(), SetKey::Port, data(v4)),
            Self::One { v4 } => batch.add_map(FAMILY, TABLE, self.set(), by_address(v4), data(v4)),
            Self::Hairpin { v4 } => {
                let key = if v4 { SetKey::IfnameIpv4 } else { SetKey::IfnameIpv6 };
                batch.add_set(FAMILY, TABLE, self.set(), key);
            }
            Self::Itself { v4 } => {
                let key = if v4 { SetKey::Ipv4Pair } else { SetKey::Ipv6Pair };
                batch.add_set(FAMILY, TABLE, self.set(), key);
            }
            Self::Masquerade { v4 } => batch.add_set(FAMILY, TABLE, self.set(), by_address(v4)),
        }
    }
}

fn rule(comment: &str, parts: impl IntoIterator<Item = Vec<Expr>>) -> Rule {
    Rule { exprs: parts.into_iter().flatten().collect(), comment: comment.into() }
}

/// The rules as they are to be.
pub fn ruleset() -> Result<Ruleset, Failure> {
    let prefix = |text: &str| {
        text.parse::<IpNetwork>().map_err(|error| Failure::new(code::INTERNAL, error.to_string()))
    };
    let loopback4 = || prefix("127.0.0.0/8").map(port::not_to);
    // The kernel does not forward what has a link-local address.
    let (loopback6, link_local) =
        (prefix("::1/128").map(port::not_to), prefix("fe80::/10").map(port::not_to));
    let not6 = [loopback6?, link_local?].concat();
    let to = |v4: bool, on: bool| {
        let place = if on { Place::One { v4 } } else { Place::Any { v4 } };
        port::dnat_by_port(v4, on, place.set())
    };
    let ports = vec![
        rule("a host port of one IPv4 address", [loopback4()?, to(true, true)]),
        rule("a host port", [loopback4()?, to(true, false)]),
        rule("a host port of one IPv6 address", [not6.clone(), to(false, true)]),
        rule("a host port, IPv6", [not6, to(false, false)]),
    ];
    let entrance = |name: &str, hook| Chain {
        name: name.into(),
        base: Some(Base::nat(hook, priority::DSTNAT)),
        rules: vec![Rule::new("to this host", [port::to_this_host()], Verdict::Jump("hostports".into()))],
    };
    let back =
        |comment: &str, part: Vec<Expr>| rule(comment, [port::is_translated(), part, vec![Expr::Masquerade]]);
    let around = |v4| port::from_device_to(v4, Place::Hairpin { v4 }.set());
    let itself = |v4| port::from_address_to(v4, Place::Itself { v4 }.set());
    let all = |v4| port::to_address_by_port(v4, Place::Masquerade { v4 }.set());
    Ok(Ruleset {
        family: FAMILY,
        table: TABLE,
        sets: Vec::new(),
        chains: vec![
            Chain { name: "hostports".into(), base: None, rules: ports },
            entrance("hostport_in", Hook::Prerouting),
            entrance("hostport_local", Hook::Output),
            Chain {
                name: "hostport_back".into(),
                base: Some(Base::nat(Hook::Postrouting, priority::SRCNAT)),
                rules: vec![
                    back("answered past the host", around(true)),
                    back("answered past the host, IPv6", around(false)),
                    back("answered by itself", itself(true)),
                    back("answered by itself, IPv6", itself(false)),
                    back("as the configuration wants", all(true)),
                    back("as the configuration wants, IPv6", all(false)),
                ],
            },
        ],
    })
}

/// Adds to `batch` what is missing of the rules. Returns whether anything was.
pub fn ensure(nft: &mut Nft, batch: &mut Batch) -> Result<bool, Failure> {
    let ruleset = ruleset()?;
    let missing = nft.missing(&ruleset)?;
    if missing.is_empty() {
        return Ok(false);
    }
    batch.add_table(FAMILY, TABLE);
    PLACES.iter().for_each(|place| place.add(batch));
    nft.mend(batch, &ruleset, &missing)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_told_from_every_other_by_its_comment() {
        for chain in ruleset().unwrap().chains {
            let mut comments: Vec<_> = chain.rules.iter().map(|rule| rule.comment.clone()).collect();
            comments.sort();
            comments.dedup();
            assert_eq!(comments.len(), chain.rules.len(), "{}", chain.name);
        }
        let mut names: Vec<_> = PLACES.iter().map(|place| place.set()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), PLACES.len());
    }
}
