//! The keys `ipMasq` and `ipMasqBackend`.

use heddle_spec::{Failure, json};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::invalid;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Raw {
    ip_masq: bool,
    ip_masq_backend: Option<String>,
}

/// Whether what leaves the pod's network is to leave in the node's name.
///
/// There is one way to do it here, nf_tables; `iptables` is taken for the wish to have it done.
pub fn read(object: &Map<String, Value>) -> Result<bool, Failure> {
    let raw: Raw = json::typed(Value::Object(object.clone()))?;
    match raw.ip_masq_backend.as_deref() {
        None | Some("" | "iptables" | "nftables") => Ok(raw.ip_masq),
        Some(other) => {
            let shown: String = other.chars().take(32).collect();
            Err(invalid("ipMasqBackend", format!("{shown:?} is not iptables or nftables")))
        }
    }
}
