//! The loop: ask the model, run what it calls, until it submits findings or a limit is reached.
//!
//! Invariants:
//! - What happens next is a function of the record and the time; so another process can go on where one died, and
//!   neither an answer that is recorded is paid again, nor a call that has a result is run again.
//! - Every answer and every result is recorded before it is used.
//! - It ends: turns, calls, tokens and time are bounded, and the last turn offers nothing but the ending.
//! - Where the namespace has a budget, no model is asked before the call's tokens are set aside.

pub mod findings;
mod genai;
pub mod prompt;
pub mod repeats;
mod reserve;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
pub mod transcript;

use std::{future::Future, time::Duration};

use bus::{Failure, runner::TaskTrace};
use engine::fixgate::Gate;
use futures_util::StreamExt as _;
use protocol::{
    Timestamp,
    live::Live,
    turns::{ModelTurn, ToolCall, Usage},
};
use serde_json::{Value, json};
use service::{Metrics, clock, config::Price, metrics::Tokens};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    budget::{self, Budget},
    llm::{
        Answer, LlmError, LlmErrorKind, MALFORMED, Message, Provider, Request, Stop, ToolSpec, scripted, sum,
    },
    redact::Redactor,
    tools::{Given, Toolbox, cut::cut, read_more, submit_findings},
};
use findings::{End, Material, one_line};
use prompt::Opening;
use reserve::NoRoom;
use transcript::{Journal, Point, Standing, ToolPoint};

/// What is told where a result was kept whole, and is no more.
const GONE: &str = "[the whole result is kept no more; this is the part that was shown]\n";
/// Calls of one turn that run at one time.
const CALLS_AT_ONCE: usize = 4;
/// Calls that one answer may ask for; more are not looked at.
const CALLS_PER_TURN_MAX: usize = 32;
/// Bytes of one answer that are recorded; a message of the log has at most a megabyte.
const ANSWER_BYTES_MAX: usize = 512 * 1024;
/// Answers in a row that call nothing, before the investigation is ended.
const IDLE_TURNS_MAX: u32 = 3;
/// Times that the last turn is asked for: a second one mends a slip.
const LAST_TURNS_MAX: u32 = 2;
/// The reason of an end for want of a budget.
pub const BUDGET: &str = "budget";
/// Bytes that a live message shows.
const LIVE_BYTES_MAX: usize = 2000;

/// What bounds an investigation.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Answers of the model; the last is reserved for the findings.
    pub turns_max: u32,
    /// Tool calls.
    pub calls_max: u32,
    /// Tokens, read and written.
    pub tokens_max: u64,
    /// Tokens of one answer.
    pub output_tokens_max: u32,
    /// When the step must be over.
    pub deadline: Instant,
    /// So long before that, the last turn is called.
    pub reserve: Duration,
    /// The same instant by the wall clock, which the record has.
    pub reserve_begins: Timestamp,
    /// So long before the deadline, the result is to be there.
    pub margin: Duration,
}

/// One agent step.
pub struct Investigation<'a> {
    /// Who answers.
    pub provider: &'a dyn Provider,
    /// What may be called.
    pub toolbox: &'a Toolbox,
    /// Where the record is.
    pub journal: &'a dyn Journal,
    /// Takes out secrets.
    pub redactor: &'a Redactor,
    /// Counts.
    pub metrics: &'a Metrics,
    /// The trace of the run, where it is part of an execution.
    pub trace: Option<&'a TaskTrace>,
    /// The goal and what belongs to it, redacted.
    pub opening: Opening<'a>,
    /// Its bounds.
    pub limits: Limits,
    /// The namespace's budget, where it has one.
    pub budget: Option<Budget<'a>>,
    /// What the model costs, where that is known.
    pub price: Option<Price>,
    /// The fix gate, as configured.
    pub gate: &'a Gate,
    /// The namespace that a fix may touch.
    pub fix_namespace: &'a str,
    /// How the record is named in the output.
    pub transcript_ref: String,
    /// Cancelled when the execution is.
    pub cancelled: &'a CancellationToken,
    /// Cancelled when this process ends.
    pub shutdown: &'a CancellationToken,
}

