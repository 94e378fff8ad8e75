//! A model behind real HTTP, in both dialects. It plays a list of replies, and grades every request it gets.
#![allow(clippy::unwrap_used, dead_code)]

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};
use service::config::{Secret, Secrets};

/// The key that the mock wants, and that must occur nowhere but in its header.
pub const KEY: &str = "sk-mock-0123456789abcdef0123456789";
/// A secret that tests plant; no request may hold it.
pub const PLANTED: &str = "hunter2xyzzy";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    Anthropic,
    OpenAi,
}

pub const DIALECTS: [Dialect; 2] = [Dialect::Anthropic, Dialect::OpenAi];

impl Dialect {
    pub fn name(self) -> &'static str {
        match self {
            Self::Anthropic => "anthropic",
            Self::OpenAi => "openai",
        }
    }
}

/// What the mock does with one request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A whole answer: text, and calls of `(id, tool, arguments as written)`.
    Answer(&'static str, Vec<(&'static str, &'static str, String)>),
    /// A whole answer that stops for this reason.
    Stopped(
        &'static str,
        Vec<(&'static str, &'static str, String)>,
        &'static str,
    ),
    /// An error.
    Status(u16, Vec<(&'static str, &'static str)>, Value),
    /// A stream that ends, cleanly, before its end event.
    Truncated,
    /// A stream whose connection is cut.
    Cut,
    /// A stream that stops and stays open.
    Stalled,
    /// No answer at all.
    Silent,
    /// A stream with an event that is no JSON.
    Garbage,
    /// A stream with an error in it.
    FailsMidway,
    /// A whole answer that is no stream.
    NotAStream,
}

/// A whole answer that calls `submit_findings`.
pub fn submits(findings: &Value) -> Reply {
    Reply::Answer("", vec![("toolu_end", "submit_findings", findings.to_string())])
}

#[derive(Default)]
pub struct Shared {
    replies: VecDeque<Reply>,
    requests: Vec<Value>,
    problems: Vec<String>,
    answered: usize,
    /// Whether the reply follows from the conversation, and not from the number of requests.
    by_turn: bool,
    /// The names of the questions that got a whole answer.
    billed: BTreeSet<String>,
}

#[derive(Clone)]
pub struct Mock {
    pub dialect: Dialect,
    pub port: u16,
    pub shared: Arc<Mutex<Shared>>,
}

