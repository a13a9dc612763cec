//! What the daemon leaves of the edge in the run directory for `vxland status`.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Settings;
use crate::handoff;

const FILE: &str = "vxland.edge.json";

#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {FILE}: {source}")]
pub struct ReportError {
    operation: &'static str,
    source: io::Error,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub settings: Settings,
    /// What could not be done, by part.
    pub failed: BTreeMap<String, String>,
    /// Why checksums are not left to the device, where that was found out.
    #[serde(default)]
    pub broken: Option<String>,
}

impl Report {
    /// What the daemon left in `dir`, if it did.
    pub fn read(dir: &Path) -> Result<Option<Self>, ReportError> {
        let failed = |source| ReportError { operation: "read", source };
        match std::fs::read(dir.join(FILE)) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| failed(error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(failed(source)),
        }
    }

    pub fn write(&self, dir: &Path) -> Result<(), ReportError> {
        let text = serde_json::to_string(self).map_err(io::Error::from);
        text.and_then(|text| handoff::write_atomically(&dir.join(FILE), &text, 0o600))
            .map_err(|source| ReportError { operation: "write", source })
    }

    /// Removes it, if it is there.
    pub fn remove(dir: &Path) -> Result<(), ReportError> {
        match std::fs::remove_file(dir.join(FILE)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(ReportError { operation: "remove", source })
            }
            _ => Ok(()),
        }
    }
}
