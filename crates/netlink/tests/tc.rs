//! Queues: what is set is what the kernel has.

use heddle_netlink::link::{self, Change, VethEnd};
use heddle_netlink::tc::{self, TokenBucket};
use heddle_netlink::{NetNs, Socket};

#[test]
fn a_token_bucket_is_set_replaced_and_taken_away() {
    let ns = NetNs::create().unwrap();
    let mut socket = Socket::open_in(&ns).unwrap();
    let end = |name| VethEnd { name, ..VethEnd::default() };
    link::create_veth(&mut socket, &end("a"), &end("b")).unwrap();
    let index = link::by_name(&mut socket, "a").unwrap().unwrap().index;
    assert_eq!(tc::token_bucket(&mut socket, index).unwrap(), None);
    for (rate, limit) in [(6_250_000, 1 << 20), (125_000, 70_000), (12_500_000_000, u32::MAX), (1, 1600)] {
        let bucket = TokenBucket { rate, burst: 65_536, limit };
        tc::set_token_bucket(&mut socket, index, &bucket).unwrap();
        assert_eq!(tc::token_bucket(&mut socket, index).unwrap(), Some((rate, limit)));
    }
    tc::delete_root(&mut socket, index).unwrap();
    assert_eq!(tc::token_bucket(&mut socket, index).unwrap(), None);
    assert!(tc::token_bucket(&mut socket, 999).unwrap().is_none(), "no such device");
}

#[test]
fn flags_and_the_length_of_the_queue_are_read_back() {
    let ns = NetNs::create().unwrap();
    let mut socket = Socket::open_in(&ns).unwrap();
    let end = |name| VethEnd { name, ..VethEnd::default() };
    link::create_veth(&mut socket, &end("a"), &end("b")).unwrap();
    let index = link::by_name(&mut socket, "a").unwrap().unwrap().index;
    let look = |socket: &mut Socket| {
        let link = link::by_index(socket, index).unwrap().unwrap();
        (link.up, link.promiscuous, link.all_multicast, link.queue)
    };
    let all = Change {
        up: Some(true),
        promiscuous: Some(true),
        all_multicast: Some(true),
        queue: Some(77),
        ..Change::default()
    };
    link::change(&mut socket, index, &all).unwrap();
    assert_eq!(look(&mut socket), (true, true, true, 77));
    link::change(&mut socket, index, &Change { promiscuous: Some(false), ..Change::default() }).unwrap();
    assert_eq!(look(&mut socket), (true, false, true, 77), "one flag leaves the others alone");
}
