//! `test`: everything, in suites.

use std::env;
use std::path::Path;

use anyhow::{Result, bail};

use crate::build::{self, Profile};
use crate::demo;
use crate::kubernetes;
use crate::libtest::{self, TestBinary};
use crate::lint;
use crate::rules;
use crate::suite::{self, Suite};
use crate::vm;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A suite (rules, lint, unit, packets, lab, runtime, kubernetes, kernels, demo), or a part of the names of tests; all if none is given
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// The suite `kubernetes`: a real cluster, whose programs are built first (it wants Go)
    #[arg(long)]
    kubernetes: bool,
}

/// In the order in which they are run: what fails fastest comes first.
const SUITES: [&str; 9] =
    ["rules", "lint", "unit", "packets", "lab", "runtime", "kubernetes", "kernels", "demo"];
/// Those that consist of test binaries.
const OF_BINARIES: [&str; 5] = ["unit", "packets", "lab", "runtime", "kubernetes"];

/// The command `test`. Returns whether nothing failed.
pub fn run(args: &Args) -> Result<bool> {
    let (mut chosen, filters): (Vec<String>, Vec<String>) =
        args.names.iter().cloned().partition(|name| SUITES.contains(&name.as_str()));
    chosen.extend(args.kubernetes.then(|| "kubernetes".to_owned()));
    // A part of a test's name: look for it in all binaries, leave the other suites out.
    let wanted = |suite: &str| match (chosen.is_empty(), filters.is_empty()) {
        (true, true) => true,
        (true, false) => OF_BINARIES.contains(&suite),
        (false, _) => chosen.iter().any(|name| name == suite),
    };
    let mut suites = Vec::new();
    // Beside what nobody takes the time of. Somebody who looks for a test by name need not wait for it.
    let whole = chosen.is_empty() && filters.is_empty();
    let mut programs = match whole || chosen.iter().any(|name| name == "kubernetes") {
        true => Some(kubernetes::Programs::begin()?),
        false => None,
    };
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
    if let Some((heddle, binaries)) = &built {
        for name in OF_BINARIES.into_iter().filter(|name| wanted(name)) {
            if name != "unit"
                && let Some(programs) = programs.as_mut().filter(|programs| programs.is_running())
            {
                suites.push(Suite::run("programs", |_| programs.finish()));
            }
            suites.push(Suite::run(name, |suite| match &programs {
                Some(programs)
                    if name == "kubernetes"
                        && let Some(reason) = programs.missing() =>
                {
                    suite.skip(name.to_owned(), reason.to_owned());
                    Ok(())
                }
                _ => binaries_of(suite, binaries, &filters, heddle),
            }));
        }
        if wanted("kernels") {
            let on_kernels = vm::suites(&suites, binaries, heddle);
            suites.extend(on_kernels);
        }
        if wanted("demo") {
            suites.push(Suite::run("demo", |suite| demo::suite(suite, heddle)));
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

/// By name: what runs the real programs in the Lab, what has container runtimes call them, what has Kubernetes do so,
/// what runs packets through loaded programs, the rest.
fn suite_of(binary: &TestBinary) -> &'static str {
    if binary.target.contains("packets") {
        "packets"
    } else if ["heddle-lab", "heddle-e2e"].contains(&binary.package.as_str()) {
        "lab"
    } else if binary.package == "heddle-runtime" {
        "runtime"
    } else if binary.package == "heddle-kubernetes" {
        "kubernetes"
    } else {
        "unit"
    }
}
