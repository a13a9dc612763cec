//! The threads of a load: they ask, and count what they get.

use std::collections::HashSet;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::process::lock;
use crate::traffic::ask::{Reply, canonical, connect, datagram_socket};
use crate::traffic::load::{Kind, Load, Shared, State};

/// One thread of a load.
pub(super) struct Client {
    pub(super) load: Load,
    pub(super) shared: Arc<Shared>,
}

impl Client {
    pub(super) fn run(&self) {
        match self.load.kind {
            Kind::Connects => self.connects(),
            Kind::Streams(_) => self.stream(),
            Kind::Datagrams => self.datagrams(true),
            Kind::UnconnectedDatagrams => self.datagrams(false),
        }
    }

    fn count(&self, change: impl FnOnce(&mut State)) {
        change(&mut lock(&self.shared.state));
        self.shared.changed.notify_all();
    }

    /// Waits for `next`, or until somebody says stop; whether to go on.
    fn pause(&self, next: Instant) -> bool {
        let state = lock(&self.shared.state);
        let left = next.saturating_duration_since(Instant::now());
        let waited = self.shared.changed.wait_timeout_while(state, left, |state| !state.stop);
        !waited.unwrap_or_else(std::sync::PoisonError::into_inner).0.stop
    }

    fn period(&self) -> Duration {
        Duration::from_secs(1) / self.load.rate
    }

    fn question(&self, number: u64) -> String {
        format!("{number} {}", "x".repeat(self.load.padding))
    }

    fn answered(&self, asked: &str, reply: &Reply) {
        self.count(|state| {
            let report = &mut state.report;
            let known = state.expected.is_empty() || state.expected.contains(&reply.server);
            if !known || reply.text != asked.trim_end() {
                report.misdelivered += 1;
                let what = if known { "answer to another question" } else { "answer of a stranger" };
                *report.errors.entry(format!("{what}, by {}", reply.server)).or_default() += 1;
                return;
            }
            report.received += 1;
            *report.by_backend.entry(reply.server.clone()).or_default() += 1;
            *report.by_client.entry(reply.client.ip()).or_default() += 1;
            report.max_gap = report.max_gap.max(state.last.elapsed());
            state.last = Instant::now();
        });
    }

    /// Counts a question that got no answer; `stood`: the connection had been made.
    fn failed(&self, error: &io::Error, stood: bool) {
        self.count(|state| {
            let report = &mut state.report;
            match error.kind() {
                ErrorKind::ConnectionRefused => report.refused += 1,
                ErrorKind::InvalidData => report.misdelivered += 1,
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof if stood => {
                    report.resets += 1;
                }
                _ => report.lost += 1,
            }
            *report.errors.entry(error.to_string()).or_default() += 1;
        });
    }

    fn connects(&self) {
        let mut next = Instant::now();
        for number in 0.. {
            if !self.pause(next) {
                return;
            }
            self.count(|state| state.report.sent += 1);
            match connect(self.load.to, None, self.load.limit) {
                Ok(stream) => {
                    let asked = self.question(number);
                    match ask_line(&stream, &mut BufReader::new(&stream), &asked) {
                        Ok(reply) => self.answered(&asked, &reply),
                        Err(e) => self.failed(&e, true),
                    }
                }
                Err(e) => self.failed(&e, false),
            }
            next = (next + self.period()).max(Instant::now().checked_sub(self.period()).unwrap_or(next));
        }
    }

    fn stream(&self) {
        let mut open: Option<(TcpStream, BufReader<TcpStream>)> = None;
        let mut next = Instant::now();
        for number in 0.. {
            if !self.pause(next) {
                return;
            }
            next = Instant::now() + self.period();
            self.count(|state| state.report.sent += 1);
            if open.is_none() {
                let fresh = connect(self.load.to, None, self.load.limit)
                    .and_then(|stream| Ok((stream.try_clone()?, BufReader::new(stream))));
                match fresh {
                    Ok(fresh) => open = Some(fresh),
                    Err(e) => {
                        self.failed(&e, false);
                        continue;
                    }
                }
            }
            if let Some((stream, reader)) = &mut open {
                let asked = self.question(number);
                match ask_line(stream, reader, &asked) {
                    Ok(reply) => self.answered(&asked, &reply),
                    Err(e) => {
                        self.failed(&e, true);
                        open = None;
                    }
                }
            }
        }
    }

