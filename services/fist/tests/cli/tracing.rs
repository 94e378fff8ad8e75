//! Traces as an OTLP/HTTP receiver gets them: one for each execution, over all services, and none of it in anybody's
//! way.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};

use crate::harness::{Up, eventually, workflow};

/// A receiver, and what came there.
struct Receiver {
    url: String,
    requests: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Receiver {
    async fn start() -> Self {
        type Requests = Arc<Mutex<Vec<(HeaderMap, Bytes)>>>;
        async fn take(State(requests): State<Requests>, headers: HeaderMap, body: Bytes) {
            requests.lock().unwrap().push((headers, body));
        }
        let requests = Requests::default();
        let router = Router::new()
            .route("/v1/traces", post(take))
            .with_state(Arc::clone(&requests));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            url,
            requests,
            serving,
        }
    }

    /// The spans of one trace so far.
    fn spans(&self, trace: &str) -> Vec<Span> {
        let requests = self.requests.lock().unwrap();
        let spans = requests.iter().flat_map(|(headers, body)| {
            assert_eq!(headers["content-type"], "application/x-protobuf");
            assert_eq!(headers["x-tenant"], "blue");
            read_request(body)
        });
        spans.filter(|span| span.trace == trace).collect()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A span as it was received.
#[derive(Clone, Debug, Default)]
struct Span {
    service: String,
    trace: String,
    id: String,
    parent: String,
    name: String,
    kind: u64,
    began: u64,
    ended: u64,
    attributes: BTreeMap<String, String>,
    link: String,
    status: (u64, String),
}

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Field<'a> {
    fn number(&self) -> u64 {
        match self {
            Self::Number(number) => *number,
            Self::Bytes(_) => panic!("a number was expected"),
        }
    }

    fn bytes(&self) -> &'a [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Number(_) => panic!("bytes were expected"),
        }
    }

    fn text(&self) -> String {
        String::from_utf8(self.bytes().to_vec()).unwrap()
    }

    fn hex(&self) -> String {
        self.bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return number;
        }
    }
    panic!("a number of more than 64 bits");
}

/// The fields of a protobuf message. Nothing may be left over.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let value = match tag & 7 {
            0 => Field::Number(varint(&mut bytes)),
            wire => {
                let length = match wire {
                    1 => 8,
                    2 => usize::try_from(varint(&mut bytes)).unwrap(),
                    5 => 4,
                    other => panic!("wire type {other}"),
                };
                let (value, rest) = bytes.split_at(length);
                bytes = rest;
                match wire {
                    1 => Field::Number(u64::from_le_bytes(value.try_into().unwrap())),
                    5 => Field::Number(u32::from_le_bytes(value.try_into().unwrap()).into()),
                    _ => Field::Bytes(value),
                }
            }
        };
        fields.push((tag >> 3, value));
    }
    fields
}

/// `ExportTraceServiceRequest`; a field that is none of ours fails the test.
fn read_request(body: &[u8]) -> Vec<Span> {
    let mut spans = Vec::new();
    for (field, resource_spans) in fields(body) {
        assert_eq!(field, 1);
        let mut service = String::new();
        for (field, value) in fields(resource_spans.bytes()) {
            match field {
                1 => {
                    let attributes = fields(value.bytes()).into_iter();
                    let attributes: BTreeMap<_, _> = attributes
                        .map(|(_, value)| read_attribute(value.bytes()))
                        .collect();
                    service = attributes["service.name"].clone();
                }
                2 => {
                    for (field, value) in fields(value.bytes()) {
                        match field {
                            1 => assert_eq!(fields(value.bytes())[0].1.text(), "punching-fist"),
                            2 => spans.push(read_span(value.bytes(), &service)),
                            other => panic!("ScopeSpans has no field {other}"),
                        }
                    }
                }
                other => panic!("ResourceSpans has no field {other}"),
            }
        }
    }
    spans
}

