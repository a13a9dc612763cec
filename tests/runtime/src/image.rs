//! An image made from scratch: one static program.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use heddle_lab::{Cmd, Place};
use serde_json::json;

use crate::error::{Error, Result};

/// Its name. No registry has it: nobody tries to fetch it, because it is there.
pub const IMAGE: &str = "heddle.test/inmate:1";

/// What runs in it: src/inmate.rs.
const INMATE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inmate"));

/// Writes [`IMAGE`] as an archive that `docker save` could have written, which every runtime reads. `dir` is a
/// directory that `place` sees under the same path.
///
/// # Errors
/// The kernel's.
pub fn write(place: &Place, dir: &Path) -> Result<PathBuf> {
    let dir = dir.join("image");
    let layer = dir.join("layer");
    let write = |path: PathBuf, content: &[u8]| {
        fs::write(&path, content).map_err(|e| Error::new(format!("write {}", path.display()), e))
    };
    fs::create_dir_all(&layer).map_err(|e| Error::new(format!("create {}", layer.display()), e))?;
    write(layer.join("inmate"), INMATE)?;
    fs::set_permissions(layer.join("inmate"), fs::Permissions::from_mode(0o755))
        .map_err(|e| Error::new("set permissions of the image's program", e))?;
    tar(place, &layer, &dir.join("layer.tar"), &["inmate"])?;

    let sum = place.run(Cmd::new("sha256sum").arg(dir.join("layer.tar")))?;
    let digest = sum.split_whitespace().next().unwrap_or_default();
    let config = json!({
        "architecture": architecture(), "os": "linux",
        "config": { "Entrypoint": ["/inmate"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    write(dir.join("config.json"), config.to_string().as_bytes())?;
    let manifest = json!([{ "Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"] }]);
    write(dir.join("manifest.json"), manifest.to_string().as_bytes())?;
    let archive = dir.join("inmate.tar");
    tar(place, &dir, &archive, &["manifest.json", "config.json", "layer.tar"])?;
    Ok(archive)
}

fn tar(place: &Place, from: &Path, to: &Path, names: &[&str]) -> Result<()> {
    let tar = Cmd::new("tar").args(["--owner=0", "--group=0", "-C"]).arg(from).arg("-cf").arg(to);
    place.run(tar.args(names.iter().copied()))?;
    Ok(())
}

/// As Go calls it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
