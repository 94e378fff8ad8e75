//! `[tools]` and `[fix]`: what agents may look at, and what may be changed.

use super::mcp::McpServer;
use super::reader::Section;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The longest `loki_tenant`: several names of Loki's 150 bytes at most.
const TENANT_BYTES_MAX: usize = 1024;

/// The tools of agents. `config.default.toml` says what each key means.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "config.default.toml documents each key")]
pub struct Tools {
    pub prometheus_url: String,
    pub loki_url: String,
    pub loki_tenant: Option<String>,
    pub curl_allowed_hosts: Vec<String>,
    pub curl_allowed_networks: Vec<String>,
    pub curl_bytes_max: usize,
    pub kubectl_bin: String,
    pub kubeconfig: Option<PathBuf>,
    pub kubectl_service_account: Option<String>,
    pub kubectl_namespaces: Vec<String>,
    pub redact: Vec<String>,
    pub redact_env: Vec<String>,
    /// By name.
    pub mcp: BTreeMap<String, McpServer>,
}

impl Tools {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let tools = Self {
            prometheus_url: section.text("prometheus_url"),
            loki_url: section.text("loki_url"),
            loki_tenant: section.optional("loki_tenant"),
            curl_allowed_hosts: section.list("curl_allowed_hosts"),
            curl_allowed_networks: section.list("curl_allowed_networks"),
            curl_bytes_max: section.count("curl_bytes_max", 1024..=64 * 1024 * 1024),
            kubectl_bin: section.text("kubectl_bin"),
            kubeconfig: section.path("kubeconfig"),
            kubectl_service_account: section.optional("kubectl_service_account"),
            kubectl_namespaces: section.list("kubectl_namespaces"),
            redact: section.list("redact"),
            redact_env: section.list("redact_env"),
            mcp: BTreeMap::new(),
        };
        for (key, url) in [
            ("prometheus_url", &tools.prometheus_url),
            ("loki_url", &tools.loki_url),
        ] {
            if !is_http_url(url) {
                section.problem(key, "must be an address that begins with http:// or https://");
            }
        }
        if tools
            .loki_tenant
            .as_deref()
            .is_some_and(|tenant| !is_tenant(tenant))
        {
            section.problem(
                "loki_tenant",
                "must be a tenant's name, or several joined by `|`: letters, digits and !-_.*'() without blanks",
            );
        }
        if !tools.curl_allowed_networks.iter().all(|text| is_network(text)) {
            section.problem(
                "curl_allowed_networks",
                "must be networks in CIDR notation, such as 10.0.0.0/8 or fd00::/8",
            );
        }
        if tools.kubeconfig.is_some() && tools.kubectl_service_account.is_some() {
            section.problem(
                "kubectl_service_account",
                "excludes tools.kubeconfig: kubectl runs as this account, or by that file",
            );
        }
        for pattern in &tools.redact {
            if let Err(error) = regex::Regex::new(pattern) {
                // The error draws the pattern over several lines; its last says what is wrong.
                let text = error.to_string();
                let reason = text
                    .lines()
                    .last()
                    .unwrap_or_default()
                    .trim_start_matches("error: ");
                section.problem(
                    "redact",
                    &format!("{pattern:?} is not a regular expression: {reason}"),
                );
            }
        }
        tools
    }
}

pub(super) fn is_http_url(text: &str) -> bool {
    let rest = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && !rest.contains(char::is_whitespace))
}

/// Whether Loki takes it as the name of a tenant, or as several.
fn is_tenant(text: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "!-_.*'()".contains(c);
    text.len() <= TENANT_BYTES_MAX
        && text
            .split('|')
            .all(|name| !name.is_empty() && name != "." && name != ".." && name.chars().all(is_allowed))
}

fn is_network(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else {
        return false;
    };
    let bits_max = match address.parse() {
        Ok(std::net::IpAddr::V4(_)) => 32,
        Ok(std::net::IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    bits.parse::<u8>().is_ok_and(|bits| bits <= bits_max)
}

/// The fix gate. `config.default.toml` says what each key means.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "config.default.toml documents each key")]
pub struct Fix {
    pub verbs: Vec<String>,
    pub allowed_namespaces: Vec<String>,
    pub mode: FixMode,
    pub propose_namespaces: Vec<String>,
}

/// What becomes of a command that passed the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FixMode {
    /// It runs.
    Auto,
    /// It is recorded as a proposal, and not run.
    Propose,
}

impl Fix {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        Self {
            verbs: section.list("verbs"),
            allowed_namespaces: section.list("allowed_namespaces"),
            mode: section.one_of("mode", &[("auto", FixMode::Auto), ("propose", FixMode::Propose)]),
            propose_namespaces: section.list("propose_namespaces"),
        }
    }
}
