//! Who we are to the API server, who it is to us, and where it is.

use std::fs;
use std::time::Duration;

use heddle_kubernetes::fault_proxy::FaultProxy;
use heddle_kubernetes::pki::Authority;

use crate::world::{LIMIT, SOON, World, account, bind};

#[test]
fn fault_121_a_token_that_is_renewed_is_used() {
    let Some(world) = World::new("121-token") else { return };
    let good = fs::read(world.token()).unwrap();
    fs::write(world.token(), "expired").unwrap();
    let subject = world.source();
    subject.complains("not let in (401)");
    assert!(!subject.now().synced);
    fs::write(world.token(), &good).unwrap();
    subject.eventually("synced", LIMIT, |now| now.synced);
    // While it runs: the next request has the new one.
    fs::write(world.token(), "expired again").unwrap();
    world.proxy.cut();
    subject.eventually("not let in", LIMIT, |_| subject.contact().reconnects["denied"] > 3);
    fs::write(world.token(), good).unwrap();
    world.service("one");
    subject.has("one", LIMIT);
    subject.is_content();
}

#[test]
fn fault_121_rights_that_are_missing_are_named() {
    let Some(world) = World::new("121-rights") else { return };
    account(world.api(), "fault-121").unwrap();
    fs::write(world.token(), world.api().token("default/fault-121").unwrap()).unwrap();
    let subject = world.source();
    for word in [
        "not allowed (403)",
        "system:serviceaccount:default:fault-121",
        "cannot list resource",
        "services",
        "endpointslices",
        "nodes",
    ] {
        subject.complains(word);
    }
    bind(world.api(), "fault-121", "heddle-proxyd").unwrap();
    subject.eventually("synced", LIMIT, |now| now.synced);
    subject.is_content();
}

#[test]
fn fault_121_an_authority_that_is_renewed_is_trusted() {
    let Some(world) = World::new("121-authority") else { return };
    let subject = world.synced();
    let dir = world.ca().with_extension("other");
    fs::create_dir(&dir).unwrap();
    let other = Authority::new(&dir).unwrap();
    let pair = other.issue("server", "server", None, &["127.0.0.1".to_owned()]).unwrap();
    world.proxy.present(&pair).unwrap();
    subject.complains("tls: invalid peer certificate");
    // Both, as whoever renews it does.
    let both = [fs::read(world.ca()).unwrap(), fs::read(other.certificate()).unwrap()].concat();
    fs::write(world.ca(), both).unwrap();
    world.service("one");
    subject.has("one", SOON);
    subject.is_content();
    // Half-written: what was read last counts.
    fs::write(world.ca(), "-----BEGIN CERTIFICATE-----\nMII").unwrap();
    world.proxy.cut();
    world.service("two");
    subject.has("two", SOON);
}

#[test]
fn fault_121_an_api_server_that_has_moved_is_found() {
    let Some(world) = World::new("121-moved") else { return };
    let subject = world.synced();
    let elsewhere = FaultProxy::before(world.plane()).unwrap();
    world.proxy.close();
    subject.complains("cannot connect to");
    world.kubeconfig(&elsewhere.url());
    world.service("one");
    subject.has("one", SOON);
    // Of several addresses one is enough, whichever.
    let dead = world.proxy.url().parse().unwrap();
    let alive = elsewhere.url().parse().unwrap();
    let subject = world.source_with(vec![dead, alive], Duration::from_secs(60));
    subject.eventually("synced", SOON, |now| now.synced);
}
