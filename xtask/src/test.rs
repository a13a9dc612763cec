//! `test`: everything, in suites.

use std::env;
use std::path::Path;

use anyhow::{Result, bail};

use crate::build::{self, Profile};
use crate::demo;
use crate::libtest::{self, TestBinary};
use crate::lint;
use crate::rules;
use crate::suite::{self, Suite};
use crate::vm;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A suite (rules, lint, unit, packets, lab, runtime, kernels, demo), or a part of the names of tests; all if none is given
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// In the order in which they are run: what fails fastest comes first.
const SUITES: [&str; 8] = ["rules", "lint", "unit", "packets", "lab", "runtime", "kernels", "demo"];
/// Those that consist of test binaries.
const OF_BINARIES: [&str; 4] = ["unit", "packets", "lab", "runtime"];

/// The command `test`. Returns whether nothing failed.
pub fn run(args: &Args) -> Result<bool> {
    let (chosen, filters): (Vec<String>, Vec<String>) =
        args.names.iter().cloned().partition(|name| SUITES.contains(&name.as_str()));
    // A part of a test's name: look for it in all binaries, leave the other suites out.
    let wanted = |suite: &str| match (chosen.is_empty(), filters.is_empty()) {
        (true, true) => true,
        (true, false) => OF_BINARIES.contains(&suite),
        (false, _) => chosen.iter().any(|name| name == suite),
    };
    let mut suites = Vec::new();
    if wanted("rules") {
        suites.push(Suite::run("rules", rules::check));
    }
    if wanted("lint") {
        suites.push(Suite::run("lint", lint::lint));
    }
    let mut built = None;
    if wanted("demo") || wanted("kernels") || OF_BINARIES.into_iter().any(wanted) {
        suites.push(Suite::run("build", |_| {
            built = Some((build::programs(Profile::Dev)?, libtest::build()?));
            Ok(())
        }));
    }
    if let Some((programs, binaries)) = &built {
        for name in OF_BINARIES.into_iter().filter(|name| wanted(name)) {
            suites.push(Suite::run(name, |suite| binaries_of(suite, binaries, &filters, programs)));
        }
        if wanted("kernels") {
            let on_kernels = vm::suites(&suites, binaries, programs);
            suites.extend(on_kernels);
        }
        if wanted("demo") {
            suites.push(Suite::run("demo", |suite| demo::suite(suite, programs)));
        }
    }
    let clean = suite::report(&suites, env::var("CI").is_ok_and(|ci| ci == "true"));
    if !filters.is_empty() && suites.iter().all(|suite| suite.passed + suite.failed.len() == 0) {
        bail!("no suite and no test has {} in its name", filters.join(" or "));
    }
    Ok(clean)
}

fn binaries_of(suite: &mut Suite, all: &[TestBinary], filters: &[String], programs: &Path) -> Result<()> {
    let name = suite.name;
    for binary in all.iter().filter(|binary| suite_of(binary) == name) {
        binary.run(suite, filters, programs)?;
    }
    if name == "unit" && filters.is_empty() {
        libtest::doc_examples(suite)?;
    }
    Ok(())
}

/// By name: what runs the real programs in the Lab, what has container runtimes call them, what runs packets through
/// loaded programs, the rest.
fn suite_of(binary: &TestBinary) -> &'static str {
    if binary.target.contains("packets") {
        "packets"
    } else if ["heddle-lab", "heddle-e2e"].contains(&binary.package.as_str()) {
        "lab"
    } else if binary.package == "heddle-runtime" {
        "runtime"
    } else {
        "unit"
    }
}
