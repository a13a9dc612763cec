//! One set of maps follows another: of another size, of another layout, or because the pins could not be trusted.
//!
//! What says which maps are in use is not a directory but the programs that are attached: a daemon may be killed
//! between any two steps, and the next one finds by them what is left to do. So the whole can be done again at any
//! time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsFd;
use std::time::Duration;

use heddle_ebpf_common::Config;
use nix::libc;
use nix::time::{ClockId, clock_gettime};

use crate::carry::{ByName, Carried, Carry, FLOWS, OTHERS, Source};
use crate::describe::Layout;
use crate::kept::Reach;
use crate::pins::{entries, inspect, remove_any};
use crate::raw::{Kind, RawMap};
use crate::{Datapath, Error, PinnedLink, Pins, Result, SocketHook, TcHook, XdpMode, sys};

/// The order in which links are swapped: what lets replies out before what lets requests in.
const TC_ORDER: [TcHook; 5] =
    [TcHook::PodOut, TcHook::Pod, TcHook::OverlayIn, TcHook::UnderlayOut, TcHook::UnderlayIn];

/// The most that the swap of all links and the second pass may take; both take milliseconds.
const SETTLING: Duration = Duration::from_secs(1);

/// The elements of the map `kinds` that stand for kinds of flows.
const KINDS: u32 = 3;

/// The maps that are pinned, those that are ours.
pub(crate) fn pinned_maps(pins: &Pins) -> Result<ByName> {
    let mut maps = ByName::new();
    for path in entries(&pins.dir().join("maps"))? {
        let fail = |source| Error::Pin { operation: "open", path: path.clone(), source };
        if let Ok(Some(fd)) = inspect(&path, Kind::Map) {
            let map = RawMap::new(fd).map_err(fail)?;
            maps.entry(map.name.clone()).or_default().push(map);
        }
    }
    Ok(maps)
}

/// A link of ours, of any layout.
struct Link {
    pins: Pins,
    link: PinnedLink,
}

impl Datapath {
    /// Are programs attached that work with other maps than ours? Then ours must be filled before
    /// [`take_over`](Self::take_over), and nothing is to be attached before it.
    pub fn is_succession(&self) -> Result<bool> {
        Ok(!self.pins.others()?.is_empty() || !self.sources(&self.links()?)?.is_empty())
    }

    /// Puts our programs in the place of all that are attached, and carries over what those remember: once before the
    /// first link is swapped, and once more after the last, what came meanwhile. Other layouts' pins go then.
    ///
    /// The maps that user space writes must be filled, the configuration among them.
    pub fn take_over(&mut self) -> Result<Carried> {
        let links = self.links()?;
        let sources = self.sources(&links)?;
        let mut carried = Carried::default();
        if sources.is_empty() {
            self.swap(links)?;
        } else {
            let own = self.own()?;
            let mut carry = Carry::new(&sources, &own, &self.maps)?;
            for maps in [OTHERS, FLOWS] {
                carried += carry.pass(&sources, &own, &mut self.maps, maps)?;
            }
            self.take_kinds(&sources)?;
            // From here on no program makes a flow that another would not know. A daemon that is killed now must not
            // leave that behind: it has an end of its own.
            self.settle(SETTLING)?;
            self.swap(links)?;
            carried += carry.pass(&sources, &own, &mut self.maps, FLOWS)?;
            self.settle(Duration::ZERO)?;
            carried += carry.pass(&sources, &own, &mut self.maps, OTHERS)?;
        }
        self.pin_programs()?;
        for other in self.pins.others()? {
            other.remove()?;
        }
        self.release()?;
        Ok(carried)
    }

    /// Every link of ours that is pinned, of every layout.
    fn links(&self) -> Result<Vec<Link>> {
        let mut links = Vec::new();
        for pins in self.pins.others()?.into_iter().chain([self.pins.clone()]) {
            let found = pins.pinned_links()?.into_iter().filter(|link| !link.is_dead());
            links.extend(found.map(|link| Link { pins: pins.clone(), link }));
        }
        Ok(links)
    }

