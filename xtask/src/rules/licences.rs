//! Every crate we link has a licence that lets the result be given on under ours. The list is deny.toml's, so
//! that cargo-deny, where it is installed, and this check say the same.

use anyhow::{Context, Result};

use crate::cargo::Metadata;

/// The licences that deny.toml allows.
pub fn allowed(deny: &str) -> Result<Vec<String>> {
    let deny: toml::Table = deny.parse().context("deny.toml is not TOML")?;
    let list =
        deny.get("licenses").and_then(|licenses| licenses.get("allow")).and_then(toml::Value::as_array);
    let list = list.context("deny.toml has no licenses.allow")?;
    Ok(list.iter().filter_map(toml::Value::as_str).map(str::to_owned).collect())
}

/// Each package whose licence is not allowed, in a sentence.
pub fn check(metadata: &Metadata, allowed: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for package in &metadata.packages {
        match &package.license {
            Some(licence) if satisfied(licence, allowed) => {}
            Some(licence) => found.push(format!("{} {} is under {licence}", package.name, package.version)),
            None => found.push(format!("{} {} names no licence", package.name, package.version)),
        }
    }
    found
}

/// Whether an SPDX expression can be met with `allowed` alone. `/` is an old way to write OR.
fn satisfied(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let result = either(&mut words, allowed);
    result && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn either(words: &mut Words<'_>, allowed: &[String]) -> bool {
    let mut result = both(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        // Not `||`: the words must be read in any case.
        result |= both(words, allowed);
    }
    result
}

fn both(words: &mut Words<'_>, allowed: &[String]) -> bool {
    let mut result = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        result &= one(words, allowed);
    }
    result
}

fn one(words: &mut Words<'_>, allowed: &[String]) -> bool {
    if words.next_if_eq(&"(").is_some() {
        let result = either(words, allowed);
        return words.next_if_eq(&")").is_some() && result;
    }
    let Some(licence) = words.next() else { return false };
    match words.next_if_eq(&"WITH") {
        Some(_) => {
            let exception = words.next().unwrap_or_default();
            allowed.iter().any(|allowed| *allowed == format!("{licence} WITH {exception}"))
        }
        None => allowed.iter().any(|allowed| allowed == licence),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        let allowed = ["MIT".to_owned(), "Apache-2.0".to_owned(), "Unicode-3.0".to_owned()];
        for good in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT",
        ] {
            assert!(satisfied(good, &allowed), "{good}");
        }
        for bad in
            ["", "GPL-3.0", "MIT AND GPL-2.0-only", "(MIT", "MIT MIT", "Apache-2.0 WITH LLVM-exception"]
        {
            assert!(!satisfied(bad, &allowed), "{bad}");
        }
    }
}
