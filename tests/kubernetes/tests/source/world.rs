//! The API server, the proxy before it, and the source under test.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use heddle_control::kubernetes::api::{Access, Kind, Kubernetes, Url};
use heddle_control::source;
use heddle_kubernetes::fault_proxy::FaultProxy;
use heddle_kubernetes::{Api, ControlPlane, Options, Result, kubeconfig};
use heddle_lab::eventually;
use heddle_model::contact::Contact;
use heddle_model::{Snapshot, Store};
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// For what takes a moment.
pub const LIMIT: Duration = Duration::from_secs(10);
/// For what must not take longer, after the API server is back.
pub const SOON: Duration = Duration::from_secs(2);

/// What one test has: the API server is its own for as long.
pub struct World {
    plane: &'static ControlPlane,
    pub proxy: FaultProxy,
    /// The namespace of its objects.
    pub space: String,
    token: PathBuf,
    ca: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

/// The rights of proxyd.
const ROLE: &str = "heddle-proxyd";

fn plane() -> &'static ControlPlane {
    static PLANE: OnceLock<ControlPlane> = OnceLock::new();
    PLANE.get_or_init(|| {
        let plane = ControlPlane::alone(Options::default()).unwrap();
        grant(plane.api(), ROLE).unwrap();
        plane
    })
}

/// Makes a service account `default/NAME` that may read what proxyd reads.
fn grant(api: &Api, name: &str) -> Result<()> {
    account(api, name)?;
    api.apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": name },
        "rules": [
            { "apiGroups": [""], "resources": ["services", "nodes"], "verbs": ["list", "watch"] },
            { "apiGroups": [""], "resources": ["nodes", "nodes/status"], "verbs": ["get", "patch"] },
            { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"] },
        ],
    }))?;
    bind(api, name, name)
}

pub fn account(api: &Api, name: &str) -> Result<()> {
    api.apply(&json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name, "namespace": "default" },
    }))?;
    Ok(())
}

/// Gives an account what proxyd may.
pub fn bind(api: &Api, account: &str, role: &str) -> Result<()> {
    api.apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": account },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
        "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": "default" }],
    }))?;
    Ok(())
}

impl World {
    /// `None`, and said so, where the programs are missing.
    pub fn new(name: &str) -> Option<Self> {
        static TURN: Mutex<()> = Mutex::new(());
        if let Some(reason) = ControlPlane::missing() {
            heddle_lab::skip(&reason);
            return None;
        }
        listen();
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let plane = plane();
        let proxy = FaultProxy::before(plane).unwrap();
        let space = format!("fault-{name}");
        plane
            .api()
            .apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": space } }))
            .unwrap();
        let token = plane.machine().place.path(&format!("/run/{space}.token"));
        std::fs::write(&token, plane.api().token(&format!("default/{ROLE}")).unwrap()).unwrap();
        let ca = plane.machine().place.path(&format!("/run/{space}.ca"));
        std::fs::copy(plane.ca(), &ca).unwrap();
        Some(Self { plane, proxy, space, token, ca, _turn: turn })
    }

    pub fn plane(&self) -> &ControlPlane {
        self.plane
    }

    pub fn api(&self) -> &Api {
        self.plane.api()
    }

    /// The file with the token of the source.
    pub fn token(&self) -> &Path {
        &self.token
    }

    /// The file with the authority that the source trusts.
    pub fn ca(&self) -> &Path {
        &self.ca
    }

    /// The source's kubeconfig, written anew.
    pub fn kubeconfig(&self, server: &str) -> PathBuf {
        let file = self.token.with_extension("kubeconfig");
        kubeconfig::write_to(file, server, &self.ca, kubeconfig::Credentials::TokenFile(&self.token)).unwrap()
    }

    /// A source that comes through the proxy.
    pub fn source(&self) -> Subject {
        self.source_with(Vec::new(), Duration::from_secs(60))
    }

