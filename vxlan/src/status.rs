//! `vxland status`: what the kernel holds, what of it is wrong, and why.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use heddle_model::{Beside, Mac, NodeName};
use heddle_netlink::Socket;
use ipnetwork::IpNetwork;
use serde::{Serialize, Serializer};

use crate::desired::desired;
use crate::forwarding::{self, Record};
use crate::plan::{Part, Step, plan};
use crate::report::{Left, Report};
use crate::state::{Device, Family, FdbEntry, KernelState, Neighbour, Route, RouteKey, remote_metric};
use crate::{edge, firewall, handoff, kernel};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Where things are, as the command line says.
#[derive(Clone, Debug)]
pub struct Places {
    pub vni: u32,
    pub underlay: Option<String>,
    pub run_dir: PathBuf,
    pub cni_conf_dir: PathBuf,
}

/// Everything that can be said of this node's overlay.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The VXLAN device's name.
    pub device: String,
    /// As the kernel has it.
    #[serde(serialize_with = "device_in_words")]
    pub kernel: Option<Device>,
    /// The process id of the daemon, if it says that it is ready.
    pub daemon: Option<u32>,
    pub node: Option<NodeName>,
    pub underlay: Option<IpAddr>,
    pub underlay_device: Option<String>,
    pub pod_ranges: Vec<IpNetwork>,
    pub peers: Vec<Peer>,
    /// Kernel parameters that vxland changed, with what they were.
    pub sysctl: Record,
    /// Whether the CNI configuration is there.
    pub handed_off: bool,
    pub edge: edge::Seen,
    /// What is not as it should be. Empty: all is well.
    pub wrong: Vec<String>,
    /// What cannot be seen from here, and may be wrong.
    pub unclear: Vec<String>,
}

/// Another node.
#[derive(Debug, Serialize)]
pub struct Peer {
    pub node: NodeName,
    pub underlay: IpAddr,
    #[serde(serialize_with = "in_words")]
    pub mac: Mac,
    pub fdb: Found,
    pub ranges: Vec<PeerRange>,
}

/// A pod range of another node.
#[derive(Debug, Serialize)]
pub struct PeerRange {
    pub range: IpNetwork,
    pub neighbour: Found,
    pub route: Found,
    /// The route goes past the tunnel (`--direct-routing`).
    pub direct: bool,
}

/// How the kernel has an entry that should be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Found {
    Ok,
    /// It is there, and leads elsewhere.
    Wrong,
    Missing,
}

impl Found {
    fn of<T: PartialEq>(found: Option<&T>, wanted: Option<&T>) -> Self {
        match (found, wanted) {
            (None, _) => Self::Missing,
            (found, wanted) if found == wanted => Self::Ok,
            _ => Self::Wrong,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Wrong => "wrong",
            Self::Missing => "missing",
        }
    }
}

fn in_words<T: ToString, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&value.to_string())
}

/// A MAC is a list of numbers to serde; people read the other form.
fn device_in_words<S: Serializer>(device: &Option<Device>, to: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Words<'a> {
        vni: u32,
        port: u16,
        local: Option<IpAddr>,
        mac: String,
        mtu: u32,
        up: bool,
        kind: &'a str,
    }
    let words = device.as_ref().map(|device| Words {
        vni: device.vni,
        port: device.port,
        local: device.local,
        mac: device.mac.to_string(),
        mtu: device.mtu,
        up: device.up,
        kind: &device.kind,
    });
    words.serialize(to)
}

/// Reads the kernel, and compares it with what the daemon knew last.
pub fn status(places: &Places) -> Result<Status, Failure> {
    let device = kernel::device_name(places.vni);
    let mut socket = Socket::open()?;
    let mut observed = kernel::observe(&mut socket, &device)?;
    observed.forwarding = forwarding::forwarded()?;
    observed.conflist = handoff::read(&places.cni_conf_dir)?;
    let mut status = Status {
        kernel: observed.device.clone(),
        daemon: daemon(&places.run_dir),
        node: None,
        underlay: observed.device.as_ref().and_then(|device| device.local),
        underlay_device: None,
        pod_ranges: own_ranges(&observed),
        peers: Vec::new(),
        sysctl: Record::read(&places.run_dir)?,
        handed_off: observed.conflist.is_some(),
        edge: edge::Seen::default(),
        wrong: Vec::new(),
        unclear: Vec::new(),
        device,
    };
    match Report::read(&places.run_dir)? {
        Some(report) => compare(&mut status, &mut socket, &observed, &report, places),
        None => status.wrong.push("vxland has not run here since the machine was started".to_owned()),
    }
    Ok(status)
}

