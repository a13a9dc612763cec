//! `image`: the container image of deploy/kubernetes, without a container engine.
//!
//! It holds the static programs and nothing else; deploy/kubernetes/Containerfile makes the same of the same files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::ebpf;
use crate::plugin::{self, PLUGINS};
use crate::process;
use crate::root;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What it is called
    #[arg(long, default_value = concat!("localhost/heddle:", env!("CARGO_PKG_VERSION")))]
    name: String,
}

/// The daemons, by package and program.
const DAEMONS: [(&str, &[&str]); 2] = [("vxland", &["vxland"]), ("proxyd", &["proxyd", "proxyd-sockets"])];

/// The command `image`: target/image/bin, and target/image/heddle.tar as `docker save` would write it.
pub fn run(args: &Args) -> Result<()> {
    let dir = root::target().join("image");
    let bin = dir.join("bin");
    ebpf::build(&ebpf::Args::default())?;
    plugin::build(&bin)?;
    let packages = DAEMONS.map(|(package, _)| package);
    let programs: Vec<&str> = DAEMONS.iter().flat_map(|(_, programs)| *programs).copied().collect();
    plugin::statically(&bin, "release", &packages, &programs)?;
    let all: Vec<&str> = PLUGINS.into_iter().chain(programs).collect();
    let archive = dir.join("heddle.tar");
    pack(&bin, &all, &args.name, &dir).with_context(|| format!("cannot write {}", archive.display()))?;
    println!("{}: {}", archive.display(), args.name);
    Ok(())
}

/// One layer, a configuration, and the list of both.
fn pack(bin: &Path, programs: &[&str], name: &str, dir: &Path) -> Result<()> {
    for program in programs {
        fs::set_permissions(bin.join(program), fs::Permissions::from_mode(0o755))?;
    }
    let layer = dir.join("layer.tar");
    tar(bin, &layer, programs)?;
    let sum = process::stdout(Command::new("sha256sum").arg(&layer)).context("sha256sum failed")?;
    let digest = sum.split_whitespace().next().unwrap_or_default();
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = format!(
        r#"{{"architecture":"{architecture}","os":"linux","config":{{"User":"0:0","Env":["PATH=/"]}},"rootfs":{{"type":"layers","diff_ids":["sha256:{digest}"]}}}}"#
    );
    fs::write(dir.join("config.json"), config)?;
    let manifest = format!(r#"[{{"Config":"config.json","RepoTags":["{name}"],"Layers":["layer.tar"]}}]"#);
    fs::write(dir.join("manifest.json"), manifest)?;
    tar(dir, &dir.join("heddle.tar"), &["manifest.json", "config.json", "layer.tar"])
}

/// The same bytes for the same files.
fn tar(from: &Path, to: &Path, names: &[&str]) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "--sort=name", "-C"]);
    process::run(tar.arg(from).arg("-cf").arg(to).args(names))
}
