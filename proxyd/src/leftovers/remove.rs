//! Taking away what kube-proxy has left.

use std::thread::sleep;
use std::time::Duration;

use heddle_netlink::conntrack::Conntrack;
use heddle_netlink::ipset::Sets;
use heddle_netlink::ipvs::Ipvs;
use heddle_netlink::nft::{Base, Batch, Family, Hook, Nft, priority};
use heddle_netlink::{Error, Socket, link};

use super::{Found, names};

/// A table with nothing in it but a chain for address translation. The kernel goes on translating what it has begun to
/// translate only as long as there is one of those, whoever has it.
const KEEPER: &str = "heddle-kept";

/// The rules that used a set are gone at once, but the kernel frees them later, and then the set; it tells nobody. How long
/// to wait each time, and how often.
const FREED: (Duration, u32) = (Duration::from_millis(50), 40);

/// How to take it away.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The connections too: they end.
    pub connections: bool,
}

#[expect(clippy::disallowed_methods, reason = "the kernel tells nobody when it has freed a rule's set")]
fn wait_for_the_kernel() {
    sleep(FREED.0);
}

/// Takes away what was found, all of nf_tables in one transaction. Connections that go through it go on (but for those of
/// IPVS, which has no other memory of them).
///
/// # Errors
/// The kernel's; what was done before stays done.
pub fn remove(found: &Found, options: Options) -> heddle_netlink::Result<()> {
    let mut nft = Nft::open()?;
    let mut batch = Batch::new();
    if found.connections > 0 && !options.connections {
        batch.add_table(Family::Inet, KEEPER);
        let base = Base::nat(Hook::Prerouting, priority::DSTNAT);
        batch.add_chain(Family::Inet, KEEPER, "connections", Some(&base));
    }
    nft.remove_chains(&mut batch, |chain| {
        matches!(chain.family, Family::Ip | Family::Ip6) && names::is_chain(&chain.name)
    })?;
    for table in &found.nft {
        let family = if table.starts_with("ip6 ") { Family::Ip6 } else { Family::Ip };
        batch.delete_table(family, names::TABLE);
    }
    if !batch.is_empty() {
        nft.commit(&batch)?;
    }
    if found.ipvs_device {
        if found.ipvs_services > 0
            && let Some(mut ipvs) = Ipvs::open()?
        {
            for service in ipvs.services()? {
                ipvs.delete(&service).or_else(absent)?;
            }
        }
        link::delete_by_name(&mut Socket::open()?, names::IPVS_DEVICE).or_else(absent)?;
    }
    if !found.ipsets.is_empty() {
        let mut sets = Sets::open()?;
        for name in &found.ipsets {
            let mut tried = sets.destroy(name).or_else(absent);
            for _ in 0..FREED.1 {
                if tried.is_ok() {
                    break;
                }
                wait_for_the_kernel();
                tried = sets.destroy(name).or_else(absent);
            }
            tried?;
        }
    }
    if options.connections {
        let mut conntrack = Conntrack::open()?;
        for ipv4 in [true, false] {
            for flow in conntrack.translated(ipv4)? {
                conntrack.forget(&flow).or_else(absent)?;
            }
        }
    }
    Ok(())
}

fn absent(error: Error) -> heddle_netlink::Result<()> {
    if error.not_found() { Ok(()) } else { Err(error) }
}

/// Nothing is translated any more that it would have to be kept for.
///
/// # Errors
/// The kernel's.
pub fn end_keeping() -> heddle_netlink::Result<()> {
    let mut nft = Nft::open()?;
    if nft.tables()?.iter().any(|table| table.family == Family::Inet && table.name == KEEPER) {
        let mut batch = Batch::new();
        batch.delete_table(Family::Inet, KEEPER);
        nft.commit(&batch)?;
    }
    Ok(())
}
