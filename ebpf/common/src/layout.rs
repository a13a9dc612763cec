//! Keys and values of the maps.

/// The version of everything in this file; part of the directory in which the maps are pinned.
pub const LAYOUT_VERSION: u32 = 2;

/// An IPv6 address, or an IPv4 address in its mapped form (`::ffff:a.b.c.d`, RFC 4291 section
/// 2.5.5.2), as four words in network byte order. Aligned so that it is copied and compared as two
/// words of 64 bits.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr(pub [u32; 4]);

impl Addr {
    /// `::ffff:0.0.0.0` and `::` are the addresses of node-port frontends.
    pub const ANY4: Self = Self::v4(0);
    pub const ANY6: Self = Self([0; 4]);

    /// From an IPv4 address in network byte order, as it stands in a packet.
    #[inline(always)]
    pub const fn v4(be: u32) -> Self {
        Self([0, 0, 0xffff_u32.to_be(), be])
    }

    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0xffff_u32.to_be()
    }

    /// 127.0.0.0/8 or ::1.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            return u32::from_be(self.0[3]) >> 24 == 127;
        }
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 1_u32.to_be()
    }

    /// The IPv4 address in network byte order; meaningless unless [`is_v4`](Self::is_v4).
    #[inline(always)]
    pub const fn as_v4(&self) -> u32 {
        self.0[3]
    }

    /// Picks the slot of a Maglev table for all flows of a client alike.
    #[inline(always)]
    pub const fn hash(&self) -> u32 {
        let [a, b] = self.words();
        slot_hash(sum(&[a, b, 0]))
    }

    #[inline(always)]
    const fn words(&self) -> [u64; 2] {
        let [a, b, c, d] = self.0;
        [a as u64 | (b as u64) << 32, c as u64 | (d as u64) << 32]
    }
}

/// Where a client knocks. The map `frontends` is a hash of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    /// [`Addr::ANY4`] or [`Addr::ANY6`]: a node port.
    pub addr: Addr,
    /// 0: the node's own network; [`NET_LOOPBACK`].
    pub net: u32,
    /// Network byte order.
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
    pub zero: u8,
}

/// Of frontends on 127.0.0.1 and ::1: met by sockets of the node's own network namespace only, as these addresses are
/// everybody's own. No packet is ever looked up in this network.
pub const NET_LOOPBACK: u32 = u32::MAX;

/// What happens there. Copied whole before it is used: the kernel reuses an element at once for another
/// key, so that what was copied can be half of each. [`Frontend::sum`] tells: a value whose `check` is
/// not that of the key is read again.
///
/// The two lists are extents of `ring`, counted in slots and beginning at a multiple of [`RING_BLOCK`].
/// An extent in use is never written: a new one is written aside and swapped in by one update of this
/// value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Frontend {
    /// The dense list: active backends, chosen from at random by clients inside the cluster.
    pub ring: u32,
    pub ring_len: u32,
    /// For clients from outside, by a hash of theirs: a Maglev table, on which all nodes agree; or
    /// ([`FRONTEND_LOCAL`]) the backends of this node. Empty for frontends that are not reached from outside.
    pub outside: u32,
    pub outside_len: u32,
    /// Names the service in `services` and scopes `choices` and `affinity`. Never 0. Local to this node.
    pub service: u32,
    /// `FRONTEND_*`.
    pub flags: u32,
    /// Session affinity in seconds, or 0.
    pub affinity: u32,
    pub zero: u32,
    /// [`Frontend::sum`].
    pub check: u64,
}

impl Frontend {
    /// The value of `check` that belongs to this frontend under `key`.
    #[inline(always)]
    pub const fn sum(&self, key: &FrontendKey) -> u64 {
        let [a0, a1] = key.addr.words();
        sum(&[
            a0,
            a1,
            pair(key.net, key.port as u32 | (key.proto as u32) << 16),
            pair(self.ring, self.ring_len),
            pair(self.outside, self.outside_len),
            pair(self.service, self.flags),
            self.affinity as u64,
        ])
    }

