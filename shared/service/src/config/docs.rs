//! The keys with their comments, read out of `config.default.toml`, for
//! `docs/configuration.md` and whoever else lists them.
//!
//! The file keeps to a form that needs no full parser: comments and keys begin
//! their line, a comment belongs to the key or section below it, and further
//! lines of a value are indented or a closing bracket.

use super::{DEFAULTS, variable};

/// One key as documented.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// `nats`, or `sources.<name>`.
    pub section: String,
    /// `url`
    pub name: String,
    /// The variable that sets it; absent for keys of the file only.
    pub variable: Option<String>,
    /// The default as written in TOML.
    pub default: String,
    /// The comment: meaning, unit, why that default.
    pub comment: String,
}

/// Every key in the file's order, and every section's own comment.
pub fn keys() -> (Vec<(String, String)>, Vec<Key>) {
    let (mut sections, mut keys) = (Vec::new(), Vec::<Key>::new());
    let (mut section, mut comment) = (String::new(), String::new());
    for line in DEFAULTS.lines() {
        if let Some(text) = line.strip_prefix('#') {
            if !comment.is_empty() {
                comment.push(' ');
            }
            comment.push_str(text.trim());
        } else if let Some(header) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = header.replace('"', "");
            sections.push((section.clone(), std::mem::take(&mut comment)));
        } else if line.starts_with([' ', '}', ']']) {
            let last = keys.last_mut().expect("a value's further lines follow its key");
            last.default.push(' ');
            last.default.push_str(line.trim());
        } else if let Some((name, default)) = line.split_once(" = ") {
            keys.push(Key {
                section: section.clone(),
                name: name.to_owned(),
                variable: (!section.contains('.')).then(|| variable(&section, name)),
                default: default.to_owned(),
                comment: std::mem::take(&mut comment),
            });
        } else {
            comment.clear();
        }
    }
    (sections, keys)
}