fn read_span(bytes: &[u8], service: &str) -> Span {
    let mut span = Span {
        service: service.to_owned(),
        ..Span::default()
    };
    for (field, value) in fields(bytes) {
        match field {
            1 => span.trace = value.hex(),
            2 => span.id = value.hex(),
            4 => span.parent = value.hex(),
            5 => span.name = value.text(),
            6 => span.kind = value.number(),
            7 => span.began = value.number(),
            8 => span.ended = value.number(),
            9 => span.attributes.extend([read_attribute(value.bytes())]),
            13 => {
                let parts = fields(value.bytes());
                span.link = format!("{}-{}", parts[0].1.hex(), parts[1].1.hex());
            }
            15 => {
                for (field, value) in fields(value.bytes()) {
                    match field {
                        2 => span.status.1 = value.text(),
                        3 => span.status.0 = value.number(),
                        other => panic!("Status has no field {other}"),
                    }
                }
            }
            16 => assert_eq!(value.number(), 1, "sampled"),
            other => panic!("Span has no field {other} of ours"),
        }
    }
    assert_eq!((span.trace.len(), span.id.len()), (32, 16));
    assert!(
        span.began > 1_600_000_000_000_000_000 && span.ended >= span.began,
        "{span:?}"
    );
    span
}

fn read_attribute(bytes: &[u8]) -> (String, String) {
    let parts = fields(bytes);
    let any = fields(parts[1].1.bytes());
    let value = match any[0] {
        (1, ref text) => text.text(),
        (2, ref flag) => (flag.number() == 1).to_string(),
        (3, ref number) => number.number().cast_signed().to_string(),
        (5, ref list) => {
            let items = fields(list.bytes()).into_iter();
            let items = items.map(|(_, any)| fields(any.bytes())[0].1.text());
            items.collect::<Vec<_>>().join(",")
        }
        (other, _) => panic!("AnyValue has no field {other} of ours"),
    };
    (parts[0].1.text(), value)
}

/// The spans below `parent`, by name: what they are, whose, and how they ended.
fn tree(spans: &[Span], parent: &str, depth: usize) -> String {
    let mut below: Vec<&Span> = spans.iter().filter(|span| span.parent == parent).collect();
    below.sort_by(|one, other| one.name.cmp(&other.name));
    let show = |span: &Span| {
        let (indent, error) = ("  ".repeat(depth), &span.status.1);
        let error = if error.is_empty() {
            String::new()
        } else {
            format!(" !{error}")
        };
        let line = format!("{indent}{} [{}]{error}\n", span.name, span.service);
        line + &tree(spans, &span.id, depth + 1)
    };
    below.into_iter().map(show).collect()
}

const WORKFLOW: &str = "apiVersion: punching-fist.io/v1alpha1
kind: Workflow
metadata: {name: traced}
spec:
  runtime: {llm_config: {provider: scripted, model: well}}
  steps:
  - {name: a-greet, type: cli, command: echo hush-hush}
  - {name: b-is-so, type: conditional, condition: steps.a-greet.output.stdout contains hush}
  - {name: c-look, type: agent, goal: Is hush-hush well?, tools: [curl]}
  - {name: d-fail, type: cli, command: exit 3}
";

const EXPECTED: &str = "\
execution traced [scheduler] !failed
  intake api [ingest]
  step a-greet [scheduler]
    run a-greet [cli-runner]
      command [cli-runner]
  step b-is-so [scheduler]
  step c-look [scheduler]
    invoke_agent c-look [agent-runner]
      chat well [agent-runner]
      chat well [agent-runner]
      execute_tool curl [agent-runner]
  step d-fail [scheduler] !command
    run d-fail [cli-runner] !command
      command [cli-runner] !exit_code
";

