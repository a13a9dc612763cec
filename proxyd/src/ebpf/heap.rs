//! Memory that was needed for a moment: a table of all services read anew, a directory of manifests parsed.
#![expect(unsafe_code, reason = "a function of the C library")]

/// Gives what is free back to the kernel, where the C library keeps it otherwise. Some milliseconds.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number, touches nothing that is in use; safe in any thread (malloc_trim(3)).
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
