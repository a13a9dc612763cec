//! The socket buffer that a tc program is given: reads and writes with offsets, and the constants around it.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated::{
    bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_change_tail, bpf_skb_change_type, bpf_skb_load_bytes,
    bpf_skb_store_bytes,
};
use heddle_ebpf_common::Counter;

use crate::events;
use crate::maps::count;

/// The next program, else the stack, goes on with the packet.
pub const PASS: i32 = TC_ACT_UNSPEC;

pub const ETH_LEN: u32 = 14;
pub const IP4_LEN: u32 = 20;
pub const IP6_LEN: u32 = 40;
/// Without options.
pub const TCP_LEN: u32 = 20;
pub const UDP_LEN: u32 = 8;

/// `htons(ETH_P_IP)`, `htons(ETH_P_IPV6)`.
pub const ETH_P_IP: u16 = 0x0800_u16.to_be();
pub const ETH_P_IPV6: u16 = 0x86dd_u16.to_be();

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SCTP: u8 = 132;
pub const ICMP: u8 = 1;
pub const ICMP6: u8 = 58;

const F_RECOMPUTE_CSUM: u64 = 1;
/// Flags of bpf_l4_csum_replace (include/uapi/linux/bpf.h).
pub const F_PSEUDO: u64 = 1 << 4;
pub const F_MANGLED_0: u64 = 1 << 5;
/// Since 6.16: without it the checksum that a network card computed goes wrong over IPv6. Before, the kernel
/// refuses the flag.
const F_IPV6: u64 = 1 << 7;

/// In `cb`, from one of our programs to the next on the packet's way: this packet is done with. (What else can
/// be in these words there, options of a forwarded packet, does not matter: whoever forges it loses his own
/// reply.)
const DONE: [u32; 2] = [0x4865_6464, 0x6c65_2d3e];

/// In `mark`, between a redirect to the ingress of the underlay device and our program there: the packet is for
/// the host, already translated. No packet comes out of a device with a mark.
pub const MARK_HOST: u32 = 0x4864_6c01;

/// In `mark`, from a VXLAN packet to what is inside: the entry node (its index in `nodes`, in the lower 24 bits) of a
/// request for an external address, which does not say by itself who the entry node is.
pub const MARK_ENTRY: u32 = 0x4900_0000;
pub const MARK_ENTRY_MASK: u32 = 0xff00_0000;

#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Skb(pub *mut __sk_buff);

/// A field of the context, as the one load or store of its own width that the verifier wants.
macro_rules! field {
    ($($get:ident $(, $set:ident)?: $field:ident;)*) => { $(
        #[inline(always)]
        pub fn $get(self) -> u32 {
            // SAFETY: the kernel's context, valid while the program runs.
            unsafe { (&raw const (*self.0).$field).read_volatile() }
        }
        $(#[inline(always)]
        pub fn $set(self, value: u32) {
            // SAFETY: the kernel's context, valid while the program runs.
            unsafe { (&raw mut (*self.0).$field).write_volatile(value) }
        })?
    )* };
}

impl Skb {
    field! {
        len: len;
        ifindex: ifindex;
        gso_size: gso_size;
        mark, set_mark: mark;
        protocol: protocol;
    }

    /// Reads at a constant offset: straight from the packet where it is in one piece, as it nearly always is.
    #[inline(always)]
    pub fn at<T: Copy>(self, offset: u32) -> Option<T> {
        match self.near(offset) {
            None => self.load(offset),
            near => near,
        }
    }

    /// The same, if it is in the first piece of the packet.
    ///
    /// In loads as wide as the parts of `T`, which need not lie at multiples of their size: the kernel lets a program
    /// load so on every machine that can (on others it arranges that IP headers lie at a multiple of four). An unaligned
    /// read in the language's sense would be one of single bytes.
    #[inline(always)]
    pub fn near<T: Copy>(self, offset: u32) -> Option<T> {
        // SAFETY: the kernel's context; the bounds are compared in the form that the verifier knows.
        unsafe {
            let start = (&raw const (*self.0).data).read_volatile() as usize;
            let end = (&raw const (*self.0).data_end).read_volatile() as usize;
            let from = start + offset as usize;
            if from + size_of::<T>() <= end { Some(*(from as *const T)) } else { None }
        }
    }

    /// Are so many bytes in the first piece of the packet?
    #[inline(always)]
    pub fn is_near(self, len: u32) -> bool {
        // SAFETY: the kernel's context.
        let [start, end] = unsafe { [(*self.0).data, (*self.0).data_end] };
        start as usize + len as usize <= end as usize
    }

