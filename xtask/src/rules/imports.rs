//! Which crate of ours may know which.

use crate::cargo::{Metadata, Package};

/// Each crate and those of ours that it may import. What is not listed here may not be there: a new crate
/// gets its line together with its place in docs/architecture.md.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("heddle-model", &[]),
    ("heddle-netlink", &[]),
    ("heddle-ebpf-common", &[]),
    ("heddle-daemon", &[]),
    ("heddle-reconcile", &["heddle-model"]),
    ("heddle-control", &["heddle-model"]),
    ("heddle-bpf", &["heddle-ebpf-common"]),
    ("heddle-spec", &["heddle-netlink"]),
    ("heddle-ipam", &["heddle-netlink", "heddle-spec"]),
    ("heddle", &["heddle-bpf", "heddle-ipam", "heddle-model", "heddle-netlink", "heddle-spec"]),
    ("vxland", &["heddle-control", "heddle-daemon", "heddle-model", "heddle-netlink", "heddle-reconcile"]),
    (
        "proxyd",
        &[
            "heddle-bpf",
            "heddle-control",
            "heddle-daemon",
            "heddle-ebpf-common",
            "heddle-ipam",
            "heddle-model",
            "heddle-netlink",
            "heddle-reconcile",
        ],
    ),
    ("heddle-lab", &["heddle-netlink"]),
    ("heddle-e2e", &["heddle-bpf", "heddle-ebpf-common", "heddle-lab", "heddle-model", "heddle-netlink"]),
    ("heddle-fuzz", &["heddle-bpf", "heddle-ebpf-common", "heddle-netlink"]),
    (
        "heddle-kubernetes",
        &[
            "heddle-bpf",
            "heddle-control",
            "heddle-ebpf-common",
            "heddle-lab",
            "heddle-model",
            "heddle-runtime",
        ],
    ),
    ("heddle-runtime", &["heddle-lab"]),
    ("xtask", &[]),
];

/// What tests alone may import besides: everywhere but in the pure crates.
const FOR_TESTS: &[&str] = &["heddle-lab", "heddle-netlink"];

/// Pure data and pure functions: their tests need no kernel.
const PURE: &[&str] = &["heddle-model", "heddle-ebpf-common"];

/// Each import that is not allowed, in a sentence.
pub fn check(metadata: &Metadata) -> Vec<String> {
    let names: Vec<&str> = metadata.members().map(|package| package.name.as_str()).collect();
    metadata.members().flat_map(|package| violations(package, &names)).collect()
}

fn violations(package: &Package, ours: &[&str]) -> Vec<String> {
    let name = package.name.as_str();
    let Some((_, allowed)) = MAY_IMPORT.iter().find(|(listed, _)| *listed == name) else {
        return vec![format!("{name} has no line in xtask/src/rules/imports.rs: whom may it know?")];
    };
    let mut found = Vec::new();
    for dependency in &package.dependencies {
        let other = dependency.name.as_str();
        let for_tests = dependency.kind.as_deref() == Some("dev");
        let excused = for_tests && FOR_TESTS.contains(&other) && !PURE.contains(&name);
        // A crate may name itself among its dev-dependencies, to have a feature in its own tests.
        if ours.contains(&other) && other != name && !allowed.contains(&other) && !excused {
            found.push(format!("{name} imports {other}"));
        }
    }
    if PURE.contains(&name) {
        let impure = ["tokio", "nix", "netlink-sys", "rtnetlink"];
        let other = package.dependencies.iter().map(|dependency| dependency.name.as_str());
        found.extend(
            other
                .filter(|other| impure.contains(other))
                .map(|other| format!("{name} is pure, but imports {other}")),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::cargo::Dependency;

    fn package(name: &str, imports: &[(&str, Option<&str>)]) -> Package {
        Package {
            name: name.into(),
            version: "0.1.0".into(),
            id: name.into(),
            license: None,
            manifest_path: PathBuf::new(),
            dependencies: imports
                .iter()
                .map(|(name, kind)| Dependency { name: (*name).into(), kind: kind.map(Into::into) })
                .collect(),
            targets: Vec::new(),
        }
    }

    const OURS: &[&str] =
        &["heddle-model", "heddle-netlink", "heddle-control", "proxyd", "heddle-lab", "new"];

    #[test]
    fn control_may_know_the_model_but_not_netlink() {
        let control =
            package("heddle-control", &[("heddle-model", None), ("serde", None), ("heddle-netlink", None)]);
        assert_eq!(violations(&control, OURS), ["heddle-control imports heddle-netlink"]);
    }

    #[test]
    fn nobody_imports_a_program() {
        assert!(MAY_IMPORT.iter().all(|(_, allowed)| {
            ["heddle", "proxyd", "vxland", "xtask"].iter().all(|program| !allowed.contains(program))
        }));
    }

    #[test]
    fn tests_may_use_the_lab_unless_the_crate_is_pure() {
        let lab = [("heddle-lab", Some("dev"))];
        assert!(violations(&package("heddle-control", &lab), OURS).is_empty());
        assert_eq!(violations(&package("heddle-model", &lab), OURS), ["heddle-model imports heddle-lab"]);
        assert_eq!(violations(&package("heddle-control", &[("heddle-lab", None)]), OURS).len(), 1);
    }

    #[test]
    fn a_new_crate_needs_a_line() {
        assert_eq!(violations(&package("new", &[]), OURS).len(), 1);
    }

    #[test]
    fn the_model_does_no_io() {
        assert_eq!(violations(&package("heddle-model", &[("tokio", None)]), OURS).len(), 1);
    }
}
