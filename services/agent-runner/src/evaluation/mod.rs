//! Evaluations: the real loop on recorded answers of tools, and a score of what comes out.
//!
//! Invariants:
//! - The loop, redaction, grounding and the fix gate are the ones that a step has; only tools and journal differ.
//! - No tool reaches anything: all of them answer from the case.
//! - A script plays a model here, so its fix is judged as a model's. Only the type that does so, which is private,
//!   hides that it is a script; a step cannot get it.

pub mod case;
pub mod recording;
pub mod score;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bus::{Blobs, Failure};
use engine::fixgate::{Gate, GateContext};
use futures_util::future::BoxFuture;
use protocol::{BlobRef, live::Live};
use serde::Serialize;
use serde_json::{Map, Value, json};
use service::{Config, Metrics, clock, config::Secrets};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    agent::{
        Investigation, Limits,
        prompt::Opening,
        transcript::{Journal, Point},
    },
    llm::{self, Answer, LlmError, Provider, Request, scripted},
    redact::Redactor,
    runner,
    tools::{Surroundings, Toolbox, mcp, submit_findings},
};
use case::{Case, Fix, Problem};
use recording::{FromRecording, Recording};
use score::{Came, Criterion, score};

/// The name under which a script plays a model.
const AS_MODEL: &str = "a script as the model";
/// Bytes of the largest script that is read.
const SCRIPT_BYTES_MAX: u64 = 1 << 20;

/// Which model is evaluated; what is absent is the configuration's.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// `anthropic`, `openai` or `scripted`.
    pub provider: Option<String>,
    /// The model; of `scripted` a file of `llm.scripted_dir`, without one each case's own script.
    pub model: Option<String>,
    /// The address, which the operator's key is sent to.
    pub endpoint: Option<String>,
}

/// Runs cases.
pub struct Evaluator {
    config: Config,
    secrets: Secrets,
    redactor: Redactor,
    gate: Gate,
    asked: Asked,
    metrics: Metrics,
}

/// A case that can be run.
pub struct Ready {
    case: Case,
    provider: Box<dyn Provider>,
    toolbox: Toolbox,
    recording: Arc<Recording>,
    output_tokens_max: Option<u32>,
}

impl Ready {
    /// The case's name.
    pub fn name(&self) -> &str {
        &self.case.name
    }
}

/// What became of one case.
#[derive(Clone, Debug, Serialize)]
pub struct CaseReport {
    /// The case's name.
    pub case: String,
    /// Its file.
    pub file: String,
    /// What it is about.
    pub description: String,
    /// Whether every criterion is met.
    pub passed: bool,
    /// Criteria that are met.
    pub met: usize,
    /// All of them.
    pub criteria: Vec<Criterion>,
    /// Answers of the model.
    pub turns: u32,
    /// Tool calls.
    pub calls: u32,
    /// Calls that nothing was recorded for.
    pub unrecorded: u32,
    /// The first of them.
    pub unrecorded_calls: Vec<String>,
    /// Milliseconds that it took.
    pub duration_ms: u64,
    /// The investigation's output, as a step's.
    pub output: Value,
}

impl Evaluator {
    /// With the operator's configuration and keys.
    ///
    /// # Errors
    /// What is wrong with `tools.redact` or `fix.verbs`.
    pub fn new(mut config: Config, secrets: Secrets, asked: Asked) -> Result<Self, String> {
        let own = [&secrets.anthropic_api_key, &secrets.openai_api_key];
        let redactor = Redactor::new(&config.tools.redact, own.into_iter().flatten())?;
        let gate = Gate::new(&config.fix.verbs, &config.fix.allowed_namespaces)
            .map_err(|reason| format!("fix.verbs: {reason}"))?;
        // Who types an address is the operator, and means it.
        config.llm.allowed_endpoints.extend(asked.endpoint.clone());
        Ok(Self {
            config,
            secrets,
            redactor,
            gate,
            asked,
            metrics: Metrics::new(),
        })
    }

    /// Makes a case ready to run.
    ///
    /// # Errors
    /// Everything that keeps it from running, with the field and the remedy.
    pub fn ready(&self, case: Case) -> Result<Ready, Vec<Problem>> {
        let mut wrong = self.refused_fixes(&case);
        let recording = Arc::new(Recording::new(case.answers.clone()));
        wrong.extend(case.tools.iter().filter(|tool| tool.starts_with(mcp::PREFIX)).map(|tool| {
            let message = format!(
                "tools of MCP servers cannot be evaluated: leave `{tool}` out, with the answers of its tools"
            );
            ("tools", message)
        }));
        let toolbox = self
            .toolbox(&case, &recording)
            .map_err(|message| wrong.push(("tools", message)))
            .ok();
        let choice = self.choice(&case).map_err(|reason| wrong.push(reason)).ok();
        match (toolbox, choice) {
            (Some(toolbox), Some((provider, output_tokens_max))) if wrong.is_empty() => Ok(Ready {
                case,
                provider,
                toolbox,
                recording,
                output_tokens_max,
            }),
            _ => {
                let problem = |(field, message): (&str, String)| Problem {
                    file: case.file.clone(),
                    field: field.to_owned(),
                    message,
                };
                Err(wrong.into_iter().map(problem).collect())
            }
        }
    }

