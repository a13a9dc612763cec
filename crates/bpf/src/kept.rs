//! What attached programs are and use, found by its pins.
//!
//! The kernel opens a program or map by its number for CAP_SYS_ADMIN alone, which a daemon need not have. By a pin
//! CAP_BPF opens it, and whether it is the one that is meant its number says, whoever has made the pin. So everything
//! that an attached program needs is kept pinned as long as it is attached: in `kept/` before pins are replaced by
//! others, until the programs are. A daemon that is killed in between is followed by one that finds it there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use nix::libc;

use crate::pins::{entries, remove_any};
use crate::raw::{self, Kind, RawMap};
use crate::{Datapath, Error, Pins, Result, sys};

/// Programs and maps that can be opened, by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    programs: BTreeMap<u32, OwnedFd>,
    maps: BTreeMap<u32, OwnedFd>,
}

/// The maps of a program.
#[derive(Debug, Default)]
pub(crate) struct Used {
    pub maps: Vec<RawMap>,
    /// Whether there are others, which cannot be opened.
    pub more: bool,
}

impl Reach {
    /// All that is pinned below the directories of root's.
    pub fn of(pins: &Pins) -> Result<Self> {
        let mut reach = Self::default();
        reach.walk(&pins.ours())?;
        Ok(reach)
    }

    fn walk(&mut self, dir: &Path) -> Result<()> {
        if !fs::symlink_metadata(dir).is_ok_and(|meta| meta.is_dir() && meta.uid() == 0) {
            return Ok(());
        }
        for path in entries(dir)? {
            match fs::symlink_metadata(&path) {
                Ok(meta) if meta.is_dir() => self.walk(&path)?,
                Ok(meta) if meta.is_file() => self.note(&path),
                // Gone in this very moment, or no pin.
                _ => {}
            }
        }
        Ok(())
    }

    /// What cannot be opened is none of ours.
    fn note(&mut self, path: &Path) {
        let Ok(fd) = sys::get(path) else { return };
        match raw::kind(fd.as_fd()) {
            Ok(Kind::Map) => {
                if let Ok(map) = fd.try_clone().and_then(RawMap::new) {
                    self.maps.insert(map.id, fd);
                }
            }
            Ok(Kind::Program) => {
                if let Ok((id, _)) = raw::program_name(fd.as_fd()) {
                    self.programs.insert(id, fd);
                }
            }
            _ => {}
        }
    }

    /// The program of this number.
    pub fn program(&self, id: u32) -> io::Result<OwnedFd> {
        self.programs.get(&id).map_or_else(|| raw::program(id), OwnedFd::try_clone)
    }

    /// The maps that a program uses.
    pub fn used(&self, program: BorrowedFd<'_>) -> io::Result<Used> {
        let mut used = Used::default();
        for id in raw::map_ids(program)? {
            let map = self.maps.get(&id).map_or_else(|| raw::map(id), OwnedFd::try_clone);
            match map {
                Ok(map) => used.maps.push(RawMap::new(map)?),
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => used.more = true,
                Err(error) => return Err(error),
            }
        }
        Ok(used)
    }
}

/// The programs of all links that are pinned, of every layout.
fn attached(pins: &Pins) -> Result<BTreeSet<u32>> {
    let mut programs = BTreeSet::new();
    for layout in pins.others()?.into_iter().chain([pins.clone()]) {
        let links = layout.pinned_links()?;
        programs.extend(links.iter().filter(|link| !link.is_dead()).map(|link| link.info.program_id));
    }
    Ok(programs)
}

/// Pins attached programs and their maps once more, and takes the pins of others away. To be called before any pin is
/// replaced or removed.
pub(crate) fn keep(pins: &Pins) -> Result<()> {
    let dir = pins.kept();
    let reach = Reach::of(pins)?;
    let mut needed: BTreeMap<String, OwnedFd> = BTreeMap::new();
    for id in attached(pins)? {
        // Nobody can reach it any more; or it was swapped in this very moment.
        let Ok(program) = reach.program(id) else { continue };
        let Ok(used) = reach.used(program.as_fd()) else { continue };
        for map in used.maps {
            needed.insert(format!("m{}", map.id), map.into_fd());
        }
        needed.insert(format!("p{id}"), program);
    }
    if needed.is_empty() {
        return remove_any(&dir);
    }
    let fail = |operation, path: &Path, source| Error::Pin { operation, path: path.to_owned(), source };
    match fs::symlink_metadata(&dir) {
        Ok(meta) if crate::pins::is_private(&meta) => {}
        _ => {
            remove_any(&dir)?;
            fs::DirBuilder::new().mode(0o700).create(&dir).map_err(|source| fail("create", &dir, source))?;
        }
    }
    for path in entries(&dir)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // One that is there is what its name says: nobody else may write here.
        if needed.remove(&name).is_none() {
            remove_any(&path)?;
        }
    }
    for (name, fd) in needed {
        let path = dir.join(name);
        sys::pin(fd.as_fd(), &path).map_err(|source| fail("pin", &path, source))?;
    }
    Ok(())
}

impl Datapath {
    /// Takes away the pins of what was attached before our programs, once they are.
    pub fn release(&self) -> Result<()> {
        let dir = self.pins.kept();
        if !dir.exists() {
            return Ok(());
        }
        let ours: BTreeSet<u32> =
            self.programs.values().filter_map(|fd| sys::program_id(fd.as_fd()).ok()).collect();
        if attached(&self.pins)?.is_subset(&ours) { remove_any(&dir) } else { Ok(()) }
    }
}
