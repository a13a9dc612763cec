//! Time and chance. Both can come from the configuration, so that tests are exact.

use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::helpers::generated::{bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};
use heddle_ebpf_common::Config;

/// Monotonic nanoseconds.
#[inline(always)]
pub fn now(config: &Config) -> u64 {
    if config.fixed_time != 0 {
        config.fixed_time
    } else {
        // SAFETY: no argument, no memory.
        unsafe { bpf_ktime_get_ns() }
    }
}

/// The same in steps of 2^30 (about a second), read from what the last tick of the kernel's clock left.
#[inline(always)]
pub fn coarse_now(config: &Config) -> u64 {
    let now = if config.fixed_time != 0 {
        config.fixed_time
    } else {
        // SAFETY: no argument, no memory.
        unsafe { bpf_ktime_get_coarse_ns() }
    };
    now >> 30 << 30
}

/// [`Config::settling`].
#[inline(always)]
pub fn is_settling(config: &Config) -> bool {
    config.settling != 0 && now(config) < config.settling
}

#[inline(always)]
pub fn random(config: &Config) -> u32 {
    if config.fixed_random != 0 {
        config.fixed_random
    } else {
        // SAFETY: no argument, no memory.
        unsafe { bpf_get_prandom_u32() }
    }
}
