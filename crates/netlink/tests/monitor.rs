//! The event stream tells what is done to the tables of its namespace.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use heddle_netlink::fdb::{self, Fdb};
use heddle_netlink::link::{self, Bridge};
use heddle_netlink::monitor::{Event, Monitor, Turn};
use heddle_netlink::neigh::{self, Neigh};
use heddle_netlink::nft::{Batch, Family, Nft};
use heddle_netlink::route::{self, Route};
use heddle_netlink::vxlan::{self, Vxlan};
use heddle_netlink::{NetNs, Socket};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];

async fn until(monitor: &mut Monitor, wanted: impl Fn(&Event) -> bool) {
    let waiting = async {
        loop {
            if wanted(&monitor.next().await.unwrap()) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("the event comes");
}

#[tokio::test]
async fn every_table_tells_of_its_changes() {
    let ns = NetNs::create().unwrap();
    let mut monitor = Monitor::open_in(&ns).unwrap();
    let mut socket = Socket::open_in(&ns).unwrap();
    link::create_bridge(&mut socket, &Bridge { name: "br0", ..Bridge::default() }).unwrap();
    until(&mut monitor, |e| matches!(e, Event::Link(Turn::New, link) if link.name == "br0")).await;
    let bridge = link::by_name(&mut socket, "br0").unwrap().unwrap().index;
    link::set_up(&mut socket, bridge).unwrap();
    let ours = Route::on_link("10.7.0.0/24".parse().unwrap(), bridge);
    route::add(&mut socket, &ours).unwrap();
    until(&mut monitor, |e| matches!(e, Event::Route(Turn::New, route) if *route == ours)).await;
    route::delete(&mut socket, &ours).unwrap();
    until(&mut monitor, |e| matches!(e, Event::Route(Turn::Gone, route) if route.dst == ours.dst)).await;
    let peer = Neigh::new(bridge, "10.7.0.9".parse().unwrap(), MAC);
    neigh::add(&mut socket, &peer).unwrap();
    until(&mut monitor, |e| matches!(e, Event::Neigh(Turn::New, neigh) if *neigh == peer)).await;
    let device = Vxlan { local: Some("10.7.0.1".parse().unwrap()), ..Vxlan::default() };
    vxlan::create(&mut socket, "vx", &device, None, None).unwrap();
    let index = link::by_name(&mut socket, "vx").unwrap().unwrap().index;
    let entry = Fdb::new(index, MAC, "10.7.0.2".parse().unwrap());
    fdb::add(&mut socket, &entry).unwrap();
    until(&mut monitor, |e| *e == Event::Fdb(Turn::New, entry.clone())).await;
    link::delete_by_name(&mut socket, "vx").unwrap();
    until(&mut monitor, |e| matches!(e, Event::Link(Turn::Gone, link) if link.name == "vx")).await;
    let mut batch = Batch::new();
    batch.add_table(Family::Inet, "heddle");
    Nft::open_in(&ns).unwrap().commit(&batch).unwrap();
    until(&mut monitor, |e| *e == Event::Nft("heddle".into())).await;
}

#[tokio::test]
async fn an_overflow_is_told() {
    let ns = NetNs::create().unwrap();
    let mut monitor = Monitor::open_in(&ns).unwrap();
    let mut socket = Socket::open_in(&ns).unwrap();
    link::create_bridge(&mut socket, &Bridge { name: "br0", ..Bridge::default() }).unwrap();
    let bridge = link::by_name(&mut socket, "br0").unwrap().unwrap().index;
    link::set_up(&mut socket, bridge).unwrap();
    for n in 0..20_000u32 {
        let dst = ipnetwork::IpNetwork::new((0x0a00_0000 + n).to_be_bytes().into(), 32).unwrap();
        route::add(&mut socket, &Route::on_link(dst, bridge)).unwrap();
    }
    until(&mut monitor, |e| *e == Event::Lost).await;
    // What was kept from before the overflow is read first; then it goes on.
    while tokio::time::timeout(Duration::from_millis(100), monitor.next()).await.is_ok() {}
    link::delete_by_name(&mut socket, "br0").unwrap();
    until(&mut monitor, |e| matches!(e, Event::Link(Turn::Gone, _))).await;
}
