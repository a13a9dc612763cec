//! FAULTS 125, each with real files and real inotify. Nothing sleeps: every wait is for a snapshot.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use heddle_model::store::Watch;
use heddle_model::{Snapshot, Store};
use tokio::time::timeout;

struct Room {
    // Removed when the test ends.
    _dir: tempfile::TempDir,
    path: PathBuf,
    watch: Watch,
}

/// Starts the source on a directory that `prepare` has filled.
fn room(prepare: impl FnOnce(&Path)) -> Room {
    room_with(super::watch::Watch::open, prepare)
}

fn room_with(open: fn(&Path) -> io::Result<super::watch::Watch>, prepare: impl FnOnce(&Path)) -> Room {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    fs::create_dir(&path).unwrap();
    prepare(&path);
    let store = Store::new();
    let watch = store.watch();
    let (source, of) = (store.source("test"), path.clone());
    tokio::spawn(async move { super::run(&of, source, open).await });
    Room { _dir: dir, path, watch }
}

impl Room {
    async fn until(&mut self, what: &str, wanted: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let mut last = None;
        let wait = async {
            loop {
                let snapshot = self.watch.changed().await;
                if wanted(&snapshot) {
                    return snapshot;
                }
                last = Some(snapshot);
            }
        };
        let found = timeout(Duration::from_secs(20), wait).await;
        found.unwrap_or_else(|_| panic!("never came: {what}; last: {last:#?}"))
    }

    /// Waits until exactly these nodes are there.
    async fn nodes(&mut self, names: &[&str]) -> Arc<Snapshot> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        self.until(&format!("nodes {names:?}"), |snapshot| node_names(snapshot) == names && snapshot.synced)
            .await
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path.join(name), text).unwrap();
    }

    fn problems(&self, snapshot: &Snapshot) -> Vec<String> {
        let dir = format!("{}/", self.path.display());
        snapshot.problems.iter().map(|problem| problem.to_string().replace(&dir, "")).collect()
    }
}

fn node_names(snapshot: &Snapshot) -> Vec<String> {
    snapshot.nodes.keys().map(|name| name.0.to_string()).collect()
}

fn node(name: &str) -> String {
    format!("---\napiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n")
}

fn nodes(names: &[&str]) -> String {
    names.iter().map(|name| node(name)).collect()
}

#[tokio::test]
async fn files_come_change_and_go() {
    let mut room = room(|dir| {
        fs::write(dir.join("a.yaml"), nodes(&["n1", "n2"])).unwrap();
        fs::write(dir.join(".hidden.yaml"), node("hidden")).unwrap();
        fs::write(dir.join("README.md"), node("readme")).unwrap();
        fs::create_dir(dir.join("below.yaml")).unwrap();
        fs::write(dir.join("below.yaml/b.yaml"), node("below")).unwrap();
    });
    assert!(room.nodes(&["n1", "n2"]).await.problems.is_empty());
    room.write(
        "b.json",
        r#"{"apiVersion": "v1", "kind": "NodeList", "items": [{"metadata": {"name": "n3"}}]}"#,
    );
    room.nodes(&["n1", "n2", "n3"]).await;
    room.write("a.yaml", &node("n1"));
    room.nodes(&["n1", "n3"]).await;
    fs::rename(room.path.join("a.yaml"), room.path.join("c.yml")).unwrap();
    fs::remove_file(room.path.join("b.json")).unwrap();
    room.nodes(&["n1"]).await;
    fs::remove_file(room.path.join("c.yml")).unwrap();
    room.nodes(&[]).await;
}

#[tokio::test]
async fn fault_125_an_invalid_file_leaves_its_last_good_state() {
    let mut room = room(|dir| {
        fs::write(dir.join("a.yaml"), nodes(&["n1", "n2"])).unwrap();
        fs::write(dir.join("b.yaml"), node("n3")).unwrap();
    });
    room.nodes(&["n1", "n2", "n3"]).await;
    room.write("a.yaml", "apiVersion: v1\nkind: Node\nmetadata:\n  name: [n1\n");
    let snapshot = room.until("the problem", |snapshot| !snapshot.problems.is_empty()).await;
    assert_eq!(node_names(&snapshot), ["n1", "n2", "n3"]);
    let problems = room.problems(&snapshot);
    assert!(problems.len() == 1 && problems[0].starts_with("a.yaml:5:1: "), "{problems:?}");
    room.write("b.yaml", &nodes(&["n3", "n4"]));
    room.nodes(&["n1", "n2", "n3", "n4"]).await;
    room.write("a.yaml", "apiVersion: v1\nkind: Node\nmetadata:\n  name: N1\n");
    let said =
        |snapshot: &Snapshot| snapshot.problems.iter().any(|problem| problem.to_string().contains(":4:9: "));
    let snapshot = room.until("what is wrong now", said).await;
    assert_eq!(node_names(&snapshot), ["n1", "n2", "n3", "n4"]);
    room.write("a.yaml", &node("n1"));
    assert!(room.nodes(&["n1", "n3", "n4"]).await.problems.is_empty());
    room.write("a.yaml", "\u{feff}- \u{0}");
    room.until("garbage is a problem", |snapshot| !snapshot.problems.is_empty()).await;
    fs::write(room.path.join("a.yaml"), b"kind: Node\nx: \xff").unwrap();
    let said =
        |snapshot: &Snapshot| snapshot.problems.iter().any(|p| p.to_string().ends_with(":2:4: not UTF-8"));
    room.until("not UTF-8", said).await;
    fs::remove_file(room.path.join("a.yaml")).unwrap();
    assert!(room.nodes(&["n3", "n4"]).await.problems.is_empty(), "deleted: gone, and so is its problem");
}

