//! etcd, API server, controller manager and scheduler, on one machine of a Lab.
//!
//! Authorization is `Node,RBAC`, so that the rights that a program is given are all that it has. Each program can be
//! killed, stopped and started again; what etcd keeps survives.

mod arguments;

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use heddle_lab::{Client, Cmd, Lab, Node, Place, Process};
use nix::sys::signal::Signal;

use crate::api::Api;
use crate::error::{Error, Result, mkdir, write};
use crate::kubeconfig::{self, Credentials};
use crate::pki::{self, Authority, Pair};
use crate::programs::{self, program};

/// The port of the API server, on all addresses of its machine.
pub const PORT: u16 = 6443;
/// The ranges of service addresses: the Lab's plan ([`heddle_lab::addresses::cluster_ip`]).
pub const SERVICE_RANGES: &str = "10.96.0.0/16,fd00:10:96::/112";
/// The ranges that nodes get theirs from: the Lab's plan ([`heddle_lab::addresses::pod_range`]).
pub const POD_RANGES: &str = "10.244.0.0/16,fd00:10:244::/56";
/// How long a program may take to start or end.
const LIMIT: Duration = Duration::from_secs(60);

/// A program of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    Etcd,
    ApiServer,
    ControllerManager,
    Scheduler,
}

impl Component {
    const ALL: [Self; 4] = [Self::Etcd, Self::ApiServer, Self::ControllerManager, Self::Scheduler];

    /// The program's name.
    pub fn program(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
        }
    }
}

/// What a control plane is to be like.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether pods get nodes and nodes get ranges: the controller manager and the scheduler run, too.
    pub controllers: bool,
    /// Whether each request is written down ([`ControlPlane::audit`]).
    pub audit: bool,
    /// Further arguments of the API server.
    pub api_server: Vec<String>,
    /// Further arguments of the controller manager.
    pub controller_manager: Vec<String>,
}

/// The machine that it runs on.
#[derive(Clone, Debug)]
pub struct Machine {
    pub place: Place,
    pub ip4: IpAddr,
    pub ip6: IpAddr,
}

impl From<&Node> for Machine {
    fn from(node: &Node) -> Self {
        Self { place: node.place().clone(), ip4: node.ip4(), ip6: node.ip6() }
    }
}

impl From<&Client> for Machine {
    fn from(client: &Client) -> Self {
        Self { place: client.place().clone(), ip4: client.ip(true), ip6: client.ip(false) }
    }
}

/// A control plane that runs. Dropped, it is killed, and what it kept is gone.
#[derive(Debug)]
pub struct ControlPlane {
    api: Api,
    processes: [Mutex<Option<Process>>; 4],
    machine: Machine,
    options: Options,
    authority: Authority,
    dir: PathBuf,
    admin: PathBuf,
    /// Its own, when it runs alone. Last, so that it is dropped last.
    lab: Option<Lab>,
}

impl ControlPlane {
    /// Why it cannot be raised on this machine.
    pub fn missing() -> Option<String> {
        programs::missing(&Component::ALL.map(Component::program))
    }

    /// Raises one on a machine of `lab` that is a node or, better, a client: then no node is special. Ready when this
    /// returns.
    ///
    /// # Errors
    /// When a program does not start, with what it printed.
    pub fn raise(lab: &Lab, machine: impl Into<Machine>, options: Options) -> Result<Self> {
        Self::new(lab.dir(), machine.into(), options, None)
    }

    /// Raises one on a machine of its own, with nothing around it.
    ///
    /// # Errors
    /// As [`raise`](Self::raise).
    pub fn alone(options: Options) -> Result<Self> {
        let lab = Lab::builder().nodes(1).clients(0).build()?;
        let (dir, machine) = (lab.dir().to_owned(), Machine::from(lab.node(1)));
        Self::new(&dir, machine, options, Some(lab))
    }

    fn new(dir: &Path, machine: Machine, options: Options, lab: Option<Lab>) -> Result<Self> {
        let dir = dir.join(format!("control-plane-{}", machine.place.name()));
        mkdir(&dir)?;
        let authority = Authority::new(&dir)?;
        let (ip4, ip6) = (machine.ip4.to_string(), machine.ip6.to_string());
        let names = ["127.0.0.1", "::1", &ip4, &ip6, "10.96.0.1", "fd00:10:96::1", "localhost", "kubernetes"];
        let names = names.into_iter().chain(["kubernetes.default", "kubernetes.default.svc"]);
        let names = names.chain(["kubernetes.default.svc.cluster.local"]).map(str::to_owned);
        authority.issue("server", "kube-apiserver", None, &names.collect::<Vec<_>>())?;
        authority.issue("kubelet-client", "kube-apiserver-kubelet-client", Some("system:masters"), &[])?;
        pki::service_account_key(&dir)?;
        write(&dir.join("audit-policy.yaml"), arguments::AUDIT_POLICY)?;
        let local = format!("https://127.0.0.1:{PORT}");
        let of = |name: &str, user: &str, group| {
            let pair = authority.issue(name, user, group, &[])?;
            let file = dir.join(format!("{name}.kubeconfig"));
            kubeconfig::write_to(file, &local, &authority.certificate(), Credentials::Pair(&pair))
        };
        let admin = of("admin", "admin", Some("system:masters"))?;
        for component in [Component::ControllerManager, Component::Scheduler] {
            let name = component.program();
            of(name, &format!("system:{name}"), None)?;
        }
        let api = Api::connect(&machine.place, &admin)?;
        let processes = Default::default();
        let plane = Self { api, processes, machine, options, authority, dir, admin, lab };
        plane.spawn(Component::Etcd)?;
        plane.start(Component::ApiServer)?;
        if plane.options.controllers {
            plane.start(Component::ControllerManager)?;
            plane.start(Component::Scheduler)?;
        }
        Ok(plane)
    }

