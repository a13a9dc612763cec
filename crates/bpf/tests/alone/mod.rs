//! A network namespace and a BPF file system of its own for a test.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use heddle_bpf::Sizes;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Enough for tests.
pub const SMALL: Sizes = Sizes {
    frontends: 64,
    ring: 64,
    backends: 64,
    nodes: 64,
    addrs: 64,
    choices: 64,
    ct_new: 64,
    ct: 64,
    affinity: 64,
    sources: 64,
    sockets: 64,
};

/// Runs `test` with a fresh network namespace and a BPF file system, both of which go with their thread.
pub fn alone(test: impl FnOnce(&Path) + Send + 'static) {
    if !heddle_bpf::is_embedded() {
        panic!("built without the eBPF object; run `cargo xtask build-ebpf` first");
    }
    let result = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let root: PathBuf = dir.path().join("bpf");
        fs::create_dir(&root).unwrap();
        mount(Some("bpf"), &root, Some("bpf"), MsFlags::empty(), None::<&str>).unwrap();
        test(&root);
        nix::mount::umount(&root).unwrap();
    })
    .join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// Interface index of `lo` in a fresh namespace.
pub const LO: u32 = 1;

/// The embedded object with programs that the verifier refuses: without its licence they may not call what they call.
#[allow(dead_code, reason = "not every test program breaks one")]
pub fn refused() -> Vec<u8> {
    const LICENCE: &[u8] = b"GPL\0";
    let mut object = heddle_bpf::object().unwrap().to_vec();
    let at = object.windows(LICENCE.len()).rposition(|bytes| bytes == LICENCE).unwrap();
    object[at..at + 3].copy_from_slice(b"own");
    object
}