#[tokio::test]
async fn a_file_broken_from_the_start_holds_synced_back() {
    let mut room = room(|dir| {
        fs::write(dir.join("a.yaml"), node("n1")).unwrap();
        fs::write(dir.join("b.yaml"), "kind: [").unwrap();
    });
    let snapshot = room.until("the problem", |snapshot| !snapshot.problems.is_empty()).await;
    assert!(!snapshot.synced && node_names(&snapshot) == ["n1"]);
    room.write("b.yaml", &node("n2"));
    room.nodes(&["n1", "n2"]).await;
    room.write("b.yaml", "kind: [");
    let snapshot = room.until("the problem", |snapshot| !snapshot.problems.is_empty()).await;
    assert!(snapshot.synced, "said once");
}

#[tokio::test]
async fn fault_125_a_file_counts_when_it_is_closed() {
    let mut room = room(|dir| fs::write(dir.join("a.yaml"), nodes(&["n1", "n2", "n3"])).unwrap());
    room.nodes(&["n1", "n2", "n3"]).await;
    // Valid, and not the whole.
    let mut file = fs::File::create(room.path.join("a.yaml")).unwrap();
    file.write_all(node("n1").as_bytes()).unwrap();
    file.flush().unwrap();
    room.write("b.yaml", &node("n9"));
    room.nodes(&["n1", "n2", "n3", "n9"]).await;
    file.write_all(node("n2").as_bytes()).unwrap();
    drop(file);
    room.nodes(&["n1", "n2", "n9"]).await;
    // A writer that never closes is not waited for.
    let mut file = fs::File::create(room.path.join("a.yaml")).unwrap();
    file.write_all(node("n1").as_bytes()).unwrap();
    room.nodes(&["n1", "n9"]).await;
}

#[tokio::test]
async fn fault_125_atomic_rename_and_links() {
    let mut room = room(|dir| fs::write(dir.join("a.yaml"), node("n1")).unwrap());
    room.nodes(&["n1"]).await;
    let outside = room.path.with_file_name("new");
    fs::write(&outside, node("n2")).unwrap();
    fs::rename(&outside, room.path.join("a.yaml")).unwrap();
    room.nodes(&["n2"]).await;
    fs::write(room.path.join("plain"), node("n3")).unwrap();
    fs::hard_link(room.path.join("plain"), room.path.join("b.yaml")).unwrap();
    room.nodes(&["n2", "n3"]).await;
    symlink("plain", room.path.join("b.new")).unwrap();
    fs::rename(room.path.join("b.new"), room.path.join("c.yaml")).unwrap();
    let snapshot = room.until("the duplicate", |snapshot| !snapshot.problems.is_empty()).await;
    assert_eq!(room.problems(&snapshot), ["c.yaml:2: Node n3 ignored: b.yaml:2 describes the same object"]);
}

/// As kubelet writes a ConfigMap volume.
#[tokio::test]
async fn fault_125_a_configmap_is_swapped_whole() {
    let version = |dir: &Path, version: &str, names: &[&str]| {
        fs::create_dir(dir.join(version)).unwrap();
        for name in names {
            fs::write(dir.join(version).join(format!("{name}.yaml")), node(name)).unwrap();
        }
        symlink(version, dir.join("..data_tmp")).unwrap();
        fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    };
    let mut room = room(|dir| {
        version(dir, "..2026_1", &["n1", "n2"]);
        for name in ["n1", "n2"] {
            symlink(format!("..data/{name}.yaml"), dir.join(format!("{name}.yaml"))).unwrap();
        }
    });
    room.nodes(&["n1", "n2"]).await;
    let began = std::time::Instant::now();
    version(&room.path, "..2026_2", &["n1"]);
    let path = room.path.join("..2026_2/n1.yaml");
    assert!(room.nodes(&["n1"]).await.problems.is_empty(), "a dangling link is an absent file");
    fs::write(path, "unheard: in a directory below").unwrap();
    version(&room.path, "..2026_3", &["n1", "n2"]);
    assert!(room.nodes(&["n1", "n2"]).await.problems.is_empty());
    assert!(began.elapsed() < super::LOOK, "found by looking around now and then");
}

