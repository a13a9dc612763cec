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
    use std::sync::Arc;

    use heddle_ebpf_common::{CT_ANSWERED, Flow, Tuple};
    use heddle_model::{Backend, BackendState, Effect, Frontend, FrontendAddr, Part, Protocol};

    use super::super::live::alone;
    use super::*;
    use crate::dataplane::{Dataplane, Device, Devices};

    fn put(host: u8, backends: u8) -> Step {
        let backend = |n| Backend {
            ip: [10, 244, host, n].into(),
            port: 80,
            proto: Protocol::Tcp,
            node: None,
            state: BackendState::Active,
        };
        let frontend = Frontend {
            name: format!("default/s{host}:http"),
            backends: (1..=backends).map(backend).collect(),
            ..Frontend::default()
        };
        let at = FrontendAddr::new([10, 96, 0, host].into(), 80, Protocol::Tcp);
        Step::PutFrontend { at, frontend: Arc::new(frontend), effect: Effect::Create }
    }

    #[test]
    fn fault_066_maps_grow_up_to_their_maximum_and_keep_their_numbers() {
        alone("grow", |options| {
            let sizes = MapSizes { max_frontends: 512, max_backends: 256, max_flows: 1024 };
            let mut ebpf = Ebpf::open(&Options { first: options.sizes, sizes, ..options }).unwrap();
            let device = Device {
                index: 1,
                name: "lo".into(),
                mtu: 1500,
                addresses: [[192, 168, 77, 1].into()].into(),
            };
            ebpf.synced();
            ebpf.devices(&Devices { underlay: vec![device], overlay: None }).unwrap();
            assert!(ebpf.apply(&vec![put(1, 40)]).failed.is_empty());
            let before = ebpf.state.as_ref().unwrap().backends.clone();
            let programs = |ebpf: &Ebpf| -> Vec<u32> {
                let links = ebpf.datapath.pins.pinned_links().unwrap();
                links.iter().map(|link| link.info.program_id).collect()
            };
            let (old, slot) = (programs(&ebpf), 1);
            let key = Tuple { sport: 7, proto: 6, dport: 80, ..Tuple::default() };
            let generation = before[1].generation;
            let seen = super::super::collect::now();
            let mut flow = Flow { backend: slot, generation, flags: CT_ANSWERED, seen, ..Flow::default() };
            flow.check = flow.sum(&key);
            ebpf.kernel.maps.ct.insert(key, flow, 0).unwrap();

            // 63 fit: the third step does not, and gets a larger map.
            assert!(ebpf.apply(&vec![put(2, 20), put(3, 40)]).failed.is_empty());
            assert_eq!((ebpf.sizes.max_backends, ebpf.datapath.sizes.backends), (128, 128));
            let state = ebpf.state().unwrap();
            assert_eq!(state.backends[..before.len()], before);
            assert_eq!(state.frontends.len(), 3);
            assert_eq!(ebpf.kernel.maps.ct.get(&key, 0).unwrap(), flow);
            let new = programs(&ebpf);
            assert_eq!(new.len(), old.len());
            assert!(new.iter().all(|id| !old.contains(id)), "every link leads to programs over the new maps");

            // Flows, when somebody finds their map nearly full.
            assert!(ebpf.grow("ct", 0).unwrap());
            assert_eq!((ebpf.datapath.sizes.ct, ebpf.sizes.max_flows), (2048, 1024));
            assert!(!ebpf.grow("ct", 0).unwrap(), "that is the maximum");
            assert_eq!(ebpf.kernel.maps.ct.get(&key, 0).unwrap(), flow);

            // Beyond the maximum a service is refused whole, and the others stand.
            let outcome = ebpf.apply(&vec![put(4, 200)]);
            let at = FrontendAddr::new([10, 96, 0, 4].into(), 80, Protocol::Tcp);
            let why = &outcome.failed[&Part::Frontend(at)];
            assert!(why.starts_with("map backends is full: 200 more wanted"), "{why}");
            assert!(why.ends_with("of 256 free (raise --max-backends)"), "{why}");
            assert_eq!(ebpf.observe().unwrap().frontends.len(), 3);

            // A daemon that starts again begins with what there is.
            let options = ebpf.options.clone();
            drop(ebpf);
            let ebpf = Ebpf::open(&options).unwrap();
            assert_eq!(ebpf.sizes, sizes);
            assert_eq!(ebpf.succession, Succession::Done);
        });
    }

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
