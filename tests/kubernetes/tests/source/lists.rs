//! What is too old, too new, not whole, or not there any more.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use heddle_kubernetes::control_plane::Component;
use heddle_kubernetes::fault_proxy::Fault;
use serde_json::{Value, json};

use crate::world::{LIMIT, SOON, Subject, World};

/// The next watch of services fails like this, once.
fn once(world: &World, fault: Fault) {
    let done = AtomicUsize::new(0);
    world.proxy.rule(move |seen| {
        (seen.watches("services") && done.fetch_add(1, Ordering::Relaxed) == 0).then(|| fault.clone())
    });
    world.proxy.cut();
}

#[test]
fn fault_115_what_is_too_old_or_too_new_is_listed_anew() {
    let Some(world) = World::new("115") else { return };
    // One that has just begun remembers nothing of what was before.
    world.plane().kill(Component::ApiServer);
    world.plane().start(Component::ApiServer).unwrap();
    let subject = world.synced();
    // Told by the API server itself, in the stream or as its answer.
    let too_old = Fault::Ask(vec![("resourceVersion", "1".into())]);
    let gone = Fault::error(410, "too old resource version: 1 (99)");
    let in_stream = json!({ "type": "ERROR", "object": {
        "kind": "Status", "apiVersion": "v1", "code": 410, "reason": "Expired", "message": "too old" } });
    let too_new = Fault::error(504, "Timeout: Too large resource version: 99, current: 1");
    let faults = [too_old, gone, Fault::Told(vec![in_stream.to_string()]), too_new];
    for (n, fault) in faults.into_iter().enumerate() {
        let lists = world.lists("services");
        once(&world, fault);
        subject.eventually("another list", LIMIT, |_| world.lists("services") > lists);
        let name = format!("after-{n}");
        world.service(&name);
        subject.has(&name, SOON);
        assert_eq!(world.lists("services"), lists + 1, "and one is enough");
    }
    let reconnects = subject.contact().reconnects;
    assert_eq!((reconnects["gone"], reconnects["behind"]), (3, 1), "{reconnects:?}");
    assert!(subject.problems().is_empty(), "{}", subject.problems());
}

#[test]
fn fault_116_a_list_that_is_older_than_what_is_held_is_passed_over() {
    let Some(world) = World::new("116") else { return };
    let old: Arc<Mutex<Option<Value>>> = Arc::default();
    let kept = Arc::clone(&old);
    world.proxy.rule(move |seen| {
        let kept = Arc::clone(&kept);
        let keep = move |list: Value| {
            *kept.lock().unwrap() = Some(list.clone());
            list
        };
        seen.lists("services").then(|| Fault::Page(Arc::new(keep)))
    });
    let subject = world.synced();
    world.service("new");
    subject.has("new", SOON);
    let old = old.lock().unwrap().take().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    world.proxy.rule(move |seen| {
        if seen.watches("services") && count.load(Ordering::Relaxed) == 0 {
            return Some(Fault::error(410, "too old"));
        }
        let stale = seen.lists("services") && count.fetch_add(1, Ordering::Relaxed) < 3;
        stale.then(|| Fault::Answer { code: 200, retry_after: None, body: old.to_string() })
    });
    world.proxy.cut();
    subject.eventually("stale lists", LIMIT, |_| {
        assert!(subject.services().contains("new"), "nothing goes back in time");
        asked.load(Ordering::Relaxed) > 3
    });
    world.service("newer");
    subject.has("newer", SOON);
    assert!(subject.services().contains("new"));
    assert_eq!(subject.contact().reconnects["older"], 3);
}

