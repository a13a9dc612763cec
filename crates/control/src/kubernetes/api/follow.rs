//! Keeps in touch with the API server about one kind of object, for ever.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use super::access::Access;
use super::connect::Connection;
use super::failure::Failure;
use super::item::{self, Item, Kind, Page};
use super::machine::{Change, Machine, Want};
use super::pace::Pace;
use super::request::{self, Lines};
use super::shared::Shared;
use crate::kubernetes::Words;

/// The API server ends a watch after this long, or twice that: thousands of nodes do not come back at once.
const WATCH: u64 = 300;
/// A stream that ends sooner did not work.
const SHORT: Duration = Duration::from_millis(500);
/// Events that come in a storm are told together, and not later than this.
const TOGETHER: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub struct Follower {
    pub kind: Kind,
    pub access: Access,
    pub machine: Machine,
    pub pace: Pace,
    pub shared: Arc<Shared>,
    pub words: Words,
}

impl Follower {
    pub async fn run(mut self) -> Infallible {
        let mut connection = None;
        loop {
            if let Err(failure) = self.step(&mut connection).await {
                tracing::debug!(kind = self.kind.plural(), "{failure}");
                if !failure.spares_connection() {
                    connection = None;
                }
                self.machine.failed(&failure);
                self.shared.lost(self.kind, &failure);
                sleep(self.pace.after(&failure)).await;
            }
        }
    }

    /// Where nobody answers, one follower's attempt is an answer to all.
    async fn open(&self) -> Result<Connection, Failure> {
        if let Some(refused) = self.shared.refused() {
            return Err(refused);
        }
        let opened = Connection::open(&self.access).await;
        if let Err(failure @ Failure::Connect { .. }) = &opened {
            self.shared.refuse(failure);
        }
        opened
    }

    /// One request, and what comes of it.
    async fn step(&mut self, connection: &mut Option<Connection>) -> Result<(), Failure> {
        if !connection.as_ref().is_some_and(Connection::is_usable) {
            *connection = None;
        }
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(self.open().await?),
        };
        match self.machine.want() {
            Want::List { paged, token } => {
                let path = request::list(self.kind, paged, token.as_deref());
                let answer = request::get(connection, &path).await?;
                let body = request::page(answer).await?;
                self.shared.heard(self.kind);
                let mut page = item::page(self.kind, &body)?;
                drop(body);
                self.share_words(&mut page);
                let mut changes = Vec::new();
                self.machine.page(page, Instant::now(), &mut changes)?;
                if matches!(self.machine.want(), Want::Watch(_)) {
                    self.shared.publish(self.kind, &mut changes, Vec::new(), &self.machine);
                }
                Ok(())
            }
            Want::Watch(version) => {
                let seconds = WATCH + self.pace.random(WATCH);
                let path = request::watch(self.kind, &version, seconds);
                let answer = request::get(connection, &path).await?;
                self.shared.touched(self.kind);
                let began = Instant::now();
                let ended = self.watch(Lines::of(answer)).await;
                if began.elapsed() >= SHORT {
                    self.pace.reset();
                } else if ended.is_ok() {
                    return Err(Failure::Lost("the API server ended the watch at once".into()));
                }
                ended
            }
        }
    }

    /// Until the stream ends, or it is time for a list.
    async fn watch(&mut self, mut lines: Lines) -> Result<(), Failure> {
        let (mut changes, mut heard) = (Vec::new(), Vec::new());
        loop {
            // As long as there is more, what comes is collected.
            let first = match self.machine.deadline() {
                None => lines.next().await,
                Some(deadline) => tokio::select! {
                    line = lines.next() => line,
                    () = sleep_until(deadline) => {
                        self.machine.settle();
                        return Ok(());
                    }
                },
            };
            let ended = self.burst(first, &mut lines, &mut changes, &mut heard);
            self.shared.heard(self.kind);
            self.shared.publish(self.kind, &mut changes, std::mem::take(&mut heard), &self.machine);
            if let Some(ended) = ended {
                return ended;
            }
        }
    }

    /// A line, and those that are there already. Says how the stream ended, if it did.
    fn burst(
        &mut self,
        first: Result<Option<bytes::Bytes>, Failure>,
        lines: &mut Lines,
        changes: &mut Vec<Change>,
        heard: &mut Vec<std::time::Instant>,
    ) -> Option<Result<(), Failure>> {
        let limit = Instant::now() + TOGETHER;
        let mut next = first;
        loop {
            match next {
                Err(failure) => return Some(Err(failure)),
                Ok(None) => return Some(Ok(())),
                Ok(Some(line)) => match item::event(self.kind, &line) {
                    Err(failure) => return Some(Err(failure)),
                    Ok(mut event) => {
                        if let item::Event::Is(Item { value: Ok(value), .. }) = &mut event {
                            self.words.share(value);
                        }
                        let before = changes.len();
                        if let Err(failure) = self.machine.event(event, changes) {
                            return Some(Err(failure));
                        }
                        heard.extend((changes.len() > before).then(|| lines.arrived().into_std()));
                    }
                },
            }
            if Instant::now() >= limit {
                return None;
            }
            next = lines.next_now()?;
        }
    }

    fn share_words(&mut self, page: &mut Page) {
        for value in page.items.iter_mut().filter_map(|item| item.value.as_mut().ok()) {
            self.words.share(value);
        }
    }
}
