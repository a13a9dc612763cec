//! XDP on underlay devices: packets of established flows that only pass through this node go on before there is a
//! socket buffer for them. That is the mesh seen from the node that the client talks to: requests into the tunnel
//! (`tunnel`, `dsr`) or on to a backend that is no pod (`snat`), and the replies of both.
//!
//! A shortcut, and nothing but: it makes no flow, refuses nobody and knows no service. Whatever is not an answered
//! flow, or is anything special (SYN, fragments, options, errors, packets that do not fit, a neighbour that is not
//! known), goes on to the stack as it came, where the tcx programs decide. So both say the same, always.

use aya_ebpf::bindings::xdp_action::{XDP_PASS, XDP_TX};
use aya_ebpf::bindings::{BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup, xdp_md};
use aya_ebpf::helpers::generated::{bpf_fib_lookup as fib_lookup, bpf_xdp_adjust_head};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use heddle_ebpf_common::{
    ADDR_NODE, Addr, CT_DSR, CT_ENTRY, CT_HOST, CT_OWN, CT_TUNNEL, Config, Counter, MESH_DSR, MESH_REPLY,
    MESH_REQUEST, NODE_SELF, Tuple,
};

use crate::ct;
use crate::frontend::known;
use crate::maps::{self, BACKENDS, NODES, Work, config, count, work};
use crate::nat::{Diff, address_diff};
use crate::out;
use crate::packet::{Kind, Packet, RST, SYN};
use crate::serve;
use crate::skb::{ETH_LEN, ETH_P_IP, ETH_P_IPV6, IP4_LEN, IP6_LEN, TCP, UDP};

/// A VXLAN packet over IPv4, up to its inner Ethernet header (RFC 7348).
const OUTER: u32 = ETH_LEN + IP4_LEN + 8 + 8;
/// The flag of the VXLAN header that says that the VNI counts.
const VNI_VALID: u32 = 0x0800_0000_u32.to_be();

/// Run by the driver: what comes in is as it was on the wire.
#[xdp]
pub fn xdp_native(ctx: XdpContext) -> u32 {
    run::<true>(ctx)
}

/// Run by the kernel over copies of socket buffers, whose checksums may be left to a device, which nobody tells us:
/// it corrects none of the transport.
#[xdp]
pub fn xdp_generic(ctx: XdpContext) -> u32 {
    run::<false>(ctx)
}

#[inline(always)]
fn run<const SUMMED: bool>(ctx: XdpContext) -> u32 {
    let Some(config) = config() else { return XDP_PASS };
    match pass_on::<SUMMED>(Frame(ctx.ctx), config) {
        Some(action) => action,
        None => XDP_PASS,
    }
}

/// A frame, all of it in one piece.
#[derive(Clone, Copy)]
struct Frame(*mut xdp_md);

impl Frame {
    /// Where a `T` lies, `offset` bytes after the start; valid until the start is moved. `None`: beyond the end.
    #[inline(always)]
    fn place<T>(self, offset: u32) -> Option<*mut T> {
        // SAFETY: the kernel's context; the bounds are compared in the form that the verifier knows.
        unsafe {
            let start = (&raw const (*self.0).data).read_volatile() as usize;
            let end = (&raw const (*self.0).data_end).read_volatile() as usize;
            // Headers end long before; the verifier does not know.
            let from = start + (offset & 0xff) as usize;
            (from + size_of::<T>() <= end).then_some(from as *mut T)
        }
    }

    #[inline(always)]
    fn at<T: Copy>(self, offset: u32) -> Option<T> {
        // SAFETY: within the frame; plain data.
        self.place::<T>(offset).map(|place| unsafe { place.read_unaligned() })
    }

    #[inline(always)]
    fn put<T>(self, offset: u32, value: T) -> Option<()> {
        // SAFETY: within the frame; plain data.
        self.place::<T>(offset).map(|place| unsafe { place.write_unaligned(value) })
    }

    #[inline(always)]
    fn len(self) -> u32 {
        // SAFETY: the kernel's context.
        unsafe {
            (&raw const (*self.0).data_end).read_volatile() - (&raw const (*self.0).data).read_volatile()
        }
    }

    #[inline(always)]
    fn ifindex(self) -> u32 {
        // SAFETY: the kernel's context.
        unsafe { (&raw const (*self.0).ingress_ifindex).read_volatile() }
    }

