//! A lab with Heddle on it: the setting of most scenarios.

use std::ops::Deref;
use std::time::Duration;

use crate::builder::Builder;
use crate::daemon::await_ready;
use crate::error::{Error, Result};
use crate::lab::Lab;
use crate::manifests::{Endpoint, Service};
use crate::node::Node;
use crate::owner::poll_until;
use crate::place::Place;
use crate::pod::Pod;
use crate::process::Process;
use crate::traffic::{Ask, Reply, Server};

/// A lab whose nodes are declared and run the daemons. What a [`Lab`] can do, it can.
///
/// ```no_run
/// # fn main() -> heddle_lab::Result<()> {
/// use heddle_lab::{Ask, Cluster, Lab, Proto, Service, addresses::cluster_ip};
///
/// let cluster = Cluster::start(Lab::builder())?;
/// let web = Service::new("web").cluster_ip(cluster_ip(10, true)).port("http", Proto::Tcp, 80, 8080);
/// let one = cluster.backend(1, "web-1", 8080)?;
/// let two = cluster.backend(2, "web-2", 8080)?;
/// cluster.publish(&web, &[one.endpoint(), two.endpoint()])?;
/// cluster.await_answer(two.pod(), Ask::new((cluster_ip(10, true), 80)))?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Cluster {
    // Processes end before the lab.
    vxland: Vec<Option<Process>>,
    proxyd: Vec<Option<Process>>,
    plan: Plan,
    lab: Lab,
}

/// What runs on the nodes of a cluster, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Arguments of `vxland`; `None`: it does not run.
    pub vxland: Option<Vec<String>>,
    /// Arguments of `proxyd`; `None`: it does not run.
    pub proxyd: Option<Vec<String>>,
}

impl Default for Plan {
    /// Both daemons, `proxyd` in eBPF mode.
    fn default() -> Self {
        Self { vxland: Some(Vec::new()), proxyd: Some(vec!["--mode".into(), "ebpf".into()]) }
    }
}

impl Plan {
    /// `vxland` alone.
    pub fn overlay() -> Self {
        Self { proxyd: None, ..Self::default() }
    }

    /// One argument more for `vxland`.
    #[must_use]
    pub fn vxland_arg(mut self, arg: &str) -> Self {
        self.vxland.get_or_insert_default().push(arg.into());
        self
    }

    /// One argument more for `proxyd`.
    #[must_use]
    pub fn proxyd_arg(mut self, arg: &str) -> Self {
        self.proxyd.get_or_insert_default().push(arg.into());
        self
    }
}

impl Cluster {
    /// Builds a lab, declares its nodes, starts both daemons on each and waits until all are ready.
    ///
    /// # Errors
    /// Of the lab; of a daemon that ends or is not ready in time.
    pub fn start(builder: Builder) -> Result<Self> {
        Self::start_with(builder, Plan::default())
    }

