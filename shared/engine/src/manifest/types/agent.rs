//! Which model an agent uses, and which tools it has.
//!
//! Invariant: a key never stands here, only the name of the Secret that holds it.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which model an agent step uses, and how much of it. What is absent comes from the
/// Workflow's `runtime.llm_config`, then from the service's configuration.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct LlmConfig {
    /// `anthropic`, `openai`, or `scripted`. Absent: the configured default, else the provider
    /// whose key is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Provider>,
    /// The model's name, by the provider's spelling or an alias of the configuration. For
    /// `scripted` the name of a file of turns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The base address of a compatible service. One that the configuration does not list needs
    /// an `api_key_secret` of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The Kubernetes Secret, in the Workflow's namespace, that holds the provider's key.
    #[serde(default, alias = "apiKeySecret", skip_serializing_if = "Option::is_none")]
    pub api_key_secret: Option<String>,
    /// Sampling temperature, 0 to 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 2.0))]
    pub temperature: Option<f64>,
    /// The most tokens that one answer of the model may have, 1 to 1000000.
    #[serde(default, alias = "maxTokens", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_tokens: Option<u32>,
    /// The most turns that the agent may take, 1 to 200; the last is reserved for its findings.
    #[serde(default, alias = "maxTurns", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 200))]
    pub max_turns: Option<u32>,
}

impl LlmConfig {
    /// This configuration laid over `base`, as a step's is over its Workflow's. Where the provider
    /// is another one, the model, address and key of `base` are not taken over: they belong to
    /// that provider.
    #[must_use]
    pub fn over(&self, base: &LlmConfig) -> LlmConfig {
        let same_provider = self.provider.is_none() || self.provider == base.provider;
        let inherit = |own: &Option<String>, theirs: &Option<String>| {
            own.clone().or_else(|| theirs.clone().filter(|_| same_provider))
        };
        LlmConfig {
            provider: self.provider.or(base.provider),
            model: inherit(&self.model, &base.model),
            endpoint: inherit(&self.endpoint, &base.endpoint),
            api_key_secret: inherit(&self.api_key_secret, &base.api_key_secret),
            temperature: self.temperature.or(base.temperature),
            max_tokens: self.max_tokens.or(base.max_tokens),
            max_turns: self.max_turns.or(base.max_turns),
        }
    }
}

/// Who serves the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// Anthropic's Messages API.
    Anthropic,
    /// OpenAI's Chat Completions, or anything compatible.
    OpenAi,
    /// Turns read from a file: for tests and the demonstration; never allowed to fix anything.
    Scripted,
}

impl Provider {
    /// All of them, as they are written.
    pub const NAMES: [&'static str; 3] = ["anthropic", "openai", "scripted"];

    /// As it is written in a manifest.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Provider::Anthropic => "anthropic",
            Provider::OpenAi => "openai",
            Provider::Scripted => "scripted",
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A tool that an agent may use. Written as a string.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Tool {
    /// Read-only kubectl.
    Kubectl,
    /// Prometheus queries.
    Promql,
    /// HTTP GET and HEAD.
    Curl,
    /// Loki queries.
    Logs,
    /// What earlier steps of the same execution left.
    ReadFile,
    /// `mcp:<server>`: the tools of an MCP server that the configuration lists.
    Mcp(String),
}

impl Tool {
    /// The built-in tools, as they are written.
    pub const NAMES: [&'static str; 5] = ["kubectl", "promql", "curl", "logs", "read_file"];
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tool::Kubectl => f.write_str("kubectl"),
            Tool::Promql => f.write_str("promql"),
            Tool::Curl => f.write_str("curl"),
            Tool::Logs => f.write_str("logs"),
            Tool::ReadFile => f.write_str("read_file"),
            Tool::Mcp(server) => write!(f, "mcp:{server}"),
        }
    }
}

impl From<Tool> for String {
    fn from(tool: Tool) -> String {
        tool.to_string()
    }
}

impl FromStr for Tool {
    type Err = String;

    fn from_str(text: &str) -> Result<Tool, String> {
        match text {
            "kubectl" => Ok(Tool::Kubectl),
            "promql" => Ok(Tool::Promql),
            "curl" => Ok(Tool::Curl),
            "logs" => Ok(Tool::Logs),
            "read_file" => Ok(Tool::ReadFile),
            other => match other.strip_prefix("mcp:") {
                Some(server) if is_mcp_server(server) => Ok(Tool::Mcp(server.to_owned())),
                Some(server) => Err(format!(
                    "\"{server}\" is not an MCP server's name: use 1 to {MCP_SERVER_CHARS_MAX} letters, digits, `-` and `_`, \
                     as in mcp:tickets"
                )),
                None => Err(format!(
                    "unknown tool \"{other}\"; the tools are {}, mcp:<server>",
                    Tool::NAMES.join(", ")
                )),
            },
        }
    }
}

/// Characters of an MCP server's name: with `mcp_`, the tool's own name and the 64 that models' vendors allow, 27
/// are left for the tool at least.
const MCP_SERVER_CHARS_MAX: usize = 32;

/// Whether the configuration could list a server of this name. Whether it does is known to the runner alone.
fn is_mcp_server(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (1..=MCP_SERVER_CHARS_MAX).contains(&name.len()) && name.chars().all(is_allowed)
}

impl TryFrom<String> for Tool {
    type Error = String;

    fn try_from(text: String) -> Result<Tool, String> {
        text.parse()
    }
}

impl JsonSchema for Tool {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Tool".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string" })
    }
}