/// How an investigation came out.
#[derive(Clone, Debug, PartialEq)]
pub struct Concluded {
    /// How it ended.
    pub end: End,
    /// Answers of the model.
    pub turns: u32,
    /// The step's output.
    pub output: Value,
}

/// What keeps a step of the loop from being done.
enum Interrupted {
    /// The execution was cancelled.
    Cancelled,
    /// Not our doing: somebody else goes on, or we do, later.
    Failed(Failure),
}

impl From<Failure> for Interrupted {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// What the model is asked next.
enum Next {
    /// Anything.
    Turn { until: Instant },
    /// The ending, and nothing else, for this reason.
    Last {
        reason: &'static str,
        message: String,
        until: Instant,
    },
    /// Nothing more.
    Stop(End),
}

/// How a call is answered.
enum Way {
    /// It is made.
    Call,
    /// It is not made, and this is said.
    Told(String),
    /// From the record of an earlier one.
    Read(read_more::Ask, Box<ToolPoint>),
}

impl Way {
    fn not_run(reason: &str) -> Self {
        Self::Told(format!("{}{reason}", repeats::NOT_RUN))
    }
}

/// What only this process knows: the rest is in the record.
#[derive(Default)]
struct Memory {
    /// Cost of calls that gave no answer.
    lost: Usage,
    last_turns: u32,
    /// The model could not answer in time: only the ending is left.
    is_out_of_time: bool,
    /// Why the last turn was called.
    cut_short: Option<End>,
    /// What the provider said when it failed for good.
    failed: Option<LlmError>,
    /// How the namespace's budget had no room for a call.
    no_room: Option<NoRoom>,
}

impl Investigation<'_> {
    /// Goes on from what is recorded until the end.
    ///
    /// # Errors
    /// Only what keeps this process from working; a model that fails is an outcome.
    pub async fn run(&self) -> Result<Concluded, Failure> {
        let mut points = self.journal.read().await?;
        if !points.is_empty() {
            tracing::info!(points = points.len(), "going on with what is recorded");
        }
        let mut memory = Memory::default();
        self.settle_recorded(&points, &mut memory).await?;
        let end = match self.until_end(&mut points, &mut memory).await {
            Ok(end) => end,
            Err(Interrupted::Cancelled) => {
                if let Some(budget) = &self.budget {
                    budget.abandon(Standing::of(&points).turns + 1).await;
                }
                End::Short {
                    reason: "cancelled",
                    message: "the execution was cancelled".to_owned(),
                }
            }
            Err(Interrupted::Failed(failure)) => return Err(failure),
        };
        Ok(self.conclude(&points, &memory, end))
    }

    fn conclude(&self, points: &[Point], memory: &Memory, end: End) -> Concluded {
        let standing = Standing::of(points);
        let usage = sum(standing.usage, memory.lost);
        let output = findings::output(&Material {
            points,
            submitted: standing.submitted(),
            end: &end,
            usage,
            cost_nano_usd: self.price.map(|price| budget::cost_nano_usd(price, usage)),
            turns: standing.turns,
            transcript_ref: self.transcript_ref.clone(),
            is_scripted: self.provider.name() == scripted::NAME,
            gate: self.gate,
            fix_namespace: self.fix_namespace,
        });
        Concluded {
            end,
            turns: standing.turns,
            output,
        }
    }

    async fn until_end(&self, points: &mut Vec<Point>, memory: &mut Memory) -> Result<End, Interrupted> {
        loop {
            let standing = Standing::of(points);
            if standing.submitted().is_some() {
                return Ok(self.submitted(points, memory));
            }
            if !standing.pending.is_empty() {
                let calls: Vec<ToolCall> = standing.pending.into_iter().cloned().collect();
                self.run_calls(points, calls).await?;
                continue;
            }
            match self.next(&standing, memory) {
                Next::Stop(end) => return Ok(end),
                Next::Turn { until } => self.ask(points, memory, None, until).await?,
                Next::Last {
                    reason,
                    message,
                    until,
                } => {
                    memory.last_turns += 1;
                    self.ask(points, memory, Some(&message), until).await?;
                    memory.cut_short = Some(End::Short { reason, message });
                }
            }
        }
    }

