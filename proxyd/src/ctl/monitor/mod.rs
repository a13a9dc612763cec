//! `proxyd monitor`: flows, refusals and drops as they happen.
//!
//! The programs tell only while somebody listens. One monitor at a time: the ring buffer has one reader.

mod packet;
mod show;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData, RingBuf};
use heddle_bpf::Pins;
use heddle_daemon::output::Format;
use heddle_ebpf_common::{
    EVENT_DROP, EVENT_FLOW, EVENT_REJECT, EVENT_SOCKET, Event, LISTENING_LOST, LISTENING_UNTIL,
};
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};

use super::Filter;
use crate::dataplane::Error;
use show::Names;

/// The programs are told this often that somebody listens; a monitor that was killed is forgotten after three times
/// as long.
const RENEW: Duration = Duration::from_secs(1);

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// A packet was dropped
    Drop,
    /// A packet or a connect was answered with a refusal
    Reject,
    /// A flow begins, translated packet by packet
    Flow,
    /// A socket was given a backend
    Socket,
}

impl Kind {
    const fn of(event: &Event) -> Option<Self> {
        match event.kind {
            EVENT_DROP => Some(Self::Drop),
            EVENT_REJECT => Some(Self::Reject),
            EVENT_FLOW => Some(Self::Flow),
            EVENT_SOCKET => Some(Self::Socket),
            _ => None,
        }
    }
}

/// What is shown.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// NAMESPACE/NAME of a service, or an address of a service, a client or a backend [default: everything]
    pub about: Option<Filter>,
    /// Show only this kind of event; may be given several times
    #[arg(long, value_name = "KIND")]
    pub only: Vec<Kind>,
    /// Show only drops and rejects with this reason, as `proxyd status` names them (drop_ttl, or ttl)
    #[arg(long, value_name = "REASON")]
    pub reason: Option<String>,
    /// End after this many events
    #[arg(long, value_name = "NUMBER")]
    pub count: Option<u64>,
}

/// Shows events until the reader goes away (SIGPIPE, SIGINT) or the wanted number has been shown. `text` or a JSON
/// object a line.
pub fn monitor(bpf_root: &Path, run_dir: &Path, options: &Options, format: Format) -> Result<(), Error> {
    let pins = Pins::new(bpf_root);
    if !pins.exist()? {
        return Err("no datapath is there: proxyd has not run on this node since it started".into());
    }
    let _alone = alone(run_dir)?;
    let mut listening = Listening::open(&pins)?;
    let mut events = RingBuf::try_from(Map::RingBuf(MapData::from_pin(pins.map("events"))?))?;
    // What nobody has read is of another time.
    while events.next().is_some() {}
    listening.renew()?;
    eprintln!("listening");
    let mut names = Names::new(&pins);
    let mut shown = 0;
    let mut out = io::stdout().lock();
    let (mut lost, mut next) = (listening.lost(), Instant::now() + RENEW);
    loop {
        while let Some(item) = events.next() {
            let Some(event) = Event::from_bytes(&item) else { continue };
            let Some(line) = names.line(&event, options, format) else { continue };
            if let Err(error) = writeln!(out, "{line}") {
                return if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error.into()) };
            }
            shown += 1;
            if options.count.is_some_and(|count| shown >= count) {
                return Ok(());
            }
        }
        let now = listening.lost();
        if now != lost {
            eprintln!("{} events were lost: there are more than can be shown", now.wrapping_sub(lost));
            lost = now;
        }
        let rest = next.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            listening.renew()?;
            next = Instant::now() + RENEW;
            continue;
        }
        let timeout = PollTimeout::try_from(rest).unwrap_or(PollTimeout::from(1000_u16));
        match poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Held as long as this monitor runs.
fn alone(run_dir: &Path) -> Result<Flock<File>, Error> {
    fs::create_dir_all(run_dir)?;
    let path = run_dir.join("monitor.lock");
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => "another `proxyd monitor` runs on this node: end it first".into(),
        other => format!("cannot lock {}: {other}", path.display()).into(),
    })
}

/// Tells the programs that somebody listens; when it is dropped, that nobody does.
struct Listening(Array<MapData, u32>);

impl Listening {
    fn open(pins: &Pins) -> Result<Self, Error> {
        Ok(Self(Array::try_from(Map::Array(MapData::from_pin(pins.map("listening"))?))?))
    }

    fn renew(&mut self) -> Result<(), Error> {
        let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?) + 3 * RENEW;
        // The programs' steps of about a second, and one for the part of it that is cut off.
        let until = (now.as_nanos() >> 30) as u32 + 1;
        Ok(self.0.set(LISTENING_UNTIL, until, 0)?)
    }

    fn lost(&self) -> u32 {
        self.0.get(&LISTENING_LOST, 0).unwrap_or(0)
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // If not now, in three seconds.
        let _ = self.0.set(LISTENING_UNTIL, 0, 0);
    }
}
