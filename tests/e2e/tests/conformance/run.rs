//! Running all checks, each on a host of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use super::stage::Stage;
use super::subject::{Check, Subject, Who};
use super::{checks, page};

/// Most of a check is waiting for the kernel to take a device away.
const WORKERS: usize = 10;

/// What a check found out about a subject.
#[derive(Debug)]
pub struct Outcome {
    pub check: &'static Check,
    pub subject: Subject,
    /// What the subject did instead.
    pub result: Result<(), String>,
}

/// Of this run, in the order of the table: ours, then theirs, for each part.
///
/// Where the page says that the reference plugins pass, they are asked only with `HEDDLE_CONFORMANCE=all`: that takes
/// twice the time, and they are no longer changing.
pub fn outcomes() -> &'static [Outcome] {
    static OUTCOMES: OnceLock<Vec<Outcome>> = OnceLock::new();
    OUTCOMES.get_or_init(|| run(checks::all()))
}

/// Carries these out.
pub fn run(checks: impl Iterator<Item = &'static Check>) -> Vec<Outcome> {
    let only = std::env::var("HEDDLE_CHECK").unwrap_or_default();
    let everything = std::env::var("HEDDLE_CONFORMANCE").is_ok_and(|size| size == "all");
    let page = std::fs::read_to_string(page::PATH).unwrap_or_default();
    let mut work = Vec::new();
    for check in checks.filter(|check| check.name.contains(&only)) {
        let theirs = everything || !page::says_yes(&page, check);
        for part in check.parts {
            work.push((check, Subject { who: Who::Ours, part: *part }));
            work.extend(theirs.then_some((check, Subject { who: Who::Theirs, part: *part })));
        }
    }
    let verbose = std::env::var_os("HEDDLE_VERBOSE").is_some();
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let Some((check, subject)) = work.get(n).copied() else { break };
                    let begin = Instant::now();
                    let result = one(check, subject);
                    if verbose {
                        eprintln!(
                            "{:6} ms  {:?} {}: {}",
                            begin.elapsed().as_millis(),
                            subject.who,
                            subject.part,
                            check.name
                        );
                    }
                    done.lock().unwrap().push((n, Outcome { check, subject, result }));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap();
    done.sort_by_key(|(n, _)| *n);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}

fn one(check: &Check, subject: Subject) -> Result<(), String> {
    let stage = Stage::new(subject);
    match catch_unwind(AssertUnwindSafe(|| (check.run)(&stage))) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(stage.without_names(&format!("{error:#}"))),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked");
            Err(stage.without_names(text.lines().next().unwrap_or_default()))
        }
    }
}
