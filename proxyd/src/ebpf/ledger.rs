//! Which addresses and ports the programs must look at: the maps `addrs` and `ports`.
//!
//! Both follow from the frontends and the nodes together, an element often from many of them. So they are reckoned,
//! never remembered by whoever caused them: what must be there is compared with what is, element by element, for
//! those that may have changed. What appears is written before a frontend leads there, what goes after.

use std::collections::{BTreeMap, BTreeSet};

use heddle_ebpf_common::{
    ADDR_CLUSTER_IP, ADDR_EXTERNAL, Addr, FRONTEND_EXTERNAL, FrontendKey, KnownAddr, PORTS_EXTERNAL,
    PORTS_LEN,
};

use super::write::Write;

/// What a frontend makes of its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    NodePort(u16),
    Address(Addr, u32),
    /// A loopback address, which no packet has.
    Nothing,
}

fn claim(key: &FrontendKey, flags: u32) -> Claim {
    match key {
        _ if key.net != 0 => Claim::Nothing,
        _ if matches!(key.addr, Addr::ANY4 | Addr::ANY6) => Claim::NodePort(u16::from_be(key.port)),
        _ if flags & FRONTEND_EXTERNAL != 0 => Claim::Address(key.addr, ADDR_EXTERNAL),
        _ => Claim::Address(key.addr, ADDR_CLUSTER_IP),
    }
}

/// How many frontends an address has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Users {
    cluster: u32,
    external: u32,
}

/// What must be in the two maps, and what is.
#[derive(Clone, Debug)]
pub struct Ledger {
    services: BTreeMap<Addr, Users>,
    /// By index into `nodes`; of two nodes the one that came last has the address.
    nodes: BTreeMap<Addr, Vec<KnownAddr>>,
    ports: BTreeMap<u16, u32>,
    /// Both inclusive.
    snat: (u16, u16),
    /// Addresses with [`ADDR_EXTERNAL`] that must be there.
    externals: u64,
    held: BTreeMap<Addr, KnownAddr>,
    words: Vec<u64>,
    /// What may differ from what is held.
    dirty_addrs: BTreeSet<Addr>,
    dirty_words: BTreeSet<u32>,
}

impl Ledger {
    /// Over maps that hold this; all of it is compared once what must be there was told.
    pub fn new(addrs: &[(Addr, KnownAddr)], ports: &[u64], snat: (u16, u16)) -> Self {
        let mut words = ports.to_vec();
        words.resize(PORTS_LEN as usize, 0);
        Self {
            services: BTreeMap::new(),
            nodes: BTreeMap::new(),
            ports: BTreeMap::new(),
            snat,
            externals: 0,
            held: addrs.iter().copied().collect(),
            words,
            dirty_addrs: addrs.iter().map(|(addr, _)| *addr).collect(),
            dirty_words: (0..PORTS_LEN).collect(),
        }
    }

    /// A frontend appears.
    pub fn add(&mut self, key: &FrontendKey, flags: u32) {
        self.change(claim(key, flags), 1);
    }

    /// A frontend is gone.
    pub fn remove(&mut self, key: &FrontendKey, flags: u32) {
        self.change(claim(key, flags), -1);
    }

    fn change(&mut self, claim: Claim, by: i32) {
        match claim {
            Claim::Nothing => {}
            Claim::NodePort(port) => {
                let users = self.ports.entry(port).or_default();
                *users = users.saturating_add_signed(by);
                if *users == 0 {
                    self.ports.remove(&port);
                }
                self.dirty_words.insert(u32::from(port) / 64);
            }
            Claim::Address(addr, kind) => {
                let before = self.is_external(&addr);
                let users = self.services.entry(addr).or_default();
                let count = if kind == ADDR_EXTERNAL { &mut users.external } else { &mut users.cluster };
                *count = count.saturating_add_signed(by);
                if *users == Users::default() {
                    self.services.remove(&addr);
                }
                self.dirty_addrs.insert(addr);
                self.recount(&addr, before);
            }
        }
    }

    /// The addresses of a node, all of them.
    pub fn set_node(&mut self, index: u32, addrs: &BTreeMap<Addr, u32>, before: &BTreeMap<Addr, u32>) {
        for addr in before.keys().filter(|addr| !addrs.contains_key(*addr)) {
            self.place(*addr, index, None);
        }
        for (addr, kind) in addrs {
            if before.get(addr) != Some(kind) || !self.nodes.contains_key(addr) {
                self.place(*addr, index, Some(*kind));
            }
        }
    }

