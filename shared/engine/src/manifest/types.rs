//! The manifest's types, with serde and JSON Schema both made from the same declarations.
//!
//! Invariants:
//! - The doc comment of a field is its documentation: the CRD's descriptions come from here, and
//!   a test holds `docs/manifest.md` against it.
//! - A [`Step`] has one timeout in milliseconds, however it was written, and exactly the fields of
//!   its own type; [`StepForm`] is the flat form in which people write it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The one `apiVersion` there is.
pub const API_VERSION: &str = "punching-fist.io/v1alpha1";
/// The one `kind` there is.
pub const KIND: &str = "Workflow";
/// The annotation whose changed value runs an already executed Workflow once more.
pub const RERUN_ANNOTATION: &str = "punching-fist.io/rerun";
/// A step's timeout where the manifest gives none: ten minutes.
pub const STEP_TIMEOUT_DEFAULT_MS: u64 = 10 * 60 * 1000;
/// The longest `timeout_minutes`: one day.
pub const STEP_TIMEOUT_MINUTES_MAX: u64 = 1440;
/// The longest `timeout_seconds`: the same day.
pub const STEP_TIMEOUT_SECONDS_MAX: u64 = 86_400;

/// One Workflow: which steps to take, and for which alerts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Workflow {
    /// Always `punching-fist.io/v1alpha1`.
    #[serde(rename = "apiVersion", alias = "api_version")]
    pub api_version: ApiVersion,
    /// Always `Workflow`.
    pub kind: Kind,
    /// Names the Workflow, and carries its own input.
    pub metadata: Metadata,
    /// What to do.
    pub spec: Spec,
}

/// The manifest's `apiVersion`; it has one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum ApiVersion {
    /// `punching-fist.io/v1alpha1`
    #[default]
    #[serde(rename = "punching-fist.io/v1alpha1")]
    V1Alpha1,
}

/// The manifest's `kind`; it has one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Kind {
    /// `Workflow`
    #[default]
    Workflow,
}

/// Names the Workflow, and carries its own input. Kubernetes' own fields (`uid`, `labels`,
/// `resourceVersion`, …) are accepted; of these only `uid` and `labels` are read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Metadata {
    /// The Workflow's name: lower-case letters, digits, `-` and `.`, at most 253 characters.
    pub name: String,
    /// The namespace it belongs to: lower-case letters, digits and `-`, at most 63 characters.
    #[serde(default = "namespace_default")]
    #[schemars(extend("default" = "default"))]
    pub namespace: String,
    /// Labels, as on any Kubernetes object; kept, and not interpreted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The execution's own input: `alert.name`, `alert.severity`, and `source.data`, a JSON object
    /// in a string. `punching-fist.io/rerun` with a new value runs an executed Workflow again.
    /// Others are kept, and not interpreted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Set by the Kubernetes API: the execution's id is derived from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

fn namespace_default() -> String {
    "default".to_owned()
}

/// What to do: the trigger, the surroundings, the steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Spec {
    /// Which alerts start this Workflow. Absent: none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trigger: Option<Trigger>,
    /// What the steps have in common.
    #[serde(default, skip_serializing_if = "Runtime::is_empty")]
    pub runtime: Runtime,
    /// The steps, in the order in which they run; 1 to 1000.
    #[schemars(length(min = 1, max = 1000))]
    pub steps: Vec<Step>,
    /// A suspended definition starts nothing; its alerts are recorded as filtered, with that reason.
    #[serde(default, skip_serializing_if = "is_false")]
    pub suspend: bool,
}

/// Which alerts start this Workflow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Trigger {
    /// Where the alert comes from: `alertmanager`, `webhook`, `nats`, or the name of a source that
    /// the configuration lists.
    pub source: String,
    /// Label → the exact value, or `~` and a regular expression for the whole value. All must
    /// match. Absent: every alert of that source.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub filters: BTreeMap<String, String>,
}

/// What the steps have in common.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Runtime {
    /// The pod image of cli steps. Absent: the configuration's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The environment of every cli step, and what templates read as `env.*`. Values are taken as
    /// they stand; they are not templates.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// The model of the agent steps.
    #[serde(default, alias = "llmConfig", skip_serializing_if = "Option::is_none")]
    pub llm_config: Option<LlmConfig>,
}