#[test]
fn fault_119_a_deletion_that_was_missed_is_found() {
    let Some(world) = World::new("119") else { return };
    for name in ["a", "b", "c"] {
        world.service(name);
        world.slice(name, &[[10, 0, 0, 1].into()]);
    }
    let subject = world.synced();
    subject.has("c", SOON);
    // While nobody listens, and so long that the API server has forgotten it.
    world.proxy.close();
    world.delete_service("a");
    world.api().delete("discovery.k8s.io/v1/EndpointSlice", &format!("{}/a", world.space)).unwrap();
    world.proxy.rule(forgetful());
    world.proxy.open();
    subject.eventually("a is gone", SOON, |_| !subject.services().contains("a"));
    subject.eventually("its endpoints are gone", SOON, |_| subject.endpoints("a").is_empty());
    // Swallowed on the way.
    world.proxy.rule(|seen| {
        let lines = |line: String| if line.contains("\"DELETED\"") { Vec::new() } else { vec![line] };
        seen.watches("services").then(|| Fault::Stream { lines: Arc::new(lines), end: None })
    });
    world.proxy.cut();
    world.service("d");
    subject.has("d", SOON);
    world.delete_service("b");
    world.service("e");
    subject.has("e", SOON);
    assert!(subject.services().contains("b"), "the test swallows it");
    world.proxy.rule(forgetful());
    world.proxy.cut();
    subject.eventually("b is gone", SOON, |_| !subject.services().contains("b"));
    assert_eq!(subject.services(), ["c", "d", "e"].map(str::to_owned).into());
    assert_eq!(subject.endpoints("c").len(), 1);
}

/// Each watch's first attempt fails: it began too long ago.
fn forgetful() -> impl Fn(&heddle_kubernetes::fault_proxy::Seen) -> Option<Fault> + Send + Sync {
    let seen_before = Mutex::new(std::collections::BTreeSet::new());
    move |seen| {
        let first = seen.query.contains_key("watch") && seen_before.lock().unwrap().insert(seen.path.clone());
        first.then(|| Fault::error(410, "too old"))
    }
}

#[test]
fn fault_120_a_list_counts_when_all_of_it_is_there() {
    let Some(world) = World::new("120") else { return };
    for n in 0..7 {
        world.service(&format!("s{n}"));
    }
    // Real pages of two, and one of them expires.
    let pages = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&pages);
    world.proxy.rule(move |seen| {
        if !seen.lists("services") {
            return None;
        }
        match count.fetch_add(1, Ordering::Relaxed) {
            2 => Some(Fault::error(410, "The provided continue parameter is too old")),
            // The first page of the second list is held up, to look at what is told meanwhile.
            3 => Some(Fault::Hang),
            _ => Some(Fault::Ask(vec![("limit", "2".into())])),
        }
    });
    let subject = world.source();
    subject.eventually("the second list", LIMIT, |_| pages.load(Ordering::Relaxed) == 4);
    assert!(subject.services().is_empty() && !subject.now().synced, "half a list is none");
    world.proxy.cut();
    subject.eventually("synced", LIMIT, |now| now.synced);
    assert_eq!(subject.services().len(), 7);
    assert!(pages.load(Ordering::Relaxed) >= 8, "pages of two");
    assert_eq!(subject.contact().reconnects["gone"], 1);

    // The end of a list is cut off: what was in it is not gone.
    for n in 0..5 {
        let node =
            json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": format!("fault-120-{n}") } });
        world.api().apply(&node).unwrap();
    }
    let nodes =
        |subject: &Subject| subject.now().nodes.keys().filter(|name| name.0.starts_with("fault-120")).count();
    subject.eventually("nodes", SOON, |_| nodes(&subject) == 5);
    let cut_off = |list: Value| {
        let mut list = list;
        list["metadata"]["continue"] = "".into();
        list
    };
    let lists = AtomicUsize::new(0);
    let watched = AtomicUsize::new(0);
    world.proxy.rule(move |seen| {
        if seen.watches("nodes") && watched.fetch_add(1, Ordering::Relaxed) == 0 {
            return Some(Fault::error(410, "too old"));
        }
        // The proxy asks for what it is asked for, so the page is whole and is made smaller here.
        let short = move |list: Value| {
            let mut list = cut_off(list);
            let items = list["items"].as_array_mut().unwrap();
            let rest = items.len().saturating_sub(1);
            items.truncate(1);
            list["metadata"]["remainingItemCount"] = rest.into();
            list
        };
        (seen.lists("nodes") && lists.fetch_add(1, Ordering::Relaxed) < 2)
            .then(|| Fault::Page(Arc::new(short)))
    });
    world.proxy.cut();
    subject.eventually("lists without an end", LIMIT, |_| {
        assert_eq!(nodes(&subject), 5);
        subject.contact().reconnects.get("partial") == Some(&2)
    });
    world.api().delete("v1/Node", "fault-120-0").unwrap();
    subject.eventually("the fifth is gone", SOON, |_| nodes(&subject) == 4);
    for n in 1..5 {
        world.api().delete("v1/Node", &format!("fault-120-{n}")).unwrap();
    }
    subject.eventually("all are gone, one by one", SOON, |_| nodes(&subject) == 0);
}

