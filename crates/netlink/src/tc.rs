//! Queues: a token bucket at the root of a device, which limits what leaves by it.
//!
//! Source: include/uapi/linux/pkt_sched.h, net/sched/sch_tbf.c.

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_ECHO, NLM_F_REPLACE, NLM_F_REQUEST};

use crate::wire::{attributes, put_attribute, text, u32_at};
use crate::{Result, Socket};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const TC_H_ROOT: u32 = 0xffff_ffff;
/// Major number 1, as `tc` gives the first one.
const HANDLE: u32 = 0x1_0000;
/// Length of `struct tcmsg`.
const HEADER: usize = 20;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const NLA_F_NESTED: u16 = 0x8000;

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes per second, Ethernet headers included. At least 1.
    pub rate: u64,
    /// Bytes that may leave at once after a pause. At least the longest packet's length, else longer ones are
    /// cut into segments or, where that cannot be, dropped.
    pub burst: u32,
    /// Bytes that may wait; what is more is dropped.
    pub limit: u32,
}

/// Limits what leaves by a device: puts a token bucket in place of whatever its root queue was.
pub fn set_token_bucket(socket: &mut Socket, link: u32, bucket: &TokenBucket) -> Result<()> {
    let mut payload = header(link, HANDLE);
    put_attribute(&mut payload, TCA_KIND, b"tbf\0");
    let mut parameters = Vec::new();
    // struct tc_ratespec: only the rate; the kernel computes everything else from it and the burst.
    parameters.extend([0; 8]);
    parameters.extend(u32::try_from(bucket.rate).unwrap_or(u32::MAX).to_ne_bytes());
    // No peak rate.
    parameters.extend([0; 12]);
    parameters.extend(bucket.limit.to_ne_bytes());
    // Buffer in ticks and MTU: said by TCA_TBF_BURST.
    parameters.extend([0; 8]);
    let mut options = Vec::new();
    put_attribute(&mut options, TCA_TBF_PARMS, &parameters);
    if bucket.rate > u64::from(u32::MAX) {
        put_attribute(&mut options, TCA_TBF_RATE64, &bucket.rate.to_ne_bytes());
    }
    put_attribute(&mut options, TCA_TBF_BURST, &bucket.burst.to_ne_bytes());
    put_attribute(&mut payload, TCA_OPTIONS | NLA_F_NESTED, &options);
    let object = format_args!("token bucket dev {link}");
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    let sequence = socket.send("set", object, RTM_NEWQDISC, flags, &payload)?;
    socket.receive("set", object, sequence, |_| Ok(()))
}

/// Rate and limit of the token bucket at a device's root, if there is one. The kernel does not tell the burst.
pub fn token_bucket(socket: &mut Socket, link: u32) -> Result<Option<(u64, u32)>> {
    let object = format_args!("root queue dev {link}");
    // Without the wish for an echo the kernel answers those who listen to changes, and not who asked.
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_ECHO;
    let sequence = socket.send("find", object, RTM_GETQDISC, flags, &header(link, 0))?;
    let mut found = None;
    let answer = socket.receive("find", object, sequence, |frame| {
        found = frame.payload.get(HEADER..).and_then(parse);
        Ok(())
    });
    match answer {
        Ok(()) => Ok(found),
        Err(error) if error.not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes a device's root queue away; it gets the default one.
pub fn delete_root(socket: &mut Socket, link: u32) -> Result<()> {
    let object = format_args!("root queue dev {link}");
    let sequence =
        socket.send("delete", object, RTM_DELQDISC, NLM_F_REQUEST | NLM_F_ACK, &header(link, 0))?;
    socket.receive("delete", object, sequence, |_| Ok(()))
}

fn header(link: u32, handle: u32) -> Vec<u8> {
    let mut header = vec![0; 4];
    header.extend(link.to_ne_bytes());
    header.extend(handle.to_ne_bytes());
    header.extend(TC_H_ROOT.to_ne_bytes());
    header.extend([0; 4]);
    header
}

fn parse(message: &[u8]) -> Option<(u64, u32)> {
    let find = |bytes, wanted| attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    if text(find(message, TCA_KIND)?) != "tbf" {
        return None;
    }
    let options = find(message, TCA_OPTIONS)?;
    let parameters = find(options, TCA_TBF_PARMS)?;
    let rate = match find(options, TCA_TBF_RATE64) {
        Some(rate) => u64::from_ne_bytes(rate.try_into().ok()?),
        None => u64::from(u32_at(parameters, 8)?),
    };
    Some((rate, u32_at(parameters, 24)?))
}
