//! The cluster as the lab's daemons are told of it: a directory of Kubernetes objects.

use std::fmt::Write;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Context, Result, mkdir, write};
use crate::node::Node;
use crate::pod::Pod;

/// A directory of manifests, one file an object; a file appears and changes at once, never half written.
#[derive(Debug)]
pub struct Manifests {
    dir: PathBuf,
    next: AtomicU64,
}

/// A transport protocol of a service's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proto {
    Tcp,
    Udp,
}

impl Proto {
    fn word(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// A port of a service.
#[derive(Clone, Debug)]
pub struct Port {
    pub name: String,
    pub proto: Proto,
    /// Where clients connect to.
    pub port: u16,
    /// Where the backends listen.
    pub target: u16,
    /// The port of every node, for a service of type NodePort.
    pub node_port: Option<u16>,
}

/// A service, as people write it.
#[derive(Clone, Debug)]
pub struct Service {
    pub name: String,
    pub cluster_ips: Vec<IpAddr>,
    pub ports: Vec<Port>,
    /// Further lines of `spec`, as YAML without indentation.
    pub spec: Vec<String>,
    /// The addresses of its load balancer with their `ipMode`; with any it is of type LoadBalancer.
    pub balancer_ips: Vec<(IpAddr, &'static str)>,
}

impl Service {
    /// A service in namespace `default` without addresses and ports.
    pub fn new(name: impl Into<String>) -> Self {
        let (cluster_ips, ports, spec, balancer_ips) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { name: name.into(), cluster_ips, ports, spec, balancer_ips }
    }

    /// One ClusterIP more; the first is the primary one.
    #[must_use]
    pub fn cluster_ip(mut self, ip: IpAddr) -> Self {
        self.cluster_ips.push(ip);
        self
    }

    /// One port more. A service needs names for its ports when it has several.
    #[must_use]
    pub fn port(mut self, name: &str, proto: Proto, port: u16, target: u16) -> Self {
        self.ports.push(Port { name: name.into(), proto, port, target, node_port: None });
        self
    }

    /// Publishes the port added last on every node.
    #[must_use]
    pub fn node_port(mut self, node_port: u16) -> Self {
        if let Some(port) = self.ports.last_mut() {
            port.node_port = Some(node_port);
        }
        self
    }

    /// A further line of `spec`, e.g. `externalTrafficPolicy: Local`.
    #[must_use]
    pub fn spec(mut self, line: impl Into<String>) -> Self {
        self.spec.push(line.into());
        self
    }

    /// An address that a load balancer has given it; `mode`: `VIP` or `Proxy`.
    #[must_use]
    pub fn balancer_ip(mut self, ip: IpAddr, mode: &'static str) -> Self {
        self.balancer_ips.push((ip, mode));
        self
    }

    /// As YAML.
    pub fn to_yaml(&self) -> String {
        let published = self.ports.iter().any(|port| port.node_port.is_some());
        let kind = match (self.balancer_ips.is_empty(), published) {
            (false, _) => "LoadBalancer",
            (true, true) => "NodePort",
            (true, false) => "ClusterIP",
        };
        let mut out = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {}\n  namespace: default\nspec:\n  type: {kind}\n",
            self.name,
        );
        if let Some(first) = self.cluster_ips.first() {
            let _ = write!(out, "  clusterIP: \"{first}\"\n  clusterIPs:\n");
            for ip in &self.cluster_ips {
                let _ = writeln!(out, "    - \"{ip}\"");
            }
        }
        let _ = writeln!(out, "  ipFamilies:");
        for ip in &self.cluster_ips {
            let _ = writeln!(out, "    - {}", family(*ip));
        }
        for line in &self.spec {
            let _ = writeln!(out, "  {line}");
        }
        let _ = writeln!(out, "  ports:");
        for Port { name, proto, port, target, node_port } in &self.ports {
            let proto = proto.word();
            let _ = writeln!(
                out,
                "    - name: {name}\n      protocol: {proto}\n      port: {port}\n      targetPort: {target}"
            );
            if let Some(node_port) = node_port {
                let _ = writeln!(out, "      nodePort: {node_port}");
            }
        }
        if !self.balancer_ips.is_empty() {
            let _ = writeln!(out, "status:\n  loadBalancer:\n    ingress:");
        }
        for (ip, mode) in &self.balancer_ips {
            let _ = writeln!(out, "      - ip: \"{ip}\"\n        ipMode: {mode}");
        }
        out
    }
}

/// Whether an endpoint takes traffic, as the conditions of an EndpointSlice say it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    #[default]
    Ready,
    /// On its way out, still serving what it has.
    Terminating,
    NotReady,
}

/// An address that answers for a service.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub ips: Vec<IpAddr>,
    /// The node's name; none for an address outside the cluster.
    pub node: Option<String>,
    pub condition: Condition,
}

