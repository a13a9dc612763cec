//! Connection tracking: flows are found by their port, and forgotten one by one.
use std::net::UdpSocket;

use heddle_netlink::conntrack::Conntrack;
use heddle_netlink::nft::expr::ct;
use heddle_netlink::nft::{Base, Family, Hook, Nft, Rule, Verdict, expr, priority};
use heddle_netlink::{NetNs, Socket, link};

#[test]
fn flows_of_one_port_are_forgotten_and_the_others_kept() {
    let ns = NetNs::create().unwrap();
    let mut socket = Socket::open_in(&ns).unwrap();
    let lo = link::by_name(&mut socket, "lo").unwrap().unwrap().index;
    link::set_up(&mut socket, lo).unwrap();
    // Tracking begins where somebody asks for it.
    let base = Base::filter(Hook::Output, priority::FILTER);
    let rule = Rule::new("track", [expr::ct_state(ct::INVALID)], Verdict::Drop);
    Nft::open_in(&ns).unwrap().ensure_chain(Family::Inet, "t", "c", &base, &[rule]).unwrap();
    let send = |to: &str, from: &str| {
        ns.run(|| UdpSocket::bind(from).unwrap().send_to(b"x", to).unwrap()).unwrap();
    };
    for _ in 0..3 {
        send("127.0.0.1:5353", "127.0.0.1:0");
    }
    send("127.0.0.1:5354", "127.0.0.1:0");
    send("[::1]:5353", "[::1]:0");

    let mut tracked = Conntrack::open_in(&ns).unwrap();
    let mut count = |ipv4, port| tracked.opened_to(ipv4, libc::IPPROTO_UDP as u8, Some(port)).unwrap().len();
    assert_eq!((count(true, 5353), count(true, 5354), count(false, 5353), count(true, 1)), (3, 1, 1, 0));
    let any = tracked.opened_to(true, libc::IPPROTO_UDP as u8, None).unwrap();
    let mut ports: Vec<_> = any.iter().map(|flow| flow.port).collect();
    ports.sort_unstable();
    assert_eq!(ports, [5353, 5353, 5353, 5354]);
    for flow in tracked.opened_to(true, libc::IPPROTO_UDP as u8, Some(5353)).unwrap() {
        assert_eq!(flow.destination.to_string(), "127.0.0.1");
        assert_eq!(flow.replies_from, flow.destination);
        tracked.forget(&flow).unwrap();
        assert!(tracked.forget(&flow).unwrap_err().not_found());
    }
    let mut count = |ipv4, port| tracked.opened_to(ipv4, libc::IPPROTO_UDP as u8, Some(port)).unwrap().len();
    assert_eq!((count(true, 5353), count(true, 5354), count(false, 5353)), (0, 1, 1));
    assert!(tracked.opened_to(true, libc::IPPROTO_TCP as u8, Some(5354)).unwrap().is_empty());
}
