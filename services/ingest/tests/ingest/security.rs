//! The door against those who may not, who ask too often, or who hold it open.

use std::time::Duration;

use bus::Log as _;
use hmac::{Hmac, KeyInit as _, Mac as _};
use protocol::DeadLetter;
use reqwest::{RequestBuilder, StatusCode};
use serde_json::Value;
use service::config::Role;
use sha2::Sha256;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
    time::timeout,
};

use super::world::{World, answered, definition, refused, until};

/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);

const TOKENS: &str = r#"
[http]
tokens = ["the-admin"]
run_tokens = ["a-runner"]
read_tokens = ["a-reader"]
[sources.locked]
bearer_token = "of-locked"
[sources.ajar]
open = true
"#;

/// What an admin alone may do, and what a runner may; everything else of the API only reads.
const NEEDS: [(&str, &str, Role); 6] = [
    ("POST", "/api/v1/workflows", Role::Admin),
    ("DELETE", "/api/v1/workflows/{namespace}/{name}", Role::Admin),
    ("POST", "/api/v1/executions", Role::Run),
    ("POST", "/api/v1/executions/{id}/cancel", Role::Run),
    ("POST", "/api/v1/deadletters/{id}/replay", Role::Run),
    ("DELETE", "/api/v1/deadletters/{id}", Role::Admin),
];

/// Every route with every role, and with none: whoever may not is told so, and nothing comes of it.
#[tokio::test(flavor = "multi_thread")]
async fn every_route_asks_for_its_role() {
    let world = World::with(TOKENS).await;
    let document = answered(world.get("/openapi.json"), 200).await;
    let paths = document["paths"].as_object().unwrap();
    let mut locked = 0;
    for (path, methods) in paths {
        for method in methods.as_object().unwrap().keys() {
            let method = method.to_uppercase();
            let is_api = path.starts_with("/api/");
            let special = NEEDS
                .iter()
                .find(|(verb, route, _)| (*verb, *route) == (&*method, &**path));
            let needed = match (special, &**path) {
                (Some((_, _, role)), _) => Some(*role),
                (None, "/webhooks/{source}") => Some(Role::Run),
                (None, _) => is_api.then_some(Role::Read),
            };
            locked += usize::from(needed.is_some());
            let documented = &document["paths"][path][method.to_lowercase()];
            let named = documented["security"][0]["token"][0].as_str();
            assert_eq!(named, needed.map(Role::as_str), "{method} {path}");
            let concrete = path
                .replace(
                    "/executions/{id}",
                    "/executions/00000000-0000-7000-8000-000000000000",
                )
                .replace("{namespace}/{name}", "default/nothing")
                .replace("{id}", "1")
                .replace("{source}", "webhook");
            for (token, role) in [
                (None, None),
                (Some("a-stranger"), None),
                (Some("a-reader"), Some(Role::Read)),
                (Some("a-runner"), Some(Role::Run)),
                (Some("the-admin"), Some(Role::Admin)),
            ] {
                let url = format!("{}{concrete}", world.ingest.base);
                let mut request = world.client.request(method.parse().unwrap(), url);
                if let Some(token) = token {
                    request = request.bearer_auth(token);
                }
                let answer = request.send().await.unwrap();
                let (status, header) = (
                    answer.status().as_u16(),
                    answer.headers().get("www-authenticate").cloned(),
                );
                let text = answer.text().await.unwrap();
                let whose = format!("{method} {path} by {token:?}: {status} {text}");
                let Some(needed) = needed else {
                    assert_eq!(status, 200, "{whose}");
                    continue;
                };
                assert!(
                    documented["responses"][status.to_string()].is_object(),
                    "undocumented: {whose}"
                );
                match role {
                    None => assert_eq!(status, 401, "{whose}"),
                    Some(role) if role < needed => {
                        let problem: Value = serde_json::from_str(&text).unwrap();
                        assert_eq!(status, 403, "{whose}");
                        assert_eq!(problem["role"], needed.as_str(), "{whose}");
                        let scope = format!("scope=\"{}\"", needed.as_str());
                        assert!(header.unwrap().to_str().unwrap().ends_with(&scope), "{whose}");
                    }
                    Some(_) => assert!(![401, 403, 429].contains(&status), "{whose}"),
                }
            }
        }
    }
    assert!(locked > 20, "{locked}");
}

