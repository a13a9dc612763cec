//! Does kube-proxy run on this node?

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// Where it tells which of its modes it is in, unless it was configured otherwise.
const AT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);
const PATIENCE: Duration = Duration::from_millis(500);

/// By what it is seen, if it is. A container that shares the node's network but not its processes cannot see a process;
/// then its own answer tells.
pub fn running() -> Option<String> {
    process().map(|number| format!("process {number}")).or_else(|| {
        let mode = mode()?;
        ["iptables", "ipvs", "nftables", "userspace", "kernelspace"]
            .contains(&mode.as_str())
            .then(|| format!("it answers on {AT}, mode {mode}"))
    })
}

/// A process of this name in this network namespace.
fn process() -> Option<u32> {
    let own = fs::read_link("/proc/self/ns/net").ok()?;
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        let here = || fs::read_link(entry.path().join("ns/net")).is_ok_and(|netns| netns == own);
        (name.trim() == "kube-proxy" && here()).then_some(number)
    })
}

/// What is answered to `GET /proxyMode`; proxyd itself answers `ebpf`.
fn mode() -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&AT, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(b"GET /proxyMode HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    // Whatever came until then counts.
    let _ = stream.take(4096).read_to_end(&mut answer);
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    (head.split_whitespace().nth(1) == Some("200")).then(|| body.trim().to_owned())
}
