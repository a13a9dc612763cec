//! What vxland hands to the container runtime: the CNI configuration list of this node.
//!
//! The runtime takes the node for ready once the file is there, so it is written last, when the overlay
//! works, and always whole: readers see the old file or the new one.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use serde::Serialize;

/// Before it in the alphabet means before it in the runtime's choice.
pub const CONFLIST: &str = "10-heddle.conflist";

#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}: {source}", .path.display())]
pub struct HandoffError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// CNI specification 1.1.0, "Network configuration format".
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct List<'a> {
    /// The newest that every runtime speaks: containerd 1.6 and 1.7 refuse what answers in 1.1.0.
    cni_version: &'static str,
    /// From these a runtime that knows the key (1.1.0) takes the newest that it speaks, and with it GC and STATUS.
    cni_versions: [&'static str; 2],
    name: &'a str,
    plugins: [Plugin<'a>; 1],
}

#[derive(Serialize)]
struct Plugin<'a> {
    r#type: &'static str,
    mode: &'static str,
    mtu: u32,
    /// Without it no pod of another node is reached: the plugin's STATUS looks for it. The file outlives a reboot, the
    /// device does not.
    overlay: &'a str,
    ipam: Ipam,
    /// What a runtime may ask of the plugin for one pod.
    capabilities: Capabilities,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Capabilities {
    port_mappings: bool,
    bandwidth: bool,
}

#[derive(Serialize)]
struct Ipam {
    r#type: &'static str,
    /// One list a family. The first address of each range is this node's own in the overlay; host-local
    /// never hands that one out.
    ranges: Vec<[Range; 1]>,
    routes: Vec<Destination>,
}

#[derive(Serialize)]
struct Range {
    subnet: IpNetwork,
}

#[derive(Serialize)]
struct Destination {
    dst: &'static str,
}

/// The file's content for pods of these ranges, on a node with this VXLAN device. `network`: the name under which their
/// leases are kept.
pub fn conflist(network: &str, device: &str, ranges: &BTreeSet<IpNetwork>, mtu: u32) -> String {
    let mut routes: Vec<&'static str> =
        ranges.iter().map(|range| if range.is_ipv4() { "0.0.0.0/0" } else { "::/0" }).collect();
    routes.dedup();
    let list = List {
        cni_version: "1.0.0",
        cni_versions: ["1.0.0", "1.1.0"],
        name: network,
        plugins: [Plugin {
            r#type: "heddle",
            mode: "ptp",
            mtu,
            overlay: device,
            ipam: Ipam {
                r#type: "host-local",
                ranges: ranges.iter().map(|range| [Range { subnet: *range }]).collect(),
                routes: routes.into_iter().map(|dst| Destination { dst }).collect(),
            },
            capabilities: Capabilities { port_mappings: true, bandwidth: true },
        }],
    };
    let mut text = serde_json::to_string(&list).expect("strings and numbers always become JSON");
    text.push('\n');
    text
}

/// Makes the file in `dir` hold `content`, in one step (temporary file, then rename). Leaves it alone where
/// it does already. Returns whether it wrote.
pub fn write(dir: &Path, content: &str) -> Result<bool, HandoffError> {
    let path = dir.join(CONFLIST);
    if read(dir).is_ok_and(|there| there.as_deref() == Some(content)) {
        return Ok(false);
    }
    fs::create_dir_all(dir).map_err(|source| HandoffError {
        operation: "create the directory",
        path: dir.to_owned(),
        source,
    })?;
    // The runtime need not be root.
    write_atomically(&path, content, 0o644).map_err(|source| HandoffError {
        operation: "write",
        path,
        source,
    })?;
    Ok(true)
}

/// Makes the file at `path` hold `content`, in one step: readers, and a crash, find the old one or the new.
pub fn write_atomically(path: &Path, content: &str, mode: u32) -> io::Result<()> {
    // No container runtime reads a name that ends like this.
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let done = write_whole(&temporary, content, mode).and_then(|()| fs::rename(&temporary, path));
    if done.is_err() {
        // The first error is the one that tells; a leftover is overwritten next time.
        let _ = fs::remove_file(&temporary);
    }
    done
}

fn write_whole(path: &Path, content: &str, mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    // Whatever the umask is.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content.as_bytes())?;
    file.sync_all()
}

/// The file's content, if it is there.
pub fn read(dir: &Path) -> Result<Option<String>, HandoffError> {
    let path = dir.join(CONFLIST);
    match fs::read(&path) {
        // What is no text is not ours, and differs from whatever should be there.
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(HandoffError { operation: "read", path, source }),
    }
}

/// Removes the file. Returns whether there was one.
pub fn remove(dir: &Path) -> Result<bool, HandoffError> {
    let path = dir.join(CONFLIST);
    match fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(HandoffError { operation: "remove", path, source }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::fake::net;

    #[test]
    fn the_content_is_what_the_plugin_expects() {
        let both = [net("fd00:10:244:1::/64"), net("10.244.1.0/24")].into();
        assert_eq!(
            conflist("heddle", "heddle.1", &both, 1450),
            concat!(
                r#"{"cniVersion":"1.0.0","cniVersions":["1.0.0","1.1.0"],"name":"heddle","#,
                r#""plugins":[{"type":"heddle","mode":"ptp","mtu":1450,"overlay":"heddle.1","#,
                r#""ipam":{"type":"host-local","ranges":[[{"subnet":"10.244.1.0/24"}],[{"subnet":"fd00:10:244:1::/64"}]],"#,
                r#""routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]},"#,
                r#""capabilities":{"portMappings":true,"bandwidth":true}}]}"#,
                "\n"
            )
        );
        let six = conflist("heddle", "heddle.1", &[net("fd00:10:244:1::/64")].into(), 1430);
        assert!(six.contains(r#""routes":[{"dst":"::/0"}]"#) && !six.contains("0.0.0.0"), "{six}");
    }

    #[test]
    fn it_is_replaced_whole_and_left_alone_when_it_is_right() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("cni/net.d");
        assert!(write(&dir, "one\n").unwrap());
        let path = dir.join(CONFLIST);
        let first = fs::metadata(&path).unwrap();
        assert_eq!(first.mode() & 0o7777, 0o644);
        assert!(!write(&dir, "one\n").unwrap());
        assert_eq!(fs::metadata(&path).unwrap().ino(), first.ino());
        assert!(write(&dir, "two\n").unwrap());
        assert_ne!(fs::metadata(&path).unwrap().ino(), first.ino(), "a new file, renamed");
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "no temporary file stays");
        assert!(remove(&dir).unwrap());
        assert!(!remove(&dir).unwrap());
    }

    #[test]
    fn an_error_names_the_file() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        let error = write(&root.path().join("file"), "x").unwrap_err().to_string();
        assert!(error.starts_with("cannot create the directory ") && error.contains("/file: "), "{error}");
    }
}
