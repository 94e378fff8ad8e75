//! What becomes of one task: settled already, refused, or investigated; and then a `done` fact.
//!
//! Invariants:
//! - Nothing is asked of a model for an attempt that has a `done` fact, or for an execution that has ended.
//! - A task that comes again goes on from what its transcript holds.
//! - Once there is a result, a server that is away is waited for, as long as this process lives.

use std::{sync::Arc, time::Duration};

use bus::{
    Budgets, Failure, Handler, Log, LogMessage,
    runner::{Came, InHand, TaskTrace, Tasks},
};
use engine::fixgate::Gate;
use protocol::{Outcome, StepError, StepFailure, Task, Timestamp, lane::AgentWork, subjects};
use serde_json::Value;
use service::{
    Config,
    backoff::Policy,
    clock, config,
    config::{Secret, Secrets},
};
use tokio::time::Instant;

use crate::{
    agent::{
        BUDGET, Concluded, Investigation, Limits, findings::End, prompt::Opening, transcript::LogJournal,
    },
    artefacts::{Earlier, InLog},
    budget::Budget,
    kubernetes::{Investigator, KeyError, Kubernetes, OwnKey},
    llm,
    redact::Redactor,
    tools::{Surroundings, Toolbox, cut::cut, mcp},
};

/// Bytes of the alert that the model gets to see.
const ALERT_BYTES_MAX: usize = 32 * 1024;
/// The part of a step's time that is reserved for its end at most, and likewise for connecting to MCP servers.
const RESERVE_PART: u32 = 3;
/// Time that is kept for writing the result: at most this, and at most a tenth of the step's time.
const MARGIN_MAX: Duration = Duration::from_secs(2);
/// Between two times that a cluster which is away is asked for a key.
const KEY_AGAIN: Policy = Policy {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(15),
    ..Policy::PATIENT
};

/// Performs agent tasks.
pub struct Runner<L> {
    /// The tasks.
    pub tasks: Tasks<L>,
    /// The operator's limits.
    pub config: Arc<Config>,
    /// The operator's keys.
    pub secrets: Secrets,
    /// Takes out secrets.
    pub redactor: Redactor,
    /// What a fix may be.
    pub gate: Gate,
    /// What namespaces have used of their budgets, where any has one.
    pub budgets: Option<Budgets>,
    /// The cluster, for keys that workflows bring.
    pub kubernetes: Arc<Kubernetes>,
    /// The account of the kubectl tool, where it has one of its own.
    pub investigator: Option<Arc<Investigator>>,
}

impl<L: Log> Handler for Runner<L> {
    async fn handle(&self, message: LogMessage, deliveries: u64) -> Result<(), Failure> {
        let Some((task, in_hand)) = self.tasks.take(&message, deliveries).await? else {
            return Ok(());
        };
        let work: AgentWork = self.tasks.work(&task).await?;
        let _running = self.tasks.metrics.step_running("agent");
        let trace = self.tasks.trace(&task);
        let came = Box::pin(self.attempt(&task, &work, &in_hand, &trace)).await;
        trace.end(self.tasks.log.now(), |span| {
            span.name = format!("invoke_agent {}", task.step);
            span.attributes = vec![
                ("gen_ai.operation.name", "invoke_agent".into()),
                ("gen_ai.agent.name", task.step.as_str().into()),
                ("fist.runner", self.tasks.instance.as_str().into()),
            ];
            span.error = match &came {
                Ok(came) => came.outcome.failure().map(|failure| failure.as_str().to_owned()),
                Err(_) => Some("put_off".to_owned()),
            };
        });
        let came = came?;
        self.tasks.write_done(&task, came).await.map(drop)
    }

    async fn poisoned(&self, message: LogMessage, trials: u64) -> Result<(), Failure> {
        self.tasks.poisoned(&message, trials).await
    }
}

