//! The rules of a Service, each as its clients see it: pods by the socket hook and past it, the nodes' own processes
//! likewise, and clients outside by every node; TCP and UDP, IPv4 and IPv6.

mod affinity;
mod balancers;
mod loopback;
mod policies;
mod topology;
mod undefined;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use heddle_lab::addresses::cluster_ip;
use heddle_lab::{
    Ask, Backend, Cluster, Endpoint, Error, Place, Plan, Proto, Reply, Result, Service, eventually,
};

use crate::world::{BY, By, ask, list, servers, status, strict};

pub const FAMILIES: [bool; 2] = [true, false];
pub const TARGET: u16 = 8080;
pub const NODE_PORT: u16 = 30020;
const LIMIT: Duration = Duration::from_secs(20);
/// How long somebody waits before what he hears counts as silence. A refusal comes within a millisecond or two.
const SILENCE: Duration = Duration::from_millis(250);
/// The ClusterIP whose ports mark what the daemons have taken.
const MARKS: u8 = 250;

/// A load balancer's address, or an external one.
pub fn vip(last: u8, v4: bool) -> IpAddr {
    let six = format!("2001:db8:7::{last}");
    if v4 { [203, 0, 113, last].into() } else { six.parse().expect("an address") }
}

/// Three nodes; on node N a pod that answers as `pN` on [`TARGET`], and asks.
#[derive(Debug)]
pub struct Setting {
    pub pods: [Backend; 3],
    marks: Cell<u16>,
    // Last: pods and servers end before their lab.
    pub cluster: Cluster,
}

/// Somebody who asks.
#[derive(Clone, Debug)]
pub struct Asker {
    pub place: Place,
    /// The index of its node.
    pub node: usize,
    /// Whether a socket hook sees it.
    pub hooked: bool,
    pub is_pod: bool,
}

impl Asker {
    /// Whether somebody meets what it sends to an address of a node: what a process sends to its own node stays on
    /// `lo`, where there is the socket hook alone.
    pub fn reaches(&self, node: usize) -> bool {
        self.hooked || self.is_pod || self.node != node
    }
}

impl Setting {
    pub fn start(args: &[&str]) -> Result<Self> {
        let plan = Plan::default().proxyd_arg("--removal-delay").proxyd_arg("0");
        let plan = args.iter().fold(plan, |plan, arg| plan.proxyd_arg(arg));
        // A node's process that no hook sees can only send to a service if it has a way there.
        let cluster = Cluster::start_with(strict().default_route(true).clients(2), plan)?;
        let pod = |index: usize| cluster.backend(index, &format!("p{index}"), TARGET);
        Ok(Self { pods: [pod(1)?, pod(2)?, pod(3)?], marks: Cell::new(1), cluster })
    }

    /// The endpoints on these nodes.
    pub fn endpoints(&self, nodes: &[usize]) -> Vec<Endpoint> {
        nodes.iter().map(|index| self.pods[index - 1].endpoint()).collect()
    }

    /// Declares a service with the pods of these nodes behind it, and waits until every node carries it out.
    pub fn publish(&self, service: &Service, nodes: &[usize]) -> Result<()> {
        self.cluster.publish(service, &self.endpoints(nodes))?;
        self.carried_out()
    }

    /// Waits until every node has carried out all that is declared by now.
    pub fn carried_out(&self) -> Result<()> {
        // A daemon takes in order. Once it has the second mark, the pass that had the first is over.
        for _ in 0..2 {
            let port = self.marks.replace(self.marks.get() + 1);
            let mark =
                Service::new("mark").cluster_ip(cluster_ip(MARKS, true)).port("mark", Proto::Tcp, port, port);
            self.cluster.manifests().service(&mark)?;
            let address = format!("{}/tcp", SocketAddr::new(cluster_ip(MARKS, true), port));
            for node in self.cluster.nodes() {
                eventually(&format!("mark {port} on {}", node.name()), LIMIT, || {
                    let status = status(node)?;
                    Ok(list(&status["frontends"]).iter().any(|f| f["address"] == address.as_str()))
                })?;
            }
        }
        Ok(())
    }

    /// The pod of a node, hooked and not.
    pub fn pod(&self, node: usize) -> Result<[Asker; 2]> {
        let place = self.pods[node - 1].pod().place();
        self.both(place, node, true)
    }

    /// The processes of a node, hooked and not.
    pub fn host(&self, node: usize) -> Result<[Asker; 2]> {
        self.both(self.cluster.node(node).place(), node, false)
    }

    fn both(&self, place: &Place, node: usize, is_pod: bool) -> Result<[Asker; 2]> {
        // The same network, and the group of a machine that is no node.
        let elsewhere = self.cluster.client().in_netns("unhooked", Path::new(&place.net().path()))?;
        Ok([(place.clone(), true), (elsewhere, false)].map(|(place, hooked)| Asker {
            place,
            node,
            hooked,
            is_pod,
        }))
    }