impl Runtime {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

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
    /// `mcp:<server>`: the tools of an MCP server that the configuration lists.
    Mcp(String),
}

impl Tool {
    /// The built-in tools, as they are written.
    pub const NAMES: [&'static str; 3] = ["kubectl", "promql", "curl"];
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tool::Kubectl => f.write_str("kubectl"),
            Tool::Promql => f.write_str("promql"),
            Tool::Curl => f.write_str("curl"),
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
            other => match other.strip_prefix("mcp:") {
                Some(server) if !server.is_empty() => Ok(Tool::Mcp(server.to_owned())),
                _ => Err(format!(
                    "unknown tool \"{other}\"; the tools are {}",
                    Tool::NAMES.join(", ")
                )),
            },
        }
    }
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

/// One step. Its name is unique in its Workflow; its timeout runs from dispatch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "StepForm", into = "StepForm")]
pub struct Step {
    /// Letters, digits, `-` and `_`.
    pub name: String,
    /// Milliseconds from dispatch, a whole number of seconds.
    pub timeout_ms: u64,
    /// What the step does.
    pub kind: StepKind,
}

impl Step {
    /// The step's type, as it is written.
    #[must_use]
    pub fn step_type(&self) -> StepType {
        match self.kind {
            StepKind::Cli(_) => StepType::Cli,
            StepKind::Agent(_) => StepType::Agent,
            StepKind::Conditional(_) => StepType::Conditional,
        }
    }
}

/// What a step does, by its type.
#[derive(Debug, Clone, PartialEq)]
pub enum StepKind {
    /// A shell command in a pod of its own, or in a local process group.
    Cli(CliStep),
    /// An investigation by a model with tools.
    Agent(AgentStep),
    /// A decision about the steps that follow.
    Conditional(ConditionalStep),
}

/// A shell command.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CliStep {
    /// Template; what `/bin/sh -c` runs.
    pub command: String,
    /// The pod's image, instead of the runtime's.
    pub image: Option<String>,
    /// Variables of this step's process, over the runtime's. Values are templates.
    pub env: BTreeMap<String, String>,
    /// The pod's requests and limits.
    pub resources: Option<Resources>,
    /// The author says that this command changes something: it must pass the fix gate.
    pub fix: bool,
    /// Whether a gated command is run, or only proposed. Absent: as configured.
    pub mode: Option<FixMode>,
}

/// An investigation by a model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AgentStep {
    /// Template; what the agent is to find out.
    pub goal: String,
    /// The tools it may use, and no others.
    pub tools: Vec<Tool>,
    /// Over the runtime's.
    pub llm_config: Option<LlmConfig>,
    /// What a timeout makes of the step.
    pub on_timeout: OnTimeout,
}

/// A decision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConditionalStep {
    /// `<path> <operator> <literal>`, and these joined by `and`, `or`, `not`.
    pub condition: String,
    /// What happens when it is not met.
    pub on_false: OnFalse,
}

/// A step's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StepType {
    /// A shell command.
    Cli,
    /// An LLM agent.
    Agent,
    /// A condition.
    Conditional,
}

impl StepType {
    /// All of them, as they are written.
    pub const NAMES: [&'static str; 3] = ["cli", "agent", "conditional"];

    /// As it is written in a manifest and in a command's subject.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            StepType::Cli => "cli",
            StepType::Agent => "agent",
            StepType::Conditional => "conditional",
        }
    }
}

impl fmt::Display for StepType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a gated command does once it has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FixMode {
    /// It is run.
    #[default]
    Auto,
    /// It is checked and shown, and nothing is run.
    Propose,
}

impl FixMode {
    /// What becomes of a step's fix: where either the step or the configuration says `propose`,
    /// nothing is run.
    #[must_use]
    pub fn of(step: Option<FixMode>, configured: FixMode) -> FixMode {
        match (step, configured) {
            (Some(FixMode::Propose), _) | (_, FixMode::Propose) => FixMode::Propose,
            (Some(FixMode::Auto) | None, FixMode::Auto) => FixMode::Auto,
        }
    }
}

