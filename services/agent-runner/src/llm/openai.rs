//! OpenAI's Chat Completions, streamed, as also spoken by Ollama, vLLM and gateways.
//!
//! Invariants: an answer has a finish reason that we know, and its stream ends with `[DONE]`; what a server
//! adds is passed over.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use protocol::turns::{ToolCall, Usage};
use reqwest::{Client, Url};
use serde_json::{Value, json};
use service::config::Secret;

use super::{
    Answer, IDEMPOTENCY_KEY, LlmError, MALFORMED, Message, Provider, Request, Stop, arguments,
    http::{Again, Caller, Failed, Patience, Reader, error_text, persist},
    sse::Event,
};

/// The provider's name.
pub const NAME: &str = "openai";
/// Where it is, unless OPENAI_BASE_URL says otherwise.
pub const BASE_URL: &str = "https://api.openai.com/v1";
/// Calls of one answer; beyond any that make sense.
const CALLS_MAX: u64 = 256;

/// A model behind Chat Completions.
pub struct OpenAi {
    pub(super) client: Client,
    pub(super) patience: Patience,
    pub(super) url: Url,
    pub(super) model: String,
    pub(super) key: Option<Secret>,
    pub(super) key_source: String,
    pub(super) temperature: Option<f64>,
}

/// The meaning of a finish reason; `None` where it is none of this API.
pub fn stop(reason: &str) -> Option<Stop> {
    match reason {
        "stop" | "tool_calls" | "function_call" => Some(Stop::Finished),
        "length" => Some(Stop::Length),
        "content_filter" => Some(Stop::Declined),
        _ => None,
    }
}

/// The address of the completions under a base address; `/v1` is put in where there is no path at all.
pub fn endpoint(base: &Url) -> Url {
    let mut url = base.clone();
    let path = base.path().trim_end_matches('/');
    let path = if path.ends_with("/chat/completions") {
        path.to_owned()
    } else if path.is_empty() {
        "/v1/chat/completions".to_owned()
    } else {
        format!("{path}/chat/completions")
    };
    url.set_path(&path);
    url
}

impl Provider for OpenAi {
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
                    .header(IDEMPOTENCY_KEY, request.idempotency_key)
                    .json(&body);
                if let Some(key) = &self.key {
                    call = call.bearer_auth(key.expose());
                }
                caller.stream(&self.patience, call, Box::new(ChunkReader::default()))
            })
            .await
        })
    }
}

impl OpenAi {
    fn body(&self, request: &Request<'_>) -> Value {
        let tools: Vec<Value> = request
            .tools
            .iter()
            .map(|tool| {
                let function =
                    json!({"name": tool.name, "description": tool.description, "parameters": tool.schema});
                json!({"type": "function", "function": function})
            })
            .collect();
        let mut body = json!({
            "model": self.model,
            "stream": true,
            "stream_options": {"include_usage": true},
            "tools": tools,
            "messages": messages(request.system, request.messages),
        });
        // OpenAI's own newer models refuse the old name, and many compatible servers do not know the new one.
        let is_openai = self.url.host_str() == Some("api.openai.com");
        let limit = if is_openai {
            "max_completion_tokens"
        } else {
            "max_tokens"
        };
        body[limit] = json!(request.output_tokens_max);
        if let Some(temperature) = self.temperature {
            body["temperature"] = json!(temperature);
        }
        if let Some(tool) = request.must_call {
            body["tool_choice"] = json!({"type": "function", "function": {"name": tool}});
        }
        body
    }
}

fn messages(system: &str, conversation: &[Message]) -> Vec<Value> {
    let mut messages = vec![json!({"role": "system", "content": system})];
    for message in conversation {
        match message {
            Message::User(text) => messages.push(json!({"role": "user", "content": text})),
            Message::Assistant { text, calls } => messages.push(assistant(text, calls)),
            Message::Results(results) => messages.extend(results.iter().map(
                |result| json!({"role": "tool", "tool_call_id": result.call_id, "content": result.shown}),
            )),
        }
    }
    messages
}

fn assistant(text: &str, calls: &[ToolCall]) -> Value {
    let calls: Vec<Value> = calls
        .iter()
        .map(|call| {
            let written = match call.arguments.get(MALFORMED) {
                // What it wrote was no JSON; servers that parse what comes back would refuse it.
                Some(text) => json!({ MALFORMED: text }).to_string(),
                None => call.arguments.to_string(),
            };
            let function = json!({"name": call.tool, "arguments": written});
            json!({"id": call.id, "type": "function", "function": function})
        })
        .collect();
    if calls.is_empty() {
        return json!({"role": "assistant", "content": text});
    }
    let content = if text.is_empty() { Value::Null } else { json!(text) };
    json!({"role": "assistant", "content": content, "tool_calls": calls})
}

