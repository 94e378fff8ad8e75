//! The transcript of an agent, one write-once message per point: what the model answered, what a tool gave.
//!
//! Invariant: `k` counts from 0 within one attempt without gaps, in the order in which things happened.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    output::{BlobRef, Body},
    time::Timestamp,
};

/// One point of a transcript, on `fist.turn.<namespace>.<execution>.<step>.<attempt>.<k>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Turn {
    /// The model answered.
    Model(ModelTurn),
    /// A tool gave its result.
    Tool(ToolTurn),
}

/// An answer of the model. Secrets are redacted already.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelTurn {
    /// Which turn, from 1.
    pub turn: u32,
    /// What it said.
    #[serde(default)]
    pub text: String,
    /// Which tools it wants called.
    #[serde(default)]
    pub calls: Vec<ToolCall>,
    /// Why it stopped, in the provider's own word.
    pub stop_reason: String,
    /// What it cost.
    pub usage: Usage,
    /// When the answer was complete.
    pub at: Timestamp,
}

/// A call that the model asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// The provider's id of the call, which findings cite.
    pub id: String,
    /// The tool.
    pub tool: String,
    /// Its arguments.
    pub arguments: Value,
}

/// What a tool gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolTurn {
    /// The call it answers.
    pub call_id: String,
    /// The tool.
    pub tool: String,
    /// Its arguments.
    pub arguments: Value,
    /// Whether it failed or was refused.
    pub is_error: bool,
    /// What the model was shown. Secrets are redacted already.
    pub result: Body,
    /// The whole result, as text in the object store, where the model was shown a part of it. Redacted as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole: Option<BlobRef>,
    /// When the call began.
    pub started_at: Timestamp,
    /// When the result was there.
    pub at: Timestamp,
}

/// Tokens, as the provider counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Read, cached ones included.
    pub input_tokens: u64,
    /// Written.
    pub output_tokens: u64,
    /// Read from the provider's cache.
    pub cached_tokens: u64,
}