    fn datagrams(&self, connected: bool) {
        let open = || {
            let socket = datagram_socket(self.load.to, None, self.load.limit)?;
            if connected {
                socket.connect(self.load.to)?;
            }
            Ok(socket)
        };
        let socket: UdpSocket = match open() {
            Ok(socket) => socket,
            Err(e) => return self.failed(&e, false),
        };
        let mut open = Open { due: Vec::new(), seen: HashSet::new() };
        let mut next = Instant::now();
        for number in 0.. {
            self.read_until(&socket, next, &mut open);
            if lock(&self.shared.state).stop {
                break;
            }
            next = (next + self.period()).max(Instant::now());
            let asked = self.question(number);
            self.count(|state| state.report.sent += 1);
            let sent = if connected {
                socket.send(asked.as_bytes())
            } else {
                socket.send_to(asked.as_bytes(), self.load.to)
            };
            match sent {
                Ok(_) => open.due.push((number, Instant::now() + self.load.limit)),
                Err(e) => self.failed(&e, false),
            }
        }
        while let Some((_, due)) = open.due.first().copied() {
            self.read_until(&socket, due + Duration::from_millis(1), &mut open);
        }
    }

    /// Takes answers until `end`, or (once stopped) until none is missing.
    fn read_until(&self, socket: &UdpSocket, end: Instant, open: &mut Open) {
        let mut buffer = vec![0; 65536];
        loop {
            let now = Instant::now();
            let late = open.due.iter().take_while(|(_, due)| *due <= now).count();
            if late > 0 {
                open.due.drain(..late);
                self.count(|state| state.report.lost += late as u64);
            }
            if now >= end || (open.due.is_empty() && lock(&self.shared.state).stop) {
                return;
            }
            // Not zero, which would mean for ever.
            let wait = (end - now).max(Duration::from_micros(100));
            if socket.set_read_timeout(Some(wait)).is_err() {
                return;
            }
            match socket.recv_from(&mut buffer) {
                Ok((length, from)) => self.datagram(&buffer[..length], from, open),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(e) => {
                    // The ICMP answer to one of them; which one, nobody says: take the oldest.
                    if !open.due.is_empty() {
                        open.due.remove(0);
                    }
                    self.failed(&e, false);
                }
            }
        }
    }

    fn datagram(&self, bytes: &[u8], from: SocketAddr, open: &mut Open) {
        let text = String::from_utf8_lossy(bytes);
        let stranger = canonical(from) != canonical(self.load.to);
        let reply = match Reply::parse(&text, from) {
            Ok(reply) if !stranger => reply,
            Ok(_) => {
                let e = io::Error::new(ErrorKind::InvalidData, format!("answer from {from}"));
                return self.failed(&e, false);
            }
            Err(e) => return self.failed(&e, false),
        };
        let number = reply.text.split(' ').next().and_then(|n| n.parse::<u64>().ok());
        let Some(number) = number else {
            let e = io::Error::new(ErrorKind::InvalidData, "answer without a number");
            return self.failed(&e, false);
        };
        if !open.seen.insert(number) {
            return self.count(|state| state.report.duplicated += 1);
        }
        // One that comes after its time has been counted as lost.
        if let Some(at) = open.due.iter().position(|(n, _)| *n == number) {
            open.due.remove(at);
            self.answered(&self.question(number), &reply);
        }
    }
}

/// Datagrams that wait for their answers, the oldest first, and the answers seen.
struct Open {
    due: Vec<(u64, Instant)>,
    seen: HashSet<u64>,
}

fn ask_line(mut to: &TcpStream, from: &mut impl BufRead, text: &str) -> io::Result<Reply> {
    to.write_all(format!("{text}\n").as_bytes())?;
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Reply::parse(&line, to.local_addr()?)
}
