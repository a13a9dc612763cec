//! `lab shell`: a shell, or a command, inside.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use heddle_lab::description::Door;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;
use nix::unistd::{chroot, fchdir};

#[derive(Debug, Args)]
pub struct Shell {
    /// The process that holds the lab, where several stand.
    #[arg(long, value_name = "PID")]
    lab: Option<u32>,
    /// `n1`, `n1/web-1` or `web-1`, `client`, `switch`.
    place: String,
    /// A command instead of a shell.
    #[arg(last = true)]
    command: Vec<String>,
}

impl Shell {
    pub fn run(self) -> Result<ExitCode> {
        let lab = super::status::pick(self.lab)?;
        let door = lab.door(&self.place).ok_or_else(|| {
            let names: Vec<_> = lab.places.iter().map(|door| door.name.as_str()).collect();
            anyhow!("there is no `{}`; there are {}", self.place, names.join(", "))
        })?;
        let directory = std::env::current_dir();
        go_in(door).with_context(|| format!("cannot enter {}", door.name))?;
        // Where we were, if that is there too.
        let _ = directory.and_then(std::env::set_current_dir);
        let mut words = self.command.into_iter();
        let mut command = match words.next() {
            Some(program) => Command::new(program),
            None => Command::new(std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".into())),
        };
        command.args(words).env("PS1", format!("{}# ", door.name)).env("HEDDLE_LAB", &door.name);
        let program = command.get_program().to_string_lossy().into_owned();
        Err(command.exec()).with_context(|| format!("cannot run {program}"))
    }
}

/// Moves this process, which has one thread, into the place.
fn go_in(door: &Door) -> Result<()> {
    let group = door.cgroup.join("cgroup.procs");
    let mut procs = OpenOptions::new().write(true).open(&group).context("open its cgroup")?;
    procs.write_all(b"0").context("join its cgroup")?;
    let net = File::open(&door.net).context("open its network namespace")?;
    let mounts = match &door.mounts {
        Some((ns, root)) => {
            let root = open(root.as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
            Some((File::open(ns).context("open its mount namespace")?, root.context("open its root")?))
        }
        None => None,
    };
    setns(net, CloneFlags::CLONE_NEWNET).context("enter its network namespace")?;
    if let Some((ns, root)) = mounts {
        setns(ns, CloneFlags::CLONE_NEWNS).context("enter its mount namespace")?;
        fchdir(root).and_then(|()| chroot(".")).context("enter its root directory")?;
    }
    Ok(())
}
