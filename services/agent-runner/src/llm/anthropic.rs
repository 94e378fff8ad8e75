//! Anthropic's Messages API, streamed.
//!
//! Invariants: an answer ends with `message_stop`, and every block of it was closed; what a newer API adds
//! (events, blocks, fields) is passed over, but a stop reason that is not known is an error.

use futures_util::future::BoxFuture;
use protocol::turns::{ToolCall, Usage};
use reqwest::{Client, Url};
use serde_json::{Map, Value, json};
use service::config::Secret;

use super::{
    Answer, IDEMPOTENCY_KEY, LlmError, Message, Provider, Request, Stop, arguments,
    http::{Again, Caller, Failed, Patience, Reader, persist},
    sse::Event,
};

/// The provider's name.
pub const NAME: &str = "anthropic";
/// Where it is, unless ANTHROPIC_BASE_URL says otherwise.
pub const BASE_URL: &str = "https://api.anthropic.com";
const VERSION: &str = "2023-06-01";

/// A model behind the Messages API.
pub struct Anthropic {
    pub(super) client: Client,
    pub(super) patience: Patience,
    pub(super) url: Url,
    pub(super) model: String,
    pub(super) key: Option<Secret>,
    pub(super) key_source: String,
    pub(super) temperature: Option<f64>,
}

/// The meaning of a stop reason; `None` where it is none of this API.
pub fn stop(reason: &str) -> Option<Stop> {
    match reason {
        "end_turn" | "tool_use" | "stop_sequence" => Some(Stop::Finished),
        "max_tokens" => Some(Stop::Length),
        "refusal" => Some(Stop::Declined),
        "model_context_window_exceeded" => Some(Stop::ContextFull),
        _ => None,
    }
}

/// The address of the messages under a base address, with or without its `/v1`.
pub fn endpoint(base: &Url) -> Url {
    let mut url = base.clone();
    let path = base.path().trim_end_matches('/');
    let path = if path.ends_with("/messages") {
        path.to_owned()
    } else if path.ends_with("/v1") {
        format!("{path}/messages")
    } else {
        format!("{path}/v1/messages")
    };
    url.set_path(&path);
    url
}

impl Provider for Anthropic {
    fn name(&self) -> &'static str {
        NAME
    }

    fn model(&self) -> &str {
        &self.model
    }

    fn answer<'a>(&'a self, request: &'a Request<'a>) -> BoxFuture<'a, Result<Answer, LlmError>> {
        Box::pin(async move {
            let body = self.body(request);
            let caller = Caller {
                provider: NAME,
                model: &self.model,
                key: self.key.as_ref().map(Secret::expose),
                key_source: &self.key_source,
            };
            persist(&caller, &self.patience, request.deadline, || {
                let mut call = self
                    .client
                    .post(self.url.clone())
                    .header("anthropic-version", VERSION)
                    .header(IDEMPOTENCY_KEY, request.idempotency_key)
                    .json(&body);
                if let Some(key) = &self.key {
                    call = call.header("x-api-key", key.expose());
                }
                caller.stream(&self.patience, call, Box::new(MessageReader::default()))
            })
            .await
        })
    }
}

impl Anthropic {
    fn body(&self, request: &Request<'_>) -> Value {
        let tools: Vec<Value> = request
            .tools
            .iter()
            .map(|tool| json!({"name": tool.name, "description": tool.description, "input_schema": tool.schema}))
            .collect();
        let mut body = json!({
            "model": self.model,
            "max_tokens": request.output_tokens_max,
            "stream": true,
            // The rules and, before them, the tools are the same on every turn of every run.
            "system": [{"type": "text", "text": request.system, "cache_control": {"type": "ephemeral"}}],
            "tools": tools,
            "messages": messages(request.messages),
        });
        if let Some(temperature) = self.temperature {
            body["temperature"] = json!(temperature);
        }
        if let Some(tool) = request.must_call {
            body["tool_choice"] = json!({"type": "tool", "name": tool});
        }
        body
    }
}

