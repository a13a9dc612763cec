//! `proxyd --mode ebpf` between three nodes, with real packets.
//!
//! Every scenario about packets runs on nodes without a default route, with `ct state invalid drop` and policy
//! DROP in FORWARD; those of [`everywhere`] with every value of rp_filter.

mod bridged;
mod churn;
mod clients;
mod direct;
mod drains;
mod everywhere;
mod flips;
mod floods;
mod host_ports;
mod large;
mod life;
mod limits;
mod near;
mod odd;
mod order;
mod ports;
mod rolling;
mod rules;
mod snat;
mod stale;
mod status;
mod udp;
mod unhooked;
mod world;
mod xdp;
