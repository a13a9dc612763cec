//! The eBPF programs of Heddle. Their maps: [`maps`]; what the maps hold: `heddle-ebpf-common`.
#![no_std]
#![no_main]

mod frontend;
mod maps;
mod socket;
mod time;

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

macro_rules! hooks { ($($(#[$doc:meta])* $name:ident;)*) => { $(
    $(#[$doc])*
    #[classifier]
    pub fn $name(_ctx: TcContext) -> i32 {
        TC_ACT_UNSPEC
    }
)* } }

hooks! {
    /// What a pod sends: ingress of the host side of its veth.
    pod;
    /// What the host sends to a pod: egress of the same.
    pod_out;
    underlay_in;
    underlay_out;
    /// What the VXLAN device has unwrapped.
    overlay_in;
}

/// The kernel takes these words as the programs' licence.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
