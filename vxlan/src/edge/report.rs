//! What the daemon leaves of the edge in the run directory for `vxland status`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Settings;
use crate::report::Left;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub settings: Settings,
    /// What could not be done, by part.
    pub failed: BTreeMap<String, String>,
    /// Why checksums are not left to the device, where that was found out.
    #[serde(default)]
    pub broken: Option<String>,
}

impl Left for Report {
    const FILE: &str = "vxland.edge.json";
}
