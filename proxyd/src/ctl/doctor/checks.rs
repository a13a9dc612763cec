//! The checks, each with what it found and the way out.

use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

use heddle_bpf::{SocketHook, TcHook};
use heddle_model::{PortMatch, ProtoMatch};
use heddle_netlink::sysctl;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::{Check, Seen, listeners};
use crate::ebpf::place::{cgroup_root, check_release, is_cgroup2};
use crate::{leftovers, sockets, wall_clock};

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn setting(name: &[&str]) -> Option<String> {
    sysctl::read(&sysctl::Key::new(name.iter().copied())).ok().map(|value| value.trim().to_owned())
}

/// What must be there before proxyd can run.
pub fn surroundings(bpf_root: &Path) -> Vec<Check> {
    let release = read("/proc/sys/kernel/osrelease");
    let mut checks = vec![match check_release(&release) {
        Ok(()) => Check::ok("kernel", format!("{} has tcx", release.trim())),
        Err(lack) => Check::fail("kernel", lack.to_string(), "boot a newer kernel"),
    }];
    let is_bpffs = statfs(bpf_root).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC);
    let at = bpf_root.display();
    checks.push(match is_bpffs {
        true => Check::ok("bpffs", format!("{at} is a BPF file system")),
        false => {
            Check::fail("bpffs", format!("{at} is none"), format!("mount -t bpf bpf {at}, or --bpf-root"))
        }
    });
    let mounts = read("/proc/self/mountinfo");
    checks.push(match cgroup_root(None, &mounts, is_cgroup2) {
        Ok(dir) => match mounts.lines().filter(|line| line.contains(" - cgroup2 ")).count() {
            0 | 1 => Check::ok("cgroup2", format!("{} is its root", dir.display())),
            count => Check::ok(
                "cgroup2",
                format!("mounted {count} times; {} is used (all show one hierarchy)", dir.display()),
            ),
        },
        Err(lack) => Check::fail("cgroup2", lack.to_string(), "sockets are not translated without it"),
    });
    for (family, name) in [
        ("ipv4", ["net", "ipv4", "ip_forward"].as_slice()),
        ("ipv6", &["net", "ipv6", "conf", "all", "forwarding"]),
    ] {
        if let Some(value) = setting(name).filter(|value| value == "0") {
            let name = name.join(".");
            checks.push(Check::fail(
                "forwarding",
                format!("{name} is {value}: {family} packets are not sent on to pods and other nodes"),
                format!("sysctl -w {name}=1; vxland does it where it runs"),
            ));
        }
    }
    checks.push(clock());
    checks
}

/// A clock that was never set is of no concern to the datapath, but to everything around it.
fn clock() -> Check {
    /// 2026-01-01.
    const BUILT: u64 = 1_767_225_600;
    let now = wall_clock::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    match now < BUILT {
        true => Check::warn(
            "clock",
            "it shows a time before this program was built",
            "set it: certificates and logs need it",
        ),
        false => Check::ok("clock", "it is set; flows and affinity do not depend on it"),
    }
}

/// Another proxy beside this one, or what is left of it.
pub fn kube_proxy(bpf_root: &Path) -> Check {
    match leftovers::look(bpf_root, true) {
        Ok(found) if found.is_empty() => Check::ok("kube-proxy", "it does not run, and has left nothing"),
        Ok(found) => {
            let what = match (&found.running, found.summary()) {
                (Some(by), summary) if summary.is_empty() => format!("it runs ({by})"),
                (Some(by), summary) => format!("it runs ({by}): {summary}"),
                (None, summary) => format!("it has left {summary}"),
            };
            Check::warn("kube-proxy", what, found.advice())
        }
        Err(error) => Check::warn("kube-proxy", format!("cannot look for it: {error}"), "run as root"),
    }
}

/// The daemon, as it tells of itself.
pub fn daemon(seen: &Seen) -> Vec<Check> {
    let Some(told) = &seen.told else {
        let hint = "start it; what the kernel has works on, and changes are not followed";
        return vec![Check::fail("proxyd", "it does not run", hint)];
    };
    let mut checks = vec![match (told.synced, told.ready) {
        (true, true) => Check::ok("proxyd", "it runs, and all has been as it must be"),
        (false, _) => Check::fail("proxyd", "it waits for its sources", "the troubles below say for which"),
        _ => Check::fail("proxyd", "it runs, and is not ready yet", "the troubles below say why"),
    }];
    for (object, trouble) in &told.troubles {
        checks.push(Check::warn(
            "trouble",
            format!("{object}: {}", trouble.what),
            format!("for {} s", trouble.seconds),
        ));
    }
    checks
}

/// What the kernel has.
pub fn datapath(seen: &Seen, run_dir: &Path) -> Vec<Check> {
    let Some(view) = &seen.view else {
        return vec![Check::fail("datapath", "nothing is there", "proxyd makes it when it starts")];
    };
    let mut checks = hooks(seen);
    checks.extend(devices(seen));
    checks.push(node_ports(seen));
    checks.push(snat_ports(view.config.snat_port_min, view.config.snat_port_max));
    checks.extend(maps(seen));
    checks.push(match sockets::ask::hello(run_dir) {
        Ok(_) => Check::ok("stale sockets", "the helper answers: sockets of removed backends are ended at once"),
        Err(error) => Check::warn(
            "stale sockets",
            error.to_string(),
            "start proxyd-sockets: without it such a socket of a pod learns of it by its next packet, or never",
        ),
    });
    let down: Vec<&str> =
        view.table.nodes.iter().filter(|(_, node)| node.down).map(|(name, _)| name.0.as_ref()).collect();
    if !down.is_empty() {
        checks.push(Check::warn(
            "nodes",
            format!("down: {}", down.join(", ")),
            "their backends take no new flows",
        ));
    }
    checks
}

