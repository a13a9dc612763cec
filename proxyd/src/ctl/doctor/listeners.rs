//! Which ports the processes of this network namespace listen on, from /proc.

use std::collections::BTreeMap;
use std::fs;

use heddle_model::Protocol;

/// A port on which somebody listens, and the number of the socket.
pub type Listeners = BTreeMap<(u16, Protocol), u64>;

/// All of them.
pub fn all() -> Listeners {
    let mut found = Listeners::new();
    for (file, proto, state) in [
        ("tcp", Protocol::Tcp, "0A"),
        ("tcp6", Protocol::Tcp, "0A"),
        ("udp", Protocol::Udp, "07"),
        ("udp6", Protocol::Udp, "07"),
    ] {
        let text = fs::read_to_string(format!("/proc/net/{file}")).unwrap_or_default();
        found.extend(of(&text, proto, state));
    }
    found
}

/// Of one table (proc_net_tcp in the kernel's documentation): `sl local_address rem_address st ... inode`.
fn of(text: &str, proto: Protocol, state: &str) -> Listeners {
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let port = u16::from_str_radix(fields.get(1)?.rsplit_once(':')?.1, 16).ok()?;
        (*fields.get(3)? == state).then_some(((port, proto), fields.get(9)?.parse().ok()?))
    };
    text.lines().skip(1).filter_map(line).collect()
}

/// The process that has a socket: its name and number.
pub fn process(inode: u64) -> Option<String> {
    let wanted = format!("socket:[{inode}]");
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(files) = fs::read_dir(entry.path().join("fd")) else { continue };
        let has =
            |file: fs::DirEntry| fs::read_link(file.path()).is_ok_and(|to| to.as_os_str() == wanted.as_str());
        if files.flatten().any(has) {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            return Some(format!("{} ({pid})", name.trim()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_read() {
        let text =
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:7532 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1 0 100
   1: 0100007F:7533 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 12346 1 0 100
";
        assert_eq!(of(text, Protocol::Tcp, "0A"), [((30002, Protocol::Tcp), 12345)].into());
        assert!(of("", Protocol::Udp, "07").is_empty());
    }
}
