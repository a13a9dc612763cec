//! What kubelet's side of the CNI specification (1.1.0) does: reads a configuration, calls its plugins.

use std::net::IpAddr;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::bin::bin_dir;
use crate::cmd::Cmd;
use crate::error::{Context, Error, Result};
use crate::node::Node;
use crate::place::Place;

/// An operation of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Check,
    Del,
}

impl Verb {
    fn word(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Check => "CHECK",
            Self::Del => "DEL",
        }
    }
}

/// What the last plugin of a chain answered to ADD.
#[derive(Clone, Debug, Default)]
pub struct CniResult {
    /// As it came.
    pub json: Value,
    /// The addresses in it, of any version of the format, without prefix lengths.
    pub ips: Vec<IpAddr>,
}

impl CniResult {
    fn new(json: Value) -> Self {
        // 0.3.0 and newer: a list. 0.2.0 and older: one of each family.
        let list = json["ips"].as_array().into_iter().flatten().map(|ip| &ip["address"]);
        let old = ["ip4", "ip6"].into_iter().map(|family| &json[family]["ip"]);
        let ips = list.chain(old).filter_map(|text| text.as_str()?.split('/').next()?.parse().ok()).collect();
        Self { json, ips }
    }
}

/// The first configuration in the node's `/etc/cni/net.d`, as kubelet picks it; a single plugin's
/// configuration becomes a list of one.
pub(crate) fn node_config(node: &Node) -> Result<Value> {
    let dir = node.place().path("/etc/cni/net.d");
    let list = std::fs::read_dir(&dir).context(|| format!("read {}", dir.display()))?;
    let kinds = ["conflist", "conf", "json"];
    let fits = |path: &PathBuf| path.extension().is_some_and(|e| kinds.iter().any(|kind| e == *kind));
    let file = list.flatten().map(|e| e.path()).filter(fits).min();
    let file = file.ok_or_else(|| Error::Unsupported(format!("{} has no CNI configuration", node.name())))?;
    let text = std::fs::read(&file).context(|| format!("read {}", file.display()))?;
    let value: Value = serde_json::from_slice(&text)
        .map_err(|e| Error::Oracle(format!("CNI configuration of {}: {e}", node.name())))?;
    if value["plugins"].is_array() {
        return Ok(value);
    }
    Ok(json!({ "cniVersion": value["cniVersion"], "name": value["name"], "plugins": [value] }))
}

/// The newest of the versions that a configuration names, as a runtime chooses that speaks them all.
fn version(config: &Value) -> Value {
    let several = config["cniVersions"].as_array().into_iter().flatten();
    let newest = several.chain([&config["cniVersion"]]).max_by_key(|version| version.as_str());
    newest.cloned().unwrap_or_default()
}

/// One operation on one pod.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) verb: Verb,
    pub(crate) pod: &'a str,
    pub(crate) node: &'a Place,
    pub(crate) container_id: String,
    pub(crate) netns: PathBuf,
    pub(crate) previous: Option<CniResult>,
}

impl Call<'_> {
    /// Calls the plugins of `config` one after the other; in reverse for DEL.
    pub(crate) fn run(&self, config: &Value) -> Result<CniResult> {
        let mut plugins: Vec<&Value> = config["plugins"].as_array().into_iter().flatten().collect();
        if self.verb == Verb::Del {
            plugins.reverse();
        }
        let mut previous = self.previous.clone();
        for plugin in plugins {
            let mut input = plugin.clone();
            input["name"] = config["name"].clone();
            input["cniVersion"] = version(config);
            if let Some(previous) = &previous {
                input["prevResult"] = previous.json.clone();
            }
            let answer = self.plugin(plugin["type"].as_str().unwrap_or_default(), &input)?;
            if self.verb == Verb::Add {
                previous = Some(CniResult::new(answer));
            }
        }
        Ok(previous.unwrap_or_default())
    }

    fn plugin(&self, kind: &str, input: &Value) -> Result<Value> {
        let search = [bin_dir(), "/opt/cni/bin".into(), "/usr/lib/cni".into()];
        let program = search.iter().map(|dir| dir.join(kind)).find(|path| path.is_file());
        let program = program.unwrap_or_else(|| bin_dir().join(kind));
        let path: Vec<_> = search.iter().map(|dir| dir.display().to_string()).collect();
        let (namespace, name) = ("default", self.pod.rsplit('/').next().unwrap_or(self.pod));
        let cmd = Cmd::new(program)
            .env("CNI_COMMAND", self.verb.word())
            .env("CNI_CONTAINERID", &self.container_id)
            .env("CNI_NETNS", &self.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", path.join(":"))
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}"))
            .stdin(input.to_string());
        let output = self.node.output(cmd)?;
        let fail = |message: String| Error::Cni {
            command: self.verb.word(),
            plugin: kind.into(),
            pod: self.pod.into(),
            message,
        };
        if !output.status.success() {
            let text = format!("{}{}", output.stdout, output.stderr);
            return Err(fail(format!("{}: {}", output.status, text.trim())));
        }
        match (self.verb, output.stdout.trim()) {
            (Verb::Add, text) => serde_json::from_str(text)
                .map_err(|e| fail(format!("it answered `{text}`, which is no JSON: {e}"))),
            _ => Ok(Value::Null),
        }
    }
}