/// What happens when a condition is not met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFalse {
    /// The rest is skipped and the execution succeeds.
    #[default]
    #[serde(alias = "skipRemaining")]
    SkipRemaining,
    /// The next step is skipped.
    #[serde(alias = "skipNext")]
    SkipNext,
    /// The step, and so the execution, fails.
    Fail,
    /// Nothing; the output says that it was not met.
    Continue,
}

/// What a timeout makes of an agent step that has findings to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnTimeout {
    /// It succeeds with what it has, and `status: partial`.
    #[default]
    Partial,
    /// It fails.
    Fail,
}

/// A pod's resources, in Kubernetes' quantities.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Resources {
    /// What the pod is promised, such as `cpu: 100m`, `memory: 64Mi`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, String>,
    /// What the pod may use at most.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, String>,
}

/// A step as it is written: one flat object, in which the type decides which fields may stand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepForm {
    /// The step's name, unique in its Workflow: letters, digits, `-` and `_`, at most 128.
    pub name: String,
    /// `cli`, `agent`, or `conditional`.
    #[serde(rename = "type")]
    pub step_type: StepType,
    /// Whole minutes from dispatch, 1 to 1440; 10 where neither this nor `timeout_seconds` is
    /// given.
    #[serde(default, alias = "timeoutMinutes", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1440))]
    pub timeout_minutes: Option<u64>,
    /// Whole seconds from dispatch, 1 to 86400, instead of `timeout_minutes`.
    #[serde(default, alias = "timeoutSeconds", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 86_400))]
    pub timeout_seconds: Option<u64>,
    /// cli: what `/bin/sh -c` runs. A template, whose values are escaped for the place in which
    /// they stand; under 128 KiB once rendered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// cli: the pod's image, instead of the runtime's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// cli: variables of this step's process, over the runtime's. Values are templates.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// cli: the pod's requests and limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// cli: true says that the command changes something, and must pass the fix gate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<bool>,
    /// cli: `auto` runs a command that passed the fix gate, `propose` only shows it. Absent: the
    /// configuration's `fix.mode`; where that says `propose`, nothing is run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<FixMode>,
    /// agent: what it is to find out. A template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<String>,
    /// agent: the tools it may use: `kubectl`, `promql`, `curl`, or `mcp:<server>`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Tool>,
    /// agent: the model, over `runtime.llm_config`.
    #[serde(default, alias = "llmConfig", skip_serializing_if = "Option::is_none")]
    pub llm_config: Option<LlmConfig>,
    /// agent: `partial` (default) succeeds with what was found so far, `fail` fails.
    #[serde(default, alias = "onTimeout", skip_serializing_if = "Option::is_none")]
    pub on_timeout: Option<OnTimeout>,
    /// conditional: `<path> <operator> <literal>`, joined by `and`, `or`, `not`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// conditional: `skip_remaining` (default), `skip_next`, `fail`, or `continue`.
    #[serde(default, alias = "onFalse", skip_serializing_if = "Option::is_none")]
    pub on_false: Option<OnFalse>,
}

impl From<Step> for StepForm {
    fn from(step: Step) -> StepForm {
        let seconds = step.timeout_ms / 1000;
        let in_minutes = seconds.is_multiple_of(60);
        let mut form = StepForm {
            step_type: step.step_type(),
            name: step.name,
            timeout_minutes: in_minutes.then_some(seconds / 60),
            timeout_seconds: (!in_minutes).then_some(seconds),
            command: None,
            image: None,
            env: BTreeMap::new(),
            resources: None,
            fix: None,
            mode: None,
            goal: None,
            tools: Vec::new(),
            llm_config: None,
            on_timeout: None,
            condition: None,
            on_false: None,
        };
        match step.kind {
            StepKind::Cli(cli) => {
                form.command = Some(cli.command);
                form.image = cli.image;
                form.env = cli.env;
                form.resources = cli.resources;
                form.fix = cli.fix.then_some(true);
                form.mode = cli.mode;
            }
            StepKind::Agent(agent) => {
                form.goal = Some(agent.goal);
                form.tools = agent.tools;
                form.llm_config = agent.llm_config;
                form.on_timeout = Some(agent.on_timeout).filter(|on| *on != OnTimeout::default());
            }
            StepKind::Conditional(conditional) => {
                form.condition = Some(conditional.condition);
                form.on_false = Some(conditional.on_false).filter(|on| *on != OnFalse::default());
            }
        }
        form
    }
}

