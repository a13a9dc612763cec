//! The eBPF programs of Heddle. What their maps hold: `heddle-ebpf-common`; which hook does what: [`hooks`] and
//! [`socket`]; what becomes of a service's packet: [`serve`]; the ways out: [`out`].
//!
//! The same code serves both families: addresses are 16 bytes everywhere, and only where a header is read or
//! written does it matter which it is.
//!
//! What the verifier, LLVM and the kernel ask of this code:
//!
//! - The stack has 512 bytes for all calls together (each takes a multiple of 32; newer kernels are more generous than
//!   6.1), and calls nest eight deep. What is large lives in per-CPU maps
//!   ([`maps::work`]), which the verifier does not follow byte by byte either. Functions are `inline(never)`
//!   where a call costs less than the code again, with at most five arguments, pointers counted.
//! - A loop is unrolled by the verifier for every call that leads to it. Short ones stay; others are `bpf_loop`.
//!   A test (`the_verifier_is_far_from_its_limit`) watches the sum.
//! - No function can panic: no indexing that could miss, no arithmetic that is checked.
//! - Elements of hash maps are reused while they are read: copy first, then compare the copy's `check`.
//! - Packets may be in pieces (non-linear) and their checksums unfinished (offload): reads fall back to
//!   `bpf_skb_load_bytes`, sums are corrected by the kernel's helpers only.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod ct;
mod events;
mod frontend;
mod hooks;
mod icmp;
mod maps;
mod mss;
mod nat;
mod out;
mod packet;
mod reject;
mod serve;
mod skb;
mod socket;
mod time;
mod vxlan;
mod xdp;

/// The kernel takes these words as the programs' licence.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