/// A stranger tries for real what a token would let do, and the streams stay empty.
#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_reads_runs_and_publishes_nothing() {
    let world = World::with(TOKENS).await;
    let manifest = definition("evil", "webhook", "");
    let alert = r#"{"name": "A"}"#;
    let letter = DeadLetter {
        stream: "FIST_ALERTS".into(),
        seq: 1,
        subject: "fist.alerts.webhook".into(),
        written_at: protocol::Timestamp::default(),
        consumer: "ingest".into(),
        reason: "r".into(),
        deliveries: 1,
        payload: alert.into(),
        payload_bytes: 13,
    };
    world.log.dead_letter(letter).await.unwrap();
    let yaml = |path: &str| {
        world
            .post(path)
            .header("content-type", "application/yaml")
            .body(manifest.clone())
    };
    for request in [
        yaml("/api/v1/workflows"),
        yaml("/api/v1/executions"),
        world.post("/api/v1/deadletters/1/replay"),
        world.get("/api/v1/deadletters/1"),
        world.post("/webhooks/webhook").body(alert),
        world.post("/webhooks/alertmanager").body(alert),
        world.post("/webhooks/locked").body(alert),
    ] {
        refused(request, 401, "token").await;
    }
    assert_eq!(world.messages().await.len(), 0);
    let alerts = || async {
        world
            .log
            .stream_state(bus::StreamId::Alerts)
            .await
            .unwrap()
            .last_seq
    };
    assert_eq!(alerts().await, 0);
    // A reader may not either; a runner may, where a source has no secret of its own.
    let post = |source: &str, token: &str| {
        world
            .post(&format!("/webhooks/{source}"))
            .bearer_auth(token)
            .body(alert)
    };
    refused(post("webhook", "a-reader"), 403, "needs the role run").await;
    refused(post("locked", "the-admin"), 401, "asks for its token").await;
    answered(post("webhook", "a-runner"), 202).await;
    answered(post("locked", "of-locked"), 202).await;
    // And a source that says so is open.
    answered(world.post("/webhooks/ajar").body(alert), 202).await;
    assert_eq!(alerts().await, 3);
}

const SIGNED: &str = r#"
[sources.grafana]
hmac_secret = "swordfish"
hmac_header = "X-Grafana-Alerting-Signature"
hmac_timestamp_header = "X-Grafana-Alerting-Timestamp"
hmac_timestamp_separator = ":"
hmac_tolerance_seconds = 600
"#;