    /// With `check` filled in.
    #[must_use]
    pub const fn sealed(mut self, key: &FrontendKey) -> Self {
        self.check = self.sum(key);
        self
    }
}

/// Node ports and external addresses: reached from outside.
pub const FRONTEND_EXTERNAL: u32 = 1 << 0;
/// Clients from outside reach backends of this node only, and `outside` lists those: never another.
pub const FRONTEND_LOCAL: u32 = 1 << 1;
/// A client inside that finds no backend is dropped, not rejected.
pub const FRONTEND_DROP: u32 = 1 << 2;
/// The same for a client from outside.
pub const FRONTEND_DROP_OUTSIDE: u32 = 1 << 3;
/// Only clients that `sources` has under this service may pass.
pub const FRONTEND_SOURCES: u32 = 1 << 4;

/// An element of the array `ring`: indices into `backends`, some to an element. Slot `n` is
/// `ring[n / RING_BLOCK].0[n % RING_BLOCK]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RingBlock(pub [u32; RING_BLOCK as usize]);

/// Slots in an element of `ring`.
pub const RING_BLOCK: u32 = 16;

/// Slots of a Maglev table of few backends; prime (the paper's section 3.4 asks for it).
pub const MAGLEV_SIZE: u32 = 1021;

/// An element of the array `backends`. Slot 0 is never used.
///
/// A slot is written while no extent of `ring` names it, and reused only after a grace period and with
/// another generation. The exception is `state`, which is one byte and cannot tear.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Backend {
    pub addr: Addr,
    /// Changes whenever the slot is given to another backend; a conntrack entry of another generation
    /// is stale. Never 0 in a used slot.
    pub generation: u32,
    /// Index into `nodes`; 0: no node of ours.
    pub node: u32,
    /// Network byte order.
    pub port: u16,
    pub proto: u8,
    /// `BACKEND_*`.
    pub state: u8,
    /// [`choice_hash`] of address, port and protocol; travels with a tunnelled packet.
    pub hash: u32,
}

pub const BACKEND_FREE: u8 = 0;
pub const BACKEND_ACTIVE: u8 = 1;
pub const BACKEND_DRAINING: u8 = 2;
pub const BACKEND_DOWN: u8 = 3;

/// An element of the array `nodes`. Slot 0 is never used, slot [`NODE_SELF`] is this node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Node {
    /// `NODE_*`.
    pub state: u32,
    /// The Ethernet address of its VXLAN device.
    pub mac: [u8; 6],
    /// 1 if `mac` is known: the node can be reached by `tunnel`.
    pub overlay: u8,
    pub zero: [u8; 5],
    /// Where VXLAN packets for it are sent; zero: not known.
    pub underlay: Addr,
}

pub const NODE_FREE: u32 = 0;
pub const NODE_UP: u32 = 1;
pub const NODE_DOWN: u32 = 2;
/// The index of this node in `nodes`.
pub const NODE_SELF: u32 = 1;

/// The value of the hash `addrs` (key: [`Addr`]): what kind of address this is. What is not there is neither a
/// node's nor a service's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct KnownAddr {
    /// Index into `nodes`; 0 for an address of a service.
    pub node: u32,
    /// `ADDR_*`, one or more.
    pub kind: u32,
}

impl KnownAddr {
    /// Whether it is of one of these kinds.
    #[inline(always)]
    pub const fn is(&self, kinds: u32) -> bool {
        self.kind & kinds != 0
    }
}

/// An address of a node in the underlay.
pub const ADDR_NODE: u32 = 1 << 0;
/// The address of a VXLAN device.
pub const ADDR_OVERLAY: u32 = 1 << 1;
/// With [`ADDR_NODE`]: node ports answer on it.
pub const ADDR_NODE_PORTS: u32 = 1 << 2;
/// A service's address inside the cluster: a port of it that no frontend has is rejected.
pub const ADDR_CLUSTER_IP: u32 = 1 << 3;
/// An external or load-balancer address of a service.
pub const ADDR_EXTERNAL: u32 = 1 << 4;

