//! Maps by port: elements with owners, conflicts, and rules that the kernel takes.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::net::IpAddr;

use heddle_netlink::NetNs;
use heddle_netlink::nft::{
    Base, Batch, Entry, Expr, Family, Hook, MapData, Nft, Rule, SetKey, port, priority,
};
use nix::errno::Errno;

const TABLE: &str = "heddle";
const TCP: u8 = libc::IPPROTO_TCP as u8;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn made() -> (NetNs, Nft) {
    let ns = NetNs::create().unwrap();
    let mut nft = Nft::open_in(&ns).unwrap();
    let mut batch = Batch::new();
    batch.add_table(Family::Inet, TABLE);
    for (v4, any, at, data) in
        [(true, "any4", "at4", MapData::Ipv4Port), (false, "any6", "at6", MapData::Ipv6Port)]
    {
        batch.add_map(Family::Inet, TABLE, any, SetKey::Port, data);
        let on = if v4 { SetKey::Ipv4Port } else { SetKey::Ipv6Port };
        batch.add_map(Family::Inet, TABLE, at, on, data);
    }
    batch.add_set(Family::Inet, TABLE, "from", SetKey::IfnameIpv6);
    batch.add_set(Family::Inet, TABLE, "by", SetKey::Ipv4Port);
    batch.add_set(Family::Inet, TABLE, "pairs", SetKey::Ipv6Pair);
    nft.commit(&batch).unwrap();
    (ns, nft)
}

fn entry(port: u16, to: &str, comment: &str) -> Entry {
    Entry { key: port::key(None, TCP, port), data: port::data(ip(to), 80), comment: comment.into() }
}

#[test]
fn an_element_says_whose_it_is_and_is_not_overwritten() {
    let (_ns, mut nft) = made();
    let add = |nft: &mut Nft, entries: &[Entry], exclusive| {
        let mut batch = Batch::new();
        batch.add_entries(Family::Inet, TABLE, "any4", entries, exclusive);
        nft.commit(&batch)
    };
    let first = entry(8080, "10.1.0.2", "one");
    add(&mut nft, std::slice::from_ref(&first), true).unwrap();
    let key = port::key(None, TCP, 8080);
    assert_eq!(nft.entry(Family::Inet, TABLE, "any4", &key).unwrap(), Some(first.clone()));
    assert_eq!(nft.entry(Family::Inet, TABLE, "any4", &port::key(None, TCP, 1)).unwrap(), None);
    assert_eq!(nft.entry(Family::Inet, TABLE, "absent", &key).unwrap(), None);

    // One of two is taken: neither is there afterwards.
    let both = [entry(8081, "10.1.0.3", "two"), entry(8080, "10.1.0.3", "two")];
    assert!(add(&mut nft, &both, true).unwrap_err().already_exists());
    // Also without asking for it: other data is never put in place of what is there.
    let refused = add(&mut nft, &both, false).unwrap_err().errno();
    assert!(matches!(refused, Some(Errno::EBUSY | Errno::EEXIST)), "{refused:?}");
    add(&mut nft, std::slice::from_ref(&first), false).unwrap();
    assert_eq!(nft.entries(Family::Inet, TABLE, "any4").unwrap(), Some(vec![first]));
    assert_eq!(nft.entries(Family::Inet, TABLE, "absent").unwrap(), None);

    let many: Vec<_> = (1..1000).map(|n| entry(n, "10.1.0.9", &"c".repeat(300))).collect();
    add(&mut nft, &many, true).unwrap();
    let listed = nft.entries(Family::Inet, TABLE, "any4").unwrap().unwrap();
    assert_eq!(listed.len(), 1000);
    assert!(listed.iter().all(|entry| entry.comment == "one" || entry.comment == "c".repeat(127)));
}

#[test]
fn the_kernel_takes_every_rule() {
    let (_ns, mut nft) = made();
    let base = Base::nat(Hook::Prerouting, priority::DSTNAT);
    let rule = |comment: &str, parts: Vec<Vec<Expr>>| Rule {
        exprs: parts.into_iter().flatten().collect(),
        comment: comment.into(),
    };
    let not = || [port::to_this_host(), port::not_to("127.0.0.0/8".parse().unwrap())].concat();
    let rules = [
        rule("a", vec![not(), port::dnat_by_port(true, true, "at4")]),
        rule("b", vec![not(), port::dnat_by_port(true, false, "any4")]),
        rule("c", vec![port::dnat_by_port(false, true, "at6")]),
        rule("d", vec![port::dnat_by_port(false, false, "any6")]),
    ];
    assert!(nft.ensure_chain(Family::Inet, TABLE, "to", &base, &rules).unwrap());
    assert!(!nft.ensure_chain(Family::Inet, TABLE, "to", &base, &rules).unwrap());
    let base = Base::nat(Hook::Postrouting, priority::SRCNAT);
    let rules = [
        rule("e", vec![port::is_translated(), port::from_device_to(false, "from"), vec![Expr::Masquerade]]),
        rule("g", vec![port::is_translated(), port::from_address_to(false, "pairs"), vec![Expr::Masquerade]]),
        rule("f", vec![port::is_translated(), port::to_address_by_port(true, "by"), vec![Expr::Masquerade]]),
    ];
    nft.ensure_chain(Family::Inet, TABLE, "from", &base, &rules).unwrap();
    assert!(nft.holds(Family::Inet, TABLE, "from", &rules).unwrap());
}
