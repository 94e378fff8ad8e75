//! The record of an investigation: what the model answered and what tools gave, point by point.
//!
//! Invariants:
//! - A point is in the log before it is used; so whoever reads the log knows all that has happened.
//! - Where the investigation stands is a function of its points, and of nothing else.

use bus::{Blobs, Failure, Log, LogError, Written};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use protocol::{
    Body, Subject, Task, Timestamp, decode, encode,
    live::Live,
    output::{BlobRef, INLINE_BYTES_MAX},
    turns::{ModelTurn, ToolCall, ToolTurn, Turn, Usage},
};
use serde_json::Value;

use crate::{
    llm::{Stop, sum},
    tools::{cut::cut, submit_findings},
};

/// Bytes of a large result that its record shows inline.
const PREVIEW_BYTES_MAX: usize = 16 * 1024;

/// One point.
#[derive(Clone, Debug, PartialEq)]
pub enum Point {
    /// The model answered.
    Model(ModelTurn),
    /// A tool gave something.
    Tool(ToolPoint),
}

/// What a tool gave, whole.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolPoint {
    /// The call.
    pub call: ToolCall,
    /// Whether it failed or was refused.
    pub is_error: bool,
    /// What the model gets to see; redacted and cut.
    pub text: String,
    /// All of it, where `text` is a part.
    pub whole: Option<BlobRef>,
    /// When the call began.
    pub started_at: Timestamp,
    /// When the result was there.
    pub at: Timestamp,
}

/// Where points are kept.
pub trait Journal: Send + Sync {
    /// All points so far, in order.
    fn read(&self) -> BoxFuture<'_, Result<Vec<Point>, Failure>>;
    /// Writes point `k`; false where another point stands there already.
    fn write<'a>(&'a self, k: u32, point: &'a Point) -> BoxFuture<'a, Result<bool, Failure>>;
    /// Keeps a whole result beside the record; `None` where there is no room for it.
    fn keep(&self, text: String) -> BoxFuture<'_, Result<Option<BlobRef>, Failure>>;
    /// What was kept; `None` where it is not there any more.
    fn kept<'a>(&'a self, whole: &'a BlobRef) -> BoxFuture<'a, Result<Option<String>, Failure>>;
    /// Tells whoever is watching; lossy.
    fn tell(&self, live: Live) -> BoxFuture<'_, ()>;
}

/// The points of one attempt in the log.
pub struct LogJournal<'a, L> {
    /// The log.
    pub log: &'a L,
    /// Where large results are.
    pub blobs: &'a Blobs,
    /// Whose points they are.
    pub task: &'a Task,
}

impl<L: Log> Journal for LogJournal<'_, L> {
    fn read(&self) -> BoxFuture<'_, Result<Vec<Point>, Failure>> {
        Box::pin(async {
            let task = self.task;
            let messages = self
                .log
                .read_turns(&task.namespace, task.execution, &task.step, task.attempt)
                .await?;
            let mut points = Vec::with_capacity(messages.len());
            for message in messages {
                points.push(self.point(&message.payload).await?);
            }
            Ok(points)
        })
    }

    fn write<'a>(&'a self, k: u32, point: &'a Point) -> BoxFuture<'a, Result<bool, Failure>> {
        Box::pin(async move {
            let task = self.task;
            let subject = Subject::Turn(
                task.namespace.clone(),
                task.execution,
                task.step.clone(),
                task.attempt,
                k,
            );
            let turn = self.turn(point).await?;
            match self
                .log
                .write_fact(&subject, encode(self.log.now(), &turn))
                .await?
            {
                Written::New(_) => Ok(true),
                // Perhaps our own, whose acknowledgement was lost.
                Written::Already => {
                    let stored = self.log.last(&subject.to_string()).await?;
                    let stored = stored.and_then(|message| decode::<Turn>(&message.payload).ok());
                    Ok(stored.is_some_and(|envelope| envelope.body == turn))
                }
            }
        })
    }

    fn keep(&self, text: String) -> BoxFuture<'_, Result<Option<BlobRef>, Failure>> {
        Box::pin(async {
            match self.blobs.put(Bytes::from(text)).await {
                Ok(blob) => Ok(Some(blob)),
                // The shown part is in the record, and there may be no room for longer than the step has.
                Err(error @ LogError::Full { .. }) => {
                    tracing::warn!(%error, "the whole of a tool's result is not kept");
                    Ok(None)
                }
                Err(error) => Err(error.into()),
            }
        })
    }

    fn kept<'a>(&'a self, whole: &'a BlobRef) -> BoxFuture<'a, Result<Option<String>, Failure>> {
        Box::pin(async {
            let kept = self.blobs.get(whole).await?;
            Ok(kept.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
        })
    }

    fn tell(&self, live: Live) -> BoxFuture<'_, ()> {
        let subject = self.task.live_subject();
        Box::pin(async move {
            self.log
                .publish_live(&subject, encode(self.log.now(), &live))
                .await;
        })
    }
}

