//! What the daemon knows and the kernel does not: names, and what is wrong. It leaves that in the run
//! directory for `vxland status`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use heddle_model::OverlayTable;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::desired::Settings;
use crate::handoff;

#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}: {source}", .path.display())]
pub struct ReportError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// What a part of the daemon leaves in the run directory.
pub trait Left: Clone + PartialEq + Serialize + DeserializeOwned {
    /// Its file there.
    const FILE: &str;

    /// What the daemon left in `dir`, if it did.
    fn read(dir: &Path) -> Result<Option<Self>, ReportError> {
        let path = dir.join(Self::FILE);
        let read = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        read.map_err(|source| ReportError { operation: "read", path, source })
    }

    /// Leaves it in `dir`, unless it is what was `written` last.
    fn leave(&self, dir: &Path, written: &mut Option<Self>) {
        if written.as_ref() == Some(self) {
            return;
        }
        let path = dir.join(Self::FILE);
        let text = serde_json::to_string(self).map_err(io::Error::from);
        match text.and_then(|text| handoff::write_atomically(&path, &text, 0o600)) {
            Ok(()) => *written = Some(self.clone()),
            Err(source) => tracing::warn!("{}", ReportError { operation: "write", path, source }),
        }
    }

    /// Removes it, if it is there.
    fn remove(dir: &Path) -> Result<(), ReportError> {
        let path = dir.join(Self::FILE);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(ReportError { operation: "remove", path, source })
            }
            _ => Ok(()),
        }
    }
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

impl Left for Report {
    const FILE: &str = "vxland.json";
}