#[tokio::test]
async fn nothing_outside_is_read_and_nothing_hangs() {
    let mut room = room(|dir| {
        fs::write(dir.with_file_name("secret.yaml"), node("secret")).unwrap();
        fs::write(dir.join("a.yaml"), node("n1")).unwrap();
    });
    room.nodes(&["n1"]).await;
    symlink("../secret.yaml", room.path.join("b.yaml")).unwrap();
    symlink(room.path.with_file_name("secret.yaml"), room.path.join("c.yaml")).unwrap();
    symlink("/proc/self/environ", room.path.join("d.yaml")).unwrap();
    nix::unistd::mkfifo(&room.path.join("e.yaml"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    symlink("f.yaml", room.path.join("f.yaml")).unwrap();
    room.write("z.yaml", &node("n2"));
    let snapshot =
        room.until("all of them", |s| s.problems.len() == 5 && node_names(s) == ["n1", "n2"]).await;
    let problems = room.problems(&snapshot);
    let expected = [
        "b.yaml: cannot read it: it leads outside of the directory",
        "c.yaml: cannot read it: it leads outside of the directory",
        "d.yaml: cannot read it: it leads outside of the directory",
        "e.yaml: cannot read it: not a regular file",
    ];
    assert_eq!(problems[..4], expected);
    assert!(problems[4].starts_with("f.yaml: cannot read it: "), "{problems:?}");
}

#[tokio::test]
async fn a_file_too_large_is_refused() {
    let mut room = room(|dir| fs::write(dir.join("a.yaml"), node("n1")).unwrap());
    room.nodes(&["n1"]).await;
    let file = fs::File::create(room.path.join("large")).unwrap();
    file.set_len(100 << 20).unwrap();
    drop(file);
    fs::rename(room.path.join("large"), room.path.join("a.yaml")).unwrap();
    let snapshot = room.until("the problem", |snapshot| !snapshot.problems.is_empty()).await;
    assert_eq!(room.problems(&snapshot), ["a.yaml: cannot read it: larger than 67108864 bytes"]);
    assert_eq!(node_names(&snapshot), ["n1"], "the last good state stands");
}

#[tokio::test]
async fn the_directory_may_go_and_come_back() {
    let mut room = room(|dir| fs::write(dir.join("a.yaml"), node("n1")).unwrap());
    room.nodes(&["n1"]).await;
    let aside = room.path.with_file_name("aside");
    fs::rename(&room.path, &aside).unwrap();
    let snapshot = room.until("the problem", |snapshot| !snapshot.problems.is_empty()).await;
    assert_eq!(node_names(&snapshot), ["n1"]);
    assert!(
        room.problems(&snapshot)[0].contains("cannot read the directory: "),
        "{:?}",
        room.problems(&snapshot)
    );
    fs::create_dir(&room.path).unwrap();
    room.write("b.yaml", &node("n2"));
    assert!(room.nodes(&["n2"]).await.problems.is_empty());
    room.write("c.yaml", &node("n3"));
    room.nodes(&["n2", "n3"]).await;
}

#[tokio::test]
async fn a_directory_that_is_not_there_yet_is_waited_for() {
    let mut room = room(|dir| fs::remove_dir(dir).unwrap());
    let snapshot = room.until("the problem", |snapshot| !snapshot.problems.is_empty()).await;
    assert!(!snapshot.synced);
    fs::create_dir(&room.path).unwrap();
    room.write("a.yaml", &node("n1"));
    room.nodes(&["n1"]).await;
}

#[tokio::test]
async fn endpoint_slices_win_over_endpoints() {
    let endpoints = "apiVersion: v1\nkind: Endpoints\nmetadata: {name: web}\nsubsets: [{addresses: [{ip: 10.0.0.1}], ports: [{port: 80}]}]\n";
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nmetadata: {name: web-1, labels: {kubernetes.io/service-name: web}}\n";
    let mut room = room(|dir| fs::write(dir.join("a.yaml"), endpoints).unwrap());
    let parts =
        |snapshot: &Snapshot| snapshot.endpoints.keys().map(|name| name.part.to_string()).collect::<Vec<_>>();
    room.until("endpoints", |snapshot| parts(snapshot) == ["web#0"]).await;
    room.write("b.yaml", slice);
    let snapshot = room.until("the slice", |snapshot| parts(snapshot) == ["web-1"]).await;
    assert!(snapshot.problems.is_empty(), "a mirror is no problem");
    fs::remove_file(room.path.join("b.yaml")).unwrap();
    room.until("endpoints again", |snapshot| parts(snapshot) == ["web#0"]).await;
}

#[tokio::test]
async fn fault_125_an_overflow_is_a_reason_to_read_everything() {
    let mut room = room(|dir| fs::write(dir.join("a.yaml"), node("n1")).unwrap());
    room.nodes(&["n1"]).await;
    let longest = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    room.write("noise", "");
    // This thread is the runtime's only one: nobody reads events until the next await. A rename is two.
    for _ in 0..longest.trim().parse::<usize>().unwrap() / 4 + 1 {
        fs::rename(room.path.join("noise"), room.path.join("other")).unwrap();
        fs::rename(room.path.join("other"), room.path.join("noise")).unwrap();
    }
    room.write("b.yaml", &node("n2"));
    fs::remove_file(room.path.join("a.yaml")).unwrap();
    room.nodes(&["n2"]).await;
}

#[tokio::test]
async fn without_a_watch_the_directory_is_looked_at() {
    // As a node where other programs have taken all.
    let none = |_: &Path| Err(io::Error::from_raw_os_error(nix::libc::EMFILE));
    let mut room = room_with(none, |dir| fs::write(dir.join("a.yaml"), node("n1")).unwrap());
    let snapshot = room.nodes(&["n1"]).await;
    assert!(room.problems(&snapshot)[0].contains("raise fs.inotify.max_user_instances"), "{snapshot:?}");
    room.write("b.yaml", &node("n2"));
    room.nodes(&["n1", "n2"]).await;
    fs::remove_file(room.path.join("a.yaml")).unwrap();
    room.nodes(&["n2"]).await;
}

/// What people copy from must be right.
#[tokio::test]
async fn the_manifests_of_the_demo_are_read_without_a_complaint() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/demo");
    let store = Store::new();
    let mut watch = store.watch();
    crate::Spec::Manifests(path).start(&store, &crate::source::Settings::default());
    let read = async {
        loop {
            let snapshot = watch.changed().await;
            if snapshot.synced {
                return snapshot;
            }
        }
    };
    let snapshot = timeout(Duration::from_secs(20), read).await.unwrap();
    assert!(snapshot.problems.is_empty(), "{:?}", snapshot.problems);
    assert!(!snapshot.nodes.is_empty() && !snapshot.services.is_empty(), "{snapshot:?}");
    let rules = heddle_model::resolve::Rules::default();
    for node in snapshot.nodes.keys() {
        let (table, problems) = heddle_model::resolve::services(&snapshot, node, &rules);
        assert!(problems.is_empty() && !table.frontends.is_empty(), "{problems:?}");
        let (table, problems) = heddle_model::resolve::overlay(&snapshot, node, &rules);
        assert!(problems.is_empty() && !table.remotes.is_empty(), "{problems:?}");
    }
}

/// A file among many costs what a file costs: it is read as soon as it is whole, and alone.
#[tokio::test]
async fn a_change_is_told_at_once() {
    let mut room = room(|dir| {
        for n in 0..50 {
            fs::write(dir.join(format!("{n}.yaml")), node(&format!("n{n}"))).unwrap();
        }
    });
    let before = room.until("all", |snapshot| snapshot.synced && snapshot.nodes.len() == 50).await;
    // The burst that made them is over.
    tokio::time::sleep(Duration::from_millis(150)).await;
    let mut fastest = Duration::MAX;
    for attempt in 0..5 {
        let began = std::time::Instant::now();
        room.write(".new", &format!("{}spec: {{podCIDR: 10.0.{attempt}.0/24}}\n", node("n7")));
        fs::rename(room.path.join(".new"), room.path.join("7.yaml")).unwrap();
        let range = format!("10.0.{attempt}.0/24").parse().unwrap();
        let name = heddle_model::NodeName("n7".into());
        let now = room.until("the change", |snapshot| snapshot.nodes[&name].pod_ranges == [range]).await;
        fastest = fastest.min(began.elapsed());
        assert_eq!(heddle_model::shared_map::changed(&before.nodes, &now.nodes), [&name]);
        let same = before.nodes.iter().filter(|(key, node)| Arc::ptr_eq(node, &now.nodes[key]));
        assert_eq!(same.count(), 49);
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert!(fastest < super::watch::QUIET, "it waits for silence: {fastest:?}");
}