/// Elements of the array `ports` (values of 64 bits): which packets from outside need a look at all. Bit `p % 64` of
/// element `p / 64` is set if `p` (host byte order) is a node port of any protocol or family, or one that `snat` takes.
/// Element [`PORTS_EXTERNAL`] counts the addresses with [`ADDR_EXTERNAL`]. Set before there is something to find,
/// cleared after.
pub const PORTS_LEN: u32 = PORTS_EXTERNAL + 1;
pub const PORTS_EXTERNAL: u32 = (1 << 16) / 64;

/// Key of the hash `choices`: finds the backend on *this* node that another node has chosen.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChoiceKey {
    pub service: u32,
    pub hash: u32,
}

/// Key of the LRU hash `affinity`: a client of a service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AffinityKey {
    /// The client's address. For the socket hook, which knows none yet: [`AffinityKey::namespace`].
    pub client: Addr,
    /// [`Frontend::service`].
    pub service: u32,
    pub zero: u32,
}

/// The value of `affinity`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Affinity {
    /// Element of `backends` and its generation.
    pub backend: u32,
    pub generation: u32,
    /// `bpf_ktime_get_ns` of the client's last new flow.
    pub seen: u64,
    /// [`Affinity::sum`].
    pub check: u64,
}

impl AffinityKey {
    /// What stands for the client where only the cookie of its network namespace is known: an address that no
    /// packet has, one for each family.
    #[inline(always)]
    pub const fn namespace(cookie: u64, v4: bool) -> Addr {
        Addr([u32::MAX, u32::MAX - v4 as u32, cookie as u32, (cookie >> 32) as u32])
    }
}

impl Affinity {
    #[inline(always)]
    pub const fn sum(&self, key: &AffinityKey) -> u64 {
        let [c0, c1] = key.client.words();
        sum(&[c0, c1, key.service as u64, pair(self.backend, self.generation), self.seen])
    }
}

/// The data of a key of the LPM trie `sources` (32 bits of `service`, then those of the address in its 16-byte
/// form count): who may use a frontend with [`FRONTEND_SOURCES`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceKey {
    /// [`Frontend::service`].
    pub service: u32,
    pub addr: [u32; 4],
}

/// The connection tuple of a packet as it is seen, before translation.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    pub src: Addr,
    pub dst: Addr,
    /// Network byte order.
    pub sport: u16,
    pub dport: u16,
    pub proto: u8,
    pub zero: [u8; 3],
}

impl Tuple {
    /// The tuple of the packets in the other direction.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            sport: self.dport,
            dport: self.sport,
            proto: self.proto,
            zero: [0; 3],
        }
    }

    #[inline(always)]
    const fn ports(&self) -> u64 {
        self.sport as u64 | (self.dport as u64) << 16 | (self.proto as u64) << 32
    }

    /// Picks the slot of a Maglev table. The destination address is left out: one client reaches the
    /// same backend through every node.
    #[inline(always)]
    pub const fn client_hash(&self) -> u32 {
        let [a, b] = self.src.words();
        slot_hash(sum(&[a, b, self.ports()]))
    }
}

/// The value of `ct` (hash) and `ct_new` (LRU hash; key of both: [`Tuple`]).
///
/// A flow is two entries: one under the tuple of its requests, one (`CT_REPLY`) under the tuple of its
/// replies. They live in the same map and die together: either names the other ([`Flow::peer`]), and
/// all but `to`, `flags`, `ifindex`, `seen`, counts and way is the same in both.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flow {
    /// What the packet's tuple becomes.
    pub to: Tuple,
    /// Element of `backends` and its generation: another generation there means a stale flow. 0: a direct
    /// connection of a pod that is no service's, and never stale (`serve::aside`).
    pub backend: u32,
    pub generation: u32,
    /// [`Frontend::service`].
    pub service: u32,
    /// `CT_*`.
    pub flags: u32,
    /// Index into `nodes` of the node at the other end of the tunnel (`CT_ENTRY`: the backend's,
    /// `CT_TUNNEL`: the one that the client talked to), or 0.
    pub node: u32,
    /// Host side of the veth of the pod that sends this direction, once it was seen to own the source
    /// address; or 0.
    pub ifindex: u32,
    /// `bpf_ktime_get_ns` of the last packet of this direction, in steps of 2^30 ns so that a busy flow
    /// is not written at each packet.
    pub seen: u64,
    /// [`Flow::sum`]: another value means that the element was reused while it was read.
    pub check: u64,
    /// Packets of this direction, and their bytes from the IP header on. Two processors that meet here lose some.
    pub packets: u64,
    pub bytes: u64,
    /// The way that packets of this direction took last, straight to `to.dst`: interface, and how much an IP packet
    /// may have there. Looked at only if `way` is [`Flow::way`].
    pub out: u32,
    pub mtu: u32,
    pub way: u64,
}