fn hooks(seen: &Seen) -> Vec<Check> {
    let Some(view) = &seen.view else { return Vec::new() };
    let attached = |program: &str| view.links.iter().any(|link| link.program == program && !link.is_dead());
    let wanted = SocketHook::ALL
        .map(SocketHook::name)
        .into_iter()
        .chain([TcHook::UnderlayIn.name(), TcHook::UnderlayOut.name()]);
    let overlay = (view.config.vxlan_ifindex != 0).then(|| TcHook::OverlayIn.name());
    let missing: Vec<&str> = wanted.chain(overlay).filter(|program| !attached(program)).collect();
    vec![match missing.is_empty() {
        true => Check::ok(
            "hooks",
            format!("{} programs are attached", view.links.iter().filter(|link| !link.is_dead()).count()),
        ),
        false => Check::fail(
            "hooks",
            format!("attached nowhere: {}", missing.join(", ")),
            "proxyd attaches them again within 30 s; the troubles say why not",
        ),
    }]
}

fn devices(seen: &Seen) -> Vec<Check> {
    let Some(view) = &seen.view else { return Vec::new() };
    let config = &view.config;
    let find = |index: u32| seen.links.iter().find(|link| link.index == index && index != 0);
    let mut checks = Vec::new();
    let underlay = find(config.underlay_ifindex);
    checks.push(match underlay {
        Some(link) if link.up => Check::ok("underlay", format!("{}, MTU {}", link.name, link.mtu)),
        Some(link) => {
            Check::fail("underlay", format!("{} is down", link.name), format!("ip link set {} up", link.name))
        }
        None => Check::fail(
            "underlay",
            "no device",
            "no device has this node's address: is --node-name right? or name the device by --underlay",
        ),
    });
    match (find(config.vxlan_ifindex), underlay) {
        (None, _) => checks.push(Check::warn(
            "overlay",
            "no VXLAN device",
            "vxland makes it; until then other nodes' backends are reached by snat",
        )),
        (Some(link), _) if !link.up => checks.push(Check::fail(
            "overlay",
            format!("{} is down", link.name),
            format!("ip link set {} up", link.name),
        )),
        (Some(link), Some(underlay)) if link.mtu + 50 > underlay.mtu => checks.push(Check::warn(
            "overlay",
            format!(
                "{} has MTU {}, and {} carries {}: large packets are lost or fragmented",
                link.name, link.mtu, underlay.name, underlay.mtu
            ),
            format!("ip link set {} mtu {}", link.name, underlay.mtu.saturating_sub(50)),
        )),
        (Some(link), _) => checks.push(Check::ok("overlay", format!("{}, MTU {}", link.name, link.mtu))),
    }
    checks
}

/// A process that listens on a node port hears nothing of it.
fn node_ports(seen: &Seen) -> Check {
    let listening = listeners::all();
    let ports =
        seen.view.iter().flat_map(|view| view.table.frontends.iter()).filter(|(at, _)| at.is_node_port());
    let mut taken = Vec::new();
    for (at, frontend) in ports {
        let (PortMatch::Port(port), ProtoMatch::Proto(proto)) = (at.port, at.proto) else { continue };
        if let Some(inode) = listening.get(&(port, proto)) {
            let who = listeners::process(*inode).unwrap_or_else(|| "a process".into());
            taken.push(format!("{who} listens on {port}/{proto}, a node port of {}", frontend.name));
        }
    }
    // A port is one of either family.
    taken.dedup();
    match taken.is_empty() {
        true => Check::ok("node ports", "no process listens on one"),
        false => Check::warn(
            "node ports",
            taken.join("; "),
            "the service answers, and not the process: give one of them another port",
        ),
    }
}

fn snat_ports(min: u16, max: u16) -> Check {
    let range = setting(&["net", "ipv4", "ip_local_port_range"]).unwrap_or_default();
    let mut numbers = range.split_whitespace().filter_map(|number| number.parse::<u16>().ok());
    let (low, high) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match low <= max && min <= high {
        true => Check::warn(
            "snat ports",
            format!(
                "{min}-{max} are also given to this node's own connections (ip_local_port_range {low}-{high})"
            ),
            "leave a thousand ports free: sysctl -w net.ipv4.ip_local_port_range='32768 60999'",
        ),
        false => Check::ok("snat ports", format!("{min}-{max}, and none of the node's own")),
    }
}

/// How full, in percent, is much.
const FULL: u64 = 80;

fn maps(seen: &Seen) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut bytes = 0;
    for map in seen.gauges.iter().flat_map(|gauges| &gauges.maps) {
        bytes += map.bytes;
        let (Some(entries), size) = (map.entries, u64::from(map.max_entries)) else { continue };
        // These make room by themselves.
        let lru = ["ct_new", "affinity", "sock_rev", "sock_udp", "frags"].contains(&map.name.as_str());
        if lru || size == 0 || entries * 100 < size * FULL {
            continue;
        }
        let option = match map.name.as_str() {
            "frontends" | "services" => "raise --max-frontends",
            "choices" => "raise --max-backends",
            "ct" => "raise --max-flows",
            _ => "it grows no further",
        };
        checks.push(Check::warn("maps", format!("{} holds {entries} of {size}", map.name), option));
    }
    if checks.is_empty() {
        checks.push(Check::ok(
            "maps",
            format!("none is nearly full; {} MiB of kernel memory in all", bytes >> 20),
        ));
    }
    checks
}
