//! nf_tables: what is written is what the kernel holds and what packets meet.
#![expect(clippy::unwrap_used, reason = "tests")]

use heddle_netlink::nft::expr::{self, Side, ct};
use heddle_netlink::nft::{Base, Batch, Family, Hook, Nft, Rule, SetKey, Verdict, priority};
use heddle_netlink::{NetNs, Socket, link};
use ipnetwork::IpNetwork;
use nix::errno::Errno;

const TABLE: &str = "heddle";

fn open() -> (NetNs, Nft) {
    let ns = NetNs::create().unwrap();
    let nft = Nft::open_in(&ns).unwrap();
    (ns, nft)
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

fn spoof_rule() -> Rule {
    Rule::new(
        "pods send from their own addresses",
        [expr::iifname("hdl*"), expr::source_is_spoofed()],
        Verdict::Drop,
    )
}

#[test]
fn a_chain_is_ensured_once() {
    let (_ns, mut nft) = open();
    let base = Base::filter(Hook::Prerouting, priority::RAW);
    let ensure = |nft: &mut Nft, rules: &[Rule]| nft.ensure_chain(Family::Inet, TABLE, "spoof", &base, rules);
    assert!(ensure(&mut nft, &[spoof_rule()]).unwrap());
    assert!(!ensure(&mut nft, &[spoof_rule()]).unwrap(), "the second time there is nothing to do");
    let rules = nft.rules(Family::Inet, TABLE, Some("spoof")).unwrap();
    assert_eq!(rules.len(), 1);
    assert_eq!(rules[0].exprs, ["meta", "cmp", "fib", "cmp", "immediate"]);
    assert_eq!(rules[0].verdict, Some(0));
    let chains = nft.chains().unwrap();
    assert_eq!(chains.len(), 1);
    assert_eq!(chains[0].base.as_ref(), Some(&base));

    // A rule with the same comment that does something else is not taken for it.
    let other = Rule { exprs: vec![heddle_netlink::nft::Expr::Counter], ..spoof_rule() };
    assert!(ensure(&mut nft, std::slice::from_ref(&other)).unwrap());
    assert!(ensure(&mut nft, &[spoof_rule()]).unwrap());
    // Nor is a chain at another place.
    let moved = Base::filter(Hook::Prerouting, priority::MANGLE);
    assert!(nft.ensure_chain(Family::Inet, TABLE, "spoof", &moved, &[spoof_rule()]).unwrap());
    assert_eq!(nft.chain(Family::Inet, TABLE, "spoof").unwrap().unwrap().base, Some(moved));
    assert_eq!(nft.rules(Family::Inet, TABLE, None).unwrap().len(), 1);
}

#[test]
fn many_at_once_leave_one_rule() {
    let (ns, mut nft) = open();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let base = Base::filter(Hook::Prerouting, priority::RAW);
                let mut nft = Nft::open_in(&ns).unwrap();
                for _ in 0..20 {
                    nft.ensure_chain(Family::Inet, TABLE, "spoof", &base, &[spoof_rule()]).unwrap();
                }
            });
        }
    });
    assert_eq!(nft.rules(Family::Inet, TABLE, Some("spoof")).unwrap().len(), 1);
}

#[test]
fn a_transaction_is_all_or_nothing_and_names_what_failed() {
    let (_ns, mut nft) = open();
    let mut batch = Batch::new();
    batch.add_table(Family::Inet, TABLE);
    batch.add_chain(Family::Inet, TABLE, "forward", Some(&Base::filter(Hook::Forward, priority::FILTER)));
    let rule =
        Rule::new("accept pods", [expr::address_in(Side::Source, true, "nowhere", false)], Verdict::Accept);
    batch.add_rule(Family::Inet, TABLE, "forward", &rule);
    batch.add_chain(Family::Inet, TABLE, "after", None);
    let error = nft.commit(&batch).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::ENOENT));
    assert!(
        error.to_string().contains("cannot add rule \"accept pods\" to chain inet heddle forward"),
        "{error}"
    );
    assert!(nft.tables().unwrap().is_empty(), "nothing of it happened");
}

#[test]
fn sets_of_prefixes_are_read_back() {
    let (_ns, mut nft) = open();
    let mut batch = Batch::new();
    batch.add_table(Family::Inet, TABLE);
    for (set, key) in [("pods4", SetKey::Prefix4), ("pods6", SetKey::Prefix6), ("names", SetKey::Ifname)] {
        batch.add_set(Family::Inet, TABLE, set, key);
    }
    let v4: Vec<_> = (0..2000u32)
        .map(|n| IpNetwork::new((0x0a00_0000 + n * 256).to_be_bytes().into(), 24).unwrap())
        .collect();
    let v6 = [net("fd00:1::/64"), net("fd00:3::/64"), net("ff00::/8")];
    batch.add_prefixes(Family::Inet, TABLE, "pods4", &v4[..1]);
    batch.add_prefixes(Family::Inet, TABLE, "pods6", &v6);
    let mut name = b"eth0".to_vec();
    name.resize(16, 0);
    batch.add_elements(Family::Inet, TABLE, "names", &[name.clone()]);
    nft.commit(&batch).unwrap();
    assert_eq!(nft.prefixes(Family::Inet, TABLE, "pods4").unwrap().unwrap(), v4[..1]);
    assert_eq!(nft.prefixes(Family::Inet, TABLE, "pods6").unwrap().unwrap(), v6);
    assert_eq!(nft.elements(Family::Inet, TABLE, "names").unwrap().unwrap(), [(name, false)]);
    assert_eq!(nft.prefixes(Family::Inet, TABLE, "absent").unwrap(), None);

    let mut batch = Batch::new();
    batch.delete_prefixes(Family::Inet, TABLE, "pods6", &v6[..1]);
    batch.flush_set(Family::Inet, TABLE, "pods4");
    // Neighbours in the set: 2000 x /24 that touch each other.
    batch.add_prefixes(Family::Inet, TABLE, "pods4", &v4);
    nft.commit(&batch).unwrap();
    assert_eq!(nft.prefixes(Family::Inet, TABLE, "pods6").unwrap().unwrap(), v6[1..]);
    assert_eq!(nft.prefixes(Family::Inet, TABLE, "pods4").unwrap().unwrap(), v4);
}

