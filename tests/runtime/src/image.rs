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
    write_named(place, &dir.join("image"), &[IMAGE])
}

/// The same under other names.
///
/// # Errors
/// As [`write`].
pub fn write_named(place: &Place, dir: &Path, names: &[&str]) -> Result<PathBuf> {
    let program = dir.join("inmate");
    fs::create_dir_all(dir).map_err(|e| Error::new(format!("create {}", dir.display()), e))?;
    fs::write(&program, INMATE)
        .and_then(|()| fs::set_permissions(&program, fs::Permissions::from_mode(0o755)))
        .map_err(|e| Error::new(format!("write {}", program.display()), e))?;
    write_of(place, dir, names, &[(&program, "inmate")], &["/inmate"])
}

/// An image called `names` of these programs: where each is, and its path in the image. Without an argument it runs
/// `entrypoint`.
///
/// # Errors
/// As [`write`].
pub fn write_of(
    place: &Place,
    dir: &Path,
    names: &[&str],
    programs: &[(&Path, &str)],
    entrypoint: &[&str],
) -> Result<PathBuf> {
    let layer = dir.join("layer");
    for (from, to) in programs {
        let to = layer.join(to);
        let copied = fs::create_dir_all(to.parent().unwrap_or(&layer))
            .and_then(|()| fs::copy(from, &to))
            .and_then(|_| fs::set_permissions(&to, fs::Permissions::from_mode(0o755)));
        copied.map_err(|e| Error::new(format!("copy {} into an image", from.display()), e))?;
    }
    tar(place, &layer, &dir.join("layer.tar"), &["."])?;

    let sum = place.run(Cmd::new("sha256sum").arg(dir.join("layer.tar")))?;
    let digest = sum.split_whitespace().next().unwrap_or_default();
    let config = json!({
        "architecture": architecture(), "os": "linux",
        "config": { "Entrypoint": entrypoint },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": names, "Layers": ["layer.tar"] }]);
    for (name, content) in [("config.json", config), ("manifest.json", manifest)] {
        let path = dir.join(name);
        fs::write(&path, content.to_string())
            .map_err(|e| Error::new(format!("write {}", path.display()), e))?;
    }
    let archive = dir.join("image.tar");
    tar(place, dir, &archive, &["manifest.json", "config.json", "layer.tar"])?;
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