impl Endpoint {
    /// The addresses of a pod that has been wired.
    pub fn pod(pod: &Pod) -> Self {
        let ips = pod.result().map(|result| result.ips).unwrap_or_default();
        Self { ips, node: Some(pod.node().name().into()), condition: Condition::Ready }
    }

    /// A process in the host network of a node.
    pub fn host(node: &Node) -> Self {
        let ips = vec![node.ip4(), node.ip6()];
        Self { ips, node: Some(node.name().into()), condition: Condition::Ready }
    }

    /// The same in another condition.
    #[must_use]
    pub fn condition(mut self, condition: Condition) -> Self {
        self.condition = condition;
        self
    }
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// The EndpointSlice of one family of a service, as YAML.
pub fn slice_yaml(service: &Service, endpoints: &[Endpoint], v4: bool) -> String {
    let (kind, suffix) = if v4 { ("IPv4", "v4") } else { ("IPv6", "v6") };
    let name = &service.name;
    let mut out = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-{suffix}\n  \
         namespace: default\n  labels:\n    kubernetes.io/service-name: {name}\naddressType: {kind}\nports:\n"
    );
    for Port { name, proto, target, .. } in &service.ports {
        let proto = proto.word();
        let _ = writeln!(out, "  - name: {name}\n    protocol: {proto}\n    port: {target}");
    }
    let mut listed = 0;
    for endpoint in endpoints {
        for ip in endpoint.ips.iter().filter(|ip| ip.is_ipv4() == v4) {
            if listed == 0 {
                let _ = writeln!(out, "endpoints:");
            }
            listed += 1;
            let (ready, serving, terminating) = match endpoint.condition {
                Condition::Ready => (true, true, false),
                Condition::Terminating => (false, true, true),
                Condition::NotReady => (false, false, false),
            };
            let _ = writeln!(
                out,
                "  - addresses:\n      - \"{ip}\"\n    conditions:\n      ready: {ready}\n      \
                 serving: {serving}\n      terminating: {terminating}"
            );
            if let Some(node) = &endpoint.node {
                let _ = writeln!(out, "    nodeName: {node}");
            }
        }
    }
    if listed == 0 {
        let _ = writeln!(out, "endpoints: []");
    }
    out
}

/// A node of the lab, as YAML.
pub fn node_yaml(node: &Node) -> String {
    let (name, ranges) = (node.name(), node.pod_ranges());
    let mut out = format!("apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\nspec:\n");
    if let Some(first) = ranges.first() {
        let _ = writeln!(out, "  podCIDR: \"{first}\"\n  podCIDRs:");
        for range in &ranges {
            let _ = writeln!(out, "    - \"{range}\"");
        }
    }
    let _ = writeln!(out, "status:\n  addresses:");
    for ip in [node.ip4(), node.ip6()] {
        let _ = writeln!(out, "    - type: InternalIP\n      address: \"{ip}\"");
    }
    let _ = writeln!(out, "    - type: Hostname\n      address: {name}");
    out
}

impl Manifests {
    pub(crate) fn new(dir: PathBuf) -> Result<Self> {
        mkdir(&dir)?;
        Ok(Self { dir, next: AtomicU64::new(1) })
    }

    /// Where they are: on the machine and on every node.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes or replaces a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put(&self, file: &str, text: &str) -> Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let new = self.dir.with_extension(format!("new{number}"));
        write(&new, text)?;
        let at = self.dir.join(file);
        fs::rename(&new, &at).context(|| format!("put {} in its place", at.display()))
    }

    /// Removes a file; one that is not there is no error.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, file: &str) -> Result<()> {
        let at = self.dir.join(file);
        match fs::remove_file(&at) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
        .context(|| format!("remove {}", at.display()))
    }

    /// Declares a node, in `node-NAME.yaml`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn node(&self, node: &Node) -> Result<()> {
        self.put(&format!("node-{}.yaml", node.name()), &node_yaml(node))
    }

    /// Declares a service, in `service-NAME.yaml`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn service(&self, service: &Service) -> Result<()> {
        self.put(&format!("service-{}.yaml", service.name), &service.to_yaml())
    }

    /// Declares the endpoints of a service, all families in one file, `endpoints-NAME.yaml`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn endpoints(&self, service: &Service, endpoints: &[Endpoint]) -> Result<()> {
        let families: Vec<_> = [true, false]
            .into_iter()
            .filter(|v4| {
                service.cluster_ips.is_empty() || service.cluster_ips.iter().any(|ip| ip.is_ipv4() == *v4)
            })
            .map(|v4| slice_yaml(service, endpoints, v4))
            .collect();
        self.put(&format!("endpoints-{}.yaml", service.name), &families.join("---\n"))
    }
}