#[test]
fn a_transaction_larger_than_a_socket_buffer_goes_through() {
    let (_ns, mut nft) = open();
    let prefixes: Vec<_> = (0..10_000u32)
        .map(|n| IpNetwork::new((0x0a00_0000 + n * 512).to_be_bytes().into(), 24).unwrap())
        .collect();
    let mut batch = Batch::new();
    batch.add_table(Family::Inet, TABLE);
    batch.add_set(Family::Inet, TABLE, "pods4", SetKey::Prefix4);
    batch.add_prefixes(Family::Inet, TABLE, "pods4", &prefixes);
    nft.commit(&batch).unwrap();
    assert_eq!(nft.prefixes(Family::Inet, TABLE, "pods4").unwrap().unwrap().len(), prefixes.len());
}

#[test]
fn every_expression_is_taken_by_the_kernel() {
    let (_ns, mut nft) = open();
    let mut batch = Batch::new();
    batch.add_table(Family::Inet, TABLE);
    batch.add_set(Family::Inet, TABLE, "pods6", SetKey::Prefix6);
    let forward = Base::filter(Hook::Forward, priority::FILTER);
    batch.add_chain(Family::Inet, TABLE, "forward", Some(&Base { policy_accept: false, ..forward }));
    batch.add_chain(Family::Inet, TABLE, "more", None);
    let nat = Base { kind: "nat".into(), ..Base::filter(Hook::Postrouting, priority::SRCNAT) };
    batch.add_chain(Family::Inet, TABLE, "post", Some(&nat));
    let rules = [
        Rule::new(
            "a",
            [expr::address(Side::Destination, net("10.244.0.0/16")), vec![expr::Expr::Counter]],
            Verdict::Accept,
        ),
        Rule::new("b", [expr::address(Side::Source, net("fd00::1/128"))], Verdict::Return),
        Rule::new(
            "c",
            [expr::address_in(Side::Destination, false, "pods6", true)],
            Verdict::Jump("more".into()),
        ),
        Rule::new("d", [expr::ct_state(ct::INVALID)], Verdict::Drop),
        Rule::new(
            "e",
            [expr::oifname("heddle.1"), expr::destination_port(17, 8472)],
            Verdict::Goto("more".into()),
        ),
        Rule::new("f", [expr::mark(7), expr::set_mark(8), expr::random(5, 100)], Verdict::Drop),
    ];
    for rule in &rules {
        batch.add_rule(Family::Inet, TABLE, "forward", rule);
    }
    let masquerade = Rule { exprs: vec![expr::Expr::Masquerade], comment: "m".into() };
    batch.add_rule(Family::Inet, TABLE, "post", &masquerade);
    nft.commit(&batch).unwrap();
    let seen = nft.rules(Family::Inet, TABLE, Some("forward")).unwrap();
    let verdicts: Vec<_> = seen.iter().map(|rule| rule.verdict.unwrap()).collect();
    assert_eq!(verdicts, [1, -5, -3, 0, -4, 0]);
    assert_eq!(seen[0].packets, Some(0));
    let policy = nft.chain(Family::Inet, TABLE, "forward").unwrap().unwrap().base.unwrap();
    assert!(!policy.policy_accept);

    let mut batch = Batch::new();
    batch.delete_table(Family::Inet, TABLE);
    batch.delete_table(Family::Inet, "absent");
    nft.commit(&batch).unwrap();
    assert!(nft.tables().unwrap().is_empty());
}

#[test]
fn a_counter_counts_packets() {
    let (ns, mut nft) = open();
    let mut socket = Socket::open_in(&ns).unwrap();
    let lo = link::by_name(&mut socket, "lo").unwrap().unwrap();
    link::set_up(&mut socket, lo.index).unwrap();
    let base = Base::filter(Hook::Input, priority::FILTER);
    let rule = Rule::new(
        "probe",
        [expr::iifname("lo"), expr::destination_port(17, 9), vec![expr::Expr::Counter]],
        Verdict::Drop,
    );
    nft.ensure_chain(Family::Inet, TABLE, "input", &base, &[rule]).unwrap();
    ns.run(|| {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(b"x", "127.0.0.1:9").unwrap();
        socket.send_to(b"x", "127.0.0.1:10").unwrap();
    })
    .unwrap();
    assert_eq!(nft.rules(Family::Inet, TABLE, None).unwrap()[0].packets, Some(1));
}