impl Mock {
    pub async fn start(dialect: Dialect, replies: Vec<Reply>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mock = Self {
            dialect,
            port: listener.local_addr().unwrap().port(),
            shared: Arc::new(Mutex::new(Shared {
                replies: replies.into(),
                ..Shared::default()
            })),
        };
        let path = match dialect {
            Dialect::Anthropic => "/v1/messages",
            Dialect::OpenAi => "/v1/chat/completions",
        };
        let app = Router::new().route(path, post(answer)).with_state(mock.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        mock
    }

    /// The same, where each turn of a conversation has its reply, however often it is asked.
    pub async fn start_by_turn(dialect: Dialect, replies: Vec<Reply>) -> Self {
        let mock = Self::start(dialect, replies).await;
        mock.shared.lock().unwrap().by_turn = true;
        mock
    }

    /// Questions that got a whole answer, each once however often it was asked: what a provider charges for that knows
    /// `Idempotency-Key`.
    pub fn billed(&self) -> usize {
        self.shared.lock().unwrap().billed.len()
    }

    /// Keys and addresses that lead to this mock.
    pub fn secrets(&self) -> Secrets {
        let (key, url) = (
            Some(Secret::new(KEY)),
            Some(format!("http://127.0.0.1:{}", self.port)),
        );
        match self.dialect {
            Dialect::Anthropic => Secrets {
                anthropic_api_key: key,
                anthropic_base_url: url,
                ..Secrets::default()
            },
            Dialect::OpenAi => Secrets {
                openai_api_key: key,
                openai_base_url: url,
                ..Secrets::default()
            },
        }
    }

    /// Requests so far.
    pub fn requests(&self) -> Vec<Value> {
        self.shared.lock().unwrap().requests.clone()
    }

    /// Whole answers so far: what a provider would charge for.
    pub fn answered(&self) -> usize {
        self.shared.lock().unwrap().answered
    }

    /// What was wrong with the requests.
    pub fn problems(&self) -> Vec<String> {
        self.shared.lock().unwrap().problems.clone()
    }
}

async fn answer(State(mock): State<Mock>, headers: HeaderMap, body: Bytes) -> Response {
    let request: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let problems = match mock.dialect {
        Dialect::Anthropic => grade_anthropic(&headers, &request),
        Dialect::OpenAi => grade_openai(&headers, &request),
    };
    let reply = {
        let mut shared = mock.shared.lock().unwrap();
        shared.problems.extend(problems);
        for planted in [KEY, PLANTED] {
            if request.to_string().contains(planted) {
                shared.problems.push(format!("the request holds {planted}"));
            }
        }
        let turns = request["messages"].as_array().map_or(0, |all| {
            all.iter()
                .filter(|message| message["role"] == "assistant")
                .count()
        });
        shared.requests.push(request);
        let reply = match shared.by_turn {
            true => shared.replies.get(turns).cloned(),
            false => shared.replies.pop_front(),
        };
        if matches!(reply, Some(Reply::Answer(..) | Reply::Stopped(..))) {
            shared.answered += 1;
            let key = headers.get("idempotency-key").and_then(|key| key.to_str().ok());
            match key {
                Some(key) => {
                    shared.billed.insert(key.to_owned());
                }
                None => shared.problems.push("the question has no name".to_owned()),
            }
        }
        reply
    };
    let whole = |text: &str, calls: &[(&str, &str, String)], stop: &str| match mock.dialect {
        Dialect::Anthropic => anthropic_stream(text, calls, stop),
        Dialect::OpenAi => openai_stream(text, calls, stop),
    };
    let some = |fraction: usize| {
        let mut events = whole(
            "I think that",
            &[("toolu_x", "kubectl", "{\"args\":[\"get\"]}".into())],
            "",
        );
        events.truncate(events.len() * fraction / 4);
        events
    };
    match reply {
        Some(Reply::Answer(text, calls)) => stream(whole(text, &calls, ""), End::Clean),
        Some(Reply::Stopped(text, calls, stop)) => stream(whole(text, &calls, stop), End::Clean),
        Some(Reply::Status(status, headers, body)) => {
            let mut response = (StatusCode::from_u16(status).unwrap(), body.to_string()).into_response();
            for (name, value) in headers {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            response
        }
        Some(Reply::Truncated) => stream(some(3), End::Clean),
        Some(Reply::Cut) => stream(some(2), End::Cut),
        Some(Reply::Stalled) => stream(some(2), End::Never),
        Some(Reply::Silent) => std::future::pending().await,
        Some(Reply::Garbage) => {
            let mut events = some(2);
            events.push("data: {\"half\": \n\n".into());
            stream(events, End::Clean)
        }
        Some(Reply::FailsMidway) => {
            let mut events = some(2);
            events.push("event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"Overloaded\"}}\n\n".into());
            stream(events, End::Clean)
        }
        Some(Reply::NotAStream) => {
            ([("content-type", "application/json")], "{\"content\":[]}").into_response()
        }
        None => (StatusCode::IM_A_TEAPOT, "the mock has no more replies").into_response(),
    }
}

enum End {
    Clean,
    Cut,
    Never,
}

fn stream(events: Vec<String>, end: End) -> Response {
    let whole: String = events.concat();
    // In small pieces, so that events are cut anywhere on their way.
    let mut pieces: Vec<Result<Bytes, std::io::Error>> = whole
        .as_bytes()
        .chunks(37)
        .map(|piece| Ok(Bytes::copy_from_slice(piece)))
        .collect();
    if matches!(end, End::Cut) {
        pieces.push(Err(std::io::Error::other("cut")));
    }
    let pieces = futures_util::stream::iter(pieces);
    let body = match end {
        End::Never => Body::from_stream(futures_util::StreamExt::chain(
            pieces,
            futures_util::stream::pending(),
        )),
        End::Clean | End::Cut => Body::from_stream(pieces),
    };
    ([("content-type", "text/event-stream; charset=utf-8")], body).into_response()
}

fn event(name: &str, data: &Value) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

pub fn anthropic_stream(text: &str, calls: &[(&str, &str, String)], stop: &str) -> Vec<String> {
    let usage = json!({"input_tokens": 70, "cache_read_input_tokens": 20, "cache_creation_input_tokens": 10, "output_tokens": 1});
    let mut events = vec![
        event(
            "message_start",
            &json!({"type": "message_start", "message": {"role": "assistant", "usage": usage, "new": 1}}),
        ),
        event("ping", &json!({"type": "ping"})),
        // A block of a kind that did not exist when we were written.
        event(
            "content_block_start",
            &json!({"type": "content_block_start", "index": 0, "content_block": {"type": "reverie"}}),
        ),
        event(
            "content_block_delta",
            &json!({"type": "content_block_delta", "index": 0, "delta": {"type": "dream_delta", "dream": "x"}}),
        ),
        event(
            "content_block_stop",
            &json!({"type": "content_block_stop", "index": 0}),
        ),
    ];
    let mut index = 1;
    if !text.is_empty() {
        events.push(event("content_block_start", &json!({"type": "content_block_start", "index": index, "content_block": {"type": "text", "text": ""}})));
        for piece in pieces(text) {
            events.push(event("content_block_delta", &json!({"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": piece}})));
        }
        events.push(event(
            "content_block_stop",
            &json!({"type": "content_block_stop", "index": index}),
        ));
        index += 1;
    }
    for (id, tool, arguments) in calls {
        let block = json!({"type": "tool_use", "id": id, "name": tool, "input": {}});
        events.push(event(
            "content_block_start",
            &json!({"type": "content_block_start", "index": index, "content_block": block}),
        ));
        for piece in pieces(arguments) {
            events.push(event("content_block_delta", &json!({"type": "content_block_delta", "index": index, "delta": {"type": "input_json_delta", "partial_json": piece}})));
        }
        events.push(event(
            "content_block_stop",
            &json!({"type": "content_block_stop", "index": index}),
        ));
        index += 1;
    }
    let usual = if calls.is_empty() { "end_turn" } else { "tool_use" };
    let stop = if stop.is_empty() { usual } else { stop };
    events.push(event(
        "message_delta",
        &json!({"type": "message_delta", "delta": {"stop_reason": stop}, "usage": {"output_tokens": 30}}),
    ));
    events.push(event("message_stop", &json!({"type": "message_stop"})));
    events
}

fn openai_stream(text: &str, calls: &[(&str, &str, String)], stop: &str) -> Vec<String> {
    let chunk = |delta: Value, finish: Value| {
        format!(
            "data: {}\n\n",
            json!({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], "new": 1})
        )
    };
    let mut events = vec![
        ": hello\n\n".to_owned(),
        chunk(json!({"role": "assistant", "content": ""}), Value::Null),
    ];
    for piece in pieces(text) {
        events.push(chunk(json!({"content": piece}), Value::Null));
    }
    for (index, (id, tool, arguments)) in calls.iter().enumerate() {
        events.push(chunk(json!({"tool_calls": [{"index": index, "id": id, "type": "function", "function": {"name": tool, "arguments": ""}}]}), Value::Null));
        for piece in pieces(arguments) {
            events.push(chunk(
                json!({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}),
                Value::Null,
            ));
        }
    }
    let usual = if calls.is_empty() { "stop" } else { "tool_calls" };
    events.push(chunk(
        json!({}),
        json!(if stop.is_empty() { usual } else { stop }),
    ));
    let usage = json!({"prompt_tokens": 100, "completion_tokens": 30, "prompt_tokens_details": {"cached_tokens": 20}});
    events.push(format!("data: {}\n\n", json!({"choices": [], "usage": usage})));
    events.push("data: [DONE]\n\n".to_owned());
    events
}

