//! How full the maps are, and what the programs have counted: for metrics, read anew each time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use aya::maps::{MapData, MapType};
use heddle_bpf::{Pins, batch};
use heddle_ebpf_common::{
    Addr, Affinity, AffinityKey, CT_REPLY, ChoiceKey, FRONTEND_DROP, FRONTEND_DROP_OUTSIDE, Flow, Frontend,
    FrontendKey, KnownAddr, Name, SockChoice, SockKey, SockPeer, Tuple,
};

use crate::dataplane::{Counters, Error};
use crate::ebpf::counters;
use crate::ebpf::encode::{ip, text};

/// Elements read by one system call.
const BATCH: u32 = 4096;

/// What is to be measured.
#[derive(Clone, Debug, Default)]
pub struct Gauges {
    pub counters: Counters,
    pub maps: Vec<MapGauge>,
    /// By the name of a service's port (`namespace/name:port`).
    pub services: BTreeMap<String, ServiceGauge>,
    /// Those that were ever given something.
    pub backends: Vec<BackendGauge>,
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
    /// Their packets and bytes (from the IP header on), in both directions.
    pub packets: u64,
    pub bytes: u64,
}

/// A backend of a service's port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendGauge {
    /// `namespace/name:port`.
    pub name: String,
    pub address: String,
    /// Flows and sockets that it was given, since it is a backend here.
    pub given: u64,
}

impl Gauges {
    /// Reads what is pinned below `bpf_root`. `None`: nothing is.
    pub fn read(bpf_root: &Path) -> Result<Option<Self>, Error> {
        let pins = Pins::new(bpf_root);
        if !pins.exist()? {
            return Ok(None);
        }
        let open = heddle_bpf::Maps::open(&pins)?;
        let mut gauges = Self { counters: counters(&open)?, ..Self::default() };
        let mut flows: HashMap<u32, ServiceGauge> = HashMap::new();
        let mut given: HashMap<u32, u64> = HashMap::new();
        let mut choices: Vec<(u32, u32)> = Vec::new();
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
                    let gauge = flows.entry(flow.service).or_default();
                    gauge.flows += u64::from(flow.flags & CT_REPLY == 0);
                    gauge.packets += flow.packets;
                    gauge.bytes += flow.bytes;
                })?),
                "frontends" => Some(each::<FrontendKey, Frontend>(fd, |_, frontend| {
                    frontends.push((frontend.service, frontend.flags));
                })?),
                "services" => Some(each::<u32, Name>(fd, |id, name| {
                    names.insert(*id, text(name));
                })?),
                "node_names" => Some(each::<u32, Name>(fd, |_, _| {})?),
                "addrs" => Some(each::<Addr, KnownAddr>(fd, |_, _| {})?),
                "choices" => {
                    Some(each::<ChoiceKey, u32>(fd, |key, slot| choices.push((*slot, key.service)))?)
                }
                "conns" => {
                    each::<u32, u64>(fd, |slot, count| {
                        if *count > 0 {
                            given.insert(*slot, *count);
                        }
                    })?;
                    None
                }
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
                bytes: batch::memory(fd)?,
            });
        }
        gauges.maps.sort_by(|a, b| a.name.cmp(&b.name));
        for (id, flows) in flows {
            if let Some(name) = names.get(&id) {
                let gauge = gauges.services.entry(name.clone()).or_default();
                gauge.flows += flows.flows;
                gauge.packets += flows.packets;
                gauge.bytes += flows.bytes;
            }
        }
        let mut backends: BTreeMap<(String, String), u64> = BTreeMap::new();
        for (slot, service) in choices {
            let (Some(count), Some(name)) = (given.get(&slot), names.get(&service)) else { continue };
            let Ok(backend) = open.backends.get(&slot, 0) else { continue };
            let at = SocketAddr::new(ip(backend.addr), u16::from_be(backend.port)).to_string();
            // A port of a service has a frontend for each of its addresses.
            *backends.entry((name.clone(), at)).or_default() += count;
        }
        gauges.backends = backends
            .into_iter()
            .map(|((name, address), given)| BackendGauge { name, address, given })
            .collect();
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
    let mut count = 0;
    batch::read::<K, V>(map, BATCH, |keys, values| {
        count += keys.len() as u64;
        keys.iter().zip(values).for_each(|(key, value)| show(key, value));
    })?;
    Ok(count)
}
