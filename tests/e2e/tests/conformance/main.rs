//! The CNI specification as a table of checks, run against our plugins and against the reference plugins.
//!
//! A check is one sentence, the section it comes from, and a function that finds out whether the sentence is
//! true of a [`Subject`]. Ours has to pass every one. What the reference plugins do is recorded:
//! `docs/conformance.md` is written from a run (`HEDDLE_CONFORMANCE=all HEDDLE_REWRITE=1`), and a test compares it with every run.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../cni/bench.rs"]
#[expect(dead_code, reason = "the tests of the plugin use all of it")]
mod bench;
mod checks;
mod list;
mod page;
mod run;
mod stage;
mod subject;
mod traffic;

use std::process::Command;

use run::Outcome;
use stage::Stage;
use subject::{Part, Subject, Who};

/// What ours did not do as the sentences say.
fn failures(outcomes: &[Outcome]) -> Vec<String> {
    let ours = outcomes.iter().filter(|outcome| outcome.subject.who == Who::Ours);
    ours.filter_map(|Outcome { check, subject, result }| {
        let why = result.as_ref().err()?;
        Some(format!("{} ({}), {}: {why}", check.name, check.section, subject.part))
    })
    .collect()
}

/// Every check passes for ours, in every part it is about.
#[test]
fn heddle_conforms() {
    let failed = failures(run::outcomes());
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn heddle_conforms_in_vlans() {
    let stage = Stage::new(Subject { who: Who::Ours, part: Part::Bridge });
    let filtering = ["link", "add", "tried", "type", "bridge", "vlan_filtering", "1"];
    let tried = stage.host.ns.run(|| Command::new("ip").args(filtering).output()).unwrap().unwrap();
    if !tried.status.success() {
        heddle_lab::skip("the kernel does not filter VLANs at bridges (CONFIG_BRIDGE_VLAN_FILTERING)");
        return;
    }
    let failed = failures(&run::run(checks::VLANS.iter()));
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// The page says what ours and the reference plugins did just now.
#[test]
fn the_page_is_what_a_run_shows() {
    let Some(version) = subject::reference_version() else {
        heddle_lab::skip("the version of the reference plugins is not known (dpkg-query)");
        return;
    };
    let shown = page::render(run::outcomes(), &version);
    if std::env::var_os("HEDDLE_REWRITE").is_some() {
        std::fs::write(page::PATH, shown).unwrap();
        return;
    }
    let page = std::fs::read_to_string(page::PATH).unwrap();
    if page::version_of(&page) != Some(version.as_str()) {
        heddle_lab::skip(&format!(
            "the page is about another version of the reference plugins than {version}"
        ));
        return;
    }
    let difference = page.lines().zip(shown.lines()).find(|(page, shown)| page != shown);
    if let Some((page, shown)) = difference {
        panic!(
            "docs/conformance.md says\n{page}\nand the run\n{shown}\n(HEDDLE_REWRITE=1 writes the page anew)"
        );
    }
    assert_eq!(page.lines().count(), shown.lines().count(), "docs/conformance.md has lines more or fewer");
}

/// No two checks say the same, and each says something.
#[test]
fn checks_have_names_of_their_own() {
    let mut names: Vec<_> = checks::all().map(|check| check.name).collect();
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
    assert!(count > 80, "{count}");
    for check in checks::all() {
        assert!(!check.parts.is_empty() && !check.name.contains('|'), "{}", check.name);
    }
}
