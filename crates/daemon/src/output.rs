//! `-o text|json` of subcommands.

use std::io::{self, ErrorKind, Write as _};

use serde::Serialize;

/// Flatten it into a subcommand that prints.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Output {
    /// How the result is printed
    #[arg(short = 'o', long = "output", value_name = "FORMAT", default_value = "text")]
    pub format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Text,
    Json,
}

impl Output {
    /// Prints to stdout: `value` as indented JSON, or what `text` makes of it. A reader that went away
    /// (`| head`) is no error.
    pub fn print<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> io::Result<()> {
        let mut printed = match self.format {
            Format::Text => text(value),
            Format::Json => serde_json::to_string_pretty(value)?,
        };
        if !printed.ends_with('\n') && !printed.is_empty() {
            printed.push('\n');
        }
        let mut stdout = io::stdout().lock();
        match stdout.write_all(printed.as_bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            outcome => outcome,
        }
    }
}