impl Flow {
    /// The value of `way` that belongs to `out` and `mtu` as they were found for a packet from interface `from`, in this
    /// state of the routes. It binds them to the flow, too: an element may have been reused while they were written.
    #[inline(always)]
    pub const fn way(&self, routes: &Routes, from: u32) -> u64 {
        sum(&[self.check, pair(self.out, self.mtu), routes.generation, from as u64])
    }

    /// The key of the other entry of this flow.
    #[inline(always)]
    pub const fn peer(&self) -> Tuple {
        self.to.reversed()
    }

    /// The value of `check` that belongs to this entry under `key`. What programs change in place
    /// (`flags`, `ifindex`, `seen`, counts, the way) is left out.
    #[inline(always)]
    pub const fn sum(&self, key: &Tuple) -> u64 {
        let [s0, s1] = key.src.words();
        let [d0, d1] = key.dst.words();
        let [t0, t1] = self.to.src.words();
        let [u0, u1] = self.to.dst.words();
        sum(&[
            s0,
            s1,
            d0,
            d1,
            key.ports(),
            t0,
            t1,
            u0,
            u1,
            self.to.ports(),
            pair(self.backend, self.generation),
            pair(self.service, self.node),
        ])
    }
}

/// The one element of the array `routes`: may a flow go the way that it went before? Written by user space at every
/// change of links, addresses, routes or rules, and now and then while nothing changes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Routes {
    /// Changes whenever they do, and is never what it was.
    pub generation: u64,
    /// CLOCK_MONOTONIC in ns: nobody has looked at the routes for longer than this, and the kernel is to be asked for
    /// each packet.
    pub until: u64,
}

/// This entry translates replies.
pub const CT_REPLY: u32 = 1 << 0;
/// TCP: a FIN or a RST was seen in this direction.
pub const CT_FIN: u32 = 1 << 1;
pub const CT_RST: u32 = 1 << 2;
/// The reply has been seen: the flow lives in `ct`.
pub const CT_ANSWERED: u32 = 1 << 3;
/// The flow came, and its replies leave, through the tunnel: this is the backend's node.
pub const CT_TUNNEL: u32 = 1 << 4;
/// The flow goes on through the tunnel, and its replies come back by it: the client talks to this node.
pub const CT_ENTRY: u32 = 1 << 5;
/// The backend is a process in the host network of this node.
pub const CT_HOST: u32 = 1 << 6;
/// The replies go from the backend's node to the client directly. With [`CT_ENTRY`]: this is the node that the client
/// talks to, which never sees one. Else: this is the backend's node; the requests come through the tunnel.
pub const CT_DSR: u32 = 1 << 7;
/// The client is this node itself, by packets that no socket hook saw. `node` is not a node but the device that they
/// were met on.
pub const CT_OWN: u32 = 1 << 8;

/// The source of a connection of a pod to itself through a service, where no socket hook translated it
/// (the pod would take its own address for its own packet). It is seen in that pod only, and reversed at
/// its veth. 169.254.42.1, of the link-local block: never routed.
pub const HAIRPIN4: Addr = Addr::v4(u32::from_be_bytes([169, 254, 42, 1]).to_be());
/// 100::4842:1, of the discard-only block (RFC 6666): never routed either, but not bound to a link, as the
/// pod's answers must find their way by its default route.
pub const HAIRPIN6: Addr = Addr([0x0100_0000_u32.to_be(), 0, 0, 0x4842_0001_u32.to_be()]);

