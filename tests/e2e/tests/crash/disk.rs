//! The data directory on file systems that are full, read-only, or poor.

use std::fs;
use std::ops::Deref;
use std::path::Path;
use std::thread;

use heddle_lab::trace::{Call, Fate};
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::bench::{Host, Pod};
use super::sweep::sweep;
use super::world::World;

/// Runs `work` where mounts are nobody else's business.
fn with_mounts(work: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            work();
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn tmpfs(on: &Path, flags: MsFlags, options: &str) {
    fs::create_dir_all(on).unwrap();
    mount(Some("tmpfs"), on, Some("tmpfs"), flags, Some(options)).unwrap();
}

/// A world whose data directory is a file system of its own: unmounted before the directory is to go.
struct Mounted(World);

impl Deref for Mounted {
    type Target = World;

    fn deref(&self) -> &World {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // One may lie on another.
        while umount2(&self.0.host.data_dir(), MntFlags::MNT_DETACH).is_ok() {}
    }
}

/// A data directory on a tmpfs with these options.
fn world_on_tmpfs(options: &str) -> Mounted {
    let prepare = |host: &Host| tmpfs(&host.data_dir(), MsFlags::empty(), options);
    Mounted(World::prepared(prepare, |host| host.conf()))
}

#[test]
fn fault_044_a_read_only_data_dir() {
    with_mounts(|| {
        let world = world_on_tmpfs("");
        let (host, conf, pod) = (&world.host, &world.conf, &world.pod);
        let remount = |flags| tmpfs(&host.data_dir(), MsFlags::MS_REMOUNT | flags, "");
        host.add(pod, conf);
        let wired = world.state();
        remount(MsFlags::MS_RDONLY);
        let added = host.call(&Pod::new("late"), "ADD", conf);
        assert_eq!(added.code(), 5, "{added:?}");
        assert!(added.msg().contains("Read-only file system"), "{added:?}");
        assert_eq!(world.state(), wired);
        // Nothing is left in the kernel, and the runtime is told to come back for the lease.
        for _ in 0..2 {
            let deleted = host.call(pod, "DEL", conf);
            assert_eq!(deleted.code(), 5, "{deleted:?}");
            assert!(world.state().iter().all(|line| line.starts_with("lease") || wired.contains(line)));
            assert!(world.ips_of(pod).is_empty());
            assert!(!world.state().iter().any(|line| line.contains("dev hdl") && !wired.contains(line)));
        }
        remount(MsFlags::empty());
        host.del(pod, conf);
        world.assert_clean("after the disk is well");
    });
}

#[test]
fn fault_044_a_full_data_dir() {
    with_mounts(|| {
        // Pages of 4 KiB.
        let world = world_on_tmpfs("size=64k");
        let (host, conf) = (&world.host, &world.conf);
        host.add(&world.pod, conf);
        let filler = host.data_dir().join("filler");
        let mut size = 64 * 1024;
        while fs::write(&filler, vec![1; size]).is_err() {
            size -= 4096;
        }
        let before = world.state();
        let added = host.call(&Pod::new("late"), "ADD", conf);
        assert_eq!(added.code(), 5, "{added:?}");
        assert!(added.msg().contains("No space left"), "{added:?}");
        assert_eq!(world.state(), before);
        // Taking away needs no space.
        host.del(&world.pod, conf);
        fs::remove_file(filler).unwrap();
        world.assert_clean("after the disk was full");
        host.add(&world.pod, conf);
    });
}

#[test]
fn fault_054_a_data_dir_without_an_inode_left() {
    with_mounts(|| {
        let world = world_on_tmpfs("nr_inodes=24");
        let (host, conf) = (&world.host, &world.conf);
        let mut pods = Vec::new();
        let refused = loop {
            let pod = Pod::new(&format!("pod-{}", pods.len()));
            let before = world.state();
            let answer = host.call(&pod, "ADD", conf);
            if !answer.success {
                assert_eq!(world.state(), before);
                break answer;
            }
            pods.push(pod);
            assert!(pods.len() < 24, "inodes do not come to an end");
        };
        assert_eq!(refused.code(), 5, "{refused:?}");
        assert!(pods.len() > 2, "{refused:?}");
        let gone = pods.pop().unwrap();
        host.del(&gone, conf);
        host.add(&world.pod, conf);
        pods.iter().chain([&world.pod]).for_each(|pod| host.del(pod, conf));
        world.assert_clean("after the inodes came to an end");
    });
}

#[test]
fn fault_054_a_data_dir_on_overlayfs() {
    with_mounts(|| {
        let world = Mounted(World::prepared(
            |host| {
                let dir = host.data_dir();
                tmpfs(&dir, MsFlags::empty(), "");
                let [lower, upper, work] = ["lower", "upper", "work"].map(|name| dir.join(name));
                [&lower, &upper, &work].iter().for_each(|dir| fs::create_dir(dir).unwrap());
                let options = format!(
                    "lowerdir={},upperdir={},workdir={}",
                    lower.display(),
                    upper.display(),
                    work.display()
                );
                mount(Some("overlay"), &dir, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
                    .unwrap();
            },
            |host| host.conf(),
        ));
        world.host.add(&world.pod, &world.conf);
        world.assert_no_address_twice("on overlayfs");
        world.host.del(&world.pod, &world.conf);
        world.assert_clean("on overlayfs");
    });
}

/// As on a file system that has no files without a name (NFS): written under another name, then linked.
fn without_tmpfile(call: &Call) -> Option<Fate> {
    let unnamed = u64::try_from(libc::O_TMPFILE).unwrap();
    let asks = call.number == libc::SYS_openat && call.args[2] & unnamed == unnamed;
    asks.then_some(Fate::Fails(Errno::EOPNOTSUPP))
}

#[test]
fn fault_054_a_file_system_without_unnamed_files_and_killed_there() {
    let moments = sweep(9, World::ptp, |world, k| {
        let fate = |call: &Call| match without_tmpfile(call) {
            _ if call.index == k => Fate::Kills,
            fate => fate.unwrap_or(Fate::Passes),
        };
        let outcome = world.traced("ADD", &world.conf, fate);
        let what = format!("ADD without unnamed files killed at {k}: {outcome:?}");
        if !outcome.killed() {
            assert!(outcome.answer.success, "{what}");
        }
        world.assert_no_address_twice(&what);
        if k % 2 == 0 {
            world.host.del(&world.pod, &world.conf);
        }
        // Nobody else finds a file that was about to get its name.
        let collected = world.gc();
        assert!(collected.success, "{what}: {collected:?}");
        world.assert_clean(&what);
        outcome.killed()
    });
    assert!(moments > 20, "{moments}");
}