    /// Moves the start: forward (bytes go), or backward (room in front).
    #[inline(always)]
    fn move_start(self, by: i32) -> bool {
        // SAFETY: the kernel's context.
        unsafe { bpf_xdp_adjust_head(self.0, by) == 0 }
    }
}

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Ip4 {
    version_len: u8,
    tos: u8,
    len: [u8; 2],
    id: u16,
    fragment: [u8; 2],
    ttl: u8,
    proto: u8,
    sum: u16,
    src: u32,
    dst: u32,
}

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Ip6 {
    version: [u8; 4],
    len: [u8; 2],
    next: u8,
    hops: u8,
    src: [u32; 4],
    dst: [u32; 4],
}

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Ethernet {
    dst: [u8; 6],
    src: [u8; 6],
    protocol: u16,
}

/// Everything in front of the inner Ethernet header.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Outer {
    ethernet: Ethernet,
    ip: Ip4,
    sport: u16,
    dport: u16,
    len: u16,
    sum: u16,
    flags: u32,
    vni: u32,
}

/// The frame at `offset`, if it is what this program may pass on: a whole TCP or UDP packet without options that
/// does not begin or break off a connection. Offsets in `packet` count from the start of the frame.
#[inline(always)]
fn parse(frame: Frame, offset: u32, packet: &mut Packet) -> Option<()> {
    let ip = offset + ETH_LEN;
    let protocol: u16 = frame.at(offset + 12)?;
    packet.kind = Kind::Whole;
    packet.whole_only = true;
    packet.frag_id = 0;
    packet.flags = 0;
    packet.header = 0;
    packet.tuple.zero = [0; 3];
    if protocol == ETH_P_IP {
        let header: Ip4 = frame.at(ip)?;
        // Neither options nor a fragment.
        if header.version_len != 0x45 || u16::from_be_bytes(header.fragment) & 0x3fff != 0 {
            return None;
        }
        packet.v4 = true;
        packet.ttl = header.ttl;
        packet.len = u16::from_be_bytes(header.len).into();
        packet.tuple.proto = header.proto;
        packet.tuple.src = Addr::v4(header.src);
        packet.tuple.dst = Addr::v4(header.dst);
        packet.l4 = ip + IP4_LEN;
    } else if protocol == ETH_P_IPV6 {
        let header: Ip6 = frame.at(ip)?;
        if header.version[0] >> 4 != 6 {
            return None;
        }
        packet.v4 = false;
        packet.ttl = header.hops;
        packet.len = u32::from(u16::from_be_bytes(header.len)) + IP6_LEN;
        packet.tuple.proto = header.next;
        packet.tuple.src = Addr(header.src);
        packet.tuple.dst = Addr(header.dst);
        packet.l4 = ip + IP6_LEN;
    } else {
        return None;
    }
    // A frame may be longer than its packet (padding), never shorter.
    if packet.ttl <= 1 || ip + packet.len > frame.len() {
        return None;
    }
    let [sport, dport]: [u16; 2] = frame.at(packet.l4)?;
    packet.tuple.sport = sport;
    packet.tuple.dport = dport;
    let inside = ip + packet.len - packet.l4;
    if packet.tuple.proto == TCP {
        let [header, flags]: [u8; 2] = frame.at(packet.l4 + 12)?;
        packet.header = (header >> 4) * 4;
        packet.flags = flags;
        if packet.header < 20 || u32::from(packet.header) > inside || flags & (SYN | RST) != 0 {
            return None;
        }
        return Some(());
    }
    let len: u16 = frame.at(packet.l4 + 4)?;
    packet.header = 8;
    (packet.tuple.proto == UDP && u32::from(u16::from_be(len)) == inside).then_some(())
}

/// `None`: the stack shall have it as it came.
#[inline(always)]
fn pass_on<const SUMMED: bool>(frame: Frame, config: &Config) -> Option<u32> {
    let Work { packet, found, .. } = work()?;
    parse(frame, 0, packet)?;
    if packet.tuple.proto == UDP && packet.tuple.dport == config.vxlan_port.to_be() {
        return unwrap::<SUMMED>(frame, config);
    }
    if !maps::may_be_ours(&packet.tuple) {
        return None;
    }
    let mut entry = ct::established(&packet.tuple, found)?;
    let flow = &*entry.flow;
    let (flags, to, node) = (flow.flags, flow.to, flow.node);
    if entry.is_stale() || flags & (CT_TUNNEL | CT_HOST | CT_OWN) != 0 || flow.ifindex != 0 {
        return None;
    }
    if entry.is_reply() {
        // Of a backend that `snat` reached by the underlay.
        if flags & CT_ENTRY != 0 || !serve::is_snat(&packet.tuple, false, config) {
            return None;
        }
        let way = Way::to(frame, &to, packet)?;
        rewrite::<SUMMED>(frame, packet, &to)?;
        entry.touch(packet, config);
        count(Counter::Reply);
        return way.send(frame);
    }
    let backend = BACKENDS.get(flow.backend)?;
    let mark = if flags & CT_ENTRY != 0 {
        let [a, b, c, d] = backend.hash.to_be_bytes();
        let [first, second] = if flags & CT_DSR != 0 { MESH_DSR } else { MESH_REQUEST };
        Some((node, [first, second, a, b, c, d]))
    } else if serve::is_snat(&to.reversed(), true, config) {
        Some((backend.node, NODES.get(NODE_SELF)?.mac))
    } else {
        None
    };
    if let Some((node, mac)) = mark {
        let wrapping = Wrapping::to(frame, packet, node, mac, config)?;
        rewrite::<SUMMED>(frame, packet, &to)?;
        entry.touch(packet, config);
        count(Counter::Request);
        return wrapping.wrap(frame, packet, config);
    }
    // To a pod of this node otherwise.
    if !serve::is_snat(&to.reversed(), false, config) {
        return None;
    }
    let way = Way::to(frame, &to, packet)?;
    rewrite::<SUMMED>(frame, packet, &to)?;
    entry.touch(packet, config);
    count(Counter::Request);
    way.send(frame)
}

