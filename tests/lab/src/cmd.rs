//! Command lines of programs that run in the lab.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::confine::{Capability, confine};

/// A command line. From a string it is split at white space; no shell has a part in it.
#[derive(Debug)]
pub struct Cmd {
    pub(crate) command: Command,
    pub(crate) stdin: Vec<u8>,
}

impl Cmd {
    /// `program` without arguments; a bare name is looked for in PATH.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self { command: Command::new(program.into()), stdin: Vec::new() }
    }

    /// One argument more.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.command.arg(arg.into());
        self
    }

    /// Some arguments more.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args.into_iter().map(Into::into));
        self
    }

    /// A variable of its environment; the rest is that of this process.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.command.env(name, value.into());
        self
    }

    /// What it reads from its standard input; nothing otherwise.
    #[must_use]
    pub fn stdin(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.stdin = input.into();
        self
    }

    /// It gets these capabilities and no others, and no way to more (no_new_privs).
    #[must_use]
    pub fn capabilities(mut self, set: &[Capability]) -> Self {
        let mask = Capability::mask(set);
        // SAFETY: between fork and exec only system calls are made.
        unsafe { self.command.pre_exec(move || confine(mask)) };
        self
    }

    pub(crate) fn program(&self) -> String {
        Path::new(self.command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

impl From<Command> for Cmd {
    fn from(command: Command) -> Self {
        Self { command, stdin: Vec::new() }
    }
}

impl From<&str> for Cmd {
    fn from(line: &str) -> Self {
        let mut words = line.split_whitespace();
        Self::new(words.next().unwrap_or_default()).args(words)
    }
}

impl From<String> for Cmd {
    fn from(line: String) -> Self {
        Self::from(line.as_str())
    }
}

impl<S: Into<OsString> + Clone> From<&[S]> for Cmd {
    fn from(words: &[S]) -> Self {
        let mut words = words.iter().cloned().map(Into::into);
        Self::new(words.next().unwrap_or_default()).args(words)
    }
}

impl<S: Into<OsString> + Clone, const N: usize> From<[S; N]> for Cmd {
    fn from(words: [S; N]) -> Self {
        Self::from(&words[..])
    }
}

impl fmt::Display for Cmd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.program())?;
        self.command.get_args().try_for_each(|arg| write!(f, " {}", arg.to_string_lossy()))
    }
}