fn signature(signed: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(b"swordfish").unwrap();
    mac.update(signed.as_bytes());
    mac.finalize()
        .into_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_holds_for_a_while() {
    let world = World::with(SIGNED).await;
    let body = r#"{"name": "A"}"#;
    let send = |at: &str, signature: &str| -> RequestBuilder {
        world
            .post("/webhooks/grafana")
            .header("X-Grafana-Alerting-Timestamp", at)
            .header("X-Grafana-Alerting-Signature", signature)
            .body(body)
    };
    let at = |offset: i64| (service::clock::now().as_millis() / 1000 + offset).to_string();
    let signed = |at: &str| send(at, &signature(&format!("{at}:{body}")));
    // A minute of room on either side, for a machine that is busy.
    for good in [0, -500, 500] {
        answered(signed(&at(good)), 202).await;
    }
    refused(signed(&at(-700)), 401, "seconds ago").await;
    refused(signed(&at(700)), 401, "seconds in the future").await;
    refused(signed(&format!("{}.5", at(0))), 401, "whole Unix seconds").await;
    refused(signed(&format!("-{}", at(0))), 401, "whole Unix seconds").await;
    // An old signature under a new time, or one of the body alone.
    let old = at(-700);
    let of_old = signature(&format!("{old}:{body}"));
    refused(send(&at(0), &of_old), 401, "asks for a signature").await;
    refused(send(&at(0), &signature(body)), 401, "asks for a signature").await;
    // Moving the border between time and body changes what was signed.
    refused(
        send(&at(0), &signature(&format!("{}{body}", at(0)))),
        401,
        "asks for a signature",
    )
    .await;
    let without_time = world
        .post("/webhooks/grafana")
        .header("X-Grafana-Alerting-Signature", signature(body))
        .body(body);
    refused(without_time, 401, "X-Grafana-Alerting-Timestamp").await;
    let without_signature = world
        .post("/webhooks/grafana")
        .header("X-Grafana-Alerting-Timestamp", at(0))
        .body(body);
    refused(without_signature, 401, "asks for a signature").await;
    assert_eq!(
        world
            .log
            .stream_state(bus::StreamId::Alerts)
            .await
            .unwrap()
            .last_seq,
        3
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_too_often_is_told_when_to_come_again() {
    // One request an hour would be less than the least rate; with one a second and no burst the second of two at once
    // is too many, however busy the machine is: they are sent until one is refused.
    let file = "[http]\ntokens = [\"one\", \"two\"]\nrequests_per_second_max = 1\nrequests_burst_max = 1\n[sources.ajar]\nopen = true\n";
    let world = World::with(file).await;
    let limited = |request: RequestBuilder, status: u16| async move {
        let answer = until("it is too often", || async {
            let answer = request.try_clone().unwrap().send().await.unwrap();
            (answer.status().as_u16() == status).then_some(answer)
        })
        .await;
        assert_eq!(answer.headers()["retry-after"], "1");
        let problem: Value = answer.json().await.unwrap();
        assert!(
            problem["detail"]
                .as_str()
                .unwrap()
                .contains("http.requests_per_second_max"),
            "{problem}"
        );
    };
    limited(world.get("/api/v1/workflows").bearer_auth("one"), 429).await;
    // Alertmanager does not send again what was answered with 429.
    limited(world.post("/webhooks/ajar").body(r#"{"name": "A"}"#), 503).await;
    // Guesses are counted by address, and so is who sends none.
    limited(world.get("/api/v1/workflows").bearer_auth("guess"), 429).await;
    limited(world.get("/api/v1/workflows"), 429).await;
    // The watchers are never refused.
    for _ in 0..20 {
        answered(world.get("/healthz"), 200).await;
    }
    // Another token has its own share, and refused ones come through again.
    until("a token is let in again", || async {
        let answer = world
            .get("/api/v1/workflows")
            .bearer_auth("two")
            .send()
            .await
            .unwrap();
        (answer.status() == StatusCode::OK).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_given_up() {
    let world = World::with("[http]\nrequest_timeout_ms = 200\nin_flight_max = 1\n").await;
    let address = world.ingest.base.strip_prefix("http://").unwrap();
    let mut slow = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = "POST /webhooks/webhook HTTP/1.1\r\nhost: x\r\ncontent-length: 13\r\n\r\n{\"name\"";
    slow.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    // Answered, and closed: what would come now could not be told from a next request.
    timeout(PATIENCE, slow.read_to_string(&mut answer))
        .await
        .expect("an end")
        .unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("http.request_timeout_ms"),
        "{answer}"
    );
    assert!(answer.to_lowercase().contains("retry-after: "), "{answer}");
    // Its place is free again.
    answered(world.post("/webhooks/webhook").body(r#"{"name": "A"}"#), 202).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_without_an_announced_size_is_cut_at_the_limit() {
    let world = World::with("[http]\nbody_bytes_max = 2048\n").await;
    let chunks = (0..64).map(|_| Ok::<_, std::io::Error>(vec![b'x'; 1024]));
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks));
    refused(
        world.post("/webhooks/webhook").body(body),
        413,
        "http.body_bytes_max",
    )
    .await;
}

/// A reader of an event stream that stops reading holds one connection, and not for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stalls_loses_its_event_stream() {
    let world =
        World::with("[http]\nconnections_max = 1\nheader_timeout_ms = 200\nidle_timeout_ms = 200\n").await;
    let start = r#"{"apiVersion": "punching-fist.io/v1alpha1", "kind": "Workflow", "metadata": {"name": "once"},
        "spec": {"steps": [{"name": "a", "type": "cli", "command": "true"}]}}"#;
    let request = world
        .post("/api/v1/executions")
        .header("content-type", "application/json")
        .body(start);
    let id: protocol::ExecutionId = answered(request, 202).await["id"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    // More than the kernel's buffers of one connection hold: events of half a megabyte each.
    let text = "x".repeat(500_000);
    for turn in 0..24 {
        let subject = protocol::Subject::Turn(
            protocol::Namespace::default(),
            id,
            protocol::StepName::new("a").unwrap(),
            protocol::Attempt::FIRST,
            turn,
        );
        let turn = protocol::turns::Turn::Model(protocol::turns::ModelTurn {
            turn: turn + 1,
            text: text.clone(),
            calls: Vec::new(),
            stop_reason: "end".to_owned(),
            usage: protocol::turns::Usage::default(),
            at: world.log.now(),
        });
        let payload = protocol::encode(world.log.now(), &turn);
        world.log.write_fact(&subject, payload).await.unwrap();
    }
    let address = world
        .ingest
        .base
        .strip_prefix("http://")
        .unwrap()
        .parse()
        .unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut greedy = timeout(PATIENCE, socket.connect(address)).await.unwrap().unwrap();
    let head = format!("GET /api/v1/executions/{id}/events HTTP/1.1\r\nhost: x\r\n\r\n");
    greedy.write_all(head.as_bytes()).await.unwrap();
    let mut first = [0; 12];
    timeout(PATIENCE, greedy.read_exact(&mut first))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&first, b"HTTP/1.1 200", "the only place is taken");
    timeout(PATIENCE, answered(world.get("/healthz"), 200))
        .await
        .expect("another gets its turn");
}
