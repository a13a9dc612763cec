//! Links: one per program and place, pinned, swapped in place.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::libc;

use crate::program::XDP_ATTACH;
use crate::raw::Kind;
use crate::sys::LinkInfo;
use crate::{Datapath, Error, Pins, Result, SocketHook, TcHook, XdpMode, pins, sys};

/// What attaching came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    Created,
    /// A link that was there has this program now.
    Swapped,
    /// Nothing was to be done.
    AsItWas,
}

/// A link that is pinned in our directory.
#[derive(Clone, Debug)]
pub struct PinnedLink {
    /// Name of the program.
    pub program: String,
    /// Interface name or cgroup id.
    pub place: String,
    pub path: PathBuf,
    pub info: LinkInfo,
}

impl PinnedLink {
    /// Is the interface or cgroup gone?
    pub fn is_dead(&self) -> bool {
        match self.info.kind {
            sys::LINK_TCX | sys::LINK_XDP => self.info.ifindex == 0,
            sys::LINK_CGROUP => self.info.cgroup == 0,
            _ => true,
        }
    }

    /// Detaches it. True if it was there.
    pub fn remove(&self) -> Result<bool> {
        pins::remove_file(&self.path)
    }
}

impl Pins {
    /// All links that are pinned, also those of interfaces that are gone.
    pub fn pinned_links(&self) -> Result<Vec<PinnedLink>> {
        let mut links = Vec::new();
        for path in pins::entries(&self.links())? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some((program, place)) = name.split_once('-') else { continue };
            // Another process (the CNI plugin) may remove one at any time. What is none of ours is not looked at.
            let Ok(Some(fd)) = pins::inspect(&path, Kind::Link) else { continue };
            let info = sys::link_info(fd.as_fd()).map_err(|source| Error::Pin {
                operation: "look at",
                path: path.clone(),
                source,
            })?;
            links.push(PinnedLink {
                program: program.to_owned(),
                place: place.replace(':', "."),
                path: path.clone(),
                info,
            });
        }
        Ok(links)
    }
}

struct Place<'a> {
    program: &'static str,
    pin: PathBuf,
    /// Interface index or cgroup descriptor.
    target: u32,
    attach_type: u32,
    flags: u32,
    words: &'a str,
}

impl Datapath {
    /// Attaches a program to an interface of this thread's network namespace, or swaps it into the link that is
    /// pinned for it.
    pub fn attach_tcx(&self, hook: TcHook, ifname: &str, ifindex: u32) -> Result<Attached> {
        let place = Place {
            program: hook.name(),
            pin: self.pins.link(hook.name(), ifname),
            target: ifindex,
            attach_type: hook.attach_type(),
            flags: 0,
            words: ifname,
        };
        attach(self.tc_program(hook)?, &place, |info| info.kind == sys::LINK_TCX && info.ifindex == ifindex)
    }

    /// Attaches the XDP program to an underlay device, or swaps it into the link that is pinned for it. The device
    /// may have one of another mode no more ([`retain_links`](Self::retain_links)).
    pub fn attach_xdp(&self, mode: XdpMode, ifname: &str, ifindex: u32) -> Result<Attached> {
        let place = Place {
            program: mode.name(),
            pin: self.pins.link(mode.name(), ifname),
            target: ifindex,
            attach_type: XDP_ATTACH,
            flags: mode.flags(),
            words: ifname,
        };
        attach(self.xdp_program(mode)?, &place, |info| info.kind == sys::LINK_XDP && info.ifindex == ifindex)
    }

    /// Attaches the socket hooks to a cgroup2 directory, or swaps them into the pinned links.
    pub fn attach_cgroup(&self, dir: &Path) -> Result<Vec<Attached>> {
        let fail = |source| Error::Pin { operation: "open cgroup", path: dir.to_owned(), source };
        let file = File::open(dir).map_err(fail)?;
        // The id of a cgroup is the inode number of its directory (kernfs, 64 bit).
        let id = file.metadata().map_err(fail)?.ino();
        SocketHook::ALL
            .into_iter()
            .map(|hook| {
                let place = Place {
                    program: hook.name(),
                    pin: self.pins.link(hook.name(), &id.to_string()),
                    target: file.as_raw_fd().cast_unsigned(),
                    attach_type: hook.attach_type(),
                    flags: 0,
                    words: &dir.to_string_lossy(),
                };
                attach(self.socket_program(hook)?, &place, |info| {
                    info.kind == sys::LINK_CGROUP && info.cgroup == id
                })
            })
            .collect()
    }

    /// Removes the links of `program` at other places than `keep` (interface names or cgroup ids), and those
    /// of places that are gone. Returns how many.
    pub fn retain_links(&self, program: &str, keep: impl Fn(&str) -> bool) -> Result<usize> {
        let mut removed = 0;
        for link in self.pins.pinned_links()? {
            if link.program == program && (link.is_dead() || !keep(&link.place)) {
                removed += usize::from(link.remove()?);
            }
        }
        Ok(removed)
    }
}

fn attach(
    program: BorrowedFd<'_>,
    place: &Place<'_>,
    matches: impl Fn(&LinkInfo) -> bool,
) -> Result<Attached> {
    let fail = |operation, source| Error::Attach {
        operation,
        program: place.program,
        to: format!("{} {}", if operation == "attach" { "to" } else { "at" }, place.words),
        source,
    };
    let mut removed = false;
    match pins::inspect(&place.pin, Kind::Link) {
        Ok(Some(link)) => {
            let info = sys::link_info(link.as_fd()).map_err(|source| fail("look at", source))?;
            if matches(&info) && info.attach_type == place.attach_type {
                let id = sys::program_id(program).map_err(|source| fail("look at", source))?;
                if info.program_id == id {
                    return Ok(Attached::AsItWas);
                }
                match sys::link_update(link.as_fd(), program) {
                    Ok(()) => return Ok(Attached::Swapped),
                    // The interface went between the two calls.
                    Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                    Err(source) => return Err(fail("swap", source)),
                }
            }
            // A link of an interface of this name that is gone.
            pins::remove_file(&place.pin)?;
            removed = true;
        }
        Ok(None) => {}
        // Somebody else's, under the name of ours.
        Err(_) => {
            pins::remove_any(&place.pin)?;
            removed = true;
        }
    }
    let mut attempts = 0;
    let link = loop {
        match sys::link_create(program, place.target, place.attach_type, place.flags) {
            // The kernel takes a link that was removed just now away a moment later.
            Err(error) if removed && error.raw_os_error() == Some(libc::EEXIST) && attempts < 10 => {
                attempts += 1;
                sys::grace_period()?;
            }
            other => break other.map_err(|source| fail("attach", source))?,
        }
    };
    sys::pin(link.as_fd(), &place.pin).map_err(|source| Error::Pin {
        operation: "pin",
        path: place.pin.clone(),
        source,
    })?;
    Ok(Attached::Created)
}
