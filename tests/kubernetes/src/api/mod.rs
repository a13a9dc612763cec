//! The tests' own hand at the API server: objects are JSON, calls block.
//!
//! A resource is written `v1/Service` or `apps/v1/Deployment`, an object `NAMESPACE/NAME` or, where there are no
//! namespaces, `NAME`.

mod resource;
mod session;
mod wait;

use std::future::Future;
use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use futures::StreamExt;
use futures::future::LocalBoxFuture;
use heddle_lab::Place;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::error::{Error, Result};
use session::Session;

const APPLY: &str = "application/apply-patch+yaml";
const MERGE: &str = "application/merge-patch+json";

type Job = Box<dyn FnOnce(Rc<Session>) -> LocalBoxFuture<'static, ()> + Send>;

/// A connection to an API server, from a place of the Lab, as the user of a kubeconfig.
#[derive(Debug)]
pub struct Api {
    jobs: Option<UnboundedSender<Job>>,
    thread: Option<JoinHandle<Option<Result<()>>>>,
}

impl Api {
    /// Nothing is sent yet: the server need not run.
    ///
    /// # Errors
    /// When the kubeconfig cannot be used.
    pub fn connect(place: &Place, kubeconfig: &Path) -> Result<Self> {
        let (jobs, work) = unbounded_channel();
        let (told, ready) = mpsc::sync_channel(1);
        let config = Kubeconfig::read_from(kubeconfig).map_err(|e| Error::new("read a kubeconfig", e))?;
        let thread = place.thread("kubernetes-api", move || serve(config, work, &told))?;
        ready
            .recv()
            .map_err(|_| Error::new("start a client of the API server", "its thread has ended"))??;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Runs `f` where the connection is, for what the methods here cannot do.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn run<T, F, Fut>(&self, f: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(kube::Client) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T>> + 'static,
    {
        self.call(|session| f(session.client.clone()))
    }

    fn call<T, F, Fut>(&self, f: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Rc<Session>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T>> + 'static,
    {
        let (answer, answered) = mpsc::sync_channel(1);
        let job: Job = Box::new(move |session| {
            let work = f(session);
            Box::pin(async move { drop(answer.send(work.await)) })
        });
        let gone = || Error::new("ask the API server", "the thread of the connection has ended");
        self.jobs.as_ref().ok_or_else(gone)?.send(job).map_err(|_| gone())?;
        answered.recv().map_err(|_| gone())?
    }

    /// Server-side apply: what is not there is created, what is there gets these fields.
    ///
    /// # Errors
    /// The API server's.
    pub fn apply(&self, object: &Value) -> Result<Value> {
        let object = object.clone();
        self.call(move |session| async move { apply(&session, object).await })
    }

    /// [`apply`](Self::apply) for many, 32 at a time.
    ///
    /// # Errors
    /// The first one of the API server's.
    pub fn apply_all(&self, objects: impl IntoIterator<Item = Value>) -> Result<()> {
        let objects: Vec<_> = objects.into_iter().collect();
        self.call(move |session| async move {
            let applied = futures::stream::iter(objects).map(|object| apply(&session, object));
            let mut applied = applied.buffer_unordered(32);
            while let Some(result) = applied.next().await {
                result?;
            }
            Ok(())
        })
    }

    /// Creates an object; one that is there already is an error.
    ///
    /// # Errors
    /// The API server's.
    pub fn create(&self, object: &Value) -> Result<Value> {
        let object = object.clone();
        self.call(move |session| async move {
            let (path, _) = session.path_of(&object).await?;
            session.json("POST", &path, Some(&object)).await
        })
    }

    /// The object; `None` when it is not there.
    ///
    /// # Errors
    /// The API server's.
    pub fn get(&self, resource: &str, name: &str) -> Result<Option<Value>> {
        none_if_missing(self.at("GET", resource, name, "", None))
    }

    /// The objects of `namespace` (`None`: of all) that `selector` fits (`app=web`; empty: all).
    ///
    /// # Errors
    /// The API server's.
    pub fn list(&self, resource: &str, namespace: Option<&str>, selector: &str) -> Result<Vec<Value>> {
        let (resource, namespace) = (resource.to_owned(), namespace.map(str::to_owned));
        let query = format!("labelSelector={}", resource::escape(selector));
        self.call(move |session| async move {
            let path = session.collection(&resource, namespace.as_deref()).await?;
            let mut list = session.json("GET", &format!("{path}?{query}"), None).await?;
            let items = list["items"].as_array_mut().map(std::mem::take);
            Ok(items.unwrap_or_default())
        })
    }

    /// Merges `change` into the object; `null` removes a field.
    ///
    /// # Errors
    /// The API server's.
    pub fn patch(&self, resource: &str, name: &str, change: &Value) -> Result<Value> {
        self.at("PATCH", resource, name, "", Some(change))
    }

    /// As [`patch`](Self::patch), for its status.
    ///
    /// # Errors
    /// The API server's.
    pub fn patch_status(&self, resource: &str, name: &str, change: &Value) -> Result<Value> {
        self.at("PATCH", resource, name, "/status", Some(change))
    }

    /// Deletes the object; one that is not there is fine. What has finalizers or a grace period goes later.
    ///
    /// # Errors
    /// The API server's.
    pub fn delete(&self, resource: &str, name: &str) -> Result<()> {
        none_if_missing(self.at("DELETE", resource, name, "", None)).map(drop)
    }

    /// A new token of the service account, for an hour.
    ///
    /// # Errors
    /// The API server's.
    pub fn token(&self, service_account: &str) -> Result<String> {
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": { "expirationSeconds": 3600 },
        });
        let answer = self.at("POST", "v1/ServiceAccount", service_account, "/token", Some(&request))?;
        let token = answer["status"]["token"].as_str();
        token.map(str::to_owned).ok_or_else(|| Error::new("read a token", answer))
    }

    /// Any request that is answered in JSON, e.g. `GET /version`.
    ///
    /// # Errors
    /// The API server's.
    pub fn raw(&self, method: &'static str, path: &str, body: Option<&Value>) -> Result<Value> {
        let (path, body) = (path.to_owned(), body.cloned());
        self.call(move |session| async move { session.json(method, &path, body.as_ref()).await })
    }

    fn at(
        &self,
        method: &'static str,
        resource: &str,
        name: &str,
        below: &'static str,
        body: Option<&Value>,
    ) -> Result<Value> {
        let (resource, name, body) = (resource.to_owned(), name.to_owned(), body.cloned());
        self.call(move |session| async move {
            let path = session.object(&resource, &name).await?;
            session.json(method, &format!("{path}{below}"), body.as_ref()).await
        })
    }

    /// Waits until `done` says yes to the object (`None`: it is not there), and gives it. It is asked again whenever the
    /// object changes.
    ///
    /// # Errors
    /// After `limit`, with the object as it was last.
    pub fn wait(
        &self,
        resource: &str,
        name: &str,
        limit: Duration,
        done: impl Fn(Option<&Value>) -> bool + Send + 'static,
    ) -> Result<Option<Value>> {
        let (resource, name) = (resource.to_owned(), name.to_owned());
        self.call(move |session| async move {
            let (namespace, own) = name.split_once('/').map_or((None, &*name), |(ns, own)| (Some(ns), own));
            let path = session.collection(&resource, namespace).await?;
            let query = format!("fieldSelector=metadata.name%3D{own}");
            let what = format!("{resource} {name} as awaited");
            let mut found =
                wait::until(&session, &path, &query, &what, limit, |all| done(all.first().copied())).await?;
            Ok(found.pop())
        })
    }

    /// Waits until `done` says yes to all objects that `selector` fits, and gives them, in the order of their names.
    ///
    /// # Errors
    /// After `limit`, with the objects as they were last.
    pub fn wait_all(
        &self,
        resource: &str,
        namespace: Option<&str>,
        selector: &str,
        limit: Duration,
        done: impl Fn(&[&Value]) -> bool + Send + 'static,
    ) -> Result<Vec<Value>> {
        let (resource, namespace) = (resource.to_owned(), namespace.map(str::to_owned));
        let query = format!("labelSelector={}", resource::escape(selector));
        self.call(move |session| async move {
            let path = session.collection(&resource, namespace.as_deref()).await?;
            wait::until(&session, &path, &query, &format!("{resource}s as awaited"), limit, done).await
        })
    }

    /// Waits until the API server says that it is ready.
    ///
    /// # Errors
    /// After `limit`, with what it said last.
    pub fn await_ready(&self, limit: Duration) -> Result<()> {
        self.call(move |session| async move { wait::ready(&session, limit).await })
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn apply(session: &Session, object: Value) -> Result<Value> {
    let (path, name) = session.path_of(&object).await?;
    let path = format!("{path}/{name}?fieldManager=test&force=true");
    session.request("PATCH", &path, APPLY, object.to_string().into_bytes()).await
}

fn none_if_missing(answer: Result<Value>) -> Result<Option<Value>> {
    match answer {
        Err(e) if e.code() == Some(404) => Ok(None),
        other => other.map(Some),
    }
}

/// The thread of a connection: jobs run beside each other.
fn serve(
    config: Kubeconfig,
    mut work: UnboundedReceiver<Job>,
    told: &mpsc::SyncSender<Result<()>>,
) -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| Error::new("make a client of the API server", e);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| failed(&e))?;
    tokio::task::LocalSet::new().block_on(&runtime, async move {
        let client = async {
            let options = KubeConfigOptions::default();
            let mut config =
                kube::Config::from_custom_kubeconfig(config, &options).await.map_err(|e| failed(&e))?;
            // A test wants to see what the server says.
            config.default_retry = false;
            kube::Client::try_from(config).map_err(|e| failed(&e))
        };
        let session = match client.await {
            Ok(client) => Rc::new(Session::new(client)),
            Err(error) => return drop(told.send(Err(error))),
        };
        let _ = told.send(Ok(()));
        while let Some(job) = work.recv().await {
            tokio::task::spawn_local(job(Rc::clone(&session)));
        }
    });
    Ok(())
}
