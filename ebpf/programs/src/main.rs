//! The eBPF programs of Heddle.
#![no_std]
#![no_main]

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;

/// Host side of a pod's veth, ingress.
#[classifier]
pub fn pod(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
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