/// The conversation in the API's form: roles alternate, results stand first in the message after their calls.
fn messages(conversation: &[Message]) -> Vec<Value> {
    let mut messages: Vec<(&str, Vec<Value>)> = Vec::new();
    for message in conversation {
        let (role, blocks) = match message {
            Message::User(text) => ("user", vec![json!({"type": "text", "text": text})]),
            Message::Assistant { text, calls } => ("assistant", assistant(text, calls)),
            Message::Results(results) => {
                let block = |result: &super::ToolResult| {
                    json!({
                        "type": "tool_result",
                        "tool_use_id": result.call_id,
                        "content": result.shown,
                        "is_error": result.is_error,
                    })
                };
                ("user", results.iter().map(block).collect())
            }
        };
        match messages.last_mut() {
            Some((last, known)) if *last == role => known.extend(blocks),
            _ => messages.push((role, blocks)),
        }
    }
    // The next turn begins with all of this, so the provider may keep it.
    if let Some(Value::Object(block)) = messages.last_mut().and_then(|(_, blocks)| blocks.last_mut()) {
        block.insert("cache_control".to_owned(), json!({"type": "ephemeral"}));
    }
    messages
        .into_iter()
        .map(|(role, blocks)| json!({"role": role, "content": blocks}))
        .collect()
}

fn assistant(text: &str, calls: &[ToolCall]) -> Vec<Value> {
    let mut blocks = Vec::new();
    // Blank text blocks are refused.
    match (text.trim().is_empty(), calls.is_empty()) {
        (false, _) => blocks.push(json!({"type": "text", "text": text.trim_end()})),
        (true, true) => blocks.push(json!({"type": "text", "text": "(nothing)"})),
        (true, false) => {}
    }
    let block = |call: &ToolCall| json!({"type": "tool_use", "id": call.id, "name": call.tool, "input": call.arguments});
    blocks.extend(calls.iter().map(block));
    blocks
}

/// One block of an answer.
enum Block {
    Text(String),
    Call {
        id: String,
        tool: String,
        arguments: String,
    },
    /// Thoughts, and whatever comes to be.
    Other,
}

#[derive(Default)]
struct MessageReader {
    has_begun: bool,
    blocks: Vec<Block>,
    open: Option<u64>,
    stop_reason: Option<String>,
    usage: Usage,
    model: Option<String>,
}

impl Reader for MessageReader {
    fn event(&mut self, event: &Event) -> Result<bool, Failed> {
        let data: Value = serde_json::from_str(&event.data)
            .map_err(|error| Failed::broken(format!("the answer holds an event that is no JSON: {error}")))?;
        let kind = data.get("type").and_then(Value::as_str).unwrap_or(&event.name);
        match kind {
            "message_start" => {
                self.has_begun = true;
                self.model = data["message"]["model"].as_str().map(str::to_owned);
                self.count(&data["message"]["usage"]);
            }
            "content_block_start" => self.begin(&data)?,
            "content_block_delta" => self.extend(&data)?,
            "content_block_stop" => self.close(&data)?,
            "message_delta" => {
                if let Some(reason) = data["delta"]["stop_reason"].as_str() {
                    self.stop_reason = Some(reason.to_owned());
                }
                self.count(&data["usage"]);
            }
            "message_stop" => return Ok(true),
            "error" => return Err(failed_midway(&data)),
            // `ping`, and whatever comes to be.
            _ => {}
        }
        Ok(false)
    }

    fn usage(&self) -> Usage {
        self.usage
    }

