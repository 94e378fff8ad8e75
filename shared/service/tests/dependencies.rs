//! `deny.toml` holds, also where `cargo deny` is not installed: what is banned
//! is not built, every licence is allowed, and no exception outlives its crate.
//!
//! Advisories themselves need the advisory database and are left to `cargo deny`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use toml::{Table, Value};

struct Package {
    name: String,
    license: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn rules() -> Table {
    std::fs::read_to_string(root().join("deny.toml"))
        .unwrap()
        .parse()
        .unwrap()
}

/// Everything that is built for Linux, as cargo itself resolves it.
fn built() -> Vec<Package> {
    let output = Command::new(env!("CARGO"))
        .current_dir(root())
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        .args([
            "--filter-platform",
            &format!("{}-unknown-linux-gnu", std::env::consts::ARCH),
        ])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |package: &serde_json::Value, key: &str| package[key].as_str().unwrap_or_default().to_owned();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100, "cargo metadata lists the whole tree");
    packages
        .iter()
        .map(|package| Package {
            name: text(package, "name"),
            license: text(package, "license"),
        })
        .collect()
}

fn texts(value: &Value) -> BTreeSet<String> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|text| text.as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn nothing_banned_is_built() {
    let rules = rules();
    let banned: BTreeSet<&str> = rules["bans"]["deny"]
        .as_array()
        .unwrap()
        .iter()
        .map(|ban| ban["crate"].as_str().unwrap())
        .collect();
    assert!(banned.contains("openssl") && banned.contains("aws-lc-rs"));
    let found: Vec<String> = built()
        .into_iter()
        .map(|package| package.name)
        .filter(|name| banned.contains(name.as_str()))
        .collect();
    assert_eq!(found, [""; 0], "cargo tree -i NAME says who brings it");
}

#[test]
fn every_licence_is_allowed_and_every_allowed_one_is_needed() {
    let allowed = texts(&rules()["licenses"]["allow"]);
    let packages = built();
    let refused: Vec<String> = packages
        .iter()
        .filter(|package| !permits(&package.license, &allowed))
        .map(|package| format!("{}: {}", package.name, package.license))
        .collect();
    assert_eq!(refused, [""; 0]);
    for licence in &allowed {
        let named = packages
            .iter()
            .any(|package| package.license.contains(licence.as_str()));
        assert!(named, "no dependency has {licence}: take it off the list");
    }
}

#[test]
fn each_exception_names_why_and_its_crate_is_still_there() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    for ignored in rules()["advisories"]["ignore"].as_array().unwrap() {
        let reason = ignored["reason"].as_str().unwrap();
        let name = reason
            .split('`')
            .nth(1)
            .expect("the reason begins with the crate's name in backticks");
        assert!(
            lock.contains(&format!("name = \"{name}\"\n")),
            "{name} is gone, and so can its exception be"
        );
    }
}

#[test]
fn the_unmaintained_crate_is_named_in_one_file_only() {
    let sources = root().join("shared/service/src");
    let mut naming = Vec::new();
    let mut pending = vec![root().join("shared"), root().join("services")];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(
                std::fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            if text
                .lines()
                .any(|line| line.trim_start().starts_with("use ::backoff::"))
            {
                naming.push(path);
            }
        } else if path.ends_with("Cargo.toml") && path != root().join("shared/service/Cargo.toml") {
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(
                !text.contains("\nbackoff"),
                "{} must not depend on backoff",
                path.display()
            );
        }
    }
    assert_eq!(naming, [sources.join("backoff.rs")]);
}

/// Whether an SPDX expression can be met from the allowed licences. `AND` binds
/// closer than `OR`, parentheses closer still; `/` is the old way to write `OR`.
fn permits(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let met = either(&words, &mut at, allowed);
    met && at == words.len()
}

fn either(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut met = both(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        met |= both(words, at, allowed);
    }
    met
}

fn both(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut met = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        met &= one(words, at, allowed);
    }
    met
}

fn one(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let Some(first) = words.get(*at) else { return false };
    *at += 1;
    if *first == "(" {
        let met = either(words, at, allowed);
        *at += 1;
        return met;
    }
    let mut licence = (*first).to_owned();
    if words.get(*at) == Some(&"WITH") {
        licence = format!("{licence} WITH {}", words.get(*at + 1).unwrap_or(&""));
        *at += 2;
    }
    allowed.contains(&licence)
}

#[test]
fn licence_expressions_are_read_as_spdx_has_them() {
    let allowed = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"]
        .map(str::to_owned)
        .into();
    let cases = [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0/MIT", true),
        ("MIT AND GPL-3.0", false),
        ("MIT AND GPL-3.0 OR ISC", true),
        ("(MIT OR GPL-3.0) AND ISC", true),
        ("(MIT OR GPL-3.0) AND GPL-3.0", false),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("Apache-2.0", false),
        ("", false),
    ];
    for (expression, expected) in cases {
        assert_eq!(permits(expression, &allowed), expected, "{expression:?}");
    }
}
