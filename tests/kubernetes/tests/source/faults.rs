//! The connection: gone, closed, quiet, refused.

use std::time::{Duration, Instant};

use heddle_kubernetes::control_plane::Component;
use heddle_kubernetes::fault_proxy::Fault;
use nix::sys::signal::Signal;

use crate::world::{LIMIT, SOON, Subject, World, log_lines};

/// Waits until the source has been out of touch for so long; gives how long it was.
fn away(subject: &Subject, millis: u64) -> Duration {
    let away = || subject.contact().away.map_or(Duration::ZERO, |since| since.elapsed());
    subject.eventually("out of touch", LIMIT, |_| away() >= Duration::from_millis(millis));
    away()
}

#[test]
fn fault_113_an_api_server_that_was_away_is_noticed_at_once() {
    let Some(world) = World::new("113") else { return };
    world.service("one");
    let subject = world.synced();
    let lines = log_lines();
    world.proxy.close();
    subject.complains("nothing is heard since");
    let before = subject.now();
    // What happens meanwhile is not heard, and what was heard stands.
    world.service("two");
    let away = away(&subject, 4000);
    let now = subject.now();
    assert_eq!(
        (&now.services, &now.endpoints, &now.nodes),
        (&before.services, &before.endpoints, &before.nodes)
    );
    let contact = subject.contact();
    let waits = contact.reconnects.get("connect").copied().unwrap_or(0);
    // Three kinds, each of which waits 0.35 to 0.7 s once it lasts.
    assert!((6..40).contains(&waits), "{waits} in {away:?}");
    assert!(log_lines() - lines <= 3, "{} lines in {away:?}", log_lines() - lines);
    world.proxy.open();
    let took = subject.has("two", SOON);
    subject.is_content();
    assert_eq!(subject.contact().away, None);
    println!("back in touch within {took:?}");
    // A real one that is killed, and starts anew, and is not ready at first.
    world.plane().kill(Component::ApiServer);
    self::away(&subject, 500);
    world.plane().start(Component::ApiServer).unwrap();
    let ready = Instant::now();
    world.service("three");
    subject.has("three", SOON);
    println!("heard {:?} after the API server was ready", ready.elapsed());
}

#[test]
fn fault_113_an_api_server_that_stands_still_is_followed_when_it_goes_on() {
    let Some(world) = World::new("113-still") else { return };
    let subject = world.synced();
    // Connections stay, and new ones are taken by the kernel: nobody says anything.
    world.plane().signal(Component::ApiServer, Signal::SIGSTOP).unwrap();
    world.proxy.cut();
    away(&subject, 500);
    world.plane().signal(Component::ApiServer, Signal::SIGCONT).unwrap();
    world.service("one");
    subject.has("one", SOON);
}

#[test]
fn fault_114_a_watch_that_is_closed_each_second_loses_nothing() {
    let Some(world) = World::new("114") else { return };
    world.service("web");
    world
        .proxy
        .rule(|seen| seen.query.contains_key("watch").then(|| Fault::ending(Duration::from_millis(600))));
    let subject = world.synced();
    let lists = world.lists("endpointslices");
    let began = Instant::now();
    let mut longest = Duration::ZERO;
    let watches = || world.proxy.seen().iter().filter(|seen| seen.watches("endpointslices")).count();
    for n in (1..=250u8).cycle() {
        let ip = [10, 0, 0, n].into();
        let changed = Instant::now();
        world.slice("web", &[ip]);
        subject.eventually("the change", SOON, |_| subject.endpoints("web") == [ip]);
        longest = longest.max(changed.elapsed());
        if watches() >= 4 {
            break;
        }
    }
    let watches = watches();
    println!("{watches} watches in {:?}, the longest change took {longest:?}", began.elapsed());
    assert!(longest < Duration::from_secs(1));
    assert_eq!(world.lists("endpointslices"), lists, "the next watch begins where the last one ended");
    assert!(subject.problems().is_empty(), "{}", subject.problems());
}

#[test]
fn fault_117_bookmarks_alone_keep_the_place() {
    let Some(world) = World::new("117") else { return };
    // The API server writes one two seconds before the end of a watch.
    world.proxy.rule(|seen| seen.watches("nodes").then(|| Fault::Ask(vec![("timeoutSeconds", "3".into())])));
    let subject = world.synced();
    let place = |subject: &Subject| -> u64 { subject.contact().versions["nodes"].parse().unwrap() };
    let before = place(&subject);
    // No node, but the API server's state goes on.
    for n in 0..20 {
        world.slice("web", &[[10, 0, 0, n].into()]);
    }
    // A list from its cache makes the API server ask etcd how far it is, as it does each few seconds by itself.
    world.api().list("v1/Node", None, "").unwrap();
    subject.eventually("a bookmark", LIMIT, |_| place(&subject) > before);
    let marked = place(&subject);
    let asked = |version: u64| {
        let from = version.to_string();
        world.proxy.seen().iter().any(|seen| seen.watches("nodes") && seen.query["resourceVersion"] == from)
    };
    subject.eventually("the next watch", LIMIT, |_| asked(marked) || place(&subject) > marked);
    assert_eq!(world.lists("nodes"), 1);
}

#[test]
fn fault_121_patience_is_had_when_it_is_asked_for() {
    let Some(world) = World::new("121-busy") else { return };
    let busy = |code| Fault::Answer { code, retry_after: Some(1), body: "overloaded".into() };
    let until = Instant::now() + Duration::from_millis(900);
    world.proxy.rule(move |seen| {
        (seen.lists("services") && Instant::now() < until)
            .then(|| busy(if seen.query.len() % 2 == 0 { 429 } else { 503 }))
    });
    let subject = world.source();
    subject.eventually("synced", LIMIT, |now| now.synced);
    let asked: Vec<_> =
        world.proxy.seen().into_iter().filter(|seen| seen.lists("services")).map(|seen| seen.at).collect();
    assert_eq!(asked.len(), 2, "once, and once more");
    assert!(asked[1] - asked[0] >= Duration::from_secs(1));
    assert_eq!(subject.contact().reconnects["busy"], 1);
}
