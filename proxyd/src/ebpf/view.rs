//! What is pinned, seen without a daemon and without loading or writing anything.

use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use heddle_bpf::{PinnedLink, Pins, batch, sys};
use heddle_ebpf_common::{CT_ANSWERED, CT_REPLY, Config, Flow, Tuple};
use heddle_model::{FrontendAddr, ServiceTable, SharedMap};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde::Serialize;

use super::kernel::Kernel;
use super::state::State;
use super::{FlowCounts, counters, encode};
use crate::dataplane::{Counters, Error};

/// A daemon that starts makes its pins one after the other, or puts new ones in the place of old ones; it is done
/// within this time, unless it was killed half-way.
const PINNING: Duration = Duration::from_secs(2);

/// The state of the datapath.
#[derive(Debug)]
pub struct View {
    pub table: ServiceTable,
    /// What each backend of a frontend has to do; those that never had anything are not named.
    pub loads: BTreeMap<(FrontendAddr, IpAddr, u16), Load>,
    /// Flows of backends that are gone.
    pub stale: u64,
    pub counters: Counters,
    pub flows: FlowCounts,
    pub config: Config,
    pub links: Vec<PinnedLink>,
}

/// The flows of one backend through one frontend that are translated packet by packet. (What a socket hook has
/// translated is a connection like any other, and none of ours.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Load {
    /// Those that the backend has answered, and those that it has not.
    pub answered: u64,
    pub unanswered: u64,
    /// Packets and bytes (from the IP header on) of those flows, in both directions.
    pub packets: u64,
    pub bytes: u64,
    /// Flows and sockets that it was ever given, since it is a backend here.
    pub given: u64,
}

impl Load {
    pub const fn flows(&self) -> u64 {
        self.answered + self.unanswered
    }

    pub const fn and(self, other: Self) -> Self {
        Self {
            answered: self.answered + other.answered,
            unanswered: self.unanswered + other.unanswered,
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
            given: self.given + other.given,
        }
    }

    const fn add(&mut self, flow: &Flow) {
        // Either entry tells of its own direction; a flow is counted once.
        self.packets += flow.packets;
        self.bytes += flow.bytes;
        if flow.flags & CT_REPLY == 0 {
            if flow.flags & CT_ANSWERED != 0 {
                self.answered += 1;
            } else {
                self.unanswered += 1;
            }
        }
    }
}