impl TryFrom<StepForm> for Step {
    type Error = String;

    /// Reads a step that was admitted before: the detailed errors are admission's.
    fn try_from(form: StepForm) -> Result<Step, String> {
        let timeout_ms = match (form.timeout_minutes, form.timeout_seconds) {
            (Some(_), Some(_)) => {
                return Err("give timeout_minutes or timeout_seconds, not both".to_owned());
            }
            (Some(minutes @ 1..=STEP_TIMEOUT_MINUTES_MAX), None) => minutes * 60_000,
            (None, Some(seconds @ 1..=STEP_TIMEOUT_SECONDS_MAX)) => seconds * 1000,
            (None, None) => STEP_TIMEOUT_DEFAULT_MS,
            _ => return Err("the timeout is not between 1 second and 1 day".to_owned()),
        };
        let needed = |value: Option<String>, field: &str| {
            value.ok_or_else(|| format!("step \"{}\" has no {field}", form.name))
        };
        let kind = match form.step_type {
            StepType::Cli => StepKind::Cli(CliStep {
                command: needed(form.command, "command")?,
                image: form.image,
                env: form.env,
                resources: form.resources,
                fix: form.fix.unwrap_or(false),
                mode: form.mode,
            }),
            StepType::Agent => StepKind::Agent(AgentStep {
                goal: needed(form.goal, "goal")?,
                tools: form.tools,
                llm_config: form.llm_config,
                on_timeout: form.on_timeout.unwrap_or_default(),
            }),
            StepType::Conditional => StepKind::Conditional(ConditionalStep {
                condition: needed(form.condition, "condition")?,
                on_false: form.on_false.unwrap_or_default(),
            }),
        };
        Ok(Step {
            name: form.name,
            timeout_ms,
            kind,
        })
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(value: &bool) -> bool {
    !*value
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn a_spec_survives_json_exactly() {
        let written = json!({
            "trigger": {"source": "alertmanager", "filters": {"alertname": "~Pod.*"}},
            "runtime": {
                "image": "tools:1",
                "environment": {"A": "b"},
                "llmConfig": {"provider": "openai", "model": "m", "temperature": 0.1, "maxTurns": 7},
            },
            "steps": [
                {"name": "a-b", "type": "cli", "timeoutSeconds": 90, "command": "date", "fix": true,
                 "mode": "propose", "env": {"X": "1"}, "resources": {"limits": {"cpu": "1"}}},
                {"name": "b", "type": "agent", "goal": "look", "tools": ["kubectl", "mcp:git"],
                 "onTimeout": "fail"},
                {"name": "c", "type": "conditional", "condition": "a == b", "onFalse": "skipNext"},
            ],
        });
        let spec: Spec = serde_json::from_value(written).unwrap();
        assert_eq!(spec.steps[0].timeout_ms, 90_000);
        assert_eq!(spec.steps[1].timeout_ms, STEP_TIMEOUT_DEFAULT_MS);
        let text = serde_json::to_string(&spec).unwrap();
        let again: Spec = serde_json::from_str(&text).unwrap();
        assert_eq!(again, spec);
        assert_eq!(serde_json::to_string(&again).unwrap(), text);
        assert!(text.contains(r#""llm_config":{"provider":"openai""#), "{text}");
        assert!(text.contains(r#""on_false":"skip_next""#), "{text}");
    }

    #[test]
    fn another_provider_does_not_inherit_model_address_or_key() {
        let base = LlmConfig {
            provider: Some(Provider::Anthropic),
            model: Some("m".into()),
            api_key_secret: Some("k".into()),
            max_turns: Some(3),
            ..LlmConfig::default()
        };
        let step = LlmConfig {
            provider: Some(Provider::OpenAi),
            ..LlmConfig::default()
        };
        let both = step.over(&base);
        assert_eq!((both.model, both.api_key_secret), (None, None));
        assert_eq!(both.max_turns, Some(3));
        assert_eq!(LlmConfig::default().over(&base), base);
    }
}