    /// Findings are there; were they asked for before the model was ready?
    fn submitted(&self, points: &[Point], memory: &mut Memory) -> End {
        if let Some(end) = memory.cut_short.take() {
            return end;
        }
        // A process that goes on after another cannot remember, but the record shows it.
        let answered = points.iter().rposition(|point| matches!(point, Point::Model(_)));
        let before = Standing::of(&points[..answered.unwrap_or(0)]);
        let was_late = Standing::of(points)
            .last
            .is_some_and(|turn| turn.at >= self.limits.reserve_begins);
        match self.last_reason(&before, was_late) {
            Some((reason, message)) => End::Short { reason, message },
            None => End::Submitted,
        }
    }

    fn out_of_turns(&self) -> End {
        End::Short {
            reason: "turns",
            message: format!("all {} turns are used", self.limits.turns_max),
        }
    }

    fn next(&self, standing: &Standing<'_>, memory: &Memory) -> Next {
        let limits = &self.limits;
        let short = |reason, message: String| Next::Stop(End::Short { reason, message });
        if let Some(error) = &memory.failed {
            return short("provider_error", error.to_string());
        }
        if let Some(NoRoom {
            message,
            is_final: true,
        }) = &memory.no_room
        {
            return short(BUDGET, message.clone());
        }
        match standing.stop() {
            Some(Stop::Declined) => {
                return short(
                    "declined",
                    "the model, or a filter of its provider, declined to go on".to_owned(),
                );
            }
            Some(Stop::ContextFull) => {
                return short("context", "the conversation no longer fits the model".to_owned());
            }
            Some(Stop::Finished | Stop::Length) | None => {}
        }
        if standing.idle_turns >= IDLE_TURNS_MAX {
            return short(
                "no_findings",
                format!(
                    "the model answered {IDLE_TURNS_MAX} times without calling a tool; it may not be able to, choose another"
                ),
            );
        }
        if memory.last_turns >= LAST_TURNS_MAX {
            return Next::Stop(memory.cut_short.clone().unwrap_or_else(|| self.out_of_turns()));
        }
        if standing.turns >= limits.turns_max {
            return Next::Stop(self.out_of_turns());
        }
        let now = Instant::now();
        let until = limits.deadline.checked_sub(limits.margin).unwrap_or(now);
        if now >= until {
            return short("time", "the time for this step is over".to_owned());
        }
        if used(standing) >= limits.tokens_max {
            return short("tokens", format!("all {} tokens are used", limits.tokens_max));
        }
        let is_late = memory.is_out_of_time || now + limits.reserve >= limits.deadline;
        let no_room = memory
            .no_room
            .as_ref()
            .map(|no_room| (BUDGET, no_room.message.clone()));
        match self.last_reason(standing, is_late).or(no_room) {
            Some((reason, message)) => Next::Last {
                reason,
                message,
                until,
            },
            None => Next::Turn {
                until: limits.deadline.checked_sub(limits.reserve).unwrap_or(until),
            },
        }
    }

    /// Why the turn after `standing` has to be the last, if it has.
    fn last_reason(&self, standing: &Standing<'_>, is_late: bool) -> Option<(&'static str, String)> {
        let limits = &self.limits;
        // A turn reads what the one before read and wrote, and writes in its turn; then the last one does so again.
        let two_turns = 2 * standing.last_input_tokens + 3 * u64::from(limits.output_tokens_max);
        if is_late {
            Some(("time", "the time for this step is nearly over".to_owned()))
        } else if standing.turns + 1 >= limits.turns_max {
            Some(("turns", format!("all {} turns are used", limits.turns_max)))
        } else if standing.calls >= limits.calls_max && limits.calls_max > 0 {
            Some((
                "tool_calls",
                format!("all {} tool calls are used", limits.calls_max),
            ))
        } else if standing.turns > 0 && used(standing) + two_turns >= limits.tokens_max {
            Some((
                "tokens",
                format!("the {} tokens are nearly used", limits.tokens_max),
            ))
        } else {
            None
        }
    }

