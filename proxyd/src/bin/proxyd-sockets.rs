//! The helper of proxyd that enters network namespaces.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use proxyd::sockets::cli::Cli;
use proxyd::sockets::{PROGRAM, serve};

fn main() -> ExitCode {
    let cli = heddle_daemon::config::parse::<Cli>();
    heddle_daemon::exit::report(PROGRAM, serve::run(&cli))
}
