//! The tuple of a TCP packet, in either form of address.

use aya_ebpf::programs::TcContext;
use heddle_ebpf_common::Addr;

use crate::keys::Tuple;

const ETH: usize = 14;
const IPV4: u16 = 0x0800_u16.to_be();
const IPV6: u16 = 0x86dd_u16.to_be();
const TCP: u8 = 6;

/// A pointer into the packet at which a `T` lies whole.
#[inline(always)]
fn at<T>(ctx: &TcContext, offset: usize) -> Option<*const T> {
    let start = ctx.data() + offset;
    (start + size_of::<T>() <= ctx.data_end()).then_some(start as *const T)
}

#[repr(C, packed)]
struct Ip4 {
    version: u8,
    tos: u8,
    len: u16,
    id: u16,
    frag: u16,
    ttl: u8,
    proto: u8,
    check: u16,
    src: u32,
    dst: u32,
}

#[repr(C, packed)]
struct Ip6 {
    version: u32,
    len: u16,
    next: u8,
    hops: u8,
    src: [u32; 4],
    dst: [u32; 4],
}

/// `None`: neither IPv4 nor IPv6.
#[inline(always)]
pub fn is_v4(ctx: &TcContext) -> Option<bool> {
    // SAFETY: `at` has checked that it lies in the packet; any bits are a u16.
    match unsafe { at::<u16>(ctx, 12)?.read_unaligned() } {
        IPV4 => Some(true),
        IPV6 => Some(false),
        _ => None,
    }
}

#[inline(always)]
fn ports(ctx: &TcContext, offset: usize) -> Option<[u16; 2]> {
    // SAFETY: as above.
    Some(unsafe { at::<[u16; 2]>(ctx, offset)?.read_unaligned() })
}

#[inline(always)]
pub fn v4(ctx: &TcContext) -> Option<Tuple<u32>> {
    // SAFETY: as above; the type is packed.
    let ip = unsafe { &*at::<Ip4>(ctx, ETH)? };
    // No options, no fragment, TCP.
    if ip.version != 0x45 || ip.frag & 0x3fff_u16.to_be() != 0 || ip.proto != TCP {
        return None;
    }
    let [sport, dport] = ports(ctx, ETH + size_of::<Ip4>())?;
    Some(Tuple { src: ip.src, dst: ip.dst, sport, dport, proto: ip.proto, zero: [0; 3] })
}

#[inline(always)]
pub fn v6(ctx: &TcContext) -> Option<Tuple<Addr>> {
    // SAFETY: as above; the type is packed.
    let ip = unsafe { &*at::<Ip6>(ctx, ETH)? };
    if ip.next != TCP {
        return None;
    }
    let [sport, dport] = ports(ctx, ETH + size_of::<Ip6>())?;
    Some(Tuple { src: Addr(ip.src), dst: Addr(ip.dst), sport, dport, proto: ip.next, zero: [0; 3] })
}

/// The IPv4 tuple with its addresses in the mapped form.
#[inline(always)]
pub fn mapped(tuple: Tuple<u32>) -> Tuple<Addr> {
    let Tuple { src, dst, sport, dport, proto, zero } = tuple;
    Tuple { src: Addr::v4(src), dst: Addr::v4(dst), sport, dport, proto, zero }
}
