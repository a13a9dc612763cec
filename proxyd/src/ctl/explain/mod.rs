//! `proxyd explain`: which rule, which backend and why, or why not. Decided by the code of the programs
//! ([`heddle_ebpf_common::decide`]) over the maps that they read.

mod answer;
mod question;
mod tables;
mod text;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use heddle_bpf::Pins;
use heddle_ebpf_common::decide::{self, By, Choice, Found, Nodes, Origin, Refusal, Tables, Way};
use heddle_ebpf_common::{
    ADDR_CLUSTER_IP, ADDR_EXTERNAL, ADDR_NODE, ADDR_NODE_PORTS, ADDR_OVERLAY, Addr, AffinityKey,
    BACKEND_ACTIVE, BACKEND_DRAINING, BACKEND_FREE, Backend, CT_ANSWERED, CT_REPLY, Config,
    FRONTEND_EXTERNAL, FRONTEND_LOCAL, FRONTEND_SOURCES, Frontend, NODE_SELF, Tuple,
};
use heddle_model::Protocol;
use heddle_netlink::{Socket, link, route};
use nix::time::{ClockId, clock_gettime};

use crate::dataplane::Error;
use crate::ebpf::encode::{addr, ip};
pub use answer::{Answer, Candidate, Client, FlowFound, FrontendFound, Place, Verdict};
pub use question::{Destination, Source};
use tables::Pinned;

/// Explains what becomes of the first packet (or of the next one of a flow that is there). `None`: there is no
/// datapath.
pub fn explain(bpf_root: &Path, from: Source, to: Destination) -> Result<Option<Answer>, Error> {
    let Some(tables) = Pinned::open(Pins::new(bpf_root))? else { return Ok(None) };
    let config = tables.config()?;
    let question = Question { tables: &tables, config: &config, from, to, now: now(&config) };
    question.answer().map(Some)
}

/// As the programs tell the time.
fn now(config: &Config) -> u64 {
    let clock = || clock_gettime(ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from).unwrap_or_default();
    if config.fixed_time != 0 { config.fixed_time } else { clock().as_nanos() as u64 }
}

struct Question<'a> {
    tables: &'a Pinned,
    config: &'a Config,
    from: Source,
    to: Destination,
    now: u64,
}

