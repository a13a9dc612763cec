//! The corners of the specification: chains, delegation, loopback, STATUS, hostile names, and the program by hand.

mod by_hand;
mod capabilities;
mod chain;
mod delegate;
mod hostile;
mod loopback;
mod status;
