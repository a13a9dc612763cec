//! Which events of the kernel concern the overlay.

use std::collections::BTreeSet;

use heddle_netlink::link::Link;
use heddle_netlink::monitor::{Event, Turn};
use heddle_netlink::route::{self, Kind, Route};

use crate::kernel::beside_name;

/// How the names of pods' devices on the host begin.
pub const POD_PREFIX: &str = "hdl";

/// Tells events that may have changed what vxland wants to be from the rest: on a node where pods come and
/// go there are many, and a look at the kernel takes 0.2 s where there are 5,000 nodes.
#[derive(Debug)]
pub struct Filter {
    /// The VXLAN devices.
    devices: [String; 2],
    /// Their indexes, as they were last told.
    indexes: BTreeSet<u32>,
    /// Indexes of pods' devices.
    pods: BTreeSet<u32>,
}

impl Filter {
    /// `links`: the devices that there are.
    pub fn new(device: String, links: &[Link]) -> Self {
        let devices = [beside_name(&device), device];
        let mut filter = Self { devices, indexes: BTreeSet::new(), pods: BTreeSet::new() };
        for link in links {
            filter.link(Turn::New, link);
        }
        filter
    }

    /// Whether the event asks for a look at the kernel. Our own changes do too; the look then finds nothing.
    pub fn concerns(&mut self, event: &Event) -> bool {
        match event {
            Event::Link(turn, link) => self.link(*turn, link),
            // The node's own address may be on any device but a pod's.
            Event::Addr(_, addr) => !self.pods.contains(&addr.link),
            Event::Route(_, route) => route.protocol == route::PROTOCOL_HEDDLE && self.concerns_route(route),
            Event::Neigh(_, neigh) => self.is_ours(neigh.link),
            Event::Fdb(_, entry) => self.is_ours(entry.link),
            // Firewalls are rewritten all the time: the regular look is soon enough to warn of them.
            Event::Nft(_) => false,
            Event::Lost => true,
        }
    }

    /// Remembers whose index it is. Of devices only pods' are no concern: the underlay may be any, and so may
    /// one that is in the way.
    fn link(&mut self, turn: Turn, link: &Link) -> bool {
        if link.name.starts_with(POD_PREFIX) {
            match turn {
                Turn::New => self.pods.insert(link.index),
                Turn::Gone => self.pods.remove(&link.index),
            };
            return false;
        }
        if turn == Turn::New && self.devices.contains(&link.name) {
            self.indexes.insert(link.index);
        } else {
            self.indexes.remove(&link.index);
        }
        true
    }

    fn is_ours(&self, link: u32) -> bool {
        self.indexes.contains(&link)
    }

    fn concerns_route(&self, route: &Route) -> bool {
        // Straight routes are on the underlay device, whichever that is.
        route.kind == Kind::Unreachable || route.link.is_none_or(|link| !self.pods.contains(&link))
    }
}

#[cfg(test)]
mod tests {
    use heddle_netlink::addr::Addr;
    use heddle_netlink::fdb::Fdb;
    use heddle_netlink::link::Operational;
    use heddle_netlink::neigh::Neigh;

    use super::*;
    use crate::fake::{ip, net};

    fn link(index: u32, name: &str) -> Link {
        Link { up: true, lower_up: true, operational: Operational::Up, mtu: 1500, ..Link::new(index, name) }
    }

    #[test]
    fn pods_come_and_go_without_a_look_and_the_overlay_does_not() {
        let links = [link(1, "lo"), link(2, "eth0"), link(7, "heddle.1"), link(9, "hdl0123456789ab")];
        let mut filter = Filter::new("heddle.1".into(), &links);
        let mut concerns = |event: Event| filter.concerns(&event);
        let neigh = |link| Event::Neigh(Turn::Gone, Neigh::new(link, ip("10.244.2.0"), [2; 6]));
        let route = |link| Event::Route(Turn::Gone, Route::via(net("10.244.2.0/24"), ip("10.244.2.0"), link));
        let fdb = |link| Event::Fdb(Turn::Gone, Fdb::new(link, [2; 6], ip("192.168.77.2")));
        let addr = |link| Event::Addr(Turn::New, Addr::new(link, net("192.168.77.1/24")));
        for event in [neigh(7), route(7), fdb(7), addr(7), addr(2), Event::Lost] {
            assert!(concerns(event.clone()), "{event:?}");
        }
        for event in [neigh(9), route(9), fdb(2), addr(9), Event::Nft("kube-proxy".into())] {
            assert!(!concerns(event.clone()), "{event:?}");
        }
        let unreachable = Route { kind: Kind::Unreachable, ..Route::new(net("10.244.1.0/24")) };
        assert!(concerns(Event::Route(Turn::Gone, unreachable)));
        let foreign = Route { protocol: route::PROTOCOL_BOOT, ..Route::on_link(net("10.9.0.0/16"), 7) };
        assert!(!concerns(Event::Route(Turn::New, foreign)));

        assert!(!concerns(Event::Link(Turn::New, Box::new(link(10, "hdlffffffffffff")))));
        assert!(!concerns(addr(10)));
        assert!(concerns(Event::Link(Turn::New, Box::new(link(2, "eth0")))));
        // Made anew, with another index; the old one may be a pod's by now.
        assert!(concerns(Event::Link(Turn::Gone, Box::new(link(7, "heddle.1")))));
        assert!(!concerns(fdb(7)));
        assert!(concerns(Event::Link(Turn::New, Box::new(link(11, "heddle.1")))));
        assert!(concerns(fdb(11)));
    }
}