/// A reply that comes out of the tunnel, of a flow whose client talks to this node.
#[inline(always)]
fn unwrap<const SUMMED: bool>(frame: Frame, config: &Config) -> Option<u32> {
    let outer: Outer = frame.at(0)?;
    if config.vxlan_ifindex == 0
        || outer.ethernet.protocol != ETH_P_IP
        || outer.flags != VNI_VALID
        || outer.vni != (config.vni << 8).to_be()
    {
        return None;
    }
    let inner: Ethernet = frame.at(OUTER)?;
    let own = known(&Addr::v4(outer.ip.dst));
    let sender = known(&Addr::v4(outer.ip.src));
    if own.node != NODE_SELF || !own.is(ADDR_NODE) || !sender.is(ADDR_NODE) {
        return None;
    }
    let Work { packet, found, .. } = work()?;
    parse(frame, OUTER, packet)?;
    let mut entry = ct::established(&packet.tuple, found)?;
    let flow = &*entry.flow;
    let (flags, to) = (flow.flags, flow.to);
    if entry.is_stale()
        || !entry.is_reply()
        || flags & (CT_TUNNEL | CT_HOST | CT_OWN) != 0
        || flow.ifindex != 0
    {
        return None;
    }
    let meant = if [inner.src[0], inner.src[1]] == MESH_REPLY {
        flags & CT_ENTRY != 0 && flow.node == sender.node
    } else {
        // An answer to `snat`, from where the backend is.
        flags & CT_ENTRY == 0
            && serve::is_snat(&packet.tuple, true, config)
            && BACKENDS.get(flow.backend)?.node == sender.node
    };
    if !meant || !(SUMMED || packet.tuple == to) {
        return None;
    }
    let way = Way::to(frame, &to, packet)?;
    if !frame.move_start(OUTER as i32) {
        return None;
    }
    packet.l4 -= OUTER;
    rewrite::<SUMMED>(frame, packet, &to)?;
    entry.touch(packet, config);
    count(Counter::TunnelReceived);
    count(Counter::Reply);
    way.send(frame)
}

/// The Ethernet addresses of the next hop, on the device that the frame came by.
#[derive(Clone, Copy)]
struct Way {
    dst: [u8; 6],
    src: [u8; 6],
}

impl Way {
    #[inline(always)]
    fn send(self, frame: Frame) -> Option<u32> {
        frame.put(0, [self.dst, self.src])?;
        count(Counter::Xdp);
        Some(XDP_TX)
    }

    #[inline(always)]
    fn to(frame: Frame, to: &Tuple, packet: &Packet) -> Option<Self> {
        Self::find(frame, to, packet.v4, packet.len)
    }

    /// `None`: by another device, unknown, or the packet does not fit.
    #[inline(always)]
    fn find(frame: Frame, to: &Tuple, v4: bool, len: u32) -> Option<Self> {
        let params = maps::fib()?;
        out::ask_for(params, to, v4, len, frame.ifindex());
        // SAFETY: `params` outlives the call.
        let result = unsafe { fib_lookup(frame.0.cast(), params, size_of::<bpf_fib_lookup>() as i32, 0) };
        (result == i64::from(BPF_FIB_LKUP_RET_SUCCESS) && params.ifindex == frame.ifindex())
            .then_some(Self { dst: params.dmac, src: params.smac })
    }
}

/// What a request is wrapped in.
struct Wrapping {
    way: Way,
    from: u32,
    underlay: u32,
    /// Of the inner frame.
    dst: [u8; 6],
    src: [u8; 6],
}

