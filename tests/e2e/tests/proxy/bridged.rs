//! Pods on a bridge: the hooks are the bridge's, for the kernel's routes lead there.

use heddle_lab::{Pod, Result};

use crate::everywhere::{from_outside, nobody};
use crate::world::{BY, WEB, World, ask, assert_no_foreign, servers, strict};

#[test]
fn proxy_of_pods_on_a_bridge() -> Result<()> {
    let world = World::start_bridged(strict().rp_filter(1))?;
    let pods = [world.web1.pod(), world.web2.pod(), &world.visitor];
    for v4 in [true, false] {
        for pod in pods {
            for by in BY {
                let replies = ask(40, by, WEB.cluster(v4), pod)?;
                let who = format!("{} by {by:?}", pod.place().name());
                assert_eq!(servers(&replies), ["web-1", "web-2"].into(), "{who}");
            }
        }
    }
    nobody(&world, &pods.map(Pod::place))?;
    from_outside(&world)?;
    assert_no_foreign(&world.cluster)?;
    Ok(())
}