    /// Asks the model once, and records what it answers.
    async fn ask(
        &self,
        points: &mut Vec<Point>,
        memory: &mut Memory,
        last: Option<&str>,
        until: Instant,
    ) -> Result<(), Interrupted> {
        let messages = prompt::conversation(&self.opening, points, last);
        let key = self.idempotency_key(points.len(), memory.last_turns);
        let Some(held) = self
            .reserve(points, memory, &messages, last.is_some(), until)
            .await?
        else {
            return Ok(());
        };
        let outcome = self
            .unless_interrupted(self.request(&messages, last.is_some(), until, &key))
            .await?;
        let answer = match outcome {
            Ok(answer) => answer,
            Err(error) => {
                memory.lost = sum(memory.lost, error.usage);
                if let (Some(budget), Some(held)) = (&self.budget, held) {
                    budget.release(held, error.usage).await?;
                }
                tracing::warn!(
                    reason = self.redactor.text(&error.to_string()),
                    "the model gave no answer"
                );
                match (error.kind, last) {
                    // In the time that is kept for it, the ending can still be asked for.
                    (LlmErrorKind::Deadline, None) => memory.is_out_of_time = true,
                    (LlmErrorKind::Deadline, Some(_)) => memory.last_turns = LAST_TURNS_MAX,
                    (LlmErrorKind::Permanent | LlmErrorKind::Exhausted, _) => memory.failed = Some(error),
                }
                return Ok(());
            }
        };
        let turn = self.recorded(points, answer);
        if !turn.text.trim().is_empty() {
            self.journal
                .tell(Live::Says {
                    text: cut(turn.text.clone(), LIVE_BYTES_MAX),
                })
                .await;
        }
        self.record(points, Point::Model(turn)).await?;
        if let (Some(budget), Some(Point::Model(turn))) = (&self.budget, points.last()) {
            budget.settle(turn, held).await?;
        }
        Ok(())
    }

