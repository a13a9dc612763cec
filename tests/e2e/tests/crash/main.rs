//! The CNI plugin, stopped or refused at every single system call: what it leaves is found and taken away, and no
//! address is ever held twice.
//!
//! The K-th system call of ADD, DEL or GC is where the process is killed, or where the kernel says no. K goes over
//! all calls that there are: `HEDDLE_SWEEP=all` tries each in each way, without it the longer sweeps take every few.
#![expect(clippy::unwrap_used, reason = "tests")]

mod around;
#[allow(dead_code, reason = "made for the tests of the plugin's answers, which use more of it")]
#[path = "../cni/bench.rs"]
mod bench;
mod disk;
mod errno;
mod ipvlan;
mod kill;
mod left;
mod power;
mod sweep;
mod world;
