//! Counts the changes of links, addresses, routes and rules: a flow goes the way that it went before until there was one
//! ([`Routes`]).
//!
//! A thread of its own does it, as nothing else may hold it up. While it lives the programs may trust the count for a
//! short time, [`LEASE`]; when the daemon is dead they ask the kernel again for each packet.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use heddle_bpf::Pins;
use heddle_ebpf_common::Routes;
use heddle_netlink::Watch;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::collect::now;
use crate::worker::Worker;

/// How long the count holds without a word from us.
const LEASE: Duration = Duration::from_secs(10);
/// How often we say it again.
const RENEWAL: Duration = Duration::from_secs(3);

/// The thread; it ends when this is dropped, and the programs ask the kernel again.
#[derive(Debug)]
pub(super) struct RouteCounter {
    _worker: Worker<UnixStream>,
}

impl RouteCounter {
    /// Starts it over the pinned map, in the network namespace of the calling thread.
    pub(super) fn start(pins: &Pins) -> Result<Self, heddle_bpf::Error> {
        let failed = |operation| {
            let path = pins.map("routes");
            move |source| heddle_bpf::Error::Pin { operation, path, source }
        };
        let (stop, stopped) =
            UnixStream::pair().map_err(failed("make the socket that ends the writer of"))?;
        let (pins_there, stopped) = (pins.clone(), OwnedFd::from(stopped));
        let work = move || {
            while let Err(error) = count(&pins_there, &stopped) {
                tracing::warn!(%error, "cannot watch the routes; the kernel is asked for each packet");
                let _ = write(&pins_there, |routes| routes.until = 0);
                if is_over(&stopped, RENEWAL) {
                    return;
                }
            }
        };
        let worker = Worker::start("routes", stop, work).map_err(failed("start the thread that writes"))?;
        Ok(Self { _worker: worker })
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Netlink(#[from] heddle_netlink::Error),
    #[error(transparent)]
    Bpf(#[from] heddle_bpf::Error),
}

/// Counts until it is to stop.
fn count(pins: &Pins, stopped: &OwnedFd) -> Result<(), Error> {
    // What happens from here on is not missed; what happened before is one change.
    let mut watch = Watch::of_ways()?;
    let mut changed = true;
    loop {
        write(pins, |routes| {
            routes.generation += u64::from(changed);
            routes.until = now() + LEASE.as_nanos() as u64;
        })?;
        changed = watch.changed(RENEWAL, stopped.as_fd())?;
        if is_over(stopped, Duration::ZERO) {
            write(pins, |routes| routes.until = 0)?;
            return Ok(());
        }
    }
}

/// Opened anew each time: maps of another size take the place of those that were there.
fn write(pins: &Pins, change: impl FnOnce(&mut Routes)) -> Result<(), heddle_bpf::Error> {
    let failed = |source| heddle_bpf::Error::Map { name: "routes", source: Box::new(source) };
    let mut map = pins.routes()?;
    let mut routes = map.get(&0, 0).map_err(failed)?;
    change(&mut routes);
    map.set(0, routes, 0).map_err(failed)
}

/// Waits so long whether the thread is to end.
fn is_over(stopped: &OwnedFd, patience: Duration) -> bool {
    let patience = PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO);
    poll(&mut [PollFd::new(stopped.as_fd(), PollFlags::POLLIN)], patience).is_ok_and(|count| count > 0)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use heddle_bpf::{Datapath, Sizes};
    use heddle_netlink::{Socket, link};

    use super::super::live::alone;
    use super::*;

    /// Waits until the map says so.
    fn until(pins: &Pins, met: impl Fn(&Routes) -> bool) -> Routes {
        let start = Instant::now();
        loop {
            let routes = pins.routes().unwrap().get(&0, 0).unwrap();
            if met(&routes) {
                return routes;
            }
            assert!(start.elapsed() < Duration::from_secs(10), "{routes:?}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_change_of_the_links_is_counted_and_a_dead_daemon_is_not_trusted() {
        alone("routes", |options| {
            let pins = Pins::new(&options.bpf_root);
            let sizes = Sizes { ct: 512, ct_new: 512, ..Sizes::default() };
            let datapath = Datapath::open(pins.clone(), &sizes).unwrap();
            let counter = RouteCounter::start(&datapath.pins).unwrap();
            let first = until(&pins, |routes| routes.until > now());
            assert!(first.until <= now() + LEASE.as_nanos() as u64);
            let mut socket = Socket::open().unwrap();
            let lo = link::by_name(&mut socket, "lo").unwrap().unwrap();
            link::set_up(&mut socket, lo.index).unwrap();
            let second = until(&pins, |routes| routes.generation > first.generation);
            drop(counter);
            let last = until(&pins, |routes| routes.until == 0);
            // Whoever comes next does not know what happened in between.
            drop(RouteCounter::start(&datapath.pins).unwrap());
            assert!(last.generation >= second.generation);
            until(&pins, |routes| routes.generation > last.generation && routes.until == 0);
        });
    }
}
