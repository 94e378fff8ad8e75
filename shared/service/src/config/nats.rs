//! `[nats]`: the server, and the bounds of its streams.

use std::path::PathBuf;

use super::Secret;
use super::reader::Section;

/// The NATS server. `config.default.toml` says what each key means.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "config.default.toml documents each key")]
pub struct Nats {
    pub url: String,
    pub credentials_file: Option<PathBuf>,
    pub user: Option<String>,
    pub password: Option<Secret>,
    pub inbox_prefix: Option<String>,
    pub tls_ca_file: Option<PathBuf>,
    pub connect_timeout_ms: u64,
    pub replicas: usize,
    pub log_max_age_hours: u64,
    pub log_bytes_max: u64,
    pub alerts_bytes_max: u64,
    pub blobs_bytes_max: u64,
    /// 0: see [`Nats::blobs_max_age_hours()`].
    pub blobs_max_age_hours: u64,
    pub admission_stop_percent: u64,
}

/// An execution may last 72 h; its facts must outlive it by a day, or rule 1
/// (a fact is written once) would no longer hold for its last ones.
const LOG_AGE_HOURS_MIN: u64 = 96;
/// How long after a large body was put its execution may still write messages that name it: the same 72 h and a day.
const NAMED_FOR_HOURS: u64 = 96;
const MIB: u64 = 1024 * 1024;
const PIB: u64 = 1024 * 1024 * 1024 * MIB;

impl Nats {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let nats = Self {
            url: section.text("url"),
            credentials_file: section.path("credentials_file"),
            user: section.optional("user"),
            password: section.secret("password"),
            inbox_prefix: section.optional("inbox_prefix"),
            tls_ca_file: section.path("tls_ca_file"),
            connect_timeout_ms: section.number("connect_timeout_ms", 100..=120_000),
            replicas: section.count("replicas", 1..=5),
            log_max_age_hours: section.number("log_max_age_hours", LOG_AGE_HOURS_MIN..=87_600),
            log_bytes_max: section.number("log_bytes_max", MIB..=PIB),
            alerts_bytes_max: section.number("alerts_bytes_max", MIB..=PIB),
            blobs_bytes_max: section.number("blobs_bytes_max", MIB..=PIB),
            blobs_max_age_hours: section.number("blobs_max_age_hours", 0..=876_000),
            admission_stop_percent: section.number("admission_stop_percent", 10..=95),
        };
        if nats.url.contains('@') {
            section.problem_hidden(
                "url",
                "must not hold a password, since addresses are logged; use nats.user and nats.password",
            );
        } else if !nats.url.split(',').all(is_server) {
            section.problem("url", "must be an address such as nats://host:4222 (nats, tls, ws or wss), or several separated by commas");
        }
        if nats.user.is_some() != nats.password.is_some() {
            section.problem(
                "user",
                "needs nats.password, and the password a user: set both or neither",
            );
        }
        if nats.user.is_some() && nats.credentials_file.is_some() {
            section.problem(
                "credentials_file",
                "takes the place of nats.user and nats.password: set one of the two",
            );
        }
        let is_subject = |prefix: &String| {
            let is_token = |part: &str| {
                !part.is_empty()
                    && part
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
            };
            prefix.split('.').all(is_token)
        };
        if !nats.inbox_prefix.as_ref().is_none_or(is_subject) {
            section.problem(
                "inbox_prefix",
                "must be the beginning of a subject such as _INBOX.ingest: letters, digits, - and _ between single dots",
            );
        }
        if nats.blobs_max_age_hours != 0 && nats.blobs_max_age_hours < nats.blobs_age_hours_min() {
            section.problem(
                "blobs_max_age_hours",
                &format!(
                    "must be 0 or at least {}, twice what nats.log_max_age_hours and an execution's longest time come to: the log may name a large body for that long, and one that is put again is only written anew past half of its age",
                    nats.blobs_age_hours_min()
                ),
            );
        }
        nats
    }

    /// Hours for which large bodies are kept: as configured, or the shortest that is safe.
    pub fn blobs_max_age_hours(&self) -> u64 {
        match self.blobs_max_age_hours {
            0 => self.blobs_age_hours_min(),
            hours => hours,
        }
    }

    fn blobs_age_hours_min(&self) -> u64 {
        2 * (self.log_max_age_hours + NAMED_FOR_HOURS)
    }
}

fn is_server(address: &str) -> bool {
    let address = address.trim();
    let host = match address.split_once("://") {
        Some(("nats" | "tls" | "ws" | "wss", host)) => host,
        Some(_) => return false,
        None => address,
    };
    !host.is_empty() && !host.contains(char::is_whitespace)
}
