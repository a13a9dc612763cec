//! `vxland cleanup`: the node as it was before vxland. SIGTERM does nothing of this.

use heddle_netlink::nft::{Batch, Family, ListedChain, Nft};
use heddle_netlink::{Socket, link};
use serde::Serialize;

use crate::events::POD_PREFIX;
use crate::kernel::{self, Applier};
use crate::plan::{Part, Step, plan};
use crate::report::{Left, Report};
use crate::state::KernelState;
use crate::status::Places;
use crate::{edge, forwarding, handoff};

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
    match plugin_rules() {
        Ok(removed) => done.removed.extend(removed),
        Err(error) => done.failed.push(error.to_string()),
    }
    match forwarding::restore(&places.run_dir) {
        Ok(restored) => done.removed.extend(restored),
        Err(error) => done.failed.push(error.to_string()),
    }
    match edge::clean(&places.run_dir) {
        Ok(removed) => done.removed.extend(removed),
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
            matches!(
                step,
                Step::RemoveDevice | Step::RemoveBeside | Step::RemoveLeftover(_) | Step::RemoveRoute(..)
            ),
            "{step:?}"
        );
    }
    Ok(())
}

/// Where the CNI plugin keeps its rules: against spoofed addresses, and for masquerading and host ports. The table
/// is its alone.
const TABLE: &str = "heddle";
const CHAIN: &str = "spoofing";

/// Removes the plugin's rules, which outlive its pods, when there are none any more: nobody else will. Returns
/// what was there.
fn plugin_rules() -> heddle_netlink::Result<Vec<String>> {
    if link::list(&mut Socket::open()?)?.iter().any(|link| link.name.starts_with(POD_PREFIX)) {
        return Ok(Vec::new());
    }
    let mut nft = Nft::open()?;
    let (mut batch, mut removed) = (Batch::new(), Vec::new());
    let all = nft.chains()?;
    for family in [Family::Inet, Family::Bridge] {
        let ours =
            |chain: &ListedChain| chain.family == family && chain.table == TABLE && chain.name == CHAIN;
        if all.iter().any(ours) {
            batch.delete_table(family, TABLE);
            removed.push(format!("nftables table {family} {TABLE}"));
        }
    }
    nft.commit(&batch)?;
    Ok(removed)
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

#[cfg(test)]
mod tests {
    use heddle_netlink::NetNs;
    use heddle_netlink::link::VethEnd;

    use super::*;

    #[test]
    fn the_plugins_rules_go_with_the_last_pod_and_others_stay() {
        let ns = NetNs::create().unwrap();
        ns.run(|| {
            let mut batch = Batch::new();
            for (family, chains) in
                [(Family::Inet, &["spoofing", "ipmasq"][..]), (Family::Bridge, &["spoofing"])]
            {
                batch.add_table(family, TABLE);
                chains.iter().for_each(|chain| batch.add_chain(family, TABLE, chain, None));
            }
            batch.add_table(Family::Inet, "of others");
            batch.add_chain(Family::Inet, "of others", "spoofing", None);
            Nft::open().unwrap().commit(&batch).unwrap();
            let (near, far) =
                (VethEnd { name: "hdl0", ..VethEnd::default() }, VethEnd { name: "b", ..VethEnd::default() });
            link::create_veth(&mut Socket::open().unwrap(), &near, &far).unwrap();
            assert_eq!(plugin_rules().unwrap(), [""; 0], "there is a pod");
            link::delete_by_name(&mut Socket::open().unwrap(), "b").unwrap();
            let removed = ["nftables table inet heddle", "nftables table bridge heddle"];
            assert_eq!(plugin_rules().unwrap(), removed);
            assert_eq!(plugin_rules().unwrap(), [""; 0]);
            let left = Nft::open().unwrap().chains().unwrap();
            assert_eq!(left.iter().map(|chain| chain.table.as_str()).collect::<Vec<_>>(), ["of others"]);
        })
        .unwrap();
    }
}
