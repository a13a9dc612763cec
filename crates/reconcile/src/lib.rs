//! The loop that makes kernel state follow desired state.
