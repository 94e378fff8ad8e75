//! `[http]`, `[health]` and `[shutdown]`: the doors of a process, and its end.

use super::Secret;
use super::reader::Section;

/// The HTTP door of ingest. `config.default.toml` says what each key means.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "config.default.toml documents each key")]
pub struct Http {
    pub listen: String,
    /// Of both keys, `tokens` and `tokens_file`; empty: the API is open.
    pub tokens: Vec<Secret>,
    pub body_bytes_max: usize,
    pub request_timeout_ms: u64,
    pub header_timeout_ms: u64,
    pub idle_timeout_ms: u64,
    pub in_flight_max: usize,
    pub connections_max: usize,
}

impl Http {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let mut tokens = section.secrets("tokens");
        let lines = |text: &str| -> Vec<Secret> {
            text.lines()
                .map(str::trim)
                .filter(|line| !line.is_empty())
                .map(Secret::new)
                .collect()
        };
        if let Some(read) = section.secret_file("tokens_file", lines) {
            tokens.extend(read.unwrap_or_else(|| vec![Secret::unreadable()]));
        }
        Self {
            listen: section.listen("listen"),
            tokens,
            body_bytes_max: section.count("body_bytes_max", 1024..=64 * 1024 * 1024),
            request_timeout_ms: section.number("request_timeout_ms", 100..=600_000),
            header_timeout_ms: section.number("header_timeout_ms", 100..=600_000),
            idle_timeout_ms: section.number("idle_timeout_ms", 100..=3_600_000),
            in_flight_max: section.count("in_flight_max", 1..=100_000),
            connections_max: section.count("connections_max", 1..=100_000),
        }
    }
}

/// The health door of a stand-alone service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// `HOST:PORT`; absent: off.
    pub listen: Option<String>,
}

impl Health {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        Self {
            listen: section.optional_listen("listen"),
        }
    }
}

/// How a process ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shutdown {
    /// Milliseconds from the first signal to the end.
    pub drain_ms: u64,
}

impl Shutdown {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        Self {
            drain_ms: section.number("drain_ms", 0..=600_000),
        }
    }
}
