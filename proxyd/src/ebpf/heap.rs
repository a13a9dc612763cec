//! Memory that was needed for a moment: a table of all services read anew, a directory of manifests parsed.
#![cfg_attr(target_env = "gnu", expect(unsafe_code, reason = "functions of the C library"))]

/// Gives what is free back to the kernel, where the C library keeps it otherwise. Some milliseconds.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number, touches nothing that is in use; safe in any thread (malloc_trim(3)).
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// One heap for all threads, where the C library would give each its own: what a thread that parses leaves free is used by
/// the others (a quarter of the memory at 10,000 services). To be called before there are others.
pub fn one_for_all() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes two numbers (mallopt(3)).
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1);
    }
}
