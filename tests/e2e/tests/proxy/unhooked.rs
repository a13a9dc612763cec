//! Processes that no socket hook sees: raw sockets, other cgroups. The hooks of the devices do it.

use heddle_lab::{Pod, Result};

use crate::everywhere::{from_outside, hairpin, host_network, nobody};
use crate::world::{BY, SOLO, WEB, World, ask, assert_no_foreign, servers, strict};

#[test]
fn proxy_without_socket_hooks() -> Result<()> {
    let world = World::start_unhooked(strict().rp_filter(1))?;
    let pods = [world.web1.pod(), world.web2.pod(), &world.visitor];
    for v4 in [true, false] {
        for pod in pods {
            let own = if v4 { pod.ip4() } else { pod.ip6() };
            let nodes = world.cluster.nodes().iter().map(|node| WEB.published(node.ip(v4)));
            for to in nodes.chain([WEB.cluster(v4)]) {
                for by in BY {
                    let replies = ask(20, by, to, pod)?;
                    let who = format!("{} -> {to} by {by:?}", pod.place().name());
                    assert_eq!(servers(&replies), ["web-1", "web-2"].into(), "{who}");
                    for reply in replies.iter().filter(|reply| reply.server != pod.name()) {
                        assert_eq!(reply.client.ip(), own, "{who}");
                    }
                }
            }
            let replies = ask(3, BY[0], SOLO.cluster(v4), pod)?;
            assert_eq!(servers(&replies), ["web-1"].into());
        }
    }
    hairpin(&world, |own| match own.is_ipv4() {
        true => [169, 254, 42, 1].into(),
        false => "100::4842:1".parse().expect("an address"),
    })?;
    host_network(&world, &pods.map(Pod::place))?;
    nobody(&world, &pods.map(Pod::place))?;
    from_outside(&world)?;
    assert_no_foreign(&world.cluster)?;
    Ok(())
}
