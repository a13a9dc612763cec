//! `proxyd doctor`: what this node lacks, and the way out.

mod checks;
mod listeners;

use std::path::Path;

use heddle_bpf::Pins;
use heddle_daemon::run_dir;
use heddle_netlink::link::Link;
use heddle_netlink::{Socket, link};
use serde::Serialize;

use super::table;
use crate::dataplane::Error;
use crate::ebpf::View;
use crate::metrics::Gauges;
use crate::report::Told;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Diagnosis {
    pub checks: Vec<Check>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// What was looked at.
    pub about: &'static str,
    pub verdict: Verdict,
    pub found: String,
    /// The way out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    Ok,
    /// It works, but not as it could.
    Warning,
    /// Something does not work.
    Failure,
}

impl Check {
    fn ok(about: &'static str, found: impl Into<String>) -> Self {
        Self { about, verdict: Verdict::Ok, found: found.into(), hint: None }
    }

    fn warn(about: &'static str, found: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { about, verdict: Verdict::Warning, found: found.into(), hint: Some(hint.into()) }
    }

    fn fail(about: &'static str, found: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { about, verdict: Verdict::Failure, found: found.into(), hint: Some(hint.into()) }
    }
}

/// What the checks look at.
struct Seen {
    view: Option<View>,
    gauges: Option<Gauges>,
    links: Vec<Link>,
    told: Option<Told>,
}

/// Looks at everything. Changes nothing.
pub fn examine(bpf_root: &Path, run_dir: &Path) -> Result<Diagnosis, Error> {
    let mut checks = checks::surroundings(bpf_root);
    checks.push(checks::kube_proxy(bpf_root));
    let told = match run_dir::is_running(run_dir, "proxyd")? {
        true => Some(run_dir::published(run_dir, "proxyd")?.unwrap_or_default()),
        false => None,
    };
    let there = Pins::new(bpf_root).exist().unwrap_or(false);
    let view = if there { View::read(bpf_root) } else { Ok(None) };
    let view = view.unwrap_or_else(|error| {
        checks.push(Check::fail("pins", error.to_string(), "start proxyd, or proxyd cleanup"));
        None
    });
    let links = Socket::open().and_then(|mut socket| link::list(&mut socket)).unwrap_or_default();
    let gauges = if view.is_some() { Gauges::read(bpf_root).ok().flatten() } else { None };
    let seen = Seen { view, gauges, links, told };
    checks.extend(checks::daemon(&seen));
    checks.extend(checks::datapath(&seen, run_dir));
    Ok(Diagnosis { checks })
}

impl Diagnosis {
    /// The worst of all.
    pub fn verdict(&self) -> Verdict {
        self.checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Ok)
    }

    /// For people.
    pub fn text(&self) -> String {
        let rows = self.checks.iter().map(|check| {
            let verdict = match check.verdict {
                Verdict::Ok => "ok",
                Verdict::Warning => "warning",
                Verdict::Failure => "FAILURE",
            };
            let hint = check.hint.as_ref().map_or_else(String::new, |hint| format!(" ({hint})"));
            vec![check.about.to_owned(), verdict.to_owned(), format!("{}{hint}", check.found)]
        });
        let count = |verdict| self.checks.iter().filter(|check| check.verdict == verdict).count();
        let sum = match (count(Verdict::Failure), count(Verdict::Warning)) {
            (0, 0) => "nothing is wrong".to_owned(),
            (failures, warnings) => format!("failures: {failures}, warnings: {warnings}"),
        };
        format!("{}\n{sum}\n", table::print("CHECK RESULT FOUND", rows))
    }
}
