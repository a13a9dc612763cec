//! Pods, made by a runtime as kubelet has them made.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

use heddle_lab::Place;
use serde_json::Value;

use crate::containerd::Containerd;
use crate::cri::proto;
use crate::error::{Error, Result};
use crate::image;

/// What a pod is to be.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub name: String,
    /// How often a pod of this name was made before.
    pub attempt: u32,
    pub ports: Vec<proto::PortMapping>,
    pub annotations: HashMap<String, String>,
}

impl Plan {
    /// A pod of this name.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    fn config(&self) -> proto::PodSandboxConfig {
        // As kubelet: the containers of a pod have one network and a pid namespace each.
        let namespaces = proto::NamespaceOption { network: 0, pid: 1, ipc: 0 };
        let security = proto::LinuxSandboxSecurityContext { namespace_options: Some(namespaces) };
        proto::PodSandboxConfig {
            metadata: Some(proto::PodSandboxMetadata {
                name: self.name.clone(),
                uid: format!("uid-{}", self.name),
                namespace: "default".into(),
                attempt: self.attempt,
            }),
            hostname: self.name.clone(),
            port_mappings: self.ports.clone(),
            annotations: self.annotations.clone(),
            linux: Some(proto::LinuxPodSandboxConfig {
                security_context: Some(security),
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

/// A pod that runs.
#[derive(Clone, Debug)]
pub struct Pod {
    pub plan: Plan,
    /// The sandbox's id, which the plugins were told as `CNI_CONTAINERID`.
    pub id: String,
    /// The addresses that the runtime tells, IPv4 first.
    pub ips: Vec<IpAddr>,
    /// A place in the pod's network.
    pub place: Place,
}

impl Pod {
    /// Its address of a family.
    ///
    /// # Panics
    /// When it has none.
    pub fn ip(&self, v4: bool) -> IpAddr {
        let ip = self.ips.iter().find(|ip| ip.is_ipv4() == v4);
        *ip.unwrap_or_else(|| panic!("{} has {:?}", self.plan.name, self.ips))
    }
}

fn one<T>(message: Option<T>) -> Result<T> {
    message.ok_or_else(|| Error::new("read an answer", "a message is missing"))
}

impl Containerd {
    /// `RunPodSandbox` alone: the network is there, no container yet. Gives the sandbox's id.
    ///
    /// # Errors
    /// The runtime's.
    pub fn run_sandbox(&self, plan: &Plan) -> Result<String> {
        let request = proto::RunPodSandboxRequest { config: Some(plan.config()) };
        let sandbox: proto::Id = self.cri().call("RunPodSandbox", &request)?;
        Ok(sandbox.id)
    }

    /// What the runtime says of a sandbox: its addresses, and a place in its network.
    ///
    /// # Errors
    /// The runtime's.
    pub fn pod(&self, plan: &Plan, id: &str) -> Result<Pod> {
        let request = proto::PodSandboxStatusRequest { id: id.to_owned(), verbose: true };
        let answer: proto::PodSandboxStatusResponse = self.cri().call("PodSandboxStatus", &request)?;
        let network = one(one(answer.status)?.network)?;
        let texts = network.additional_ips.iter().map(|ip| &ip.ip);
        let ips = std::iter::once(&network.ip).chain(texts);
        let ips: Vec<IpAddr> = ips.map(|ip| ip.parse()).collect::<Result<_, _>>().map_err(|e| {
            Error::new(format!("read the addresses of {}", plan.name), format!("{e}: {network:?}"))
        })?;
        let info = answer.info.get("info").map(String::as_str).unwrap_or_default();
        let info: Value = serde_json::from_str(info).map_err(|e| Error::new("read a pod's info", e))?;
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().into_iter().flatten();
        let path = namespaces.filter(|ns| ns["type"] == "network").find_map(|ns| ns["path"].as_str());
        let path = one(path)?;
        let place = self.node.in_netns(&plan.name, Path::new(path))?;
        Ok(Pod { plan: plan.clone(), id: id.to_owned(), ips, place })
    }

    /// A pod with one container in it, which serves on port `port` under the pod's name.
    ///
    /// # Errors
    /// The runtime's.
    pub fn run_pod(&self, plan: &Plan, port: u16) -> Result<Pod> {
        let id = self.run_sandbox(plan)?;
        let request = proto::CreateContainerRequest {
            pod_sandbox_id: id.clone(),
            config: Some(proto::ContainerConfig {
                metadata: Some(proto::ContainerMetadata { name: "server".into(), attempt: plan.attempt }),
                image: Some(proto::ImageSpec { image: image::IMAGE.into() }),
                args: vec![port.to_string(), plan.name.clone()],
            }),
            sandbox_config: Some(plan.config()),
        };
        let container: proto::Id = self.cri().call("CreateContainer", &request)?;
        let _: proto::Nothing = self.cri().call("StartContainer", &container)?;
        self.pod(plan, &id)
    }

    /// `StopPodSandbox`: its containers end, its network goes.
    ///
    /// # Errors
    /// The runtime's.
    pub fn stop(&self, id: &str) -> Result<()> {
        self.cri().call("StopPodSandbox", &proto::Id { id: id.to_owned() }).map(|proto::Nothing {}| ())
    }

    /// `RemovePodSandbox`: everything of it goes.
    ///
    /// # Errors
    /// The runtime's.
    pub fn remove(&self, id: &str) -> Result<()> {
        self.cri().call("RemovePodSandbox", &proto::Id { id: id.to_owned() }).map(|proto::Nothing {}| ())
    }
}
