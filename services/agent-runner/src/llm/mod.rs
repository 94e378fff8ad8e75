//! Models: one trait, one file per provider, and one place that chooses.
//!
//! Invariants:
//! - An [`Answer`] is whole: its end was seen, and the reason it stopped is one that we know.
//! - A provider keeps no state between calls; everything it needs is in the [`Request`]. So another
//!   process can continue where one died.
//! - No error text holds a key.

pub mod anthropic;
pub mod http;
pub mod openai;
pub mod scripted;
mod select;
mod sse;

use futures_util::future::BoxFuture;
use protocol::turns::{ToolCall, Usage};
use serde_json::Value;
use tokio::time::Instant;

pub use select::{Choice, WantedKey, from_config, wanted_key};

/// The key under which arguments that were no JSON object stand, so that they can be recorded and
/// refused; no tool has a parameter of this name.
pub const MALFORMED: &str = "_malformed";

/// Someone who answers for a model.
pub trait Provider: Send + Sync {
    /// `anthropic`, `openai`, `scripted`.
    fn name(&self) -> &'static str;
    /// The model, as the provider spells it.
    fn model(&self) -> &str;
    /// One answer, whole. Retries what deserves it, within the request's deadline.
    fn answer<'a>(&'a self, request: &'a Request<'a>) -> BoxFuture<'a, Result<Answer, LlmError>>;
}

/// What a model is asked.
pub struct Request<'a> {
    /// The rules it works under.
    pub system: &'a str,
    /// The goal as rendered; the first message says it too.
    pub goal: &'a str,
    /// The conversation so far; begins with a [`Message::User`].
    pub messages: &'a [Message],
    /// What it may call.
    pub tools: &'a [ToolSpec],
    /// The one tool it has to call, on the last turn.
    pub must_call: Option<&'a str>,
    /// The most tokens of the answer.
    pub output_tokens_max: u32,
    /// When the answer must be there, retries included.
    pub deadline: Instant,
    /// Names this question, also when it is asked again by another process: a gateway that knows the header
    /// `Idempotency-Key` charges for it once.
    pub idempotency_key: &'a str,
}

/// Bytes of a token, on the safe side: English prose has four, logs and JSON three.
pub const TOKEN_BYTES: usize = 3;

/// The header that names a question.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// A tool as the model sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolSpec {
    /// By what name it is called.
    pub name: String,
    /// What it does and when to use it.
    pub description: String,
    /// JSON Schema of its arguments: an object.
    pub schema: Value,
}

/// A part of the conversation.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// We said.
    User(String),
    /// The model said, and wants called.
    Assistant {
        /// What it said.
        text: String,
        /// What it wants called.
        calls: Vec<ToolCall>,
    },
    /// What the calls of the message before gave; one for each.
    Results(Vec<ToolResult>),
}

/// What a call gave.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolResult {
    /// Which call.
    pub call_id: String,
    /// As recorded: redacted and cut.
    pub recorded: String,
    /// As the model gets it: fenced.
    pub shown: String,
    /// Whether the call failed or was refused.
    pub is_error: bool,
}

/// What a model answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// What it said.
    pub text: String,
    /// What it wants called. Arguments are always an object; see [`MALFORMED`].
    pub calls: Vec<ToolCall>,
    /// Why it stopped.
    pub stop: Stop,
    /// The same in the provider's own word.
    pub stop_reason: String,
    /// What it cost, failed attempts included as far as the provider said.
    pub usage: Usage,
    /// The model that answered, where the provider says so.
    pub model: Option<String>,
}

/// Why a model stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It had said what it wanted, or waits for its calls.
    Finished,
    /// The limit of one answer was reached: what is there is not what it wanted to say.
    Length,
    /// It, or a filter of the provider, declined.
    Declined,
    /// The conversation no longer fits the model.
    ContextFull,
}

impl Stop {
    /// The meaning of a provider's recorded word; `None` for one that no provider of ours has.
    pub fn of(stop_reason: &str) -> Option<Self> {
        anthropic::stop(stop_reason).or_else(|| openai::stop(stop_reason))
    }
}

/// Why there is no answer. Display says provider, model, status, what happened and what to do.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{provider} ({model}): {message}")]
pub struct LlmError {
    /// Which provider.
    pub provider: &'static str,
    /// Which model.
    pub model: String,
    /// What happened, and the remedy.
    pub message: String,
    /// What a further attempt may do.
    pub kind: LlmErrorKind,
    /// What failed attempts cost, as far as the provider said.
    pub usage: Usage,
}

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LlmErrorKind {
    /// Trying again cannot help.
    Permanent,
    /// It was tried again as often as the configuration allows.
    Exhausted,
    /// Time ran out.
    Deadline,
}

/// The sum of two costs.
pub fn sum(a: Usage, b: Usage) -> Usage {
    Usage {
        input_tokens: a.input_tokens.saturating_add(b.input_tokens),
        output_tokens: a.output_tokens.saturating_add(b.output_tokens),
        cached_tokens: a.cached_tokens.saturating_add(b.cached_tokens),
    }
}

/// Arguments as a model wrote them: the object, or the text under [`MALFORMED`].
fn arguments(text: &str) -> Value {
    const SHOWN_CHARS_MAX: usize = 2000;
    // A call without parameters comes with no text at all.
    let text = if text.trim().is_empty() { "{}" } else { text };
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Value::Object(object),
        _ => serde_json::json!({ MALFORMED: text.chars().take(SHOWN_CHARS_MAX).collect::<String>() }),
    }
}
