//! Forwarding, which pods need and hosts are born without.

use std::fs;

use heddle_netlink::sysctl::{self, Key};

use heddle_spec::Failure;

/// Switches forwarding on for the families that are asked for, where it is off.
pub fn ensure(v4: bool, v6: bool) -> Result<(), Failure> {
    if v4 {
        let key = Key::new(["net", "ipv4", "ip_forward"]);
        if sysctl::read(&key)? == "0" {
            sysctl::write(&key, "1")?;
        }
    }
    if v6 {
        let key = Key::ipv6_conf("all", "forwarding");
        if sysctl::read(&key)? == "0" {
            keep_router_advertisements();
            sysctl::write(&key, "1")?;
        }
    }
    Ok(())
}

/// Whether it is on, or [`ensure`] could switch it on.
pub fn check(v4: bool, v6: bool) -> Result<(), Failure> {
    let keys = [(v4, Key::new(["net", "ipv4", "ip_forward"])), (v6, Key::ipv6_conf("all", "forwarding"))];
    for (_, key) in keys.iter().filter(|(wanted, _)| *wanted) {
        if sysctl::read(key)? == "0" {
            sysctl::check_writable(key)?;
        }
    }
    Ok(())
}

/// A host that forwards no longer listens to router advertisements, and loses the default route that it
/// had from one, unless the uplink's `accept_ra` says 2 ("even if forwarding").
fn keep_router_advertisements() {
    let Ok(devices) = fs::read_dir("/proc/sys/net/ipv6/conf") else { return };
    for device in devices.flatten() {
        let Ok(name) = device.file_name().into_string() else { continue };
        // "all" would not reach the devices, and new ones (pods') shall not listen.
        if matches!(name.as_str(), "all" | "default" | "lo") {
            continue;
        }
        let key = Key::ipv6_conf(&name, "accept_ra");
        if sysctl::read(&key).is_ok_and(|value| value == "1") {
            // A device that goes away meanwhile needs nothing.
            drop(sysctl::write(&key, "2"));
        }
    }
}
