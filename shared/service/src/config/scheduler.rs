//! `[scheduler]`: the decision loop.

use super::reader::Section;

/// The decision loop. `config.default.toml` says what each key means.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "config.default.toml documents each key")]
pub struct Scheduler {
    pub concurrency: usize,
    pub cache_executions_max: usize,
    pub timer_grace_ms: u64,
    pub poison_deliveries_max: u64,
}

impl Scheduler {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        Self {
            concurrency: section.count("concurrency", 1..=4096),
            cache_executions_max: section.count("cache_executions_max", 1..=10_000_000),
            timer_grace_ms: section.number("timer_grace_ms", 0..=600_000),
            poison_deliveries_max: section.number("poison_deliveries_max", 1..=1000),
        }
    }
}
