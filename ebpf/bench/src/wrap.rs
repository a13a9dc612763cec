//! Runs a program of the product over and over on the packet that it is meant for.
//!
//! BPF_PROG_TEST_RUN does not restore the packet between two runs of one system call. So `wrap` writes it anew, gives it
//! the ports and the address of the next flow, and calls whatever stands in `target`: a tail call out of a
//! subprogram, which comes back here. With `nothing` there, it measures itself.
#![no_std]
#![no_main]

use core::hint::black_box;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::{Array, ProgramArray};
use aya_ebpf::programs::TcContext;

/// Words of 64 bits that are restored of a packet: all headers. (IPv4: the first eight.)
const WORDS: usize = 10;
/// Flows of one address; the next have the next address.
const PORTS: u32 = 50_000;
const FIRST_PORT: u32 = 1_024;

/// What `wrap` is to do.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Plan {
    pub frame: [u64; WORDS],
    /// How many flows there are, in turn.
    pub flows: u32,
    /// The number of the next one.
    pub next: u32,
    /// 1: the flows' ports are destination ports.
    pub replies: u32,
    /// 0: the flows' addresses are sources; 1: destinations.
    pub destinations: u32,
}

#[map(name = "plan")]
static PLAN: Array<Plan> = Array::with_max_entries(1, 0);
#[map(name = "target")]
static TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// A place in the packet, whose end was compared.
#[inline(always)]
fn place<T>(ctx: &TcContext, offset: usize) -> Option<*mut T> {
    let start = ctx.data() + offset;
    (start + size_of::<T>() <= ctx.data_end()).then_some(start as *mut T)
}

#[inline(always)]
fn write<T>(ctx: &TcContext, offset: usize, value: T) -> Option<()> {
    let place = place::<T>(ctx, offset)?;
    // SAFETY: inside the packet, where a program may write words at any address.
    unsafe { *place = value };
    Some(())
}

/// The last two bytes of an address, `n` higher.
#[inline(always)]
fn above(word: u64, shift: u32, n: u32) -> u16 {
    ((word >> shift) as u16).swap_bytes().wrapping_add(n as u16).swap_bytes()
}

#[inline(always)]
fn restore(ctx: &TcContext) -> Option<()> {
    let plan = PLAN.get_ptr_mut(0)?;
    // SAFETY: the one thread that measures.
    let plan = unsafe { &mut *plan };
    let mut n = plan.next;
    if n >= plan.flows {
        n = 0;
    }
    plan.next = n.wrapping_add(1);
    let (high, low) = (n / PORTS, n % PORTS);
    let port = ((FIRST_PORT + low) as u16).to_be();
    let v4 = plan.frame[1] >> 32 & 0xffff == 0x0008;
    let frame = &plan.frame;
    if v4 {
        write(ctx, 0, [frame[0], frame[1], frame[2], frame[3], frame[4], frame[5], frame[6], frame[7]])?;
        if plan.destinations == 0 {
            write(ctx, 28, above(frame[3], 32, high))?;
        } else {
            write(ctx, 32, above(frame[4], 0, high))?;
        }
        if plan.replies == 0 { write(ctx, 34, port) } else { write(ctx, 36, port) }
    } else {
        write(ctx, 0, *frame)?;
        if plan.destinations == 0 {
            write(ctx, 36, above(frame[4], 32, high))?;
        } else {
            write(ctx, 52, above(frame[6], 32, high))?;
        }
        if plan.replies == 0 { write(ctx, 54, port) } else { write(ctx, 56, port) }
    }
}

#[inline(never)]
fn call(skb: *mut __sk_buff) -> i32 {
    let ctx = TcContext::new(skb);
    // SAFETY: comes back only if nothing stands there.
    unsafe { TARGET.tail_call(&ctx, 0) };
    black_box(-2)
}

/// -2: nothing stands in `target`; -3: a packet too short.
#[classifier]
pub fn wrap(ctx: TcContext) -> i32 {
    if restore(&ctx).is_none() {
        return -3;
    }
    call(ctx.skb.skb)
}

#[classifier]
pub fn nothing(_ctx: TcContext) -> i32 {
    black_box(0)
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
