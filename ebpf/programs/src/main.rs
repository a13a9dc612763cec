//! The eBPF programs of Heddle. Their maps: [`maps`]; what the maps hold: `heddle-ebpf-common`.
#![no_std]
#![no_main]

mod ct;
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

/// The kernel takes these words as the programs' licence.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
