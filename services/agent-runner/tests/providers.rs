//! Both HTTP providers against mock servers that misbehave in every way that is known of real ones.
#![allow(clippy::unwrap_used)]

mod mock;

use std::time::Duration;

use agent_runner::llm::{
    self, Answer, LlmError, LlmErrorKind, MALFORMED, Message, Request, Stop, ToolResult, ToolSpec,
};
use mock::{DIALECTS, Dialect, KEY, Mock, Reply};
use protocol::turns::{ToolCall, Usage};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

const WITHIN: Duration = Duration::from_secs(20);

fn conversation() -> Vec<Message> {
    let call = |id: &str| ToolCall {
        id: id.into(),
        tool: "kubectl".into(),
        arguments: json!({"args": ["get", "pods"]}),
    };
    let result = |id: &str| ToolResult {
        call_id: id.into(),
        recorded: "x".into(),
        shown: "fenced x".into(),
        is_error: id == "b",
    };
    let broken = ToolCall {
        arguments: json!({ MALFORMED: "{\"args\":" }),
        ..call("b")
    };
    vec![
        Message::User("look".into()),
        Message::Assistant {
            text: "I look ".into(),
            calls: vec![call("a"), broken],
        },
        Message::Results(vec![result("a"), result("b")]),
        Message::Assistant {
            text: String::new(),
            calls: vec![],
        },
        Message::User("go on".into()),
    ]
}

async fn ask(mock: &Mock, within: Duration) -> Result<Answer, LlmError> {
    let mut config = service::Config::default().llm;
    config.idle_timeout_ms = 400;
    config.first_byte_timeout_ms = 1000;
    config.retries_max = 3;
    let asked: Map<String, Value> =
        json!({"provider": mock.dialect.name(), "model": "test-model", "temperature": 0.2})
            .as_object()
            .unwrap()
            .clone();
    let choice = llm::from_config(&asked, &config, &mock.secrets(), None).unwrap();
    let messages = conversation();
    choice
        .provider
        .answer(&Request {
            system: "rules; end by submit_findings",
            goal: "look",
            messages: &messages,
            tools: &[ToolSpec {
                name: "kubectl".into(),
                description: "d".into(),
                schema: json!({"type": "object"}),
            }],
            must_call: None,
            output_tokens_max: 100,
            deadline: Instant::now() + within,
            idempotency_key: "key",
        })
        .await
}

fn good() -> Reply {
    Reply::Answer(
        "Lööking",
        vec![
            ("call_1", "kubectl", "{\"args\":[\"get\",\"pods\"]}".into()),
            ("call_2", "kubectl", String::new()),
        ],
    )
}

fn status(code: u16, body: Value) -> Reply {
    Reply::Status(code, vec![], body)
}

fn error_body(kind: &str, message: &str) -> Value {
    json!({"type": "error", "error": {"type": kind, "message": message}})
}

#[tokio::test]
async fn a_whole_answer_is_read_and_the_request_is_well_formed() {
    for dialect in DIALECTS {
        let mock = Mock::start(dialect, vec![good()]).await;
        let answer = ask(&mock, WITHIN).await.unwrap();
        assert_eq!(answer.text, "Lööking");
        assert_eq!(answer.stop, Stop::Finished);
        assert_eq!(
            answer.calls,
            [
                ToolCall {
                    id: "call_1".into(),
                    tool: "kubectl".into(),
                    arguments: json!({"args": ["get", "pods"]})
                },
                ToolCall {
                    id: "call_2".into(),
                    tool: "kubectl".into(),
                    arguments: json!({})
                },
            ]
        );
        assert_eq!(
            answer.usage,
            Usage {
                input_tokens: 100,
                output_tokens: 30,
                cached_tokens: 20
            }
        );
        assert_eq!(mock.problems(), Vec::<String>::new(), "{dialect:?}");
        let request = &mock.requests()[0];
        assert_eq!(request["temperature"], 0.2);
        assert_eq!(request["model"], "test-model");
    }
}

/// Faults that another attempt cures: two requests, one answer.
#[tokio::test]
async fn what_passes_is_tried_again() {
    let slow_down = |code| {
        Reply::Status(
            code,
            vec![("retry-after-ms", "30")],
            error_body("rate_limit_error", "slow down"),
        )
    };
    let faults = [
        slow_down(429),
        slow_down(529),
        status(503, json!("no JSON object")),
        status(500, json!({})),
        status(408, json!({})),
        status(502, json!({"error": "bad gateway"})),
        Reply::Truncated,
        Reply::Cut,
        Reply::Stalled,
        Reply::Silent,
        Reply::Garbage,
        Reply::FailsMidway,
    ];
    let cases = DIALECTS
        .into_iter()
        .flat_map(|dialect| faults.clone().map(|fault| (dialect, fault)));
    let runs = cases.map(|(dialect, fault)| async move {
        let mock = Mock::start(dialect, vec![fault.clone(), good()]).await;
        let answer = ask(&mock, WITHIN)
            .await
            .unwrap_or_else(|error| panic!("{dialect:?} {fault:?}: {error}"));
        assert_eq!(answer.text, "Lööking", "{dialect:?} {fault:?}");
        assert_eq!(mock.requests().len(), 2, "{dialect:?} {fault:?}");
    });
    futures_util::future::join_all(runs).await;
}

