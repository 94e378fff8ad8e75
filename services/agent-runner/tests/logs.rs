//! The logs tool against a stand-in for Loki that answers with documents in the form of Loki's HTTP API, and notes how
//! it was asked.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use agent_runner::{
    redact::{Redactor, untagged},
    tools::{Given, Surroundings, Toolbox},
};
use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
};
use expect_test::expect;
use protocol::Timestamp;
use serde_json::{Map, Value, json};
use service::Metrics;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// One request, as it came.
#[derive(Clone, Debug)]
struct Asked {
    method: Method,
    path: String,
    parameters: BTreeMap<String, String>,
    tenant: Option<String>,
}

type Answer = Arc<dyn Fn() -> Response + Send + Sync>;

struct Loki {
    url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Loki {
    /// One that always answers the same.
    async fn start(answer: impl Fn() -> Response + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (noted, answer): (_, Answer) = (Arc::clone(&asked), Arc::new(answer));
        let app = Router::new().fallback(move |request: Request| {
            let (noted, answer) = (Arc::clone(&noted), Arc::clone(&answer));
            async move {
                let query = request.uri().query().unwrap_or_default();
                let url = reqwest::Url::parse(&format!("http://x/?{query}")).unwrap();
                noted.lock().unwrap().push(Asked {
                    method: request.method().clone(),
                    path: request.uri().path().to_owned(),
                    parameters: url.query_pairs().into_owned().collect(),
                    tenant: request
                        .headers()
                        .get("x-scope-orgid")
                        .map(|value| value.to_str().unwrap().to_owned()),
                });
                answer()
            }
        });
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, asked }
    }

    async fn answering(document: Value) -> Self {
        Self::start(move || json_response(&document)).await
    }

    fn last(&self) -> Asked {
        self.asked.lock().unwrap().last().unwrap().clone()
    }

    fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    async fn ask(&self, arguments: Value) -> Given {
        Asking::of(&self.url).ask(arguments).await
    }
}

fn json_response(document: &Value) -> Response {
    (
        [("content-type", "application/json; charset=UTF-8")],
        document.to_string(),
    )
        .into_response()
}

/// How the tool is set up.
struct Asking {
    of_workflow: Option<String>,
    tools: service::config::Tools,
    output_bytes_max: usize,
    timeout_ms: u64,
}

impl Asking {
    fn of(url: &str) -> Self {
        Self {
            of_workflow: Some(url.to_owned()),
            tools: service::Config::default().tools,
            output_bytes_max: 32 * 1024,
            timeout_ms: 20_000,
        }
    }

    fn toolbox(&self) -> Result<Toolbox, String> {
        let mut env = Map::new();
        if let Some(url) = &self.of_workflow {
            env.insert("LOKI_URL".to_owned(), json!(url));
        }
        Toolbox::from_config(
            &["logs".to_owned()],
            &Surroundings {
                tools: &self.tools,
                output_bytes_max: self.output_bytes_max,
                timeout_ms: self.timeout_ms,
                env: &env,
                namespace: "prod",
                investigator: None,
                earlier: None,
                redactor: &Redactor::new(&[], []).unwrap(),
            },
        )
    }

    async fn ask(&self, arguments: Value) -> Given {
        let redactor = Redactor::new(&[], []).unwrap();
        self.toolbox()
            .unwrap()
            .call(
                "logs",
                &arguments,
                Duration::from_secs(60),
                &redactor,
                &Metrics::new(),
            )
            .await
    }
}

/// 2026-01-01T10:00:00Z, and so many milliseconds, as Loki writes it.
fn at(ms: i64) -> String {
    let base: Timestamp = "2026-01-01T10:00:00Z".parse().unwrap();
    format!("{}000000", base.as_millis() + ms)
}