    /// The maps of attached programs that work with others than ours. Programs of a layout that nobody knows are passed
    /// over: what they remember cannot be read.
    fn sources(&self, links: &[Link]) -> Result<Vec<Source>> {
        let own = self.own()?.maps;
        let ours =
            |map: &RawMap| own.get(&map.name).is_some_and(|own| own.iter().any(|own| own.id == map.id));
        let reach = Reach::of(&self.pins)?;
        let mut looked = BTreeSet::new();
        // Numbers are those of a map of backends.
        let mut sets: BTreeMap<(u32, u32), (Pins, ByName)> = BTreeMap::new();
        for Link { pins, link } in links {
            if !looked.insert(link.info.program_id) {
                continue;
            }
            // It may have been swapped in this very moment.
            let program = reach.program(link.info.program_id);
            let Ok(used) = program.and_then(|program| reach.used(program.as_fd())) else { continue };
            let maps = used.maps;
            if maps.iter().all(|map| ours(map) || !own.contains_key(&map.name)) {
                continue;
            }
            // A daemon that was killed has left a new program in a link that is still where it was.
            let pins = if maps.iter().any(ours) { &self.pins } else { pins };
            let backends = maps.iter().find(|map| map.name == "backends").map_or(0, |map| map.id);
            let set = sets.entry((pins.layout(), backends)).or_insert_with(|| (pins.clone(), ByName::new()));
            for map in maps {
                let same = set.1.entry(map.name.clone()).or_default();
                if same.iter().all(|other| other.id != map.id) {
                    same.push(map);
                }
            }
        }
        let mut sources = Vec::new();
        for ((layout, backends), (pins, mut maps)) in sets {
            let Some(known) = Layout::of(&pins) else { continue };
            if layout != self.pins.layout() {
                // What these programs do not use, others of them do.
                let pinned = pinned_maps(&pins)?;
                if pinned.get("backends").is_some_and(|maps| maps.iter().any(|map| map.id == backends)) {
                    for (name, pinned) in pinned {
                        maps.entry(name).or_insert(pinned);
                    }
                }
            }
            sources.push(Source { layout: known, maps });
        }
        Ok(sources)
    }

    /// Our own maps, to be read like another's.
    fn own(&self) -> Result<Source> {
        Ok(Source { layout: Layout::own(), maps: pinned_maps(&self.pins)? })
    }

    /// One link after the other.
    fn swap(&self, mut links: Vec<Link>) -> Result<()> {
        let tc = TC_ORDER.map(TcHook::name);
        let sockets = SocketHook::ALL.map(SocketHook::name);
        let xdp = XdpMode::ALL.map(XdpMode::name);
        let order =
            |link: &Link| sockets.iter().chain(&tc).chain(&xdp).position(|name| *name == link.link.program);
        links.retain(|link| order(link).is_some());
        links.sort_by_key(order);
        for Link { pins, link } in links {
            let Some((program, fd)) = self.programs.get_key_value(link.program.as_str()) else { continue };
            let id = sys::program_id(fd.as_fd());
            let fail = |source| Error::Attach {
                operation: "swap",
                program,
                to: format!("at {}", link.place),
                source,
            };
            // Removed with its pod in this very moment.
            let Ok(Some(old)) = inspect(&link.path, Kind::Link) else { continue };
            if id.map_err(fail)? != link.info.program_id {
                match sys::link_update(old.as_fd(), fd.as_fd()) {
                    Ok(()) => {}
                    Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => continue,
                    Err(source) => return Err(fail(source)),
                }
            }
            if pins.layout() != self.pins.layout() {
                let to = self.pins.link(&link.program, &link.place);
                if to.exists() {
                    // One of ours is there already: two programs at one hook would do the work twice.
                    remove_any(&link.path)?;
                    continue;
                }
                match fs::rename(&link.path, &to) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    other => other.map_err(|source| Error::Pin { operation: "move", path: to, source })?,
                }
            }
        }
        Ok(())
    }

    /// For how long from now on no flow is begun; zero: not at all.
    fn settle(&mut self, time: Duration) -> Result<()> {
        let fail = |source| Error::Map { name: "config", source: Box::new(source) };
        let config: Config = self.maps.config.get(&0, 0).map_err(fail)?;
        let now =
            clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| Duration::from(now).as_nanos() as u64);
        let settling = if time.is_zero() { 0 } else { now + time.as_nanos() as u64 };
        self.maps.config.set(0, Config { settling, ..config }, 0).map_err(fail)
    }

    /// There are kinds of flows that there have been.
    fn take_kinds(&self, sources: &[Source]) -> Result<()> {
        let path = self.pins.map("kinds");
        let fail = |source| Error::Pin { operation: "write map", path: path.clone(), source };
        let own = sys::get(&path).and_then(RawMap::new).map_err(fail)?;
        for map in sources.iter().filter_map(|source| source.maps.get("kinds")).flatten() {
            for kind in 0..KINDS.min(map.shape.entries).min(own.shape.entries) {
                let key = kind.to_ne_bytes();
                if map.get(&key).map_err(fail)?.is_some_and(|value| value.iter().any(|byte| *byte != 0)) {
                    own.set(&key, &1u32.to_ne_bytes(), 0).map_err(fail)?;
                }
            }
        }
        Ok(())
    }
}
