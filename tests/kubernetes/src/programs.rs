//! The programs of Kubernetes, as `./x test --kubernetes` has built them.

use std::env;
use std::path::PathBuf;

use crate::error::{Error, Result};

/// Where they are: `HEDDLE_KUBERNETES_BIN`, else target/kubernetes/bin, beside target/debug.
pub fn dir() -> PathBuf {
    match env::var_os("HEDDLE_KUBERNETES_BIN") {
        Some(dir) => dir.into(),
        None => heddle_lab::bin_dir().join("../kubernetes/bin"),
    }
}

/// The program `name`: `etcd`, `kube-apiserver`, `kubelet`, ...
///
/// # Errors
/// When it has not been built.
pub fn program(name: &str) -> Result<PathBuf> {
    let file = dir().join(name);
    file.canonicalize().map_err(|_| Error::new(format!("find {name}"), "`./x test --kubernetes` builds it"))
}

/// Why a test that needs all of `names` cannot run here.
pub fn missing(names: &[&str]) -> Option<String> {
    let missing: Vec<_> = names.iter().copied().filter(|name| program(name).is_err()).collect();
    let list = missing.join(", ");
    (!missing.is_empty()).then(|| format!("not built: {list} (`./x test --kubernetes` does it; it wants Go)"))
}