    /// Expected fixes that could never be right here.
    fn refused_fixes(&self, case: &Case) -> Vec<(&'static str, String)> {
        let Some(Fix::AnyOf(commands)) = &case.expect.fix else {
            return Vec::new();
        };
        let context = GateContext {
            namespace: &case.namespace,
            provenance: None,
        };
        let refused = commands.iter().filter_map(|command| {
            let refusal = self.gate.check(command, &context).err()?;
            Some((
                "expect.fix",
                format!(
                    "the fix gate refuses `{command}`, so that no investigation could be right: {refusal}"
                ),
            ))
        });
        refused.collect()
    }

    fn toolbox(&self, case: &Case, recording: &Arc<Recording>) -> Result<Toolbox, String> {
        let agent = &self.config.agent;
        // The real tools describe themselves only; none of them is called, so any address will do.
        let env = Map::from_iter([("PROMETHEUS_URL".to_owned(), json!("http://prometheus.invalid"))]);
        let real = Toolbox::from_config(
            &case.tools,
            &Surroundings {
                tools: &self.config.tools,
                output_bytes_max: agent.tool_output_bytes_max,
                timeout_ms: agent.tool_timeout_ms,
                env: &env,
                namespace: &case.namespace,
                investigator: None,
                earlier: None,
                redactor: &self.redactor,
            },
        )?;
        Ok(real.wrapped(|name, real| {
            Box::new(FromRecording {
                name: name.to_owned(),
                real,
                recording: Arc::clone(recording),
            })
        }))
    }

    /// Who answers, and the most tokens of one answer; or the field that is wrong.
    fn choice(&self, case: &Case) -> Result<Choice, (&'static str, String)> {
        let llm = &self.config.llm;
        let provider = self.asked.provider.as_deref().or(llm.default_provider.as_deref());
        if provider == Some(scripted::NAME) && self.asked.model.is_none() {
            let script = played(case).map_err(|message| ("script", message))?;
            return Ok((Box::new(script), None));
        }
        let given = [
            ("provider", &self.asked.provider),
            ("model", &self.asked.model),
            ("endpoint", &self.asked.endpoint),
        ];
        let asked: Map<String, Value> = given
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), json!(value.as_ref()?))))
            .collect();
        let chosen =
            llm::from_config(&asked, llm, &self.secrets, None).map_err(|error| ("", error.to_string()))?;
        let provider: Box<dyn Provider> = match chosen.provider.name() {
            scripted::NAME => Box::new(AsModel(chosen.provider)),
            _ => chosen.provider,
        };
        Ok((provider, chosen.output_tokens_max))
    }

    /// Runs a case, and scores what comes out.
    ///
    /// # Errors
    /// What keeps this process from working; a model that fails is an outcome.
    pub async fn run(&self, ready: &Ready) -> Result<CaseReport, String> {
        let begun = Instant::now();
        let case = &ready.case;
        let journal = InMemory::new();
        let goal = self.redactor.text(&case.goal);
        let alert = case
            .alert
            .as_ref()
            .map(|alert| runner::shown_alert(alert, &self.redactor));
        let limits = self.limits(case.timeout, ready.output_tokens_max);
        let never = CancellationToken::new();
        let investigation = Investigation {
            provider: ready.provider.as_ref(),
            toolbox: &ready.toolbox,
            journal: &journal,
            redactor: &self.redactor,
            metrics: &self.metrics,
            trace: None,
            opening: Opening {
                goal: &goal,
                alert: alert.as_deref(),
                at: case.at.unwrap_or_else(clock::now).to_string(),
                namespace: &case.namespace,
                turns_max: limits.turns_max,
                calls_max: limits.calls_max,
                context_bytes_max: runner::context_bytes_max(&self.config.agent),
                seed: &case.file,
            },
            limits,
            budget: None,
            price: self.config.prices.get(ready.provider.model()).copied(),
            gate: &self.gate,
            fix_namespace: &case.namespace,
            transcript_ref: case.file.clone(),
            cancelled: &never,
            shutdown: &never,
        };
        let concluded = Box::pin(investigation.run())
            .await
            .map_err(|failure| failure.to_string())?;
        let output = self.redactor.value(&concluded.output);
        let calls = journal.calls();
        let unrecorded = ready.recording.unrecorded();
        let criteria = score(
            case,
            &Came {
                output: &output,
                turns: concluded.turns,
                calls,
                unrecorded: &unrecorded,
            },
        );
        let met = criteria.iter().filter(|criterion| criterion.passed).count();
        Ok(CaseReport {
            case: case.name.clone(),
            file: case.file.clone(),
            description: case.description.clone(),
            passed: met == criteria.len(),
            met,
            criteria,
            turns: concluded.turns,
            calls,
            unrecorded: unrecorded.count,
            unrecorded_calls: unrecorded.calls,
            duration_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            output,
        })
    }

    /// The bounds of a step that has this long.
    fn limits(&self, whole: Duration, output_tokens_max: Option<u32>) -> Limits {
        let agent = &self.config.agent;
        let count = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let reserve = runner::reserve(agent.reserve_ms, whole);
        Limits {
            turns_max: count(agent.turns_max).max(1),
            calls_max: count(agent.tool_calls_max),
            tokens_max: agent.tokens_max,
            output_tokens_max: output_tokens_max
                .unwrap_or(u32::MAX)
                .min(count(agent.turn_output_tokens_max))
                .max(1),
            deadline: Instant::now() + whole,
            reserve,
            reserve_begins: clock::now().after(whole.saturating_sub(reserve)),
            margin: runner::margin(whole),
        }
    }
}