fn compare(
    status: &mut Status,
    socket: &mut Socket,
    observed: &KernelState,
    report: &Report,
    places: &Places,
) {
    status.node = Some(report.settings.node.clone());
    status.pod_ranges = report.table.local.iter().copied().collect();
    status.wrong.extend(report.problems.iter().cloned());
    let held = Part::Overlay.to_string();
    status.wrong.extend(report.failed.get(&held).map(|why| format!("{held}: {why}")));
    let Some(local) = report.table.underlay else { return };
    status.underlay = Some(local);
    // As it is now: what vxland found may have gone.
    let underlay = match kernel::underlay(socket, &[local], places.underlay.as_deref()) {
        Ok(underlay) => underlay,
        Err(error) => {
            let text = error.to_string();
            if !status.wrong.iter().any(|wrong| wrong.ends_with(&text)) {
                status.wrong.push(text);
            }
            return;
        }
    };
    status.underlay_device = Some(underlay.device.clone());
    let Ok(mut wanted) = desired(&report.table, &underlay, &report.settings) else { return };
    wanted.state.conflist =
        Some(handoff::conflist(&report.settings.network, &status.device, &report.table.local, wanted.mtu));
    status.peers = peers(report, observed, &wanted.state);
    for step in plan(observed, &wanted.state) {
        let wrong = describe(&step, &status.device);
        // Why it is not put right, if the daemon has tried.
        let why = report.failed.get(&step.part().to_string());
        status.wrong.push(why.map_or(wrong.clone(), |why| format!("{wrong}: {why}")));
    }
    match edge::seen(socket, &report.table, &report.settings, &places.run_dir) {
        Ok((seen, wrong)) => {
            status.edge = seen;
            status.wrong.extend(wrong);
        }
        Err(error) => status.wrong.push(format!("edge: {error}")),
    }
    let filter = firewall::findings(&wanted.state, &status.device);
    status.wrong.extend(filter.missing);
    status.unclear = filter.unclear;
}

fn peers(report: &Report, observed: &KernelState, wanted: &KernelState) -> Vec<Peer> {
    // One with tunnels of either family is two ends.
    let peer = |(name, remote): (&NodeName, &heddle_model::RemoteNode)| {
        let range = |range: IpNetwork, beside: bool| {
            let neighbour = Neighbour { ip: range.network(), beside };
            let key = RouteKey { range, metric: remote_metric(Family::of(neighbour.ip)) };
            let route = wanted.routes.get(&key);
            PeerRange {
                range,
                neighbour: Found::of(observed.neighbours.get(&neighbour), wanted.neighbours.get(&neighbour)),
                route: Found::of(observed.routes.get(&key), route),
                direct: matches!(route, Some(Route::Direct { .. })),
            }
        };
        let end = |underlay, mac, beside, ranges| {
            let place = |entry: &&FdbEntry| entry.mac == mac && entry.beside == beside;
            let wanted = FdbEntry { beside, ..FdbEntry::new(mac, underlay) };
            let fdb = Found::of(observed.fdb.iter().find(place), Some(&wanted));
            Peer { node: name.clone(), underlay, mac, fdb, ranges }
        };
        let ranges = remote.ranges.iter().map(|one| range(*one, false)).collect();
        let mut ends = vec![end(remote.underlay, remote.mac, false, ranges)];
        if let Some(Beside { underlay, mac, range: one }) = &remote.beside {
            ends.push(end(*underlay, *mac, true, vec![range(*one, true)]));
        }
        ends
    };
    report.table.remotes.iter().flat_map(peer).collect()
}

fn own_ranges(observed: &KernelState) -> Vec<IpNetwork> {
    let own = observed.routes.iter().filter(|(_, route)| **route == Route::Unreachable);
    own.map(|(key, _)| key.range).collect()
}

