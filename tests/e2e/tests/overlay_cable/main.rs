//! The overlay over cables and cards that are not what they should be.
#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod cable;
mod checksums;
mod weather;
