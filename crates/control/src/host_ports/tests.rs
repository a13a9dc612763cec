//! With real files and real inotify. Nothing sleeps: every wait is for a snapshot.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use heddle_model::store::Watch;
use heddle_model::{Snapshot, Store};
use tokio::time::timeout;

use super::HostPorts;
use crate::source;

const NAMESPACE: u64 = 7;

struct Room {
    // Removed when the test ends.
    dir: tempfile::TempDir,
    watch: Watch,
}

/// A record as the plugin writes it, of these ports.
fn record(namespace: u64, ports: &str) -> String {
    let pod = r#""network":"net","containerID":"0123456789abcdef","ifname":"eth0","device":"hdl0""#;
    format!(r#"{{"namespace":{namespace},{pod},"snat":true,"masqueradeAll":false,"ports":[{ports}]}}"#)
}

/// A port of protocol `proto`, in the words of a record.
fn port(proto: &str, host_port: u16, address: &str) -> String {
    format!(r#"{{"protocol":"{proto}","hostPort":{host_port},"address":"{address}","port":80}}"#)
}

impl Room {
    /// Starts the source on a run directory that `prepare` has filled.
    fn new(prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        prepare(dir.path());
        let store = Store::new();
        let watch = store.watch();
        source::start(HostPorts::new(dir.path(), Some(NAMESPACE)), &store);
        Self { dir, watch }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("ports").join(name)
    }

    /// As the plugin does it: whole, in one step.
    fn write(&self, name: &str, text: &str) {
        self.write_at(name, text, 20);
    }

    /// At this second of the epoch.
    fn write_at(&self, name: &str, text: &str, modified: u64) {
        let aside = self.dir.path().join("aside");
        fs::write(&aside, text).unwrap();
        fs::File::open(&aside).unwrap().set_modified(UNIX_EPOCH + Duration::from_secs(modified)).unwrap();
        fs::hard_link(&aside, self.path(name)).unwrap();
        fs::remove_file(&aside).unwrap();
    }

    /// Waits until exactly this is published, as `where pod-address`.
    async fn until(&mut self, wanted: &[&str]) -> Arc<Snapshot> {
        let mut last = None;
        let wait = async {
            loop {
                let snapshot = self.watch.changed().await;
                if snapshot.synced && said(&snapshot) == wanted {
                    return snapshot;
                }
                last = Some(snapshot);
            }
        };
        let found = timeout(Duration::from_secs(20), wait).await;
        found.unwrap_or_else(|_| panic!("never came: {wanted:?}; last: {last:#?}"))
    }
}

fn said(snapshot: &Snapshot) -> Vec<String> {
    snapshot
        .host_ports
        .iter()
        .map(|(at, to)| format!("{at} {} {} {}", to.address, to.port, to.owner))
        .collect()
}

fn problems(snapshot: &Snapshot, room: &Room) -> Vec<String> {
    let dir = format!("{}/", room.dir.path().display());
    snapshot.problems.iter().map(|problem| problem.to_string().replace(&dir, "")).collect()
}

#[tokio::test]
async fn ports_come_and_go_with_their_pods() {
    let mut room = Room::new(|_| ());
    // The directory was not there.
    room.until(&[]).await;
    let ports = [
        port("tcp", 8080, "10.1.0.2"),
        port("udp", 8080, "fd00::2"),
        port("tcp", 8081, "10.1.0.2").replace("\"protocol\"", "\"hostIP\":\"192.0.2.1\",\"protocol\""),
    ];
    room.write("hdl1", &record(NAMESPACE, &ports.join(",")));
    room.write("hdl2", &record(NAMESPACE + 1, &port("tcp", 9090, "10.1.0.3")));
    let wanted = [
        "127.0.0.1:8080/tcp 10.1.0.2 80 net/0123456789ab:hdl1",
        "[::1]:8080/udp fd00::2 80 net/0123456789ab:hdl1",
    ];
    let snapshot = room.until(&wanted).await;
    assert_eq!(problems(&snapshot, &room), [""; 0]);
    fs::remove_file(room.path("hdl1")).unwrap();
    room.until(&[]).await;
    room.write("hdl1", &record(NAMESPACE, &port("tcp", 1, "10.1.0.9")));
    room.until(&["127.0.0.1:1/tcp 10.1.0.9 80 net/0123456789ab:hdl1"]).await;
    // Somebody clears /run: nothing is published any more, and what comes then is seen.
    fs::remove_dir_all(room.dir.path().join("ports")).unwrap();
    room.until(&[]).await;
    room.write("hdl3", &record(NAMESPACE, &port("tcp", 2, "10.1.0.9")));
    room.until(&["127.0.0.1:2/tcp 10.1.0.9 80 net/0123456789ab:hdl3"]).await;
}

#[tokio::test]
async fn what_is_no_record_is_reported_and_the_others_count() {
    let mut room = Room::new(|dir| {
        let ports = dir.join("ports");
        fs::create_dir(&ports).unwrap();
        let good = record(NAMESPACE, &port("tcp", 8080, "10.1.0.2"));
        fs::write(ports.join("good"), &good).unwrap();
        fs::write(ports.join("half"), &good[..good.len() / 2]).unwrap();
        fs::write(ports.join("empty"), "").unwrap();
        let evil = [port("tcp", 1, "127.0.0.1"), port("tcp", 0, "10.1.0.2"), port("udp", 3, "fe80::1")];
        fs::write(ports.join("evil"), record(NAMESPACE, &evil.join(","))).unwrap();
        fs::create_dir(ports.join("directory")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", ports.join("link")).unwrap();
        nix::unistd::mkfifo(&ports.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    });
    let snapshot = room.until(&["127.0.0.1:8080/tcp 10.1.0.2 80 net/0123456789ab:good"]).await;
    let wanted = [
        "ports/empty: no record of host ports: EOF while parsing a value at line 1 column 0",
        "ports/evil: port of 10.1.0.2:80 skipped: a port that is 0, or an address that is no pod's",
        "ports/evil: port of 127.0.0.1:80 skipped: a port that is 0, or an address that is no pod's",
        "ports/evil: port of fe80::1:80 skipped: a port that is 0, or an address that is no pod's",
        "ports/fifo: cannot read it: not a regular file",
        "ports/link: cannot read it: it leads outside of the directory",
    ];
    let mut found = problems(&snapshot, &room);
    let half =
        found.iter().position(|line| line.starts_with("ports/half: no record of host ports: ")).unwrap();
    found.remove(half);
    assert_eq!(found, wanted);
}

/// A pod that went without DEL leaves its record; the port is free for another.
#[tokio::test]
async fn of_two_records_the_younger_counts() {
    let mut room = Room::new(|_| ());
    room.until(&[]).await;
    // By name the other way round.
    for (young, dead) in [("a", "b"), ("d", "c")] {
        room.write_at(dead, &record(NAMESPACE, &port("tcp", 8080, "10.1.0.2")), 10);
        room.write(young, &record(NAMESPACE, &port("tcp", 8080, "10.1.0.3")));
        let wanted = format!("127.0.0.1:8080/tcp 10.1.0.3 80 net/0123456789ab:{young}");
        let snapshot = room.until(&[&wanted]).await;
        let both = format!("ports/{dead}: port 127.0.0.1:8080/tcp skipped: {young} has published it since");
        assert_eq!(problems(&snapshot, &room), [both]);
        fs::remove_file(room.path(young)).unwrap();
        fs::remove_file(room.path(dead)).unwrap();
        room.until(&[]).await;
    }
}
