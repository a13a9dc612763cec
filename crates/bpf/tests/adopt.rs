//! What is pinned is adopted, refused or replaced; links are swapped in place. In a network namespace and a BPF
//! file system of its own.
#![expect(clippy::unwrap_used, reason = "tests")]

mod alone;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use alone::{LO, SMALL, alone};
use heddle_bpf::{Attached, Datapath, Opened, Pins, SocketHook, TcHook, attach_pod, detach_pod, sys};
use heddle_ebpf_common::{Frontend, FrontendKey};

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

        // The same build finds its programs, and has nothing to load.
        let same = Datapath::open(Pins::new(root), &SMALL).unwrap();
        assert_eq!(same.opened, Opened::Adopted);
        assert_eq!(same.attach_tcx(TcHook::UnderlayIn, "lo", LO).unwrap(), Attached::AsItWas);
        drop(same);
        let other = [heddle_bpf::object().unwrap(), b"another build"].concat();
        let second = Datapath::open_object(Pins::new(root), &SMALL, &other).unwrap();
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

/// Something is made foreign, in each way that there is; nothing of it is used, and what comes of it is as good as new.
#[test]
fn fault_107_s16_what_others_have_planted_is_not_used() {
    alone(|root| {
        let dir = root.join("heddle");
        let pins = Pins::new(root);
        let mode = |dir: &Path| fs::metadata(dir).unwrap().permissions().mode() & 0o7777;
        let open = || Datapath::open(Pins::new(root), &SMALL).unwrap();
        let rebuilt = |words: &str| {
            let datapath = open();
            let why = match &datapath.opened {
                Opened::Rebuilt(why) => why.clone(),
                other => panic!("{words}: {other:?}"),
            };
            assert!(why.contains(words), "{why}");
            assert!(attach_pod(root, "lo", LO).unwrap());
            detach_pod(root, "lo").unwrap();
        };
        // Root's, but open to all, and somebody was there.
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, PermissionsExt::from_mode(0o777)).unwrap();
        assert!(!attach_pod(root, "lo", LO).unwrap());
        rebuilt("could be written to by others");
        assert_eq!(mode(&dir), 0o700);
        fs::set_permissions(pins.dir().join("maps"), PermissionsExt::from_mode(0o722)).unwrap();
        rebuilt("could be written to by others");

        // Of a map: the owner, the mode, what it is.
        chown(pins.map("nodes"), Some(1000), None).unwrap();
        rebuilt("map nodes belongs to user 1000");
        fs::set_permissions(pins.map("ct"), PermissionsExt::from_mode(0o606)).unwrap();
        rebuilt("map ct is open to others (mode 606)");
        fs::remove_file(pins.map("ring")).unwrap();
        fs::create_dir(pins.map("ring")).unwrap();
        rebuilt("map ring is a directory");
        fs::rename(pins.map("sock_udp"), root.join("elsewhere")).unwrap();
        symlink(root.join("elsewhere"), pins.map("sock_udp")).unwrap();
        rebuilt("map sock_udp is a link");
        fs::remove_file(root.join("elsewhere")).unwrap();
        sys::pin(open().tc_program(TcHook::Pod).unwrap(), &root.join("program")).unwrap();
        fs::rename(root.join("program"), pins.map("addrs")).unwrap();
        rebuilt("map addrs is a program, no map");
        // Two of ours of one shape, exchanged; one of another shape.
        fs::rename(pins.map("ct"), root.join("other")).unwrap();
        fs::rename(pins.map("ct_new"), pins.map("ct")).unwrap();
        fs::rename(root.join("other"), pins.map("ct_new")).unwrap();
        rebuilt("map ct_new has (type, key, value)");
        fs::rename(pins.map("services"), root.join("other")).unwrap();
        fs::rename(pins.map("node_names"), pins.map("services")).unwrap();
        fs::rename(root.join("other"), pins.map("node_names")).unwrap();
        rebuilt("map services is called node_names");
        // A part is missing.
        fs::remove_file(pins.map("choices")).unwrap();
        rebuilt("map choices is missing");

        // The directory is somebody else's, or none.
        chown(&dir, Some(1000), None).unwrap();
        assert!(!attach_pod(root, "lo", LO).unwrap(), "without proxyd ADD succeeds");
        rebuilt("is not root's");
        fs::remove_dir_all(&dir).unwrap();
        symlink("/tmp", &dir).unwrap();
        assert!(!attach_pod(root, "lo", LO).unwrap());
        rebuilt("is no directory");
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(open().opened, Opened::Adopted, "it is as it must be");
        pins.remove().unwrap();
        assert!(!dir.exists(), "nothing is left");
    });
}

/// Another's program under the name of ours is not attached, another's link not swapped.
#[test]
fn fault_107_s16_a_foreign_program_is_not_attached() {
    alone(|root| {
        let pins = Pins::new(root);
        let datapath = Datapath::open(pins.clone(), &SMALL).unwrap();
        let id = sys::program_id(datapath.tc_program(TcHook::Pod).unwrap()).unwrap();
        let attached = || {
            let links = pins.pinned_links().unwrap();
            links.iter().find(|link| link.program == "pod").map(|link| link.info.program_id)
        };
        chown(pins.program("pod"), Some(1000), None).unwrap();
        assert!(!attach_pod(root, "lo", LO).unwrap(), "as if no proxyd were there");
        fs::remove_file(pins.program("pod")).unwrap();
        fs::hard_link(pins.map("ct"), pins.program("pod")).unwrap();
        assert!(!attach_pod(root, "lo", LO).unwrap());
        assert_eq!(attached(), None);
        // proxyd puts its own there.
        let datapath = {
            drop(datapath);
            Datapath::open(pins.clone(), &SMALL).unwrap()
        };
        assert!(attach_pod(root, "lo", LO).unwrap());
        // A link that somebody else pinned; one of another hook of the same device; a map in the place of a link.
        for plant in [
            &|path: &Path| chown(path, Some(1000), None).unwrap(),
            &|path: &Path| fs::rename(pins.link("pod_out", "lo"), path).unwrap(),
            &|path: &Path| {
                fs::remove_file(path).unwrap();
                fs::hard_link(pins.map("ranges"), path).unwrap();
            },
        ] as [&dyn Fn(&Path); 3]
        {
            plant(&pins.link("pod", "lo"));
            assert_eq!(datapath.attach_tcx(TcHook::Pod, "lo", LO).unwrap(), Attached::Created);
            let now = sys::program_id(datapath.tc_program(TcHook::Pod).unwrap()).unwrap();
            assert_ne!(now, id);
            assert_eq!(attached(), Some(now));
            let info =
                pins.pinned_links().unwrap().into_iter().find(|link| link.program == "pod").unwrap().info;
            assert_eq!((info.kind, info.ifindex), (sys::LINK_TCX, LO));
        }
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
            // The kernel gives up at a million.
            assert!((1..250_000).contains(&count), "{name}: {count}");
        }
    });
}
