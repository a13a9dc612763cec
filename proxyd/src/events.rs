//! Which events of the kernel concern services.

use heddle_netlink::monitor::{Event, Monitor};
use tokio::sync::Notify;

use crate::ebpf::POD_PREFIX;

/// Wakes the loop when a device comes, changes or goes, or an address. Pods' devices are not worth a pass:
/// there are many, and the dataplane looks after them when it tends.
pub async fn listen(mut monitor: Monitor, wake: &Notify) {
    loop {
        match monitor.next().await {
            Ok(event) if concerns(&event) => {
                tracing::trace!(?event, "devices changed");
                wake.notify_one();
            }
            Ok(_) => {}
            Err(error) => {
                // The regular pass goes on without it.
                tracing::error!("events of the kernel are no longer heard: {error}");
                return;
            }
        }
    }
}

fn concerns(event: &Event) -> bool {
    match event {
        Event::Link(_, link) => !link.name.starts_with(POD_PREFIX),
        Event::Addr(_, addr) => match addr.ip.ip() {
            std::net::IpAddr::V4(_) => true,
            std::net::IpAddr::V6(ip) => !ip.is_unicast_link_local(),
        },
        Event::Lost => true,
        Event::Route(..) | Event::Neigh(..) | Event::Fdb(..) | Event::Nft(_) => false,
    }
}
