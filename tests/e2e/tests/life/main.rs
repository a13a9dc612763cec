//! proxyd is killed, stopped, started, replaced and removed while traffic flows: no connection is lost, no new one
//! fails.
//!
//! `HEDDLE_ROUNDS` says how many times what is done many times is done (200 for the whole; small unless told), and
//! from 100 on the traffic is 2,000 new connections a second and 50 long-lived ones.

mod agents;
mod changes;
mod kills;
mod lacks;
mod succession;
mod traffic;
#[path = "../proxy/world.rs"]
#[allow(dead_code, reason = "not all of the setting is used here")]
mod world;
