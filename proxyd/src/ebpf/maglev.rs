//! The table from which clients outside the cluster are given their backend: Maglev hashing
//! (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4).
//!
//! Every node builds the same table from the same backends: a backend's permutation follows from its
//! address, port and protocol, never from a slot number of this node. A table with one backend more or
//! less differs from the one before in little beyond that backend's own share (the paper's section 5.3).

use std::net::IpAddr;

use heddle_ebpf_common::MAGLEV_SIZE;
use heddle_model::Protocol;

/// Who a backend is, on every node alike.
pub type Identity = (IpAddr, u16, Protocol);

/// Sizes of tables: each serves up to so many backends. All prime (section 3.4), and few: when the number of backends
/// passes from one to the next, the whole table is another. From 11 backends on at least 200 entries for each, up to a
/// thousand: so no more than about 1 % of the others' entries move when one of 100 goes (the record has the figures).
const SIZES: [(usize, u32); 6] =
    [(10, MAGLEV_SIZE), (20, 4093), (40, 16_381), (160, 65_521), (400, 131_071), (usize::MAX, 262_139)];

/// Entries of the table of so many backends.
pub fn size(backends: usize) -> u32 {
    let size = || SIZES.iter().find(|(most, _)| backends <= *most).map_or(0, |(_, size)| *size);
    if backends == 0 { 0 } else { size() }
}

/// Nobody's entry.
const FREE: u32 = u32::MAX;

/// The table: for each of its [`size`] entries the index into `backends` of the backend that owns it.
/// Empty if there are no backends. With more backends than entries the last ones own none.
///
/// `backends` must be sorted and without duplicates: the paper's loop goes round them in turn, and
/// all nodes must go round in the same order.
pub fn table(backends: &[Identity]) -> Vec<u32> {
    debug_assert!(backends.is_sorted(), "the order of the backends is part of the table");
    let size = size(backends.len());
    // Where each backend's permutation stands, and its step.
    let mut walks: Vec<(u32, u32)> = backends.iter().map(|backend| permutation(backend, size)).collect();
    let mut owner = vec![FREE; size as usize];
    let mut left = owner.len();
    while left > 0 {
        for (index, (next, skip)) in (0..).zip(walks.iter_mut()).take(left) {
            let after = |at: u32| if at >= size - *skip { at - (size - *skip) } else { at + *skip };
            let mut at = *next;
            while owner[at as usize] != FREE {
                at = after(at);
            }
            owner[at as usize] = index;
            *next = after(at);
            left -= 1;
        }
    }
    owner
}

/// Offset and step of a backend's walk over the table. The step is neither 0 nor a multiple of the
/// size, which is prime: the walk visits every entry.
fn permutation(&(ip, port, proto): &Identity, size: u32) -> (u32, u32) {
    let size = u64::from(size);
    ((hash(0, ip, port, proto) % size) as u32, (hash(1, ip, port, proto) % (size - 1)) as u32 + 1)
}

/// FNV-1a over seed and identity, then the finalizer of MurmurHash3: neighbouring addresses must not give
/// neighbouring walks. Written out, because it must never change: nodes of two versions share a mesh.
fn hash(seed: u8, ip: IpAddr, port: u16, proto: Protocol) -> u64 {
    let address = match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let tail = port.to_be_bytes().into_iter().chain([proto.number()]);
    for byte in [seed].into_iter().chain(address.octets()).chain(tail) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn backends() -> impl Strategy<Value = Vec<Identity>> {
        let one = (any::<[u8; 2]>(), prop_oneof![Just(80), any::<u16>()], any::<bool>()).prop_map(
            |([c, d], port, tcp)| {
                let proto = if tcp { Protocol::Tcp } else { Protocol::Udp };
                (IpAddr::from([10, 244, c, d]), port, proto)
            },
        );
        prop::collection::btree_set(one, 1..100).prop_map(|set| set.into_iter().collect())
    }

    fn owners(backends: &[Identity]) -> Vec<Identity> {
        table(backends).into_iter().map(|index| backends[index as usize]).collect()
    }

    /// Of the entries of the others, how many in 10,000 move when `gone` goes.
    fn moved(all: &[Identity], gone: &Identity) -> usize {
        let rest: Vec<_> = all.iter().copied().filter(|b| b != gone).collect();
        let (before, after) = (owners(all), owners(&rest));
        assert_eq!(before.len(), after.len(), "the size is another");
        let theirs = || before.iter().zip(&after).filter(|(owner, _)| *owner != gone);
        let moved = theirs().filter(|(before, after)| before != after).count();
        moved * 10_000 / theirs().count()
    }

    fn many(backends: u16) -> Vec<Identity> {
        let ip = |n: u16| IpAddr::from([10, 244, (n >> 7) as u8, 2 + (n & 127) as u8]);
        (0..backends).map(|n| (ip(n), 8080, Protocol::Tcp)).collect()
    }

    proptest! {
        #[test]
        fn every_backend_has_its_share(backends in backends()) {
            let table = table(&backends);
            prop_assert_eq!(table.len(), size(backends.len()) as usize);
            let mut share = vec![0usize; backends.len()];
            for index in table { share[index as usize] += 1; }
            let (least, most) = (share.iter().min().unwrap(), share.iter().max().unwrap());
            prop_assert!(most - least <= 1, "they take turns: {least}..{most}");
        }
    }

    /// At most 1 % of the flows of the others move when 1 of 100 or 1 of 400 backends goes.
    #[test]
    fn fault_093_one_backend_less_moves_little_else() {
        for (backends, most) in [(3, 60), (10, 450), (20, 350), (40, 200), (100, 100), (400, 100)] {
            let all = many(backends);
            for gone in all.iter().step_by(usize::from(backends / 10).max(1)) {
                let moved = moved(&all, gone);
                assert!(moved <= most, "1 of {backends}: {moved} in 10,000 entries of the others move");
            }
        }
    }

    #[test]
    fn sizes_are_prime_and_grow() {
        for (_, size) in SIZES {
            assert!((2..).take_while(|d| d * d <= size).all(|d| size % d != 0), "{size}");
        }
        assert!(SIZES.is_sorted());
        assert_eq!((size(0), size(1), size(11), size(400), size(5000)), (0, 1021, 4093, 131_071, 262_139));
    }

    #[test]
    fn many_backends_are_no_panic() {
        assert_eq!(table(&many(1000)).len(), 262_139);
        assert!(table(&[]).is_empty());
    }

    /// Nodes of different versions build one mesh: these tables are part of the wire format.
    #[test]
    fn fault_093_the_tables_never_change() {
        let digest = |all: &[Identity]| {
            table(all).into_iter().fold(0u64, |d, i| d.wrapping_mul(31).wrapping_add(u64::from(i)))
        };
        let three: Vec<Identity> =
            (1..=3).map(|host| (IpAddr::from([10, 244, host, 2]), 8080, Protocol::Tcp)).collect();
        assert_eq!(digest(&three), 13421323324167922590);
        let v6: Vec<Identity> = (1..=30u16)
            .map(|host| (IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, host]), 53, Protocol::Udp))
            .collect();
        assert_eq!(
            [digest(&v6), digest(&many(100)), digest(&many(400))],
            [9912551836203925446, 6519895179187186284, 5328187621575539821]
        );
    }
}
