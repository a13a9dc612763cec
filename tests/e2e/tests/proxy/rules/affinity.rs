//! `sessionAffinity: ClientIP`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use heddle_lab::{Error, Place, Result, Service};

use super::{FAMILIES, Setting, cluster, published};
use crate::world::{By, ask, servers, status, tables};

fn affine(timeout: u32) -> Service {
    let config = format!("sessionAffinityConfig: {{ clientIP: {{ timeoutSeconds: {timeout} }} }}");
    published("affine", 20).spec("sessionAffinity: ClientIP").spec(config)
}

/// Who answers by TCP and who by UDP (each port of a service counts by itself): one each, `times` times.
fn only(to: SocketAddr, place: &Place, times: usize) -> Result<[String; 2]> {
    let one = |by: By| -> Result<String> {
        let replies = ask(times, by, to, place)?;
        let servers = servers(&replies);
        match (servers.first(), servers.len()) {
            (Some(one), 1) => Ok((*one).to_owned()),
            _ => Err(Error::Oracle(format!("{} asks {to} by {by:?}: {servers:?}", place.name()))),
        }
    };
    Ok([one(By::Tcp)?, one(By::Udp)?])
}

/// Who has whom: inside by the ClusterIP, outside by every node's port.
#[derive(Debug, PartialEq, Eq)]
struct Bonds {
    inside: BTreeMap<(String, bool, bool), [String; 2]>,
    outside: BTreeMap<(String, bool), [String; 2]>,
}

fn bonds(setting: &Setting, times: usize) -> Result<Bonds> {
    let (mut inside, mut outside) = (BTreeMap::new(), BTreeMap::new());
    for v4 in FAMILIES {
        for index in 1..=3 {
            // The processes past the hook are those of the pods: the node's have any address of it as their source.
            for asker in setting.pod(index)?.into_iter().chain(setting.host(index)?.into_iter().take(1)) {
                let who = format!("{} pod {} hooked {}", asker.node, asker.is_pod, asker.hooked);
                inside.insert((who, asker.hooked, v4), only(cluster(20, v4), &asker.place, times)?);
            }
        }
        for client in setting.cluster.clients() {
            let mut met = Vec::new();
            for node in 1..=3 {
                met.push(only(setting.node_port(node, v4), client, times)?);
            }
            assert!(met.iter().all(|one| *one == met[0]), "by every node the same: {met:?}");
            outside.insert((client.name().to_owned(), v4), met[0].clone());
        }
    }
    Ok(Bonds { inside, outside })
}

/// Twenty connections of one client have one backend, which survives the daemon; when it goes, they have one other,
/// and keep it when the first one is back.
#[test]
fn rule_session_affinity() -> Result<()> {
    let mut setting = Setting::start(&[])?;
    setting.publish(&affine(10_800), &[1, 2, 3])?;
    let first = bonds(&setting, 20)?;
    let [backend, _] =
        first.outside.values().next().ok_or_else(|| Error::Oracle("no client".into()))?.clone();
    let gone: usize = backend.trim_start_matches('p').parse().map_err(|_| Error::Oracle(backend.clone()))?;
    let others: Vec<usize> = (1..=3).filter(|index| *index != gone).collect();
    setting.publish(&affine(10_800), &others)?;
    let second = bonds(&setting, 5)?;
    let pairs = first.inside.values().zip(second.inside.values());
    let pairs = pairs.chain(first.outside.values().zip(second.outside.values()));
    for (before, after) in pairs.flat_map(|(before, after)| before.iter().zip(after)) {
        let right = if *before == backend { *after != backend } else { after == before };
        assert!(right, "without {backend}: {first:?}, then {second:?}");
    }

    // Back it is, and nobody goes back to it: that is remembered, over the daemon's end too.
    setting.publish(&affine(10_800), &[1, 2, 3])?;
    assert_eq!(bonds(&setting, 3)?, second);
    let before = tables(&status(setting.cluster.node(1))?);
    for index in 1..=3 {
        setting.cluster.kill_daemon(index, "proxyd");
    }
    assert_eq!(bonds(&setting, 1)?, second, "without a daemon");
    for index in 1..=3 {
        setting.cluster.start_daemon_on(index, "proxyd")?;
    }
    assert_eq!(tables(&status(setting.cluster.node(1))?), before);
    setting.carried_out()?;
    assert_eq!(bonds(&setting, 3)?, second, "with the next one");
    ends(&setting)
}

/// A client that stays away for longer than the time-out is a new one.
fn ends(setting: &Setting) -> Result<()> {
    const TIMEOUT: Duration = Duration::from_secs(1);
    setting.withdraw("affine")?;
    setting.publish(&affine(1), &[1, 2, 3])?;
    let client = setting.cluster.client();
    let to = setting.node_port(1, true);
    // Outside, a client without a past has what his address says.
    let [born, _] = only(to, client, 2)?;
    let index: usize = born.trim_start_matches('p').parse().map_err(|_| Error::Oracle(born.clone()))?;
    let others: Vec<usize> = (1..=3).filter(|other| *other != index).collect();
    setting.publish(&affine(1), &others)?;
    let [other, _] = only(to, client, 2)?;
    assert_ne!(other, born);
    setting.cluster.publish(&affine(1), &setting.endpoints(&[1, 2, 3]))?;
    stay_away(TIMEOUT);
    setting.carried_out()?;
    assert_eq!(only(to, client, 1)?[0], born, "the past is forgotten");

    // Inside, chance decides anew.
    for asker in setting.pod(1)? {
        let to = cluster(20, true);
        let before = ask(1, By::Tcp, to, &asker.place)?.remove(0).server;
        let changes = (0..20).any(|_| {
            stay_away(TIMEOUT);
            ask(1, By::Tcp, to, &asker.place).is_ok_and(|replies| replies[0].server != before)
        });
        assert!(changes, "always {before}");
    }
    Ok(())
}

/// Longer than the time-out.
fn stay_away(timeout: Duration) {
    #[expect(
        clippy::disallowed_methods,
        reason = "nothing tells that a time has passed in which nobody asked"
    )]
    std::thread::sleep(timeout + Duration::from_millis(50));
}