impl Wrapping {
    #[inline(always)]
    fn to(frame: Frame, packet: &Packet, node: u32, src: [u8; 6], config: &Config) -> Option<Self> {
        let node = NODES.get(node)?;
        // Over IPv6 the outer checksum would have to be made over all of the packet.
        if node.overlay == 0
            || !node.underlay.is_v4()
            || node.underlay == Addr::ANY4
            || config.vxlan_ifindex == 0
            || packet.len > config.tunnel_mtu
        {
            return None;
        }
        // The address that the other nodes know this one by.
        let own = NODES.get(NODE_SELF)?.underlay;
        let (from, underlay) = (own.as_v4(), node.underlay.as_v4());
        let to = Tuple {
            src: own,
            dst: node.underlay,
            sport: 0,
            dport: config.vxlan_port.to_be(),
            proto: UDP,
            zero: [0; 3],
        };
        let way = Way::find(frame, &to, true, packet.len + OUTER)?;
        Some(Self { way, from, underlay, dst: node.mac, src })
    }

    #[inline(always)]
    fn wrap(&self, frame: Frame, packet: &Packet, config: &Config) -> Option<u32> {
        if !frame.move_start(-(OUTER as i32)) {
            return None;
        }
        let len = packet.len + ETH_LEN;
        // The flow's ports spread over the receiver's queues (RFC 7348 section 5: the dynamic range).
        let spread = 0xc000 | (packet.tuple.client_hash() as u16 & 0x3fff);
        let mut ip = Ip4 {
            version_len: 0x45,
            tos: 0,
            len: ((len + OUTER - ETH_LEN) as u16).to_be_bytes(),
            id: 0,
            fragment: [0x40, 0],
            ttl: 64,
            proto: UDP,
            sum: 0,
            src: self.from,
            dst: self.underlay,
        };
        ip.sum = sum(&ip);
        let outer = Outer {
            ethernet: Ethernet { dst: self.way.dst, src: self.way.src, protocol: ETH_P_IP },
            ip,
            sport: spread.to_be(),
            dport: config.vxlan_port.to_be(),
            len: ((len + 16) as u16).to_be(),
            sum: 0,
            flags: VNI_VALID,
            vni: (config.vni << 8).to_be(),
        };
        frame.put(0, outer)?;
        frame.put(OUTER, [self.dst, self.src])?;
        count(Counter::TunnelSent);
        count(Counter::Xdp);
        Some(XDP_TX)
    }
}

/// The checksum of an IPv4 header without options.
#[inline(always)]
fn sum(ip: &Ip4) -> u16 {
    // SAFETY: five words of plain data.
    let words: [u32; 5] = unsafe { core::mem::transmute_copy(ip) };
    let sum = words.iter().fold(0u64, |sum, word| sum + u64::from(*word));
    !fold(sum)
}

/// A ones' complement sum as 16 bits.
#[inline(always)]
fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Corrects a checksum (RFC 1624, equation 3).
#[inline(always)]
fn corrected(old: u16, first: u32, second: u32) -> u16 {
    !fold(u64::from(!old) + u64::from(first) + u64::from(second))
}

/// Makes the packet, whose frame begins at the start, one of `to`, one hop further.
#[inline(always)]
fn rewrite<const SUMMED: bool>(frame: Frame, packet: &Packet, to: &Tuple) -> Option<()> {
    let from = &packet.tuple;
    if *from != *to && !SUMMED {
        return None;
    }
    let addrs = address_diff(from, to);
    if *from != *to {
        let at = packet.l4 + if from.proto == TCP { 16 } else { 6 };
        let old: u16 = frame.at(at)?;
        // UDP over IPv4 without a checksum stays so.
        if from.proto == TCP || old != 0 {
            let ports = Diff::new().pair(from.sport, to.sport).pair(from.dport, to.dport).fold();
            let new = corrected(old, addrs, ports);
            frame.put(at, if from.proto == UDP && new == 0 { 0xffff } else { new })?;
        }
        frame.put(packet.l4, [to.sport, to.dport])?;
    }
    let ttl = packet.ttl - 1;
    if !packet.v4 {
        frame.put(ETH_LEN + 8, [to.src.0, to.dst.0])?;
        return frame.put(ETH_LEN + 7, ttl);
    }
    let hop = Diff::new().word(packet.ttl.into(), ttl.into()).fold();
    let old: u16 = frame.at(ETH_LEN + 10)?;
    frame.put(ETH_LEN + 8, ttl)?;
    frame.put(ETH_LEN + 10, corrected(old, addrs, hop))?;
    frame.put(ETH_LEN + 12, [to.src.as_v4(), to.dst.as_v4()])
}
