//! `docs/configuration.md` lists exactly the keys there are, in their own words.
//!
//! `UPDATE_EXPECT=1` writes the page's tables anew; what stands above the
//! marker is written by hand.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Mutex;

use expect_test::expect_file;
use service::config::{Config, keys};

const MARKER: &str = "<!-- Below: generated from shared/service/config.default.toml; UPDATE_EXPECT=1 cargo test -p service -->";

/// While one test writes the page, no other may read it.
static WRITING: Mutex<()> = Mutex::new(());

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn the_page_lists_every_key_and_no_other() {
    let _writing = WRITING.lock().unwrap();
    let page = page();
    let (by_hand, _) = page
        .split_once(MARKER)
        .expect("the marker line is in docs/configuration.md");
    expect_file!["../../../docs/configuration.md"].assert_eq(&format!("{by_hand}{MARKER}\n{}", tables()));
}

#[test]
fn the_page_s_own_example_is_valid() {
    let _reading = WRITING.lock();
    let page = page();
    let example = page
        .split("```toml\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .unwrap();
    let config = Config::parse(Some(("example", example)), std::iter::empty()).unwrap();
    assert!(config.sources.contains_key("grafana"));
}

#[test]
fn every_variable_that_the_page_names_exists() {
    let known: Vec<String> = keys().1.into_iter().filter_map(|key| key.variable).collect();
    let others = [
        "FIST_CONFIG",
        "FIST_SERVER",
        "FIST_INGEST_SERVICE_HOST",
        "FIST_AGENT_CONCURENCY",
    ];
    let _reading = WRITING.lock();
    let page = page();
    let named = page
        .split(|c: char| !(c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))
        .filter(|word| word.starts_with("FIST_") && !word.ends_with('_'));
    for name in named {
        assert!(
            known.iter().any(|key| key == name) || others.contains(&name),
            "{name} is nothing"
        );
    }
}

fn tables() -> String {
    let (sections, keys) = keys();
    let mut out = String::new();
    for (section, comment) in sections {
        write!(out, "\n## `[{section}]`\n\n{comment}\n\n").unwrap();
        let with_variables = !section.contains('.');
        out.push_str(if with_variables {
            "| key | variable | default | |\n|---|---|---|---|\n"
        } else {
            "| key | default | |\n|---|---|---|\n"
        });
        for key in keys.iter().filter(|key| key.section == section) {
            write!(out, "| `{}` |", key.name).unwrap();
            if let Some(variable) = &key.variable {
                write!(out, " `{variable}` |").unwrap();
            }
            writeln!(
                out,
                " {} | {} |",
                shown(&key.default),
                key.comment.replace('|', "\\|")
            )
            .unwrap();
        }
    }
    out
}

fn shown(default: &str) -> String {
    match default {
        "\"\"" | "[]" => String::new(),
        other => format!("`{}`", other.replace('|', "\\|")),
    }
}
