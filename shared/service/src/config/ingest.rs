//! `[ingest]`: intake of alerts and executions.

use super::reader::Section;

/// Intake. `config.default.toml` says what each key means.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "config.default.toml documents each key")]
pub struct Ingest {
    pub concurrency: usize,
    pub seen_hours: u64,
    pub started_days: u64,
    pub watch_workflows: bool,
    pub watch_namespaces: Vec<String>,
}

impl Ingest {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        Self {
            concurrency: section.count("concurrency", 1..=1024),
            seen_hours: section.number("seen_hours", 1..=8760),
            started_days: section.number("started_days", 8..=3650),
            watch_workflows: section.flag("watch_workflows"),
            watch_namespaces: section.list("watch_namespaces"),
        }
    }
}
