//! Test binaries of the workspace: build them, run them one by one, read what they print.
//!
//! They are run directly, not by `cargo test`, for one reason: each test's time (`--report-time`, for which a
//! stable compiler wants RUSTC_BOOTSTRAP at run time, where cargo would take it as a reason to recompile).

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cargo;
use crate::suite::Suite;

/// Tests at least this long are worth naming.
const SLOW: Duration = Duration::from_secs(1);

/// A compiled test binary.
#[derive(Debug)]
pub struct TestBinary {
    pub package: String,
    /// The library's, program's or test file's name.
    pub target: String,
    executable: PathBuf,
    package_dir: PathBuf,
}

/// Compile every test of the workspace.
pub fn build() -> Result<Vec<TestBinary>> {
    let mut child = cargo::cargo()
        .args(["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo test")?;
    let stdout = child.stdout.take().context("cargo test has no output")?;
    let mut found = Vec::new();
    for line in BufReader::new(stdout).lines() {
        let message: Value = serde_json::from_str(&line.context("cannot read from cargo test")?)?;
        found.extend(test_binary(&message));
    }
    if !child.wait()?.success() {
        bail!("the tests do not compile");
    }
    found.sort_by(|a, b| (&a.package, &a.target).cmp(&(&b.package, &b.target)));
    Ok(found)
}

fn test_binary(message: &Value) -> Option<TestBinary> {
    if message["profile"]["test"] != Value::Bool(true) {
        return None;
    }
    let manifest = Path::new(message["manifest_path"].as_str()?);
    let manifest_toml: toml::Table = std::fs::read_to_string(manifest).ok()?.parse().ok()?;
    Some(TestBinary {
        package: manifest_toml.get("package")?.get("name")?.as_str()?.to_owned(),
        target: message["target"]["name"].as_str()?.to_owned(),
        executable: message["executable"].as_str()?.into(),
        package_dir: manifest.parent()?.to_path_buf(),
    })
}

impl TestBinary {
    /// `package` for the tests inside a library or program, else `package/file`.
    pub fn label(&self) -> String {
        if self.package.replace('-', "_") == self.target.replace('-', "_") {
            return self.package.clone();
        }
        format!("{}/{}", self.package, self.target)
    }

    /// Run the tests whose name contains one of `filters` (all if there is none), counting them in `suite`.
    pub fn run(&self, suite: &mut Suite, filters: &[String], programs: &Path) -> Result<()> {
        let label = self.label();
        let line = self.line(filters);
        let mut command = Command::new(&line[0]);
        command
            .args(&line[1..])
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_MANIFEST_DIR", &self.package_dir)
            .env("HEDDLE_BIN_DIR", programs)
            .current_dir(&self.package_dir);
        count(&mut command, &label, suite)
    }

    /// Its command line for the tests whose name contains one of `filters`. It wants RUSTC_BOOTSTRAP=1.
    pub fn line(&self, filters: &[String]) -> Vec<String> {
        // A whole binary may be meant.
        let all = filters.iter().any(|filter| self.label().contains(filter));
        let mut line = vec![self.executable.display().to_string()];
        line.extend(if all { &[] } else { filters }.iter().cloned());
        line.extend(["-Zunstable-options", "--report-time"].map(str::to_owned));
        line
    }

    /// The names of those tests, as [`Suite::ran`] has them.
    pub fn names(&self, filters: &[String]) -> Result<Vec<String>> {
        let line = self.line(filters);
        let output = Command::new(&line[0])
            .args(&line[1..])
            .args(["--list", "--format=terse"])
            .env("RUSTC_BOOTSTRAP", "1")
            .current_dir(&self.package_dir)
            .output()
            .with_context(|| format!("cannot list the tests of {}", self.label()))?;
        let list = String::from_utf8_lossy(&output.stdout);
        let names = list.lines().filter_map(|line| line.strip_suffix(": test"));
        Ok(names.map(|name| format!("{}::{name}", self.label())).collect())
    }

    /// Where its tests expect to run.
    pub fn dir(&self) -> &Path {
        &self.package_dir
    }
}

/// The examples in the documentation. Cargo alone knows how to compile them.
pub fn doc_examples(suite: &mut Suite) -> Result<()> {
    count(
        cargo::cargo().args(["test", "--workspace", "--doc", "--quiet", "--", "--format=pretty"]),
        "doc",
        suite,
    )
}

/// Run a program that prints as libtest does. Passing tests are counted, everything else is passed on.
fn count(command: &mut Command, label: &str, suite: &mut Suite) -> Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {label}"))?;
    let stderr = child.stderr.take().context("no stderr")?;
    let skipped = thread::spawn(move || {
        let lines = BufReader::new(stderr).lines().map_while(Result::ok);
        lines.filter_map(|line| said_skipped(&line)).collect::<Vec<_>>()
    });
    let (passed, failed) = (suite.passed, suite.failed.len());
    let stdout = child.stdout.take().context("no stdout")?;
    for line in BufReader::new(stdout).lines() {
        read_line(&line.with_context(|| format!("cannot read from {label}"))?, label, suite);
    }
    let status = child.wait()?;
    for (name, reason) in skipped.join().unwrap_or_default() {
        suite.skip(format!("{label}::{name}"), reason);
    }
    if !status.success() && suite.failed.len() == failed {
        println!("{label}: {status}");
        suite.failed.push(format!("{label} ({status})"));
    }
    let (passed, failed) = (suite.passed - passed, suite.failed.len() - failed);
    if passed + failed > 0 {
        println!("{label}: {passed} passed, {failed} failed");
    }
    Ok(())
}

