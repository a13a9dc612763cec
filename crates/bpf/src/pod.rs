//! What the CNI plugin does with the programs: three system calls a hook, nothing is loaded.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use crate::raw::Kind;
use crate::{Error, Pins, Result, TcHook, pins, sys};

const HOOKS: [TcHook; 2] = [TcHook::PodOut, TcHook::Pod];

/// Attaches the pinned pod programs to the host side of a pod's veth, and pins the links (`pod-<ifname>`,
/// `pod_out-<ifname>`). To be called before the pod can send, in the network namespace of the interface.
///
/// `Ok(false)`: no proxyd has pinned its programs here; it attaches them itself when it comes.
pub fn attach_pod(bpf_root: &Path, ifname: &str, ifindex: u32) -> Result<bool> {
    let pins = Pins::new(bpf_root);
    if !pins.exist()? {
        return Ok(false);
    }
    for hook in HOOKS {
        let path = pins.program(hook.name());
        // What is none of ours is as good as nothing.
        let Ok(Some(program)) = pins::inspect(&path, Kind::Program) else { return Ok(false) };
        let link = match sys::link_create(program.as_fd(), ifindex, hook.attach_type(), 0) {
            Ok(link) => link,
            // A proxyd that runs has seen the interface first.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(source) => {
                let to = format!("to {ifname}");
                return Err(Error::Attach { operation: "attach", program: hook.name(), to, source });
            }
        };
        let path = pins.link(hook.name(), ifname);
        // Of an interface of this name that is gone.
        pins::remove_any(&path)?;
        sys::pin(link.as_fd(), &path).map_err(|source| Error::Pin { operation: "pin", path, source })?;
    }
    Ok(true)
}

/// Removes the links that [`attach_pod`] or proxyd pinned. That there are none is no error.
pub fn detach_pod(bpf_root: &Path, ifname: &str) -> Result<()> {
    let pins = Pins::new(bpf_root);
    if !pins.exist()? {
        return Ok(());
    }
    for hook in HOOKS {
        pins::remove_file(&pins.link(hook.name(), ifname))?;
    }
    Ok(())
}