    /// Everybody inside.
    pub fn insiders(&self) -> Result<Vec<Asker>> {
        let mut all = Vec::new();
        for index in 1..=3 {
            all.extend(self.pod(index)?);
            all.extend(self.host(index)?);
        }
        Ok(all)
    }

    /// A client (1 is the first) sends to an address by a node.
    pub fn by_node(&self, client: usize, to: IpAddr, node: usize) -> Result<()> {
        let len = if to.is_ipv4() { 32 } else { 128 };
        let via = self.cluster.node(node).ip(to.is_ipv4());
        let place = self.cluster.clients()[client - 1].place();
        place.run(format!("ip route replace {to}/{len} via {via}").as_str()).map(drop)
    }

    /// Lets an address through the underlay, both families of it.
    pub fn admit(&self, last: u8) -> Result<()> {
        FAMILIES.iter().try_for_each(|v4| self.cluster.switch().admit(vip(last, *v4)))
    }

    /// Takes a service away.
    pub fn withdraw(&self, name: &str) -> Result<()> {
        self.cluster.manifests().remove(&format!("service-{name}.yaml"))?;
        self.cluster.manifests().remove(&format!("endpoints-{name}.yaml"))?;
        self.carried_out()
    }

    pub fn node_port(&self, node: usize, v4: bool) -> SocketAddr {
        (self.cluster.node(node).ip(v4), NODE_PORT).into()
    }
}

/// A service with ClusterIP number `number`, both families, port 80 of TCP and UDP.
pub fn service(name: &str, number: u8) -> Service {
    let service =
        Service::new(name).cluster_ip(cluster_ip(number, true)).cluster_ip(cluster_ip(number, false));
    service.port("tcp", Proto::Tcp, 80, TARGET).port("udp", Proto::Udp, 80, TARGET)
}

/// The same, published on every node.
pub fn published(name: &str, number: u8) -> Service {
    let service =
        Service::new(name).cluster_ip(cluster_ip(number, true)).cluster_ip(cluster_ip(number, false));
    let service = service.port("tcp", Proto::Tcp, 80, TARGET).node_port(NODE_PORT);
    service.port("udp", Proto::Udp, 80, TARGET).node_port(NODE_PORT)
}

pub fn cluster(number: u8, v4: bool) -> SocketAddr {
    (cluster_ip(number, v4), 80).into()
}

/// Asks until all of `wanted` have answered, and `times` at least: nobody else does. Gives the replies.
pub fn assert_only(to: SocketAddr, place: &Place, times: usize, wanted: &[&str]) -> Result<Vec<Reply>> {
    let wanted: BTreeSet<&str> = wanted.iter().copied().collect();
    let mut all = Vec::new();
    for by in BY {
        let who = format!("{} asks {to} by {by:?}", place.name());
        let mut replies = Vec::new();
        while replies.len() < times || servers(&replies) != wanted {
            assert!(replies.len() < times + 60, "{who}: {:?} of {wanted:?}", servers(&replies));
            let more = ask(1, by, to, place).map_err(|error| Error::Oracle(format!("{who}: {error}")))?;
            replies.extend(more);
            assert!(servers(&replies).is_subset(&wanted), "{who}: {:?}, not {wanted:?}", servers(&replies));
        }
        all.extend(replies);
    }
    Ok(all)
}

/// Only these answer a client outside, who is seen by his own address and port.
pub fn assert_kept(to: SocketAddr, client: &Place, times: usize, wanted: &[&str]) -> Result<()> {
    for reply in assert_only(to, client, times, wanted)? {
        assert_eq!(reply.client, reply.local, "{} asks {to}: its own address", client.name());
    }
    Ok(())
}

fn hears(by: By, to: SocketAddr, place: &Place, limit: Duration) -> Option<ErrorKind> {
    match by.ask(Ask::new(to).limit(limit), place) {
        Ok(reply) => panic!("{} asks {to} by {by:?}: {reply:?}", place.name()),
        Err(error) => error.kind(),
    }
}

/// Nobody answers, and nobody refuses.
pub fn assert_silence(to: SocketAddr, place: &Place) {
    for by in BY {
        let heard = hears(by, to, place, SILENCE);
        let silence = matches!(heard, Some(ErrorKind::TimedOut | ErrorKind::WouldBlock));
        assert!(silence, "{} asks {to} by {by:?}: {heard:?}", place.name());
    }
}

/// Who asks is told so at once: the error is this one.
pub fn assert_error(to: SocketAddr, place: &Place, wanted: ErrorKind) {
    for by in BY {
        let heard = hears(by, to, place, Duration::from_secs(2));
        assert_eq!(heard, Some(wanted), "{} asks {to} by {by:?}", place.name());
    }
}

/// A policy keeps somebody inside from the endpoints: an error to who is seen by a socket hook, silence to others.
pub fn assert_kept_away(to: SocketAddr, asker: &Asker) {
    if asker.hooked {
        assert_error(to, &asker.place, ErrorKind::HostUnreachable);
    } else {
        assert_silence(to, &asker.place);
    }
}
