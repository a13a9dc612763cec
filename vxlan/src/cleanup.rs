//! `vxland cleanup`: the node as it was before vxland. SIGTERM does nothing of this.

use heddle_netlink::nft::{Batch, Family, ListedChain, Nft};
use heddle_netlink::{Socket, link};
use serde::Serialize;

use crate::events::POD_PREFIX;
use crate::kernel::{self, Applier};
use crate::plan::{Part, Step, plan};
use crate::report::Report;
use crate::state::KernelState;
use crate::status::Places;
use crate::{forwarding, handoff};

/// What was done, and what could not be.
#[derive(Debug, Default, Serialize)]
pub struct Cleanup {
    pub removed: Vec<String>,
    pub failed: Vec<String>,
}

/// Removes everything of vxland. Goes on after a failure; what is not there is not an error.
pub fn cleanup(places: &Places) -> Cleanup {
    let mut done = Cleanup::default();
    // First, so that no pod is made on a node that is being taken apart.
    match handoff::remove(&places.cni_conf_dir) {
        Ok(true) => done.removed.push(places.cni_conf_dir.join(handoff::CONFLIST).display().to_string()),
        Ok(false) => {}
        Err(error) => done.failed.push(error.to_string()),
    }
    if let Err(error) = kernel(places, &mut done) {
        done.failed.push(error.to_string());
    }
    match spoofing_rule() {
        Ok(true) => done.removed.push(format!("nftables chain inet {TABLE} {CHAIN}")),
        Ok(false) => {}
        Err(error) => done.failed.push(error.to_string()),
    }
    match forwarding::restore(&places.run_dir) {
        Ok(restored) => done.removed.extend(restored),
        Err(error) => done.failed.push(error.to_string()),
    }
    if let Err(error) = Report::remove(&places.run_dir) {
        done.failed.push(error.to_string());
    }
    done
}

fn kernel(places: &Places, done: &mut Cleanup) -> Result<(), kernel::ApplyError> {
    let device = kernel::device_name(places.vni);
    let mut socket = Socket::open()?;
    let observed = kernel::observe(&mut socket, &device)?;
    let mut applier = Applier::new(&mut socket, &device)?;
    for step in plan(&observed, &KernelState::default()) {
        match applier.take(&step) {
            Ok(()) => done.removed.push(match step.part() {
                Part::Device => format!("device {device}"),
                part => part.to_string(),
            }),
            Err(error) => done.failed.push(error.to_string()),
        }
        debug_assert!(
            matches!(step, Step::RemoveDevice | Step::RemoveLeftover(_) | Step::RemoveRoute(..)),
            "{step:?}"
        );
    }
    Ok(())
}

/// Where the CNI plugin keeps the one rule that it has for all pods.
const TABLE: &str = "heddle";
const CHAIN: &str = "spoofing";

/// Removes the plugin's rule, which outlives its pods, when there are none any more: nobody else will. Returns
/// whether it was there.
fn spoofing_rule() -> heddle_netlink::Result<bool> {
    if link::list(&mut Socket::open()?)?.iter().any(|link| link.name.starts_with(POD_PREFIX)) {
        return Ok(false);
    }
    let mut nft = Nft::open()?;
    let in_table = |chain: &ListedChain| chain.family == Family::Inet && chain.table == TABLE;
    let chains: Vec<String> = nft.chains()?.into_iter().filter(in_table).map(|chain| chain.name).collect();
    if !chains.iter().any(|name| name == CHAIN) {
        return Ok(false);
    }
    let mut batch = Batch::new();
    if chains.len() == 1 {
        batch.delete_table(Family::Inet, TABLE);
    } else {
        batch.flush_chain(Family::Inet, TABLE, CHAIN);
        batch.delete_chain(Family::Inet, TABLE, CHAIN);
    }
    nft.commit(&batch)?;
    Ok(true)
}

/// What was done as people read it.
pub fn text(cleanup: &Cleanup) -> String {
    let removed = cleanup.removed.iter().map(|what| format!("removed or restored: {what}\n"));
    let text: String = removed.collect();
    if text.is_empty() && cleanup.failed.is_empty() {
        "there was nothing to remove\n".to_owned()
    } else {
        text
    }
}
