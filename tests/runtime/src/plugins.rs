//! The directory of CNI plugins that a runtime is given: ours and no others.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use heddle_lab::bin;

use crate::error::{Error, Result};

/// Makes `dir/cni` with our programs under the names by which they are called. `loopback` is `heddle`, too.
///
/// # Errors
/// The kernel's.
pub fn link(dir: &Path) -> Result<PathBuf> {
    let plugins = dir.join("cni");
    fs::create_dir_all(&plugins).map_err(|e| Error::new("create the directory of plugins", e))?;
    for (name, program) in [("heddle", "heddle"), ("heddle-ipam", "heddle-ipam"), ("loopback", "heddle")] {
        symlink(bin(program), plugins.join(name))
            .map_err(|e| Error::new(format!("link the plugin {name}"), e))?;
    }
    Ok(plugins)
}
