//! A network configuration list, and what its plugins are told.

use serde_json::{Map, Value, json};

/// A network configuration list, and what the runtime has to say for its capabilities.
#[derive(Clone, Debug)]
pub struct List {
    pub version: String,
    pub name: String,
    pub plugins: Vec<Value>,
    pub runtime: Map<String, Value>,
}

impl List {
    /// The configuration of the `n`th plugin, as section 3 derives it.
    pub fn conf(&self, n: usize, previous: Option<&Value>) -> Value {
        let mut conf = self.plugins[n].clone();
        conf["cniVersion"] = json!(self.version);
        conf["name"] = json!(self.name);
        let wanted = |capability: &str| conf["capabilities"][capability] == json!(true);
        let runtime: Map<_, _> =
            self.runtime.iter().filter(|(key, _)| wanted(key)).map(|(k, v)| (k.clone(), v.clone())).collect();
        if !runtime.is_empty() {
            conf["runtimeConfig"] = Value::Object(runtime);
        }
        if let Some(previous) = previous {
            conf["prevResult"] = previous.clone();
        }
        conf
    }

    pub fn version(mut self, version: &str) -> Self {
        self.version = version.into();
        self
    }

    /// Sets a key of the first plugin.
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.plugins[0][key] = value;
        self
    }

    /// Sets a key of the first plugin's `ipam`.
    pub fn ipam(mut self, key: &str, value: Value) -> Self {
        self.plugins[0]["ipam"][key] = value;
        self
    }

    /// One range set after another.
    pub fn ranges(self, ranges: Value) -> Self {
        self.ipam("ranges", ranges)
    }

    /// What the runtime says for a capability of the first plugin.
    pub fn capability(mut self, name: &str, value: Value) -> Self {
        self.plugins[0]["capabilities"][name] = json!(true);
        self.runtime.insert(name.into(), value);
        self
    }
}
