//! The first file system of the VM: busybox, the modules that make the host's files visible, `init.sh`, the job.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::kernel::Kernel;

const INIT: &str = include_str!("init.sh");
/// What the host's files and the two streams come through, and what makes them writable.
const FIRST_MODULES: [&str; 4] = ["virtio_pci", "virtio_console", "virtiofs", "overlay"];

/// Builds it below `dir`, with `job` as what `init.sh` is to do. Returns the archive.
pub fn build(dir: &Path, kernel: &Kernel, job: &str) -> Result<PathBuf> {
    let tree = dir.join("initrd");
    for folder in ["bin", "dev", "proc", "sys", "host", "mem", "root", "vm/load"] {
        fs::create_dir_all(tree.join(folder))?;
    }
    fs::copy(busybox()?, tree.join("bin/busybox")).context("cannot copy busybox")?;
    for (n, module) in kernel.closure(&FIRST_MODULES)?.iter().enumerate() {
        let name = module.file_name().unwrap_or_default().to_string_lossy().into_owned();
        fs::copy(module, tree.join(format!("vm/load/{n:02}-{name}")))
            .with_context(|| format!("cannot copy {}", module.display()))?;
    }
    let release = kernel.modules.file_name().unwrap_or_default().to_string_lossy();
    let modules = kernel.modules.display().to_string();
    fs::write(
        tree.join("vm/settings"),
        format!("modules={}\nrelease={}\n", quoted(&modules), quoted(&release)),
    )?;
    fs::write(tree.join("vm/job"), job)?;
    let init = tree.join("init");
    fs::write(&init, INIT)?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
    pack(&tree, dir.join("initrd.cpio"))
}

/// A word of a shell script, whatever is in it.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn busybox() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join("busybox"))
        .find(|file| file.exists())
        .context("there is no busybox in PATH (Debian: busybox-static)")
}

fn pack(tree: &Path, archive: PathBuf) -> Result<PathBuf> {
    let names = Command::new("find").arg(".").current_dir(tree).output().context("cannot start find")?;
    let list = tree.with_extension("list");
    fs::write(&list, names.stdout)?;
    let status = Command::new("busybox")
        .args(["cpio", "-o", "-H", "newc"])
        .current_dir(tree)
        .stdin(File::open(&list)?)
        .stdout(File::create(&archive)?)
        .stderr(Stdio::null())
        .status()
        .context("cannot start busybox")?;
    if !status.success() {
        bail!("busybox cpio failed: {status}");
    }
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stays_one_word() {
        let odd = r#"it's "$(HOME)" \ 1"#;
        let mut echo = Command::new("sh");
        echo.args(["-c", &format!("printf %s {}", quoted(odd))]);
        assert_eq!(String::from_utf8(echo.output().unwrap().stdout).unwrap(), odd);
    }
}
