//! The webhook's answers: what is accepted, what is refused, and with which words.

use bus::Log as _;
use hmac::{Hmac, KeyInit as _, Mac as _};
use protocol::DispositionKind as Kind;
use serde_json::json;
use sha2::Sha256;

use super::world::{World, answered, definition, group, refused};

const SOURCES: &str = r#"
[sources.github]
hmac_secret = "swordfish"
[sources.github.mapping]
alerts = "data.items"
name = "title"
[sources.paging]
kind = "alertmanager"
bearer_token = "letmein"
[http]
body_bytes_max = 20000
"#;

fn signature(body: &str, secret: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(body.as_bytes());
    let digits: String = mac
        .finalize()
        .into_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256={digits}")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_malformed_is_refused_with_the_place() {
    let world = World::with(SOURCES).await;
    let post = |source: &str, body: &str| world.post(&format!("/webhooks/{source}")).body(body.to_owned());
    let problem = refused(post("grafana", "{}"), 404, "there is no source `grafana`").await;
    assert_eq!(
        problem["known"],
        json!(["alertmanager", "github", "paging", "webhook"])
    );
    refused(post("alertmanager", ""), 400, "the body is empty").await;
    refused(post("alertmanager", "{\"alerts\": [\n}"), 400, "line 2 column 1").await;
    refused(post("alertmanager", "{}"), 400, "neither `alerts` nor `labels`").await;
    refused(
        post("alertmanager", r#"{"alerts": [{}]}"#),
        400,
        "alerts[0].labels is missing",
    )
    .await;
    refused(
        post("webhook", r#"{"severity": "x"}"#),
        400,
        "the alert has no name",
    )
    .await;
    refused(post("webhook", &"x".repeat(20_001)), 413, "http.body_bytes_max").await;
    refused(
        post("webhook", "{}").header("content-encoding", "gzip"),
        415,
        "compressed",
    )
    .await;
    refused(world.get("/webhooks/webhook"), 405, "use POST").await;
    refused(post("webhook?x=y", "{}"), 400, "unknown parameter `x`").await;
    assert_eq!(
        world
            .log
            .stream_state(bus::StreamId::Alerts)
            .await
            .unwrap()
            .last_seq,
        0,
        "nothing was stored"
    );
    // One good alert carries the others, which are recorded as rejected.
    let answer = world
        .webhook("webhook", r#"[{"name": "A"}, {"severity": "x"}]"#)
        .await;
    assert_eq!(answer, json!({ "accepted": 1, "delivery": 1, "rejected": 1 }));
    assert_eq!(world.recorded(2).await[1].disposition, Kind::Rejected);
}

#[tokio::test(flavor = "multi_thread")]
async fn senders_prove_who_they_are() {
    let world = World::with(SOURCES).await;
    world.apply(&definition("one", "github", "")).await;
    let body = r#"{"data": {"items": [{"title": "A"}]}}"#;
    let post = |source: &str, body: &str| world.post(&format!("/webhooks/{source}")).body(body.to_owned());
    let signed = |signature: String| post("github", body).header("X-Hub-Signature-256", signature);
    refused(post("github", body), 401, "X-Hub-Signature-256").await;
    refused(signed(signature(body, "wrong")), 401, "asks for a signature").await;
    refused(
        signed(signature("other", "swordfish")),
        401,
        "asks for a signature",
    )
    .await;
    answered(signed(signature(body, "swordfish")), 202).await;
    let whole = group(&[("A", "a", "firing")]);
    refused(post("paging", &whole), 401, "asks for its token").await;
    refused(
        post("paging", &whole).bearer_auth("wrong"),
        401,
        "asks for its token",
    )
    .await;
    answered(post("paging", &whole).bearer_auth("letmein"), 202).await;
    let recorded = world.recorded(2).await;
    assert_eq!(recorded[0].disposition, Kind::Started);
    assert_eq!(recorded[0].alert.as_ref().unwrap().name, "A");
}

#[tokio::test(flavor = "multi_thread")]
async fn larger_than_nats_takes_is_said_so() {
    let world = World::new().await;
    let body = json!({ "name": "A", "labels": { "x": "y".repeat(1 << 20) } }).to_string();
    refused(world.post("/webhooks/webhook").body(body), 413, "max_payload").await;
}

/// Whatever its size, an alert gets its disposition.
#[tokio::test(flavor = "multi_thread")]
async fn an_alert_too_large_for_its_record_is_recorded_without_its_labels() {
    let world = World::new().await;
    let body =
        json!({ "name": "N".repeat(500_000), "severity": "s", "labels": { "x": "y".repeat(500_000) } });
    world.webhook("webhook", &body.to_string()).await;
    let recorded = world.recorded(1).await.remove(0);
    assert_eq!(recorded.disposition, Kind::Filtered);
    let alert = recorded.alert.unwrap();
    assert_eq!((alert.name.len(), alert.labels.len()), (200, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_nats_alerts_are_refused_for_now() {
    let mut world = World::with("[http]\nrequest_timeout_ms = 3000\n").await;
    world.nats.kill9();
    refused(
        world
            .post("/webhooks/alertmanager")
            .body(group(&[("A", "a", "firing")])),
        503,
        "",
    )
    .await;
    world.nats.restart().await;
    let posted = super::world::until("alerts are accepted again", || async {
        let request = world
            .post("/webhooks/alertmanager")
            .body(group(&[("A", "b", "firing")]));
        (request.send().await.unwrap().status() == 202).then_some(())
    });
    posted.await;
    let recorded = super::world::until("it is recorded", || async {
        let found = world.dispositions().await;
        found
            .iter()
            .any(|each| each.alert.as_ref().is_some_and(|alert| alert.fingerprint == "b"))
            .then_some(found)
    })
    .await;
    assert!(recorded.iter().all(|each| each.disposition == Kind::Filtered));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overload_is_answered_with_503() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let world = World::with("[http]\nin_flight_max = 1\n").await;
    let address = world.ingest.base.strip_prefix("http://").unwrap();
    // One request that does not come to its end.
    let mut slow = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = "POST /webhooks/webhook HTTP/1.1\r\nhost: x\r\ncontent-length: 13\r\n\r\n{\"name\"";
    slow.write_all(head.as_bytes()).await.unwrap();
    let body = r#"{"name": "B"}"#;
    super::world::until("the slow one is being worked on", || async {
        let answer = world.post("/webhooks/webhook").body(body).send().await.unwrap();
        (answer.status() == 503 && answer.headers().contains_key("retry-after")).then_some(())
    })
    .await;
    refused(
        world.post("/webhooks/webhook").body(body),
        503,
        "http.in_flight_max",
    )
    .await;
    answered(world.get("/healthz"), 200).await;
    slow.write_all(b": \"A\"}").await.unwrap();
    let mut answer = [0; 12];
    slow.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 202");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_log_admits_nothing_new() {
    let world = World::with("[nats]\nadmission_stop_percent = 10\n").await;
    world.apply(&definition("one", "alertmanager", "")).await;
    // A tenth of the small log is filled with what nobody reads.
    let source = protocol::SourceName::new("fill").unwrap();
    let bytes = world
        .log
        .stream_state(bus::StreamId::Log)
        .await
        .unwrap()
        .bytes_max
        .unwrap()
        / 10;
    let piece = vec![b'x'; 1_000_000];
    for index in 0..=bytes / 1_000_000 {
        let id = protocol::AlertId::new("0a").unwrap();
        let subject = protocol::Subject::Disposition(source.clone(), id, index.to_string());
        world.log.write_fact(&subject, piece.clone()).await.unwrap();
    }
    super::world::until("nothing is admitted", || async {
        let answer = world.post("/webhooks/webhook").body(r#"{"name": "A"}"#);
        (answer.send().await.unwrap().status() == 503).then_some(())
    })
    .await;
    let manifest = definition("two", "alertmanager", "");
    let yaml = |path: &str| {
        world
            .post(path)
            .header("content-type", "application/yaml")
            .body(manifest.clone())
    };
    refused(yaml("/api/v1/workflows"), 503, "nats.admission_stop_percent").await;
    refused(yaml("/api/v1/executions"), 503, "nats.admission_stop_percent").await;
    // What comes straight over NATS waits, and is looked at again and again.
    world
        .publish("alertmanager", &group(&[("A", "a", "firing")]))
        .await;
    super::world::until("it was delivered twice", || async {
        let text = world.get("/metrics").send().await.unwrap().text().await.unwrap();
        text.contains(r#"fist_redeliveries_total{consumer="ingest"}"#)
            .then_some(())
    })
    .await;
    assert_eq!(world.starts().await.len(), 0);
    let waiting = world.log.stream_state(bus::StreamId::Alerts).await.unwrap();
    assert!(waiting.messages >= 1, "{waiting:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_of_large_bodies_admits_nothing_new_until_there_is_room() {
    let world = World::new().await;
    world.apply(&definition("one", "alertmanager", "")).await;
    let sizes = |blobs_bytes_max: u64| bus::Sizes {
        blobs_bytes_max,
        ..bus::Sizes::small()
    };
    bus::topology::init(&world.connection, &sizes(1 << 20))
        .await
        .unwrap();
    let blobs = bus::Blobs::open(&world.connection).await.unwrap();
    blobs.put(vec![b'x'; 900_000].into()).await.unwrap();
    let refused = blobs.put(vec![b'y'; 900_000].into()).await.unwrap_err();
    assert!(matches!(refused, bus::LogError::Full { .. }), "{refused:?}");
    let post = || {
        world
            .post("/webhooks/alertmanager")
            .body(group(&[("A", "a", "firing")]))
    };
    let answer = super::world::until("nothing is admitted", || async {
        let answer = post().send().await.unwrap();
        (answer.status() == 503).then_some(answer)
    })
    .await;
    assert!(answer.headers().contains_key("retry-after"), "{answer:?}");
    let text = answer.text().await.unwrap();
    assert!(text.contains("nats.blobs_bytes_max"), "{text}");
    let numbers = world.get("/metrics").send().await.unwrap().text().await.unwrap();
    // What was refused has left the part that still found room, until it is of age.
    let ratio = numbers
        .lines()
        .find_map(|line| line.strip_prefix(r#"fist_stream_filled_ratio{stream="OBJ_fist-blobs"} "#))
        .and_then(|ratio| ratio.parse::<f64>().ok());
    assert!(
        ratio.is_some_and(|ratio| (0.8..=1.0).contains(&ratio)),
        "{numbers}"
    );

    bus::topology::init(&world.connection, &sizes(64 << 20))
        .await
        .unwrap();
    super::world::until("intake goes on", || async {
        (post().send().await.unwrap().status() == 202).then_some(())
    })
    .await;
}