/// What a step would put right.
fn describe(step: &Step, device: &str) -> String {
    let beside = kernel::beside_name(device);
    let device = if step.part() == Part::Beside { beside.as_str() } else { device };
    match step {
        Step::CreateDevice(_) => format!("device {device} is missing"),
        Step::RecreateDevice(_) => format!("device {device} has other attributes than it should"),
        Step::ChangeDevice { from, to } => {
            let mut wrong = Vec::new();
            if from.mac != to.mac {
                wrong.push(format!("the MAC {} instead of {}", from.mac, to.mac));
            }
            if from.mtu != to.mtu {
                wrong.push(format!("the MTU {} instead of {}", from.mtu, to.mtu));
            }
            if !from.up {
                wrong.push("been set down".to_owned());
            }
            format!("device {device} has {}", wrong.join(", "))
        }
        Step::RemoveDevice | Step::RemoveBeside => format!("device {device} is left over"),
        Step::RemoveLeftover(name) => format!("device {name} is left over from another --vni"),
        Step::PutAddress { from: None, to } => format!("address {} of {device} is missing", to.ip),
        Step::PutAddress { to, .. } => format!("address {} of {device} has the wrong scope", to.ip),
        Step::RemoveAddress(address) => format!("address {} of {device} is left over", address.ip),
        Step::KeepAdvertisements(name) => {
            format!("router advertisements on {name} would be lost by forwarding")
        }
        Step::SwitchForwarding { family, .. } => format!("{family} forwarding is off"),
        Step::PutFdb { entry, moved: false } => {
            format!("fdb entry {} to {} is missing", entry.mac, entry.dst)
        }
        Step::PutFdb { entry, .. } => format!("fdb entry {} does not lead to {}", entry.mac, entry.dst),
        Step::RemoveFdb(entry) => format!("fdb entry {} to {} is left over", entry.mac, entry.dst),
        Step::PutNeighbour { neighbour, moved: false, .. } => {
            format!("neighbour {} is missing", neighbour.ip)
        }
        Step::PutNeighbour { neighbour, mac, .. } => {
            format!("neighbour {} does not have the MAC {mac}", neighbour.ip)
        }
        Step::RemoveNeighbour(neighbour) => format!("neighbour {} is left over", neighbour.ip),
        Step::AddRoute(key, _) => format!("route {} is missing", key.range),
        Step::ReplaceRoute(key, _) => format!("route {} leads elsewhere", key.range),
        Step::RemoveRoute(key, _) => format!("route {} is left over", key.range),
        Step::WriteConflist { replaces: false, .. } => format!("{} is missing", handoff::CONFLIST),
        Step::WriteConflist { .. } => format!("{} has other content than it should", handoff::CONFLIST),
        Step::Hold(why) => why.clone(),
    }
}

/// A file of a killed daemon says nothing: what counts is who holds the lock.
fn daemon(run_dir: &Path) -> Option<u32> {
    let running = heddle_daemon::run_dir::is_running(run_dir, "vxland").unwrap_or(false);
    let ready = || std::fs::read_to_string(run_dir.join("vxland.ready")).ok()?.trim().parse().ok();
    running.then(ready).flatten()
}

/// The status as people read it.
pub fn text(status: &Status) -> String {
    let mut out = String::new();
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let list = |ranges: &[IpNetwork]| ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    match &status.kernel {
        Some(device) => {
            let state = if device.up { "up" } else { "down" };
            let Device { vni, port, mtu, mac, .. } = device;
            let _ = writeln!(out, "{}  {state}  vni {vni}  port {port}  mtu {mtu}  mac {mac}", status.device);
        }
        None => {
            let _ = writeln!(out, "{}  absent", status.device);
        }
    }
    let daemon = status.daemon.map_or("not ready".to_owned(), |pid| format!("ready (pid {pid})"));
    let _ = writeln!(
        out,
        "node {}  underlay {} dev {}  pods {}  daemon {daemon}",
        or_none(status.node.as_ref().map(ToString::to_string)),
        or_none(status.underlay.map(|ip| ip.to_string())),
        or_none(status.underlay_device.clone()),
        list(&status.pod_ranges),
    );
    out.push_str(&status.edge.text());
    if !status.peers.is_empty() {
        out.push('\n');
        out.push_str(&table(&status.peers));
    }
    for (head, list) in [("wrong", &status.wrong), ("unclear", &status.unclear)] {
        if !list.is_empty() {
            let _ = writeln!(out, "\n{head}:");
            list.iter().for_each(|what| out.push_str(&format!("  - {what}\n")));
        }
    }
    out
}

