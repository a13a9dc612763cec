//! What a daemon writes about its own node, and nothing else is ever written: some annotations, and the condition
//! `NetworkUnavailable`.
//!
//! It is level-triggered: what is wished is compared with what the API server has, at once when the wish changes or
//! somebody nudges, and every minute. What differs is written, by patches that touch nothing else; what fails is tried
//! again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use heddle_model::{Created, NodeName};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::access::Access;
use super::connect::Connection;
use super::failure::Failure;
use super::pace::Pace;
use super::{request, seed, wall_clock};
use crate::kubernetes::time;

/// How often the API server is asked whether everything is as wished, if nothing happens.
const LOOK: Duration = Duration::from_secs(60);
/// The largest Node object, in bytes.
const LARGEST: usize = 16 << 20;

/// What a node's object is to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Annotations by their names; those without a value are removed. Others are left alone.
    pub annotations: BTreeMap<String, Option<String>>,
    /// The condition `NetworkUnavailable` is to be `False`, for this reason (one word) and with this message. `None`: it
    /// is left alone.
    pub network_available: Option<(String, String)>,
}

/// Writes about a node until it is dropped.
#[derive(Debug)]
pub struct OwnNode {
    wish: watch::Sender<Option<Wish>>,
    nudge: Arc<Notify>,
    trouble: watch::Receiver<Option<String>>,
    written: watch::Receiver<Option<Wish>>,
    task: JoinHandle<()>,
}

impl Drop for OwnNode {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl OwnNode {
    /// Starts on the current tokio runtime; nothing is written before something is wished.
    pub fn start(access: Access, node: NodeName) -> Self {
        let (wish, wishes) = watch::channel(None);
        let (told, trouble) = watch::channel(None);
        let (done, written) = watch::channel(None);
        let nudge = Arc::new(Notify::new());
        let writer = Writer { access, node, connection: None };
        let task = tokio::spawn(write(writer, wishes, Arc::clone(&nudge), told, done));
        Self { wish, nudge, trouble, written, task }
    }

    /// What the node's object is to say from now on. The same again costs nothing.
    pub fn wish(&self, wish: Wish) {
        self.wish.send_if_modified(|known| {
            let news = known.as_ref() != Some(&wish);
            *known = Some(wish);
            news
        });
    }

    /// The node's object has changed, or so it seems: it is looked at.
    pub fn nudge(&self) {
        self.nudge.notify_one();
    }

    /// Why the wish is not true, while it is not.
    pub fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.clone()
    }

    /// The last wish that has come true.
    pub fn written(&self) -> watch::Receiver<Option<Wish>> {
        self.written.clone()
    }
}

async fn write(
    mut writer: Writer,
    mut wishes: watch::Receiver<Option<Wish>>,
    nudge: Arc<Notify>,
    told: watch::Sender<Option<String>>,
    done: watch::Sender<Option<Wish>>,
) {
    let mut pace = Pace::new(seed());
    loop {
        let wish = wishes.borrow_and_update().clone();
        let wait = match &wish {
            None => LOOK,
            Some(wish) => match writer.fulfil(wish).await {
                Ok(()) => {
                    pace.reset();
                    told.send_if_modified(|trouble| trouble.take().is_some());
                    done.send_if_modified(|known| known.replace(wish.clone()).as_ref() != Some(wish));
                    pace.spread(LOOK)
                }
                Err(failure) => {
                    if !failure.spares_connection() {
                        writer.connection = None;
                    }
                    let why = format!("cannot write to node {}: {failure}", writer.node);
                    told.send_if_modified(|trouble| trouble.replace(why.clone()).as_ref() != Some(&why));
                    pace.after(&failure)
                }
            },
        };
        let failed = told.borrow().is_some();
        tokio::select! {
            changed = wishes.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            // After a failure the pause is kept, whoever nudges.
            () = nudge.notified(), if !failed => {}
            () = sleep(wait) => {}
        }
    }
}

struct Writer {
    access: Access,
    node: NodeName,
    connection: Option<Connection>,
}

impl Writer {
    async fn fulfil(&mut self, wish: &Wish) -> Result<(), Failure> {
        if !self.connection.as_ref().is_some_and(Connection::is_usable) {
            self.connection = None;
        }
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(Connection::open(&self.access).await?),
        };
        let path = format!("/api/v1/nodes/{}", request::escaped(&self.node.0));
        let answer = request::get(connection, &path).await?;
        let body = request::whole(answer, LARGEST).await?;
        let node: Value =
            serde_json::from_slice(&body).map_err(|error| Failure::Malformed(format!("a node: {error}")))?;
        if let Some(patch) = annotations(&node, &wish.annotations) {
            request::patch(connection, &path, "application/merge-patch+json", patch.to_string().into())
                .await?;
            tracing::info!(node = %self.node, "annotations written");
        }
        if let Some((reason, message)) = &wish.network_available
            && !is_available(&node)
        {
            let patch = available(reason, message, wall_clock::now());
            let kind = "application/strategic-merge-patch+json";
            request::patch(connection, &format!("{path}/status"), kind, patch.to_string().into()).await?;
            tracing::info!(node = %self.node, "condition NetworkUnavailable set to False");
        }
        Ok(())
    }
}

/// The patch that makes these annotations true; `None`: they are. (RFC 7396.)
fn annotations(node: &Value, wished: &BTreeMap<String, Option<String>>) -> Option<Value> {
    let has = &node["metadata"]["annotations"];
    let differ = wished.iter().filter(|(name, value)| has[name.as_str()].as_str() != value.as_deref());
    let differ: serde_json::Map<String, Value> =
        differ.map(|(name, value)| (name.clone(), json!(value))).collect();
    (!differ.is_empty()).then(|| json!({"metadata": {"annotations": differ}}))
}

fn is_available(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    conditions.is_some_and(|all| {
        all.iter().any(|one| one["type"] == "NetworkUnavailable" && one["status"] == "False")
    })
}

/// Conditions are merged by their type.
fn available(reason: &str, message: &str, now: Created) -> Value {
    let now = time::text(now);
    json!({"status": {"conditions": [{
        "type": "NetworkUnavailable", "status": "False", "reason": reason, "message": message,
        "lastHeartbeatTime": now, "lastTransitionTime": now,
    }]}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written() {
        let node = json!({"metadata": {"annotations": {"a": "1", "b": "2", "other": "x"}}});
        let wish = |pairs: &[(&str, Option<&str>)]| {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), value.map(str::to_owned))).collect()
        };
        assert_eq!(annotations(&node, &wish(&[("a", Some("1")), ("c", None)])), None);
        assert_eq!(
            annotations(&node, &wish(&[("a", Some("3")), ("b", None), ("d", Some("4"))])),
            Some(json!({"metadata": {"annotations": {"a": "3", "b": null, "d": "4"}}}))
        );
        assert!(annotations(&json!({}), &wish(&[("a", Some("1"))])).is_some());
    }

    #[test]
    fn the_condition_is_set_where_it_is_not() {
        let with = |status: &str| {
            json!({"status": {"conditions": [{"type": "Ready", "status": "False"},
                {"type": "NetworkUnavailable", "status": status}]}})
        };
        assert!(is_available(&with("False")) && !is_available(&with("True")) && !is_available(&json!({})));
        let patch = available("HeddleIsUp", "x", Created(0));
        assert_eq!(patch["status"]["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:00Z");
    }
}
