//! What a suite of tests came to, and the table of all of them.

use std::time::{Duration, Instant};

/// One suite's result.
#[derive(Debug)]
pub struct Suite {
    pub name: &'static str,
    pub passed: usize,
    /// Names of what failed.
    pub failed: Vec<String>,
    /// `name: reason` of what this machine cannot run.
    pub skipped: Vec<String>,
    pub took: Duration,
    /// Name and time of each test that took long enough to be worth a line.
    pub slow: Vec<(String, Duration)>,
}

impl Suite {
    /// Run `body` as the suite `name`: an error of the body itself is a failure of the suite.
    pub fn run(name: &'static str, body: impl FnOnce(&mut Suite) -> anyhow::Result<()>) -> Self {
        println!("\n=== {name}");
        let started = Instant::now();
        let mut suite = Self {
            name,
            passed: 0,
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
        "\n{:<10} {:>7} {:>7} {:>8} {:>9} {:>6}",
        "suite", "passed", "failed", "skipped", "seconds", "share"
    );
    for suite in suites {
        let share = 100.0 * suite.took.as_secs_f64() / total.as_secs_f64().max(0.001);
        println!(
            "{:<10} {:>7} {:>7} {:>8} {:>9.1} {share:>5.0}%",
            suite.name,
            suite.passed,
            suite.failed.len(),
            suite.skipped.len(),
            suite.took.as_secs_f64(),
        );
    }
    let mut slow: Vec<_> = suites.iter().flat_map(|suite| &suite.slow).collect();
    slow.sort_by_key(|(_, took)| std::cmp::Reverse(*took));
    for (name, took) in slow.iter().take(10) {
        println!("slow: {:>6.1} s {name}", took.as_secs_f64());
    }
    let skipped: Vec<_> = suites.iter().flat_map(|suite| &suite.skipped).collect();
    for skipped in &skipped {
        println!("skipped: {skipped}");
    }
    let failed: Vec<_> = suites.iter().flat_map(|suite| &suite.failed).collect();
    for failed in &failed {
        println!("FAILED: {failed}");
    }
    let mut failures = failed.len();
    if strict && !skipped.is_empty() {
        println!("CI=true: what was skipped counts as failed");
        failures += skipped.len();
    }
    let passed: usize = suites.iter().map(|suite| suite.passed).sum();
    println!("\n{passed} passed, {failures} failed");
    failures == 0
}