    fn place(&mut self, addr: Addr, node: u32, kind: Option<u32>) {
        let before = self.is_external(&addr);
        let owners = self.nodes.entry(addr).or_default();
        owners.retain(|owner| owner.node != node);
        owners.extend(kind.map(|kind| KnownAddr { node, kind }));
        if owners.is_empty() {
            self.nodes.remove(&addr);
        }
        self.dirty_addrs.insert(addr);
        self.recount(&addr, before);
    }

    /// The ports that `snat` takes from now on.
    pub fn set_snat(&mut self, ports: (u16, u16)) {
        for (first, last) in [self.snat, ports] {
            self.dirty_words.extend(u32::from(first) / 64..=u32::from(last) / 64);
        }
        self.snat = ports;
    }

    fn recount(&mut self, addr: &Addr, before: bool) {
        match (before, self.is_external(addr)) {
            (false, true) => self.externals += 1,
            (true, false) => self.externals -= 1,
            _ => return,
        }
        self.dirty_words.insert(PORTS_EXTERNAL);
    }

    fn is_external(&self, addr: &Addr) -> bool {
        self.wanted(addr).is_some_and(|known| known.is(ADDR_EXTERNAL))
    }

    /// What must be held of an address. A service never takes a node's: that is refused long before.
    fn wanted(&self, addr: &Addr) -> Option<KnownAddr> {
        if let Some(owner) = self.nodes.get(addr).and_then(|owners| owners.last()) {
            return Some(*owner);
        }
        let users = self.services.get(addr)?;
        let kind = |count, kind| if count > 0 { kind } else { 0 };
        let kind = kind(users.cluster, ADDR_CLUSTER_IP) | kind(users.external, ADDR_EXTERNAL);
        Some(KnownAddr { node: 0, kind })
    }

    fn word(&self, index: u32) -> u64 {
        if index == PORTS_EXTERNAL {
            return self.externals;
        }
        let first = (index * 64) as u16;
        let mut word =
            self.ports.range(first..=first + 63).fold(0, |word, (port, _)| word | 1 << (port % 64));
        let (low, high) = self.snat;
        if high > 0 && low <= first + 63 && high >= first {
            let (low, high) = (low.max(first) % 64, high.min(first + 63) % 64);
            word |= (u64::MAX << low) & (u64::MAX >> (63 - high));
        }
        word
    }

    /// What must be written before something new leads there: nothing that is held is taken away.
    pub fn additions(&self) -> Vec<Write> {
        let addrs = self.dirty_addrs.iter().filter_map(|addr| {
            let (mut wanted, held) = (self.wanted(addr)?, self.held.get(addr));
            if let Some(held) = held.filter(|held| (held.node, wanted.node) == (0, 0)) {
                wanted.kind |= held.kind;
            }
            (held != Some(&wanted)).then_some(Write::KnownAddr(*addr, Some(wanted)))
        });
        let words = self.dirty_words.iter().filter_map(|index| {
            let (held, wanted) = (self.words[*index as usize], self.word(*index));
            let both = if *index == PORTS_EXTERNAL { held.max(wanted) } else { held | wanted };
            (both != held).then_some(Write::Ports(*index, both))
        });
        addrs.chain(words).collect()
    }

    /// What is left to be written when nothing leads any more where nothing shall.
    pub fn rest(&self) -> Vec<Write> {
        let addrs = self.dirty_addrs.iter().filter_map(|addr| {
            let wanted = self.wanted(addr);
            (self.held.get(addr).copied() != wanted).then_some(Write::KnownAddr(*addr, wanted))
        });
        let words = self.dirty_words.iter().filter_map(|index| {
            let wanted = self.word(*index);
            (self.words[*index as usize] != wanted).then_some(Write::Ports(*index, wanted))
        });
        addrs.chain(words).collect()
    }

    /// A write was done.
    pub fn note(&mut self, write: &Write) {
        match write {
            Write::KnownAddr(addr, known) => {
                match known {
                    Some(known) => self.held.insert(*addr, *known),
                    None => self.held.remove(addr),
                };
            }
            Write::Ports(index, word) => self.words[*index as usize] = *word,
            _ => {}
        }
    }

    /// Forgets what is as it must be.
    pub fn clean(&mut self) {
        let dirty = std::mem::take(&mut self.dirty_addrs);
        let differs = |addr: &Addr| self.held.get(addr).copied() != self.wanted(addr);
        self.dirty_addrs = dirty.into_iter().filter(differs).collect();
        let dirty = std::mem::take(&mut self.dirty_words);
        let differs = |index: &u32| self.words[*index as usize] != self.word(*index);
        self.dirty_words = dirty.into_iter().filter(differs).collect();
    }

    /// Something that is held is not as it must be.
    pub fn is_dirty(&self) -> bool {
        !self.dirty_addrs.is_empty() || !self.dirty_words.is_empty()
    }

