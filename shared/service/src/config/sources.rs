//! `[sources.<name>]`: who may post alerts, and how their JSON is read.
//!
//! Names are the operator's own, so these are configured in the file only.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::layers::Layers;
use super::reader::Section;
use super::{Problem, Secret};

/// One configured source of alerts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// How its payload is read.
    pub kind: SourceKind,
    /// Of `bearer_token` or `bearer_token_file`.
    pub bearer_token: Option<Secret>,
    /// Of `hmac_secret` or `hmac_secret_file`.
    pub hmac_secret: Option<Secret>,
    /// The header that carries the signature.
    pub hmac_header: String,
    /// Where a generic alert's parts stand.
    pub mapping: Mapping,
}

/// How a payload is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// Alertmanager's webhook, version 4.
    Alertmanager,
    /// Any JSON, by [`Mapping`].
    Generic,
}

/// Dotted paths into the JSON; all but `alerts` within one alert.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "config.default.toml documents each key")]
pub struct Mapping {
    /// Absent: the body is one alert, or a list of them.
    pub alerts: Option<String>,
    pub name: Option<String>,
    pub severity: Option<String>,
    pub status: Option<String>,
    pub fingerprint: Option<String>,
    pub starts_at: Option<String>,
    pub labels: Option<String>,
    pub annotations: Option<String>,
}

/// Names of the sections that stand for any name in `config.default.toml`.
const SHAPE: &str = "sources.<name>";
const MAPPING_SHAPE: &str = "sources.<name>.mapping";

pub(super) fn read(layers: &mut Layers) -> BTreeMap<String, Source> {
    let configured = layers.by_name(
        "sources",
        is_source_name,
        "a source's name is letters, digits, - and _, since it stands in addresses and subjects",
    );
    let mut sources = BTreeMap::new();
    for (name, path, mut table) in configured {
        let mapping = table.remove("mapping");
        let (mut defaults, mapping_defaults) = defaults_of(layers);
        defaults.remove("mapping");
        let mapping = read_mapping(layers, &path, mapping, mapping_defaults);
        let mut section = Section::nested(layers, &path, SHAPE, defaults, table);
        sources.insert(name, read_source(&mut section, mapping));
    }
    sources
}

fn is_source_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

fn defaults_of(layers: &Layers) -> (Table, Table) {
    let inner = |table: &Table, key: &str| {
        table
            .get(key)
            .and_then(Value::as_table)
            .cloned()
            .expect("the shape of a source is in config.default.toml")
    };
    let shape = inner(&inner(&layers.defaults, "sources"), "<name>");
    let mapping = inner(&shape, "mapping");
    (shape, mapping)
}

fn read_mapping(layers: &mut Layers, source: &str, value: Option<Value>, defaults: Table) -> Mapping {
    let path = format!("{source}.mapping");
    let table = match value {
        None => Table::new(),
        Some(Value::Table(table)) => table,
        Some(_) => {
            let place = layers.file.place(&path);
            layers
                .problems
                .push(Problem::new(&path, None, format!("must be a section, written [{path}]")).at(&place));
            Table::new()
        }
    };
    let mut section = Section::nested(layers, &path, MAPPING_SHAPE, defaults, table);
    let mut dotted = |key: &str| {
        let text = section.optional(key)?;
        if text.split('.').any(|part| part.trim().is_empty()) {
            section.problem(key, "must be names separated by single dots, such as data.alerts");
        }
        Some(text)
    };
    Mapping {
        alerts: dotted("alerts"),
        name: dotted("name"),
        severity: dotted("severity"),
        status: dotted("status"),
        fingerprint: dotted("fingerprint"),
        starts_at: dotted("starts_at"),
        labels: dotted("labels"),
        annotations: dotted("annotations"),
    }
}

fn read_source(section: &mut Section<'_>, mapping: Mapping) -> Source {
    let kinds = [
        ("generic", SourceKind::Generic),
        ("alertmanager", SourceKind::Alertmanager),
    ];
    let source = Source {
        kind: section.one_of("kind", &kinds),
        bearer_token: section.secret_or_file("bearer_token", "bearer_token_file"),
        hmac_secret: section.secret_or_file("hmac_secret", "hmac_secret_file"),
        hmac_header: section.text("hmac_header"),
        mapping,
    };
    let is_header = source
        .hmac_header
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    if !is_header {
        section.problem("hmac_header", "must be a header's name: letters, digits, - and _");
    }
    source
}
