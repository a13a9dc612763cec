//! What is pinned is adopted, refused or replaced; links are swapped in place. In a network namespace and a BPF
//! file system of its own.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::thread;

use heddle_bpf::{Attached, Datapath, Opened, Pins, Sizes, SocketHook, TcHook, attach_pod, detach_pod, sys};
use heddle_ebpf_common::{Frontend, FrontendKey};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const SMALL: Sizes = Sizes {
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
fn alone(test: impl FnOnce(&Path) + Send + 'static) {
    if !heddle_bpf::is_embedded() {
        panic!("built without the eBPF object; run `cargo xtask build-ebpf` first");
    }
    let result = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let root: PathBuf = dir.path().join("bpf");
        std::fs::create_dir(&root).unwrap();
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
const LO: u32 = 1;

#[test]
fn maps_survive_a_restart_and_links_are_swapped_in_place() {
    alone(|root| {
        assert!(!attach_pod(root, "lo", LO).unwrap(), "nothing is pinned yet");
        let mut first = Datapath::open(Pins::new(root), &SMALL).unwrap();
        assert_eq!(first.opened, Opened::Fresh);
        let key = FrontendKey { port: 80, proto: 6, ..FrontendKey::default() };
        let value = Frontend { service: 7, ..Frontend::default() }.sealed(&key);
        first.maps.frontends.insert(key, value, 0).unwrap();
        first.maps.write_ring(16, &(0..20).collect::<Vec<_>>()).unwrap();
        assert_eq!(first.attach_tcx(TcHook::UnderlayIn, "lo", LO).unwrap(), Attached::Created);
        assert_eq!(first.attach_tcx(TcHook::UnderlayIn, "lo", LO).unwrap(), Attached::AsItWas);
        assert!(attach_pod(root, "lo", LO).unwrap());
        let before = Pins::new(root).pinned_links().unwrap();
        drop(first);

        let second = Datapath::open(Pins::new(root), &SMALL).unwrap();
        assert_eq!(second.opened, Opened::Adopted);
        assert_eq!(second.maps.frontends.get(&key, 0).unwrap(), value);
        assert_eq!(second.maps.read_ring(17, 3).unwrap(), [0, 1, 2], "blocks are read whole");
        for hook in [TcHook::UnderlayIn, TcHook::Pod, TcHook::PodOut] {
            assert_eq!(second.attach_tcx(hook, "lo", LO).unwrap(), Attached::Swapped);
        }
        let after = Pins::new(root).pinned_links().unwrap();
        assert_eq!(before.len(), 3);
        for (old, new) in before.iter().zip(&after) {
            assert_eq!((old.path.clone(), old.info.ifindex), (new.path.clone(), new.info.ifindex));
            assert_ne!(old.info.program_id, new.info.program_id);
        }

        detach_pod(root, "lo").unwrap();
        assert_eq!(second.retain_links("underlay_in", |_| false).unwrap(), 1);
        assert!(Pins::new(root).pinned_links().unwrap().is_empty());
        Pins::new(root).remove().unwrap();
        Pins::new(root).remove().unwrap();
        assert!(!root.join("heddle").exists(), "nothing is left");
    });
}

#[test]
fn maps_of_another_size_are_not_used() {
    alone(|root| {
        drop(Datapath::open(Pins::new(root), &SMALL).unwrap());
        let other = Datapath::open(Pins::new(root), &Sizes { frontends: 128, ..SMALL }).unwrap();
        assert!(
            matches!(&other.opened, Opened::Rebuilt(reason) if reason.contains("frontends")),
            "{:?}",
            other.opened
        );
    });
}

#[test]
fn what_others_have_planted_is_not_used() {
    alone(|root| {
        let dir = root.join("heddle");
        let mode = |dir: &Path| std::fs::metadata(dir).unwrap().permissions().mode() & 0o7777;
        // Root's, but open to all: closed.
        std::fs::create_dir(&dir).unwrap();
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o777)).unwrap();
        assert!(!attach_pod(root, "lo", LO).unwrap());
        drop(Datapath::open(Pins::new(root), &SMALL).unwrap());
        assert_eq!(mode(&dir), 0o700);
        // A map of somebody else's: replaced, and all with it.
        let map = Pins::new(root).map("nodes");
        chown(&map, Some(1000), None).unwrap();
        let again = Datapath::open(Pins::new(root), &SMALL).unwrap();
        assert!(matches!(&again.opened, Opened::Rebuilt(reason) if reason.contains("user 1000")));
        // The directory is somebody else's: removed.
        chown(&dir, Some(1000), None).unwrap();
        assert!(!attach_pod(root, "lo", LO).unwrap(), "without proxyd ADD succeeds");
        let again = Datapath::open(Pins::new(root), &SMALL).unwrap();
        assert_eq!((again.opened.clone(), mode(&dir)), (Opened::Fresh, 0o700));
        assert!(attach_pod(root, "lo", LO).unwrap());
    });
}

#[test]
fn what_is_no_bpf_file_system_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = Pins::new(dir.path()).create().unwrap_err();
    assert!(error.to_string().contains("mount -t bpf"), "{error}");
}

#[test]
fn the_verifier_is_far_from_its_limit() {
    alone(|root| {
        let datapath = Datapath::open(Pins::new(root), &SMALL).unwrap();
        let tc = TcHook::ALL.map(|hook| (hook.name(), datapath.tc_program(hook).unwrap()));
        let socket = SocketHook::ALL.map(|hook| (hook.name(), datapath.socket_program(hook).unwrap()));
        for (name, program) in tc.into_iter().chain(socket) {
            let count = sys::verified_instructions(program).unwrap();
            println!("{name}: {count} instructions");
            assert!((1..200_000).contains(&count), "{name}: {count}");
        }
    });
}
