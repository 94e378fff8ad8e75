//! `[database]`: the record of executions.

use super::Secret;
use super::reader::Section;
use crate::http::is_this_machine;

/// The database. `config.default.toml` says what each key means.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "config.default.toml documents each key")]
pub struct Database {
    /// Secret, because it may hold a password; logs want [`Database::url_shown`].
    pub url: Secret,
    pub consumer: String,
    pub connections_max: u32,
    pub connect_timeout_ms: u64,
    pub acquire_timeout_ms: u64,
    pub batch_max: usize,
    pub retention_days: u64,
    pub retention_executions_max: u64,
    pub retention_alerts_max: u64,
}

/// More rows than any database of ours has.
const ROWS_MAX: u64 = 1_000_000_000_000;

impl Database {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let url = section.secret("url").unwrap_or_else(|| Secret::new(""));
        let known = ["sqlite:", "postgres://", "postgresql://"];
        if !known.iter().any(|scheme| url.expose().starts_with(scheme)) {
            section.problem_hidden("url", "must begin with sqlite:// or postgres://");
        }
        let consumer = section.text("consumer");
        if !is_label(&consumer) {
            section.problem(
                "consumer",
                "must be 1 to 63 lower-case letters, digits and `-`, with a letter or digit at both ends",
            );
        }
        Self {
            url,
            consumer,
            connections_max: section.number("connections_max", 1..=1000) as u32,
            connect_timeout_ms: section.number("connect_timeout_ms", 100..=600_000),
            acquire_timeout_ms: section.number("acquire_timeout_ms", 100..=600_000),
            batch_max: section.count("batch_max", 1..=10_000),
            retention_days: section.number("retention_days", 0..=36_500),
            retention_executions_max: section.number("retention_executions_max", 0..=ROWS_MAX),
            retention_alerts_max: section.number("retention_alerts_max", 0..=ROWS_MAX),
        }
    }

    /// What strangers on the way could do, with the remedy; nothing is said of a database on this machine.
    pub fn exposure(&self) -> Option<&'static str> {
        let url = self.url.expose();
        let (_, rest) = url
            .split_once("://")
            .filter(|(scheme, _)| scheme.starts_with("postgres"))?;
        let (place, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        let place = place.rsplit_once('@').map_or(place, |(_, place)| place);
        let host = place.split('/').next().unwrap_or_default();
        let mode = parameters
            .split('&')
            .find_map(|part| part.strip_prefix("sslmode="));
        let is_checked = matches!(mode, Some("verify-full" | "verify-ca"));
        // Without a host it is a socket.
        (!host.is_empty() && !is_this_machine(host) && !is_checked).then_some(
            "the connection to PostgreSQL need not be encrypted, and nobody asks who answers there: add `?sslmode=verify-full` to database.url (and `&sslrootcert=FILE` where the authority is your own)",
        )
    }

    /// The address without name, password and parameters, for logs and errors.
    pub fn url_shown(&self) -> String {
        let url = self.url.expose();
        let Some((scheme, rest)) = url.split_once("://") else {
            return url.split('?').next().unwrap_or_default().to_owned();
        };
        let rest = rest.split('?').next().unwrap_or_default();
        let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
        format!("{scheme}://{place}")
    }
}

/// A name that can stand in subjects.
fn is_label(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(is_inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}
