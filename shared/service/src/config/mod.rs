//! The configuration: one documented file of defaults, an operator's file over
//! it, `FIST_<SECTION>_<KEY>` variables over both.
//!
//! Invariants: this directory is the only place that reads the environment;
//! every problem is reported at once; a key exists in `config.default.toml`,
//! in its section's `read` and in `docs/configuration.md`, or a test fails.
//! To add a key, write it in those first two and run the tests with
//! `UPDATE_EXPECT=1`, which writes the third.

mod agent;
mod cli;
mod database;
mod docs;
mod errors;
mod http;
mod ingest;
mod kubernetes;
mod layers;
mod log;
mod mcp;
mod nats;
mod prices;
mod reader;
mod scheduler;
mod secret;
mod sources;
mod tools;
mod tracing;

use std::collections::BTreeMap;
use std::path::Path;

pub use agent::{Agent, BudgetExhausted, Llm};
pub use cli::{Cli, Executor};
pub use database::Database;
pub use docs::{Key, keys};
pub use errors::{ConfigErrors, Problem};
pub use http::{Health, Http, Role, Shutdown, Token};
pub use ingest::Ingest;
pub use kubernetes::Kubernetes;
pub use log::{Format, Log};
pub use mcp::{McpSecrets, McpServer, McpTransport};
pub use nats::Nats;
pub use prices::Price;
pub use scheduler::Scheduler;
pub use secret::{REDACTED, Secret, Secrets};
pub use sources::{Mapping, SignedTime, Source, SourceKind};
pub use tools::{Fix, FixMode, Tools};
pub use tracing::Tracing;

use errors::nearest;
use layers::{FileLayer, Layers};
use reader::Section;

/// Every key with its meaning and default.
pub const DEFAULTS: &str = include_str!("../../config.default.toml");

/// Bytes of the largest configuration file that is read; real ones have a few thousand.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Variables that begin with `FIST_` and belong to others: the command line's
/// own, and the tests'.
const FOREIGN_VARIABLES: &[&str] = &[
    "FIST_CONFIG",
    "FIST_DIR",
    "FIST_SERVER",
    "FIST_SIM_SEEDS",
    "FIST_TOKEN",
    "FIST_TOKEN_FILE",
];

/// The whole configuration; field names are the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each section documents itself")]
pub struct Config {
    pub nats: Nats,
    pub http: Http,
    pub health: Health,
    pub shutdown: Shutdown,
    /// By name.
    pub sources: BTreeMap<String, Source>,
    pub ingest: Ingest,
    pub scheduler: Scheduler,
    pub kubernetes: Kubernetes,
    pub cli: Cli,
    pub agent: Agent,
    pub llm: Llm,
    /// Of `llm.prices`, by model.
    pub prices: BTreeMap<String, Price>,
    pub tools: Tools,
    pub fix: Fix,
    pub database: Database,
    pub log: Log,
    pub tracing: Tracing,
    /// Files of `[http]` and `[sources]` secrets that this process cannot
    /// read; see [`Config::require_secrets`].
    pub unreadable: Vec<Problem>,
}

impl Default for Config {
    /// The defaults alone, as tests want them.
    fn default() -> Self {
        Self::parse(None, std::iter::empty()).expect("config.default.toml is valid by test")
    }
}