impl<L: Log> Runner<L> {
    async fn attempt(
        &self,
        task: &Task,
        work: &AgentWork,
        in_hand: &InHand,
        trace: &TaskTrace,
    ) -> Result<Came, Failure> {
        let started_at = self.tasks.log.now();
        let own_key = match self.own_key(task, work, in_hand).await? {
            Ok(own_key) => own_key,
            Err(came) => return Ok(Came { started_at, ..came }),
        };
        let servers = mcp::named(&work.tools, &self.config.tools.mcp);
        let secrets = servers.iter().flatten().flat_map(mcp::Named::secrets);
        let redactor = self.redactor(work, own_key.as_ref());
        let redactor = &secrets.fold(redactor, |redactor, secret| redactor.and(secret));
        let failed = |message: String| {
            Ok(Came {
                started_at,
                ..self.tasks.failed(StepFailure::Agent, redactor.text(&message))
            })
        };
        let (llm, secrets) = (&self.config.llm, &self.secrets);
        let choice = match llm::from_config(&work.llm_config, llm, secrets, own_key.as_ref()) {
            Ok(choice) => choice,
            Err(error) => return failed(error.to_string()),
        };
        let namespace = match work.fix_namespace.as_str() {
            "" => task.namespace.as_str(),
            namespace => namespace,
        };
        let agent = &self.config.agent;
        let earlier: Arc<dyn Earlier> = Arc::new(InLog {
            log: self.tasks.log.clone(),
            blobs: self.tasks.blobs.clone(),
            namespace: task.namespace.clone(),
            execution: task.execution,
            steps: work.earlier.clone(),
        });
        let toolbox = Toolbox::from_config(
            &work.tools,
            &Surroundings {
                tools: &self.config.tools,
                output_bytes_max: agent.tool_output_bytes_max,
                timeout_ms: agent.tool_timeout_ms,
                env: &work.env,
                namespace,
                investigator: self.investigator.as_ref(),
                earlier: Some(&earlier),
                redactor,
            },
        );
        let (mut toolbox, servers) = match (toolbox, servers) {
            (Ok(toolbox), Ok(servers)) => (toolbox, servers),
            (Err(reason), _) | (_, Err(reason)) => return failed(reason),
        };
        // Servers that cannot be reached leave most of a short step to the tools that there are.
        let time = task.deadline.since(self.tasks.log.now()) / RESERVE_PART;
        tokio::select! {
            tools = mcp::connect(servers, redactor, time) => toolbox.add(tools),
            // The investigation finds that itself, and says so.
            () = in_hand.cancelled.cancelled() => {}
            () = self.tasks.shutdown.cancelled() => return Err(Failure::retry("the runner is shutting down")),
        }
        let limits = self.limits(task, &choice);
        let goal = redactor.text(&work.goal);
        let alert = work.alert.as_ref().map(|alert| shown_alert(alert, redactor));
        let journal = LogJournal {
            log: &self.tasks.log,
            blobs: &self.tasks.blobs,
            task,
        };
        let transcript_ref =
            subjects::attempt_turns_filter(&task.namespace, task.execution, &task.step, task.attempt);
        let price = self.config.prices.get(choice.provider.model()).copied();
        let budget = agent
            .budget_of(task.namespace.as_str())
            .zip(self.budgets.as_ref());
        let budget = budget.map(|(limit_tokens, budgets)| Budget {
            ledger: budgets,
            task,
            limit_tokens,
            exhausted: agent.budget_exhausted,
            price,
            metrics: &self.tasks.metrics,
            began: (clock::now(), Instant::now()),
        });
        let investigation = Investigation {
            provider: choice.provider.as_ref(),
            toolbox: &toolbox,
            journal: &journal,
            redactor,
            metrics: &self.tasks.metrics,
            trace: Some(trace),
            opening: Opening {
                goal: &goal,
                alert: alert.as_deref(),
                at: task.dispatched_at.to_string(),
                namespace,
                turns_max: limits.turns_max,
                calls_max: limits.calls_max,
                context_bytes_max: context_bytes_max(agent),
                seed: &transcript_ref,
            },
            limits,
            budget,
            price,
            gate: &self.gate,
            fix_namespace: namespace,
            transcript_ref: transcript_ref.clone(),
            cancelled: &in_hand.cancelled,
            shutdown: &self.tasks.shutdown,
        };
        let concluded = Box::pin(investigation.run()).await?;
        self.came(task, work, concluded, redactor, started_at).await
    }

