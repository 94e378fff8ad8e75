//! What an agent may look at. A tool is one file here, and one line in [`TOOLS`]; those of MCP servers come by [`mcp`].
//!
//! Invariants:
//! - Tools read; none changes anything.
//! - Every call goes through [`Toolbox::call`]: checked against its schema, bounded in time and size, redacted.
//! - A failed call is a result that the model sees, never a failed step.

pub mod curl;
pub mod cut;
pub mod kubectl;
pub mod logs;
pub mod mcp;
pub mod network;
pub mod promql;
pub mod query_api;
pub mod read_file;
pub mod read_more;
pub mod schema;
pub mod series;
pub mod submit_findings;
pub(crate) mod window;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use serde_json::{Map, Value};
use service::{Metrics, config};

use crate::{
    artefacts::Earlier,
    kubernetes::Investigator,
    llm::{MALFORMED, ToolSpec},
    redact::{MARK, Redactor},
};

/// Something that an agent can call.
pub trait Tool: Send + Sync {
    /// What it does and when to use it, for the model.
    fn description(&self) -> String;
    /// JSON Schema of its arguments.
    fn schema(&self) -> Value;
    /// Why it would not make this call, as far as that shows without making it: recorded tools refuse it too.
    ///
    /// # Errors
    /// The refusal.
    fn check(&self, _arguments: &Value) -> Result<(), ToolError> {
        Ok(())
    }
    /// Its own bounds of a call, where they are not the agent's.
    fn limits(&self) -> Option<CallLimits> {
        None
    }
    /// Does it. The arguments fit the schema. Bounded in time by the caller, who drops the future.
    fn call<'a>(&'a self, arguments: &'a Value) -> BoxFuture<'a, Result<String, ToolError>>;
}

/// The bounds of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallLimits {
    /// Until it is stopped.
    pub timeout: Duration,
    /// Bytes of a result that are kept.
    pub output_bytes_max: usize,
}

/// Why a call gave nothing. The text is for the model: what is wrong, and what to do instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolError {
    /// It is not allowed; nothing was done.
    Refused(String),
    /// It was tried and failed.
    Failed(String),
}

/// What a tool is made from.
pub struct Surroundings<'a> {
    /// The operator's limits.
    pub tools: &'a config::Tools,
    /// Bytes of a result that are kept.
    pub output_bytes_max: usize,
    /// Milliseconds of one call.
    pub timeout_ms: u64,
    /// The workflow's environment.
    pub env: &'a Map<String, Value>,
    /// The alert's namespace, else the workflow's.
    pub namespace: &'a str,
    /// The account that kubectl runs as, where it has one of its own.
    pub investigator: Option<&'a Arc<Investigator>>,
    /// What the steps before this one left; `None` where the task does not say.
    pub earlier: Option<&'a Arc<dyn Earlier>>,
    /// Takes out secrets, for a tool that has to do so before it cuts.
    pub redactor: &'a Redactor,
}

/// How the result of a call begins that took too long.
pub const STOPPED: &str = "stopped: ";
/// Bytes of a result that are kept for [`read_more`], beyond what is shown.
const WHOLE_BYTES_MAX: usize = 1 << 20;
/// Bytes of a call's arguments that the service's log shows.
const LOGGED_BYTES_MAX: usize = 500;

type Make = fn(&Surroundings<'_>) -> Result<Box<dyn Tool>, String>;

/// Every tool by the name that workflows use.
const TOOLS: [(&str, Make); 5] = [
    ("kubectl", kubectl::make),
    ("promql", promql::make),
    ("curl", curl::make),
    ("logs", logs::make),
    (read_file::NAME, read_file::make),
];

/// The tools of one step.
pub struct Toolbox {
    tools: Vec<(String, Box<dyn Tool>)>,
    limits: CallLimits,
}

/// What a call gave, as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// Redacted and cut.
    pub text: String,
    /// Redacted, all that is kept, where `text` is a part of it.
    pub whole: Option<String>,
    /// Whether it failed or was refused.
    pub is_error: bool,
    /// `ok`, `refused`, `failed`, `timeout`, for the metrics.
    pub outcome: &'static str,
}

