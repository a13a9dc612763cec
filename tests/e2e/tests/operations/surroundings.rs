//! The parts of the machine that a world sees otherwise: a small disk, and another boot when it likes.

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Where the small disk is; only the calling thread and what it starts see it.
pub const DISK: &str = "/mnt";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const FILLER: &str = "/mnt/filler";

/// Gives the calling thread mounts of its own: a disk of 1 MiB, and a boot identity that can be changed.
pub fn own() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("tmpfs"), DISK, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
    // The identity is not on the disk that fills up.
    mount(Some("tmpfs"), "/media", Some("tmpfs"), MsFlags::empty(), none).unwrap();
    fs::write("/media/boot_id", identity(0)).unwrap();
    mount(Some("/media/boot_id"), BOOT_ID, none, MsFlags::MS_BIND, none).unwrap();
}

fn identity(boot: u64) -> String {
    format!("00000000-0000-4000-8000-{boot:012x}\n")
}

/// The machine was started again, for the `boot`th time.
pub fn set_boot(boot: u64) {
    fs::write("/media/boot_id", identity(boot)).unwrap();
}

/// Not one byte more finds room.
pub fn fill() {
    use std::io::Write;
    let mut filler = fs::File::options().create(true).append(true).open(FILLER).unwrap();
    while filler.write_all(&[0; 4096]).is_ok() {}
    assert_eq!(filler.write(&[0]).unwrap_err().raw_os_error(), Some(Errno::ENOSPC as i32));
}

/// Room again.
pub fn free() {
    drop(fs::remove_file(FILLER));
}

/// An empty disk.
pub fn empty() {
    for entry in fs::read_dir(DISK).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
}

/// All files of the disk, as the world left them.
pub fn files(dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path.display().to_string());
        }
    }
}
