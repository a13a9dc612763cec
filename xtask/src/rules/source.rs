//! What may stand in a source file, and what the file may be called.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::File;
use crate::cargo::Metadata;

/// No file is longer, in lines. Most are below a third of it.
const LONGEST: usize = 600;

/// Names that say nothing about what is inside. `ebpf/common` is the one exception.
const EMPTY_NAMES: &[&str] =
    &["util", "utils", "common", "helper", "helpers", "manager", "managers", "misc", "types"];

/// Rooms that touch the kernel.
const MAY_BE_UNSAFE: &[&str] = &["crates/netlink", "crates/bpf", "proxyd/src/ebpf", "ebpf", "tests/lab"];

/// Crates that cannot forbid unsafe code as a whole, because a room of [`MAY_BE_UNSAFE`] is inside.
const PARTLY_UNSAFE: &[&str] = &["proxyd"];

/// Where programs may be started: tests and tools, and the CNI delegate that a configuration names.
const MAY_START_PROGRAMS: &[&str] = &["xtask", "tests", "cni-plugin/src/delegate.rs"];

/// Files that are too long.
pub fn sizes(files: &[File]) -> Vec<String> {
    let lines = files.iter().map(|file| (file, file.text.lines().count()));
    lines
        .filter(|(_, lines)| *lines > LONGEST)
        .map(|(file, lines)| format!("{}: {lines} lines, more than {LONGEST}", file.path.display()))
        .collect()
}

/// Files and folders whose name says nothing.
pub fn names(files: &[File]) -> Vec<String> {
    let mut found = Vec::new();
    for File { path, .. } in files {
        let rest = path.strip_prefix("ebpf/common").unwrap_or(path);
        let named = |part: &Path| {
            part.file_stem().is_some_and(|stem| EMPTY_NAMES.contains(&&*stem.to_string_lossy()))
        };
        if rest.iter().any(|part| named(Path::new(part))) {
            found.push(format!("{}: name it after what it holds", path.display()));
        }
    }
    found
}

/// Crates whose root does not forbid unsafe code although nothing inside may be unsafe.
pub fn forbids_unsafe(metadata: &Metadata) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for package in metadata.members() {
        let dir = package.manifest_path.parent().context("a manifest lies in a folder")?;
        let dir = dir.strip_prefix(crate::root::dir()).unwrap_or(dir);
        if below(dir, MAY_BE_UNSAFE) || PARTLY_UNSAFE.contains(&package.name.as_str()) {
            continue;
        }
        for target in package
            .targets
            .iter()
            .filter(|target| target.kind.iter().any(|kind| kind == "lib" || kind == "bin"))
        {
            let text = fs::read_to_string(&target.src_path)
                .with_context(|| format!("cannot read {}", target.src_path.display()))?;
            if !text.contains("#![forbid(unsafe_code)]") {
                found.push(format!("{} ({}): no #![forbid(unsafe_code)]", package.name, target.name));
            }
        }
    }
    Ok(found)
}

/// Unsafe code outside its rooms.
pub fn unsafe_code(files: &[File]) -> Vec<String> {
    lines(files, |file, line| {
        !below(&file.path, MAY_BE_UNSAFE)
            && ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
                .iter()
                .any(|word| line.contains(word))
    })
}

/// Programs started by the product.
pub fn programs_started(files: &[File]) -> Vec<String> {
    lines(files, |file, line| {
        // clap has a `Command::new` too.
        let command = line.contains("Command::new(")
            && ["process::Command", "process::{"].iter().any(|import| file.text.contains(import));
        let call = ["execve(", "execv(", "execvp(", "posix_spawn"].iter().any(|call| line.contains(call));
        !below(&file.path, MAY_START_PROGRAMS) && !of_tests(&file.path) && (command || call)
    })
}

/// Tests that would not run.
pub fn ignored_tests(files: &[File]) -> Vec<String> {
    lines(files, |_, line| line.trim_start().starts_with("#[ignore"))
}