/// Key of the LRU hash `frags`: later fragments of a datagram carry no ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FragKey {
    pub src: Addr,
    pub dst: Addr,
    /// The identification, as it stands in the packet.
    pub id: u32,
    pub proto: u8,
    pub zero: [u8; 3],
}

/// The value of `frags`: source and destination port of the first fragment, network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FragPorts {
    pub sport: u16,
    pub dport: u16,
}

/// The value of the hashes `services` (key: [`Frontend::service`]) and `node_names` (key: index into
/// `nodes`): a name in UTF-8, filled up with zeros. The programs never read it. The longest name of a
/// service's port in Kubernetes has 191 bytes, that of a node 253.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Name(pub [u8; 256]);

/// The one element of the array `config`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Config {
    /// `REMOTE_*`.
    pub remote: u32,
    /// Interface index of the VXLAN device, or 0 while there is none.
    pub vxlan_ifindex: u32,
    /// Interface index of the (first) underlay device.
    pub underlay_ifindex: u32,
    /// Largest inner IP packet that the tunnel carries unfragmented, in bytes.
    pub tunnel_mtu: u32,
    /// Source addresses of `snat` into the overlay (this node's overlay address), a family each; zero: none.
    pub overlay4: Addr,
    pub overlay6: Addr,
    /// Source addresses of `snat` into the underlay; zero: none.
    pub underlay4: Addr,
    pub underlay6: Addr,
    /// Host byte order, inclusive: the ports that `snat` takes. Outside `ip_local_port_range`.
    pub snat_port_min: u16,
    pub snat_port_max: u16,
    /// Host byte order: the UDP port of VXLAN.
    pub vxlan_port: u16,
    /// `CONFIG_*`.
    pub flags: u16,
    /// Tests only: if not 0, the time and the random number that the programs use.
    pub fixed_time: u64,
    pub fixed_random: u32,
    pub vni: u32,
    /// Cookie of the node's own network namespace (`SO_NETNS_COOKIE`): a socket elsewhere is a pod's. 0:
    /// not known.
    pub host_netns: u64,
    /// Other programs are being followed: until this time (`bpf_ktime_get_ns`) no flow is begun, and packets of
    /// connections that nobody knows are dropped, neither rejected nor passed: what knows them comes a moment
    /// later, and they are sent again. 0: at no time.
    pub settling: u64,
}

/// Another proxy's address translation (kube-proxy's, by netfilter or IPVS) is still there: what belongs to a connection
/// that the programs do not know is the kernel's, which may.
pub const CONFIG_OTHER_PROXY: u16 = 1;

pub const REMOTE_TUNNEL: u32 = 0;
pub const REMOTE_SNAT: u32 = 1;
/// As [`REMOTE_TUNNEL`], but the backend's node answers the client directly.
pub const REMOTE_DSR: u32 = 2;

/// Every bit of a sum counts in the upper ones, which pick a slot.
#[inline(always)]
const fn slot_hash(sum: u64) -> u32 {
    (sum ^ sum >> 29).wrapping_mul(0x9fb2_1c65_1e98_df25).wrapping_shr(32) as u32
}

#[inline(always)]
const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

/// A multilinear hash: tells whether words belong together, cheaply. No defence against an adversary; the
/// maps are written by root alone.
#[inline(always)]
const fn sum<const N: usize>(words: &[u64; N]) -> u64 {
    let mut factor: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut sum: u64 = 0x2545_f491_4f6c_dd1d;
    let mut i = 0;
    while i < N {
        sum = sum.wrapping_add(words[i].wrapping_mul(factor));
        // Constants once the loop is unrolled.
        factor = factor.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(2);
        i += 1;
    }
    sum
}

#[cfg(feature = "user")]
mod pod;
mod socket;
#[cfg(test)]
mod tests;

pub use socket::*;
