//! Maps that are too small are followed by larger ones, and programs that work with other maps by ours.

use heddle_bpf::{Datapath, Pins};
use heddle_model::{Plan, Step};

use super::collect::Collector;
use super::compile::Refused;
use super::kernel::Kernel;
use super::{Ebpf, MapSizes, Options, Sweeper};
use crate::dataplane::Error;

/// What maps begin with: enough for most clusters. They are made larger when that is needed, up to the maximum.
pub const FIRST: MapSizes = MapSizes { max_frontends: 1 << 16, max_backends: 1 << 17, max_flows: 1 << 17 };

/// How often in a row pods' links are looked at again after a succession: the CNI plugin may have been about to attach
/// the earlier program.
const LOOKS: u32 = 5;

/// `MemTotal` of /proc/meminfo in bytes; of a machine that does not tell, little is taken.
fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(1 << 20) * 1024
}

impl MapSizes {
    /// The largest maps for a machine with `bytes` of memory: flows take at most a 64th of it, frontends and backends
    /// a 128th each. (A flow takes two entries of about 200 bytes; a frontend with its list, its name and its address
    /// 800; a backend with its choice 150.)
    pub fn for_memory(bytes: u64) -> Self {
        let part = |share: u64, each: u64, least: u32, most: u32| {
            let count = u32::try_from(bytes / share / each).unwrap_or(u32::MAX);
            // A power of two, rounded down: a machine with a little less memory has the same.
            let count = count.checked_ilog2().map_or(0, |log| 1 << log);
            count.clamp(least, most)
        };
        Self {
            max_frontends: part(128, 800, 1 << 12, 1 << 20),
            max_backends: part(128, 150, 1 << 13, 1 << 21),
            max_flows: part(64, 400, 1 << 14, 1 << 22),
        }
    }

    /// For this machine.
    pub fn by_memory() -> Self {
        Self::for_memory(memory())
    }

    fn least(self, other: Self) -> Self {
        Self {
            max_frontends: self.max_frontends.min(other.max_frontends),
            max_backends: self.max_backends.min(other.max_backends),
            max_flows: self.max_flows.min(other.max_flows),
        }
    }

    fn most(self, other: Self) -> Self {
        Self {
            max_frontends: self.max_frontends.max(other.max_frontends),
            max_backends: self.max_backends.max(other.max_backends),
            max_flows: self.max_flows.max(other.max_flows),
        }
    }

    /// The size that a map depends on.
    fn of(&mut self, map: &str) -> Option<&mut u32> {
        match map {
            "frontends" | "services" | "ring" | "addrs" => Some(&mut self.max_frontends),
            "backends" | "choices" => Some(&mut self.max_backends),
            "ct" => Some(&mut self.max_flows),
            _ => None,
        }
    }
}

/// What maps are opened with: what they begin with or had become, within the maximum.
pub fn at_start(pins: &Pins, options: &Options) -> MapSizes {
    let had = |map| pins.entries(map).unwrap_or(0);
    let had =
        MapSizes { max_frontends: had("frontends"), max_backends: had("backends"), max_flows: had("ct") / 2 };
    options.first.most(had).least(options.sizes)
}

/// Where a succession is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Succession {
    /// What is attached is ours.
    Done,
    /// Programs that work with other maps are attached, and ours are not filled yet.
    Waits,
    /// The same, and ours are filled.
    Due,
}

impl Ebpf {
    /// Puts our programs in the place of those that are attached and work with other maps.
    pub(super) fn succeed(&mut self) -> Result<(), Error> {
        let carried = self.datapath.take_over()?;
        self.succession = Succession::Done;
        self.looks = LOOKS;
        self.pods.clear();
        tracing::info!(
            flows = carried.flows,
            stale = carried.stale,
            clients = carried.clients,
            sockets = carried.sockets,
            lost = carried.lost,
            "our programs have followed others"
        );
        Ok(())
    }

    /// Gives `map` twice its size, or room for `need` elements, within the maximum. False: it has that already.
    pub(super) fn grow(&mut self, map: &'static str, need: usize) -> Result<bool, Error> {
        let (mut sizes, mut maximum) = (self.sizes, self.options.sizes);
        let (Some(size), Some(most)) = (sizes.of(map), maximum.of(map)) else { return Ok(false) };
        if *size >= *most || self.succession != Succession::Done {
            return Ok(false);
        }
        let need = u32::try_from(need).unwrap_or(u32::MAX).checked_next_power_of_two().unwrap_or(u32::MAX);
        *size = size.saturating_mul(2).max(need).min(*most);
        tracing::info!(map, ?sizes, "maps grow");
        // The threads that look into the old ones end first.
        self.datapath = Datapath::open(self.datapath.pins.clone(), &sizes.sizes())?;
        self.sizes = sizes;
        self.succession = Succession::Due;
        self.kernel = Kernel::open(&self.datapath.pins)?;
        // The same numbers, in other maps.
        self.state = None;
        self.succeed()?;
        self.collector = Collector::start(&self.datapath.pins)?;
        if let Some(helper) = &self.options.helper {
            self.sweeper = Some(Sweeper::start(&self.datapath.pins, helper)?);
        }
        Ok(true)
    }

    /// Makes room for what a plan failed of. True if it is worth another try.
    pub(super) fn make_room<'a>(&mut self, plan: &Plan, failed: impl Iterator<Item = &'a Refused>) -> bool {
        let mut maps: Vec<_> = failed
            .filter_map(|why| match why {
                Refused::Full { map, free, size, .. } => Some((*map, *size as usize - *free)),
                _ => None,
            })
            .collect();
        maps.sort_unstable();
        maps.dedup_by_key(|(map, _)| *map);
        let puts = || {
            plan.iter().filter_map(|step| match step {
                Step::PutFrontend { frontend, .. } => Some(frontend),
                _ => None,
            })
        };
        let mut grown = false;
        for (map, used) in maps {
            let wanted = match map {
                "backends" | "choices" => puts().map(|frontend| frontend.backends.len()).sum(),
                _ => puts().count(),
            };
            // Slots of `ring` are counted in other units: twice as much is what there is then.
            let need = if map == "ring" { 0 } else { used + wanted };
            match self.grow(map, need) {
                Ok(yes) => grown |= yes,
                Err(error) => tracing::warn!(map, %error, "maps could not be made larger"),
            }
        }
        grown
    }

    /// Answered flows that come near the size of their map get a larger one.
    pub(super) fn watch_flows(&mut self) -> Result<(), Error> {
        let (used, room) = (self.collector.sizes().answered, u64::from(self.datapath.sizes.ct));
        if used * 4 > room * 3 && !self.grow("ct", 0)? && !self.told {
            self.told = true;
            tracing::warn!(used, room, "the table of flows is nearly full (raise --max-flows)");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_fit_the_machine() {
        let gib = |gib: u64| MapSizes::for_memory(gib << 30);
        assert_eq!(gib(0), MapSizes { max_frontends: 1 << 12, max_backends: 1 << 13, max_flows: 1 << 14 });
        assert_eq!(gib(2), MapSizes { max_frontends: 1 << 14, max_backends: 1 << 16, max_flows: 1 << 16 });
        assert_eq!(gib(32), MapSizes { max_frontends: 1 << 18, max_backends: 1 << 20, max_flows: 1 << 20 });
        assert_eq!(gib(4096), MapSizes { max_frontends: 1 << 20, max_backends: 1 << 21, max_flows: 1 << 22 });
        let now = MapSizes::by_memory();
        assert!(now.max_flows >= 1 << 14 && now.max_flows <= 1 << 22);
    }
}
