//! Whatever becomes of the process that built a lab, nothing of the lab stays behind.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use heddle_lab::description::Description;
use heddle_lab::{Lab, Result, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SOON: Duration = Duration::from_secs(20);

/// A directory for temporary files of another process.
struct TempDir(PathBuf);

impl TempDir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("lab-test-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).expect("it can be made");
        Self(dir)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn lab(temp: &TempDir, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
    command.env("TMPDIR", &temp.0).args(args);
    command
}

/// `lab up --bare` in another process, and what it says of itself.
fn other_process(temp: &TempDir) -> (Child, Description) {
    let mut command = lab(temp, &["up", "--foreground", "--bare", "--nodes", "2"]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
    let stdout = BufReader::new(child.stdout.take().expect("it is piped"));
    assert!(stdout.lines().map_while(|l| l.ok()).any(|line| line.starts_with("enter with")));
    let name = format!("heddle-lab.{}-", child.id());
    let mut dirs = fs::read_dir(&temp.0).expect("it is there").flatten().map(|e| e.path());
    let dir = dirs.find(|dir| dir.to_string_lossy().contains(&name)).expect("the lab has a directory");
    let text = fs::read(dir.join("lab.json")).expect("it is written");
    (child, serde_json::from_slice(&text).expect("it is JSON"))
}

/// Who still has one of the namespaces of `lab`: as its own, or open.
fn holders(lab: &Description) -> Vec<String> {
    let inodes: Vec<_> = lab.places.iter().map(|door| format!("net:[{}]", door.net_inode)).collect();
    let held = |link: &Path| {
        fs::read_link(link).is_ok_and(|target| inodes.iter().any(|inode| target == Path::new(inode)))
    };
    let list = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let processes = list("/proc".into()).filter(|p| p.join("ns").exists());
    let links = processes.flat_map(|p| {
        let threads = list(p.join("task")).map(|t| t.join("ns/net"));
        threads.chain(list(p.join("fd"))).collect::<Vec<_>>()
    });
    links.filter(|link| held(link)).map(|link| link.display().to_string()).collect()
}

fn assert_gone(lab: &Description) -> Result<()> {
    let cgroups: Vec<_> = lab.places.iter().map(|door| door.cgroup.clone()).collect();
    let root = cgroups[0].parent().expect("a lab's cgroup").to_owned();
    eventually("the end of the lab", SOON, || {
        Ok(!lab.dir.exists() && !root.exists() && holders(lab).is_empty())
    })
    .inspect_err(|_| {
        eprintln!("{} {} {:?}", lab.dir.exists(), root.exists(), holders(lab));
    })
}

fn vanishes_after(signal: Signal) -> Result<()> {
    let temp = TempDir::new(signal.as_str());
    let (mut child, description) = other_process(&temp);
    assert!(!holders(&description).is_empty());
    // Something that is not its child runs in it.
    let mut stranger = lab(&temp, &["shell", "n1", "--", "sleep", "1000"]).spawn().expect("it starts");
    let inside = format!("net:[{}]", description.places[0].net_inode);
    let its_net = format!("/proc/{}/ns/net", stranger.id());
    let arrived = eventually("a shell in n1", SOON, || {
        Ok(fs::read_link(&its_net).is_ok_and(|l| l == Path::new(&inside)))
    });
    kill(Pid::from_raw(child.id().try_into().expect("a pid")), signal).expect("it is there");
    child.wait().expect("it is our child");
    stranger.wait().expect("it is our child");
    arrived?;
    assert_gone(&description)
}

#[test]
fn after_sigkill() -> Result<()> {
    vanishes_after(Signal::SIGKILL)
}

#[test]
fn after_ctrl_c() -> Result<()> {
    vanishes_after(Signal::SIGINT)
}

#[test]
fn after_sigterm() -> Result<()> {
    vanishes_after(Signal::SIGTERM)
}

#[test]
fn after_a_signal_that_nobody_handles() -> Result<()> {
    vanishes_after(Signal::SIGABRT)
}

#[test]
fn after_a_panic() -> Result<()> {
    let mut kept = None;
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let lab = Lab::builder().nodes(1).build().expect("it stands");
        let _sleeper = lab.node(1).spawn("sleep 1000").expect("it starts");
        kept = Some(Description::of(&lab, &[]));
        panic!("a test fails");
    }));
    assert!(panicked.is_err());
    assert_gone(&kept.expect("the lab stood"))
}

#[test]
fn what_a_killed_janitor_left_is_swept_by_the_next_lab() -> Result<()> {
    let namespace = fs::metadata("/proc/self/ns/pid").expect("it is there").ino();
    let dead = format!("heddle-lab.{}-1-{namespace}.1", 1 << 30);
    let dir = std::env::temp_dir().join(&dead);
    fs::create_dir_all(dir.join("logs")).expect("it can be made");
    let lab = Lab::builder().nodes(1).build()?;
    let base = lab.node(1).cgroup().path().ancestors().nth(2).expect("the group above the lab's").to_owned();
    assert!(!dir.exists());
    fs::create_dir_all(base.join(&dead).join("n1")).expect("it can be made");
    drop(Lab::builder().nodes(1).build()?);
    assert!(!base.join(&dead).exists());
    // What belongs to another pid namespace is not ours to judge.
    let foreign = std::env::temp_dir().join(format!("heddle-lab.{}-1-1.1", 1 << 30));
    fs::create_dir(&foreign).expect("it can be made");
    drop(Lab::builder().nodes(1).build()?);
    fs::remove_dir(&foreign).expect("it is still there");
    Ok(())
}

#[test]
fn up_shell_status_down() -> Result<()> {
    let temp = TempDir::new("up");
    let run = |args: &[&str]| {
        let output = lab(&temp, args).output().expect("it starts");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    assert_eq!(run(&["status"]), (true, "no lab stands; raise one with `lab up`\n".into()));
    let (up, shown) = run(&["up", "--bare", "--nodes", "2"]);
    assert!(up && shown.contains("n2") && shown.contains("192.168.77.2"), "{shown}");
    let (again, _) = run(&["up", "--bare"]);
    assert!(!again, "a second one is refused");
    let (entered, shown) = run(&["shell", "n2", "--", "ip", "-o", "-4", "addr", "show", "eth0"]);
    assert!(entered && shown.contains("192.168.77.2/24"), "{shown}");
    let (entered, shown) = run(&["shell", "n2", "--", "cat", "/proc/self/cgroup"]);
    assert!(entered && shown.contains("/n2"), "{shown}");
    assert!(!run(&["shell", "n3", "--", "true"]).0, "there is no n3");
    let (mut other, _) = other_process(&temp);
    assert!(!run(&["shell", "n1", "--", "true"]).0, "there are two: which one?");
    assert!(!run(&["down"]).0, "there are two: which one?");
    let pid = other.id().to_string();
    let (entered, shown) = run(&["shell", "--lab", &pid, "n1", "--", "cat", "/proc/self/cgroup"]);
    assert!(entered && shown.contains(&pid), "{shown}");
    assert!(run(&["down", "--lab", &pid]).0);
    other.wait().expect("it is our child");
    let (known, status) = run(&["status"]);
    assert!(known && status.contains("client"), "{status}");
    assert!(run(&["down"]).0);
    assert_eq!(run(&["status"]), (true, "no lab stands; raise one with `lab up`\n".into()));
    assert_eq!(fs::read_dir(&temp.0).expect("it is there").count(), 0);
    Ok(())
}
