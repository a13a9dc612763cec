//! The directory of what is pinned.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use heddle_ebpf_common::LAYOUT_VERSION;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::{Error, Result};

/// The paths under `<bpf root>/heddle/v<LAYOUT_VERSION>/`.
#[derive(Clone, Debug)]
pub struct Pins {
    bpf_root: PathBuf,
}

impl Pins {
    /// `bpf_root`: a mounted BPF file system, `/sys/fs/bpf` unless configured otherwise.
    pub fn new(bpf_root: &Path) -> Self {
        Self { bpf_root: bpf_root.to_owned() }
    }

    fn ours(&self) -> PathBuf {
        self.bpf_root.join("heddle")
    }

    pub fn dir(&self) -> PathBuf {
        self.ours().join(format!("v{LAYOUT_VERSION}"))
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.dir().join("maps").join(name)
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
                Ok(meta) if is_ours(&meta) && meta.mode() & 0o022 == 0 => {}
                Ok(_) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(source) => return Err(Error::Pin { operation: "look at", path: dir, source }),
            }
        }
        Ok(true)
    }

    /// Makes the directories (0700). One that is there and not root's is removed with all that is in it: a BPF
    /// file system is often writable for everybody.
    pub fn create(&self) -> Result<()> {
        let stat = statfs(&self.bpf_root).map_err(|errno| Error::Pin {
            operation: "look at",
            path: self.bpf_root.clone(),
            source: errno.into(),
        })?;
        if stat.filesystem_type() != BPF_FS_MAGIC {
            return Err(Error::NotBpffs { path: self.bpf_root.clone() });
        }
        for dir in [self.ours(), self.dir(), self.dir().join("maps"), self.dir().join("progs"), self.links()]
        {
            let fail = |operation, source| Error::Pin { operation, path: dir.clone(), source };
            if let Ok(meta) = fs::symlink_metadata(&dir) {
                if is_ours(&meta) {
                    fs::set_permissions(&dir, Permissions::from_mode(0o700))
                        .map_err(|source| fail("take from others the right to write to", source))?;
                    continue;
                }
                let removed = if meta.is_dir() { fs::remove_dir_all(&dir) } else { fs::remove_file(&dir) };
                removed.map_err(|source| fail("remove what is not root's:", source))?;
            }
            fs::DirBuilder::new().mode(0o700).create(&dir).map_err(|source| fail("create", source))?;
        }
        Ok(())
    }

    /// Removes everything, links first: with the last pin of an object the object goes. What is not there is
    /// no error.
    pub fn remove(&self) -> Result<()> {
        for dir in [self.links(), self.dir().join("progs"), self.dir().join("maps")] {
            for path in entries(&dir)? {
                remove_file(&path)?;
            }
            remove_dir(&dir)?;
        }
        remove_dir(&self.dir())?;
        // Another layout's directory may be beside ours.
        match fs::remove_dir(self.ours()) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(Error::Pin { operation: "remove", path: self.ours(), source }),
            Ok(()) => Ok(()),
        }
    }
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

fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Pin { operation: "remove", path: path.to_owned(), source }),
    }
}
