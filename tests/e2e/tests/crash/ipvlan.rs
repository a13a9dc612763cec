//! The same in mode ipvlan, where there is no host side by which a pod is found. Needs a kernel with ipvlan (`./x vm`),
//! where all is slower: hence the wide strides.

use heddle_netlink::NetNs;
use heddle_netlink::ipvlan::{self, Ipvlan, Mode};
use heddle_netlink::link::{self, VethEnd};
use serde_json::json;

use super::bench::Host;
use super::kill;
use super::world::World;

/// A host with the interface that is to be shared.
fn prepare(host: &Host) {
    let mut socket = host.socket();
    let end = |name| VethEnd { name, ..VethEnd::default() };
    link::create_veth(&mut socket, &end("lan0"), &end("lan1")).unwrap();
    let index = link::by_name(&mut socket, "lan0").unwrap().unwrap().index;
    link::set_up(&mut socket, index).unwrap();
}

fn world() -> World {
    World::prepared(prepare, |host| {
        let mut conf = host.conf();
        conf["mode"] = json!("ipvlan");
        conf["master"] = json!("lan0");
        conf["runDir"] = json!(host.data_dir().with_file_name("run"));
        conf
    })
}

/// `false`, and said so, where the kernel has no ipvlan.
fn is_possible() -> bool {
    let (host, ns) = (Host::new(), NetNs::create().unwrap());
    prepare(&host);
    let master = link::by_name(&mut host.socket(), "lan0").unwrap().unwrap().index;
    let probe = Ipvlan { name: "probe", master, mode: Mode::L2, mtu: None, ns: &ns };
    let possible = ipvlan::create(&mut host.socket(), &probe).is_ok();
    if !possible {
        heddle_lab::skip("this kernel has no ipvlan");
    }
    possible
}

#[test]
fn fault_041_kill_at_every_syscall_of_add_with_ipvlan() {
    if is_possible() {
        let moments = kill::add(89, world);
        assert!(moments > 2, "{moments}");
    }
}

#[test]
fn fault_042_kill_at_every_syscall_of_del_with_ipvlan() {
    if is_possible() {
        let moments = kill::del(67, world);
        assert!(moments > 2, "{moments}");
    }
}

#[test]
fn fault_043_kill_at_every_syscall_of_gc_with_ipvlan() {
    if is_possible() {
        let moments = kill::gc(89, world);
        assert!(moments > 2, "{moments}");
    }
}