impl Config {
    /// Reads the configuration: the file's values over the defaults, the
    /// variables over both.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn load(
        path: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let Some(path) = path else {
            return Self::parse(None, env);
        };
        let name = path.display().to_string();
        match read_bounded(path, FILE_BYTES_MAX) {
            Ok(text) => Self::parse(Some((&name, &text)), env),
            Err(reason) => Err(ConfigErrors {
                problems: vec![Problem::new("--config", Some(&name), reason)],
            }),
        }
    }

    /// The same from a file's text, with the name that errors call it by.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn parse(
        file: Option<(&str, &str)>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigErrors> {
        let file = match file.map(|(name, text)| FileLayer::parse(name, text)) {
            None => FileLayer::default(),
            Some(Ok(layer)) => layer,
            Some(Err(problem)) => {
                return Err(ConfigErrors {
                    problems: vec![problem],
                });
            }
        };
        let (config, layers) = Self::read(file, env);
        if layers.problems.is_empty() {
            Ok(config)
        } else {
            Err(ConfigErrors {
                problems: layers.problems,
            })
        }
    }

    /// Refuses to go on without the secrets of the HTTP door, for the service
    /// that opens it. The others share the configuration, but need not have
    /// these files mounted. Where this is not called, such a door stays shut.
    ///
    /// # Errors
    /// Every file that cannot be read.
    pub fn require_secrets(&self) -> Result<(), ConfigErrors> {
        if self.unreadable.is_empty() {
            return Ok(());
        }
        Err(ConfigErrors {
            problems: self.unreadable.clone(),
        })
    }

    fn read(file: FileLayer, env: impl Iterator<Item = (String, String)>) -> (Self, Layers) {
        let mut layers = Layers {
            defaults: DEFAULTS.parse().expect("config.default.toml is TOML by test"),
            file,
            variables: env.filter(|(name, _)| name.starts_with("FIST_")).collect(),
            problems: Vec::new(),
            unreadable: Vec::new(),
            asked: Default::default(),
        };
        layers.refuse_unknown(is_foreign);
        let mut config = Self {
            unreadable: Vec::new(),
            nats: Nats::read(&mut Section::top(&mut layers, "nats")),
            http: Http::read(&mut Section::top(&mut layers, "http")),
            health: Health::read(&mut Section::top(&mut layers, "health")),
            shutdown: Shutdown::read(&mut Section::top(&mut layers, "shutdown")),
            sources: sources::read(&mut layers),
            ingest: Ingest::read(&mut Section::top(&mut layers, "ingest")),
            scheduler: Scheduler::read(&mut Section::top(&mut layers, "scheduler")),
            kubernetes: Kubernetes::read(&mut Section::top(&mut layers, "kubernetes")),
            cli: Cli::read(&mut Section::top(&mut layers, "cli")),
            agent: Agent::read(&mut Section::top(&mut layers, "agent")),
            llm: Llm::read(&mut Section::top(&mut layers, "llm")),
            prices: prices::read(&mut layers),
            tools: Tools::read(&mut Section::top(&mut layers, "tools")),
            fix: Fix::read(&mut Section::top(&mut layers, "fix")),
            database: Database::read(&mut Section::top(&mut layers, "database")),
            log: Log::read(&mut Section::top(&mut layers, "log")),
            tracing: Tracing::read(&mut Section::top(&mut layers, "tracing")),
        };
        config.tools.mcp = mcp::read(&mut layers);
        config.unreadable = std::mem::take(&mut layers.unreadable);
        (config, layers)
    }
}

/// The environment of this process, for [`Config::load`]. What is not UTF-8
/// can be none of our values and is passed on with replacement characters.
pub fn process_env() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().map(|(name, value)| {
        (
            name.to_string_lossy().into_owned(),
            value.to_string_lossy().into_owned(),
        )
    })
}

/// The variable that sets a key: `nats`, `url` → `FIST_NATS_URL`.
fn variable(section: &str, key: &str) -> String {
    format!("FIST_{section}_{key}").to_uppercase()
}

/// Kubernetes gives every pod variables for each Service of its namespace, so
/// a Service called `fist-ingest` brings `FIST_INGEST_SERVICE_HOST` and the
/// like, which are nobody's mistake.
fn is_foreign(name: &str, value: &str) -> bool {
    let of_service = name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || value.starts_with("tcp://")
        || value.starts_with("udp://")
        || name.contains("_TCP_")
        || name.contains("_UDP_");
    FOREIGN_VARIABLES.contains(&name) || of_service
}

fn read_bounded(path: &Path, bytes_max: u64) -> Result<String, String> {
    use std::io::Read;
    let file = std::fs::File::open(path).map_err(|e| format!("cannot be opened: {e}"))?;
    let mut bytes = Vec::new();
    file.take(bytes_max + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| format!("cannot be read: {e}"))?;
    if bytes.len() as u64 > bytes_max {
        return Err(format!("is larger than {bytes_max} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())
}

/// A mounted secret, without the line end that editors add.
fn read_secret_file(path: &Path) -> Result<String, String> {
    const BYTES_MAX: u64 = 64 * 1024;
    let text = read_bounded(path, BYTES_MAX)?;
    let text = text.trim();
    if text.is_empty() {
        Err("is empty".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests;