impl View {
    /// Reads it. `None`: nothing is pinned there. Waits a moment for a daemon that is just making its pins.
    pub fn read(bpf_root: &Path) -> Result<Option<Self>, Error> {
        let pins = Pins::new(bpf_root);
        let deadline = Instant::now() + PINNING;
        let changes = Changes::of(&pins);
        loop {
            if !pins.exist()? {
                return Ok(None);
            }
            match Self::read_once(&pins) {
                Ok(view) => return Ok(Some(view)),
                Err(error) if is_missing(error.as_ref()) => {
                    if Instant::now() >= deadline {
                        return Err(format!(
                            "{} is half made: {error} (a daemon was killed while it began; the next one makes it \
                             whole, `proxyd cleanup` removes it)",
                            pins.dir().display()
                        )
                        .into());
                    }
                    changes.wait();
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn read_once(pins: &Pins) -> Result<Self, Error> {
        let mut kernel = Kernel::open(pins)?;
        // Before the table: a flow may end meanwhile, but none has a backend that the table does not know yet.
        let (answered, unanswered) = (kernel.maps.flows()?, kernel.maps.new_flows()?);
        let state = kernel.read(None, &SharedMap::default())?;
        let given = given(pins)?;
        let (loads, stale) = loads(&state, answered.iter().chain(&unanswered), &given);
        let fail = |source| heddle_bpf::Error::Map { name: "config", source: Box::new(source) };
        Ok(Self {
            table: state.table(),
            loads,
            stale,
            counters: counters(&kernel.maps)?,
            flows: FlowCounts { answered: answered.len() as u64, unanswered: unanswered.len() as u64 },
            config: kernel.maps.config.get(&0, 0).map_err(fail)?,
            links: pins.pinned_links()?,
        })
    }
}

/// What backends have to do, by frontend and address, and how many flows are stale.
fn loads<'a>(
    state: &State,
    entries: impl Iterator<Item = &'a (Tuple, Flow)>,
    given: &HashMap<u32, u64>,
) -> (BTreeMap<(FrontendAddr, IpAddr, u16), Load>, u64) {
    let mut by_slot: HashMap<(u32, u32), Load> = HashMap::new();
    // Slot 0: a pod's own connection that made way for a flow.
    for (_, flow) in entries.filter(|(_, flow)| flow.backend != 0) {
        by_slot.entry((flow.backend, flow.generation)).or_default().add(flow);
    }
    let mut loads = BTreeMap::new();
    for (key, entry) in &state.frontends {
        let Some(at) = encode::frontend_addr(key) else { continue };
        for (backend, slot) in entry.backends() {
            let load = by_slot.remove(&(slot, state.backend(slot).generation)).unwrap_or_default();
            let load = Load { given: given.get(&slot).copied().unwrap_or(0), ..load };
            if load != Load::default() {
                loads.insert((at, backend.ip, backend.port), load);
            }
        }
    }
    (loads, by_slot.values().map(Load::flows).sum())
}

/// Flows and sockets that backends were given, by slot; those without any are left out.
fn given(pins: &Pins) -> Result<HashMap<u32, u64>, Error> {
    let map = sys::get(&pins.map("conns"))?;
    let mut given = HashMap::new();
    batch::read::<u32, u64>(map.as_fd(), 4096, |slots, counts| {
        given.extend(slots.iter().copied().zip(counts.iter().copied()).filter(|(_, count)| *count > 0));
    })?;
    Ok(given)
}

/// What appears among the pins.
struct Changes(Option<Inotify>);

impl Changes {
    fn of(pins: &Pins) -> Self {
        let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok();
        // A directory that is not there yet appears in the one above it.
        for dir in [pins.dir(), pins.dir().join("maps")] {
            let _ = inotify.as_ref().map(|inotify| inotify.add_watch(&dir, flags));
        }
        Self(inotify)
    }

    /// Waits for the next one, for a moment.
    fn wait(&self) {
        let mut fds: Vec<PollFd<'_>> =
            self.0.iter().map(|inotify| PollFd::new(inotify.as_fd(), PollFlags::POLLIN)).collect();
        let _ = poll(&mut fds, PollTimeout::from(50_u8));
        let _ = self.0.as_ref().map(Inotify::read_events);
    }
}

/// A pin was not there.
fn is_missing(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::NotFound) {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;

    use super::super::live::alone;
    use super::super::{Ebpf, remove};
    use super::*;

    /// A daemon that pins its maps while somebody looks.
    #[test]
    fn whoever_looks_while_pins_are_made_waits_for_the_last() {
        alone("view", |options| {
            drop(Ebpf::open(&options).unwrap());
            let pins = Pins::new(&options.bpf_root);
            let (there, away) = (pins.map("services"), options.bpf_root.join("away"));
            fs::rename(&there, &away).unwrap();
            thread::scope(|scope| {
                let look = scope.spawn(|| View::read(&options.bpf_root).map(|view| view.is_some()));
                assert!(!look.is_finished());
                fs::rename(&away, &there).unwrap();
                assert!(look.join().unwrap().unwrap());
            });
            fs::rename(&there, &away).unwrap();
            let error = View::read(&options.bpf_root).unwrap_err().to_string();
            assert!(error.contains("is half made: ") && error.contains("services"), "{error}");
            fs::rename(&away, &there).unwrap();
            assert!(remove(&options.bpf_root).unwrap());
        });
    }
}
