//! What a suite of tests came to, and the table of all of them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How many seconds a suite may take on two idle processors; those that grow with each feature have one.
const BUDGETS: [(&str, u64); 2] = [("programs", 600), ("kubernetes", 420)];

/// One suite's result.
#[derive(Debug)]
pub struct Suite {
    pub name: &'static str,
    pub passed: usize,
    /// Names of the tests among them that other places may have to skip.
    pub ran: BTreeSet<String>,
    /// Names of what failed.
    pub failed: Vec<String>,
    /// What this machine cannot run.
    pub skipped: Vec<Skipped>,
    pub took: Duration,
    /// Name and time of each test that took long enough to be worth a line.
    pub slow: Vec<(String, Duration)>,
}

/// A test that said it cannot run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// As in [`Suite::ran`].
    pub name: String,
    pub reason: String,
}

impl Suite {
    /// Run `body` as the suite `name`: an error of the body itself is a failure of the suite.
    pub fn run(name: &'static str, body: impl FnOnce(&mut Suite) -> anyhow::Result<()>) -> Self {
        println!("\n=== {name}");
        let started = Instant::now();
        let mut suite = Self {
            name,
            passed: 0,
            ran: BTreeSet::new(),
            failed: Vec::new(),
            skipped: Vec::new(),
            took: Duration::ZERO,
            slow: Vec::new(),
        };
        if let Err(error) = body(&mut suite) {
            println!("{name}: {error:#}");
            suite.failed.push(name.to_owned());
        }
        suite.took = started.elapsed();
        println!("=== {name}: {} in {:.1} s", suite.verdict(), suite.took.as_secs_f64());
        suite
    }

    /// Count one test that is no libtest test.
    pub fn check(&mut self, name: &str, result: anyhow::Result<()>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(error) => {
                println!("FAILED {name}: {error:#}");
                self.failed.push(name.to_owned());
            }
        }
    }

    /// Count a test that said, past its verdict, that it cannot run here.
    pub fn skip(&mut self, name: String, reason: String) {
        if self.ran.remove(&name) {
            self.passed -= 1;
        }
        // A test may say it of each of its parts.
        if !self.skipped.iter().any(|skipped| skipped.name == name) {
            self.skipped.push(Skipped { name, reason });
        }
    }

    fn budget(&self) -> Option<Duration> {
        let (_, seconds) = BUDGETS.iter().find(|(name, _)| *name == self.name)?;
        Some(Duration::from_secs(*seconds))
    }

    fn verdict(&self) -> String {
        let failed = self.failed.len();
        format!("{} passed, {failed} failed, {} skipped", self.passed, self.skipped.len())
    }
}

/// The table of all suites, the slowest tests, what was skipped and failed; the last line is the sum.
/// Returns whether nothing failed.
pub fn report(suites: &[Suite], strict: bool) -> bool {
    let total: Duration = suites.iter().map(|suite| suite.took).sum();
    println!(
        "\n{:<10} {:>7} {:>7} {:>8} {:>9} {:>6} {:>7}",
        "suite", "passed", "failed", "skipped", "seconds", "share", "budget"
    );
    for suite in suites {
        let share = 100.0 * suite.took.as_secs_f64() / total.as_secs_f64().max(0.001);
        println!(
            "{:<10} {:>7} {:>7} {:>8} {:>9.1} {share:>5.0}% {:>7}",
            suite.name,
            suite.passed,
            suite.failed.len(),
            suite.skipped.len(),
            suite.took.as_secs_f64(),
            suite.budget().map(|budget| budget.as_secs().to_string()).unwrap_or_default(),
        );
    }
    for suite in suites.iter().filter(|suite| suite.budget().is_some_and(|budget| suite.took > budget)) {
        println!("over budget: {} took {:.0} s", suite.name, suite.took.as_secs_f64());
    }
    let mut slow: Vec<_> = suites.iter().flat_map(|suite| &suite.slow).collect();
    slow.sort_by_key(|(_, took)| std::cmp::Reverse(*took));
    for (name, took) in slow.iter().take(10) {
        println!("slow: {:>6.1} s {name}", took.as_secs_f64());
    }
    let uncovered = skipped_everywhere(suites);
    for skipped in &uncovered {
        println!("skipped: {}: {}", skipped.name, skipped.reason);
    }
    let skips: usize = suites.iter().map(|suite| suite.skipped.len()).sum();
    if skips > uncovered.len() {
        println!("skipped in one place and run in another: {}", skips - uncovered.len());
    }
    let failed: Vec<_> = suites.iter().flat_map(|suite| &suite.failed).collect();
    for failed in &failed {
        println!("FAILED: {failed}");
    }
    let mut failures = failed.len();
    if strict && !uncovered.is_empty() {
        println!("CI=true: what was skipped and ran nowhere else counts as failed");
        failures += uncovered.len();
    }
    let passed: usize = suites.iter().map(|suite| suite.passed).sum();
    println!("\n{passed} passed, {failures} failed");
    failures == 0
}

/// What was skipped and ran in no other suite: the host may lack what the kernel of a VM has, and the other way
/// round.
fn skipped_everywhere(suites: &[Suite]) -> Vec<&Skipped> {
    suites
        .iter()
        .flat_map(|suite| &suite.skipped)
        .filter(|skipped| !suites.iter().any(|suite| suite.ran.contains(&skipped.name)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite(ran: &[&str], skipped: &[&str]) -> Suite {
        Suite::run("it", |suite| {
            for name in ran.iter().chain(skipped) {
                suite.passed += 1;
                suite.ran.insert((*name).to_owned());
            }
            for name in skipped {
                suite.skip((*name).to_owned(), "no VM".to_owned());
            }
            Ok(())
        })
    }

    #[test]
    fn what_is_skipped_here_and_ran_there_is_covered() {
        let host = suite(&["a"], &["b", "c"]);
        assert_eq!(host.passed, 1);
        let vm = suite(&["b"], &["a"]);
        let suites = [host, vm];
        let open: Vec<_> = skipped_everywhere(&suites).iter().map(|skipped| &*skipped.name).collect();
        assert_eq!(open, ["c"]);
        assert!(report(&suites, false) && !report(&suites, true));
        assert!(report(&[suite(&["a"], &["b"]), suite(&["b"], &[])], true));
    }
}
