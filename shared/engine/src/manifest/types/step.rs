//! Steps: as they are decided on, by type ([`Step`]), and as they are written, flat ([`StepForm`]).
//!
//! Invariant: the two forms say the same; a step survives the way through its form exactly.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{LlmConfig, Tool};

/// A step's timeout where the manifest gives none: ten minutes.
pub const STEP_TIMEOUT_DEFAULT_MS: u64 = 10 * 60 * 1000;
/// The longest `timeout_minutes`: one day.
pub const STEP_TIMEOUT_MINUTES_MAX: u64 = 1440;
/// The highest user that Kubernetes knows.
pub const RUN_AS_USER_MAX: u64 = 2_147_483_647;
/// The longest `timeout_seconds`: the same day.
pub const STEP_TIMEOUT_SECONDS_MAX: u64 = 86_400;

/// One step. Its name is unique in its Workflow; its timeout runs from dispatch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "StepForm", into = "StepForm")]
pub struct Step {
    /// Letters, digits, `-` and `_`.
    pub name: String,
    /// Milliseconds from dispatch, a whole number of seconds.
    pub timeout_ms: u64,
    /// Whether the author gave the timeout in seconds, which error texts say again.
    pub is_timeout_in_seconds: bool,
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
    /// The user that the pod runs as, from 1; absent: ours.
    pub run_as_user: Option<u32>,
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
    /// cli: the numeric user that the pod runs as, 1 to 2147483647; default 65532. Without a cluster it is ignored.
    #[serde(default, alias = "runAsUser", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub run_as_user: Option<u32>,
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
    /// agent: the tools it may use: `kubectl`, `promql`, `curl`, `logs`, `read_file`, or `mcp:<server>`.
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
        let in_minutes = seconds.is_multiple_of(60) && !step.is_timeout_in_seconds;
        let mut form = StepForm {
            step_type: step.step_type(),
            name: step.name,
            timeout_minutes: in_minutes.then_some(seconds / 60),
            timeout_seconds: (!in_minutes).then_some(seconds),
            command: None,
            image: None,
            env: BTreeMap::new(),
            resources: None,
            run_as_user: None,
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
                form.run_as_user = cli.run_as_user;
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
                run_as_user: form.run_as_user,
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
            is_timeout_in_seconds: form.timeout_seconds.is_some(),
            kind,
        })
    }
}
