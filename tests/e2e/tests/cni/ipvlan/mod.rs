//! Mode ipvlan: a pod's interface shares one of the host's. Most of it needs a kernel with ipvlan, which Debian's are
//! (`./x vm`).

mod faults;
mod spoofing;
mod wiring;

use std::io::Read;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use heddle_netlink::ipvlan::{self, Ipvlan, Mode};
use heddle_netlink::link::{self, Link, Operational, VethEnd};
use heddle_netlink::nft::Nft;
use heddle_netlink::route::{self, Filter, Route, TABLE_LOCAL};
use heddle_netlink::{NetNs, Socket, Watch, addr};
use serde_json::{Value, json};

use super::bench::{Answer, Host, Pod};

/// A host on a network, and another machine there: its router.
struct Lan {
    host: Host,
    router: NetNs,
}

const ROUTER: [&str; 2] = ["192.168.50.1", "fd50::1"];
/// Behind the router.
const BEYOND: [&str; 2] = ["10.99.0.1", "fd99::1"];

impl Lan {
    /// `None`, and said so, where the kernel has no ipvlan.
    fn new() -> Option<Self> {
        let lan = Self::anywhere();
        if lan.supports_ipvlan() {
            return Some(lan);
        }
        heddle_lab::skip("this kernel has no ipvlan");
        None
    }

    /// On any kernel.
    fn anywhere() -> Self {
        let (host, router) = (Host::new(), NetNs::create().unwrap());
        let near = VethEnd { name: "lan0", ..VethEnd::default() };
        let far = VethEnd { name: "lan1", ns: Some(&router), ..VethEnd::default() };
        link::create_veth(&mut host.socket(), &near, &far).unwrap();
        set_up(&mut host.socket(), "lan0", &["192.168.50.2/24", "fd50::2/64"]);
        let mut socket = Socket::open_in(&router).unwrap();
        set_up(&mut socket, "lan1", &["192.168.50.1/24", "fd50::1/64"]);
        set_up(&mut socket, "lo", &["10.99.0.1/32", "fd99::1/128"]);
        let mut watch = host.ns.run(Watch::open).unwrap().unwrap();
        let mut socket = host.socket();
        let stands = watch.until(patient(), || {
            let near = link::by_name(&mut socket, "lan0")?;
            let routes = route::list(&mut socket, &Filter { table: Some(TABLE_LOCAL), ..Filter::default() })?;
            let own: IpAddr = "fd50::2".parse().unwrap();
            Ok(near.is_some_and(|near| near.operational == Operational::Up)
                && routes.iter().any(|route| route.dst.ip() == own))
        });
        assert!(stands.unwrap(), "workers of the kernel complete a device and its IPv6 routes");
        Self { host, router }
    }

    fn supports_ipvlan(&self) -> bool {
        let (mut socket, scratch) = (self.host.socket(), NetNs::create().unwrap());
        let master = by_name(&mut socket, "lan0").index;
        let probe = Ipvlan { name: "probe", master, mode: Mode::L2, mtu: None, ns: &scratch };
        match ipvlan::create(&mut socket, &probe) {
            Ok(()) => link::delete_by_name(&mut Socket::open_in(&scratch).unwrap(), "probe").is_ok(),
            Err(_) => false,
        }
    }

    fn run_dir(&self) -> PathBuf {
        self.host.data_dir().with_file_name("run")
    }

    /// Pods are on the network itself.
    fn l2(&self) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "shared", "type": "heddle", "mode": "ipvlan", "master": "lan0",
            "runDir": self.run_dir(),
            "ipam": {
                "type": "host-local", "dataDir": self.host.data_dir(),
                "ranges": [
                    [{"subnet": "192.168.50.0/24", "rangeStart": "192.168.50.10", "rangeEnd": "192.168.50.20"}],
                    [{"subnet": "fd50::/64", "rangeStart": "fd50::10", "rangeEnd": "fd50::20"}]
                ],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
            }
        })
    }

    /// Pods have ranges of their own, which the router knows to be behind the host.
    fn l3(&self, mode: &str) -> Value {
        let mut conf = self.l2();
        conf["ipvlanMode"] = json!(mode);
        conf["ipam"]["ranges"] = json!([[{"subnet": "10.60.1.0/24"}], [{"subnet": "fd60::/64"}]]);
        let mut socket = Socket::open_in(&self.router).unwrap();
        let index = by_name(&mut socket, "lan1").index;
        for (range, host) in [("10.60.1.0/24", "192.168.50.2"), ("fd60::/64", "fd50::2")] {
            let route = Route::via(range.parse().unwrap(), host.parse().unwrap(), index);
            route::replace(&mut socket, &route).unwrap();
        }
        let mut socket = self.host.socket();
        let index = by_name(&mut socket, "lan0").index;
        for (any, router) in [("0.0.0.0/0", ROUTER[0]), ("::/0", ROUTER[1])] {
            let route = Route::via(any.parse().unwrap(), router.parse().unwrap(), index);
            route::replace(&mut socket, &route).unwrap();
        }
        conf
    }

    fn records(&self) -> usize {
        std::fs::read_dir(self.run_dir().join("ipvlan")).map_or(0, Iterator::count)
    }

    /// Nothing of a pod is left, on the host or in its namespace.
    fn assert_gone(&self, pod: &Pod) {
        assert!(self.host.leases().is_empty(), "{:?}", self.host.leases());
        assert_eq!(self.records(), 0);
        let links: Vec<_> =
            link::list(&mut pod.socket()).unwrap().into_iter().map(|link| link.name).collect();
        assert_eq!(links, ["lo"]);
        assert!(Nft::open_in(&pod.ns).unwrap().tables().unwrap().is_empty());
    }
}

fn by_name(socket: &mut Socket, name: &str) -> Link {
    link::by_name(socket, name).unwrap().unwrap_or_else(|| panic!("there is no {name}"))
}

fn set_up(socket: &mut Socket, name: &str, addresses: &[&str]) {
    let index = by_name(socket, name).index;
    for address in addresses {
        let own = addr::Addr { nodad: true, ..addr::Addr::new(index, address.parse().unwrap()) };
        addr::add(socket, &own).unwrap();
    }
    link::set_up(socket, index).unwrap();
}

fn patient() -> Duration {
    heddle_lab::patient(Duration::from_secs(5))
}

/// A connection is made and closed.
fn connect(from: &NetNs, at: &NetNs, address: &str) {
    let address: IpAddr = address.parse().unwrap();
    let listener = at.run(|| TcpListener::bind((address, 0))).unwrap().unwrap();
    let to = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || drop(listener.accept().unwrap()));
    from.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, patient()).unwrap_or_else(|e| panic!("{to}: {e}"));
        stream.read_to_end(&mut Vec::new()).unwrap();
    })
    .unwrap();
    server.join().unwrap();
}

fn refused(answer: &Answer, code: u64, words: &str) {
    assert!(answer.code() == code && answer.msg().contains(words), "{code} {words:?}: {answer:?}");
}
