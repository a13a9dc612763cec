//! What marks a packet of the mesh between nodes: the inner source MAC, free on a point-to-point overlay.

use crate::Addr;

/// FNV-1a over address, port and protocol of a backend, folded so that it is never 0. Both ends of a
/// tunnel compute it; it finds the backend and proves nothing.
pub fn choice_hash(addr: &Addr, port_be: u16, proto: u8) -> u32 {
    let mut hash: u32 = 0x811c_9dc5;
    let [p0, p1] = port_be.to_ne_bytes();
    let words = addr.0.map(u32::to_ne_bytes);
    for byte in words.iter().flatten().copied().chain([p0, p1, proto]) {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    if hash == 0 { 1 } else { hash }
}

/// The first two bytes of the inner source MAC that marks a mesh packet; the other four are the
/// [`choice_hash`]. Locally administered, unicast, and never the first byte of a VTEP's.
pub const MESH_REQUEST: [u8; 2] = [0x0a, 0x48];
/// The same for a request that the backend's node is to answer directly.
pub const MESH_DSR: [u8; 2] = [0x06, 0x48];
/// The same for a reply on its way back to the node that the client talked to.
pub const MESH_REPLY: [u8; 2] = [0x0e, 0x48];
/// The first byte of every VTEP's Ethernet address.
pub const VTEP_MAC_FIRST: u8 = 0x02;
