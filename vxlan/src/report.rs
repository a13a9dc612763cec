//! What the daemon knows and the kernel does not: names, and what is wrong. It leaves that in the run
//! directory for `vxland status`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use heddle_model::OverlayTable;
use serde::{Deserialize, Serialize};

use crate::desired::Settings;
use crate::handoff;

const FILE: &str = "vxland.json";

#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}: {source}", .path.display())]
pub struct ReportError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub settings: Settings,
    pub table: OverlayTable,
    /// What is wrong with what the sources say.
    pub problems: Vec<String>,
    /// What could not be done, by part.
    pub failed: BTreeMap<String, String>,
}

impl Report {
    /// What the daemon left in `dir`, if it did.
    pub fn read(dir: &Path) -> Result<Option<Self>, ReportError> {
        let path = dir.join(FILE);
        let failed = |path, source| ReportError { operation: "read", path, source };
        match std::fs::read(&path) {
            Ok(text) => match serde_json::from_slice(&text) {
                Ok(report) => Ok(Some(report)),
                Err(error) => Err(failed(path, error.into())),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(failed(path, source)),
        }
    }

    pub fn write(&self, dir: &Path) -> Result<(), ReportError> {
        let path = dir.join(FILE);
        let text = serde_json::to_string(self).map_err(io::Error::from);
        text.and_then(|text| handoff::write_atomically(&path, &text, 0o600)).map_err(|source| ReportError {
            operation: "write",
            path,
            source,
        })
    }

    /// Removes it, if it is there.
    pub fn remove(dir: &Path) -> Result<(), ReportError> {
        let path = dir.join(FILE);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(ReportError { operation: "remove", path, source })
            }
            _ => Ok(()),
        }
    }
}
