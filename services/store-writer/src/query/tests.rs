#![allow(clippy::unwrap_used)]
use std::sync::Arc;

use expect_test::expect;
use protocol::{Body, DispositionKind, EndStatus, Outcome, query::AlertCounts, views::ExecutionView};
use serde_json::{Value, json};

use super::*;
use crate::{
    samples::{History, Stored, batch, disposition},
    world::{World, eventually, mixed, open, service},
};

async fn answerer(world: &World, store: Arc<dyn Store>) -> Answerer<bus::NatsLog> {
    let blobs = Blobs::open(&world.connection).await.unwrap();
    Answerer {
        log: world.log.clone(),
        store,
        blobs,
    }
}

async fn execution<L: Log>(answerer: &Answerer<L>, id: ExecutionId) -> Option<ExecutionView> {
    match answerer.answer(Query::Execution { id }).await {
        Answer::Execution(view) => view.map(|view| *view),
        other => panic!("{other:?}"),
    }
}

fn error(answer: Answer) -> QueryError {
    match answer {
        Answer::Error(error) => error,
        other => panic!("{other:?}"),
    }
}

fn executions(answer: Answer) -> Page<ExecutionSummary> {
    match answer {
        Answer::Executions(page) => page,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_and_what_has_ended_is_read_at_once() {
    let world = World::new().await;
    let store = world.sqlite("a.db").await;
    let answerer = answerer(&world, Arc::clone(&store)).await;
    let history = History::timed_out("web", "a", 1);
    assert_eq!(execution(&answerer, history.id).await, None);
    // Nothing projects here: the log alone answers.
    world.write(&history.messages[..1]).await;
    let pending = execution(&answerer, history.id).await.unwrap();
    assert_eq!(pending.summary.status.as_str(), "Pending");
    assert_eq!(pending.steps.len(), 3);
    // The database has the beginning, the log the rest: its lane is newer.
    let running = world.project(&store, 100);
    world.drained().await;
    running.end().await;
    world.write(&history.messages[1..6]).await;
    let ended = execution(&answerer, history.id).await.unwrap();
    assert_eq!(ended.summary.status.as_str(), "Failed");
    // Also what comes after the end.
    world.write(&history.messages[6..]).await;
    let reported = execution(&answerer, history.id).await.unwrap();
    assert_eq!(reported.steps[1].output, Some(json!({ "stdout": "half" })));
    assert_eq!(reported, world.folded().await[&history.id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn out_of_order_rows_of_an_ended_execution_are_completed_from_the_log() {
    let world = World::new().await;
    let store = world.sqlite("a.db").await;
    let answerer = answerer(&world, Arc::clone(&store)).await;
    let history = History::success("web", "a", 1);
    world.write(&history.messages).await;
    // Another replica has committed the end, and not yet the report before it.
    let mut messages = history.messages.clone();
    messages.remove(2);
    store.apply(&batch(&messages)).await.unwrap();
    let view = execution(&answerer, history.id).await.unwrap();
    assert_eq!(view.summary.steps_completed, 2);
    assert_eq!(view.outputs.unwrap()["steps"]["check"]["stdout"], "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_database_executions_are_read_from_the_log_and_lists_say_why_not() {
    let world = World::new().await;
    let answerer = answerer(&world, open("postgres://nobody@127.0.0.1:9/none")).await;
    let history = History::success("web", "a", 1);
    world.write(&history.messages).await;
    assert_eq!(
        execution(&answerer, history.id).await.unwrap(),
        world.folded().await[&history.id]
    );
    let unknown = answerer
        .answer(Query::Execution {
            id: ExecutionId::derive(&["unknown"]),
        })
        .await;
    for answer in [
        unknown,
        answerer
            .answer(Query::Executions(ExecutionFilter::default()))
            .await,
    ] {
        let error = error(answer);
        assert!(
            matches!(&error, QueryError::Unavailable { message } if message.contains("not available")),
            "{error:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_hangs_does_not_hang_its_readers() {
    let world = World::new().await;
    // It takes connections, and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://nobody@{}/none", silent.local_addr().unwrap());
    let limits = crate::store::Limits {
        acquire_timeout: Duration::from_secs(60),
        ..Default::default()
    };
    let answerer = answerer(&world, crate::store::from_url(&url, limits).unwrap()).await;
    let history = History::success("web", "a", 1);
    world.write(&history.messages).await;
    let began = std::time::Instant::now();
    let (view, list) = tokio::join!(
        execution(&answerer, history.id),
        answerer.answer(Query::Executions(ExecutionFilter::default()))
    );
    assert_eq!(view.unwrap(), world.folded().await[&history.id]);
    assert!(matches!(error(list), QueryError::Unavailable { message } if message.contains("did not answer")));
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "askers have given up by then"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_database_answers_alone_for_what_the_log_no_longer_holds() {
    let world = World::new().await;
    let store = world.sqlite("a.db").await;
    let answerer = answerer(&world, Arc::clone(&store)).await;
    for history in [
        History::success("web", "a", 1),
        History::cancelled("web", "b", 11),
    ] {
        store.apply(&history.batch()).await.unwrap();
        assert_eq!(
            execution(&answerer, history.id).await,
            history.fold().view(history.id)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_execution_is_answered_with_references() {
    let world = World::new().await;
    let store = world.sqlite("a.db").await;
    let answerer = answerer(&world, Arc::clone(&store)).await;
    let mut history = History::new("web", "a", 1);
    let names: Vec<String> = (0..12).map(|n| format!("step{n}")).collect();
    let steps: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "cli")).collect();
    history = history.start(&steps);
    for (n, name) in names.iter().enumerate() {
        history = history
            .task(name)
            .succeeded(name, json!({ "stdout": "y".repeat(n * 6_000), "exit_code": 0 }));
    }
    let history = history.end(Vec::new(), EndStatus::Succeeded, None, None);
    store.apply(&history.batch()).await.unwrap();
    let bytes = answerer
        .answer_bytes(&serde_json::to_vec(&Query::Execution { id: history.id }).unwrap())
        .await;
    assert!(bytes.len() <= REPLY_BYTES_MAX, "{}", bytes.len());
    let Answer::Execution(Some(view)) = serde_json::from_slice(&bytes).unwrap() else {
        panic!("an execution")
    };
    assert_eq!(view.summary, history.fold().summary(history.id).unwrap());
    // The small ones are whole, the largest a reference that leads to the whole.
    assert_eq!(
        view.steps[1].output.as_ref().unwrap()["stdout"],
        "y".repeat(6_000)
    );
    let last = view.steps[11].output.clone().unwrap();
    assert_eq!(view.outputs.unwrap()["steps"]["step11"], last);
    assert_eq!(last["preview"]["exit_code"], 0);
    let blob = serde_json::from_value(last["blob"].clone()).unwrap();
    let whole: Value = serde_json::from_slice(&answerer.blobs.get(&blob).await.unwrap().unwrap()).unwrap();
    assert_eq!(whole["stdout"], "y".repeat(66_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_input_becomes_a_reference_and_the_outputs_stay() {
    let world = World::new().await;
    let answerer = answerer(&world, world.sqlite("a.db").await).await;
    let history = History::success("web", "a", 1);
    let mut record = history.fold();
    record.start.as_mut().unwrap().input_context =
        json!({ "source": { "data": { "log": "i".repeat(600_000) } } });
    let put = |body| async { answerer.blobs.put(body).await.ok() };
    let view = fit::view(history.id, record, put).await.unwrap();
    assert_eq!(view.input_context["blob"]["bytes"], 600_030);
    assert_eq!(view.outputs, history.fold().outputs());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_record_there_can_be_is_still_answered() {
    let world = World::new().await;
    let store = world.sqlite("a.db").await;
    let answerer = answerer(&world, Arc::clone(&store)).await;
    let names: Vec<String> = (0..1_000).map(|n| format!("{n:03}{}", "s".repeat(100))).collect();
    let steps: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "cli")).collect();
    let mut history = History::new("web", "a", 1).start(&steps);
    for name in &names {
        let body = Body::Inline(json!({ "stdout": "z".repeat(2_000) }));
        history = history.done(
            name,
            Outcome::Skipped {
                message: "w".repeat(2_000),
            },
            Some(body),
        );
    }
    let history = history.end(
        Vec::new(),
        EndStatus::Failed,
        Some(&"e".repeat(600_000)),
        Some(&names[7]),
    );
    store.apply(&history.batch()).await.unwrap();
    let bytes = answerer
        .answer_bytes(&serde_json::to_vec(&Query::Execution { id: history.id }).unwrap())
        .await;
    assert!(bytes.len() <= REPLY_BYTES_MAX, "{}", bytes.len());
    let Answer::Execution(Some(view)) = serde_json::from_slice(&bytes).unwrap() else {
        panic!("an execution")
    };
    assert_eq!(view.steps.len(), 1_000);
    assert!(view.summary.error.unwrap().starts_with("eee"));
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_bounded_by_number_and_by_bytes() {
    let world = World::new().await;
    let store = world.sqlite("a.db").await;
    let answerer = answerer(&world, Arc::clone(&store)).await;
    let mut all = Vec::new();
    for n in 0..400 {
        let history = History::new("web", &n.to_string(), 1 + n * 10).start(&[("check", "cli")]);
        let history = history.end(Vec::new(), EndStatus::Failed, Some(&"e".repeat(3_000)), None);
        store.apply(&history.batch()).await.unwrap();
        all.push(history.id);
    }
    all.reverse();
    let (mut seen, mut pages, mut cursor) = (Vec::new(), 0, None);
    loop {
        let filter = ExecutionFilter {
            limit: Some(500),
            cursor: cursor.clone(),
            ..ExecutionFilter::default()
        };
        let answer = answerer.answer(Query::Executions(filter)).await;
        assert!(to_bytes(&answer).len() <= REPLY_BYTES_MAX);
        let page = executions(answer);
        pages += 1;
        seen.extend(page.items.iter().map(|item| item.id));
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, all);
    assert!(pages > 1, "900 KB do not fit into one answer");
    let page = executions(
        answerer
            .answer(Query::Executions(ExecutionFilter::default()))
            .await,
    );
    assert_eq!(page.items.len(), 50);
    // An exact page is the last one.
    let filter = ExecutionFilter {
        limit: Some(1),
        status: None,
        cursor: page.next,
        ..ExecutionFilter::default()
    };
    assert!(
        executions(answerer.answer(Query::Executions(filter)).await)
            .next
            .is_some()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_with_huge_labels_is_listed_without_them() {
    let world = World::new().await;
    let store = world.sqlite("a.db").await;
    let answerer = answerer(&world, Arc::clone(&store)).await;
    let mut batch = batch(&[
        disposition(1, 1, 0, 1, DispositionKind::Started),
        disposition(2, 2, 0, 1, DispositionKind::Merged),
    ]);
    for alert in &mut batch.alerts {
        let labels = &mut alert.disposition.alert.as_mut().unwrap().labels;
        labels.insert("huge".to_owned(), json!("x".repeat(700_000)));
    }
    store.apply(&batch).await.unwrap();
    let answer = answerer.answer(Query::Alerts(AlertFilter::default())).await;
    assert!(to_bytes(&answer).len() <= REPLY_BYTES_MAX);
    let Answer::Alerts(page) = answer else {
        panic!("alerts")
    };
    assert_eq!(page.items.len(), 2);
    assert_eq!(page.items[0].labels["…"], "700025 bytes of labels are not listed");
    let filter = AlertFilter {
        limit: Some(1),
        ..AlertFilter::default()
    };
    let Answer::Alerts(first) = answerer.answer(Query::Alerts(filter.clone())).await else {
        panic!("alerts")
    };
    let filter = AlertFilter {
        cursor: first.next,
        ..filter
    };
    let Answer::Alerts(second) = answerer.answer(Query::Alerts(filter)).await else {
        panic!("alerts")
    };
    assert_eq!((second.items[0].id.as_str(), second.next), ("00000064.1", None));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_questions_are_answered_with_what_would_be_right() {
    let world = World::new().await;
    let answerer = answerer(&world, world.sqlite("a.db").await).await;
    let filter = |limit, cursor: Option<&str>| {
        Query::Executions(ExecutionFilter {
            limit,
            cursor: cursor.map(str::to_owned),
            ..ExecutionFilter::default()
        })
    };
    let mut texts = Vec::new();
    for query in [
        filter(Some(0), None),
        filter(Some(501), None),
        filter(None, Some("12")),
        Query::ExecutionPrefix {
            prefix: "abc".to_owned(),
        },
        Query::ExecutionPrefix {
            prefix: "xyzw".to_owned(),
        },
        Query::ExecutionPrefix {
            prefix: "0123456789".to_owned(),
        },
        Query::Alerts(AlertFilter {
            id: Some("\0".to_owned()),
            ..AlertFilter::default()
        }),
    ] {
        let error = error(answerer.answer(query).await);
        assert!(matches!(error, QueryError::Invalid { .. }));
        texts.push(error.to_string());
    }
    let answer = serde_json::from_slice(&answerer.answer_bytes(b"{\"query\":\"all\"}").await).unwrap();
    texts.push(error(answer).to_string().chars().take(50).collect());
    expect![[r#"
        limit is 0: use 1 to 500
        limit is 501: use 1 to 500
        cursor `12` is none of this list: give the `next` of the page before, unchanged
        `abc` is not the beginning of an execution's id: give 4 to 36 characters of one, such as 01932f4e
        `xyzw` is not the beginning of an execution's id: give 4 to 36 characters of one, such as 01932f4e
        `0123456789` is not the beginning of an execution's id: give 4 to 36 characters of one, such as 01932f4e
        id holds a NUL character; no id does
        the question cannot be read: unknown variant `all`"#]]
    .assert_eq(&texts.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_finds_its_executions() {
    let world = World::new().await;
    let store = world.sqlite("a.db").await;
    let answerer = answerer(&world, Arc::clone(&store)).await;
    let history = History::success("web", "a", 1);
    store.apply(&history.batch()).await.unwrap();
    let id = history.id.to_string();
    for length in [4, 8, 9, 13, 14, 35, 36] {
        let prefix = id[..length].to_uppercase();
        let page = executions(answerer.answer(Query::ExecutionPrefix { prefix }).await);
        assert_eq!(page.items.len(), 1, "{length}");
    }
    let other = if id.starts_with('0') { "1234" } else { "0123" };
    let page = executions(
        answerer
            .answer(Query::ExecutionPrefix {
                prefix: other.to_owned(),
            })
            .await,
    );
    assert_eq!(page.items, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_share_the_questions_on_nats() {
    let world = World::new().await;
    let store = world.sqlite("a.db").await;
    let messages: Vec<Stored> = mixed(3);
    store.apply(&batch(&messages)).await.unwrap();
    store
        .apply(&batch(&[disposition(9, 1, 0, 1, DispositionKind::Started)]))
        .await
        .unwrap();
    let mut replicas = Vec::new();
    for _ in 0..2 {
        let (service, answerer) = (service(10), answerer(&world, Arc::clone(&store)).await);
        let connection = world.nats.connect().await;
        let task = tokio::spawn(serve(connection, answerer, service.clone()));
        eventually("it listens", || async { service.health.readiness().ok() }).await;
        replicas.push((service, task));
    }
    let client = world.connection.client();
    let ask = |query: Query| async move {
        let question = serde_json::to_vec(&query).unwrap();
        let reply = client.request(subjects::QUERY, question.into()).await.unwrap();
        serde_json::from_slice::<Answer>(&reply.payload).unwrap()
    };
    for _ in 0..20 {
        let page = executions(ask(Query::Executions(ExecutionFilter::default())).await);
        assert_eq!(page.items.len(), 3);
    }
    let counts = AlertCounts {
        messages: 1,
        dispositions: [(DispositionKind::Started, 1)].into_iter().collect(),
    };
    assert_eq!(ask(Query::AlertCounts).await, Answer::AlertCounts(counts));
    for (service, task) in replicas {
        service.shutdown.cancel();
        task.await.unwrap().unwrap();
    }
}
