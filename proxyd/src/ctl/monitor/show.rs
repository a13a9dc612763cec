//! Events as lines.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, UNIX_EPOCH};

use aya::maps::{Array, Map, MapData};
use heddle_bpf::Pins;
use heddle_daemon::output::Format;
use heddle_ebpf_common::{Addr, Backend, Counter, Event, Frontend, FrontendKey, Name, Tuple};
use heddle_netlink::{Socket, link};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::packet::{headers, protocol};
use super::{Kind, Options};
use crate::ebpf::encode::{ip, text};
use crate::wall_clock;

/// What is known of numbers.
pub struct Names {
    services: Option<aya::maps::HashMap<MapData, u32, Name>>,
    frontends: Option<aya::maps::HashMap<MapData, FrontendKey, Frontend>>,
    backends: Option<Array<MapData, Backend>>,
    devices: HashMap<u32, String>,
    /// What is added to the kernel's monotonic clock.
    epoch: Duration,
}

/// One event, for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// Seconds since 1970-01-01 UTC.
    pub time: f64,
    /// `drop`, `reject`, `flow`, `socket`.
    pub event: &'static str,
    /// As the counters name it, without `drop_` and `reject_`.
    pub reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    pub service: Option<String>,
    /// The client; `None`: a socket, which has no address yet.
    pub from: Option<String>,
    /// What was asked for.
    pub to: Option<String>,
    pub proto: String,
    /// The backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<u32>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
}

impl Names {
    pub fn new(pins: &Pins) -> Self {
        let map = |name: &str| MapData::from_pin(pins.map(name)).map(Map::HashMap).ok();
        let now = wall_clock::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
        Self {
            services: map("services").and_then(|map| map.try_into().ok()),
            frontends: map("frontends").and_then(|map| map.try_into().ok()),
            backends: MapData::from_pin(pins.map("backends"))
                .ok()
                .and_then(|map| Map::Array(map).try_into().ok()),
            devices: HashMap::new(),
            epoch: now.saturating_sub(monotonic),
        }
    }

    /// The event as a line, if it is to be shown.
    pub fn line(&mut self, event: &Event, options: &Options, format: Format) -> Option<String> {
        let kind = Kind::of(event)?;
        if !options.only.is_empty() && !options.only.contains(&kind) {
            return None;
        }
        let line = self.read(event, kind);
        if let Some(reason) = &options.reason {
            let wanted = reason.trim_start_matches("drop_").trim_start_matches("reject_");
            if line.reason != Some(wanted) {
                return None;
            }
        }
        if let Some(about) = &options.about {
            let meant = |text: &Option<String>| text.as_ref().is_some_and(|text| about.takes("", text));
            let named = line.service.as_ref().is_some_and(|name| about.takes(name, ""));
            if !named && ![&line.from, &line.to, &line.backend].into_iter().any(meant) {
                return None;
            }
        }
        Some(match format {
            Format::Json => serde_json::to_string(&line).unwrap_or_default(),
            Format::Text => line.text(),
        })
    }