fn table(peers: &[Peer]) -> String {
    let head = ["NODE", "UNDERLAY", "MAC", "FDB", "RANGE", "NEIGHBOUR", "ROUTE"].map(str::to_owned);
    let mut rows = vec![head];
    for peer in peers {
        let mut first = [
            peer.node.to_string(),
            peer.underlay.to_string(),
            peer.mac.to_string(),
            peer.fdb.word().to_owned(),
        ];
        if peer.ranges.is_empty() {
            let [a, b, c, d] = first.clone();
            rows.push([a, b, c, d, "-".into(), "-".into(), "-".into()]);
        }
        for range in &peer.ranges {
            let [a, b, c, d] = std::mem::take(&mut first);
            let straight = if range.direct { " (direct)" } else { "" };
            let (neighbour, route) =
                (range.neighbour.word().into(), format!("{}{straight}", range.route.word()));
            rows.push([a, b, c, d, range.range.to_string(), neighbour, route]);
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..7).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(out, "{}", cells.join("  ").trim_end());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{name, remote, settings, table as overlay, underlay};

    fn example() -> (Report, KernelState) {
        let table = overlay([("n2", remote(2, 2, 2)), ("n3", remote(3, 3, 3))]);
        let state = desired(&table, &underlay(), &settings()).unwrap().state;
        (Report { settings: settings(), table, problems: Vec::new(), failed: Default::default() }, state)
    }

    #[test]
    fn peers_show_what_is_missing_and_what_leads_elsewhere() {
        let (report, wanted) = example();
        let mut observed = wanted.clone();
        observed.fdb.pop_first();
        let (key, _) = observed.routes.iter().find(|(_, route)| **route != Route::Unreachable).unwrap();
        let key = *key;
        observed.routes.insert(key, Route::Via { gateway: None, source: None, onlink: false, beside: false });
        let shown = table(&peers(&report, &observed, &wanted));
        assert_eq!(
            shown,
            "NODE  UNDERLAY      MAC                FDB      RANGE               NEIGHBOUR  ROUTE\n\
             n2    192.168.77.2  02:00:00:00:00:02  missing  10.244.2.0/24       ok         wrong\n\
             \x20                                               fd00:10:244:2::/64  ok         ok\n\
             n3    192.168.77.3  02:00:00:00:00:03  ok       10.244.3.0/24       ok         ok\n\
             \x20                                               fd00:10:244:3::/64  ok         ok\n"
        );
    }

    #[test]
    fn every_step_reads_as_what_is_wrong() {
        let (_, wanted) = example();
        let mut observed = wanted.clone();
        observed.device.as_mut().unwrap().mtu = 1400;
        observed.forwarding.clear();
        observed.addresses.clear();
        observed.routes.pop_last();
        let wrong: Vec<String> =
            plan(&observed, &wanted).iter().map(|step| describe(step, "heddle.1")).collect();
        assert_eq!(
            wrong,
            [
                "device heddle.1 has the MTU 1400 instead of 1450",
                "address 10.244.1.0 of heddle.1 is missing",
                "address fd00:10:244:1:: of heddle.1 is missing",
                "ipv4 forwarding is off",
                "ipv6 forwarding is off",
                "route fd00:10:244:3::/64 is missing",
            ]
        );
    }

    #[test]
    fn text_and_json_agree_in_what_they_tell() {
        let (report, wanted) = example();
        let status = Status {
            device: "heddle.1".into(),
            kernel: wanted.device.clone(),
            daemon: Some(7),
            node: Some(name("n1")),
            underlay: report.table.underlay,
            underlay_device: Some("eth0".into()),
            pod_ranges: report.table.local.iter().copied().collect(),
            peers: peers(&report, &wanted, &wanted),
            sysctl: Record::default(),
            handed_off: true,
            edge: edge::Seen::default(),
            wrong: vec!["something".into()],
            unclear: vec!["something else".into()],
        };
        let text = text(&status);
        assert!(text.starts_with("heddle.1  up  vni 1  port 8472  mtu 1450  mac 02:"), "{text}");
        assert!(text.contains("node n1  underlay 192.168.77.1 dev eth0  pods 10.244.1.0/24 fd00:10:244:1::/64  daemon ready (pid 7)"), "{text}");
        assert!(text.ends_with("\nwrong:\n  - something\n\nunclear:\n  - something else\n"), "{text}");
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["kernel"]["mtu"], 1450);
        assert_eq!(json["peers"][0]["ranges"][1]["route"], "ok");
        assert_eq!(json["peers"][0]["mac"], "02:00:00:00:00:02");
    }
}
