//! `deleteInterface`: when the pod's interface is to be gone.
//!
//! `now`, the default: when DEL returns. The kernel takes 18 ms for it, most of which it waits. `withNamespace`: with the
//! pod's namespace, which a runtime deletes right after DEL, and the kernel then at its leisure. Until then the pair is
//! down: no packet passes, no route leads there, and the address is free for the next pod.

use serde_json::{Map, Value};

use super::invalid;
use heddle_spec::Failure;

const KEY: &str = "deleteInterface";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Deletion {
    #[default]
    Now,
    WithNamespace,
}

impl Deletion {
    /// Reads the key.
    ///
    /// # Errors
    /// Code 7 for another word.
    pub fn read(object: &Map<String, Value>) -> Result<Self, Failure> {
        match object.get(KEY) {
            None | Some(Value::Null) => Ok(Self::Now),
            Some(Value::String(word)) if word == "now" => Ok(Self::Now),
            Some(Value::String(word)) if word == "withNamespace" => Ok(Self::WithNamespace),
            Some(_) => Err(invalid(KEY, "it is neither \"now\" nor \"withNamespace\"")),
        }
    }
}