impl<L: Log> LogJournal<'_, L> {
    async fn point(&self, payload: &[u8]) -> Result<Point, Failure> {
        let unreadable =
            |reason: String| Failure::reject(format!("a point of the transcript cannot be read: {reason}"));
        let turn = decode::<Turn>(payload)
            .map_err(|error| unreadable(error.to_string()))?
            .body;
        let tool = match turn {
            Turn::Model(turn) => return Ok(Point::Model(turn)),
            Turn::Tool(tool) => tool,
        };
        let value = match tool.result {
            Body::Inline(value) => value,
            Body::Blob { blob, preview } => match self.blobs.get(&blob).await? {
                Some(bytes) => {
                    serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))?
                }
                // Better to go on with the shortened form than to pay for everything again.
                None => preview,
            },
        };
        let text = match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        Ok(Point::Tool(ToolPoint {
            call: ToolCall {
                id: tool.call_id,
                tool: tool.tool,
                arguments: tool.arguments,
            },
            is_error: tool.is_error,
            text,
            whole: tool.whole,
            started_at: tool.started_at,
            at: tool.at,
        }))
    }

    async fn turn(&self, point: &Point) -> Result<Turn, Failure> {
        Ok(match point {
            Point::Model(turn) => Turn::Model(turn.clone()),
            Point::Tool(tool) => Turn::Tool(ToolTurn {
                call_id: tool.call.id.clone(),
                tool: tool.call.tool.clone(),
                arguments: tool.call.arguments.clone(),
                is_error: tool.is_error,
                result: self.body(&tool.text).await?,
                whole: tool.whole.clone(),
                started_at: tool.started_at,
                at: tool.at,
            }),
        })
    }

    async fn body(&self, text: &str) -> Result<Body, Failure> {
        let value = Value::String(text.to_owned());
        let json = value.to_string();
        if json.len() <= INLINE_BYTES_MAX {
            return Ok(Body::Inline(value));
        }
        let preview = cut(text.to_owned(), PREVIEW_BYTES_MAX);
        match self.blobs.put(json.into()).await {
            Ok(blob) => Ok(Body::Blob {
                blob,
                preview: Value::String(preview),
            }),
            // What was found out so far is worth more than the whole of one result: waiting for room could take
            // longer than the step has.
            Err(error @ LogError::Full { .. }) => {
                tracing::warn!(%error, "a tool's result is kept shortened only");
                Ok(Body::Inline(Value::String(format!(
                    "{preview}\n[shortened: the whole could not be stored: {error}]"
                ))))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Where an investigation stands.
#[derive(Debug, PartialEq)]
pub struct Standing<'p> {
    /// Answers of the model so far.
    pub turns: u32,
    /// Calls that have a result.
    pub calls: u32,
    /// What the answers cost.
    pub usage: Usage,
    /// What the last answer had to read: what the next will have to, at least.
    pub last_input_tokens: u64,
    /// The last answer.
    pub last: Option<&'p ModelTurn>,
    /// Its calls that have no result.
    pub pending: Vec<&'p ToolCall>,
    /// Answers at the end that called nothing.
    pub idle_turns: u32,
}

impl<'p> Standing<'p> {
    /// From the points.
    pub fn of(points: &'p [Point]) -> Self {
        let mut standing = Self {
            turns: 0,
            calls: 0,
            usage: Usage::default(),
            last_input_tokens: 0,
            last: None,
            pending: Vec::new(),
            idle_turns: 0,
        };
        for point in points {
            match point {
                Point::Model(turn) => {
                    standing.turns += 1;
                    standing.usage = sum(standing.usage, turn.usage);
                    standing.last_input_tokens = turn.usage.input_tokens;
                    standing.last = Some(turn);
                    standing.pending = turn.calls.iter().collect();
                    standing.idle_turns = if turn.calls.is_empty() {
                        standing.idle_turns + 1
                    } else {
                        0
                    };
                }
                Point::Tool(tool) => {
                    standing.calls += 1;
                    standing.pending.retain(|call| call.id != tool.call.id);
                }
            }
        }
        standing
    }

    /// What the last answer said by stopping.
    pub fn stop(&self) -> Option<Stop> {
        self.last.and_then(|turn| Stop::of(&turn.stop_reason))
    }

    /// The findings, where the last answer submits any that can be accepted.
    pub fn submitted(&self) -> Option<&'p Value> {
        if self.stop() == Some(Stop::Length) {
            return None;
        }
        let calls = self.last.map(|turn| turn.calls.as_slice()).unwrap_or_default();
        calls
            .iter()
            .filter(|call| call.tool == submit_findings::NAME)
            .map(|call| &call.arguments)
            .find(|arguments| submit_findings::problems(arguments).is_empty())
    }
}
