//! What `vxland status` says of the edge.

use std::collections::BTreeMap;
use std::path::Path;

use heddle_model::OverlayTable;
use heddle_netlink::Socket;
use heddle_netlink::nft::{Family, Nft};
use heddle_reconcile::Error;
use serde::Serialize;

use super::checksums::{Choice, Finding};
use super::{Report, TABLE, desired, plan, target};
use crate::desired::Settings as Overlay;
use crate::report::Left;

/// The edge of this node, as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    /// Whether pods' packets that leave the cluster leave in the node's name.
    pub masquerade: bool,
    pub checksum_offload: Choice,
    /// Whether checksums are left to the device, by VXLAN device.
    pub checksums_left: BTreeMap<String, bool>,
    /// Why they are not, where that was found out.
    pub checksums_broken: Option<String>,
    /// Packets that were dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
}

/// Reads the edge, and says what of it is not as it should be.
pub fn seen(
    socket: &mut Socket,
    table: &OverlayTable,
    overlay: &Overlay,
    run_dir: &Path,
) -> Result<(Seen, Vec<String>), Error> {
    let Some(report) = Report::read(run_dir)? else { return Ok((Seen::default(), Vec::new())) };
    let mut nft = Nft::open()?;
    let observed = target::observe(&mut nft, socket)?;
    let mut wrong = Vec::new();
    if let Some(mut wanted) = desired(table, overlay, &report.settings) {
        let left = report.settings.checksums.leaves_them(&Finding::new(report.broken.clone()));
        wanted.offload = observed.offload.keys().map(|device| (device.clone(), left)).collect();
        for step in plan(&observed, &wanted) {
            let why = report.failed.get(&step.part().to_string());
            wrong.push(why.map_or(step.to_string(), |why| format!("{step}: {why}")));
        }
    }
    let mut dropped = BTreeMap::new();
    for rule in nft.rules(Family::Inet, TABLE, None)? {
        if let Some(packets) = rule.packets.filter(|packets| *packets > 0) {
            let why = rule.comment.rsplit_once(" [").map_or(&*rule.comment, |(why, _)| why);
            *dropped.entry(why.to_owned()).or_default() += packets;
        }
    }
    let seen = Seen {
        masquerade: report.settings.masquerade,
        checksum_offload: report.settings.checksums,
        checksums_left: observed.offload,
        checksums_broken: report.broken,
        dropped,
    };
    Ok((seen, wrong))
}

impl Seen {
    /// In one or two lines.
    pub fn text(&self) -> String {
        let masquerade = if self.masquerade { "on" } else { "off" };
        let left =
            if self.checksums_left.values().any(|left| !left) { "done here" } else { "left to the device" };
        let why = self.checksums_broken.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        let mut text =
            format!("masquerade {masquerade}  checksums {left} ({}{why})\n", self.checksum_offload.word());
        if !self.dropped.is_empty() {
            let dropped: Vec<String> =
                self.dropped.iter().map(|(why, packets)| format!("{packets} {why}")).collect();
            text += &format!("dropped {}\n", dropped.join(", "));
        }
        text
    }
}
