//! Nodes that route directly (`vxland --direct-routing`): plain packets go past the tunnel, and services work as ever,
//! through it where they need it.

use heddle_lab::{Lab, Place, Result};

use crate::everywhere::{from_inside, from_outside, hairpin, host_network, nobody};
use crate::world::World;

#[test]
fn proxy_direct_routing() -> Result<()> {
    // Not `strict`: an answer of a host network goes straight to the pod, past whatever conntrack saw of the request.
    let world = World::start_direct(Lab::builder().default_route(false).rp_filter(1))?;
    from_inside(&world)?;
    from_outside(&world)?;
    let insiders: Vec<&Place> = world.insiders().iter().map(|(place, _)| *place).collect();
    host_network(&world, &insiders)?;
    hairpin(&world, |ip| ip)?;
    nobody(&world, &insiders)
}