impl Question<'_> {
    fn answer(&self) -> Result<Answer, Error> {
        let client = self.client();
        let mut answer = Answer::new(client, self.to);
        let to = addr(self.to.ip);
        let Some(port) = self.to.port else {
            let ports = self.tables.ports(&to)?;
            answer.verdict = Verdict::NotAService;
            answer.ports = ports.into_iter().map(named).collect();
            answer.say(match answer.ports.is_empty() {
                true => "no service has a port at this address".into(),
                false => format!("ports of this address: {}", answer.ports.join(", ")),
            });
            return Ok(answer);
        };
        let origin = match answer.client.place {
            Place::Host => Origin::Host,
            Place::Pod => Origin::Pod,
            Place::Outside => Origin::Outside,
            Place::OtherNode | Place::OtherPod => {
                let node = answer.client.node.clone().unwrap_or_else(|| "another node".into());
                answer.say(format!(
                    "{node} decides this, by its own tables: ask there; what follows is how this node would"
                ));
                if answer.client.place == Place::OtherNode { Origin::Host } else { Origin::Pod }
            }
        };
        let mut frontend = Frontend::default();
        let nodes = if origin == Origin::Outside { Nodes::Own } else { Nodes::All };
        let proto = self.to.proto.number();
        let found = if to.is_loopback() && origin == Origin::Host {
            match decide::find_loopback(self.tables, &to, port.to_be(), proto, &mut frontend) {
                true => Found::Frontend,
                false => Found::Nothing,
            }
        } else {
            decide::find(self.tables, &to, port.to_be(), proto, nodes, &mut frontend)
        };
        match found {
            Found::Frontend if origin == Origin::Outside && frontend.flags & FRONTEND_EXTERNAL == 0 => {
                answer.frontend = Some(self.frontend(&frontend));
                answer.say(
                    "this address is for clients in the cluster: the stack of this node goes on with it"
                        .into(),
                );
            }
            Found::Frontend => self.serve(&mut answer, &frontend, origin, port)?,
            Found::Undefined => {
                answer.verdict = Verdict::Reject;
                let ports: Vec<String> = self.tables.ports(&to)?.into_iter().map(named).collect();
                answer.say(format!("a service's address, and none of its ports ({})", ports.join(", ")));
                answer.say("TCP gets RST, others ICMP unreachable (reject_undefined)".into());
                answer.ports = ports;
            }
            Found::Nothing => answer.say(self.why_nothing(&to, origin)),
        }
        Ok(answer)
    }

    fn client(&self) -> Client {
        let Source::Address(ip, port) = self.from else {
            return Client {
                address: None,
                port: None,
                place: Place::Host,
                node: self.name(NODE_SELF),
                device: None,
            };
        };
        let at = addr(ip);
        let known = self.tables.addr(&at);
        let (place, node) = if known.is(ADDR_NODE | ADDR_OVERLAY) {
            (if known.node == NODE_SELF { Place::Host } else { Place::OtherNode }, known.node)
        } else if at.is_loopback() {
            (Place::Host, NODE_SELF)
        } else {
            match self.tables.range_of(&at) {
                Some(NODE_SELF) => (Place::Pod, NODE_SELF),
                Some(node) => (Place::OtherPod, node),
                None => (Place::Outside, 0),
            }
        };
        let device = (place == Place::Pod).then(|| device_of(ip)).flatten();
        Client { address: Some(ip), port, place, node: self.name(node), device }
    }

    fn name(&self, node: u32) -> Option<String> {
        if node == 0 { None } else { self.tables.node_name(node) }
    }

    fn frontend(&self, frontend: &Frontend) -> FrontendFound {
        FrontendFound {
            name: self.tables.service(frontend.service),
            external: frontend.flags & FRONTEND_EXTERNAL != 0,
            local: frontend.flags & FRONTEND_LOCAL != 0,
            sources: frontend.flags & FRONTEND_SOURCES != 0,
            affinity: (frontend.affinity != 0).then_some(frontend.affinity),
        }
    }

    /// A frontend that was found: an existing flow, or the choice.
    fn serve(
        &self,
        answer: &mut Answer,
        frontend: &Frontend,
        origin: Origin,
        port: u16,
    ) -> Result<(), Error> {
        answer.frontend = Some(self.frontend(frontend));
        let client = answer.client.address.map_or(Addr::default(), addr);
        let mut tuple = Tuple {
            src: client,
            dst: addr(self.to.ip),
            sport: answer.client.port.unwrap_or(0).to_be(),
            dport: port.to_be(),
            proto: self.to.proto.number(),
            zero: [0; 3],
        };
        let alive = self.existing(answer, &tuple);
        let sockets = self.sockets(answer, origin, frontend);
        let mut tally: BTreeMap<Outcome, u64> = BTreeMap::new();
        let mut choose = |tuple: &Tuple, random: u32| {
            let choice =
                if sockets && answer.client.place == Place::Host && frontend.flags & FRONTEND_SOURCES == 0 {
                    let key = self.host_key();
                    decide::choose_inside(self.tables, frontend, &key, tuple.dst.is_v4(), random, self.now)
                } else {
                    decide::choose(self.tables, frontend, tuple, origin, random, self.now)
                };
            *tally.entry(Outcome::of(choice)).or_default() += 1;
        };
        match origin {
            // Each port of the client counts.
            Origin::Outside if answer.client.port.is_none() && frontend.affinity == 0 => {
                for sport in 1024..=u16::MAX {
                    tuple.sport = sport.to_be();
                    choose(&tuple, 0);
                }
            }
            Origin::Outside => choose(&tuple, 0),
            _ => {
                let len = u64::from(frontend.ring_len.max(1));
                for slot in 0..len {
                    choose(&tuple, ((slot << 32).div_ceil(len)) as u32);
                }
            }
        }
        let all: u64 = tally.values().sum();
        let mut chosen: BTreeMap<u32, (u64, By)> = BTreeMap::new();
        for (outcome, count) in tally {
            match outcome {
                Outcome::Backend(index, by) => {
                    chosen.insert(index, (count, BYS[by]));
                }
                Outcome::Refused(refusal) => self.refused(answer, REFUSALS[refusal], frontend, origin),
            }
        }
        let members = self.tables.members(frontend.service)?;
        for (slot, backend) in &members {
            let share = chosen.get(slot).map_or(0.0, |(count, _)| *count as f64 / all as f64);
            answer.candidates.push(self.candidate(answer, backend, share, origin, &tuple, frontend));
        }
        if let Some((_, by)) = chosen.values().next() {
            answer.verdict = Verdict::Backend;
            answer.by = Some(by_name(*by));
            answer.say(by_text(*by, chosen.len(), answer.client.port.is_some()));
            if sockets {
                answer.translated_by = Some("socket");
                answer.say("a socket hook gives the connection its backend when it is made; its packets go there directly".into());
            } else {
                answer.translated_by = Some("packets");
            }
        }
        if alive {
            answer.verdict = Verdict::Flow;
        }
        Ok(())
    }

    /// Whether a socket hook decides: TCP and UDP of a process of this node, where the hooks are.
    fn sockets(&self, answer: &mut Answer, origin: Origin, frontend: &Frontend) -> bool {
        if origin == Origin::Outside || self.to.proto == Protocol::Sctp {
            return false;
        }
        let hook = if self.to.ip.is_ipv4() { "connect4" } else { "connect6" };
        if !self.tables.is_attached(hook) {
            answer.say(format!("{hook} is attached nowhere: packets are translated one by one"));
            return false;
        }
        if answer.client.place == Place::Pod && frontend.flags & FRONTEND_SOURCES != 0 {
            answer
                .say("only some clients may use it: the pod's packets are looked at, not its sockets".into());
            return false;
        }
        true
    }

    /// What stands for this node's processes in `affinity`.
    fn host_key(&self) -> Addr {
        AffinityKey::namespace(self.config.host_netns, self.to.ip.is_ipv4())
    }

    /// The flow that the client has from this very port. True: it lives, and its packets go where it says.
    fn existing(&self, answer: &mut Answer, tuple: &Tuple) -> bool {
        if answer.client.port.is_none() {
            return false;
        }
        let Some(flow) = self.tables.flow(tuple).filter(|flow| flow.flags & CT_REPLY == 0) else {
            return false;
        };
        let backend = self.tables.backend(flow.backend);
        let stale =
            backend.as_ref().is_none_or(|b| b.generation != flow.generation || b.state == BACKEND_FREE);
        let seconds = self.now.saturating_sub(flow.seen) / 1_000_000_000;
        answer.flow = Some(FlowFound {
            backend: backend.filter(|_| !stale).map(|b| at(&b)),
            answered: flow.flags & CT_ANSWERED != 0,
            stale,
            idle_seconds: seconds,
        });
        answer.say(match (stale, self.to.proto) {
            (false, _) => {
                format!("a flow from this port is under way (its last packet {seconds} s ago): it goes on")
            }
            (true, Protocol::Tcp) => {
                "a flow from this port is under way, and its backend is gone: it is reset, and a \
                                      new connection gets a new backend"
                    .into()
            }
            (true, _) => {
                "a flow from this port is under way, and its backend is gone: the next packet moves to \
                          another"
                    .into()
            }
        });
        !stale
    }

    fn refused(&self, answer: &mut Answer, refusal: Refusal, frontend: &Frontend, origin: Origin) {
        let (verdict, why) = match refusal {
            Refusal::Reject => (
                Verdict::Reject,
                "no backend takes new flows: TCP gets RST, others ICMP port unreachable, a socket ECONNREFUSED \
                 (reject_no_backend)",
            ),
            Refusal::Drop if origin == Origin::Outside => (
                Verdict::Drop,
                "externalTrafficPolicy Local, and no backend is on this node: dropped (drop_no_backend)",
            ),
            Refusal::Drop => (
                Verdict::Drop,
                "internalTrafficPolicy Local, and no backend is on this node: dropped (drop_no_backend)",
            ),
            Refusal::Source => (
                Verdict::Drop,
                "loadBalancerSourceRanges has other addresses than this client's: dropped (drop_source)",
            ),
            Refusal::NotHere => (Verdict::Drop, "no backend is on this node (drop_not_here)"),
        };
        // A frontend with some that take new flows has been answered by them.
        if answer.verdict == Verdict::NotAService {
            answer.verdict = verdict;
        }
        answer.say(why.into());
        if frontend.flags & FRONTEND_LOCAL != 0 && origin != Origin::Outside {
            answer.say("clients in the cluster may use backends of every node".into());
        }
    }

    fn candidate(
        &self,
        answer: &Answer,
        backend: &Backend,
        share: f64,
        origin: Origin,
        tuple: &Tuple,
        frontend: &Frontend,
    ) -> Candidate {
        let down = backend.node != 0 && !decide::is_up(self.tables, backend.node);
        let why_not = match () {
            () if share > 0.0 => None,
            () if backend.state == BACKEND_DRAINING => Some("draining: it keeps the flows that it has"),
            () if backend.state != BACKEND_ACTIVE => Some("on its way out"),
            () if down => Some("its node is down"),
            () if origin == Origin::Outside
                && frontend.flags & FRONTEND_LOCAL != 0
                && backend.node != NODE_SELF =>
            {
                Some("on another node, and externalTrafficPolicy is Local")
            }
            () if answer.client.port.is_some() && origin == Origin::Outside => {
                Some("the client's port leads elsewhere")
            }
            () => Some("the client keeps another, or none may be used"),
        };
        let way = decide::way(self.tables, self.config, backend, &tuple.dst, &tuple.src, origin);
        Candidate {
            address: at(backend),
            state: if backend.state == BACKEND_DRAINING { "draining" } else { "active" },
            node: self.name(backend.node),
            share,
            why_not,
            way: way_name(way),
        }
    }

    fn why_nothing(&self, to: &Addr, origin: Origin) -> String {
        let known = self.tables.addr(to);
        let node = || self.name(known.node).unwrap_or_else(|| "a node".into());
        match () {
            () if known.is(ADDR_CLUSTER_IP | ADDR_EXTERNAL) => {
                "a service's address, but not this port: the stack of this node goes on with it".into()
            }
            () if known.is(ADDR_NODE) && known.node != NODE_SELF && origin == Origin::Outside => {
                format!("an address of {}: that node decides", node())
            }
            () if known.is(ADDR_NODE_PORTS) => {
                format!(
                    "an address of {}, and no node port of this number and protocol: a process there, or nobody",
                    node()
                )
            }
            () if known.is(ADDR_NODE) => {
                format!("an address of {}, on which node ports do not answer", node())
            }
            () if self.tables.range_of(to).is_some() => {
                "a pod's own address: no service is in between".into()
            }
            () => "no service's address: the stack of this node goes on with it".into(),
        }
    }
}