/// `#[allow]` without a reason is denied by clippy; `#[expect]` is not.
pub fn silent_exceptions(files: &[File]) -> Vec<String> {
    lines(files, |_, line| {
        let line = line.trim_start();
        (line.starts_with("#[expect(") || line.starts_with("#![expect("))
            && line.ends_with(")]")
            && !line.contains("reason")
    })
}

/// `path:line: text` of each line that `is_wrong`, comments, the rules' own file and tests inside a file left out.
fn lines(files: &[File], is_wrong: impl Fn(&File, &str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for file in files.iter().filter(|file| file.path != Path::new("xtask/src/rules/source.rs")) {
        for (number, line) in file.text.lines().enumerate() {
            // By convention the tests are the last item of a file.
            if line == "#[cfg(test)]"
                && file.text.lines().nth(number + 1).is_some_and(|next| next.ends_with("tests {"))
            {
                break;
            }
            let code = line.split("//").next().unwrap_or_default();
            if is_wrong(file, code) {
                found.push(format!("{}:{}: {}", file.path.display(), number + 1, line.trim()));
            }
        }
    }
    found
}

fn below(path: &Path, rooms: &[&str]) -> bool {
    rooms.iter().any(|room| path.starts_with(room))
}

/// A test file of a crate: `tests.rs`, or below a folder `tests`.
fn of_tests(path: &Path) -> bool {
    path.iter().any(|part| part == "tests" || part == "tests.rs")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> Vec<File> {
        vec![File { path: path.into(), text: text.into() }]
    }

    #[test]
    fn a_long_file_is_found() {
        assert!(sizes(&file("a.rs", &"\n".repeat(LONGEST))).is_empty());
        assert_eq!(sizes(&file("a.rs", &"\n".repeat(LONGEST + 1))).len(), 1);
    }

    #[test]
    fn an_empty_name_is_found_in_files_and_folders() {
        for bad in ["proxyd/src/utils.rs", "crates/model/src/types/mod.rs", "vxlan/src/manager.rs"] {
            assert_eq!(names(&file(bad, "")).len(), 1, "{bad}");
        }
        assert!(names(&file("ebpf/common/src/layout.rs", "")).is_empty());
        assert_eq!(names(&file("ebpf/common/src/helpers.rs", "")).len(), 1);
    }

    #[test]
    fn unsafe_code_has_its_rooms() {
        let text = "fn f() { unsafe { g() } }";
        assert_eq!(unsafe_code(&file("proxyd/src/main.rs", text)).len(), 1);
        assert!(unsafe_code(&file("proxyd/src/ebpf/maps.rs", text)).is_empty());
        assert!(unsafe_code(&file("proxyd/src/main.rs", "// unsafe { }")).is_empty());
    }

    #[test]
    fn the_product_starts_no_program() {
        let text = "let _ = std::process::Command::new(\"ip\");";
        assert_eq!(programs_started(&file("vxlan/src/main.rs", text)).len(), 1);
        for tool in ["xtask/src/main.rs", "tests/lab/src/shell.rs", "vxlan/tests/run.rs"] {
            assert!(programs_started(&file(tool, text)).is_empty(), "{tool}");
        }
        let in_tests = format!("#[cfg(test)]\nmod tests {{\n{text}\n}}");
        assert!(programs_started(&file("vxlan/src/main.rs", &in_tests)).is_empty());
    }

    #[test]
    fn an_ignored_test_is_found() {
        assert_eq!(ignored_tests(&file("a.rs", "    #[ignore = \"slow\"]")).len(), 1);
    }

    #[test]
    fn an_exception_without_a_reason_is_found() {
        assert_eq!(silent_exceptions(&file("a.rs", "#[expect(dead_code)]")).len(), 1);
        assert!(
            silent_exceptions(&file("a.rs", "#[expect(dead_code, reason = \"read by the kernel\")]"))
                .is_empty()
        );
    }
}