impl Toolbox {
    /// The tools that a step names, but for those of MCP servers, which [`Toolbox::add`] adds.
    ///
    /// # Errors
    /// A name that is no tool, or a tool that cannot be set up.
    pub fn from_config(names: &[String], surroundings: &Surroundings<'_>) -> Result<Self, String> {
        let mut tools = Vec::new();
        let own = names.iter().filter(|name| !name.starts_with(mcp::PREFIX));
        for name in own.collect::<BTreeSet<_>>() {
            let (name, make) = TOOLS.iter().find(|(known, _)| known == name).ok_or_else(|| {
                let known: Vec<&str> = TOOLS.iter().map(|(name, _)| *name).collect();
                format!(
                    "there is no tool `{name}`: use {}, mcp:<server>",
                    known.join(", ")
                )
            })?;
            let tool =
                make(surroundings).map_err(|reason| format!("the tool `{name}` cannot be used: {reason}"))?;
            tools.push(((*name).to_owned(), tool));
        }
        Ok(Self {
            tools,
            limits: CallLimits {
                timeout: Duration::from_millis(surroundings.timeout_ms),
                output_bytes_max: surroundings.output_bytes_max,
            },
        })
    }

    /// The same tools, each in the hands of what `wrap` makes of it: an evaluation answers from its recording.
    pub fn wrapped(self, wrap: impl Fn(&str, Box<dyn Tool>) -> Box<dyn Tool>) -> Self {
        let tools = self.tools.into_iter();
        Self {
            tools: tools
                .map(|(name, tool)| {
                    let wrapped = wrap(&name, tool);
                    (name, wrapped)
                })
                .collect(),
            ..self
        }
    }

    /// Adds tools by the names that models call them by.
    pub fn add(&mut self, tools: Vec<(String, Box<dyn Tool>)>) {
        self.tools.extend(tools);
    }

