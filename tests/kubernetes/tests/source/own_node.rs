//! What is written about a node.

use std::collections::BTreeMap;
use std::sync::Arc;

use heddle_control::kubernetes::api::{Access, OwnNode, Wish};
use heddle_kubernetes::fault_proxy::Fault;
use heddle_lab::eventually;
use heddle_model::NodeName;
use serde_json::{Value, json};

use crate::world::{LIMIT, World};

#[test]
fn a_node_says_of_itself_what_is_wished_and_keeps_the_rest() {
    let Some(world) = World::new("node") else { return };
    let access = Access::new(Some(world.kubeconfig(&world.proxy.url())), Vec::new());
    let place = world.plane().machine().place.clone();
    let (told, writer) = std::sync::mpsc::channel();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let thread = place
        .thread("writer", move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            let _inside = runtime.enter();
            told.send(Arc::new(OwnNode::start(access, NodeName("own-node".into())))).unwrap();
            let _ = stopped.recv();
        })
        .unwrap();
    let own = writer.recv().unwrap();
    let wish = |value: Option<&str>| Wish {
        annotations: BTreeMap::from([
            ("flannel.alpha.coreos.com/backend-type".to_owned(), value.map(str::to_owned)),
            ("flannel.alpha.coreos.com/public-ip".to_owned(), Some("10.0.0.1".to_owned())),
        ]),
        network_available: Some(("HeddleIsUp".into(), "the overlay works".into())),
    };
    // The node is not there yet, and the API server has a bad day.
    world.proxy.rule({
        let first = std::sync::atomic::AtomicUsize::new(0);
        move |_| match first.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => Some(Fault::Cut),
            1 => Some(Fault::error(409, "the object has been modified")),
            _ => None,
        }
    });
    own.wish(wish(Some("vxlan")));
    let trouble = own.trouble();
    eventually("a complaint", LIMIT, || Ok(trouble.borrow().as_ref().is_some_and(|why| why.contains("404"))))
        .unwrap();
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "own-node", "annotations": { "other": "kept" } },
    });
    world.api().apply(&node).unwrap();
    let get = || world.api().get("v1/Node", "own-node").unwrap().unwrap();
    let written = |node: &Value| {
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|one| one["reason"] == "HeddleIsUp" && one["status"] == "False")
            && node["metadata"]["annotations"]["flannel.alpha.coreos.com/backend-type"] == "vxlan"
    };
    eventually("what is wished", LIMIT, || Ok(written(&get()))).unwrap();
    eventually("said so", LIMIT, || Ok(own.written().borrow().is_some() && own.trouble().borrow().is_none()))
        .unwrap();
    assert_eq!(get()["metadata"]["annotations"]["other"], "kept");
    // The same again writes nothing.
    let version = get()["metadata"]["resourceVersion"].clone();
    let asked = world.proxy.seen().len();
    own.nudge();
    eventually("looked at", LIMIT, || Ok(world.proxy.seen().len() > asked)).unwrap();
    assert_eq!(get()["metadata"]["resourceVersion"], version);
    // Somebody else writes there; and something is not wished any more.
    let patch =
        json!({ "metadata": { "annotations": { "flannel.alpha.coreos.com/backend-type": "host-gw" } } });
    world.api().patch("v1/Node", "own-node", &patch).unwrap();
    own.nudge();
    eventually("put right", LIMIT, || Ok(written(&get()))).unwrap();
    own.wish(wish(None));
    eventually("taken away", LIMIT, || {
        Ok(get()["metadata"]["annotations"]["flannel.alpha.coreos.com/backend-type"].is_null())
    })
    .unwrap();
    assert_eq!(get()["metadata"]["annotations"]["other"], "kept");
    world.api().delete("v1/Node", "own-node").unwrap();
    drop(own);
    drop(stop);
    let _ = thread.join();
}
