//! The CNI plugin: gives a pod its interface, its addresses and its routes, and takes them back.
//!
//! Started by a container runtime for every pod, once to add and once or more often to delete; it talks to
//! the kernel and to a few files, to no daemon, and starts no program but an IPAM plugin that the configuration
//! names. The command and its parameters come in the environment, the network configuration on standard input; the
//! answer goes to standard output (CNI specification 1.1.0, and all versions before it).
#![forbid(unsafe_code)]

mod about;
mod addresses;
mod bandwidth;
mod cmd;
mod conf;
mod delegate;
mod elements;
mod forwarding;
mod guard;
mod hostport;
mod install;
mod loopback;
mod mark;
mod masquerade;
mod mode;
mod tuning;
mod veth;

use std::process::ExitCode;

use heddle_spec::program::{self, Call};
use heddle_spec::{Command, Failure, code};
use serde_json::Value;

use crate::conf::{Conf, Deletion, Ipam, Place};

fn main() -> ExitCode {
    if program::variable("CNI_COMMAND").is_none() {
        return about::by_hand(std::env::args_os().skip(1));
    }
    program::main("heddle", about::SHORT, serve)
}

/// Answers a call of a runtime.
fn serve(call: &Call) -> Result<Option<Value>, Failure> {
    if loopback::is_meant(std::env::args_os().next().as_deref(), call) {
        return loopback::serve(call);
    }
    if call.environment.as_ref().is_some_and(|environment| environment.owner.ifname() == "lo") {
        let reason =
            "CNI_IFNAME \"lo\" is every namespace's own interface; only the plugin loopback means it";
        return Err(Failure::new(code::INVALID_ENVIRONMENT, reason));
    }
    let conf =
        || Conf::new(&call.object, call.version).map_err(|failure| conf::with_value(failure, &call.object));
    let done = match (call.command, &call.environment) {
        (Command::Add, Some(environment)) => {
            let conf = conf()?;
            program::check_output()?;
            let needed = matches!(conf.ipam, Ipam::BuiltIn(_));
            let _turn = addresses::turn(&Place::new(&call.object)?, &environment.owner, needed)?;
            let success = cmd::add::add(environment, &conf, call)?;
            let Err(lost) = program::deliver(&success.to_json(call.version)) else { return Ok(None) };
            // A runtime that did not hear of the interface will not delete it.
            let place = Place { deletion: Deletion::Now, ..Place::new(&call.object)? };
            cmd::del::del(environment, &place, Some(call))?;
            Err(Failure::new(code::IO, format!("{}; the interface was taken back", lost.msg)))
        }
        (Command::Del, Some(environment)) => {
            let place = Place::new(&call.object)?;
            let _turn = addresses::turn(&place, &environment.owner, false)?;
            cmd::del::del(environment, &place, Some(call))
        }
        (Command::Check, Some(environment)) => cmd::check::check(environment, &conf()?, call),
        (Command::Gc, _) => cmd::gc::gc(&Place::new(&call.object)?, call),
        (Command::Status, _) => cmd::status::status(&conf()?, call),
        _ => Err(Failure::new(code::INTERNAL, "a command without its parameters")),
    };
    done.map(|()| None)
}
