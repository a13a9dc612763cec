//! Changes that go to the kernel in one message.
#![expect(clippy::unwrap_used, reason = "tests")]

use heddle_netlink::addr::{self, Addr};
use heddle_netlink::link::{self, VethEnd};
use heddle_netlink::route::{self, Filter, Route};
use heddle_netlink::{NetNs, Result, Socket};

fn place() -> (NetNs, Socket, u32) {
    let ns = NetNs::create().unwrap();
    let mut socket = Socket::open_in(&ns).unwrap();
    let end = |name| VethEnd { name, ..VethEnd::default() };
    link::create_veth(&mut socket, &end("a"), &end("b")).unwrap();
    let index = link::by_name(&mut socket, "a").unwrap().unwrap().index;
    (ns, socket, index)
}

#[test]
fn changes_are_made_in_order_and_questions_see_them() {
    let (_ns, mut socket, a) = place();
    let done: Result<usize> = socket.together(|socket| {
        addr::add(socket, &Addr::new(a, "10.0.0.1/32".parse().unwrap()))?;
        let seen = addr::list(socket, Some(a))?.len();
        link::set_up(socket, a)?;
        route::add(socket, &Route::on_link("10.0.1.0/24".parse().unwrap(), a))?;
        Ok(seen)
    });
    assert_eq!(done.unwrap(), 1);
    let routes = route::list(&mut socket, &Filter { link: Some(a), ..Filter::default() }).unwrap();
    assert!(routes.iter().any(|route| route.dst.prefix() == 24), "{routes:?}");
    // Nothing is kept back afterwards.
    link::set_down(&mut socket, a).unwrap();
    assert!(!link::by_index(&mut socket, a).unwrap().unwrap().up);
    assert!(socket.together(|_| Ok::<_, heddle_netlink::Error>(())).is_ok(), "nothing at all");
}

#[test]
fn the_first_refusal_is_told_by_its_name() {
    let (_ns, mut socket, a) = place();
    let refused: Result<()> = socket.together(|socket| {
        addr::add(socket, &Addr::new(a, "10.0.0.1/32".parse().unwrap()))?;
        // The device is down.
        route::add(socket, &Route::on_link("10.0.1.0/24".parse().unwrap(), a))?;
        addr::add(socket, &Addr::new(a, "10.0.0.1/32".parse().unwrap()))?;
        link::set_up(socket, a)
    });
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("route 10.0.1.0/24") && refused.contains("network is down"), "{refused}");
    assert!(link::by_index(&mut socket, a).unwrap().unwrap().up, "what came after it was done");
}
