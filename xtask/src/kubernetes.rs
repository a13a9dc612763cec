//! The programs of Kubernetes for the suite `kubernetes`: built from Go modules, by name, into target/kubernetes/bin.
//!
//! Their versions are those of tests/kubernetes/programs/go.mod: one module for all of them, so that what they share is
//! compiled once. What was built from the same go.mod and go.sum, by the same Go, is not built again.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::process;
use crate::root;

/// Packages, the names that the Go tool gives their programs, and ours.
const PROGRAMS: [(&str, &str, &str); 9] = [
    ("go.etcd.io/etcd/server/v3", "server", "etcd"),
    ("k8s.io/kubernetes/cmd/kube-apiserver", "kube-apiserver", "kube-apiserver"),
    ("k8s.io/kubernetes/cmd/kube-controller-manager", "kube-controller-manager", "kube-controller-manager"),
    ("k8s.io/kubernetes/cmd/kube-scheduler", "kube-scheduler", "kube-scheduler"),
    ("k8s.io/kubernetes/cmd/kubelet", "kubelet", "kubelet"),
    ("k8s.io/kubernetes/cmd/kube-proxy", "kube-proxy", "kube-proxy"),
    ("k8s.io/kubernetes/cmd/kubectl", "kubectl", "kubectl"),
    ("./coredns", "coredns", "coredns"),
    ("./flanneld", "flanneld", "flanneld"),
];

/// Where flanneld is, and the line of its main.go that takes C along: a backend that nobody uses any more.
const FLANNEL: (&str, &str) = ("github.com/flannel-io/flannel", "pkg/backend/udp");

/// What is asked of Go: the `go` line of go.mod.
const GO: u32 = 26;

/// The command `build-kubernetes`.
pub fn build() -> Result<()> {
    let mut programs = Programs::begin()?;
    if let Some(reason) = programs.missing() {
        bail!("{reason}");
    }
    programs.finish()
}

/// The build of the programs: begun, finished, or not possible.
#[derive(Debug)]
pub struct Programs(State);

#[derive(Debug)]
enum State {
    /// They are there.
    Built,
    /// Go works on them, since.
    Running { go: Child, since: Instant, stamp: String },
    /// Why they cannot be built here.
    Missing(String),
}

impl Programs {
    /// Begins to build them, unless they are there, in processor time that nobody else wants.
    pub fn begin() -> Result<Self> {
        let Some(go) = go() else {
            let reason = format!(
                "Go 1.{GO} or newer is not in PATH, and the programs of Kubernetes are built with it (https://go.dev/dl)"
            );
            return Ok(Self(State::Missing(reason)));
        };
        let stamp = stamp(&go)?;
        let there = |(_, _, name): &(&str, &str, &str)| dir().join(name).exists();
        if PROGRAMS.iter().all(there) && fs::read_to_string(stamp_file()).is_ok_and(|last| last == stamp) {
            return Ok(Self(State::Built));
        }
        let staging = staging();
        fs::create_dir_all(&staging).with_context(|| format!("cannot create {}", staging.display()))?;
        let overlay = overlay()?;
        let log = File::create(log()).with_context(|| format!("cannot create {}", log().display()))?;
        println!("kubernetes: building {} programs with {go}", PROGRAMS.len());
        let mut build = Command::new("nice");
        build.args(["-n", "19", "go", "build", "-trimpath", "-ldflags", &flags()?]);
        build.arg("-overlay").arg(overlay).arg("-o").arg(&staging);
        build.args(PROGRAMS.map(|(package, ..)| package));
        // No C compiler, no libraries at run time: a program and an image are one file.
        build.current_dir(sources()).env("CGO_ENABLED", "0");
        build.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let go = build.spawn().context("cannot start go")?;
        Ok(Self(State::Running { go, since: Instant::now(), stamp }))
    }

    /// Why they cannot be built on this machine, if that is so.
    pub fn missing(&self) -> Option<&str> {
        match &self.0 {
            State::Missing(reason) => Some(reason),
            _ => None,
        }
    }

    /// Whether there is something to wait for.
    pub fn is_running(&self) -> bool {
        matches!(self.0, State::Running { .. })
    }

