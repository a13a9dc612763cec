//! The MSS option of SYN and SYN-ACK: nobody sends segments that the way does not carry.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;

use crate::nat::Diff;
use crate::packet::{Kind, Packet, SYN};
use crate::skb::Skb;

/// Options looked at. The MSS is nearly always the first.
const OPTIONS: u32 = 8;

/// Lowers the MSS to `most`. 0: unknown, nothing is done.
#[inline(always)]
pub fn clamp(skb: Skb, packet: &Packet, most: u32) {
    if packet.flags & SYN != 0 && packet.is_tcp() && packet.kind == Kind::Whole && most != 0 && most < 0xffff
    {
        lower(skb, packet, most as u16);
    }
}

/// A search for the MSS among the options.
struct Options<'a> {
    skb: Skb,
    packet: &'a Packet,
    most: u16,
    at: u32,
    end: u32,
}

#[inline(never)]
fn lower(skb: Skb, packet: &Packet, most: u16) {
    let end = packet.l4 + u32::from(packet.header);
    let mut options = Options { skb, packet, most, at: packet.l4 + 20, end };
    // SAFETY: `option` is called with this very pointer, while `options` lives.
    unsafe { bpf_loop(OPTIONS, option as *mut c_void, (&raw mut options).cast(), 0) };
}

/// Looks at the next option. 1: there is nothing more to look for.
extern "C" fn option(_: u32, options: *mut Options<'_>) -> i64 {
    // SAFETY: `lower` passes its own, exclusively.
    let Options { skb, packet, most, at, end } = unsafe { &mut *options };
    if *at >= *end {
        return 1;
    }
    match skb.load::<u8>(*at) {
        Some(1) => *at += 1,
        None | Some(0) => return 1,
        Some(kind) => {
            let Some(len) = skb.load::<u8>(*at + 1) else { return 1 };
            if kind == 2 {
                if len == 4 && *at + 4 <= *end {
                    replace(*skb, packet, *at + 2, *most);
                }
                return 1;
            }
            if len < 2 {
                return 1;
            }
            *at += u32::from(len);
        }
    }
    0
}

#[inline(always)]
fn replace(skb: Skb, packet: &Packet, at: u32, most: u16) {
    let Some(old) = skb.load::<u16>(at) else { return };
    if old.swap_bytes() <= most {
        return;
    }
    let new = most.to_be();
    let diff = Diff::new().pair(old, new).fold();
    // At an odd offset (after NOPs) the sum sees the bytes swapped.
    let diff = if (at - packet.l4) & 1 == 0 { diff } else { diff.rotate_left(8) };
    if skb.store(at, &new) {
        skb.fix_l4(packet.l4 + 16, diff, 0);
    }
}
