//! `curl`, once and again and again.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use heddle_lab::{Place, eventually};

/// `http://address:port/`, also for IPv6.
pub fn url(ip: IpAddr, port: u16) -> String {
    format!("http://{}/", SocketAddr::new(ip, port))
}

/// Runs `curl` in `place`; gives the server's name and the client address that it saw.
pub fn curl(place: &Place, url: &str) -> Result<(String, IpAddr)> {
    let output = place.output(["curl", "-sS", "--fail", "--max-time", "5", url])?;
    if !output.status.success() {
        bail!("curl in {}: {}", place.name(), output.stderr.trim());
    }
    let mut words = output.stdout.split_whitespace();
    let server = words.next().context("curl printed nothing")?.to_owned();
    let seen: SocketAddr = words.next().unwrap_or_default().parse().context("the answer names no client")?;
    Ok((server, seen.ip()))
}

/// How often each backend answered.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub by_backend: BTreeMap<String, usize>,
    pub failures: Vec<String>,
    /// Answers that showed another client address than the client's own.
    pub strange: Vec<String>,
}

impl Tally {
    pub fn add(&mut self, answer: Result<(String, IpAddr)>, own: Option<IpAddr>) {
        match answer {
            Ok((server, seen)) => {
                if own.is_some_and(|own| own != seen) {
                    self.strange.push(format!("{server} saw {seen}"));
                }
                *self.by_backend.entry(server).or_default() += 1;
            }
            Err(error) => self.failures.push(format!("{error:#}")),
        }
    }

    pub fn answers(&self) -> usize {
        self.by_backend.values().sum()
    }

    /// Whether these, and only these, answered.
    pub fn is_from(&self, names: &[&str]) -> bool {
        self.by_backend.keys().map(String::as_str).eq(names.iter().copied())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list: Vec<_> = self.by_backend.iter().map(|(name, n)| format!("{name} {n}")).collect();
        write!(f, "{} ({})", self.answers(), list.join(", "))?;
        if let Some(first) = self.failures.first() {
            write!(f, "; {} failed, the first: {first}", self.failures.len())?;
        }
        if let Some(first) = self.strange.first() {
            write!(f, "; {} with another client address, the first: {first}", self.strange.len())?;
        }
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Shared {
    tally: Tally,
    stop: bool,
}

/// How long a loop may take to see what is awaited, on a machine with much else to do.
const LIMIT: Duration = Duration::from_secs(30);

/// Between two turns of a curl loop, so that the loops leave some of a small machine to the daemons.
const PAUSE: Duration = Duration::from_millis(20);

/// `while curl ...; do sleep 0.02; done` in the background.
#[derive(Debug)]
pub struct CurlLoop {
    name: String,
    shared: Arc<Mutex<Shared>>,
    thread: Option<JoinHandle<()>>,
}

impl CurlLoop {
    /// Starts it; `own`: the client address that every answer has to show.
    pub fn start(name: &str, place: &Place, url: String, own: Option<IpAddr>) -> Self {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (theirs, place) = (Arc::clone(&shared), place.clone());
        let thread = std::thread::spawn(move || {
            while !theirs.lock().unwrap_or_else(PoisonError::into_inner).stop {
                let answer = curl(&place, &url);
                theirs.lock().unwrap_or_else(PoisonError::into_inner).tally.add(answer, own);
                std::thread::park_timeout(PAUSE);
            }
        });
        Self { name: name.into(), shared, thread: Some(thread) }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it saw since the start, or since the last [`take`](Self::take).
    pub fn tally(&self) -> Tally {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).tally.clone()
    }

    /// The same, and counts anew.
    pub fn take(&self) -> Tally {
        std::mem::take(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner).tally)
    }

    /// How often it has asked.
    fn turns(&self) -> usize {
        let tally = self.tally();
        tally.answers() + tally.failures.len()
    }

    /// Waits until it has had `count` more answers or failures, at most 30 s.
    pub fn more(&self, count: usize) -> Result<()> {
        all_more(std::slice::from_ref(self), count)
    }

    /// Waits until `count` answers in a row came from none but `names`, at most 30 s; gives how long it took.
    pub fn settles_on(&self, names: &[&str], count: usize) -> Result<Duration> {
        let begun = Instant::now();
        eventually("answers of the right backends", LIMIT, || {
            let before = self.tally();
            self.more(count).map_err(|e| heddle_lab::Error::Oracle(format!("{e:#}")))?;
            let after = self.tally();
            let new = |name: &String| after.by_backend.get(name) > before.by_backend.get(name);
            Ok(after.by_backend.keys().filter(|name| new(name)).all(|name| names.contains(&name.as_str()))
                && names.iter().all(|name| after.by_backend.contains_key(*name)))
        })?;
        Ok(begun.elapsed())
    }
}

/// Waits until each of `loops` has had `count` more answers or failures, at most 30 s.
pub fn all_more(loops: &[CurlLoop], count: usize) -> Result<()> {
    let goals: Vec<_> = loops.iter().map(|each| each.turns() + count).collect();
    Ok(eventually("more turns of the curl loops", LIMIT, || {
        Ok(loops.iter().zip(&goals).all(|(each, goal)| each.turns() >= *goal))
    })?)
}

impl Drop for CurlLoop {
    fn drop(&mut self) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
