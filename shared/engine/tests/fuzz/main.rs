//! The engine's parsers under fuzz: manifests, conditions, commands with values in them.
#![allow(clippy::unwrap_used)]

mod condition;
mod lexer;
mod manifest;
mod shell;

use std::{fs, path::Path};

/// The texts of a directory of the repository.
fn texts(directory: &str, extension: &str) -> Vec<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(directory);
    let mut paths: Vec<_> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} holds no .{extension}", directory.display());
    paths
        .iter()
        .map(|path| fs::read_to_string(path).unwrap())
        .collect()
}
