//! `[tools.mcp.<name>]`: the MCP servers whose tools agents may use.
//!
//! Invariants: a server is reached in exactly one way; each of its tools has a name that models' vendors accept and
//! that no other has. Names are the operator's own, so these are configured in the file only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::layers::{Layers, table_of};
use super::reader::Section;
use super::tools::is_http_url;
use super::{Problem, Secret, read_secret_file};

/// Characters of the longest name of a tool that both Anthropic and OpenAI accept; letters, digits, `_` and `-`.
const OFFERED_CHARS_MAX: usize = 64;
/// Characters of a server's name, as manifests allow it too.
const NAME_CHARS_MAX: usize = 32;
/// Servers of one configuration, and tools of one server: each is a name in every metric.
const SERVERS_MAX: usize = 32;
const TOOLS_MAX: usize = 64;
/// Section that stands for any name in `config.default.toml`.
const SHAPE: &str = "tools.mcp.<name>";

/// One configured server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct McpServer {
    /// How it is reached.
    pub transport: McpTransport,
    /// Its tools that agents may use, in its own spelling.
    pub tools: Vec<String>,
    /// Milliseconds to start or reach it, and to learn its tools.
    pub connect_timeout_ms: u64,
    /// Milliseconds of one call.
    pub timeout_ms: u64,
    /// Bytes of a result that the model gets to see.
    pub output_bytes_max: usize,
}

/// How a server is reached. `config.default.toml` says what each key means.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "config.default.toml documents each key")]
pub enum McpTransport {
    /// A program that is started and spoken to over its stdin and stdout.
    Stdio {
        command: String,
        args: Vec<String>,
        env: BTreeMap<String, Secret>,
        env_files: BTreeMap<String, PathBuf>,
    },
    /// Streamable HTTP.
    Http {
        url: String,
        bearer_token: Option<Secret>,
        bearer_token_file: Option<PathBuf>,
    },
}

/// What a server is given that must be seen nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct McpSecrets {
    /// For its address.
    pub bearer_token: Option<Secret>,
    /// Variables whose values stand in files.
    pub env: BTreeMap<String, Secret>,
}

impl McpSecrets {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Secret> {
        self.bearer_token.iter().chain(self.env.values())
    }
}

impl McpServer {
    /// Reads its secrets, anew each time, since mounted ones change. Only the process that talks to the server needs
    /// its files.
    ///
    /// # Errors
    /// The first file that cannot be read, by its key.
    pub fn secrets(&self) -> Result<McpSecrets, String> {
        let read = |key: &str, path: &Path| match read_secret_file(path) {
            Ok(text) => Ok(Secret::new(text)),
            Err(reason) => Err(format!("{key} = {path:?}: {reason}")),
        };
        match &self.transport {
            McpTransport::Stdio { env_files, .. } => {
                let env = env_files
                    .iter()
                    .map(|(name, path)| Ok((name.clone(), read(&format!("env_files.{name}"), path)?)));
                Ok(McpSecrets {
                    bearer_token: None,
                    env: env.collect::<Result<_, String>>()?,
                })
            }
            McpTransport::Http {
                bearer_token,
                bearer_token_file,
                ..
            } => {
                let from_file = match bearer_token_file {
                    Some(path) => Some(read("bearer_token_file", path)?),
                    None => None,
                };
                Ok(McpSecrets {
                    bearer_token: bearer_token.clone().or(from_file),
                    env: BTreeMap::new(),
                })
            }
        }
    }

    /// The name by which models call a tool of the server `server`: `mcp_<server>_<tool>`, with `_` for what
    /// their vendors do not accept.
    pub fn offered_name(server: &str, tool: &str) -> String {
        let accepted = |c: char| match c.is_ascii_alphanumeric() || c == '-' {
            true => c,
            false => '_',
        };
        format!("mcp_{server}_{}", tool.chars().map(accepted).collect::<String>())
    }
}

pub(super) fn read(layers: &mut Layers) -> BTreeMap<String, McpServer> {
    let configured = layers.by_name(
        "tools.mcp",
        is_server_name,
        "a server's name is 1 to 32 letters, digits, - and _, since it is part of its tools' names",
    );
    if configured.len() > SERVERS_MAX {
        let place = layers.file.place("tools.mcp");
        let message = format!("must be at most {SERVERS_MAX} servers");
        layers
            .problems
            .push(Problem::new("tools.mcp", None, message).at(&place));
    }
    let mut servers = BTreeMap::new();
    // By the name that models see: whose it is.
    let mut offered = BTreeMap::new();
    for (name, path, table) in configured {
        let defaults = table_of(&table_of(&table_of(&layers.defaults, "tools"), "mcp"), "<name>");
        let mut section = Section::nested(layers, &path, SHAPE, defaults, table.clone());
        let server = read_server(&mut section, &table);
        for tool in &server.tools {
            check_tool(&mut section, &name, tool, &mut offered);
        }
        servers.insert(name, server);
    }
    servers
}

