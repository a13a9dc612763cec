//! The directory of what is pinned.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use heddle_ebpf_common::LAYOUT_VERSION;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::raw::{self, Kind, RawMap};
use crate::{Error, Result, sys};

/// The paths under `<bpf root>/heddle/v<LAYOUT_VERSION>/`.
#[derive(Clone, Debug)]
pub struct Pins {
    bpf_root: PathBuf,
    layout: u32,
}

impl Pins {
    /// `bpf_root`: a mounted BPF file system, `/sys/fs/bpf` unless configured otherwise.
    pub fn new(bpf_root: &Path) -> Self {
        Self { bpf_root: bpf_root.to_owned(), layout: LAYOUT_VERSION }
    }

    /// The version of the layout whose pins these are.
    pub const fn layout(&self) -> u32 {
        self.layout
    }

    /// The pins of other layouts that are there, in directories that only root can write to.
    pub fn others(&self) -> Result<Vec<Self>> {
        let layouts = entries(&self.ours())?.into_iter().filter_map(|path| {
            let layout = path.file_name()?.to_str()?.strip_prefix('v')?.parse().ok()?;
            let meta = fs::symlink_metadata(&path).ok()?;
            (layout != self.layout && is_private(&meta))
                .then(|| Self { bpf_root: self.bpf_root.clone(), layout })
        });
        Ok(layouts.collect())
    }

    pub(crate) fn ours(&self) -> PathBuf {
        self.bpf_root.join("heddle")
    }

    pub fn dir(&self) -> PathBuf {
        self.ours().join(format!("v{}", self.layout))
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.dir().join("maps").join(name)
    }

    /// How many elements the map of this name holds that is pinned and is ours.
    pub fn entries(&self, map: &str) -> Option<u32> {
        let map = inspect(&self.map(map), Kind::Map).ok()??;
        Some(RawMap::new(map).ok()?.shape.entries)
    }

    /// Where new maps wait until all of them are filled and the programs over them are loaded.
    pub(crate) fn next(&self) -> PathBuf {
        self.dir().join("next")
    }

    /// What attached programs need (`kept`), of whichever layout.
    pub(crate) fn kept(&self) -> PathBuf {
        self.ours().join("kept")
    }

