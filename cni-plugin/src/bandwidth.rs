//! Limits of what a pod receives and sends (capability `bandwidth`): token buckets at the two ends of its pair.
//!
//! What a pod receives leaves the host by the pair's host side, what it sends leaves the pod by its own side; a root
//! queue is passed by everything that leaves, whether the stack sends it or an eBPF program redirects it. A limit at the
//! host side's *ingress* (the reference plugin's ifb device) would not be: what a program at that hook takes away, as
//! `proxyd` does with services and their replies, never comes to it. The sender is held back instead of losing packets,
//! there is no third device, and both queues go with the pair.

use heddle_netlink::Socket;
use heddle_netlink::link::Link;
use heddle_netlink::tc::{self, TokenBucket};
use heddle_spec::{Failure, code};

use crate::conf::{Bandwidth, Limit};

/// Ethernet header, with room for tags.
const FRAMING: u64 = 22;
/// Nobody said how much may leave at once: as much as in 10 ms, but at least this (bytes).
const LEAST_BURST: u64 = 32 * 1024;
/// What is more would be no limit for too long.
const MOST_BURST: u64 = 16 << 20;
/// Room for what waits: 50 ms, but at least this.
const LEAST_QUEUE: u64 = 32 * 1024;

/// Limits both directions, as far as limits are wanted. `near` is the host side, `far` the pod's.
pub fn limit(
    wanted: &Bandwidth,
    (host, near): (&mut Socket, &Link),
    (pod, far): (&mut Socket, &Link),
) -> Result<(), Failure> {
    if let Some(limit) = wanted.ingress {
        tc::set_token_bucket(host, near.index, &bucket(limit, near.mtu))?;
    }
    if let Some(limit) = wanted.egress {
        tc::set_token_bucket(pod, far.index, &bucket(limit, far.mtu))?;
    }
    Ok(())
}

/// Compares the limits with those that are wanted.
///
/// # Errors
/// Code 101 for the first difference.
pub fn check(
    wanted: &Bandwidth,
    (host, near): (&mut Socket, &Link),
    (pod, far): (&mut Socket, &Link),
) -> Result<(), Failure> {
    for (limit, socket, link, what) in
        [(wanted.ingress, host, near, "ingressRate"), (wanted.egress, pod, far, "egressRate")]
    {
        let Some(limit) = limit else { continue };
        let bucket = bucket(limit, link.mtu);
        let found = match tc::token_bucket(socket, link.index)? {
            Some(found) if found == (bucket.rate, bucket.limit) => continue,
            Some((rate, room)) => format!("limited to {rate} bytes per second with room for {room}"),
            None => "not limited".into(),
        };
        return Err(Failure::new(
            code::KERNEL,
            format!(
                "bandwidth: {} is {found}; by {what} it should be {} with room for {}",
                link.name, bucket.rate, bucket.limit
            ),
        ));
    }
    Ok(())
}

fn bucket(limit: Limit, mtu: u32) -> TokenBucket {
    let rate = limit.rate / 8;
    let wanted = limit.burst.map_or_else(|| (rate / 100).clamp(LEAST_BURST, MOST_BURST), |bits| bits / 8);
    // Less than a packet would let nothing pass.
    let burst = wanted.max(u64::from(mtu) + FRAMING);
    let bytes = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    TokenBucket {
        rate,
        burst: bytes(burst),
        limit: bytes(burst.saturating_add((rate / 20).max(LEAST_QUEUE))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_become_bytes_and_a_packet_always_fits() {
        let bucket = |rate, burst| bucket(Limit { rate, burst }, 1500);
        assert_eq!(bucket(50_000_000, None), TokenBucket { rate: 6_250_000, burst: 62_500, limit: 375_000 });
        assert_eq!(bucket(50_000_000, Some(800_000)).burst, 100_000);
        assert_eq!(bucket(8, None), TokenBucket { rate: 1, burst: 32_768, limit: 65_536 });
        assert_eq!(bucket(1_000_000, Some(80)).burst, 1522);
        assert_eq!(bucket(u64::MAX, None).burst, 16 << 20);
        assert_eq!(bucket(u64::MAX, Some(u64::MAX)).limit, u32::MAX);
    }
}