fn is_server_name(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=NAME_CHARS_MAX).contains(&name.len()) && name.chars().all(is_allowed)
}

fn check_tool(section: &mut Section<'_>, server: &str, tool: &str, offered: &mut BTreeMap<String, String>) {
    let name = McpServer::offered_name(server, tool);
    if name.len() > OFFERED_CHARS_MAX {
        let left = OFFERED_CHARS_MAX - McpServer::offered_name(server, "").len();
        section.problem(
            "tools",
            &format!(
                "{tool:?} is too long: models would call it {name}, and the vendors accept {OFFERED_CHARS_MAX} \
                 characters, which leaves {left} for it; give the server a shorter name"
            ),
        );
    }
    let whose = format!("{tool:?} of tools.mcp.{server}");
    if let Some(other) = offered.insert(name.clone(), whose) {
        section.problem(
            "tools",
            &format!(
                "{tool:?} and {other} would have the same name for models, {name}; leave one out, or name a server \
                 otherwise"
            ),
        );
    }
}

fn read_server(section: &mut Section<'_>, given: &Table) -> McpServer {
    let command = section.optional("command");
    let url = section.optional("url");
    let (args, env) = (section.list("args"), section.table_hidden("env"));
    let env_files: BTreeMap<String, PathBuf> = section
        .table("env_files")
        .into_iter()
        .map(|(name, path)| (name, PathBuf::from(path)))
        .collect();
    let (bearer_token, bearer_token_file) =
        (section.secret("bearer_token"), section.path("bearer_token_file"));
    let (unfit, of) = match (&command, &url) {
        (Some(_), None) => (&["bearer_token", "bearer_token_file"][..], "url"),
        (None, Some(_)) => (&["args", "env", "env_files"][..], "command"),
        (Some(_), Some(_)) => {
            section.problem_hidden("url", "is set together with command; keep one of the two");
            (&[][..], "")
        }
        (None, None) => {
            section.problem(
                "command",
                "is not set, nor is url; set the one by which the server is reached",
            );
            (&[][..], "")
        }
    };
    for key in unfit.iter().filter(|key| given.get(**key).is_some_and(is_set)) {
        section.problem_hidden(key, &format!("belongs to {of}, which is not set; remove it"));
    }
    if env.keys().chain(env_files.keys()).any(|name| !is_variable(name)) {
        section.problem_hidden(
            "env",
            "must, as env_files, name variables by letters, digits and _, with no digit first",
        );
    }
    if let Some(twice) = env.keys().find(|name| env_files.contains_key(*name)) {
        section.problem_hidden(
            "env",
            &format!("has {twice}, as env_files has; keep one of the two"),
        );
    }
    if bearer_token.is_some() && bearer_token_file.is_some() {
        section.problem_hidden(
            "bearer_token",
            "is set together with bearer_token_file; keep one of the two",
        );
    }
    if let Some(url) = &url {
        if !is_http_url(url) {
            section.problem_hidden("url", "must be an address that begins with http:// or https://");
        } else if authority(url).contains('@') {
            section.problem_hidden("url", "must not hold a password; use bearer_token_file");
        }
    }
    let tools = section.list("tools");
    if tools.is_empty() || tools.len() > TOOLS_MAX {
        section.problem(
            "tools",
            &format!("must name 1 to {TOOLS_MAX} tools of the server that only read"),
        );
    }
    let transport = match (command, url) {
        (_, Some(url)) => McpTransport::Http {
            url,
            bearer_token,
            bearer_token_file,
        },
        (command, None) => McpTransport::Stdio {
            command: command.unwrap_or_default(),
            args,
            env,
            env_files,
        },
    };
    McpServer {
        transport,
        tools,
        connect_timeout_ms: section.number("connect_timeout_ms", 100..=120_000),
        timeout_ms: section.number("timeout_ms", 100..=600_000),
        output_bytes_max: section.count("output_bytes_max", 1024..=1024 * 1024),
    }
}

/// Whether a value is more than "not set".
fn is_set(value: &Value) -> bool {
    match value {
        Value::String(text) => !text.trim().is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Table(entries) => !entries.is_empty(),
        _ => true,
    }
}

fn is_variable(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// What stands between the scheme and the path of an address.
fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().unwrap_or_default()
}