    /// Waits until they are built, now with as much right to the processors as anybody else.
    pub fn finish(&mut self) -> Result<()> {
        let State::Running { go, since, stamp } = &mut self.0 else { return Ok(()) };
        // What it has started already is at its end soon. Not every machine lets us.
        let _ = process::stdout(Command::new("renice").args(["-n", "0", "-p", &go.id().to_string()]));
        let status = go.wait().context("cannot wait for go")?;
        if !status.success() {
            let said = fs::read_to_string(log()).unwrap_or_default();
            let end: Vec<_> = said.lines().filter(|line| !line.starts_with("go: downloading")).collect();
            bail!("go build failed: {status}\n{}", end[end.len().saturating_sub(30)..].join("\n"));
        }
        fs::create_dir_all(dir()).with_context(|| format!("cannot create {}", dir().display()))?;
        for (_, built, name) in PROGRAMS {
            // Renamed, not written over: somebody may be running it.
            fs::rename(staging().join(built), dir().join(name))
                .with_context(|| format!("cannot move {name}"))?;
        }
        fs::write(stamp_file(), stamp).with_context(|| format!("cannot write {}", stamp_file().display()))?;
        println!("kubernetes: built in {:.0} s, {}", since.elapsed().as_secs_f64(), dir().display());
        self.0 = State::Built;
        Ok(())
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        if let State::Running { go, .. } = &mut self.0 {
            let _ = go.kill();
            let _ = go.wait();
        }
    }
}

fn base() -> PathBuf {
    root::target().join("kubernetes")
}

/// Where tests look for them.
fn dir() -> PathBuf {
    base().join("bin")
}

fn staging() -> PathBuf {
    base().join("new/")
}

fn stamp_file() -> PathBuf {
    base().join("stamp")
}

fn log() -> PathBuf {
    base().join("build.log")
}

fn sources() -> PathBuf {
    root::dir().join("tests/kubernetes/programs")
}

/// `go version go1.26.1 linux/amd64`, if it is new enough.
fn go() -> Option<String> {
    let version = process::stdout(Command::new("go").arg("version").current_dir(sources()))?;
    let minor = version.split_once("go1.")?.1;
    let minor: u32 = minor.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()?;
    (minor >= GO).then(|| version.trim().trim_start_matches("go version ").to_owned())
}

/// For the compiler: tests/kubernetes/programs/flanneld, which is flannel's own main.go less a line, without being there.
fn overlay() -> Result<PathBuf> {
    let download =
        Command::new("go").args(["mod", "download", "-json", FLANNEL.0]).current_dir(sources()).output();
    let download = download.context("cannot start go")?;
    let module: serde_json::Value = serde_json::from_slice(&download.stdout)
        .with_context(|| format!("go mod download: {}", String::from_utf8_lossy(&download.stderr)))?;
    let said =
        || format!("{} cannot be downloaded: {}", FLANNEL.0, module["Error"].as_str().unwrap_or_default());
    let main = read(&Path::new(module["Dir"].as_str().with_context(said)?).join("main.go"))?;
    let main: String = main.split_inclusive('\n').filter(|line| !line.contains(FLANNEL.1)).collect();
    let (file, list) = (base().join("flanneld.go"), base().join("overlay.json"));
    let replace =
        serde_json::json!({ "Replace": { sources().join("flanneld/main.go").display().to_string(): file } });
    for (file, content) in [(&file, &main), (&list, &replace.to_string())] {
        fs::write(file, content).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(list)
}

/// For the linker: no symbols, and the version that the programs say they have (a released build does the same).
fn flags() -> Result<String> {
    let version = kubernetes_version(&read(&sources().join("go.mod"))?)?;
    let mut parts = version.trim_start_matches('v').split('.');
    let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let set =
        [("gitVersion", &*version), ("gitMajor", major), ("gitMinor", minor), ("gitTreeState", "clean")];
    let set = set.map(|(name, value)| format!("-X k8s.io/component-base/version.{name}={value}"));
    Ok(format!("-s -w {}", set.join(" ")))
}

/// The version of `k8s.io/kubernetes` that a go.mod requires.
fn kubernetes_version(go_mod: &str) -> Result<String> {
    let words = go_mod.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut lines = words.filter(|words| words.first() == Some(&"k8s.io/kubernetes"));
    let version = lines.find_map(|words| words.get(1).map(|version| (*version).to_owned()));
    version.context("tests/kubernetes/programs/go.mod requires no k8s.io/kubernetes")
}

/// What the programs are made from.
fn stamp(go: &str) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    (go, PROGRAMS, flags()?).hash(&mut hasher);
    for file in ["go.mod", "go.sum", "coredns/main.go"] {
        read(&sources().join(file))?.hash(&mut hasher);
    }
    Ok(format!("{:016x}\n", hasher.finish()))
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_the_module() {
        let go_mod = "module x\n\ntool (\n\tk8s.io/kubernetes/cmd/kubelet\n)\n\nrequire (\n\tk8s.io/api v0.0.0\n\tk8s.io/kubernetes v1.36.3 // indirect\n)\n";
        assert_eq!(kubernetes_version(go_mod).unwrap(), "v1.36.3");
        assert!(kubernetes_version("module x\n").is_err());
    }
}
