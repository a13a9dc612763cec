//! What the socket hooks cost a connect(2). The kernel has no test run for them, so the call itself is measured,
//! in a cgroup with the hooks and outside of it.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use heddle_lab::Lab;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrStorage, connect, getpeername, socket,
};

use crate::cpu;
use crate::outside::outside;
use crate::samples::{Case, Samples, interleaved};
use crate::stage::{Stage, Where, backend, cluster};
use crate::table::Table;

const ROUNDS: usize = 15;
const SOCKETS: u32 = 10_000;

pub fn run() -> Result<()> {
    println!(
        "Nanoseconds of processor time for socket(), connect(), close() of UDP, which sends nothing; {ROUNDS} \
         interleaved rounds of {SOCKETS} sockets. `no hook`: outside the cgroup.\n"
    );
    let lab = Lab::builder().nodes(1).clients(0).build()?;
    let node = lab.node(1);
    ensure!(node.cgroup().is_threaded(), "no thread can be put into the cgroup of a node here");
    let stage = Stage::build(node)?;
    // The node sees its own cgroup there.
    node.enter(|| stage.attach_sockets(Path::new("/sys/fs/cgroup")))??;
    let mut table = Table::new(&["", "", "ns", "min-max", "more than without", "ratio"]);
    for v4 in [true, false] {
        let (pod, service) = (backend(v4), cluster(v4, Where::Here));
        let mut cases = [
            Case::new(|| outside(node, || pinned(|| batch(pod)))),
            Case::new(|| node.enter(|| pinned(|| batch(pod)))?),
            Case::new(|| node.enter(|| pinned(|| batch(service)))?),
        ];
        ensure!(
            node.enter(|| peer(service))?? == service,
            "getpeername does not answer the service's address"
        );
        let samples = interleaved(ROUNDS, &mut cases)?;
        let family = if v4 { "IPv4" } else { "IPv6" };
        let labels = ["no hook", "hook, not ours", "hook, service translated"];
        for (label, sample) in labels.iter().zip(&samples) {
            row(&mut table, family, label, sample, &samples[0]);
        }
    }
    table.print();
    Ok(())
}

fn row(table: &mut Table, family: &str, label: &str, samples: &Samples, base: &Samples) {
    table.row([
        family.into(),
        label.into(),
        format!("{:.0}", samples.median()),
        samples.spread(0),
        format!("{:+.0}", samples.minus(base).median()),
        format!("{:.2}", samples.median() / base.median()),
    ]);
}

fn pinned(measure: impl FnOnce() -> Result<f64> + Send) -> Result<f64> {
    let mut sample = 0.0;
    cpu::pinned(|| {
        sample = measure()?;
        Ok(())
    })?;
    Ok(sample)
}

fn one(to: SocketAddr) -> nix::Result<std::os::fd::OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    match to {
        SocketAddr::V4(to) => connect(fd.as_raw_fd(), &SockaddrIn::from(to))?,
        SocketAddr::V6(to) => connect(fd.as_raw_fd(), &SockaddrIn6::from(to))?,
    }
    Ok(fd)
}

/// Nanoseconds a socket.
fn batch(to: SocketAddr) -> Result<f64> {
    let start = cpu::used()?;
    for _ in 0..SOCKETS {
        one(to).with_context(|| format!("cannot connect to {to}"))?;
    }
    Ok((cpu::used()? - start).as_nanos() as f64 / f64::from(SOCKETS))
}

fn peer(to: SocketAddr) -> Result<SocketAddr> {
    let fd = one(to).with_context(|| format!("cannot connect to {to}"))?;
    let peer: SockaddrStorage = getpeername(fd.as_raw_fd())?;
    let v4 = peer.as_sockaddr_in().map(|addr| SocketAddr::from((addr.ip(), addr.port())));
    let v6 = peer.as_sockaddr_in6().map(|addr| SocketAddr::from((addr.ip(), addr.port())));
    v4.or(v6).context("a peer of neither family")
}
