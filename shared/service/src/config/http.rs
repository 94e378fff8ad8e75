//! `[http]`, `[health]` and `[shutdown]`: the doors of a process, and its end.

use super::Secret;
use super::reader::Section;

/// The HTTP door of ingest. `config.default.toml` says what each key means.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "config.default.toml documents each key")]
pub struct Http {
    pub listen: String,
    /// Of all keys that name tokens; empty: the API is open.
    pub tokens: Vec<Token>,
    pub body_bytes_max: usize,
    pub request_timeout_ms: u64,
    pub header_timeout_ms: u64,
    pub idle_timeout_ms: u64,
    pub in_flight_max: usize,
    pub connections_max: usize,
    /// 0: no limit.
    pub requests_per_second_max: u64,
    pub requests_burst_max: u64,
}

/// What a token lets do; each role may also do what the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Look at everything.
    Read,
    /// Execute, cancel, replay, send alerts.
    Run,
    /// Also change definitions.
    Admin,
}

impl Role {
    /// Its name, as the configuration and errors have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Run => "run",
            Self::Admin => "admin",
        }
    }

    /// The keys of its tokens: the list, and the file.
    fn keys(self) -> (&'static str, &'static str) {
        match self {
            Self::Read => ("read_tokens", "read_tokens_file"),
            Self::Run => ("run_tokens", "run_tokens_file"),
            Self::Admin => ("tokens", "tokens_file"),
        }
    }
}

/// A bearer token of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// What is sent.
    pub secret: Secret,
    /// What it lets do.
    pub role: Role,
}

impl Http {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let tokens = read_tokens(section);
        Self {
            listen: section.listen("listen"),
            tokens,
            body_bytes_max: section.count("body_bytes_max", 1024..=64 * 1024 * 1024),
            request_timeout_ms: section.number("request_timeout_ms", 100..=600_000),
            header_timeout_ms: section.number("header_timeout_ms", 100..=600_000),
            idle_timeout_ms: section.number("idle_timeout_ms", 100..=3_600_000),
            in_flight_max: section.count("in_flight_max", 1..=100_000),
            connections_max: section.count("connections_max", 1..=100_000),
            requests_per_second_max: section.number("requests_per_second_max", 0..=1_000_000),
            requests_burst_max: section.number("requests_burst_max", 1..=1_000_000),
        }
    }
}

/// The tokens of all roles. One that has two roles is a mistake, and which one holds would be a guess.
fn read_tokens(section: &mut Section<'_>) -> Vec<Token> {
    let mut tokens: Vec<Token> = Vec::new();
    for role in [Role::Admin, Role::Run, Role::Read] {
        let (key, file_key) = role.keys();
        let mut add = |section: &mut Section<'_>, key: &str, secrets: Vec<Secret>| {
            let others = |token: &&Token| token.role != role && token.secret != Secret::unreadable();
            let taken = |secret: &Secret| tokens.iter().filter(others).find(|token| token.secret == *secret);
            if let Some(token) = secrets.iter().find_map(taken) {
                let other = token.role.keys().0;
                let text = format!(
                    "has a token that http.{other} has too: give each role tokens of its own (`openssl rand -hex 24` makes one)"
                );
                section.problem_hidden(key, &text);
            }
            tokens.extend(secrets.into_iter().map(|secret| Token { secret, role }));
        };
        let listed = section.secrets(key);
        add(section, key, listed);
        let lines = |text: &str| -> Vec<Secret> {
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
            lines.map(Secret::new).collect()
        };
        if let Some(read) = section.secret_file(file_key, lines) {
            let secrets = read.unwrap_or_else(|| vec![Secret::unreadable()]);
            add(section, file_key, secrets);
        }
    }
    tokens
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