    /// The Lab that it has to itself, if it was raised [`alone`](Self::alone).
    pub fn lab(&self) -> Option<&Lab> {
        self.lab.as_ref()
    }

    /// The machine that it runs on.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The administrator's connection, from the machine itself.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// `https://ADDRESS:6443`, as other machines reach the API server.
    pub fn url(&self, v4: bool) -> String {
        let Machine { ip4, ip6, .. } = self.machine;
        if v4 { format!("https://{ip4}:{PORT}") } else { format!("https://[{ip6}]:{PORT}") }
    }

    /// The authority's certificate, against which the API server's is checked.
    pub fn ca(&self) -> PathBuf {
        self.authority.certificate()
    }

    /// The authority, for further certificates.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The administrator's kubeconfig, for programs on the machine itself.
    pub fn admin(&self) -> &Path {
        &self.admin
    }

    /// A certificate and a kubeconfig for `user` of `group`, for programs on any machine: `system:node:n1` of
    /// `system:nodes`, `system:kube-proxy` of none. `server` is where they look for the API server: [`url`](Self::url),
    /// or what a test has put before it.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn user(&self, user: &str, group: Option<&str>, server: &str) -> Result<(PathBuf, Pair)> {
        let name = user.replace([':', '/'], "-");
        let pair = self.authority.issue(&name, user, group, &[])?;
        let file = self.dir.join(format!("{name}.kubeconfig"));
        let file = kubeconfig::write_to(file, server, &self.ca(), Credentials::Pair(&pair))?;
        Ok((file, pair))
    }

    /// A kubeconfig with a new token of the service account `NAMESPACE/NAME`, for programs on any machine.
    ///
    /// # Errors
    /// The API server's.
    pub fn service_account(&self, name: &str, server: &str) -> Result<PathBuf> {
        let token = self.api.token(name)?;
        let file = self.dir.join(format!("{}.kubeconfig", name.replace('/', "-")));
        kubeconfig::write_to(file, server, &self.ca(), Credentials::Token(&token))
    }

    /// The file of the requests that were made, one JSON object each, with [`Options::audit`].
    pub fn audit(&self) -> PathBuf {
        self.dir.join("audit.log")
    }

    /// Runs kubectl as administrator, with `input` to read, and gives what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn kubectl(&self, args: &[&str], input: &str) -> Result<String> {
        let kubectl = Cmd::new(program("kubectl")?).arg("--kubeconfig").arg(&self.admin);
        Ok(self.machine.place.run(kubectl.args(args.iter().copied()).stdin(input))?)
    }

    fn process(&self, component: Component) -> MutexGuard<'_, Option<Process>> {
        self.processes[component as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a program without waiting for it; one that runs is left alone.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, component: Component) -> Result<()> {
        let mut process = self.process(component);
        if process.as_ref().is_some_and(Process::is_running) {
            return Ok(());
        }
        let cmd = Cmd::new(program(component.program())?).args(arguments::of(self, component));
        *process = Some(self.machine.place.spawn(cmd)?);
        Ok(())
    }

    /// Starts a program; the API server is ready when this returns, and so is etcd if the API server runs.
    ///
    /// # Errors
    /// When it does not start, with what it printed.
    pub fn start(&self, component: Component) -> Result<()> {
        self.spawn(component)?;
        let serves = matches!(component, Component::Etcd | Component::ApiServer);
        if serves && self.is_running(Component::ApiServer) { self.await_ready(LIMIT) } else { Ok(()) }
    }

    /// Waits until the API server is ready.
    ///
    /// # Errors
    /// After `limit`, with what the programs printed.
    pub fn await_ready(&self, limit: Duration) -> Result<()> {
        self.api.await_ready(limit).map_err(|e| {
            let mut text = e.to_string();
            for component in [Component::Etcd, Component::ApiServer] {
                let log = self.log(component);
                let lines: Vec<_> = log.lines().collect();
                for line in &lines[lines.len().saturating_sub(30)..] {
                    let _ = write!(text, "\n    {}: {line}", component.program());
                }
            }
            Error::new("raise the API server", text)
        })
    }

    /// Kills a program (SIGKILL).
    pub fn kill(&self, component: Component) {
        drop(self.process(component).take());
    }

    /// Asks a program to end (SIGTERM) and waits until it has.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&self, component: Component) -> Result<()> {
        if let Some(process) = self.process(component).take() {
            process.terminate(LIMIT)?;
        }
        Ok(())
    }

    /// Sends a program a signal: SIGSTOP makes one that is there and does not answer.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, component: Component, signal: Signal) -> Result<()> {
        match &*self.process(component) {
            Some(process) => Ok(process.signal(signal)?),
            None => Err(Error::new(format!("send {signal} to {}", component.program()), "it does not run")),
        }
    }

    /// Whether a program runs.
    pub fn is_running(&self, component: Component) -> bool {
        self.process(component).as_ref().is_some_and(Process::is_running)
    }

    /// What a program has printed since it was started last.
    pub fn log(&self, component: Component) -> String {
        self.process(component).as_ref().map(Process::log).unwrap_or_default()
    }
}
