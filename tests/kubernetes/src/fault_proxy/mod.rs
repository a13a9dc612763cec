//! A proxy before the API server that gets in the way: it breaks and delays connections, answers itself, and changes what
//! passes.
//!
//! It terminates TLS, so its clients are known by tokens, and by no certificates.

mod relay;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use heddle_lab::Place;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::ControlPlane;
use crate::error::{Error, Result};
use crate::pki::Pair;

/// A request that passes.
#[derive(Clone, Debug)]
pub struct Seen {
    pub at: Instant,
    pub path: String,
    /// As it was written: nothing is unescaped.
    pub query: BTreeMap<String, String>,
}

impl Seen {
    /// Whether it is a watch of this resource.
    pub fn watches(&self, resource: &str) -> bool {
        self.path.ends_with(resource) && self.query.contains_key("watch")
    }

    /// Whether it is a list of this resource, or a page of one.
    pub fn lists(&self, resource: &str) -> bool {
        self.path.ends_with(resource) && !self.query.contains_key("watch")
    }
}

/// What a line of a watch becomes.
pub type Lines = Arc<dyn Fn(String) -> Vec<String> + Send + Sync>;

/// What happens to a request.
#[derive(Clone)]
pub enum Fault {
    /// It never gets to the API server; this is the answer.
    Answer { code: u16, retry_after: Option<u32>, body: String },
    /// It never gets an answer.
    Hang,
    /// Its connection breaks.
    Cut,
    /// These parameters are other ones; empty: they are left out.
    Ask(Vec<(&'static str, String)>),
    /// The list that comes back is another one.
    Page(Arc<dyn Fn(Value) -> Value + Send + Sync>),
    /// Each line is another one, and the stream ends after a while.
    Stream { lines: Lines, end: Option<Duration> },
    /// The API server is not asked: the first are told, and then nothing more.
    Told(Vec<String>),
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fault")
    }
}

impl Fault {
    /// An answer that is an error.
    pub fn error(code: u16, message: &str) -> Self {
        let body = serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code,
        });
        Self::Answer { code, retry_after: None, body: body.to_string() }
    }

    /// A stream of which nothing is changed, but that ends.
    pub fn ending(after: Duration) -> Self {
        Self::Stream { lines: Arc::new(|line| vec![line]), end: Some(after) }
    }
}

type Rule = dyn Fn(&Seen) -> Option<Fault> + Send + Sync;

struct Shared {
    seen: Mutex<Vec<Seen>>,
    rule: Mutex<Option<Arc<Rule>>>,
    tls: Mutex<Arc<ServerConfig>>,
    upstream: Arc<ClientConfig>,
    server: SocketAddr,
    /// Counts up: connections of before are broken.
    generation: watch::Sender<u64>,
    /// Whether connections are taken.
    is_open: watch::Sender<bool>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The proxy, until it is dropped.
pub struct FaultProxy {
    port: u16,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Option<()>>>,
}

impl fmt::Debug for FaultProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultProxy").field("port", &self.port).finish_non_exhaustive()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl FaultProxy {
    /// Before the API server of `plane`, on its machine's loopback, with a certificate of its authority.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn before(plane: &ControlPlane) -> Result<Self> {
        let names = ["127.0.0.1".to_owned()];
        let pair = plane.authority().issue("fault-proxy", "fault-proxy", None, &names)?;
        let failed = |e: &dyn fmt::Display| Error::new("start the fault proxy", e.to_string());
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(plane.ca()).map_err(|e| failed(&e))?;
        roots.add(ca).map_err(|e| failed(&e))?;
        let shared = Arc::new(Shared {
            seen: Mutex::default(),
            rule: Mutex::default(),
            tls: Mutex::new(server_config(&pair)?),
            upstream: Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()),
            server: (Ipv4Addr::LOCALHOST, crate::control_plane::PORT).into(),
            generation: watch::Sender::new(0),
            is_open: watch::Sender::new(true),
        });
        let (stop, stopped) = oneshot::channel();
        let (told, port) = std::sync::mpsc::sync_channel(1);
        let thread = Place::thread(&plane.machine().place, "fault-proxy", {
            let shared = Arc::clone(&shared);
            move || serve(&shared, stopped, &told)
        })?;
        let gone = || Error::new("start the fault proxy", "it has ended");
        let port = port.recv().map_err(|_| gone())?.map_err(|e| failed(&e))?;
        Ok(Self { port, shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens, on the machine itself.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// What happens to requests from now on, whatever was said before.
    pub fn rule(&self, rule: impl Fn(&Seen) -> Option<Fault> + Send + Sync + 'static) {
        *lock(&self.shared.rule) = Some(Arc::new(rule));
    }

    /// Everything passes from now on, on new connections and those that are there.
    pub fn pass(&self) {
        *lock(&self.shared.rule) = None;
    }

    /// Breaks all connections.
    pub fn cut(&self) {
        self.shared.generation.send_modify(|generation| *generation += 1);
    }

    /// Nobody listens at the address any more, and all connections break.
    pub fn close(&self) {
        self.shared.is_open.send_replace(false);
        self.cut();
    }

    /// Connections are taken again.
    pub fn open(&self) {
        self.shared.is_open.send_replace(true);
    }

    /// Has another certificate from now on.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn present(&self, pair: &Pair) -> Result<()> {
        *lock(&self.shared.tls) = server_config(pair)?;
        self.cut();
        Ok(())
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.shared.seen).clone()
    }
}

fn server_config(pair: &Pair) -> Result<Arc<ServerConfig>> {
    let failed = |e: &dyn fmt::Display| Error::new("use a certificate", e.to_string());
    let certificate = CertificateDer::from_pem_file(&pair.certificate).map_err(|e| failed(&e))?;
    let key = PrivateKeyDer::from_pem_file(&pair.key).map_err(|e| failed(&e))?;
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key);
    Ok(Arc::new(config.map_err(|e| failed(&e))?))
}

type Port = std::result::Result<u16, std::io::Error>;

fn serve(shared: &Arc<Shared>, stopped: oneshot::Receiver<()>, told: &std::sync::mpsc::SyncSender<Port>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return drop(told.send(Err(error))),
    };
    runtime.block_on(async {
        let listener = match TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await {
            Ok(listener) => listener,
            Err(error) => return drop(told.send(Err(error))),
        };
        let port = listener.local_addr().map(|at| at.port());
        let at: SocketAddr = (Ipv4Addr::LOCALHOST, *port.as_ref().unwrap_or(&0)).into();
        drop(told.send(port));
        tokio::select! {
            _ = stopped => {}
            () = accept(shared, listener, at) => {}
        }
    });
}

/// Takes connections while it is open.
async fn accept(shared: &Arc<Shared>, first: TcpListener, at: SocketAddr) {
    let mut is_open = shared.is_open.subscribe();
    let mut listener = Some(first);
    loop {
        if !*is_open.borrow_and_update() {
            drop(listener.take());
            let _ = is_open.changed().await;
            continue;
        }
        let Some(open) = &listener else {
            // The port may be taken for a moment by what is left of its connections.
            match TcpListener::bind(at).await {
                Ok(open) => listener = Some(open),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
            continue;
        };
        tokio::select! {
            _ = is_open.changed() => {}
            taken = open.accept() => {
                if let Ok((stream, _)) = taken {
                    tokio::spawn(relay::connection(Arc::clone(shared), stream));
                }
            }
        }
    }
}
