//! The manifest's types, with serde and JSON Schema both made from the same declarations.
//!
//! Invariants:
//! - The doc comment of a field is its documentation: the CRD's descriptions come from here, and
//!   a test holds `docs/manifest.md` against it.
//! - A [`Step`] has one timeout in milliseconds, however it was written, and exactly the fields of
//!   its own type; [`StepForm`] is the flat form in which people write it.

mod agent;
mod step;

use std::collections::BTreeMap;

use protocol::Json;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use agent::{LlmConfig, Provider, Tool};
pub use step::{
    AgentStep, CliStep, ConditionalStep, FixMode, OnFalse, OnTimeout, RUN_AS_USER_MAX, Resources,
    STEP_TIMEOUT_DEFAULT_MS, STEP_TIMEOUT_MINUTES_MAX, STEP_TIMEOUT_SECONDS_MAX, Step, StepForm, StepKind,
    StepType,
};

/// The one `apiVersion` there is.
pub const API_VERSION: &str = "punching-fist.io/v1alpha1";
/// The one `kind` there is.
pub const KIND: &str = "Workflow";
/// The annotation whose changed value runs an already executed Workflow once more.
pub const RERUN_ANNOTATION: &str = "punching-fist.io/rerun";

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

impl Spec {
    /// The spec in canonical form, as a start fact carries it.
    ///
    /// # Errors
    /// Where it could not be read again ([`Json::of`]); admission refuses such a spec.
    pub fn carried(&self) -> Result<Json<Value>, serde_json::Error> {
        Json::of(&serde_json::to_value(self)?)
    }
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
                 "mode": "propose", "env": {"X": "1"}, "resources": {"limits": {"cpu": "1"}}, "run_as_user": 1000},
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
    fn an_mcp_server_is_a_tool_where_its_name_can_be_one() {
        let longest = format!("mcp:{}", "a".repeat(32));
        for name in ["mcp:git", "mcp:Tickets_2-eu", longest.as_str()] {
            assert_eq!(name.parse::<Tool>().unwrap().to_string(), name);
        }
        let too_long = format!("{longest}a");
        for name in [
            "mcp:",
            "mcp:a b",
            "mcp:a.b",
            "mcp:a:b",
            "mcp:gît",
            too_long.as_str(),
        ] {
            let error = name.parse::<Tool>().unwrap_err();
            assert!(
                error.contains("is not an MCP server's name: use 1 to 32 letters"),
                "{error}"
            );
        }
        assert!("mcp".parse::<Tool>().unwrap_err().contains("mcp:<server>"));
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