    /// Elements of `addrs`, with those that are about to be written.
    pub fn len(&self) -> usize {
        let fresh = |addr: &&Addr| !self.held.contains_key(*addr) && self.wanted(addr).is_some();
        self.held.len() + self.dirty_addrs.iter().filter(fresh).count()
    }

    /// Whether a frontend at this key would be the first at its address.
    pub fn is_new(&self, key: &FrontendKey) -> bool {
        match claim(key, 0) {
            Claim::Address(addr, _) => self.wanted(&addr).is_none(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(addr: Addr, port: u16) -> FrontendKey {
        FrontendKey { addr, port: port.to_be(), proto: 6, ..FrontendKey::default() }
    }

    /// Writes what is to be written, in two steps, as an application does.
    fn write(ledger: &mut Ledger) -> Vec<Write> {
        let mut all = ledger.additions();
        all.iter().for_each(|write| ledger.note(write));
        let rest = ledger.rest();
        rest.iter().for_each(|write| ledger.note(write));
        all.extend(rest);
        ledger.clean();
        assert!(!ledger.is_dirty());
        all
    }

    #[test]
    fn an_address_stays_as_long_as_a_frontend_has_it() {
        let mut ledger = Ledger::new(&[], &[], (0, 0));
        let (ip, http, https) = (Addr::v4(1), key(Addr::v4(1), 80), key(Addr::v4(1), 443));
        let cluster = KnownAddr { node: 0, kind: ADDR_CLUSTER_IP };
        ledger.add(&http, 0);
        ledger.add(&https, 0);
        assert_eq!(write(&mut ledger), [Write::KnownAddr(ip, Some(cluster))]);
        ledger.remove(&http, 0);
        assert_eq!(write(&mut ledger), []);
        ledger.add(&http, FRONTEND_EXTERNAL);
        let both = KnownAddr { kind: ADDR_CLUSTER_IP | ADDR_EXTERNAL, ..cluster };
        assert_eq!(write(&mut ledger), [Write::KnownAddr(ip, Some(both)), Write::Ports(PORTS_EXTERNAL, 1)]);
        ledger.remove(&https, 0);
        ledger.remove(&http, FRONTEND_EXTERNAL);
        assert_eq!(write(&mut ledger), [Write::KnownAddr(ip, None), Write::Ports(PORTS_EXTERNAL, 0)]);
    }

    #[test]
    fn a_nodes_address_is_the_nodes() {
        let mut ledger = Ledger::new(&[], &[], (0, 0));
        let ip = Addr::v4(1);
        ledger.add(&key(ip, 80), FRONTEND_EXTERNAL);
        write(&mut ledger);
        let (nothing, node) = (BTreeMap::new(), BTreeMap::from([(ip, 1)]));
        ledger.set_node(7, &node, &nothing);
        let known = |node, kind| Write::KnownAddr(ip, Some(KnownAddr { node, kind }));
        assert_eq!(write(&mut ledger), [known(7, 1), Write::Ports(PORTS_EXTERNAL, 0)]);
        ledger.set_node(8, &node, &nothing);
        assert_eq!(write(&mut ledger), [known(8, 1)], "it moves");
        ledger.set_node(7, &nothing, &node);
        assert_eq!(write(&mut ledger), []);
        ledger.set_node(8, &nothing, &node);
        assert_eq!(write(&mut ledger), [known(0, ADDR_EXTERNAL), Write::Ports(PORTS_EXTERNAL, 1)]);
    }

    #[test]
    fn bits_are_set_before_and_cleared_after() {
        let mut ledger = Ledger::new(&[], &[0, 1 << 5], (0, 0));
        ledger.add(&key(Addr::ANY4, 64), 1);
        ledger.add(&key(Addr::ANY6, 64), 1);
        assert_eq!(ledger.additions(), [Write::Ports(1, 1 | 1 << 5)], "what others may need stays for now");
        assert_eq!(ledger.rest(), [Write::Ports(1, 1)]);
        assert_eq!(write(&mut ledger), [Write::Ports(1, 1 | 1 << 5), Write::Ports(1, 1)]);
        ledger.remove(&key(Addr::ANY4, 64), 1);
        assert_eq!(write(&mut ledger), []);
        ledger.set_snat((127, 200));
        let all = [Write::Ports(1, 1 | 1 << 63), Write::Ports(2, u64::MAX), Write::Ports(3, 0x1ff)];
        assert_eq!(write(&mut ledger), all);
        ledger.remove(&key(Addr::ANY6, 64), 1);
        assert_eq!(write(&mut ledger), [Write::Ports(1, 1 << 63)]);
        ledger.set_snat((65535, 65535));
        assert_eq!(write(&mut ledger).last(), Some(&Write::Ports(3, 0)));
        assert_eq!(ledger.words[1023], 1 << 63);
    }
}
