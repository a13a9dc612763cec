//! `proxyd status`: what the kernel holds, and what the running daemon says of itself.

use std::collections::BTreeMap;
use std::path::Path;

use heddle_daemon::Failure;
use heddle_daemon::run_dir;
use serde::{Deserialize, Serialize};

use crate::ctl::{self, Filter};

/// All that is known on this node.
#[derive(Debug, Serialize)]
pub struct Report {
    /// From the kernel alone; the same whether the daemon runs or not.
    #[serde(flatten)]
    pub datapath: ctl::Status,
    /// `None`: it does not run.
    pub daemon: Option<Told>,
}

/// What the daemon has published ([`heddle_reconcile::Status`]).
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Told {
    pub ready: bool,
    pub synced: bool,
    pub revision: u64,
    /// What is wrong, by what it is wrong with.
    pub troubles: BTreeMap<String, Trouble>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Trouble {
    pub what: String,
    /// How long it has been so, when it was told.
    pub seconds: u64,
}

impl Report {
    /// `filter`: what is said of these services alone.
    pub fn read(bpf_root: &Path, run_dir: &Path, filter: Option<&Filter>) -> Result<Self, Failure> {
        let mut daemon: Option<Told> = match run_dir::is_running(run_dir, "proxyd")? {
            true => Some(run_dir::published(run_dir, "proxyd")?.unwrap_or_default()),
            false => None,
        };
        if let (Some(told), Some(filter)) = (&mut daemon, filter) {
            told.troubles.retain(|object, _| concerns(filter, object));
        }
        Ok(Self { datapath: ctl::status(bpf_root, filter)?, daemon })
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = self.datapath.text();
        match &self.daemon {
            None if self.datapath.mode.is_some() => {
                text.push_str("\nproxyd does not run; the datapath goes on as it is\n");
            }
            None => {}
            Some(told) => {
                let state = match (told.ready, told.synced) {
                    (true, true) => "ready",
                    (_, true) => "not ready yet",
                    (_, false) => "waits for its sources",
                };
                text.push_str(&format!("\nproxyd runs: {state}\n"));
                let rows = told.troubles.iter().map(|(object, trouble)| {
                    vec![object.clone(), format!("{}s", trouble.seconds), trouble.what.clone()]
                });
                text.push_str(&ctl::table::print("TROUBLE FOR WHAT", rows));
            }
        }
        text
    }
}

/// Whether a trouble is about what is asked for: `service NAMESPACE/NAME`, `endpoints NAMESPACE/PART`, `frontend
/// ADDRESS`.
fn concerns(filter: &Filter, object: &str) -> bool {
    match object.split_once(' ') {
        Some(("frontend", address)) => filter.takes("", address),
        Some(("service" | "endpoints", name)) => filter.takes_service(name),
        _ => false,
    }
}