/// Faults that no other attempt cures: one request, and an error that says what to do.
#[tokio::test]
async fn what_stays_is_tried_once_and_explained() {
    let key_in_text = format!("Incorrect API key provided: {KEY}");
    let faults = [
        (
            status(400, error_body("invalid_request_error", "max_tokens: too large")),
            "answered 400 (invalid_request_error: max_tokens: too large): the request was refused",
        ),
        (
            status(
                400,
                error_body("invalid_request_error", "model does not support tools"),
            ),
            "cannot call tools",
        ),
        (
            status(401, error_body("authentication_error", &key_in_text)),
            "API_KEY",
        ),
        (
            status(403, error_body("permission_error", "no")),
            "may not do this",
        ),
        (
            status(404, error_body("not_found_error", "model: x")),
            "llm_config.model",
        ),
        (status(402, json!({})), "credit"),
        (status(413, json!({})), "refused as it is"),
        (status(307, json!({})), "redirects"),
        (
            status(
                429,
                json!({"error": {"type": "insufficient_quota", "code": "insufficient_quota", "message": "You exceeded your current quota"}}),
            ),
            "quota is exhausted",
        ),
        (
            status(
                429,
                error_body("rate_limit_error", "Your credit balance is too low"),
            ),
            "quota is exhausted",
        ),
        (
            Reply::Stopped("x", vec![], "spontaneous_combustion"),
            "unknown reason, `spontaneous_combustion`",
        ),
        (Reply::NotAStream, "instead of a stream of events"),
    ];
    let cases = DIALECTS
        .into_iter()
        .flat_map(|dialect| faults.clone().map(|fault| (dialect, fault)));
    let runs = cases.map(|(dialect, (fault, said))| async move {
        let mock = Mock::start(dialect, vec![fault.clone(), good()]).await;
        let error = ask(&mock, WITHIN).await.expect_err(said);
        let text = error.to_string();
        assert_eq!(error.kind, LlmErrorKind::Permanent, "{dialect:?} {text}");
        assert!(text.contains(said), "{dialect:?} {text}");
        assert!(
            text.starts_with(&format!("{} (test-model): ", dialect.name())),
            "{text}"
        );
        assert!(!text.contains(KEY), "{text}");
        assert_eq!(mock.requests().len(), 1, "{dialect:?} {text}");
    });
    futures_util::future::join_all(runs).await;
}

#[tokio::test]
async fn what_is_no_answer_is_told_as_such() {
    for (dialect, length, refused) in [
        (Dialect::Anthropic, "max_tokens", "refusal"),
        (Dialect::OpenAi, "length", "content_filter"),
    ] {
        let half = vec![("call_1", "kubectl", "{\"args\":[\"get".to_owned())];
        let mock = Mock::start(
            dialect,
            vec![
                Reply::Stopped("half", half.clone(), length),
                Reply::Answer("", half),
                Reply::Stopped("", vec![], refused),
            ],
        )
        .await;
        let cut = ask(&mock, WITHIN).await.unwrap();
        assert_eq!(cut.stop, Stop::Length);
        let malformed = ask(&mock, WITHIN).await.unwrap();
        assert_eq!(
            malformed.calls[0].arguments,
            json!({ MALFORMED: "{\"args\":[\"get" })
        );
        let declined = ask(&mock, WITHIN).await.unwrap();
        assert_eq!(
            (declined.stop, Stop::of(&declined.stop_reason)),
            (Stop::Declined, Some(Stop::Declined))
        );
    }
}

#[tokio::test]
async fn attempts_and_time_are_bounded() {
    for dialect in DIALECTS {
        let mock = Mock::start(dialect, vec![status(500, json!({})); 9]).await;
        let error = ask(&mock, WITHIN).await.unwrap_err();
        assert_eq!((error.kind, mock.requests().len()), (LlmErrorKind::Exhausted, 4));
        assert!(error.to_string().contains("tried 4 times"), "{error}");
        let late = Reply::Status(429, vec![("retry-after", "3600")], json!({}));
        let mock = Mock::start(dialect, vec![late, good()]).await;
        let begun = Instant::now();
        let error = ask(&mock, WITHIN).await.unwrap_err();
        assert_eq!((error.kind, mock.requests().len()), (LlmErrorKind::Deadline, 1));
        assert!(begun.elapsed() < Duration::from_secs(5));
        let mock = Mock::start(dialect, vec![Reply::Silent]).await;
        let error = ask(&mock, Duration::from_millis(200)).await.unwrap_err();
        assert_eq!(error.kind, LlmErrorKind::Deadline);
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named_as_unreachable() {
    let mock = Mock::start(Dialect::Anthropic, vec![]).await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let error = ask(&Mock { port: closed, ..mock }, Duration::from_secs(2))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("cannot connect"), "{error}");
}