    /// The key that the workflow brings, if it does; or how the attempt ends without. A cluster that is away is
    /// waited for within the step's time.
    async fn own_key(
        &self,
        task: &Task,
        work: &AgentWork,
        in_hand: &InHand,
    ) -> Result<Result<Option<OwnKey>, Came>, Failure> {
        let failed = |reason, message: &str| Ok(Err(self.tasks.failed(reason, self.redactor.text(message))));
        let wanted = match llm::wanted_key(&work.llm_config, &self.config.llm, &self.secrets) {
            Ok(None) => return Ok(Ok(None)),
            Ok(Some(wanted)) => wanted,
            Err(error) => return failed(StepFailure::Agent, &error.to_string()),
        };
        let until = Instant::now() + task.deadline.since(self.tasks.log.now());
        let mut waits = KEY_AGAIN.waits();
        loop {
            let read = self
                .kubernetes
                .api_key(task.namespace.as_str(), &wanted.secret, wanted.variable);
            let reason = match read.await {
                Ok(own_key) => return Ok(Ok(Some(own_key))),
                Err(KeyError::Refused(reason)) => return failed(StepFailure::Agent, &reason),
                Err(KeyError::Away(reason)) => reason,
            };
            tracing::warn!(reason, "waiting for the cluster");
            let next = Instant::now() + waits.next_wait();
            if next + MARGIN_MAX >= until {
                return failed(StepFailure::Infrastructure, &reason);
            }
            tokio::select! {
                () = in_hand.cancelled.cancelled() => {
                    return failed(StepFailure::Cancelled, "the execution was cancelled");
                }
                () = self.tasks.shutdown.cancelled() => {
                    return Err(Failure::retry("the runner is shutting down"));
                }
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// What is taken out of this attempt's texts: also the workflow's own key, and its variables that the operator marked.
    fn redactor(&self, work: &AgentWork, own_key: Option<&OwnKey>) -> Redactor {
        let marked = work.env.iter().filter_map(|(name, value)| {
            let is_marked = self.config.tools.redact_env.contains(name);
            value.as_str().filter(|_| is_marked).map(Secret::new)
        });
        let own_key = own_key.map(|own| own.key.clone());
        marked
            .chain(own_key)
            .fold(self.redactor.clone(), |redactor, secret| redactor.and(&secret))
    }

    fn limits(&self, task: &Task, choice: &llm::Choice) -> Limits {
        let agent = &self.config.agent;
        let count = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        // A workflow may ask for less, never for more.
        let least = |asked: Option<u32>, allowed: u64| asked.unwrap_or(u32::MAX).min(count(allowed)).max(1);
        let whole = task.deadline.since(task.dispatched_at);
        let reserve = reserve(agent.reserve_ms, whole);
        let reserve_ms = i64::try_from(reserve.as_millis()).unwrap_or(i64::MAX);
        Limits {
            turns_max: least(choice.turns_max, agent.turns_max),
            calls_max: count(agent.tool_calls_max),
            tokens_max: agent.tokens_max,
            output_tokens_max: least(choice.output_tokens_max, agent.turn_output_tokens_max),
            deadline: Instant::now() + task.deadline.since(self.tasks.log.now()),
            reserve,
            reserve_begins: Timestamp::from_millis(task.deadline.as_millis().saturating_sub(reserve_ms)),
            margin: margin(whole),
        }
    }

    async fn came(
        &self,
        task: &Task,
        work: &AgentWork,
        concluded: Concluded,
        redactor: &Redactor,
        started_at: Timestamp,
    ) -> Result<Came, Failure> {
        let outcome = match &concluded.end {
            End::Submitted => Outcome::Succeeded,
            End::Short { reason, message } => {
                let failure = match *reason {
                    "cancelled" => StepFailure::Cancelled,
                    "time" => StepFailure::Timeout,
                    _ => StepFailure::Agent,
                };
                // A budget that is spent before the first answer is an outcome, too: nothing went wrong.
                let has_outcome = concluded.turns > 0 || *reason == BUDGET;
                let is_failure = failure == StepFailure::Cancelled || work.fail_on_timeout || !has_outcome;
                let message = match failure {
                    StepFailure::Timeout if concluded.turns == 0 => {
                        format!(
                            "timed out after {}, before the model had answered once: {message}",
                            task.timeout
                        )
                    }
                    StepFailure::Timeout => format!("timed out after {}: {message}", task.timeout),
                    _ => message.clone(),
                };
                match is_failure {
                    true => Outcome::Failed(StepError {
                        reason: failure,
                        message: redactor.text(&message),
                    }),
                    false => Outcome::Succeeded,
                }
            }
        };
        // Findings were redacted as they were recorded; texts that are our own may quote a provider.
        let output = match (concluded.turns, &outcome) {
            (0, Outcome::Failed(_)) => None,
            _ => {
                let body = self.tasks.body(redactor.value(&concluded.output), preview).await;
                // The task comes again then: the transcript holds all that it takes to conclude the same.
                Some(body.map_err(|not_stored| not_stored.error)?)
            }
        };
        Ok(Came {
            outcome,
            output,
            started_at,
        })
    }
}

/// The alert as the model gets to see it.
pub fn shown_alert(alert: &Value, redactor: &Redactor) -> String {
    let shown = serde_json::to_string_pretty(&redactor.value(alert)).unwrap_or_default();
    cut(shown, ALERT_BYTES_MAX)
}

/// How long before its end a step of this length calls the last turn.
pub fn reserve(configured_ms: u64, whole: Duration) -> Duration {
    Duration::from_millis(configured_ms).min(whole / RESERVE_PART)
}

/// How long before its end a step of this length has its result.
pub fn margin(whole: Duration) -> Duration {
    MARGIN_MAX.min(whole / 10)
}

/// Bytes of results that one request carries.
pub(crate) fn context_bytes_max(agent: &config::Agent) -> usize {
    agent.context_tokens_max.saturating_mul(llm::TOKEN_BYTES)
}

/// The same output with long texts cut and long lists shortened, at most `bytes_max` of JSON.
fn preview(output: &Value, bytes_max: usize) -> Value {
    let mut text_bytes_max = 8 * 1024;
    let mut items_max = 64;
    loop {
        let preview = shortened(output, text_bytes_max, items_max);
        // Escapes can make text six times as long, so the limits are found by trying.
        if items_max == 0 || preview.to_string().len() <= bytes_max {
            return preview;
        }
        text_bytes_max /= 2;
        items_max /= 2;
    }
}

fn shortened(value: &Value, text_bytes_max: usize, items_max: usize) -> Value {
    match value {
        Value::String(text) => Value::String(cut(text.clone(), text_bytes_max)),
        Value::Array(items) => items
            .iter()
            .take(items_max)
            .map(|item| shortened(item, text_bytes_max, items_max))
            .collect(),
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .map(|(key, value)| (key.clone(), shortened(value, text_bytes_max, items_max)))
                .collect(),
        ),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_preview_keeps_the_shape_and_fits() {
        let output = json!({
            "summary": "\"".repeat(20_000), "confidence": 0.5,
            "findings": (0..500).map(|n| format!("{n} {}", "x".repeat(500))).collect::<Vec<_>>(),
        });
        let preview = preview(&output, 32 * 1024);
        assert!(preview.to_string().len() <= 32 * 1024);
        assert_eq!(preview["confidence"], 0.5);
        assert!(
            preview["findings"]
                .as_array()
                .is_some_and(|findings| !findings.is_empty())
        );
    }
}