    fn finish(self: Box<Self>) -> Result<Answer, Failed> {
        if !self.has_begun || self.open.is_some() {
            return Err(Failed::broken(
                "the answer ended without a beginning, or within a block",
            ));
        }
        let stop_reason = self
            .stop_reason
            .ok_or_else(|| Failed::broken("the answer ended without a stop reason"))?;
        let stop = stop(&stop_reason).ok_or_else(|| {
            Failed::for_good(format!(
                "stopped for an unknown reason, `{stop_reason}`: this version cannot tell what it means"
            ))
        })?;
        let mut text = String::new();
        let mut calls = Vec::new();
        for block in self.blocks {
            match block {
                Block::Text(piece) => text.push_str(&piece),
                Block::Call {
                    id,
                    tool,
                    arguments: written,
                } => calls.push(ToolCall {
                    id,
                    tool,
                    arguments: arguments(&written),
                }),
                Block::Other => {}
            }
        }
        if stop_reason == "tool_use" && calls.is_empty() {
            return Err(Failed::broken("the answer stops for tool calls and holds none"));
        }
        Ok(Answer {
            text,
            calls,
            stop,
            stop_reason,
            usage: self.usage,
            model: self.model,
        })
    }
}

impl MessageReader {
    fn begin(&mut self, data: &Value) -> Result<(), Failed> {
        let index = data["index"].as_u64();
        if index != Some(self.blocks.len() as u64) || self.open.is_some() {
            return Err(Failed::broken("the answer's blocks are out of order"));
        }
        let block = &data["content_block"];
        let text = |key: &str| block[key].as_str().unwrap_or_default().to_owned();
        self.blocks.push(match block["type"].as_str() {
            Some("text") => Block::Text(text("text")),
            Some("tool_use") => Block::Call {
                id: text("id"),
                tool: text("name"),
                arguments: String::new(),
            },
            _ => Block::Other,
        });
        self.open = index;
        Ok(())
    }

    fn close(&mut self, data: &Value) -> Result<(), Failed> {
        if self.open.take() != data["index"].as_u64() {
            return Err(Failed::broken("the answer closes a block that is not open"));
        }
        Ok(())
    }

    fn extend(&mut self, data: &Value) -> Result<(), Failed> {
        if self.open.is_none() || self.open != data["index"].as_u64() {
            return Err(Failed::broken("the answer continues a block that is not open"));
        }
        let delta = &data["delta"];
        match (self.blocks.last_mut(), delta["type"].as_str()) {
            (Some(Block::Text(text)), Some("text_delta")) => {
                text.push_str(delta["text"].as_str().unwrap_or_default());
            }
            (Some(Block::Call { arguments, .. }), Some("input_json_delta")) => {
                arguments.push_str(delta["partial_json"].as_str().unwrap_or_default());
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes over what `usage` says; later numbers are totals, not increments.
    fn count(&mut self, usage: &Value) {
        let Some(usage) = usage.as_object() else { return };
        let number = |usage: &Map<String, Value>, key: &str| usage.get(key).and_then(Value::as_u64);
        let cached = number(usage, "cache_read_input_tokens");
        let written = number(usage, "cache_creation_input_tokens").unwrap_or(0);
        if let Some(input) = number(usage, "input_tokens") {
            // Anthropic counts what was read from and written to its cache apart.
            self.usage.input_tokens = self.usage.input_tokens.max(input + cached.unwrap_or(0) + written);
        }
        self.usage.cached_tokens = cached.unwrap_or(0).max(self.usage.cached_tokens);
        self.usage.output_tokens = number(usage, "output_tokens")
            .unwrap_or(0)
            .max(self.usage.output_tokens);
    }
}

fn failed_midway(data: &Value) -> Failed {
    let kind = data["error"]["type"].as_str().unwrap_or("error");
    let message = data["error"]["message"].as_str().unwrap_or_default();
    let again = match kind {
        "overloaded_error" | "api_error" | "rate_limit_error" | "timeout_error" => Again::Soon,
        _ => Again::Never,
    };
    Failed {
        again,
        ..Failed::broken(format!("failed in the middle of its answer ({kind}: {message})"))
    }
}
