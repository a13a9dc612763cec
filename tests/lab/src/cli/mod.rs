//! The commands of `lab`.

pub mod demo;
pub mod down;
pub mod shell;
pub mod status;
pub mod up;
