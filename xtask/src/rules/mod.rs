//! The rules of the house that a compiler does not check. docs/architecture.md says why each one is there.

mod imports;
mod licences;
mod source;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cargo::Metadata;
use crate::ebpf;
use crate::root;
use crate::suite::Suite;

/// The suite `rules`: one check a rule.
pub fn check(suite: &mut Suite) -> Result<()> {
    let ours = Metadata::read(&root::dir().join("Cargo.toml"))?;
    let programs = Metadata::read(&ebpf::programs().join("Cargo.toml"))?;
    suite.check("who may import whom", verdict(imports::check(&ours)));
    let allowed = licences::allowed(&read(&root::dir().join("deny.toml"))?)?;
    suite.check("licences", verdict(licences::check(&ours, &allowed)));
    suite.check("licences of ebpf/programs", verdict(licences::check(&programs, &allowed)));
    suite.check("unsafe code is forbidden where it has no place", verdict(source::forbids_unsafe(&ours)?));
    let files = sources()?;
    suite.check("size of files", verdict(source::sizes(&files)));
    suite.check("names of files", verdict(source::names(&files)));
    suite.check("unsafe code in its rooms only", verdict(source::unsafe_code(&files)));
    suite.check("no program is started", verdict(source::programs_started(&files)));
    suite.check("no test is ignored", verdict(source::ignored_tests(&files)));
    suite.check("every clippy exception has its reason", verdict(source::silent_exceptions(&files)));
    Ok(())
}

/// A source file, by its path from the top of the tree.
#[derive(Debug)]
struct File {
    path: PathBuf,
    text: String,
}

/// Every Rust file of the tree.
fn sources() -> Result<Vec<File>> {
    let mut files = Vec::new();
    collect(&root::dir(), &mut files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn collect(dir: &Path, files: &mut Vec<File>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if name != "target" && !name.to_string_lossy().starts_with('.') {
                collect(&path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = read(&path)?;
            let path = path.strip_prefix(root::dir()).unwrap_or(&path).to_path_buf();
            files.push(File { path, text });
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn verdict(violations: Vec<String>) -> Result<()> {
    if violations.is_empty() {
        return Ok(());
    }
    bail!("\n  {}", violations.join("\n  "))
}