    /// Names the question at this point of the record.
    fn idempotency_key(&self, points: usize, last_turns: u32) -> String {
        let name = format!("{} {points} {last_turns}", self.transcript_ref);
        Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()).to_string()
    }

    async fn request(
        &self,
        messages: &[Message],
        is_last: bool,
        until: Instant,
        idempotency_key: &str,
    ) -> Result<Answer, LlmError> {
        let mut tools: Vec<ToolSpec> = if is_last { Vec::new() } else { self.toolbox.specs() };
        if !tools.is_empty() {
            tools.push(read_more::spec());
        }
        tools.push(submit_findings::spec());
        let (begun, began_at) = (Instant::now(), clock::now());
        let outcome = self
            .provider
            .answer(&Request {
                system: prompt::SYSTEM,
                goal: self.opening.goal,
                messages,
                tools: &tools,
                must_call: is_last.then_some(submit_findings::NAME),
                output_tokens_max: self.limits.output_tokens_max,
                deadline: until,
                idempotency_key,
            })
            .await;
        let (name, usage) = match &outcome {
            Ok(answer) => ("ok", answer.usage),
            Err(error) => match error.kind {
                LlmErrorKind::Permanent => ("refused", error.usage),
                LlmErrorKind::Exhausted => ("exhausted", error.usage),
                LlmErrorKind::Deadline => ("deadline", error.usage),
            },
        };
        let (provider, model) = (self.provider.name(), self.provider.model());
        self.metrics.llm_request(provider, model, name, begun.elapsed());
        let tokens = Tokens {
            input: usage.input_tokens,
            output: usage.output_tokens,
            cached: usage.cached_tokens,
        };
        self.metrics.llm_tokens(provider, model, tokens);
        if let Some(trace) = self.trace {
            trace.part(&["chat", idempotency_key], |span| {
                span.began = began_at;
                span.error = outcome.is_err().then(|| name.to_owned());
                let limit = self.limits.output_tokens_max;
                genai::chat(span, (provider, model), limit, tokens, outcome.as_ref().ok());
            });
        }
        outcome
    }

    /// An answer as it is recorded: without secrets, bounded, and with calls that can be told apart.
    fn recorded(&self, points: &[Point], answer: Answer) -> ModelTurn {
        let mut known: Vec<String> = points
            .iter()
            .filter_map(|point| match point {
                Point::Model(turn) => Some(turn.calls.iter().map(|call| call.id.clone())),
                Point::Tool(_) => None,
            })
            .flatten()
            .collect();
        let text = cut(self.redactor.text(&answer.text), ANSWER_BYTES_MAX / 2);
        let mut room = ANSWER_BYTES_MAX / 2;
        let mut calls = Vec::new();
        for (at, call) in answer.calls.into_iter().take(CALLS_PER_TURN_MAX).enumerate() {
            let is_usable = (1..=100).contains(&call.id.len())
                && call
                    .id
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !known.contains(&call.id);
            let id = if is_usable {
                call.id
            } else {
                format!("call_{}_{at}", points.len())
            };
            known.push(id.clone());
            let mut arguments = self.redactor.value(&call.arguments);
            match room.checked_sub(arguments.to_string().len()) {
                Some(left) => room = left,
                None => arguments = json!({ MALFORMED: "too long" }),
            }
            // Providers refuse a conversation with a name that no tool can have.
            let tool: String = call
                .tool
                .chars()
                .filter(|c| c.is_ascii_alphanumeric() || "_-".contains(*c))
                .take(64)
                .collect();
            let tool = if tool.is_empty() {
                "unnamed".to_owned()
            } else {
                tool
            };
            calls.push(ToolCall { id, tool, arguments });
        }
        ModelTurn {
            turn: Standing::of(points).turns + 1,
            text,
            calls,
            stop_reason: answer.stop_reason,
            usage: answer.usage,
            at: clock::now(),
        }
    }

    /// Runs calls at the same time, and records each result as it comes.
    async fn run_calls(&self, points: &mut Vec<Point>, calls: Vec<ToolCall>) -> Result<(), Interrupted> {
        let standing = Standing::of(points);
        let is_cut = standing.stop() == Some(Stop::Length);
        let room = self.limits.calls_max.saturating_sub(standing.calls) as usize;
        let ways: Vec<Way> = (0..calls.len())
            .map(|at| match is_cut {
                true => self.way_of_a_cut_answer(),
                false => self.way(points, &calls[..at], &calls[at], at < room),
            })
            .collect();
        let running = futures_util::stream::iter(calls.into_iter().zip(ways))
            .map(|(call, way)| self.run_call(call, way))
            .buffer_unordered(CALLS_AT_ONCE);
        let mut running = std::pin::pin!(running);
        while let Some(point) = self.unless_interrupted(running.next()).await? {
            self.record(points, Point::Tool(point?)).await?;
        }
        Ok(())
    }

    fn way_of_a_cut_answer(&self) -> Way {
        Way::not_run(&format!(
            "your answer was cut off at the limit of {} tokens, so this call may be incomplete. Be shorter",
            self.limits.output_tokens_max
        ))
    }

    /// How a call is answered. `before` are the calls of the same answer that stand before it.
    fn way(&self, points: &[Point], before: &[ToolCall], call: &ToolCall, is_in_budget: bool) -> Way {
        if call.tool == submit_findings::NAME {
            let problems = submit_findings::problems(&call.arguments).join("; ");
            return Way::Told(format!(
                "the findings were not accepted: {problems}. Submit them again"
            ));
        }
        if !is_in_budget {
            return Way::not_run(&format!("all {} tool calls are used", self.limits.calls_max));
        }
        if self.time_for_calls().is_zero() {
            return Way::not_run("the time for this step is nearly over");
        }
        if let Some(objection) = repeats::objection(points, before, call, clock::now()) {
            return Way::Told(objection);
        }
        if call.tool != read_more::NAME {
            return Way::Call;
        }
        let ask = match read_more::Ask::read(&call.arguments) {
            Ok(ask) => ask,
            Err(problem) => return Way::Told(format!("refused: {problem}")),
        };
        let earlier = points.iter().find_map(|point| match point {
            Point::Tool(tool) if tool.call.id == ask.call_id => Some(tool),
            _ => None,
        });
        match earlier {
            Some(tool) => Way::Read(ask, Box::new(tool.clone())),
            None => Way::Told(format!(
                "refused: there is no result of a call `{}`; use the id of an earlier call",
                ask.call_id
            )),
        }
    }

    /// What is left for tools.
    fn time_for_calls(&self) -> Duration {
        self.limits
            .deadline
            .saturating_duration_since(Instant::now())
            .saturating_sub(self.limits.reserve)
    }

    async fn run_call(&self, call: ToolCall, way: Way) -> Result<ToolPoint, Failure> {
        let started_at = clock::now();
        let given = match way {
            Way::Told(text) => Given {
                text,
                whole: None,
                is_error: true,
                outcome: "refused",
            },
            Way::Read(ask, earlier) => {
                let whole = match &earlier.whole {
                    Some(whole) => self.journal.kept(whole).await?,
                    None => None,
                };
                let text = whole.as_ref().unwrap_or(&earlier.text);
                let mut shown = ask.show(text, self.toolbox.output_bytes_max());
                if earlier.whole.is_some() && whole.is_none() {
                    shown.insert_str(0, GONE);
                }
                Given {
                    text: shown,
                    whole: None,
                    is_error: false,
                    outcome: "ok",
                }
            }
            Way::Call => {
                let arguments = cut(one_line("", &call.arguments), LIVE_BYTES_MAX);
                self.journal
                    .tell(Live::ToolCall {
                        tool: call.tool.clone(),
                        arguments,
                    })
                    .await;
                let time_left = self.time_for_calls();
                let (redactor, metrics) = (self.redactor, self.metrics);
                let given = self
                    .toolbox
                    .call(&call.tool, &call.arguments, time_left, redactor, metrics)
                    .await;
                if let Some(trace) = self.trace {
                    trace.part(&["tool", &call.id], |span| {
                        span.began = started_at;
                        span.error = given.is_error.then(|| given.outcome.to_owned());
                        genai::tool(span, &call);
                    });
                }
                given
            }
        };
        if prompt::suspicious(&given.text) {
            tracing::warn!(
                call = call.id,
                tool = call.tool,
                "a tool's result holds what looks like instructions"
            );
        }
        let whole = match given.whole {
            Some(whole) => self.journal.keep(whole).await?,
            None => None,
        };
        Ok(ToolPoint {
            call,
            is_error: given.is_error,
            text: given.text,
            whole,
            started_at,
            at: clock::now(),
        })
    }

    async fn record(&self, points: &mut Vec<Point>, point: Point) -> Result<(), Interrupted> {
        let k = u32::try_from(points.len()).unwrap_or(u32::MAX);
        if self.journal.write(k, &point).await? {
            points.push(point);
            return Ok(());
        }
        // Its record counts, not ours: both come to the same end, and only one pays.
        Err(Interrupted::Failed(Failure::retry(
            "another process is at this investigation",
        )))
    }

    async fn unless_interrupted<T>(&self, work: impl Future<Output = T>) -> Result<T, Interrupted> {
        tokio::select! {
            biased;
            () = self.cancelled.cancelled() => Err(Interrupted::Cancelled),
            () = self.shutdown.cancelled() => Err(Interrupted::Failed(Failure::Retry {
                after: Duration::from_millis(100),
                reason: "the runner is shutting down".to_owned(),
            })),
            result = work => Ok(result),
        }
    }
}

fn used(standing: &Standing<'_>) -> u64 {
    standing
        .usage
        .input_tokens
        .saturating_add(standing.usage.output_tokens)
}
