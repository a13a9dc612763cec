//! What every plugin is as a program: a command in the environment, a configuration on standard input, an answer
//! on standard output (section 2).

use std::io::{IsTerminal, Read, Write};
use std::panic::RefUnwindSafe;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{SFlag, fstat, makedev};
use serde_json::{Map, Value, json};

use crate::{Command, Environment, Failure, SUPPORTED, Version, capabilities, code, json};

/// What a runtime asks for, with everything read and the environment checked.
#[derive(Debug)]
pub struct Call {
    pub command: Command,
    /// Of ADD, DEL and CHECK.
    pub environment: Option<Environment>,
    /// The configuration as it came, but for the spelling of its capabilities.
    pub object: Map<String, Value>,
    /// The bytes of it, for a plugin that is started in turn.
    pub input: Vec<u8>,
    pub version: Version,
}

/// A plugin's entry: answers the call that the process was started for. VERSION is answered here.
///
/// `name` begins what goes to standard error; `about` is what a person sees who starts the program by hand.
/// `serve` returns what is to be written, or nothing.
pub fn main(
    name: &'static str,
    about: &str,
    serve: impl Fn(&Call) -> Result<Option<Value>, Failure> + RefUnwindSafe,
) -> ExitCode {
    let Some(command) = variable("CNI_COMMAND") else {
        // Nobody may be there to read it.
        drop(writeln!(std::io::stderr(), "{about}"));
        return ExitCode::SUCCESS;
    };
    // A write beyond the limit of file sizes (`ulimit -f`) is then an error like others, with an answer. Threads
    // inherit it.
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGXFSZ);
    if let Err(error) = blocked.thread_block() {
        say(name, format_args!("cannot block SIGXFSZ: {error}"));
    }
    // The answer must be JSON even if we are wrong about ourselves.
    let answer = std::panic::catch_unwind(|| {
        let mut version = Version::LATEST;
        let answer = answer(&command, &mut version, &serve);
        (answer, version)
    });
    let (answer, version) = answer.unwrap_or_else(|_| {
        let reason = format!("{name} stopped where it should not have; see standard error");
        (Err(Failure::new(code::INTERNAL, reason)), Version::LATEST)
    });
    match answer {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(answer)) => match deliver(&answer) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => {
                say(name, format_args!("{}", failure.msg));
                ExitCode::FAILURE
            }
        },
        Err(failure) => {
            if let Err(lost) = deliver(&failure.to_json(version)) {
                say(name, format_args!("{}: {}", lost.msg, failure.msg));
            }
            ExitCode::FAILURE
        }
    }
}

/// Reads and checks the call. `version` becomes the one of the configuration as soon as that is known.
fn answer(
    command: &str,
    version: &mut Version,
    serve: impl Fn(&Call) -> Result<Option<Value>, Failure>,
) -> Result<Option<Value>, Failure> {
    // First of all, whatever is wrong with the rest: a runtime writes the configuration in any case, and does
    // not expect the pipe to be closed.
    let input = read_input();
    let command = Command::parse(command)?;
    if command == Command::Version {
        return Ok(Some(versions(input)));
    }
    let object = input.and_then(|input| Ok((json::object(&input)?, input)));
    // An error object names the version that was asked for, also where something else is wrong.
    if let Ok((object, _)) = &object {
        *version = read_version(object).unwrap_or(*version);
    }
    let environment = Environment::parse(command, variable)?;
    let (mut object, input) = object?;
    capabilities::respell(&mut object);
    *version = read_version(&object)?;
    if *version < command.since() {
        return Err(Failure::new(
            code::INCOMPATIBLE_VERSION,
            format!("cniVersion {version} does not have this command; it came with {}", command.since()),
        ));
    }
    serve(&Call { command, environment, object, input, version: *version })
}

/// Writes an answer to standard output.
///
/// # Errors
/// Code 5: then nobody heard of what was done, and it is to be taken back.
pub fn deliver(answer: &Value) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{answer}")
        .and_then(|()| out.flush())
        .map_err(|error| Failure::new(code::IO, format!("cannot write the answer: {error}")))
}

/// Refuses to do what nobody would hear of: standard output is `/dev/null`. So it is also if it was closed: the
/// runtime library of Rust opens it then, before `main`, and the answer would be written there with success.
pub fn check_output() -> Result<(), Failure> {
    // The number is fixed (Documentation/admin-guide/devices.txt); the path may lead elsewhere in a chroot.
    let lost = fstat(std::io::stdout()).is_ok_and(|stat| {
        stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFCHR.bits() && stat.st_rdev == makedev(1, 3)
    });
    if !lost {
        return Ok(());
    }
    let reason = "standard output is closed or /dev/null: nobody would hear the answer";
    // The error object goes nowhere either.
    drop(writeln!(std::io::stderr(), "{reason}"));
    Err(Failure::new(code::IO, reason))
}

/// A variable of the environment.
pub fn variable(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// The versions that we speak, for people.
pub fn supported() -> String {
    SUPPORTED.map(Version::as_str).join(", ")
}

/// The answer to VERSION: it needs no configuration that can be read.
fn versions(input: Result<Vec<u8>, Failure>) -> Value {
    let asked = input
        .ok()
        .and_then(|bytes| json::object(&bytes).ok())
        .and_then(|object| read_version(&object).ok())
        .unwrap_or(Version::LATEST);
    json!({ "cniVersion": asked.as_str(), "supportedVersions": SUPPORTED.map(Version::as_str) })
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

/// A line for the log of the runtime, which may not listen.
fn say(name: &str, what: std::fmt::Arguments<'_>) {
    drop(writeln!(std::io::stderr(), "{name}: {what}"));
}
