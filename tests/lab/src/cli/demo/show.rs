//! What the demo prints: steps, what was done, whether it went as it should.

use std::fmt::Display;
use std::time::Instant;

/// Counts checks and prints them with the time since the start.
#[derive(Debug)]
pub struct Show {
    begun: Instant,
    checks: usize,
    failed: usize,
}

impl Show {
    pub fn new() -> Self {
        Self { begun: Instant::now(), checks: 0, failed: 0 }
    }

    /// A new step of the story.
    pub fn step(&self, title: &str) {
        println!("\n[{:5.1} s] {title}", self.begun.elapsed().as_secs_f32());
    }

    /// Something to know.
    pub fn say(&self, text: impl Display) {
        println!("            {text}");
    }

    /// Something that must be so.
    pub fn check(&mut self, what: impl Display, is_so: bool) -> bool {
        self.checks += 1;
        if !is_so {
            self.failed += 1;
        }
        println!("  {}  {what}", if is_so { "ok      " } else { "FAILED  " });
        is_so
    }

    /// Whether a check has failed so far.
    pub fn has_failed(&self) -> bool {
        self.failed > 0
    }

    /// Something that must have worked; gives what came of it.
    pub fn worked<T>(&mut self, what: impl Display, result: anyhow::Result<T>) -> Option<T> {
        match result {
            Ok(value) => {
                self.check(what, true);
                Some(value)
            }
            Err(error) => {
                self.check(format!("{what}: {error:#}"), false);
                None
            }
        }
    }

    /// The last line; whether all of it worked.
    pub fn end(self) -> bool {
        println!("\n{:.1} s", self.begun.elapsed().as_secs_f32());
        println!("demo: {} checks, {} failed", self.checks, self.failed);
        self.failed == 0
    }
}
