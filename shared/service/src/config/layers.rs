//! The three layers that a value can come from (defaults, file, environment),
//! and what in them is no key at all.
//!
//! Invariant: errors name lines of the file, but never quote them.

use std::collections::{BTreeMap, BTreeSet};

use toml::{Table, Value};

use super::{Problem, nearest, variable};

/// Sections that hold sections by names of the operator's own: they have no variables, and each is checked by its
/// reader.
const BY_NAME: [&str; 2] = ["sources", "tools.mcp"];

/// The file that the operator named: its values, and their lines for errors.
#[derive(Default)]
pub(super) struct FileLayer {
    pub(super) name: String,
    pub(super) values: Table,
    lines: BTreeMap<String, usize>,
}

impl FileLayer {
    /// Parses a file. The error says the place and the mistake, but does not
    /// quote the line as TOML's own would: a password may stand there.
    pub(super) fn parse(name: &str, text: &str) -> Result<Self, Problem> {
        let values = text.parse::<Table>().map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let place = format!("{name}:{}", line_at(text, start));
            let message = error.message().lines().collect::<Vec<_>>().join("; ");
            Problem::new("not valid TOML", None, message).at(&place)
        })?;
        let mut lines = BTreeMap::new();
        if let Ok(table) = toml::de::DeTable::parse(text) {
            collect_lines(text, table.get_ref(), "", &mut lines);
        }
        Ok(Self {
            name: name.to_owned(),
            values,
            lines,
        })
    }

    pub(super) fn place(&self, path: &str) -> String {
        match self.lines.get(path) {
            Some(line) => format!("{}:{line}", self.name),
            None => self.name.clone(),
        }
    }
}

fn collect_lines(
    text: &str,
    table: &toml::de::DeTable<'_>,
    prefix: &str,
    lines: &mut BTreeMap<String, usize>,
) {
    for (key, value) in table {
        let path = join(prefix, key.get_ref());
        lines.insert(path.clone(), line_at(text, key.span().start));
        if let Some(inner) = value.get_ref().as_table() {
            collect_lines(text, inner, &path, lines);
        }
    }
}

fn line_at(text: &str, byte: usize) -> usize {
    text.bytes().take(byte).filter(|byte| *byte == b'\n').count() + 1
}

pub(super) fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() {
        key.to_owned()
    } else {
        format!("{prefix}.{key}")
    }
}

/// The three layers, and what was wrong with them so far.
pub(super) struct Layers {
    pub(super) defaults: Table,
    pub(super) file: FileLayer,
    /// `FIST_*` variables, not yet matched to keys.
    pub(super) variables: BTreeMap<String, String>,
    pub(super) problems: Vec<Problem>,
    /// Files of secrets that cannot be read, which only matters to their users.
    pub(super) unreadable: Vec<Problem>,
    /// Full names of the keys that were read; a test compares them with the defaults.
    pub(super) asked: BTreeSet<String>,
}

impl Layers {
    /// Problems for what is in the file or the environment and is no key.
    pub(super) fn refuse_unknown(&mut self, ignored: impl Fn(&str, &str) -> bool) {
        let mut known_keys = Vec::new();
        let mut known_variables = Vec::new();
        for (section, keys) in &self.defaults {
            if BY_NAME.contains(&section.as_str()) {
                continue;
            }
            for key in keys.as_table().into_iter().flat_map(Table::keys) {
                let full = format!("{section}.{key}");
                if BY_NAME.contains(&full.as_str()) {
                    continue;
                }
                known_keys.push(full);
                // A table of sections has no variable.
                if !(section == "llm" && key == "prices") {
                    known_variables.push(variable(section, key));
                }
            }
        }
        for (section, keys) in self.file.values.clone() {
            if BY_NAME.contains(&section.as_str()) {
                continue;
            }
            let Value::Table(keys) = keys else {
                if !self.defaults.contains_key(&section) {
                    self.unknown_in_file(&section, "key outside any section", &known_keys);
                }
                continue;
            };
            if !self.defaults.contains_key(&section) {
                let sections: Vec<String> = self.defaults.keys().cloned().collect();
                self.unknown_in_file(&section, "section", &sections);
                continue;
            }
            for key in keys.keys() {
                let full = format!("{section}.{key}");
                if !known_keys.contains(&full) && !BY_NAME.contains(&full.as_str()) {
                    self.unknown_in_file(&full, "key", &known_keys);
                }
            }
        }
        for (name, value) in &self.variables {
            if known_variables.contains(name) || ignored(name, value) {
                continue;
            }
            let text = if name.starts_with("FIST_LLM_PRICES") {
                "prices are configured in the file".to_owned()
            } else if name.starts_with("FIST_SOURCES_") {
                "sources are configured in the file; put their secrets in files that bearer_token_file and hmac_secret_file name".to_owned()
            } else if name.starts_with("FIST_TOOLS_MCP_") {
                "MCP servers are configured in the file; put their secrets in files that bearer_token_file and env_files name".to_owned()
            } else {
                unknown("variable", nearest(name, &known_variables))
            };
            self.problems.push(Problem::new(name, None, text));
        }
    }

    /// The file's sections below `parent`, each with its full name, by the operator's own. `name_rule` says what a
    /// name is, to whom `is_name` refuses.
    pub(super) fn by_name(
        &mut self,
        parent: &str,
        is_name: fn(&str) -> bool,
        name_rule: &str,
    ) -> Vec<(String, String, Table)> {
        let mut value = Some(Value::Table(self.file.values.clone()));
        for part in parent.split('.') {
            value = value.and_then(|outer| outer.get(part).cloned());
        }
        let configured = match value {
            None => Table::new(),
            Some(Value::Table(table)) => table,
            Some(_) => {
                let problem =
                    Problem::new(parent, None, format!("must be sections, written [{parent}.NAME]"));
                let place = self.file.place(parent);
                self.problems.push(problem.at(&place));
                Table::new()
            }
        };
        let mut sections = Vec::new();
        for (name, value) in configured {
            let path = format!("{parent}.{name}");
            let message = match value {
                _ if !is_name(&name) => name_rule.to_owned(),
                Value::Table(table) => {
                    sections.push((name, path, table));
                    continue;
                }
                _ => format!("must be a section, written [{path}]"),
            };
            let place = self.file.place(&path);
            self.problems.push(Problem::new(&path, None, message).at(&place));
        }
        sections
    }

    pub(super) fn unknown_in_file(&mut self, name: &str, what: &str, known: &[String]) {
        let text = unknown(what, nearest(name, known));
        let place = self.file.place(name);
        self.problems.push(Problem::new(name, None, text).at(&place));
    }
}

fn unknown(what: &str, near: Option<&str>) -> String {
    match near {
        Some(near) => format!("unknown {what}; did you mean {near}?"),
        None => format!("unknown {what}; docs/configuration.md lists all"),
    }
}

pub(super) fn table_of(table: &Table, name: &str) -> Table {
    table
        .get(name)
        .and_then(Value::as_table)
        .cloned()
        .unwrap_or_default()
}