#[test]
fn fault_112_a_sudden_empty_list_is_not_believed_at_once() {
    let Some(world) = World::new("112") else { return };
    world.service("a");
    let doubt = Duration::from_millis(2500);
    let subject = world.source_with(Vec::new(), doubt);
    subject.eventually("synced", LIMIT, |now| now.synced);
    let empty = |list: Value| {
        let mut list = list;
        list["items"] = json!([]);
        list
    };
    let rule = || {
        let watched = AtomicUsize::new(0);
        move |seen: &heddle_kubernetes::fault_proxy::Seen| {
            if seen.watches("services") && watched.fetch_add(1, Ordering::Relaxed) == 0 {
                return Some(Fault::error(410, "too old"));
            }
            seen.lists("services").then(|| Fault::Page(Arc::new(empty)))
        }
    };
    world.proxy.rule(rule());
    world.proxy.cut();
    subject.complains("are not in the API server's list any more");
    assert!(subject.services().contains("a"));
    // What is new counts meanwhile.
    world.service("b");
    subject.has("b", SOON);
    // The API server was mistaken: nothing was lost.
    world.proxy.pass();
    subject.is_content();
    assert_eq!(subject.services(), ["a", "b"].map(str::to_owned).into());
    // It says so twice: it is true.
    world.proxy.rule(rule());
    world.proxy.cut();
    let took = subject.eventually("gone", LIMIT, |_| subject.services().is_empty());
    assert!(took >= doubt / 2, "{took:?}");
}

#[test]
fn fault_122_what_is_new_in_the_api_does_no_harm() {
    let Some(world) = World::new("122") else { return };
    world.service("plain");
    let strange = |list: Value| {
        let mut list = list;
        list["shards"] = json!({ "of": 3 });
        for item in list["items"].as_array_mut().unwrap() {
            item["spec"]["newField"] = json!({ "deep": [1, { "er": null }] });
            item["spec"]["internalTrafficPolicy"] = "Nearby".into();
            item["spec"]["sessionAffinity"] = "Cookie".into();
            item["spec"]["ipFamilies"] = json!(["IPv4", "IPv7"]);
            item["spec"]["ports"]
                .as_array_mut()
                .unwrap()
                .push(json!({ "port": 81, "protocol": "QUIC", "name": "q" }));
            item["metadata"]["newMeta"] = 1.into();
        }
        list
    };
    let line = |line: String| {
        vec![
            r#"{"type":"SHARDED","object":{"kind":"Thing"}}"#.to_owned(),
            line.replace("\"None\"", "\"Cookie\""),
        ]
    };
    world.proxy.rule(move |seen| match () {
        () if seen.lists("services") => Some(Fault::Page(Arc::new(strange))),
        () if seen.watches("services") => Some(Fault::Stream { lines: Arc::new(line), end: None }),
        () => None,
    });
    let subject = world.synced();
    let now = subject.now();
    let (_, service) = now.services.iter().find(|(name, _)| &*name.name == "plain").unwrap();
    assert_eq!(service.ports.len(), 1, "the port whose protocol is known");
    assert_eq!(service.affinity, None);
    let problems = subject.problems();
    for word in ["Nearby", "QUIC", "Cookie", "IPv7", "fault-122/plain"] {
        assert!(problems.contains(word), "{word}: {problems}");
    }
    world.service("later");
    subject.has("later", SOON);
}
