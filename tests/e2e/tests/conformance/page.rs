//! docs/conformance.md, from the outcomes of a run.

use std::fmt::Write;

use super::run::Outcome;
use super::subject::{Check, Who};

const VERSION: &str = "Version of the reference plugins: ";

pub const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/conformance.md");

/// Whether the page says that the reference plugins pass.
pub fn says_yes(page: &str, check: &Check) -> bool {
    let begin = format!("| {} | {} |", check.name, check.section);
    page.lines().any(|line| line.starts_with(&begin) && line.ends_with("| yes |"))
}

/// The version that a page is about.
pub fn version_of(page: &str) -> Option<&str> {
    page.lines().find_map(|line| line.strip_prefix(VERSION)).map(|rest| rest.trim_end_matches('.'))
}

/// The page.
pub fn render(outcomes: &[Outcome], version: &str) -> String {
    let mut page = String::from(HEAD);
    let _ = writeln!(page, "{VERSION}{version}.\n");
    let rows = rows(outcomes);
    let differ = rows.iter().filter(|row| row.theirs != "yes").count();
    let _ = writeln!(page, "{} checks; the reference plugins pass {}.\n", rows.len(), rows.len() - differ);
    page.push_str(
        "## Where the reference plugins differ\n\n| check | section | ours | theirs |\n|---|---|---|---|\n",
    );
    for row in rows.iter().filter(|row| row.theirs != "yes") {
        let _ = writeln!(page, "| {} | {} | {} | {} |", row.name, row.section, row.ours, row.theirs);
    }
    page.push_str("\n## What both do\n\n| check | section | ours | theirs |\n|---|---|---|---|\n");
    for row in rows.iter().filter(|row| row.theirs == "yes") {
        let _ = writeln!(page, "| {} | {} | {} | {} |", row.name, row.section, row.ours, row.theirs);
    }
    page.push_str(OTHERWISE);
    page
}

struct Row {
    name: &'static str,
    section: &'static str,
    ours: String,
    theirs: String,
}

fn rows(outcomes: &[Outcome]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut rest = outcomes;
    while let Some(first) = rest.first() {
        let same = rest.iter().take_while(|outcome| std::ptr::eq(outcome.check, first.check)).count();
        let (these, others) = rest.split_at(same);
        rest = others;
        rows.push(Row {
            name: first.check.name,
            section: first.check.section,
            ours: cell(these, Who::Ours),
            theirs: cell(these, Who::Theirs),
        });
    }
    rows
}

/// `yes`, or what is done instead, by part where the parts differ. Who was not asked is known to pass.
fn cell(outcomes: &[Outcome], who: Who) -> String {
    let these: Vec<_> = outcomes.iter().filter(|outcome| outcome.subject.who == who).collect();
    let says: Vec<_> = these
        .iter()
        .map(|outcome| match &outcome.result {
            Ok(()) => "yes".to_owned(),
            Err(why) => plain(why),
        })
        .collect();
    match says.first() {
        None => "yes".to_owned(),
        Some(first) if says.iter().all(|said| said == first) => first.clone(),
        _ => {
            let each =
                these.iter().zip(&says).map(|(outcome, said)| format!("{}: {said}", outcome.subject.part));
            each.collect::<Vec<_>>().join("; ")
        }
    }
}

/// Text that fits into a cell.
fn plain(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|");
    let mut short: String = line.chars().take(200).collect();
    if short.len() < line.len() {
        short.push_str(" ...");
    }
    short
}

const HEAD: &str = "\
# Conformance

What the CNI specification 1.1.0, its conventions and the reference plugins' own documentation ask for, as a table of
checks. `./x test conformance` runs them against `heddle` and `heddle-ipam`, and against the reference plugins `ptp`,
`bridge`, `host-local`, `loopback`, `portmap`, `bandwidth` and `tuning` of Debian's package containernetworking-plugins,
chained where one plugin of ours does the work of several. This page is written by the run itself
(`HEDDLE_CONFORMANCE=all HEDDLE_REWRITE=1 cargo test -p heddle-e2e --test conformance`), and a test fails if it is not
what a run shows; without `HEDDLE_CONFORMANCE=all` the reference plugins are asked only where they differ.

A check is a sentence. `yes`: it is true. Else the cell says what happens instead; where the answer is that of one
plugin only, its name stands before it. A number before a section's name is the specification's.

";

/// What no check asks for, because it is meant to be otherwise.
const OTHERWISE: &str = "
## What is otherwise on purpose

| the reference plugins | here |
|---|---|
| ptp: the address has the prefix length of its range | `/32` and `/128`: the pod is alone on its link, and the result says so |
| portmap: a host port is answered at 127.0.0.1 too, by `route_localnet` | at the node's own addresses only; 127.0.0.1 is `proxyd`'s, by its socket hook |
| portmap: two pods may claim one host port, and the second gets it | refused, naming the pod that has it |
| tuning: may change the interface's Ethernet address behind any plugin | use the capability `mac`: behind mode ptp, the host would go on sending to the old address, which CHECK says |
| unknown capabilities are ignored | what asks for something that a pod would not have (`aliases`, `deviceID`) is refused |
| host-local leases loopback, multicast and link-local IPv6 addresses | such ranges are refused |
| ADD works with standard output closed | refused: nobody would hear of the interface |
";