#[derive(Default)]
struct ChunkReader {
    text: String,
    refusal: String,
    /// By the server's index: id, name, arguments as written.
    calls: BTreeMap<u64, (String, String, String)>,
    finish_reason: Option<String>,
    usage: Usage,
    model: Option<String>,
}

impl Reader for ChunkReader {
    fn event(&mut self, event: &Event) -> Result<bool, Failed> {
        if event.data.trim() == "[DONE]" {
            return Ok(true);
        }
        let chunk: Value = serde_json::from_str(&event.data)
            .map_err(|error| Failed::broken(format!("the answer holds an event that is no JSON: {error}")))?;
        if chunk.get("error").is_some_and(|error| !error.is_null()) {
            return Err(failed_midway(&event.data));
        }
        self.count(&chunk["usage"]);
        if let (None, Some(model)) = (&self.model, chunk["model"].as_str()) {
            self.model = Some(model.to_owned());
        }
        // We ask for one choice; usage comes in a chunk with none.
        let Some(choice) = chunk["choices"].as_array().and_then(|choices| choices.first()) else {
            return Ok(false);
        };
        let delta = &choice["delta"];
        self.text.push_str(delta["content"].as_str().unwrap_or_default());
        self.refusal
            .push_str(delta["refusal"].as_str().unwrap_or_default());
        for piece in delta["tool_calls"].as_array().into_iter().flatten() {
            self.call(piece)?;
        }
        if let Some(reason) = choice["finish_reason"].as_str() {
            self.finish_reason = Some(reason.to_owned());
        }
        Ok(false)
    }

    fn usage(&self) -> Usage {
        self.usage
    }

    fn finish(self: Box<Self>) -> Result<Answer, Failed> {
        let stop_reason = self
            .finish_reason
            .ok_or_else(|| Failed::broken("the answer ended without a finish reason"))?;
        let stop = stop(&stop_reason).ok_or_else(|| {
            Failed::for_good(format!(
                "stopped for an unknown reason, `{stop_reason}`: this version cannot tell what it means"
            ))
        })?;
        let is_declined = !self.refusal.is_empty() && self.calls.is_empty() && self.text.is_empty();
        if stop_reason == "tool_calls" && self.calls.is_empty() {
            return Err(Failed::broken("the answer stops for tool calls and holds none"));
        }
        let calls = self.calls.into_values().map(|(id, tool, written)| ToolCall {
            id,
            tool,
            arguments: arguments(&written),
        });
        Ok(Answer {
            calls: calls.collect(),
            text: if is_declined { self.refusal } else { self.text },
            stop: if is_declined { Stop::Declined } else { stop },
            // Recorded, and read again on resume: a refusal has no finish reason of its own.
            stop_reason: if is_declined {
                "content_filter".to_owned()
            } else {
                stop_reason
            },
            usage: self.usage,
            model: self.model,
        })
    }
}

impl ChunkReader {
    fn call(&mut self, piece: &Value) -> Result<(), Failed> {
        // Some servers give whole calls without an index, one a piece.
        let next = self.calls.len() as u64;
        let index = piece["index"].as_u64().unwrap_or(next);
        if index >= CALLS_MAX {
            return Err(Failed::broken(format!(
                "the answer holds more than {CALLS_MAX} calls"
            )));
        }
        let (id, name, written) = self.calls.entry(index).or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        if id.is_empty() {
            *id = text(&piece["id"]);
        }
        name.push_str(&text(&piece["function"]["name"]));
        match &piece["function"]["arguments"] {
            // Some servers send the object itself.
            Value::Object(object) => written.push_str(&Value::Object(object.clone()).to_string()),
            value => written.push_str(value.as_str().unwrap_or_default()),
        }
        Ok(())
    }

    fn count(&mut self, usage: &Value) {
        if !usage.is_object() {
            return;
        }
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        self.usage = Usage {
            input_tokens: number(&usage["prompt_tokens"]),
            output_tokens: number(&usage["completion_tokens"]),
            cached_tokens: number(&usage["prompt_tokens_details"]["cached_tokens"]),
        };
    }
}

fn failed_midway(data: &str) -> Failed {
    let (kind, message) = error_text(data.as_bytes());
    let again = match kind.as_str() {
        "invalid_request_error" | "insufficient_quota" | "context_length_exceeded" | "invalid_api_key" => {
            Again::Never
        }
        _ => Again::Soon,
    };
    Failed {
        again,
        ..Failed::broken(format!("failed in the middle of its answer ({kind}: {message})"))
    }
}
