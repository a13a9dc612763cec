//! `./x bench [NAME...]`: what things cost, each next to a reference measured in the same run.
//!
//! A figure is a median over rounds; in a round everything that is compared runs once, one after the other,
//! so that whatever else the machine does falls on all of them. Only ratios travel between machines.
#![forbid(unsafe_code)]

mod addresses;
mod cni;
mod connections;
mod cpu;
mod kube;
mod machine;
mod mapped;
mod object;
mod outside;
mod packet;
mod packets;
mod programming;
mod samples;
mod services;
mod sockets;
mod stage;
mod table;

use std::process::ExitCode;

use anyhow::{Result, bail};

/// A part of the report.
struct Section {
    name: &'static str,
    about: &'static str,
    run: fn() -> Result<()>,
}

const SECTIONS: &[Section] = &[
    Section {
        name: "addresses",
        about: "16-byte addresses in all maps, against a second set of maps for IPv4",
        run: addresses::run,
    },
    Section {
        name: "packets",
        about: "the product's programs on network devices, by packet",
        run: packets::run,
    },
    Section {
        name: "services",
        about: "a packet of a service, beside what it costs others",
        run: services::run,
    },
    Section {
        name: "sockets",
        about: "connect(2) with the socket hooks, against connect(2) without",
        run: sockets::run,
    },
    Section {
        name: "connections",
        about: "new TCP connections through a service, against connections to its backend",
        run: connections::run,
    },
    Section {
        name: "kube",
        about: "from pod to pod through a service, against directly; beside it kube-proxy's rules",
        run: kube::run,
    },
    Section {
        name: "cni",
        about: "ADD and DEL of heddle, against ptp and bridge with host-local",
        run: cni::run,
    },
    Section {
        name: "programming",
        about: "1,000 and 10,000 services from manifests into the maps",
        run: programming::run,
    },
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    // `cargo bench` adds `--bench`.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if wanted.iter().any(|arg| arg == "--help" || arg == "--list") {
        SECTIONS.iter().for_each(|section| println!("{:<14}{}", section.name, section.about));
        return Ok(());
    }
    if let Some(unknown) = wanted.iter().find(|name| SECTIONS.iter().all(|section| section.name != **name)) {
        let known: Vec<_> = SECTIONS.iter().map(|section| section.name).collect();
        bail!("no section `{unknown}`; there are: {}", known.join(", "));
    }
    println!("{}", machine::heading());
    let mut failed = Vec::new();
    for section in SECTIONS {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == section.name) {
            continue;
        }
        println!("\n## {}: {}\n", section.name, section.about);
        if let Err(error) = (section.run)() {
            println!("no figures: {error:#}");
            failed.push(section.name);
        }
    }
    if !failed.is_empty() {
        bail!("without figures: {}", failed.join(", "));
    }
    Ok(())
}