fn pieces(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    chars.chunks(9).map(|piece| piece.iter().collect()).collect()
}

fn grade_anthropic(headers: &HeaderMap, request: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    let mut want = |holds: bool, what: &str| {
        if !holds {
            problems.push(what.to_owned());
        }
    };
    want(
        headers.get("x-api-key").is_some_and(|key| key == KEY),
        "no x-api-key",
    );
    want(headers.contains_key("anthropic-version"), "no anthropic-version");
    want(
        headers
            .get("content-type")
            .is_some_and(|kind| kind == "application/json"),
        "no content type",
    );
    want(request["stream"] == true, "no stream");
    want(
        request["max_tokens"].as_u64().is_some_and(|max| max > 0),
        "no max_tokens",
    );
    want(
        request["system"][0]["text"]
            .as_str()
            .is_some_and(|text| text.contains("submit_findings")),
        "no system prompt",
    );
    let tools = request["tools"].as_array().cloned().unwrap_or_default();
    want(
        !tools.is_empty() && tools.iter().all(|tool| tool["input_schema"]["type"] == "object"),
        "bad tools",
    );
    let messages = request["messages"].as_array().cloned().unwrap_or_default();
    for (at, message) in messages.iter().enumerate() {
        want(
            message["role"] == if at % 2 == 0 { "user" } else { "assistant" },
            "roles do not alternate",
        );
        let blocks = message["content"].as_array().cloned().unwrap_or_default();
        want(!blocks.is_empty(), "an empty message");
        want(
            blocks.iter().all(|block| {
                block["type"] != "text" || !block["text"].as_str().unwrap_or("").trim().is_empty()
            }),
            "an empty text",
        );
        let ids = |blocks: &[Value], kind: &str, key: &str| -> BTreeSet<String> {
            blocks
                .iter()
                .filter(|b| b["type"] == kind)
                .map(|b| b[key].as_str().unwrap_or("").to_owned())
                .collect()
        };
        let called = ids(&blocks, "tool_use", "id");
        let next = messages
            .get(at + 1)
            .and_then(|m| m["content"].as_array())
            .cloned()
            .unwrap_or_default();
        want(
            called == ids(&next, "tool_result", "tool_use_id"),
            "calls and results are not paired",
        );
        let first_other = blocks
            .iter()
            .position(|b| b["type"] != "tool_result")
            .unwrap_or(blocks.len());
        want(
            blocks[first_other..].iter().all(|b| b["type"] != "tool_result"),
            "results do not stand first",
        );
        want(
            blocks
                .iter()
                .filter(|b| b["type"] == "tool_use")
                .all(|b| b["input"].is_object()),
            "input is no object",
        );
    }
    want(messages.len() % 2 == 1, "the last message is not the user's");
    problems
}