type Choice = (Box<dyn Provider>, Option<u32>);

/// The case's own script, in the model's place.
fn played(case: &Case) -> Result<AsModel, String> {
    let path = case.script.as_ref().ok_or_else(|| {
        "is missing: name the file of turns that plays the model, or evaluate another provider".to_owned()
    })?;
    let cannot = |reason: String| format!("{}: {reason}", path.display());
    let bytes = std::fs::metadata(path)
        .map_err(|error| cannot(format!("cannot be read: {error}")))?
        .len();
    if bytes > SCRIPT_BYTES_MAX {
        return Err(cannot(format!(
            "has {bytes} bytes, and a script may have {SCRIPT_BYTES_MAX}"
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|error| cannot(format!("cannot be read: {error}")))?;
    let script = scripted::Scripted::parse(&case.name, &text).map_err(cannot)?;
    Ok(AsModel(Box::new(script)))
}

/// A script that stands for a model: its findings are judged as a model's.
struct AsModel(Box<dyn Provider>);

impl Provider for AsModel {
    fn name(&self) -> &'static str {
        AS_MODEL
    }

    fn model(&self) -> &str {
        self.0.model()
    }

    fn answer<'a>(&'a self, request: &'a Request<'a>) -> BoxFuture<'a, Result<Answer, LlmError>> {
        self.0.answer(request)
    }
}

/// The record of one investigation, for as long as it runs. The loop's own limits bound it.
struct InMemory {
    points: Mutex<Vec<Point>>,
    wholes: Blobs,
}

impl InMemory {
    fn new() -> Self {
        Self {
            points: Mutex::default(),
            wholes: Blobs::in_memory(),
        }
    }

    fn points(&self) -> MutexGuard<'_, Vec<Point>> {
        self.points.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn calls(&self) -> u32 {
        let points = self.points();
        let calls = points
            .iter()
            .filter(|point| matches!(point, Point::Tool(tool) if tool.call.tool != submit_findings::NAME));
        u32::try_from(calls.count()).unwrap_or(u32::MAX)
    }
}

impl Journal for InMemory {
    fn read(&self) -> BoxFuture<'_, Result<Vec<Point>, Failure>> {
        Box::pin(async { Ok(self.points().clone()) })
    }

    fn write<'a>(&'a self, k: u32, point: &'a Point) -> BoxFuture<'a, Result<bool, Failure>> {
        Box::pin(async move {
            let mut points = self.points();
            let is_next = points.len() == k as usize;
            if is_next {
                points.push(point.clone());
            }
            Ok(is_next)
        })
    }

    fn keep(&self, text: String) -> BoxFuture<'_, Result<Option<BlobRef>, Failure>> {
        Box::pin(async { Ok(Some(self.wholes.put(text.into()).await?)) })
    }

    fn kept<'a>(&'a self, whole: &'a BlobRef) -> BoxFuture<'a, Result<Option<String>, Failure>> {
        Box::pin(async {
            let kept = self.wholes.get(whole).await?;
            Ok(kept.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
        })
    }

    fn tell(&self, _: Live) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}
