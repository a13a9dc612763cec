//! The CNI plugin: gives a pod its interface, its addresses and its routes, and takes them back.
//!
//! Started by a container runtime for every pod, once to add and once or more often to delete; it talks to
//! the kernel and to a few files, to no daemon, and starts no program. The command and its parameters come in
//! the environment, the network configuration on standard input; the answer goes to standard output
//! (CNI specification 1.1.0, and all versions before it).
#![forbid(unsafe_code)]

mod cmd;
mod conf;
mod forwarding;
mod guard;
mod mode;
mod veth;

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{SFlag, fstat, makedev};
use serde_json::{Map, Value};

use crate::conf::{Conf, Place};
use heddle_spec::{Command, Environment, Failure, SUPPORTED, Version, code, json};

fn main() -> ExitCode {
    let Some(command) = variable("CNI_COMMAND") else {
        let versions: Vec<_> = SUPPORTED.iter().map(|version| version.as_str()).collect();
        eprintln!(
            "heddle {}: a CNI plugin, to be called by a container runtime.\nCNI versions: {}",
            env!("CARGO_PKG_VERSION"),
            versions.join(", ")
        );
        return ExitCode::SUCCESS;
    };
    // A write beyond the limit of file sizes (`ulimit -f`) is then an error like others, with an answer. Threads
    // inherit it.
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGXFSZ);
    if let Err(error) = blocked.thread_block() {
        drop(writeln!(std::io::stderr(), "heddle: cannot block SIGXFSZ: {error}"));
    }
    let mut version = Version::LATEST;
    // The answer must be JSON even if we are wrong about ourselves.
    let answer = std::panic::catch_unwind(|| {
        let mut version = Version::LATEST;
        let answer = run(&command, &mut version);
        (answer, version)
    });
    let answer = match answer {
        Ok((answer, spoken)) => {
            version = spoken;
            answer
        }
        Err(_) => {
            Err(Failure::new(code::INTERNAL, "heddle stopped where it should not have; see standard error"))
        }
    };
    match answer {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(answer)) => deliver(&answer),
        Err(failure) => {
            deliver(&failure.to_json(version));
            ExitCode::FAILURE
        }
    }
}

/// Writes the answer.
fn deliver(answer: &Value) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{answer}").and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may be listening on standard error either.
            drop(writeln!(std::io::stderr(), "heddle: cannot write the answer: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Whether standard output is `/dev/null`. So it is also if it was closed: the runtime library of Rust opens it
/// then, before `main`, and the answer would be written there with success.
fn output_is_lost() -> bool {
    // The number is fixed (Documentation/admin-guide/devices.txt); the path may lead elsewhere in a chroot.
    fstat(std::io::stdout()).is_ok_and(|stat| {
        stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFCHR.bits() && stat.st_rdev == makedev(1, 3)
    })
}

fn variable(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// Runs a command. `version` becomes the one of the configuration as soon as that is known.
fn run(command: &str, version: &mut Version) -> Result<Option<Value>, Failure> {
    // First of all, whatever is wrong with the rest: a runtime writes the configuration in any case, and does
    // not expect the pipe to be closed.
    let input = read_input();
    let command = Command::parse(command)?;
    if command == Command::Version {
        return Ok(Some(versions(input)));
    }
    let environment = Environment::parse(command, variable)?;
    let object = json::object(&input?)?;
    *version = read_version(&object)?;
    if *version < command.since() {
        return Err(Failure::new(
            code::INCOMPATIBLE_VERSION,
            format!("cniVersion {version} does not have this command; it came with {}", command.since()),
        ));
    }
    match (command, environment) {
        (Command::Add, Some(environment)) => {
            let conf = Conf::new(&object, *version)?;
            if output_is_lost() {
                let reason = "standard output is closed or /dev/null: nobody would hear of the interface";
                // The error object goes nowhere either.
                drop(writeln!(std::io::stderr(), "heddle: {reason}"));
                return Err(Failure::new(code::IO, reason));
            }
            let success = cmd::add::add(&environment, &conf)?;
            let answer = success.to_json(*version);
            if deliver(&answer) == ExitCode::SUCCESS {
                return Ok(None);
            }
            // A runtime that did not hear of the interface will not delete it.
            cmd::del::del(&environment, &Place::new(&object)?)?;
            Err(Failure::new(code::IO, "cannot write the answer; the interface was taken back"))
        }
        (Command::Del, Some(environment)) => {
            cmd::del::del(&environment, &Place::new(&object)?).map(|()| None)
        }
        (Command::Status, _) => cmd::status::status(&Conf::new(&object, *version)?).map(|()| None),
        (Command::Check, Some(environment)) => {
            cmd::check::check(&environment, &Conf::new(&object, *version)?, &object).map(|()| None)
        }
        (Command::Gc, _) => cmd::gc::gc(&object, &Place::new(&object)?).map(|()| None),
        _ => Err(Failure::new(code::INTERNAL, "a command without its parameters")),
    }
}

/// The answer to VERSION: it needs no configuration that can be read.
fn versions(input: Result<Vec<u8>, Failure>) -> Value {
    let known: Vec<_> = SUPPORTED.iter().map(|version| version.as_str()).collect();
    let asked = input
        .ok()
        .and_then(|bytes| json::object(&bytes).ok())
        .and_then(|object| read_version(&object).ok())
        .unwrap_or(Version::LATEST);
    serde_json::json!({ "cniVersion": asked.as_str(), "supportedVersions": known })
}

fn read_version(object: &Map<String, Value>) -> Result<Version, Failure> {
    match object.get("cniVersion") {
        None | Some(Value::Null) => Version::parse(None),
        Some(Value::String(text)) => Version::parse(Some(text)),
        Some(_) => Err(Failure::new(code::DECODE, "cniVersion: it is not a string")),
    }
}

/// Reads standard input, but for a person's: nobody types a configuration.
fn read_input() -> Result<Vec<u8>, Failure> {
    let input = std::io::stdin();
    if input.is_terminal() {
        return Ok(Vec::new());
    }
    let mut bytes = Vec::new();
    input
        .lock()
        .take(json::LARGEST as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::new(code::IO, format!("cannot read standard input: {error}")))?;
    Ok(bytes)
}
