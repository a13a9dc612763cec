//! How full the maps are, and what the programs have counted: for metrics, read anew each time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use aya::maps::{MapData, MapType};
use heddle_bpf::{Pins, sys};
use heddle_ebpf_common::{
    Addr, Affinity, AffinityKey, CT_REPLY, ChoiceKey, FRONTEND_DROP, FRONTEND_DROP_OUTSIDE, Flow, Frontend,
    FrontendKey, KnownAddr, Name, SockChoice, SockKey, SockPeer, Tuple,
};

use crate::dataplane::{Counters, Error};
use crate::ebpf::counters;

/// Elements read by one system call.
const BATCH: u32 = 4096;

/// What is to be measured.
#[derive(Clone, Debug, Default)]
pub struct Gauges {
    pub counters: Counters,
    pub maps: Vec<MapGauge>,
    /// By the name of a service's port (`namespace/name:port`).
    pub services: BTreeMap<String, ServiceGauge>,
    /// Services whose traffic policy keeps clients in the cluster, and from outside, from all backends.
    pub no_local_internal: u64,
    pub no_local_external: u64,
}

/// A map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapGauge {
    pub name: String,
    /// `None`: all elements of an array are always there.
    pub entries: Option<u64>,
    pub max_entries: u32,
    /// Kernel memory, as the kernel reckons it (exact since Linux 6.4).
    pub bytes: u64,
}

/// The port of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceGauge {
    /// Flows under way that are translated packet by packet.
    pub flows: u64,
}

impl Gauges {
    /// Reads what is pinned below `bpf_root`. `None`: nothing is.
    pub fn read(bpf_root: &Path) -> Result<Option<Self>, Error> {
        let pins = Pins::new(bpf_root);
        if !pins.exist()? {
            return Ok(None);
        }
        let mut gauges = Self { counters: counters(&heddle_bpf::Maps::open(&pins)?)?, ..Self::default() };
        let mut flows: HashMap<u32, u64> = HashMap::new();
        let mut frontends: Vec<(u32, u32)> = Vec::new();
        let mut names: HashMap<u32, String> = HashMap::new();
        for entry in fs::read_dir(pins.dir().join("maps"))? {
            let path = entry?.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let map = MapData::from_pin(&path)?;
            let info = map.info()?;
            let fd = map.fd().as_fd();
            let entries = match name {
                "ct" | "ct_new" => Some(each::<Tuple, Flow>(fd, |_, flow| {
                    if flow.flags & CT_REPLY == 0 {
                        *flows.entry(flow.service).or_default() += 1;
                    }
                })?),
                "frontends" => Some(each::<FrontendKey, Frontend>(fd, |_, frontend| {
                    frontends.push((frontend.service, frontend.flags));
                })?),
                "services" => Some(each::<u32, Name>(fd, |id, name| {
                    names.insert(*id, text(name));
                })?),
                "node_names" => Some(each::<u32, Name>(fd, |_, _| {})?),
                "addrs" => Some(each::<Addr, KnownAddr>(fd, |_, _| {})?),
                "choices" => Some(each::<ChoiceKey, u32>(fd, |_, _| {})?),
                "affinity" => Some(each::<AffinityKey, Affinity>(fd, |_, _| {})?),
                "sock_rev" => Some(each::<SockKey, SockPeer>(fd, |_, _| {})?),
                "sock_udp" => Some(each::<SockKey, SockChoice>(fd, |_, _| {})?),
                _ => None,
            };
            gauges.maps.push(MapGauge {
                name: name.to_owned(),
                entries,
                // A ring buffer's are bytes.
                max_entries: if info.map_type()? == MapType::RingBuf { 0 } else { info.max_entries() },
                bytes: memory(fd)?,
            });
        }
        gauges.maps.sort_by(|a, b| a.name.cmp(&b.name));
        for (id, flows) in flows {
            if let Some(name) = names.get(&id) {
                gauges.services.entry(name.clone()).or_default().flows += flows;
            }
        }
        let kept_from = |flag: u32| {
            let services = frontends.iter().filter(|(_, flags)| flags & flag != 0);
            let names = services.filter_map(|(id, _)| names.get(id)).map(|name| service_of(name).0);
            names.collect::<BTreeSet<_>>().len() as u64
        };
        gauges.no_local_internal = kept_from(FRONTEND_DROP);
        gauges.no_local_external = kept_from(FRONTEND_DROP_OUTSIDE);
        Ok(Some(gauges))
    }
}

/// The service and the port of `namespace/name:port`.
pub fn service_of(name: &str) -> (&str, &str) {
    name.rsplit_once(':').unwrap_or((name, ""))
}

/// Shows every element, and says how many there are.
fn each<K: aya::Pod, V: aya::Pod>(map: BorrowedFd<'_>, mut show: impl FnMut(&K, &V)) -> io::Result<u64> {
    let entries = sys::map_entries::<K, V>(map, BATCH)?;
    entries.iter().for_each(|(key, value)| show(key, value));
    Ok(entries.len() as u64)
}

fn text(name: &Name) -> String {
    let len = name.0.iter().position(|byte| *byte == 0).unwrap_or(name.0.len());
    String::from_utf8_lossy(&name.0[..len]).into_owned()
}

fn memory(map: BorrowedFd<'_>) -> io::Result<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let value = info.lines().find_map(|line| line.strip_prefix("memlock:"));
    Ok(value.and_then(|value| value.trim().parse().ok()).unwrap_or(0))
}
