//! Heddle as it is shipped: the objects of deploy/kubernetes, and an image made of the programs under test.
//!
//! The image holds what is in target/debug, with the libraries that these programs ask for; with `HEDDLE_IMAGE_BIN` the
//! static programs of that directory and nothing else (`./x image` makes target/image/bin).

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use heddle_lab::{Cmd, Lab, bin_dir};
use heddle_runtime::image;

use crate::api::Api;
use crate::cluster::Cluster;
use crate::error::{Error, Result};

/// The image's name in deploy/kubernetes.
pub const IMAGE: &str = "localhost/heddle:0.1.0";
/// What is in it.
pub const PROGRAMS: [&str; 5] = ["heddle", "heddle-ipam", "vxland", "proxyd", "proxyd-sockets"];
/// The namespace of all objects, and what their pods are called.
pub const NAMESPACE: &str = "kube-system";
pub const SELECTOR: &str = "app.kubernetes.io/name=heddle";

/// A file of deploy/kubernetes.
///
/// # Panics
/// Never: this crate lies in the source tree.
pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/kubernetes").join(name)
}

/// [`IMAGE`], as an archive in the directory of `lab`.
///
/// # Errors
/// When a program is not built.
pub fn image(lab: &Lab) -> Result<PathBuf> {
    let dir = lab.dir().join("heddle-image");
    let programs = dir.join("programs");
    fs::create_dir_all(&programs).map_err(|e| Error::new(format!("create {}", programs.display()), e))?;
    let mut files = Vec::new();
    let mut libraries = BTreeSet::new();
    let made = env::var_os("HEDDLE_IMAGE_BIN").map(PathBuf::from);
    for name in PROGRAMS {
        let stripped = programs.join(name);
        if let Some(dir) = &made {
            files.push((dir.join(name), name.to_owned()));
            continue;
        }
        let program = bin_dir().join(name);
        // What a debugger wants is nine tenths of it.
        lab.client().run(Cmd::new("strip").arg("-o").arg(&stripped).arg(&program))?;
        libraries.extend(needed(&lab.client().run(Cmd::new("ldd").arg(&program))?));
        files.push((stripped, name.to_owned()));
    }
    for library in libraries {
        let inside = library.trim_start_matches('/').to_owned();
        files.push((library.into(), inside));
    }
    let list: Vec<(&Path, &str)> = files.iter().map(|(from, to)| (from.as_path(), to.as_str())).collect();
    Ok(image::write_of(lab.client(), &dir, &[IMAGE], &list, &["/vxland"])?)
}

/// The paths that ldd(1) names.
fn needed(ldd: &str) -> Vec<String> {
    let words = ldd.split_whitespace();
    words.filter(|word| word.starts_with('/')).map(str::to_owned).collect()
}

/// Applies the plain file, after the address of the API server, as docs/install-kubeadm.md says.
///
/// # Errors
/// kubectl's.
pub fn apply(cluster: &Cluster) -> Result<()> {
    let address = format!("--from-literal=address={}", cluster.plane().url(true));
    let create = ["-n", NAMESPACE, "create", "configmap", "heddle-api", &address];
    cluster.plane().kubectl(&create, "")?;
    let plain = file("heddle.yaml").display().to_string();
    cluster.plane().kubectl(&["apply", "-f", &plain], "").map(drop)
}

/// Waits until the daemons of so many nodes are ready.
///
/// # Errors
/// After `limit`, with the pods as they are.
pub fn await_ready(api: &Api, nodes: usize, limit: Duration) -> Result<()> {
    let ready = api.wait_all("v1/Pod", Some(NAMESPACE), SELECTOR, limit, move |pods| {
        pods.iter().filter(|pod| crate::cluster::condition(pod, "Ready")).count() == nodes
    });
    ready.map(drop)
}
