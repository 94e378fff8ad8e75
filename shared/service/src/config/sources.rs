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
    /// What else is signed, where a signature does not hold for ever.
    pub hmac_timestamp: Option<SignedTime>,
    /// Whether everybody may post, although the API has tokens.
    pub is_open: bool,
    /// Where a generic alert's parts stand.
    pub mapping: Mapping,
}

/// The time of signing, which is signed together with the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedTime {
    /// The header that carries it, in Unix seconds.
    pub header: String,
    /// What stands between it and the body in what is signed.
    pub separator: String,
    /// Seconds that it may be away from now, on either side.
    pub tolerance_seconds: u64,
}

impl Source {
    /// Whether a sender must prove something of this source's own.
    pub fn has_secret(&self) -> bool {
        self.bearer_token.is_some() || self.hmac_secret.is_some()
    }
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
    let header = section.optional("hmac_timestamp_header");
    let (separator, tolerance_seconds) = (
        section.text("hmac_timestamp_separator"),
        section.number("hmac_tolerance_seconds", 1..=86_400),
    );
    let source = Source {
        kind: section.one_of("kind", &kinds),
        bearer_token: section.secret_or_file("bearer_token", "bearer_token_file"),
        hmac_secret: section.secret_or_file("hmac_secret", "hmac_secret_file"),
        hmac_header: section.text("hmac_header"),
        hmac_timestamp: header.map(|header| SignedTime {
            header,
            separator,
            tolerance_seconds,
        }),
        is_open: section.flag("open"),
        mapping,
    };
    let is_header = |name: &str| {
        name.chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
    };
    if !is_header(&source.hmac_header) {
        section.problem("hmac_header", "must be a header's name: letters, digits, - and _");
    }
    if let Some(time) = &source.hmac_timestamp {
        if !is_header(&time.header) {
            section.problem(
                "hmac_timestamp_header",
                "must be a header's name: letters, digits, - and _",
            );
        }
        if source.hmac_secret.is_none() {
            section.problem(
                "hmac_timestamp_header",
                "needs hmac_secret or hmac_secret_file, with which the time is signed",
            );
        }
    }
    if source.is_open && source.has_secret() {
        section.problem(
            "open",
            "contradicts the token or secret that this source has: keep one of the two",
        );
    }
    source
}
