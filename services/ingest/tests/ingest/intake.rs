//! What alerts lead to.

use std::time::Duration;

use bus::{Inbox as _, Log as _, Started, Written};
use protocol::{AlertStatus, Disposition, DispositionKind as Kind, Fact, Start, Subject, encode};
use serde_json::json;

use super::world::{Ingest, World, answered, definition, group, until};

fn kinds(dispositions: &[Disposition]) -> Vec<Kind> {
    dispositions.iter().map(|each| each.disposition).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_starts_one_execution_of_each_workflow_that_wants_it() {
    let world = World::new().await;
    world
        .apply(&definition("one", "alertmanager", "alertname: A"))
        .await;
    world
        .apply(&definition("two", "alertmanager", r#"severity: "~crit.*""#))
        .await;
    world
        .apply(&definition("three", "alertmanager", "alertname: B"))
        .await;
    let answer = world
        .webhook("alertmanager", &group(&[("A", "a", "firing")]))
        .await;
    assert_eq!(answer, json!({ "accepted": 1, "delivery": 1 }));
    let recorded = world.recorded(1).await;
    let starts = world.starts().await;
    assert_eq!(recorded[0].disposition, Kind::Started, "{recorded:#?}");
    assert_eq!(
        recorded[0].executions,
        starts.iter().map(|start| start.execution).collect::<Vec<_>>()
    );
    let names: Vec<&str> = starts.iter().map(|start| start.workflow.as_str()).collect();
    assert_eq!(names, ["one", "two"]);

    let start = &starts[0];
    assert_eq!(
        (start.trigger_source.as_str(), start.delivery.as_deref()),
        ("alertmanager", Some("1"))
    );
    let data = start.input.read().data;
    assert_eq!(
        (&data["pod"], &data["labels"]["pod"]),
        (&json!("web-1"), &json!("web-1"))
    );
    assert_eq!(data["annotations"]["summary"], "it is broken");
    assert_eq!(data["alerts"][0]["name"], "A");
    let alert = start.input.read().alert.unwrap();
    assert_eq!(
        (&alert["severity"], &alert["fingerprint"]),
        (&json!("critical"), &json!("a"))
    );
    assert_eq!(start.spec.read()["steps"][0]["name"], "look");
    world.ingest.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_alert_from_everywhere_at_once_starts_once() {
    let world = World::new().await;
    let second = Ingest::start(&world.nats, "").await;
    world.apply(&definition("one", "alertmanager", "")).await;
    let body = group(&[("A", "a", "firing"), ("B", "b", "firing")]);
    let posts = (0..12).map(|index| {
        let base = if index % 2 == 0 {
            &world.ingest.base
        } else {
            &second.base
        };
        let request = world
            .client
            .post(format!("{base}/webhooks/alertmanager"))
            .body(body.clone());
        answered(request, 202)
    });
    futures_util::future::join_all(posts).await;
    world.publish("alertmanager", &body).await;
    let recorded = world.recorded(26).await;
    assert_eq!(world.starts().await.len(), 2);
    let started = recorded
        .iter()
        .filter(|each| each.disposition == Kind::Started)
        .count();
    let merged: Vec<&Disposition> = recorded
        .iter()
        .filter(|each| each.disposition == Kind::Merged)
        .collect();
    assert_eq!((started, merged.len()), (2, 24));
    for each in merged {
        assert!(
            each.reason.contains("was started before by delivery"),
            "{}",
            each.reason
        );
        assert_eq!(each.executions.len(), 1);
    }
    let mut deliveries: Vec<&str> = recorded.iter().map(|each| each.delivery.as_str()).collect();
    deliveries.sort_unstable();
    deliveries.dedup();
    assert_eq!(
        deliveries.len(),
        26,
        "one disposition for each alert of each delivery"
    );
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_starts_nothing_says_why() {
    let world = World::new().await;
    for (source, body) in [
        ("alertmanager", group(&[("A", "a", "firing")])),
        ("alertmanager", group(&[("A", "a", "resolved")])),
    ] {
        world.webhook(source, &body).await;
    }
    world.recorded(2).await;
    world
        .apply(&definition(
            "picky",
            "alertmanager",
            "alertname: A, severity: warning",
        ))
        .await;
    world
        .apply(&definition(
            "other",
            "alertmanager",
            "alertname: B, severity: warning",
        ))
        .await;
    world
        .webhook("alertmanager", &group(&[("A", "b", "firing")]))
        .await;
    world.recorded(3).await;
    let suspended = definition("quiet", "alertmanager", "").replace("spec:", "spec:\n  suspend: true");
    world.apply(&suspended).await;
    world
        .webhook("alertmanager", &group(&[("A", "c", "firing")]))
        .await;
    world.webhook("webhook", r#"{"name": "A"}"#).await;
    let recorded = world.recorded(5).await;
    let said: Vec<String> = recorded
        .iter()
        .map(|each| format!("{}: {}", each.disposition.as_str(), each.reason))
        .collect();
    expect_test::expect![[r#"
        filtered: no workflow listens to source alertmanager; `fist apply -f FILE` adds one
        resolved: it is over; resolved alerts start nothing
        filtered: workflow default/picky: the filter severity="warning" does not match "critical" (and one other workflow did not match either)
        filtered: workflow default/quiet is suspended
        filtered: no workflow listens to source webhook; they listen to alertmanager"#]]
    .assert_eq(&said.join("\n"));
    assert_eq!(world.starts().await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_that_was_acknowledged_is_seen_by_the_next_alert() {
    let world = World::new().await;
    let second = Ingest::start(&world.nats, "").await;
    for round in 0..20 {
        let name = format!("w{round}");
        world
            .apply(&definition(&name, "alertmanager", &format!("alertname: {name}")))
            .await;
        let fingerprint = format!("f{round}");
        world
            .webhook("alertmanager", &group(&[(&name, &fingerprint, "firing")]))
            .await;
    }
    let recorded = world.recorded(20).await;
    assert!(
        recorded.iter().all(|each| each.disposition == Kind::Started),
        "{recorded:#?}"
    );
    let deleted = world
        .client
        .delete(format!("{}/api/v1/workflows/default/w3", world.ingest.base));
    answered(deleted, 200).await;
    world
        .webhook("alertmanager", &group(&[("w3", "again", "firing")]))
        .await;
    assert_eq!(world.recorded(21).await[20].disposition, Kind::Filtered);
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn published_straight_to_nats_it_means_the_same() {
    let world = World::new().await;
    world.apply(&definition("am", "alertmanager", "")).await;
    world.apply(&definition("direct", "nats", "host: db-1")).await;
    let whole = group(&[("A", "a", "firing")]);
    let one = serde_json::from_str::<serde_json::Value>(&whole).unwrap()["alerts"][0].to_string();
    world.webhook("alertmanager", &whole).await;
    world.recorded(1).await;
    world.publish("alertmanager", &whole).await;
    world.publish("alertmanager", &one).await;
    world.recorded(3).await;
    world
        .publish(
            "nats",
            r#"{"name": "DiskFull", "host": "db-1", "severity": "WARNING"}"#,
        )
        .await;
    let recorded = world.recorded(4).await;
    assert_eq!(
        kinds(&recorded),
        [Kind::Started, Kind::Merged, Kind::Merged, Kind::Started]
    );
    assert_eq!(recorded[0].id, recorded[2].id);
    let starts = world.starts().await;
    assert_eq!((starts.len(), starts[1].trigger_source.as_str()), (2, "nats"));
    assert_eq!(
        starts[1].input.read().alert.as_ref().unwrap()["severity"],
        "warning"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_recorded_with_the_reason() {
    let world = World::new().await;
    world.apply(&definition("one", "alertmanager", "")).await;
    world.publish("alertmanager", "{ not json").await;
    world.recorded(1).await;
    world.publish("alertmanager", r#"{"version": "4", "alerts": [{"labels": {}}, {"labels": {"alertname": "A"}, "fingerprint": "a"}]}"#).await;
    world.recorded(3).await;
    // No source can have this name; the message must not be lost, nor block the queue.
    let context = world.connection.client().clone();
    let reply = context
        .request("fist.alerts.two.tokens", "{}".into())
        .await
        .unwrap();
    assert!(String::from_utf8_lossy(&reply.payload).contains("FIST_ALERTS"));
    let recorded = world.recorded(4).await;
    let said: Vec<String> = recorded
        .iter()
        .map(|each| {
            format!(
                "{} {} {} {}: {}",
                each.delivery,
                each.delivery_alerts,
                each.source,
                each.disposition.as_str(),
                each.reason
            )
        })
        .collect();
    expect_test::expect![[r#"
        1 1 alertmanager rejected: the body is not JSON: key must be a string at line 1 column 3
        2 2 alertmanager rejected: alerts[0].labels is missing or empty; an alert is known by its labels
        2-1 2 alertmanager started: 
        3 1 two_tokens rejected: fist.alerts.two.tokens is not fist.alerts.<source>: a source's name is letters, digits, - and _"#]]
    .assert_eq(&said.join("\n"));
}

/// As after a crash between the start fact and the disposition: the start stands, by this very delivery.
#[tokio::test(flavor = "multi_thread")]
async fn a_redelivery_finds_what_it_started_itself() {
    let mut world = World::new().await;
    world.apply(&definition("one", "alertmanager", "")).await;
    let body = group(&[("A", "a", "firing")]);
    world.webhook("alertmanager", &body).await;
    let recorded = world.recorded(1).await;
    let start = world.starts().await.remove(0);
    world.ingest.kill().await;

    // The next delivery's start is in the log before anybody works on it.
    let next =
        protocol::ExecutionId::derive(&["default", "one", "alertmanager", "b", "2026-01-02T03:04:05.678Z"]);
    let known =
        protocol::ExecutionId::derive(&["default", "one", "alertmanager", "a", "2026-01-02T03:04:05.678Z"]);
    assert_eq!(recorded[0].executions, [known]);
    let crashed = Start {
        execution: next,
        delivery: Some("2".into()),
        ..start
    };
    let subject = Subject::Start(crashed.namespace.clone(), next);
    let fact = encode(world.log.now(), &Fact::Start(Box::new(crashed)));
    assert!(matches!(
        world.log.write_fact(&subject, fact).await.unwrap(),
        Written::New(_)
    ));
    world
        .publish("alertmanager", &group(&[("A", "b", "firing")]))
        .await;
    world
        .publish("alertmanager", &group(&[("A", "b", "firing")]))
        .await;
    world.ingest = Ingest::start(&world.nats, "").await;
    let recorded = world.recorded(3).await;
    assert_eq!(kinds(&recorded)[1..], [Kind::Started, Kind::Merged]);
    assert_eq!(recorded[1].executions, [next]);
    assert!(
        recorded[2].reason.ends_with("by delivery 2"),
        "{}",
        recorded[2].reason
    );
    assert_eq!(world.starts().await.len(), 2);
}

/// Once the log has aged, the memory of starts is all that is left.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_starts_again_after_the_log_has_aged() {
    let world = World::new().await;
    world.apply(&definition("one", "alertmanager", "")).await;
    let id =
        protocol::ExecutionId::derive(&["default", "one", "alertmanager", "a", "2026-01-02T03:04:05.678Z"]);
    let started = Started::open(&world.connection).await.unwrap();
    let value = json!({ "delivery": "77", "work": "x" }).to_string();
    started.create(&format!("exec-{id}"), value.into()).await.unwrap();
    world
        .webhook("alertmanager", &group(&[("A", "a", "firing")]))
        .await;
    let recorded = world.recorded(1).await;
    assert_eq!(recorded[0].disposition, Kind::Merged);
    assert!(
        recorded[0].reason.ends_with("by delivery 77"),
        "{}",
        recorded[0].reason
    );
    assert_eq!(world.starts().await.len(), 0);
    // What has started is remembered.
    world
        .webhook("alertmanager", &group(&[("A", "b", "firing")]))
        .await;
    let execution = world.recorded(2).await[1].executions[0];
    let entry = started.get(&format!("exec-{execution}")).await.unwrap().unwrap();
    let first: serde_json::Value = serde_json::from_slice(&entry.value).unwrap();
    assert_eq!(first["delivery"], "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_start_time_a_firing_is_what_is_seen_again_and_again() {
    let world = World::new().await;
    world.apply(&definition("one", "webhook", "")).await;
    let body = r#"{"name": "DiskFull", "host": "db-1"}"#;
    for round in 1..=3 {
        world.webhook("webhook", body).await;
        world.recorded(round).await;
    }
    world
        .webhook("webhook", r#"{"name": "DiskFull", "host": "db-2"}"#)
        .await;
    let recorded = world.recorded(4).await;
    assert_eq!(
        kinds(&recorded),
        [Kind::Started, Kind::Merged, Kind::Merged, Kind::Started]
    );
    let starts = world.starts().await;
    assert_eq!(starts.len(), 2);
    assert_eq!(
        starts[0].input.read().alert.as_ref().unwrap()["starts_at"],
        json!(recorded[0].received_at),
        "first seen stands for the start"
    );
    assert_eq!(recorded[0].alert.as_ref().unwrap().starts_at, None);
    assert_eq!(recorded[0].alert.as_ref().unwrap().status, AlertStatus::Firing);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_too_large_for_a_start_still_starts() {
    let world = World::new().await;
    world.apply(&definition("one", "webhook", "")).await;
    let alerts: Vec<serde_json::Value> = (0..60)
        .map(|index| json!({ "name": "A", "fingerprint": format!("f{index}"), "labels": { "x": "y".repeat(17_000) } }))
        .collect();
    world.webhook("webhook", &json!(alerts).to_string()).await;
    let recorded = world.recorded(60).await;
    assert!(recorded.iter().all(|each| each.disposition == Kind::Started));
    assert_eq!(recorded[59].delivery, "1-59");
    let starts = world.starts().await;
    assert_eq!(starts.len(), 60);
    let is_said = |start: &Start| start.input.read().data["alerts_cut"] == 59;
    assert!(starts.iter().all(is_said), "what was left out is said");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_that_no_start_can_carry_is_rejected_and_its_group_starts() {
    let world = World::new().await;
    world.apply(&definition("one", "webhook", "")).await;
    let key = format!("{}RawValue", protocol::json::RESERVED);
    // With another key in front it is taken for what it is, and that one, without a value, is left out of the labels.
    let alerts = json!([
        { "name": "A", "fingerprint": "bad", "labels": { "nothing": null, key: "foo" } },
        { "name": "B", "fingerprint": "good", "labels": { "pod": "web-1" } },
    ]);
    world.webhook("webhook", &alerts.to_string()).await;
    let recorded = world.recorded(2).await;
    let of = |name: &str| {
        let of_name = |each: &&Disposition| each.alert.as_ref().is_some_and(|alert| alert.name == name);
        recorded.iter().find(of_name).unwrap()
    };
    assert_eq!(of("A").disposition, Kind::Rejected);
    let reason = &of("A").reason;
    assert!(
        reason.contains("its input") && reason.contains("give it another name"),
        "{reason}"
    );
    assert_eq!(of("B").disposition, Kind::Started);
    let starts = world.starts().await;
    assert_eq!(starts.len(), 1);
    assert_eq!(starts[0].input.read().data["alerts_cut"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_cut_says_so() {
    let world = World::new().await;
    world.apply(&definition("one", "webhook", "n: \"7\"")).await;
    let alerts: Vec<serde_json::Value> = (0..103)
        .map(|index| json!({ "name": "A", "fingerprint": format!("f{index}"), "labels": { "n": index.to_string() } }))
        .collect();
    world.webhook("webhook", &json!(alerts).to_string()).await;
    let recorded = world.recorded(103).await;
    let started = recorded.iter().find(|each| each.disposition == Kind::Started);
    let reason = &started.unwrap().reason;
    assert!(
        reason.contains("has 103 alerts") && reason.contains("holds 100"),
        "{reason}"
    );
    let start = world.starts().await.remove(0);
    assert_eq!(start.input.read().data["alerts"].as_array().unwrap().len(), 100);
    assert_eq!(start.input.read().data["alerts_cut"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn counted_in_the_metrics() {
    let world = World::new().await;
    world.apply(&definition("one", "alertmanager", "")).await;
    world
        .webhook(
            "alertmanager",
            &group(&[("A", "a", "firing"), ("B", "b", "resolved")]),
        )
        .await;
    world.recorded(2).await;
    let text = until("the metrics count", || async {
        let text = world.get("/metrics").send().await.unwrap().text().await.unwrap();
        text.contains("fist_executions_started_total").then_some(text)
    })
    .await;
    for line in [
        r#"fist_alerts_total{source="alertmanager",disposition="started"} 1"#,
        r#"fist_alerts_total{source="alertmanager",disposition="resolved"} 1"#,
        r#"fist_executions_started_total{source="alertmanager"} 1"#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_alert_of_a_message_that_kills_its_handlers_is_recorded() {
    let mut world = World::new().await;
    world.apply(&definition("one", "alertmanager", "")).await;
    world.ingest.kill().await;
    let body = group(&[("A", "a", "firing"), ("B", "b", "firing"), ("C", "c", "resolved")]);
    let seq = world.publish("alertmanager", &body).await;
    // What handlers that were killed leave behind: deliveries, and trials that nobody ended.
    let mut inbox = world.log.inbox(&bus::topology::INGEST).await.unwrap();
    let mut deliveries = 0;
    while deliveries < 3 {
        let mut batch = inbox.next_batch(1, Duration::from_secs(30)).await.unwrap();
        let delivery = batch.pop().expect("the message is delivered");
        deliveries = delivery.deliveries;
        delivery.nak(Duration::ZERO).await;
    }
    inbox.close().await;
    let trials = format!("$KV.{}.ingest.{seq}", bus::topology::TRIALS_BUCKET);
    let client = world.connection.client();
    client.publish(trials, "5".into()).await.unwrap();
    client.flush().await.unwrap();

    world.ingest = Ingest::start(&world.nats, "").await;
    let recorded = world.recorded(3).await;
    assert_eq!(kinds(&recorded), [Kind::Rejected; 3], "{recorded:#?}");
    let places: Vec<&str> = recorded.iter().map(|each| each.delivery.as_str()).collect();
    assert_eq!(places, ["1", "1-1", "1-2"]);
    for each in &recorded {
        assert_eq!(each.delivery_alerts, 3, "the balance counts on it");
        assert!(each.alert.is_some(), "{each:?}");
        assert!(
            each.reason.contains("it was set aside: poison"),
            "{}",
            each.reason
        );
    }
    assert_eq!(world.starts().await.len(), 0);
    world.ingest.stop().await;
}