fn grade_openai(headers: &HeaderMap, request: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    let mut want = |holds: bool, what: &str| {
        if !holds {
            problems.push(what.to_owned());
        }
    };
    want(
        headers
            .get("authorization")
            .is_some_and(|key| *key == *format!("Bearer {KEY}")),
        "no authorization",
    );
    want(
        request["stream"] == true && request["stream_options"]["include_usage"] == true,
        "no stream with usage",
    );
    want(
        request["max_tokens"].as_u64().is_some_and(|max| max > 0),
        "no max_tokens",
    );
    let tools = request["tools"].as_array().cloned().unwrap_or_default();
    want(
        !tools.is_empty()
            && tools
                .iter()
                .all(|tool| tool["type"] == "function" && tool["function"]["parameters"]["type"] == "object"),
        "bad tools",
    );
    let messages = request["messages"].as_array().cloned().unwrap_or_default();
    want(
        messages.first().is_some_and(|m| m["role"] == "system"),
        "no system prompt",
    );
    let mut open: Vec<String> = Vec::new();
    for message in &messages {
        match message["role"].as_str() {
            Some("tool") => {
                let id = message["tool_call_id"].as_str().unwrap_or("").to_owned();
                want(open.first() == Some(&id), "a result without its call");
                open.retain(|known| *known != id);
            }
            Some("assistant") => {
                want(open.is_empty(), "calls without results");
                for call in message["tool_calls"].as_array().into_iter().flatten() {
                    open.push(call["id"].as_str().unwrap_or("").to_owned());
                    let arguments = call["function"]["arguments"].as_str().unwrap_or("");
                    want(
                        serde_json::from_str::<Value>(arguments).is_ok_and(|v| v.is_object()),
                        "arguments are no JSON",
                    );
                }
            }
            Some("user" | "system") => want(open.is_empty(), "calls without results"),
            _ => want(false, "an unknown role"),
        }
    }
    want(open.is_empty(), "calls without results at the end");
    problems
}
