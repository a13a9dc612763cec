//! Who keeps a network namespace alive.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The processes of this machine that are in the network namespace `inode`, have it open or see it mounted, as
/// `PID NAME is in it`.
pub fn holders(inode: u64) -> Vec<String> {
    let name = format!("net:[{inode}]");
    let device = fs::metadata("/proc/self/ns/net").map_or(0, |file| file.dev());
    let mut found = BTreeSet::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let dir = process.path();
        let pid = process.file_name().to_string_lossy().into_owned();
        if !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        // By what it leads to: the name of one that was opened where it is mounted is a path.
        let is =
            |path: &Path| fs::metadata(path).is_ok_and(|file| (file.dev(), file.ino()) == (device, inode));
        let comm = fs::read_to_string(dir.join("comm")).unwrap_or_default();
        let mut add = |how: &str| found.insert(format!("{pid} {} {how}", comm.trim()));
        let tasks = fs::read_dir(dir.join("task")).into_iter().flatten().flatten();
        if tasks.into_iter().any(|task| is(&task.path().join("ns/net"))) {
            add("is in it");
        }
        if fs::read_dir(dir.join("fd")).into_iter().flatten().flatten().any(|fd| is(&fd.path())) {
            add("has it open");
        }
        if fs::read_to_string(dir.join("mountinfo")).is_ok_and(|mounts| mounts.contains(&name)) {
            add("has it mounted");
        }
    }
    found.into_iter().collect()
}
