//! Debian's kernels, made ready to boot: `target/vm/KERNEL/{vmlinux,lib/modules/RELEASE}`.
//!
//! `./x` has downloaded the package; nothing is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;
use crate::root;

/// The kernels that the suite runs on: Debian 12's, and the long-term one after it.
pub const KERNELS: [&str; 2] = ["6.1", "6.12"];

/// A kernel that can be booted.
#[derive(Debug)]
pub struct Kernel {
    /// The ELF image.
    pub image: PathBuf,
    /// `lib/modules/RELEASE`, uncompressed and indexed.
    pub modules: PathBuf,
}

impl Kernel {
    /// Unpacks the package of `version`, unless that was done before.
    pub fn prepare(version: &str) -> Result<Self> {
        let top = root::target().join("vm");
        let ready = top.join(version);
        if !ready.exists() {
            let package = top.join(format!("{version}.deb"));
            if !package.exists() {
                bail!("there is no {}: run `./x vm`, which downloads it", package.display());
            }
            // Complete or not there: somebody else may be at it, too.
            let fresh = top.join(format!("{version}.{}", std::process::id()));
            let unpacked = unpack(&package, &fresh).and_then(|()| match fs::rename(&fresh, &ready) {
                Err(_) if ready.exists() => Ok(()),
                other => other.with_context(|| format!("cannot rename {}", fresh.display())),
            });
            drop(fs::remove_dir_all(&fresh));
            unpacked.with_context(|| format!("cannot unpack {}", package.display()))?;
        }
        let modules = only_entry(&ready.join("lib/modules"))?;
        Ok(Self { image: ready.join("vmlinux"), modules })
    }

    /// The modules `wanted` and those that they need, in the order in which they are to be loaded. What is built
    /// into the kernel is left out.
    pub fn closure(&self, wanted: &[&str]) -> Result<Vec<PathBuf>> {
        let index = self.modules.join("modules.dep");
        let index = fs::read_to_string(&index).with_context(|| format!("cannot read {}", index.display()))?;
        let mut found = Vec::new();
        for name in wanted {
            self.add(&index, name, &mut found);
        }
        Ok(found)
    }

    fn add(&self, index: &str, name: &str, found: &mut Vec<PathBuf>) {
        let Some((file, needs)) = index.lines().find_map(|line| entry(line, name)) else { return };
        for need in needs.split_whitespace().filter_map(|need| Path::new(need).file_stem()?.to_str()) {
            self.add(index, need, found);
        }
        let file = self.modules.join(file);
        if !found.contains(&file) {
            found.push(file);
        }
    }
}

/// File and needs of the module `name`, if the line `FILE: NEED...` is its.
fn entry<'a>(line: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    let (file, needs) = line.split_once(':')?;
    (Path::new(file).file_stem()?.to_str()? == name).then_some((file, needs))
}

fn unpack(package: &Path, into: &Path) -> Result<()> {
    fs::create_dir_all(into)?;
    process::run(Command::new("dpkg").arg("-x").arg(package).arg(into))?;
    if !into.join("lib/modules").exists() {
        fs::rename(into.join("usr/lib"), into.join("lib")).context("the package has no modules")?;
    }
    let modules = only_entry(&into.join("lib/modules"))?;
    // Every program that loads modules can read them then.
    let mut packed = Vec::new();
    files_ending_with(&modules, ".ko.xz", &mut packed)?;
    if !packed.is_empty() {
        process::run(Command::new("xz").arg("-d").args(&packed))?;
    }
    let release = modules.file_name().context("no release")?;
    process::run(Command::new("busybox").arg("depmod").arg("-b").arg(into).arg(release))?;
    let boot = into.join("boot");
    let image = fs::read_dir(&boot)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")))
        .context("the package has no kernel")?;
    inner_image(&image, &into.join("vmlinux"))?;
    Ok(fs::remove_dir_all(boot)?)
}

/// Takes the ELF image out of a bzImage (Documentation/arch/x86/boot.rst): decompressing it takes longest of all
/// when it is done within the VM.
fn inner_image(compressed: &Path, into: &Path) -> Result<()> {
    let bytes = fs::read(compressed)?;
    let payload = payload(&bytes).context("the kernel is no bzImage")?;
    let (tool, tail) = match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", 4),
        [0xfd, b'7', b'z', b'X', ..] => ("xz", 4),
        [0x02, 0x21, 0x4c, 0x18, ..] => ("lz4", 4),
        // Its own trailer says how long it is.
        [0x1f, 0x8b, ..] => ("gzip", 0),
        other => bail!("the kernel is compressed in an unknown way: {:02x?}", &other[..other.len().min(4)]),
    };
    let packed = into.with_extension("packed");
    fs::write(&packed, &payload[..payload.len() - tail])?;
    let mut unpack = Command::new(tool);
    unpack.arg("-dc").stdin(fs::File::open(&packed)?).stdout(fs::File::create(into)?);
    process::run(&mut unpack)?;
    Ok(fs::remove_file(packed)?)
}

/// What is compressed in a bzImage, with the length after it.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    let setup_sectors = usize::from(*image.get(0x1f1)?);
    let start = (1 + setup_sectors) * 512 + word(0x248)?;
    let payload = image.get(start..start.checked_add(word(0x24c)?)?)?;
    (payload.len() > 4).then_some(payload)
}

/// The one thing in a directory.
fn only_entry(dir: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    match (entries.next(), entries.next()) {
        (Some(entry), None) => Ok(entry?.path()),
        _ => bail!("{} holds not exactly one thing", dir.display()),
    }
}

fn files_ending_with(dir: &Path, end: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files_ending_with(&entry.path(), end, found)?;
        } else if entry.file_name().to_string_lossy().ends_with(end) {
            found.push(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_index_is_its_modules() {
        let line = "kernel/fs/fuse/virtiofs.ko: kernel/fs/fuse/fuse.ko kernel/drivers/virtio/virtio.ko";
        assert_eq!(
            entry(line, "virtiofs"),
            Some(("kernel/fs/fuse/virtiofs.ko", " kernel/fs/fuse/fuse.ko kernel/drivers/virtio/virtio.ko"))
        );
        assert_eq!(entry(line, "fuse"), None);
    }

    #[test]
    fn the_payload_is_where_the_header_says() {
        let mut image = vec![0; 4096];
        image[0x1f1] = 1;
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&8u32.to_le_bytes());
        image[1040..1048].copy_from_slice(b"payload!");
        assert_eq!(payload(&image), Some(&b"payload!"[..]));
        image[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(payload(&image), None);
        assert_eq!(payload(b"short"), None);
    }
}
