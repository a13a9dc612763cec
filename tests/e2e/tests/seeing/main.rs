//! What proxyd tells of itself and of the datapath: status, probes, metrics, explanations, live events.

#[path = "../proxy/world.rs"]
#[expect(dead_code, reason = "the setting of the scenarios of proxyd, of which not all is needed here")]
mod world;

mod doctor;
mod explain;
mod http;
mod leftovers;
mod monitor;
mod probes;
mod status;