/// The documented answer of a query for lines.
fn streams(result: Value) -> Value {
    json!({
        "status": "success",
        "data": {
            "resultType": "streams",
            "result": result,
            "stats": {"summary": {"bytesProcessedPerSecond": 0, "totalLinesProcessed": 6, "execTime": 0.001}},
        },
    })
}

const HOUR: (&str, &str) = ("2026-01-01T10:00:00Z", "2026-01-01T11:00:00Z");

fn in_hour(query: &str) -> Value {
    json!({"query": query, "start": HOUR.0, "end": HOUR.1})
}

#[tokio::test]
async fn lines_of_all_streams_are_merged_folded_and_told_apart() {
    let loki = Loki::answering(streams(json!([
        {
            "stream": {"namespace": "prod", "pod": "web-1", "stream": "stderr"},
            // The newest first, as with direction=backward.
            "values": [
                [at(9000), "panic: out of memory\n  at main.go:7"],
                [at(5000), "retrying"],
                [at(4000), "retrying"],
                [at(3000), "retrying"],
                [at(1000), "connecting with password=hunter2"],
            ],
        },
        {
            "stream": {"namespace": "prod", "pod": "web-2", "stream": "stderr"},
            "values": [[at(9500), "retrying"], [at(2000), "ready"]],
        },
    ])))
    .await;
    let given = loki.ask(in_hour("{namespace=\"prod\"} |= \"\"")).await;
    assert!(!given.is_error);
    expect![[r#"
        7 lines of 2 streams from 2026-01-01T10:00:00.000Z to 2026-01-01T11:00:00.000Z, oldest first
        all of {namespace="prod", stream="stderr"}
        2026-01-01T10:00:01.000Z {pod="web-1"} connecting with password=[REDACTED:value]
        2026-01-01T10:00:02.000Z {pod="web-2"} ready
        2026-01-01T10:00:03.000Z {pod="web-1"} retrying (×3, until 2026-01-01T10:00:05.000Z)
        2026-01-01T10:00:09.000Z {pod="web-1"} panic: out of memory
              at main.go:7
        2026-01-01T10:00:09.500Z {pod="web-2"} retrying"#]]
    .assert_eq(&untagged(&given.text));
    let asked = loki.last();
    assert_eq!(
        (asked.method, asked.path.as_str()),
        (Method::GET, "/loki/api/v1/query_range")
    );
    assert_eq!(asked.tenant, None);
    assert_eq!(
        asked.parameters,
        BTreeMap::from(
            [
                ("query", "{namespace=\"prod\"} |= \"\""),
                ("start", at(0).as_str()),
                ("end", at(3_600_000).as_str()),
                ("limit", "100"),
                ("direction", "backward"),
                ("step", "30"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
        )
    );
}

#[tokio::test]
async fn lines_of_one_instant_stay_in_their_order() {
    for direction in ["backward", "forward"] {
        let mut values = vec![
            json!([at(0), "first"]),
            json!([at(0), "second"]),
            json!([at(1), "third"]),
        ];
        if direction == "backward" {
            values.reverse();
        }
        let loki = Loki::answering(streams(json!([{"stream": {"a": "b"}, "values": values}]))).await;
        let mut ask = in_hour("{a=\"b\"}");
        ask["direction"] = json!(direction);
        let given = loki.ask(ask).await;
        let ends: Vec<&str> = given
            .text
            .lines()
            .skip(2)
            .map(|line| line.split(' ').nth(1).unwrap())
            .collect();
        assert_eq!(ends, ["first", "second", "third"], "{}", given.text);
        assert_eq!(loki.last().parameters["direction"], direction);
    }
}

#[tokio::test]
async fn what_the_limit_and_the_size_leave_out_is_said() {
    let many: Vec<Value> = (0..100)
        .rev()
        .map(|n| json!([at(n * 1000), format!("line {n} {}", "x".repeat(300))]))
        .collect();
    let loki = Loki::answering(streams(json!([{"stream": {}, "values": many}]))).await;
    let mut asking = Asking::of(&loki.url);
    asking.output_bytes_max = 8 * 1024;
    let newest = asking.ask(in_hour("{a=\"b\"}")).await.text;
    assert!(newest.len() <= 8 * 1024 && newest.contains(" line 99 ") && !newest.contains(" line 0 "));
    assert!(newest.starts_with("100 lines of 1 streams "), "{newest}");
    assert!(
        newest.contains("these are the newest 100; older ones may follow"),
        "{newest}"
    );
    assert!(
        newest.contains("lines at the beginning left out: more than 7168 bytes"),
        "{newest}"
    );
    assert!(!newest.contains("left out here"), "cut a second time: {newest}");
    // The oldest first, and they are what is kept.
    let oldest: Vec<Value> = many.iter().rev().cloned().collect();
    let loki = Loki::answering(streams(json!([{"stream": {}, "values": oldest}]))).await;
    let mut asking = Asking::of(&loki.url);
    asking.output_bytes_max = 8 * 1024;
    let mut forward = in_hour("{a=\"b\"}");
    forward["direction"] = json!("forward");
    forward["limit"] = json!(1000);
    let oldest = asking.ask(forward).await.text;
    assert!(
        oldest.contains(" line 0 ") && !oldest.contains(" line 99 "),
        "{oldest}"
    );
    assert!(
        !oldest.contains("these are the"),
        "the limit was not reached: {oldest}"
    );
    assert!(
        oldest
            .lines()
            .last()
            .unwrap()
            .contains("lines at the end left out"),
        "{oldest}"
    );
    assert_eq!(loki.last().parameters["limit"], "1000");
}

#[tokio::test]
async fn a_long_line_is_cut_after_its_secrets_were_taken_out() {
    // The token stands over the place where the line is cut.
    let token = format!("ghp_{}", "a1".repeat(20));
    let line = format!("{} {token} {}", "x".repeat(1980), "y".repeat(100_000));
    let loki = Loki::answering(streams(json!([{"stream": {}, "values": [[at(0), line]]}]))).await;
    let text = loki.ask(in_hour("{a=\"b\"}")).await.text;
    assert!(!text.contains("ghp_"), "{text}");
    assert!(
        text.contains("[REDACTED:") && text.contains("bytes of this line cut]"),
        "{text}"
    );
    assert!(text.len() < 2500, "{}", text.len());
}

#[tokio::test]
async fn metric_queries_are_summarised_as_those_of_prometheus() {
    let loki = Loki::answering(json!({
        "status": "success",
        "data": {"resultType": "matrix", "stats": {}, "result": [
            {"metric": {"level": "info"}, "values": [[1_588_889_221, "137.95"], [1_588_889_251, "467.115"], [1_588_889_281, "658.86"]]},
            {"metric": {"level": "warn"}, "values": [[1_588_889_221, "3"], [1_588_889_251, "3"]]},
        ]},
    }))
    .await;
    expect![[r#"
        from 2026-01-01T10:00:00.000Z to 2026-01-01T11:00:00.000Z, one point every 30 s
        2 series (range)
        {level="info"} count=3 min=137.95 mean=421.308 max=658.86 last=658.86 trend=rising (137.95 -> 658.86)
        {level="warn"} count=2 min=3 mean=3 max=3 last=3 trend=flat (3 -> 3)"#]]
    .assert_eq(
        &loki
            .ask(in_hour("sum by (level) (rate({a=\"b\"}[5m]))"))
            .await
            .text,
    );

    let loki = Loki::answering(json!({
        "status": "success",
        "data": {"resultType": "vector", "stats": {}, "result": [
            {"metric": {}, "value": [1_588_889_221, "1267.1266666666666"]},
            {"metric": {"level": "warn"}, "value": [1_588_889_221, "37.77166666666667"]},
        ]},
    }))
    .await;
    let mut instant = in_hour("sum by (level) (rate({a=\"b\"}[5m]))");
    instant["instant"] = json!(true);
    assert_eq!(
        loki.ask(instant).await.text,
        "2 series (value)\n{} 1267.13\n{level=\"warn\"} 37.7717"
    );
    let asked = loki.last();
    assert_eq!(asked.path, "/loki/api/v1/query");
    assert_eq!(asked.parameters["time"], at(3_600_000));
    assert!(!asked.parameters.contains_key("start"));
}

#[tokio::test]
async fn labels_and_their_values_are_listed() {
    let loki = Loki::answering(json!({"status": "success", "data": ["namespace", "pod"]})).await;
    assert_eq!(
        loki.ask(json!({"label": "*"})).await.text,
        "2 labels\nnamespace\npod"
    );
    assert_eq!(loki.last().path, "/loki/api/v1/labels");
    assert_eq!(
        loki.ask(json!({"label": "pod", "query": "{namespace=\"prod\"}", "since": "6h"}))
            .await
            .text,
        "2 values of pod\nnamespace\npod"
    );
    let asked = loki.last();
    assert_eq!(asked.path, "/loki/api/v1/label/pod/values");
    assert_eq!(asked.parameters["query"], "{namespace=\"prod\"}");
    let range = |key: &str| asked.parameters[key].parse::<i64>().unwrap();
    assert_eq!(range("end") - range("start"), 6 * 3600 * 1_000_000_000);

    let many: Vec<String> = (0..600).map(|n| format!("pod-{n}")).collect();
    let loki = Loki::answering(json!({"status": "success", "data": many})).await;
    let text = loki.ask(json!({"label": "pod"})).await.text;
    assert!(text.starts_with("600 values of pod\npod-0\n"), "{text}");
    assert!(
        text.ends_with("… 100 more left out; give a `query` that selects fewer streams"),
        "{text}"
    );
    // Loki leaves `data` out where there is none.
    let none = Loki::answering(json!({"status": "success"})).await;
    assert_eq!(
        none.ask(json!({"label": "*"})).await.text,
        "no labels in this range"
    );
    let none = Loki::answering(streams(json!([]))).await;
    assert_eq!(
        none.ask(in_hour("{a=\"b\"}")).await.text,
        "no lines match from 2026-01-01T10:00:00.000Z to 2026-01-01T11:00:00.000Z"
    );
}

#[tokio::test]
async fn errors_and_warnings_are_the_servers() {
    let mut warned = streams(json!([{"stream": {}, "values": [[at(0), "x"]]}]));
    warned["warnings"] = json!(["max series reached, result is partial"]);
    let loki = Loki::answering(warned).await;
    let given = loki.ask(in_hour("{a=\"b\"}")).await;
    assert!(
        given
            .text
            .starts_with("warning: max series reached, result is partial\n1 lines of 1 streams"),
        "{}",
        given.text
    );
    let too_long = "x".repeat(5000);
    let cases: [(u16, &str, &str, &str); 8] = [
        (
            400,
            "text/plain",
            "parse error at line 1, col 2: syntax error: unexpected IDENTIFIER\n",
            "failed: Loki answered 400: parse error at line 1, col 2: syntax error: unexpected IDENTIFIER",
        ),
        (
            400,
            "application/json",
            r#"{"status":"error","errorType":"bad_data","error":"the query time range exceeds the limit"}"#,
            "failed: Loki answered 400: the query time range exceeds the limit",
        ),
        (
            401,
            "text/plain",
            "no org id\n",
            "failed: Loki answered 401: no org id; the operator names a tenant in tools.loki_tenant",
        ),
        (
            404,
            "text/plain",
            "404 page not found",
            "failed: Loki answered 404: 404 page not found; what answers there is perhaps no Loki",
        ),
        (
            429,
            "text/plain",
            "too many outstanding requests",
            "failed: Loki answered 429: too many outstanding requests",
        ),
        (
            500,
            "text/plain",
            "",
            "failed: Loki answered 500: no reason given",
        ),
        (502, "text/html", &too_long, "bytes of this line cut]"),
        // A redirect, such as to a login page, is not followed.
        (
            302,
            "text/html",
            "see there",
            "failed: Loki answered 302: see there",
        ),
    ];
    for (status, kind, body, wanted) in cases {
        let (kind, body) = (kind.to_owned(), body.to_owned());
        let loki = Loki::start(move || {
            let status = StatusCode::from_u16(status).unwrap();
            (
                status,
                [
                    ("content-type", kind.clone()),
                    ("location", "http://127.0.0.1:1/".to_owned()),
                ],
                body.clone(),
            )
                .into_response()
        })
        .await;
        let given = loki.ask(in_hour("{a=\"b\"}")).await;
        assert!(
            given.is_error && given.text.ends_with(wanted),
            "{status}: {}",
            given.text
        );
        assert!(given.text.len() < 1200, "{status}: {}", given.text.len());
    }
    for (document, wanted) in [
        (
            json!({"status": "success", "data": {"resultType": "histogram", "result": []}}),
            "not known here",
        ),
        (
            streams(
                json!([{"stream": {}, "values": [[1, "number for a time"], ["1"], "x", [at(0), "good"]]}]),
            ),
            "3 entries are not as Loki writes them",
        ),
    ] {
        let given = Loki::answering(document).await.ask(in_hour("{a=\"b\"}")).await;
        assert!(given.text.contains(wanted), "{}", given.text);
    }
    let page = Loki::start(|| "<html>welcome</html>".into_response()).await;
    let given = page.ask(in_hour("{a=\"b\"}")).await;
    assert!(
        given.is_error
            && given
                .text
                .ends_with("answered 200 OK and no JSON: it is perhaps no Loki"),
        "{}",
        given.text
    );
}

#[tokio::test]
async fn the_tenant_of_the_configuration_is_named() {
    let loki = Loki::answering(json!({"status": "success", "data": []})).await;
    let mut asking = Asking::of(&loki.url);
    asking.of_workflow = None;
    asking.tools.loki_url = format!("{}/logs/", loki.url);
    asking.tools.loki_tenant = Some("team-a|team-b".to_owned());
    assert!(!asking.ask(json!({"label": "*"})).await.is_error);
    let asked = loki.last();
    assert_eq!(asked.tenant.as_deref(), Some("team-a|team-b"));
    assert_eq!(asked.path, "/logs/loki/api/v1/labels");
}

#[tokio::test]
async fn bad_calls_are_refused_before_anything_is_asked() {
    let loki = Loki::answering(json!({"status": "success", "data": []})).await;
    for (arguments, wanted) in [
        (json!({}), "give a `query`, or a `label`"),
        (json!({"query": "  "}), "give a `query`, or a `label`"),
        (json!({"label": "../../admin"}), "is no label's name"),
        (json!({"label": "a/b"}), "is no label's name"),
        (json!({"label": "9a"}), "is no label's name"),
        (json!({"label": "pod?x=1"}), "is no label's name"),
        (
            json!({"query": "{}", "since": "yesterday"}),
            "`since` is no duration",
        ),
        (json!({"query": "{}", "since": "0s"}), "`since` is no duration"),
        (json!({"query": "{}", "since": "31d"}), "up to 30 days"),
        (
            json!({"query": "{}", "since": "1h", "start": HOUR.0}),
            "exclude each other",
        ),
        (
            json!({"query": "{}", "start": "noon"}),
            "start: `noon` is not an RFC 3339 instant",
        ),
        (
            json!({"query": "{}", "end": "noon"}),
            "end: `noon` is not an RFC 3339 instant",
        ),
        (
            json!({"query": "{}", "start": HOUR.1, "end": HOUR.0}),
            "the range is empty",
        ),
        (
            json!({"query": "{}", "start": HOUR.0, "end": HOUR.0}),
            "the range is empty",
        ),
        (
            json!({"query": "{}", "start": "2025-01-01T00:00:00Z", "end": HOUR.0}),
            "longer than 30 days",
        ),
        (
            json!({"query": "{}", "limit": 0}),
            "limit must be between 1 and 1000",
        ),
        (
            json!({"query": "{}", "limit": 1001}),
            "limit must be between 1 and 1000",
        ),
        (
            json!({"query": "{}", "direction": "up"}),
            "direction must be one of",
        ),
        (
            json!({"query": "{}", "instant": "yes"}),
            "instant must be boolean or null",
        ),
    ] {
        let given = loki.ask(arguments.clone()).await;
        assert!(
            given.outcome == "refused" && given.text.contains(wanted),
            "{arguments}: {}",
            given.text
        );
    }
    assert_eq!(loki.count(), 0);
    for (url, wanted) in [
        ("loki:3100", "the workflow's LOKI_URL is no address"),
        ("ftp://loki", "the workflow's LOKI_URL is no address"),
        ("file:///etc/passwd", "the workflow's LOKI_URL is no address"),
    ] {
        let error = Asking::of(url).toolbox().err().unwrap();
        assert!(error.contains(wanted), "{error}");
    }
}

#[tokio::test]
async fn a_huge_answer_a_broken_one_and_none_at_all_are_explained() {
    // More than may be read, without an end.
    let endless = Loki::start(|| {
        let piece = bytes::Bytes::from(vec![b'x'; 1024 * 1024]);
        let pieces = futures_util::stream::repeat_with(move || Ok::<_, std::io::Error>(piece.clone()));
        Body::from_stream(pieces).into_response()
    })
    .await;
    let given = endless.ask(in_hour("{a=\"b\"}")).await;
    assert!(
        given.is_error
            && given
                .text
                .contains("has more than 16777216 bytes; use a smaller limit or range"),
        "{}",
        given.text
    );
    // It promises more than it sends.
    let breaking = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", breaking.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = breaking.accept().await.unwrap();
        let mut request = [0; 4096];
        assert!(stream.read(&mut request).await.unwrap() > 0);
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"status\":";
        stream.write_all(answer).await.unwrap();
    });
    let given = Asking::of(&url).ask(in_hour("{a=\"b\"}")).await;
    assert!(
        given.is_error && given.text.contains("broke off"),
        "{}",
        given.text
    );

    // It accepts, and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut asking = Asking::of(&format!("http://{}", silent.local_addr().unwrap()));
    asking.timeout_ms = 200;
    let begun = Instant::now();
    let given = asking.ask(in_hour("{a=\"b\"}")).await;
    assert!(
        given.outcome == "timeout" && given.text.contains("longer than 0.2 s"),
        "{}",
        given.text
    );
    assert!(begun.elapsed() < Duration::from_secs(20));

    // It begins an answer, and does not go on.
    let slow = Loki::start(|| {
        let first = futures_util::stream::iter([Ok::<_, std::io::Error>(bytes::Bytes::from_static(b"{"))]);
        Body::from_stream(futures_util::StreamExt::chain(
            first,
            futures_util::stream::pending(),
        ))
        .into_response()
    })
    .await;
    let mut asking = Asking::of(&slow.url);
    asking.timeout_ms = 200;
    assert_eq!(asking.ask(in_hour("{a=\"b\"}")).await.outcome, "timeout");

    drop(silent);
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let given = Asking::of(&format!("http://user:hunter2@127.0.0.1:{port}"))
        .ask(in_hour("{a=\"b\"}"))
        .await;
    assert!(
        given.is_error
            && given
                .text
                .contains("Its address is the workflow's LOKI_URL, else tools.loki_url")
            && !given.text.contains("hunter2"),
        "{}",
        given.text
    );
}