/// As a key; the indices are those of [`BYS`] and [`REFUSALS`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Backend(u32, usize),
    Refused(usize),
}

const BYS: [By; 6] =
    [By::Random, By::ClientHash, By::AddressHash, By::Affinity, By::EntryNode, By::EntryNodeErred];
const REFUSALS: [Refusal; 4] = [Refusal::Reject, Refusal::Drop, Refusal::Source, Refusal::NotHere];

impl Outcome {
    fn of(choice: Choice) -> Self {
        match choice {
            Choice::Backend(index, by) => {
                Self::Backend(index, BYS.iter().position(|known| *known == by).unwrap_or(0))
            }
            Choice::Refused(why) => {
                Self::Refused(REFUSALS.iter().position(|known| *known == why).unwrap_or(0))
            }
        }
    }
}

const fn by_name(by: By) -> &'static str {
    match by {
        By::Random => "random",
        By::ClientHash => "clientHash",
        By::AddressHash => "addressHash",
        By::Affinity => "affinity",
        By::EntryNode => "entryNode",
        By::EntryNodeErred => "entryNodeErred",
    }
}

fn by_text(by: By, count: usize, port_known: bool) -> String {
    match by {
        By::Random => format!("one of {count} at random, all with equal chances"),
        By::ClientHash if port_known => "the client's address and port decide, alike on every node".into(),
        By::ClientHash => {
            format!("the client's address and port decide, alike on every node: {count} over all ports")
        }
        By::AddressHash => "session affinity: the client's address decides, alike on every node".into(),
        By::Affinity => "session affinity: it had the client's flows before".into(),
        By::EntryNode | By::EntryNodeErred => "the node that the client talks to decides".into(),
    }
}

const fn way_name(way: Way) -> &'static str {
    match way {
        Way::Pod => "pod",
        Way::Hairpin => "hairpin",
        Way::Host => "host",
        Way::Overlay => "overlay",
        Way::Tunnel => "tunnel",
        Way::Dsr => "dsr",
        Way::Snat { overlay: true } => "snat (overlay)",
        Way::Snat { overlay: false } => "snat",
    }
}

fn at(backend: &Backend) -> String {
    std::net::SocketAddr::new(ip(backend.addr), u16::from_be(backend.port)).to_string()
}

fn named((port, proto): (u16, u8)) -> String {
    let proto = Protocol::from_number(proto).map_or_else(|| proto.to_string(), |proto| proto.to_string());
    format!("{port}/{proto}")
}

/// The host side of a pod's interface, as the routes of this node say.
fn device_of(ip: IpAddr) -> Option<String> {
    let mut socket = Socket::open().ok()?;
    let index = route::lookup(&mut socket, ip).ok()?.link?;
    link::list(&mut socket).ok()?.into_iter().find(|link| link.index == index).map(|link| link.name)
}