/// A test says `skipped: NAME: REASON` on the real standard error, past libtest's capture. Other lines are passed
/// on.
pub fn said_skipped(line: &str) -> Option<(String, String)> {
    let said = line.strip_prefix("skipped: ").and_then(|said| said.split_once(": "));
    if said.is_none() {
        eprintln!("{line}");
    }
    said.map(|(name, reason)| (name.to_owned(), reason.to_owned()))
}

/// Counts a line that libtest printed, or passes it on.
pub fn read_line(line: &str, label: &str, suite: &mut Suite) {
    let Some((name, verdict)) = line.strip_prefix("test ").and_then(|test| test.rsplit_once(" ... ")) else {
        let noise = line.is_empty() || line.starts_with("running ") || line.starts_with("test result: ");
        if !noise {
            println!("{line}");
        }
        return;
    };
    let name = format!("{label}::{name}");
    if verdict.starts_with("ok") {
        suite.passed += 1;
        suite.ran.insert(name.clone());
    } else if let Some(reason) = verdict.strip_prefix("ignored") {
        suite.skip(name.clone(), format!("ignored{reason}"));
    } else {
        println!("FAILED {name}");
        suite.failed.push(name.clone());
    }
    if let Some(took) = time(verdict).filter(|took| *took >= SLOW) {
        suite.slow.push((name, took));
    }
}

/// `ok <1.234s>`
fn time(verdict: &str) -> Option<Duration> {
    let seconds = verdict.split_once('<')?.1.split_once("s>")?.0;
    Duration::try_from_secs_f64(seconds.parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite_of(lines: &[&str]) -> Suite {
        Suite::run("lines", |suite| {
            for line in lines {
                read_line(line, "crate", suite);
            }
            Ok(())
        })
    }

    #[test]
    fn verdicts_are_counted_and_slow_tests_named() {
        let suite = suite_of(&[
            "running 4 tests",
            "test a::quick ... ok <0.001s>",
            "test a::slow ... ok <2.500s>",
            "test b ... FAILED <0.002s>",
            "test c ... ignored, no VM",
            "test result: FAILED. 2 passed; 1 failed; 1 ignored",
        ]);
        assert_eq!((suite.passed, suite.failed), (2, vec!["crate::b".to_owned()]));
        assert_eq!((&*suite.skipped[0].name, &*suite.skipped[0].reason), ("crate::c", "ignored, no VM"));
        assert_eq!(suite.slow, [("crate::a::slow".to_owned(), Duration::from_millis(2500))]);
    }
}
