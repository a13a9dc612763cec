//! Which events of the kernel concern the overlay.

use heddle_netlink::monitor::{Event, Turn};
use heddle_netlink::route::{self, Kind, Route};

/// How the names of pods' devices on the host begin.
pub const POD_PREFIX: &str = "hdl";

/// Tells events that may have changed what vxland wants to be from the rest: a node where pods come and go
/// sees many.
#[derive(Debug)]
pub struct Filter {
    /// The VXLAN device, and its index as it was last told.
    device: String,
    index: Option<u32>,
}

impl Filter {
    pub fn new(device: String, index: Option<u32>) -> Self {
        Self { device, index }
    }

    fn is_ours(&self, link: u32) -> bool {
        self.index == Some(link)
    }

    /// Whether the event asks for a look at the kernel. Our own changes do too; the look then finds nothing.
    pub fn concerns(&mut self, event: &Event) -> bool {
        match event {
            Event::Link(turn, link) if link.name == self.device => {
                self.index = (*turn == Turn::New).then_some(link.index);
                true
            }
            // The underlay: its MTU, and whether it is there. Pods' devices are not worth a look.
            Event::Link(_, link) => !link.name.starts_with(POD_PREFIX),
            Event::Addr(_, addr) => {
                self.is_ours(addr.link) || !addr.ip.ip().is_loopback() && !is_link_local(addr)
            }
            Event::Route(_, route) => route.protocol == route::PROTOCOL_HEDDLE && self.concerns_route(route),
            // What the kernel finds out by itself about neighbours is neither permanent nor gone for good.
            Event::Neigh(_, neigh) => self.is_ours(neigh.link),
            Event::Fdb(_, entry) => self.is_ours(entry.link),
            // Firewalls are rewritten all the time: the regular look is soon enough to warn of them.
            Event::Nft(_) => false,
            Event::Lost => true,
        }
    }

    fn concerns_route(&self, route: &Route) -> bool {
        route.kind == Kind::Unreachable || route.link.is_none_or(|link| self.is_ours(link))
    }
}

fn is_link_local(addr: &heddle_netlink::addr::Addr) -> bool {
    matches!(addr.ip.ip(), std::net::IpAddr::V6(ip) if ip.is_unicast_link_local())
}
