//! What GC is told to keep (section 2, "GC").

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{Failure, Owner, code, json};

const KEY: &str = "cni.dev/valid-attachments";
/// What the specification called it by mistake (cni#1101); libcni sends both.
const MISTAKEN: &str = "cni.dev/attachments";

/// An interface that the runtime knows.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Attachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

/// The configuration's `cni.dev/valid-attachments`. Null is the empty list: so libcni writes it for a network
/// without pods (CRI-O gives it a nil slice), after it has deleted itself what it knew of.
///
/// # Errors
/// Code 7 if the list is missing or cannot be read as a whole: what is missing from it would be taken away.
pub fn valid_attachments(object: &Map<String, Value>) -> Result<BTreeSet<Owner>, Failure> {
    let invalid = |reason: String| Failure::new(code::INVALID_CONFIG, format!("{KEY}: {reason}"));
    let list =
        object.get(KEY).or_else(|| object.get(MISTAKEN)).ok_or_else(|| invalid("it is missing".into()))?;
    let list: Option<Vec<Attachment>> = json::typed(list.clone()).map_err(|failure| invalid(failure.msg))?;
    list.iter()
        .flatten()
        .map(|one| Owner::new(&one.container_id, &one.ifname).map_err(|error| invalid(error.to_string())))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fault_025_a_list_that_cannot_be_read_is_no_list() {
        let valid = |value: Value| {
            let object = json!({ KEY: value });
            valid_attachments(object.as_object().unwrap())
        };
        assert_eq!(valid(json!([])).unwrap().len(), 0);
        assert_eq!(valid(Value::Null).unwrap().len(), 0);
        assert_eq!(valid(json!([{"containerID": "a", "ifname": "eth0"}])).unwrap().len(), 1);
        for wrong in
            [json!({}), json!([{"containerID": "a"}]), json!([{"containerID": "../a", "ifname": "e"}])]
        {
            let failure = valid(wrong.clone()).unwrap_err();
            assert!(failure.code == 7 && failure.msg.starts_with(KEY), "{wrong}: {failure:?}");
        }
        assert_eq!(valid_attachments(&Map::new()).unwrap_err().code, 7);
        let one = json!([{"containerID": "a", "ifname": "eth0"}]);
        let mistaken = json!({ MISTAKEN: one });
        assert_eq!(valid_attachments(mistaken.as_object().unwrap()).unwrap().len(), 1);
        let both = json!({ MISTAKEN: [], KEY: one });
        assert_eq!(valid_attachments(both.as_object().unwrap()).unwrap().len(), 1, "the right one counts");
    }
}