    /// The same with daemons and arguments as planned.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(builder: Builder, plan: Plan) -> Result<Self> {
        let lab = builder.build()?;
        for node in lab.nodes() {
            lab.manifests().node(node)?;
        }
        Self::on(lab, plan)
    }

    /// The same on a lab that stands, whose manifests declare its nodes.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn on(lab: Lab, plan: Plan) -> Result<Self> {
        let none = || lab.nodes().iter().map(|_| None).collect();
        let mut cluster = Self { vxland: none(), proxyd: none(), plan, lab };
        cluster.start_everywhere("vxland")?;
        cluster.start_everywhere("proxyd")?;
        Ok(cluster)
    }

    fn slot(&mut self, node: usize, program: &str) -> &mut Option<Process> {
        let list = if program == "vxland" { &mut self.vxland } else { &mut self.proxyd };
        &mut list[node - 1]
    }

    fn arguments(&self, program: &str) -> Option<&[String]> {
        if program == "vxland" { self.plan.vxland.as_deref() } else { self.plan.proxyd.as_deref() }
    }

    /// Starts a daemon (again) on every node at once, then waits until all are ready; nothing if it is not
    /// planned.
    ///
    /// # Errors
    /// When one ends or is not ready in time.
    pub fn start_everywhere(&mut self, program: &str) -> Result<()> {
        let Some(args) = self.arguments(program).map(<[_]>::to_vec) else { return Ok(()) };
        let started: Vec<_> = self
            .lab
            .nodes()
            .iter()
            .map(|node| self.lab.start_daemon(node, program, &args))
            .collect::<Result<_>>()?;
        for (index, process) in started.into_iter().enumerate() {
            await_ready(&self.lab.nodes()[index], &process, program)?;
            *self.slot(index + 1, program) = Some(process);
        }
        Ok(())
    }

    /// `proxyd` is started with these arguments from now on.
    pub fn plan_proxyd(&mut self, args: &[&str]) {
        self.plan.proxyd = Some(args.iter().map(ToString::to_string).collect());
    }

    /// `vxland` is started with these arguments from now on.
    pub fn plan_vxland(&mut self, args: &[&str]) {
        self.plan.vxland = Some(args.iter().map(ToString::to_string).collect());
    }

    /// The daemon `program` (`vxland`, `proxyd`) of node `node` (1 is the first), while it runs.
    pub fn daemon(&self, node: usize, program: &str) -> Option<&Process> {
        let list = if program == "vxland" { &self.vxland } else { &self.proxyd };
        list[node - 1].as_ref()
    }

    /// Kills a daemon with SIGKILL.
    pub fn kill_daemon(&mut self, node: usize, program: &str) {
        *self.slot(node, program) = None;
    }

    /// Ends a daemon with SIGTERM.
    ///
    /// # Errors
    /// When it does not end within 30 s, or with a failure.
    pub fn stop_daemon(&mut self, node: usize, program: &str) -> Result<()> {
        let Some(process) = self.slot(node, program).take() else { return Ok(()) };
        let status = process.terminate(Duration::from_secs(30))?;
        if status.success() {
            return Ok(());
        }
        let place = self.lab.node(node).name().into();
        let output = crate::process::indent(&process.log());
        Err(Error::Command { command: process.line().into(), place, status: status.to_string(), output })
    }

    /// Starts a daemon (again) and waits until it is ready.
    ///
    /// # Errors
    /// When it ends or is not ready in time.
    pub fn start_daemon_on(&mut self, node: usize, program: &str) -> Result<()> {
        self.kill_daemon(node, program);
        let args = self.arguments(program).unwrap_or_default().to_vec();
        let process = self.lab.start_daemon(self.lab.node(node), program, &args)?;
        await_ready(self.lab.node(node), &process, program)?;
        *self.slot(node, program) = Some(process);
        Ok(())
    }

    /// A pod on node `node`, wired by the CNI plugin.
    ///
    /// # Errors
    /// The plugin's.
    pub fn pod(&self, node: usize, name: &str) -> Result<Pod> {
        let pod = self.lab.node(node).pod(name)?;
        pod.cni_add()?;
        Ok(pod)
    }

    /// A pod on node `node`, wired, in which a [`Server`] of the same name answers on `port`.
    ///
    /// # Errors
    /// The plugin's.
    pub fn backend(&self, node: usize, name: &str, port: u16) -> Result<Backend> {
        let pod = self.pod(node, name)?;
        let server = pod.serve(name, port)?;
        Ok(Backend { server: Some(server), pod })
    }

    /// Declares a service and its endpoints, or changes them.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn publish(&self, service: &Service, endpoints: &[Endpoint]) -> Result<()> {
        self.lab.manifests().endpoints(service, endpoints)?;
        self.lab.manifests().service(service)
    }

    /// Waits until a question is answered from `place`: the first sign that a service has arrived there.
    ///
    /// # Errors
    /// [`Error::Timeout`] with what the client saw last.
    pub fn await_answer(&self, place: &Place, ask: Ask) -> Result<Reply> {
        let mut reply = None;
        let ask = ask.limit(Duration::from_millis(500));
        eventually("an answer", Duration::from_secs(20), || {
            reply = Some(ask.tcp(place)?);
            Ok(true)
        })?;
        reply.ok_or_else(|| Error::Oracle("an answer that is none".into()))
    }

    /// The lab itself.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }
}

impl Deref for Cluster {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.lab
    }
}

/// A pod that serves.
#[derive(Debug)]
pub struct Backend {
    server: Option<Server>,
    pod: Pod,
}

impl Backend {
    /// A pod that has been wired, with a [`Server`] of its name on `port` in it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn serving(pod: Pod, port: u16) -> Result<Self> {
        let server = pod.serve(pod.name(), port)?;
        Ok(Self { server: Some(server), pod })
    }

    /// Its pod.
    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    /// Its node.
    pub fn node(&self) -> &Node {
        self.pod.node()
    }

    /// The name of pod and server.
    pub fn name(&self) -> &str {
        self.pod.name()
    }

    /// Its server, unless it has been stopped.
    pub fn server(&self) -> Option<&Server> {
        self.server.as_ref()
    }

    /// Stops the server, as if its process had died.
    pub fn stop_server(&mut self) {
        self.server = None;
    }

    /// Its addresses, ready.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::pod(&self.pod)
    }
}

/// Waits until `done` says yes, at most `limit`, for what tells nobody when it has happened: what a client
/// sees, what a map in the kernel holds. An error counts as no, and is shown when the time is over.
///
/// # Errors
/// [`Error::Timeout`] with the last error.
pub fn eventually(what: &str, limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let mut last = String::new();
    let happened = poll_until(limit, || match done() {
        Ok(done) => done,
        Err(e) => {
            last = format!(": {e}");
            false
        }
    });
    happened.then_some(()).ok_or_else(|| Error::Timeout { what: what.into(), waited: limit, detail: last })
}
