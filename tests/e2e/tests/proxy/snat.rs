//! `--remote snat`: works everywhere, the client's address is lost where the backend is remote.

use heddle_lab::{Place, Result};

use crate::everywhere::{from_inside, hairpin, nobody};
use crate::world::{BY, HOST, WEB, World, ask, assert_no_foreign, servers, strict};

#[test]
fn proxy_remote_snat() -> Result<()> {
    let world = World::start_with(strict(), &["--remote", "snat"])?;
    from_inside(&world)?;
    let client = world.cluster.client();
    for v4 in [true, false] {
        for node in world.cluster.nodes() {
            for by in BY {
                let replies = ask(20, by, WEB.published(node.ip(v4)), client)?;
                let way = format!("through {} by {by:?}, v4 {v4}", node.name());
                assert_eq!(servers(&replies), ["web-1", "web-2"].into(), "{way}");
                for reply in &replies {
                    let local = reply.server.strip_prefix("web-") == node.name().strip_prefix('n');
                    assert_eq!(reply.client.ip() == client.ip(v4), local, "{way}: {reply:?}");
                }
                for reply in ask(3, by, HOST.published(node.ip(v4)), client)? {
                    assert_eq!(reply.server, "host-2", "{way}");
                }
            }
        }
    }
    hairpin(&world, |own| own)?;
    let insiders: Vec<&Place> = world.insiders().iter().map(|(place, _)| *place).collect();
    nobody(&world, &insiders)?;
    assert_no_foreign(&world.cluster)
}
