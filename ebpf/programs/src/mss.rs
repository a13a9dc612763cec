//! The MSS option of SYN and SYN-ACK: nobody sends segments that the way does not carry.

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

#[inline(never)]
fn lower(skb: Skb, packet: &Packet, most: u16) {
    let mut at = packet.l4 + 20;
    let end = packet.l4 + u32::from(packet.header);
    for _ in 0..OPTIONS {
        if at >= end {
            return;
        }
        let Some(kind) = skb.load::<u8>(at) else { return };
        match kind {
            0 => return,
            1 => at += 1,
            _ => {
                let Some(len) = skb.load::<u8>(at + 1) else { return };
                if kind == 2 {
                    if len == 4 && at + 4 <= end {
                        replace(skb, packet, at + 2, most);
                    }
                    return;
                }
                if len < 2 {
                    return;
                }
                at += u32::from(len);
            }
        }
    }
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