#[tokio::test]
async fn an_execution_is_one_trace_over_all_services() {
    let receiver = Receiver::start().await;
    let home = tempfile::tempdir().unwrap();
    let env = [
        ("FIST_TRACING_OTLP_ENDPOINT", receiver.url.as_str()),
        ("FIST_TRACING_OTLP_HEADERS", "x-tenant=blue"),
        ("FIST_LLM_SCRIPTED_DIR", home.path().to_str().unwrap()),
        ("FIST_TOOLS_CURL_ALLOWED_HOSTS", "127.0.0.1"),
    ];
    let up = Up::start_in(&home.path().join("up"), &[], &env).await;
    let script = format!(
        "turns:
  - text: hush-hush, I ask.
    calls: [{{name: health, tool: curl, arguments: {{url: '{}/healthz'}}}}]
  - submit_findings: {{summary: hush-hush is well., root_cause: none, confidence: 0.9, findings: [It answers.]}}
",
        up.url
    );
    std::fs::write(home.path().join("well.yaml"), script).unwrap();
    service::install_crypto();
    let accepted = reqwest::Client::new()
        .post(format!("{}/api/v1/executions", up.url))
        .header("content-type", "application/yaml")
        .header(
            "traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        )
        .body(WORKFLOW)
        .send()
        .await
        .unwrap();
    let accepted: serde_json::Value = accepted.json().await.unwrap();
    let id = accepted["id"].as_str().unwrap();
    assert_eq!(up.ended(id).await["status"], "Failed");
    let trace = id.replace('-', "");

    let wanted = EXPECTED.lines().count();
    let spans = eventually("all spans are received", async || {
        let spans = receiver.spans(&trace);
        (spans.len() >= wanted).then_some(spans)
    })
    .await;
    assert_eq!(tree(&spans, "", 0), EXPECTED, "{spans:#?}");
    assert_eq!(spans.len(), wanted);

    let named = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
    let intake = named("intake api");
    assert_eq!(intake.link, "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7");
    assert_eq!(intake.kind, 2, "a server's");
    let (chat, tool) = (named("chat well"), named("execute_tool curl"));
    for (span, key, value) in [
        (named("execution traced"), "fist.execution.id", id),
        (named("execution traced"), "fist.execution.status", "Failed"),
        (named("step a-greet"), "fist.step.type", "cli"),
        (named("step b-is-so"), "fist.step.status", "Succeeded"),
        (chat, "gen_ai.operation.name", "chat"),
        (chat, "gen_ai.provider.name", "scripted"),
        (chat, "gen_ai.request.model", "well"),
        (chat, "gen_ai.usage.input_tokens", "0"),
        (tool, "gen_ai.operation.name", "execute_tool"),
        (tool, "gen_ai.tool.name", "curl"),
    ] {
        assert_eq!(
            span.attributes.get(key).map(String::as_str),
            Some(value),
            "{key} of {span:?}"
        );
    }
    let failed = spans.iter().find(|span| span.status.1 == "exit_code").unwrap();
    assert_eq!(failed.attributes["process.exit.code"], "3");
    assert_eq!(failed.status.0, 2, "an error");
    let queued: u64 = named("step a-greet").attributes["fist.step.queued_ms"]
        .parse()
        .unwrap();
    let step = named("step a-greet");
    assert!(queued * 1_000_000 <= step.ended - step.began, "{step:?}");

    up.stop().await;
    for (_, body) in receiver.requests.lock().unwrap().iter() {
        let text = String::from_utf8_lossy(body);
        assert!(
            !text.contains("hush"),
            "what was asked, run or said is in a span: {text}"
        );
    }
}

#[tokio::test]
async fn a_receiver_that_is_away_is_in_nobodys_way() {
    // A port that was free a moment ago.
    let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", port.local_addr().unwrap());
    drop(port);
    let home = tempfile::tempdir().unwrap();
    let env = [("FIST_TRACING_OTLP_ENDPOINT", url.as_str())];
    let up = Up::start_in(&home.path().join("up"), &[], &env).await;
    let succeeds = async |name: &str| {
        let id = up.submits("w.yaml", &workflow(name, "true")).await;
        assert_eq!(up.ended(&id).await["status"], "Succeeded");
    };
    let warnings = || up.log().matches("the OTLP receiver does not take spans").count();
    succeeds("first").await;
    eventually("it is said once", async || (warnings() == 1).then_some(())).await;
    succeeds("second").await;
    assert_eq!(warnings(), 1, "{}", up.log());
    up.stop().await;
}