    fn read(&mut self, event: &Event, kind: Kind) -> Line {
        let time = (self.epoch + Duration::from_nanos(event.time)).as_secs_f64();
        let name =
            Counter::ALL.iter().find(|(counter, _)| *counter as u32 == event.reason).map(|(_, name)| *name);
        let strip = |name: &'static str| {
            name.strip_prefix("drop_").or_else(|| name.strip_prefix("reject_")).unwrap_or(name)
        };
        let mut line = Line {
            time,
            event: match kind {
                Kind::Drop => "drop",
                Kind::Reject => "reject",
                Kind::Flow => "flow",
                Kind::Socket => "socket",
            },
            reason: name.map(strip).filter(|_| matches!(kind, Kind::Drop | Kind::Reject)),
            device: (event.ifindex != 0).then(|| self.device(event.ifindex)),
            service: self.service(event.service),
            from: None,
            to: None,
            proto: String::new(),
            backend: None,
            length: None,
            detail: String::new(),
            ttl: None,
        };
        if event.tuple.proto != 0 {
            line.proto = protocol(event.tuple.proto);
            line.to = Some(at(&event.tuple.dst, event.tuple.dport));
            line.from = (event.tuple.src != Addr::ANY6).then(|| at(&event.tuple.src, event.tuple.sport));
            let through = || self.backends.as_ref()?.get(&event.len, 0).ok();
            line.backend = match kind {
                Kind::Flow if event.to.dst == event.tuple.dst => {
                    through().map(|backend| at(&backend.addr, backend.port))
                }
                _ => (event.to.dport != 0).then(|| at(&event.to.dst, event.to.dport)),
            };
            line.service = line.service.or_else(|| self.frontend(&event.tuple));
        } else {
            let headers = headers(event.packet());
            let place = |ip: Option<IpAddr>, port: Option<u16>| match (ip, port) {
                (Some(ip), Some(port)) => Some(SocketAddr::new(ip, port).to_string()),
                (Some(ip), None) => Some(ip.to_string()),
                _ => None,
            };
            line.from = place(headers.src, headers.sport);
            line.to = place(headers.dst, headers.dport);
            line.proto = headers.proto;
            line.detail = headers.detail;
            line.ttl = headers.ttl;
            line.length = Some(event.len);
            if let (Some(dst), Some(dport)) = (headers.dst, headers.dport) {
                let number = match line.proto.as_str() {
                    "tcp" => 6,
                    "udp" => 17,
                    _ => 132,
                };
                let dst = crate::ebpf::encode::addr(dst);
                let tuple = Tuple { dst, dport: dport.to_be(), proto: number, ..Tuple::default() };
                line.service = line.service.or_else(|| self.frontend(&tuple));
            }
        }
        line
    }

    fn service(&self, id: u32) -> Option<String> {
        (id != 0).then_some(())?;
        self.services.as_ref()?.get(&id, 0).ok().map(|name| text(&name))
    }

    /// The service that has this address, or this port of every node.
    fn frontend(&self, to: &Tuple) -> Option<String> {
        let any = if to.dst.is_v4() { Addr::ANY4 } else { Addr::ANY6 };
        let found = [to.dst, any].into_iter().find_map(|addr| {
            let key = FrontendKey { addr, net: 0, port: to.dport, proto: to.proto, zero: 0 };
            self.frontends.as_ref()?.get(&key, 0).ok()
        });
        self.service(found?.service)
    }

    fn device(&mut self, index: u32) -> String {
        if !self.devices.contains_key(&index) {
            let links = Socket::open().and_then(|mut socket| link::list(&mut socket)).unwrap_or_default();
            self.devices = links.into_iter().map(|link| (link.index, link.name)).collect();
            // One that has gone is not looked for again.
            self.devices.entry(index).or_insert_with(|| format!("device {index}"));
        }
        self.devices[&index].clone()
    }
}

impl Line {
    fn text(&self) -> String {
        let seconds = self.time.rem_euclid(86_400.0);
        let (hour, minute) = ((seconds / 3600.0) as u32, (seconds / 60.0) as u32 % 60);
        let what = match self.reason {
            Some(reason) => format!("{} {reason}", self.event),
            None => self.event.to_owned(),
        };
        let mut text = format!("{hour:02}:{minute:02}:{:09.6} {what}", seconds % 60.0);
        let mut add = |word: &str| {
            text.push(' ');
            text.push_str(word);
        };
        self.device.iter().for_each(|device| add(&format!("at {device}:")));
        match (&self.from, &self.to) {
            (Some(from), Some(to)) => add(&format!("{from} > {to}")),
            (None, Some(to)) => add(&format!("> {to}")),
            _ => {}
        }
        add(&self.proto);
        self.backend.iter().for_each(|backend| add(&format!("-> {backend}")));
        if !self.detail.is_empty() {
            add(&self.detail);
        }
        self.ttl.iter().for_each(|ttl| add(&format!("ttl {ttl}")));
        self.length.iter().for_each(|length| add(&format!("{length} bytes")));
        self.service.iter().for_each(|service| add(&format!("[{service}]")));
        text
    }
}

fn at(addr: &Addr, port: u16) -> String {
    SocketAddr::new(ip(*addr), u16::from_be(port)).to_string()
}