    /// `servers`: in place of the proxy; `doubt`: of lists that lack most.
    pub fn source_with(&self, servers: Vec<Url>, doubt: Duration) -> Subject {
        let access = Access::new(Some(self.kubeconfig(&self.proxy.url())), servers);
        let kubernetes = Kubernetes::new("kubernetes".into(), access, &Kind::ALL).doubting(doubt);
        let store = Store::new();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = self.plane.machine().place.thread("source", {
            let store = store.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    source::start(kubernetes, &store);
                    let _ = stopped.await;
                });
            }
        });
        Subject { store, space: self.space.clone(), stop: Some(stop), thread: Some(thread.unwrap()) }
    }

    /// A source that has told all there is.
    pub fn synced(&self) -> Subject {
        let subject = self.source();
        subject.eventually("synced", LIMIT, |now| now.synced);
        subject
    }

    /// Makes a service.
    pub fn service(&self, name: &str) {
        self.api().apply(&self.service_object(name)).unwrap();
    }

    pub fn service_object(&self, name: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": self.space },
            "spec": { "ports": [{ "port": 80 }] },
        })
    }

    /// Makes a slice of endpoints of a service, or changes it.
    pub fn slice(&self, service: &str, ips: &[IpAddr]) {
        let endpoints: Vec<_> = ips.iter().map(|ip| json!({ "addresses": [ip] })).collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": service, "namespace": self.space, "labels": { "kubernetes.io/service-name": service },
            },
            "addressType": "IPv4", "ports": [{ "port": 8080 }], "endpoints": endpoints,
        });
        self.api().apply(&slice).unwrap();
    }

    pub fn delete_service(&self, name: &str) {
        self.api().delete("v1/Service", &format!("{}/{name}", self.space)).unwrap();
    }

    /// How many lists of a resource were asked for.
    pub fn lists(&self, resource: &str) -> usize {
        self.proxy.seen().iter().filter(|seen| seen.lists(resource)).count()
    }
}

/// A source that runs, and what it tells.
pub struct Subject {
    pub store: Store,
    space: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Option<()>>>,
}

impl Drop for Subject {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Subject {
    pub fn now(&self) -> Arc<Snapshot> {
        self.store.snapshot()
    }

    pub fn contact(&self) -> Contact {
        self.store.contacts().remove(0)
    }

    /// The services of the test.
    pub fn services(&self) -> BTreeSet<String> {
        let now = self.now();
        let own = now.services.keys().filter(|name| *name.namespace == *self.space);
        own.map(|name| name.name.to_string()).collect()
    }

    /// The endpoints of a service.
    pub fn endpoints(&self, service: &str) -> Vec<IpAddr> {
        let now = self.now();
        let own = now
            .endpoints
            .iter()
            .filter(|(name, _)| *name.service.namespace == *self.space && *name.service.name == *service);
        own.flat_map(|(_, list)| list.endpoints.iter().map(|endpoint| endpoint.ip)).collect()
    }

    /// What is wrong, in words.
    pub fn problems(&self) -> String {
        self.now().problems.iter().map(|problem| format!("{problem}\n")).collect()
    }

    /// Waits, and says how long it took.
    pub fn eventually(&self, what: &str, limit: Duration, is: impl Fn(&Snapshot) -> bool) -> Duration {
        let began = Instant::now();
        let waited = eventually(what, limit, || Ok(is(&self.now())));
        if let Err(error) = waited {
            panic!("{error}; services {:?}; {:?}\n{}", self.services(), self.contact(), self.problems());
        }
        began.elapsed()
    }

    pub fn has(&self, service: &str, limit: Duration) -> Duration {
        self.eventually(service, limit, |_| self.services().contains(service))
    }

    /// Waits for a word among the problems.
    pub fn complains(&self, word: &str) {
        self.eventually(word, LIMIT, |_| self.problems().contains(word));
    }

    pub fn is_content(&self) {
        self.eventually("no problem", LIMIT, |now| now.problems.is_empty());
    }
}

/// Lines that the program under test would have logged.
static LINES: AtomicUsize = AtomicUsize::new(0);

pub fn log_lines() -> usize {
    LINES.load(Ordering::Relaxed)
}

struct Count;

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LINES.fetch_add(bytes.iter().filter(|byte| **byte == b'\n').count(), Ordering::Relaxed);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn listen() {
    static ONCE: Once = Once::new();
    // As the daemons log, without being told otherwise.
    ONCE.call_once(|| {
        tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_writer(|| Count).init()
    });
}