    /// Maps in which programs only work, and remember nothing: no daemon looks into them.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.dir().join("scratch")
    }

    /// The description of the layout (`describe`).
    pub(crate) fn description(&self) -> PathBuf {
        self.dir().join("layout")
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.dir().join("progs").join(name)
    }

    pub fn links(&self) -> PathBuf {
        self.dir().join("links")
    }

    /// `place`: an interface name, or the id of a cgroup. The file system takes no dots, interface names
    /// no colons.
    pub fn link(&self, program: &str, place: &str) -> PathBuf {
        self.links().join(format!("{program}-{}", place.replace('.', ":")))
    }

    /// Is anything pinned there by a daemon of this layout, in a directory that only root can write to? What
    /// others have planted is as good as nothing.
    pub fn exist(&self) -> Result<bool> {
        for dir in [self.ours(), self.dir()] {
            match fs::symlink_metadata(&dir) {
                Ok(meta) if is_private(&meta) => {}
                Ok(_) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(source) => return Err(Error::Pin { operation: "look at", path: dir, source }),
            }
        }
        Ok(true)
    }

    /// Makes the directories (0700). A BPF file system is often writable for everybody: what stands in the place of
    /// a directory and is none of root's is removed with all that is in it; from one of root's that others could
    /// write to that right is taken, and the maps and programs in it are removed, as they may be anybody's. Returns
    /// what was not as it must be.
    pub fn create(&self) -> Result<Vec<String>> {
        let stat = statfs(&self.bpf_root).map_err(|errno| Error::Pin {
            operation: "look at",
            path: self.bpf_root.clone(),
            source: errno.into(),
        })?;
        if stat.filesystem_type() != BPF_FS_MAGIC {
            return Err(Error::NotBpffs { path: self.bpf_root.clone() });
        }
        let mut refused = Vec::new();
        let (maps, programs) = (self.dir().join("maps"), self.dir().join("progs"));
        // One that was open to others makes doubtful what is below it.
        let mut open = false;
        for dir in [self.ours(), self.dir(), maps, programs, self.scratch(), self.links()] {
            let fail = |operation, source| Error::Pin { operation, path: dir.clone(), source };
            match fs::symlink_metadata(&dir) {
                Ok(meta) if is_ours(&meta) => {
                    if !is_private(&meta) {
                        refused.push(format!("{} could be written to by others", dir.display()));
                        open = true;
                    }
                    fs::set_permissions(&dir, Permissions::from_mode(0o700))
                        .map_err(|source| fail("take from others the right to write to", source))?;
                    if open && dir.parent() == Some(&self.dir()) && dir != self.links() {
                        for path in entries(&dir)? {
                            remove_any(&path)?;
                        }
                    }
                    continue;
                }
                Ok(meta) => {
                    let what = if meta.is_dir() { "is not root's" } else { "is no directory" };
                    refused.push(format!("{} {what}", dir.display()));
                    remove_any(&dir)?;
                }
                Err(_) => {}
            }
            fs::DirBuilder::new().mode(0o700).create(&dir).map_err(|source| fail("create", source))?;
        }
        Ok(refused)
    }

    /// Removes everything, links first: with the last pin of an object the object goes. What is not there is
    /// no error.
    pub fn remove(&self) -> Result<()> {
        for dir in [self.links(), self.dir().join("progs"), self.dir().join("maps")] {
            for path in entries(&dir)? {
                remove_any(&path)?;
            }
        }
        remove_any(&self.dir())?;
        // Of no use to another layout: what that has attached is pinned there.
        remove_any(&self.kept())?;
        // Another layout's directory may be beside ours.
        match fs::remove_dir(self.ours()) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(Error::Pin { operation: "remove", path: self.ours(), source }),
            Ok(()) => Ok(()),
        }
    }
}

/// One that nobody else can write to.
pub(crate) fn is_private(meta: &fs::Metadata) -> bool {
    is_ours(meta) && meta.mode() & 0o022 == 0
}

/// A directory of root's.
fn is_ours(meta: &fs::Metadata) -> bool {
    meta.is_dir() && meta.uid() == 0
}

/// The paths in a directory, sorted; none if it is not there.
pub(crate) fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let read = match fs::read_dir(dir) {
        Ok(read) => read,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::Pin { operation: "read", path: dir.to_owned(), source }),
    };
    let mut paths = Vec::new();
    for entry in read {
        let entry = entry.map_err(|source| Error::Pin { operation: "read", path: dir.to_owned(), source })?;
        paths.push(entry.path());
    }
    paths.sort();
    Ok(paths)
}

/// True if it was there.
pub(crate) fn remove_file(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::Pin { operation: "remove", path: path.to_owned(), source }),
    }
}

/// Removes whatever stands there.
pub(crate) fn remove_any(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::Pin { operation: "remove", path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// What is pinned at `path`, if it is ours: a file (no link to one) of root's, which nobody else may open, and the
/// `wanted` kind of object. `Ok(None)`: nothing is there.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn inspect(path: &Path, wanted: Kind) -> Result<Option<OwnedFd>, String> {
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    if !meta.is_file() {
        return Err(format!("is a {}", if meta.is_dir() { "directory" } else { "link to something else" }));
    }
    if meta.uid() != 0 {
        return Err(format!("belongs to user {}", meta.uid()));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(format!("is open to others (mode {:03o})", meta.mode() & 0o777));
    }
    let fd = match sys::get(path) {
        Ok(fd) => fd,
        // Removed in this very moment.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    match raw::kind(fd.as_fd()) {
        Ok(kind) if kind == wanted => Ok(Some(fd)),
        Ok(kind) => Err(format!("is a {kind}, no {wanted}")),
        Err(error) => Err(error.to_string()),
    }
}
