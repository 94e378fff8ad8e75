//! `[agent]` and `[llm]`: the bounds of investigations, and their models.

use std::collections::BTreeMap;
use std::path::PathBuf;

use protocol::Namespace;

use super::reader::Section;

/// The bounds of one investigation. `config.default.toml` says what each key means.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "config.default.toml documents each key")]
pub struct Agent {
    pub concurrency: usize,
    pub turns_max: u64,
    pub tool_calls_max: u64,
    pub tokens_max: u64,
    pub turn_output_tokens_max: u64,
    pub tool_timeout_ms: u64,
    pub tool_output_bytes_max: usize,
    pub context_tokens_max: usize,
    pub reserve_ms: u64,
    pub budget_tokens_per_day: u64,
    pub namespace_budget_tokens_per_day: BTreeMap<String, u64>,
    pub budget_exhausted: BudgetExhausted,
}

/// What an investigation does when its namespace's budget is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BudgetExhausted {
    /// It ends with what it has.
    Inconclusive,
    /// It waits for the next day or for room, within its step's time.
    Wait,
}

/// Tokens of the largest budget; far beyond any bill.
const BUDGET_TOKENS_MAX: u64 = 1_000_000_000_000;

impl Agent {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let agent = Self {
            concurrency: section.count("concurrency", 1..=1024),
            turns_max: section.number("turns_max", 1..=1000),
            tool_calls_max: section.number("tool_calls_max", 0..=10_000),
            tokens_max: section.number("tokens_max", 1000..=1_000_000_000),
            turn_output_tokens_max: section.number("turn_output_tokens_max", 64..=1_000_000),
            tool_timeout_ms: section.number("tool_timeout_ms", 100..=600_000),
            tool_output_bytes_max: section.count("tool_output_bytes_max", 256..=1024 * 1024),
            context_tokens_max: section.count("context_tokens_max", 2000..=10_000_000),
            reserve_ms: section.number("reserve_ms", 0..=3_600_000),
            budget_tokens_per_day: section.number("budget_tokens_per_day", 0..=BUDGET_TOKENS_MAX),
            namespace_budget_tokens_per_day: section
                .numbers("namespace_budget_tokens_per_day", 0..=BUDGET_TOKENS_MAX),
            budget_exhausted: section.one_of(
                "budget_exhausted",
                &[
                    ("inconclusive", BudgetExhausted::Inconclusive),
                    ("wait", BudgetExhausted::Wait),
                ],
            ),
        };
        // Before a call, all that it may write is set aside: with less, not even the first could be made.
        let is_too_small = |budget: u64| (1..=agent.turn_output_tokens_max).contains(&budget);
        let too_small = "must be more than agent.turn_output_tokens_max, or 0 for no budget";
        if is_too_small(agent.budget_tokens_per_day) {
            section.problem("budget_tokens_per_day", too_small);
        }
        let of_namespaces = &agent.namespace_budget_tokens_per_day;
        if of_namespaces.values().any(|budget| is_too_small(*budget)) {
            section.problem("namespace_budget_tokens_per_day", too_small);
        }
        if let Some(error) = of_namespaces.keys().find_map(|name| Namespace::new(name).err()) {
            let text = format!("must name namespaces: {error}");
            section.problem("namespace_budget_tokens_per_day", &text);
        }
        agent
    }

    /// Tokens that the agents of `namespace` may use on one day; `None` where it has no budget.
    pub fn budget_of(&self, namespace: &str) -> Option<u64> {
        let of_namespace = self.namespace_budget_tokens_per_day.get(namespace);
        Some(*of_namespace.unwrap_or(&self.budget_tokens_per_day)).filter(|budget| *budget > 0)
    }

    /// Whether any namespace has a budget.
    pub fn has_budgets(&self) -> bool {
        let of_namespaces = self.namespace_budget_tokens_per_day.values();
        self.budget_tokens_per_day > 0 || of_namespaces.into_iter().any(|budget| *budget > 0)
    }
}

/// The models that agents use. `config.default.toml` says what each key means.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "config.default.toml documents each key")]
pub struct Llm {
    pub default_provider: Option<String>,
    pub default_model_anthropic: String,
    pub default_model_openai: String,
    pub anthropic_api_key_file: Option<PathBuf>,
    pub openai_api_key_file: Option<PathBuf>,
    pub scripted_dir: Option<PathBuf>,
    pub allowed_endpoints: Vec<String>,
    pub model_aliases: BTreeMap<String, String>,
    pub connect_timeout_ms: u64,
    pub first_byte_timeout_ms: u64,
    pub idle_timeout_ms: u64,
    pub retries_max: u64,
}

impl Llm {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let llm = Self {
            default_provider: section.optional("default_provider"),
            default_model_anthropic: section.text("default_model_anthropic"),
            default_model_openai: section.text("default_model_openai"),
            anthropic_api_key_file: section.path("anthropic_api_key_file"),
            openai_api_key_file: section.path("openai_api_key_file"),
            scripted_dir: section.path("scripted_dir"),
            allowed_endpoints: section.list("allowed_endpoints"),
            model_aliases: section.table("model_aliases"),
            connect_timeout_ms: section.number("connect_timeout_ms", 100..=600_000),
            first_byte_timeout_ms: section.number("first_byte_timeout_ms", 100..=3_600_000),
            idle_timeout_ms: section.number("idle_timeout_ms", 100..=3_600_000),
            retries_max: section.number("retries_max", 0..=100),
        };
        match llm.default_provider.as_deref() {
            None | Some("anthropic" | "openai") => {}
            Some("scripted") if llm.scripted_dir.is_some() => {}
            Some("scripted") => section.problem(
                "default_provider",
                "needs llm.scripted_dir, the directory of its files",
            ),
            Some(_) => section.problem(
                "default_provider",
                "must be anthropic, openai or scripted, or empty",
            ),
        }
        if !llm
            .allowed_endpoints
            .iter()
            .all(|url| super::tools::is_http_url(url))
        {
            section.problem(
                "allowed_endpoints",
                "must be addresses that begin with https:// or http://",
            );
        }
        llm
    }
}