    /// Reads at any offset.
    #[inline(always)]
    pub fn load<T: Copy>(self, offset: u32) -> Option<T> {
        let mut value = core::mem::MaybeUninit::<T>::uninit();
        // SAFETY: room for `size_of::<T>()` bytes; `T` is plain data.
        unsafe {
            let size = size_of::<T>() as u32;
            let result = bpf_skb_load_bytes(self.0.cast(), offset, value.as_mut_ptr().cast(), size);
            (result == 0).then(|| value.assume_init())
        }
    }

    /// Reads `N` words to where there is room for them.
    #[inline(always)]
    pub fn load_words<const N: usize>(self, offset: u32, to: &mut [u32; N]) -> bool {
        // SAFETY: room for all of it.
        unsafe { bpf_skb_load_bytes(self.0.cast(), offset, to.as_mut_ptr().cast(), 4 * N as u32) == 0 }
    }

    #[inline(always)]
    pub fn store<T: Copy>(self, offset: u32, value: &T) -> bool {
        // SAFETY: `size_of::<T>()` bytes of plain data.
        unsafe {
            bpf_skb_store_bytes(self.0, offset, (&raw const *value).cast(), size_of::<T>() as u32, 0) == 0
        }
    }

    /// Writes the first `len` bytes of `value`.
    #[inline(always)]
    pub fn store_part<T: Copy>(self, offset: u32, value: &T, len: u32) -> bool {
        if len > size_of::<T>() as u32 {
            return false;
        }
        // SAFETY: plain data, of which `len` bytes are there.
        unsafe { bpf_skb_store_bytes(self.0, offset, (&raw const *value).cast(), len, 0) == 0 }
    }

    /// The same for a byte that no checksum in the packet covers: the sum that a network card computed over
    /// the whole packet is corrected.
    #[inline(always)]
    pub fn store_unsummed(self, offset: u32, value: u8) -> bool {
        // SAFETY: one byte.
        unsafe { bpf_skb_store_bytes(self.0, offset, (&raw const value).cast(), 1, F_RECOMPUTE_CSUM) == 0 }
    }

    /// Corrects the IPv4 header's checksum at `offset` by `diff` ([`Diff`](crate::nat::Diff)).
    #[inline(always)]
    pub fn fix_l3(self, offset: u32, diff: u32) -> bool {
        // SAFETY: the kernel's context.
        unsafe { bpf_l3_csum_replace(self.0, offset, 0, diff.into(), 0) == 0 }
    }

    /// Corrects a transport checksum at `offset`; `flags`: `F_*`.
    #[inline(always)]
    pub fn fix_l4(self, offset: u32, diff: u32, flags: u64) -> bool {
        // SAFETY: the kernel's context.
        unsafe { bpf_l4_csum_replace(self.0, offset, 0, diff.into(), flags) == 0 }
    }

    /// [`fix_l4`](Self::fix_l4) for a change of IPv6 addresses.
    #[inline(always)]
    pub fn fix_l4_v6(self, offset: u32, diff: u32, flags: u64) -> bool {
        self.fix_l4(offset, diff, flags | F_IPV6) || self.fix_l4(offset, diff, flags)
    }

    /// Cuts or lengthens the packet; drops segmentation offload.
    #[inline(always)]
    pub fn resize(self, len: u32) -> bool {
        // SAFETY: the kernel's context.
        unsafe { bpf_skb_change_tail(self.0, len, 0) == 0 }
    }

    /// To us, whatever the Ethernet address says.
    #[inline(always)]
    pub fn set_for_host(self) {
        // SAFETY: the kernel's context; 0 is PACKET_HOST.
        unsafe { bpf_skb_change_type(self.0, 0) };
    }

    /// Notes where the packet is sent (for tests) and that our program there has nothing to do.
    #[inline(always)]
    pub fn set_done(self, ifindex: u32) {
        // SAFETY: the kernel's context.
        unsafe {
            let cb = (&raw mut (*self.0).cb).cast::<u32>();
            cb.write_volatile(ifindex);
            cb.add(1).write_volatile(DONE[0]);
            cb.add(2).write_volatile(DONE[1]);
        }
    }

    #[inline(always)]
    pub fn is_done(self) -> bool {
        // SAFETY: the kernel's context.
        unsafe {
            let cb = (&raw const (*self.0).cb).cast::<u32>();
            cb.add(1).read_volatile() == DONE[0] && cb.add(2).read_volatile() == DONE[1]
        }
    }

    #[inline(always)]
    pub fn drop(self, reason: Counter) -> i32 {
        count(reason);
        events::note(reason);
        TC_ACT_SHOT
    }
}