    /// These tools, for tests.
    #[cfg(test)]
    pub fn of(tools: Vec<(&'static str, Box<dyn Tool>)>, timeout: Duration) -> Self {
        Self {
            tools: tools
                .into_iter()
                .map(|(name, tool)| (name.to_owned(), tool))
                .collect(),
            limits: CallLimits {
                timeout,
                output_bytes_max: 32 * 1024,
            },
        }
    }

    /// Bytes of one result that the model is shown.
    pub fn output_bytes_max(&self) -> usize {
        self.limits.output_bytes_max
    }

    /// The tools as a model sees them, without the ending.
    pub fn specs(&self) -> Vec<ToolSpec> {
        let spec = |(name, tool): &(String, Box<dyn Tool>)| ToolSpec {
            name: name.clone(),
            description: tool.description(),
            schema: tool.schema(),
        };
        self.tools.iter().map(spec).collect()
    }

    /// Makes a call, within the step's remaining time. The arguments are redacted already: they go to the log.
    pub async fn call(
        &self,
        name: &str,
        arguments: &Value,
        time_left: Duration,
        redactor: &Redactor,
        metrics: &Metrics,
    ) -> Given {
        let begun = Instant::now();
        let known = self.tools.iter().find(|(known, _)| known == name);
        let limits = known.and_then(|(_, tool)| tool.limits()).unwrap_or(self.limits);
        let time = limits.timeout.min(time_left);
        let (outcome, text) = match self.attempt(name, arguments, time).await {
            Ok(text) => ("ok", text),
            Err((outcome, text)) => (outcome, text),
        };
        // Redacted whole and cut afterwards: half a secret at the edge of a cut would not be recognised.
        let whole = cut::cut(redactor.text(&text), WHOLE_BYTES_MAX);
        let text = cut::cut(whole.clone(), limits.output_bytes_max);
        let whole = (text != whole).then_some(whole);
        let label = known.map_or("unknown", |(known, _)| known.as_str());
        metrics.tool_call(label, outcome, begun.elapsed());
        let shown = cut::cut(arguments.to_string(), LOGGED_BYTES_MAX);
        let (bytes, ms) = (text.len(), begun.elapsed().as_millis());
        tracing::info!(tool = label, arguments = shown, outcome, bytes, ms, "tool called");
        Given {
            text: if text.is_empty() {
                "(no output)".to_owned()
            } else {
                text
            },
            whole,
            is_error: outcome != "ok",
            outcome,
        }
    }

    async fn attempt(
        &self,
        name: &str,
        arguments: &Value,
        time: Duration,
    ) -> Result<String, (&'static str, String)> {
        let refused = |text: String| ("refused", format!("refused: {text}"));
        let Some((_, tool)) = self.tools.iter().find(|(known, _)| known == name) else {
            let known: Vec<&str> = self.tools.iter().map(|(name, _)| name.as_str()).collect();
            return Err(refused(format!(
                "there is no such tool; there are {}, submit_findings",
                known.join(", ")
            )));
        };
        if arguments.get(MALFORMED).is_some() {
            return Err(refused(
                "the arguments were not one complete JSON object; nothing was run. Call again with valid JSON".to_owned(),
            ));
        }
        let problems = schema::problems(&tool.schema(), arguments);
        if !problems.is_empty() {
            return Err(refused(format!("{}; nothing was run", problems.join("; "))));
        }
        if arguments.to_string().contains(MARK) {
            return Err(refused(
                "the arguments hold a redacted value, which cannot be used".to_owned(),
            ));
        }
        match tokio::time::timeout(time, tool.call(arguments)).await {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(ToolError::Refused(text))) => Err(refused(text)),
            Ok(Err(ToolError::Failed(text))) => Err(("failed", format!("failed: {text}"))),
            Err(_) => Err((
                "timeout",
                format!(
                    "{STOPPED}the call took longer than {:.1} s; ask for less",
                    time.as_secs_f64()
                ),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;
    use crate::redact::untagged;

    struct Slow;

    impl Tool for Slow {
        fn description(&self) -> String {
            String::new()
        }

        fn schema(&self) -> Value {
            json!({"type": "object", "properties": {"say": {"type": "string"}}, "additionalProperties": false})
        }

        fn call<'a>(&'a self, arguments: &'a Value) -> BoxFuture<'a, Result<String, ToolError>> {
            Box::pin(async {
                match arguments["say"].as_str() {
                    Some(text) => Ok(text.to_owned()),
                    None => std::future::pending().await,
                }
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_call_is_checked_bounded_and_redacted() {
        let mut toolbox = Toolbox::of(vec![("slow", Box::new(Slow))], Duration::from_secs(30));
        toolbox.limits.output_bytes_max = 200;
        let redactor = Redactor::new(&[], []).unwrap();
        let metrics = Metrics::new();
        let call = async |name: &str, arguments: Value, left: u64| {
            let given = toolbox
                .call(name, &arguments, Duration::from_secs(left), &redactor, &metrics)
                .await;
            format!("{}: {}", given.outcome, untagged(&given.text))
        };
        assert_eq!(
            call("slow", json!({"say": "password=hunter2"}), 60).await,
            "ok: password=[REDACTED:value]"
        );
        assert_eq!(
            call(
                "slow",
                json!({"say": format!("{} password=hunter2", "x".repeat(300))}),
                60
            )
            .await,
            format!(
                "ok: {}\n[… 131 bytes left out here …]\n{} password=[REDACTED:value]",
                "x".repeat(134),
                "x".repeat(35)
            )
        );
        assert_eq!(call("slow", json!({"say": ""}), 60).await, "ok: (no output)");
        assert!(
            call("slow", json!({}), 60)
                .await
                .starts_with("timeout: stopped: the call took longer than 30.0 s")
        );
        assert!(call("slow", json!({}), 5).await.contains("5.0 s"));
        assert!(
            call("slow", json!({"sya": "x"}), 60)
                .await
                .starts_with("refused: refused: there is no `sya`")
        );
        assert!(
            call("slow", json!({MALFORMED: "{"}), 60)
                .await
                .contains("not one complete JSON object")
        );
        assert!(
            call("slow", json!({"say": "[REDACTED:value]"}), 60)
                .await
                .contains("redacted value")
        );
        assert!(
            call("rm", json!({}), 60)
                .await
                .contains("there is no such tool; there are slow, submit_findings")
        );
        let text = metrics.encode();
        assert!(
            text.contains("fist_tool_calls_total{tool=\"slow\",outcome=\"refused\"} 3"),
            "{text}"
        );
    }

    #[test]
    fn every_tool_is_made_by_its_name_and_has_a_schema_that_is_checked() {
        let config = service::Config::default();
        let surroundings = Surroundings {
            tools: &config.tools,
            output_bytes_max: 1000,
            timeout_ms: 1000,
            env: &Map::new(),
            namespace: "prod",
            investigator: None,
            earlier: None,
            redactor: &Redactor::new(&[], []).unwrap(),
        };
        let names: Vec<String> = TOOLS.iter().map(|(name, _)| (*name).to_owned()).collect();
        let toolbox = Toolbox::from_config(&names, &surroundings).unwrap();
        for spec in toolbox.specs() {
            schema::assert_known(&spec.schema);
            assert!(spec.description.len() > 40, "{}", spec.name);
        }
        let error = Toolbox::from_config(&["ssh".to_owned()], &surroundings)
            .err()
            .unwrap();
        assert_eq!(
            error,
            "there is no tool `ssh`: use kubectl, promql, curl, logs, read_file, mcp:<server>"
        );
    }
}
