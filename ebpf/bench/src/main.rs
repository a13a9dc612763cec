//! What do 16-byte addresses in all maps cost, against a second set of maps for IPv4?
//!
//! Design `one`: IPv4 addresses in their mapped form, one set of maps, one code path. Design `two`: IPv4
//! packets have maps with 4-byte addresses and a code path of their own. Of each design there is a program
//! for every step, so that the steps can be subtracted from each other.
//!
//! A run takes the next of the clients and services of `options`, so that a run with `repeat` walks over all
//! entries as traffic does, and not over one that is in the cache. The return value tells what was found:
//! bit 0 a frontend, bit 1 a flow; or it is [`BAD`].
#![no_std]
#![no_main]

mod keys;
mod packet;

use core::hint::black_box;

use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::programs::TcContext;
use heddle_ebpf_common::Addr;

use keys::{Address, Flow, Frontend, FrontendKey, Tuple, fold};

const FRONTENDS: u32 = 1 << 14;
const FLOWS: u32 = 1 << 17;
/// Not a packet that these programs know.
const BAD: u32 = 8;

type Frontends<A> = HashMap<FrontendKey<A>, Frontend>;
type Flows<A> = HashMap<Tuple<A>, Flow<A>>;

#[map(name = "one_frontends")]
static ONE_FRONTENDS: Frontends<Addr> = HashMap::with_max_entries(FRONTENDS, 0);
#[map(name = "one_flows")]
static ONE_FLOWS: Flows<Addr> = HashMap::with_max_entries(FLOWS, 0);
#[map(name = "two_frontends4")]
static TWO_FRONTENDS4: Frontends<u32> = HashMap::with_max_entries(FRONTENDS, 0);
#[map(name = "two_flows4")]
static TWO_FLOWS4: Flows<u32> = HashMap::with_max_entries(FLOWS, 0);
#[map(name = "two_frontends6")]
static TWO_FRONTENDS6: Frontends<Addr> = HashMap::with_max_entries(FRONTENDS, 0);
#[map(name = "two_flows6")]
static TWO_FLOWS6: Flows<Addr> = HashMap::with_max_entries(FLOWS, 0);

/// How many flows the runs walk over; how many flows a service has.
#[map(name = "options")]
static OPTIONS: Array<[u32; 2]> = Array::with_max_entries(1, 0);
#[map(name = "turn")]
static TURN: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// Steps of a program, to be combined.
const FRONTEND: u32 = 1;
const FLOW: u32 = 2;

/// The number of a flow and of its service.
#[inline(always)]
fn next() -> Option<(u32, u32)> {
    let [flows, share] = *OPTIONS.get(0)?;
    let turn = TURN.get_ptr_mut(0)?;
    // SAFETY: an element of a per-CPU map, which nobody else uses at this moment.
    let n = unsafe {
        *turn = (*turn).wrapping_add(1);
        *turn
    };
    // Multiplying by an odd number scatters them: neither the cache nor its prefetcher knows the next.
    let n = ((u64::from(n.wrapping_mul(0x9e37_79b1)) * u64::from(flows)) >> 32) as u32;
    Some((n, n.checked_div(share).unwrap_or(0)))
}

#[inline(always)]
fn steps<A: Address>(
    mut tuple: Tuple<A>,
    frontends: &Frontends<A>,
    flows: &Flows<A>,
    steps: u32,
) -> Option<u32> {
    let (client, service) = next()?;
    tuple.src = tuple.src.above(client);
    tuple.dst = tuple.dst.above(service);
    // Both keys are made, also where a step does not use them.
    let key = &tuple.frontend();
    let (key, tuple) = (black_box(key), black_box(&tuple));
    let mut found = 0;
    if steps & FRONTEND != 0 {
        // SAFETY: user space writes the map before it is measured, not meanwhile. Copied and looked at
        // whole, as the product's programs do.
        if let Some(value) = unsafe { frontends.get(key) } {
            found |= fold(value);
        }
    }
    if steps & FLOW != 0 {
        // SAFETY: as above.
        if let Some(value) = unsafe { flows.get(tuple) } {
            found |= value.fold();
        }
    }
    Some(found)
}

#[inline(always)]
fn one(ctx: &TcContext, what: u32) -> Option<u32> {
    let tuple = if packet::is_v4(ctx)? { packet::mapped(packet::v4(ctx)?) } else { packet::v6(ctx)? };
    steps(tuple, &ONE_FRONTENDS, &ONE_FLOWS, what)
}

#[inline(always)]
fn two(ctx: &TcContext, what: u32) -> Option<u32> {
    if packet::is_v4(ctx)? {
        steps(packet::v4(ctx)?, &TWO_FRONTENDS4, &TWO_FLOWS4, what)
    } else {
        steps(packet::v6(ctx)?, &TWO_FRONTENDS6, &TWO_FLOWS6, what)
    }
}

macro_rules! programs { ($($name:ident = $design:ident($steps:expr);)*) => { $(
    #[classifier]
    pub fn $name(ctx: TcContext) -> i32 {
        $design(&ctx, $steps).unwrap_or(BAD) as i32
    }
)* } }

programs! {
    one_parse = one(0);
    one_frontend = one(FRONTEND);
    one_flow = one(FLOW);
    one_both = one(FRONTEND | FLOW);
    two_parse = two(0);
    two_frontend = two(FRONTEND);
    two_flow = two(FLOW);
    two_both = two(FRONTEND | FLOW);
}

/// What every run costs.
#[classifier]
pub fn empty(_ctx: TcContext) -> i32 {
    0
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
