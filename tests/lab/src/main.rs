//! `lab`: the Lab for a person. `lab up` raises one, `lab shell n1` is a shell on a node, `lab down` ends it;
//! `lab demo` shows in a minute what Heddle does.

mod cli;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Nodes, pods and clients on this machine, in namespaces of their own.
#[derive(Debug, Parser)]
#[command(name = "lab", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Raise a lab and leave it standing until `lab down`.
    Up(cli::up::Up),
    /// Run a command, or a shell, on a node, in a pod (`n1/web-1`), on a client or in the switch.
    Shell(cli::shell::Shell),
    /// Show the labs that stand.
    Status,
    /// Take down a lab that `lab up` raised.
    Down(cli::down::Down),
    /// Show what Heddle does, with real packets; exit status 0 if all of it worked.
    Demo(cli::demo::Demo),
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Up(up) => up.run(),
        Command::Shell(shell) => shell.run(),
        Command::Status => cli::status::run(),
        Command::Down(down) => down.run(),
        Command::Demo(demo) => demo.run(),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
