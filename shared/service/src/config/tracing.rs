//! `[tracing]`: traces of executions, sent by OTLP.

use std::collections::BTreeMap;

use super::Secret;
use super::reader::Section;
use super::tools::is_http_url;

/// Traces of executions. `config.default.toml` says what each key means.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "config.default.toml documents each key")]
pub struct Tracing {
    /// Absent: off.
    pub otlp_endpoint: Option<String>,
    pub otlp_headers: BTreeMap<String, Secret>,
    /// In millionths, 0 to 1,000,000.
    pub sample_millionths: u32,
    pub timeout_ms: u64,
    pub queue_spans_max: usize,
}

impl Tracing {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let tracing = Self {
            otlp_endpoint: section.optional("otlp_endpoint"),
            otlp_headers: section.table_hidden("otlp_headers"),
            sample_millionths: section.share("sample_ratio"),
            timeout_ms: section.number("timeout_ms", 100..=60_000),
            queue_spans_max: section.count("queue_spans_max", 16..=1_000_000),
        };
        if tracing
            .otlp_endpoint
            .as_deref()
            .is_some_and(|url| !is_http_url(url))
        {
            section.problem(
                "otlp_endpoint",
                "must be http://HOST:PORT or https://HOST:PORT, or empty",
            );
        }
        let is_name = |name: &String| {
            !name.is_empty()
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        let is_value = |value: &Secret| value.expose().bytes().all(|b| matches!(b, b' '..=b'~'));
        let headers = &tracing.otlp_headers;
        if !headers.keys().all(is_name) || !headers.values().all(is_value) {
            section.problem_hidden(
                "otlp_headers",
                "must be names of letters, digits, `-`, `_` and `.`, with values of printable ASCII characters",
            );
        }
        tracing
    }
}
