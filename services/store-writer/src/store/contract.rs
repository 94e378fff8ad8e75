//! What every store must do, run on each of them: one suite, no exceptions.
#![allow(clippy::unwrap_used)]

use std::{future::Future, time::Duration};

use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use protocol::{
    Body, DispositionKind, EndStatus, ExecutionId, Outcome, StepStatus, WorkflowName, query::AlertCounts,
    views::ExecutionStatus,
};
use serde_json::json;

use super::*;
use crate::{
    samples::{self, History, Stored, batch, disposition, instant},
    testing::TestPostgres,
};

/// A fresh database for each case.
trait Fresh {
    fn url(&self, case: &str) -> String;
}

impl Fresh for tempfile::TempDir {
    fn url(&self, case: &str) -> String {
        format!("sqlite://{}", self.path().join(format!("{case}.db")).display())
    }
}

impl Fresh for TestPostgres {
    fn url(&self, case: &str) -> String {
        self.create_database(case)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_keeps_the_contract() {
    all_cases(&tempfile::tempdir().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_keeps_the_contract() {
    let Some(server) = TestPostgres::start() else {
        return;
    };
    all_cases(&server).await;
}

async fn all_cases(fresh: &impl Fresh) {
    case(fresh, "replicas_migrate_at_once", replicas_migrate_at_once).await;
    case(fresh, "rows_equal_a_fold", rows_equal_a_fold).await;
    case(
        fresh,
        "any_order_gives_the_same_rows",
        any_order_gives_the_same_rows,
    )
    .await;
    case(
        fresh,
        "concurrent_writers_lose_nothing",
        concurrent_writers_lose_nothing,
    )
    .await;
    case(fresh, "replay_writes_nothing", replay_writes_nothing).await;
    case(
        fresh,
        "expiry_by_count_spares_what_runs",
        expiry_by_count_spares_what_runs,
    )
    .await;
    case(fresh, "hidden_until_the_start", hidden_until_the_start).await;
    case(fresh, "lists_page_newest_first", lists_page_newest_first).await;
    case(fresh, "a_prefix_finds_executions", a_prefix_finds_executions).await;
    case(fresh, "hostile_texts_survive", hostile_texts_survive).await;
    case(
        fresh,
        "alerts_are_listed_and_counted",
        alerts_are_listed_and_counted,
    )
    .await;
    case(
        fresh,
        "forgetting_keeps_what_the_log_lost",
        forgetting_keeps_what_the_log_lost,
    )
    .await;
    case(fresh, "expiry_keeps_the_counts", expiry_keeps_the_counts).await;
    case(
        fresh,
        "the_schedulers_output_stands_over_the_runners",
        schedulers_output_stands,
    )
    .await;
}

async fn case<F: Future<Output = ()>>(fresh: &impl Fresh, name: &str, run: impl FnOnce(String) -> F) {
    eprintln!("case {name}");
    run(fresh.url(name)).await;
}

async fn open(url: &str) -> Arc<dyn Store> {
    let store = from_url(url, Limits::default()).unwrap();
    store.migrate().await.unwrap();
    store
}

async fn assert_row_equals_fold(store: &dyn Store, history: &History) {
    let record = store.record(history.id).await.unwrap().unwrap();
    assert_eq!(record, history.fold());
    let scan = ExecutionScan {
        rows_max: 500,
        ..ExecutionScan::default()
    };
    let listed = store.executions(&scan).await.unwrap();
    let listed = listed.into_iter().find(|summary| summary.id == history.id);
    // The columns that people and lists read are those that the fold derives.
    assert_eq!(listed, history.fold().summary(history.id));
}

async fn replicas_migrate_at_once(url: String) {
    let stores: Vec<_> = (0..4)
        .map(|_| from_url(&url, Limits::default()).unwrap())
        .collect();
    let migrations: Vec<_> = stores
        .iter()
        .cloned()
        .map(|store| tokio::spawn(async move { store.migrate().await }))
        .collect();
    for migration in migrations {
        migration.await.unwrap().unwrap();
    }
    stores[0].migrate().await.unwrap();
    stores[0].ping().await.unwrap();
    assert_eq!(
        stores[1].record(ExecutionId::derive(&["none"])).await.unwrap(),
        None
    );
}

async fn rows_equal_a_fold(url: String) {
    let store = open(&url).await;
    let histories = [
        History::success("web", "a", 1),
        History::timed_out("web", "b", 11),
        History::cancelled("web", "c", 21),
    ];
    for history in &histories {
        // One message a batch: every row passes through the database between two messages.
        for message in &history.messages {
            store.apply(&batch(std::slice::from_ref(message))).await.unwrap();
        }
        assert_row_equals_fold(&*store, history).await;
    }
}

async fn any_order_gives_the_same_rows(url: String) {
    let store = open(&url).await;
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    for round in 0..30_u64 {
        let key = round.to_string();
        let first = 1 + round * 10;
        let history = match round % 3 {
            0 => History::success("web", &key, first),
            1 => History::timed_out("web", &key, first),
            _ => History::cancelled("web", &key, first),
        };
        let mut twice = history.messages.clone();
        twice.extend(history.messages.clone());
        let cut = 1 + usize::try_from(round).unwrap() % (twice.len() - 1);
        let order = proptest::strategy::Just(twice)
            .prop_shuffle()
            .new_tree(&mut runner)
            .unwrap()
            .current();
        for part in order.chunks(cut) {
            store.apply(&batch(part)).await.unwrap();
        }
        assert_row_equals_fold(&*store, &history).await;
    }
}

async fn concurrent_writers_lose_nothing(url: String) {
    let store = open(&url).await;
    let histories: Vec<History> = (0..8)
        .map(|n| History::cancelled("web", &n.to_string(), 1 + n * 10))
        .collect();
    let messages: Vec<Stored> = histories
        .iter()
        .flat_map(|history| history.messages.clone())
        .collect();
    // Two replicas deal the messages among themselves, so that both write every execution, at the same time,
    // in batches that go through the executions in opposite directions.
    let mut writers = Vec::new();
    for replica in 0..2 {
        let store = open(&url).await;
        let mut mine: Vec<Stored> = messages.iter().skip(replica).step_by(2).cloned().collect();
        if replica == 1 {
            mine.reverse();
        }
        writers.push(tokio::spawn(async move {
            for part in mine.chunks(7) {
                store.apply(&batch(part)).await.unwrap();
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    for history in &histories {
        assert_row_equals_fold(&*store, history).await;
    }
}

async fn replay_writes_nothing(url: String) {
    let store = open(&url).await;
    let mut batch = History::timed_out("web", "a", 1).batch();
    batch
        .alerts
        .extend(samples::batch(&[disposition(9, 1, 0, 1, DispositionKind::Started)]).alerts);
    let first = store.apply(&batch).await.unwrap();
    assert_eq!(
        first,
        Written {
            executions: 1,
            steps: 2,
            alerts: 1
        }
    );
    assert_eq!(store.apply(&batch).await.unwrap(), Written::default());
}

async fn hidden_until_the_start(url: String) {
    let store = open(&url).await;
    let history = History::success("web", "a", 1);
    store.apply(&batch(&history.messages[1..])).await.unwrap();
    let scan = ExecutionScan {
        rows_max: 10,
        ..ExecutionScan::default()
    };
    assert_eq!(store.executions(&scan).await.unwrap(), []);
    assert_eq!(
        store.executions_between(history.id, history.id, 2).await.unwrap(),
        []
    );
    assert!(
        store
            .record(history.id)
            .await
            .unwrap()
            .unwrap()
            .view(history.id)
            .is_none()
    );
    store.apply(&batch(&history.messages[..1])).await.unwrap();
    assert_row_equals_fold(&*store, &history).await;
}

async fn lists_page_newest_first(url: String) {
    let store = open(&url).await;
    let mut expected = Vec::new();
    for n in 0..12_u64 {
        let workflow = if n % 2 == 0 { "web" } else { "db" };
        // Pairs share an instant, so that ids must break the tie.
        let mut history = History::new(workflow, &n.to_string(), 100 + n).start(&[("check", "cli")]);
        history.messages[0].at = instant(n / 2);
        store.apply(&history.batch()).await.unwrap();
        expected.push((instant(n / 2), history.id));
    }
    expected.sort_by(|a, b| b.cmp(a));
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let scan = ExecutionScan {
            rows_max: 5,
            after,
            ..ExecutionScan::default()
        };
        let page = store.executions(&scan).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some((last.created_at, last.id));
        seen.extend(page.iter().map(|summary| (summary.created_at, summary.id)));
        // What is inserted while somebody pages is newer, and moves nothing.
        let mut newer = History::new("web", &format!("new{}", seen.len()), 900).start(&[("check", "cli")]);
        newer.messages[0].at = instant(1000);
        store.apply(&newer.batch()).await.unwrap();
    }
    assert_eq!(seen, expected);
    let filtered = ExecutionScan {
        workflow: Some(WorkflowName::new("db").unwrap()),
        status: Some(ExecutionStatus::Pending),
        namespace: Some(Namespace::default()),
        rows_max: 100,
        after: None,
    };
    assert_eq!(store.executions(&filtered).await.unwrap().len(), 6);
    let none = ExecutionScan {
        status: Some(ExecutionStatus::Failed),
        ..filtered
    };
    assert_eq!(store.executions(&none).await.unwrap(), []);
}

async fn a_prefix_finds_executions(url: String) {
    let store = open(&url).await;
    for n in 0..3 {
        store
            .apply(&History::success("web", &n.to_string(), 1 + n * 10).batch())
            .await
            .unwrap();
    }
    let id = ExecutionId::derive(&["web", "1"]);
    let found = store.executions_between(id, id, 2).await.unwrap();
    assert_eq!(found.iter().map(|summary| summary.id).collect::<Vec<_>>(), [id]);
    let low = "00000000-0000-0000-0000-000000000000".parse().unwrap();
    let high = "ffffffff-ffff-ffff-ffff-ffffffffffff".parse().unwrap();
    assert_eq!(store.executions_between(low, high, 2).await.unwrap().len(), 2);
}

async fn hostile_texts_survive(url: String) {
    let store = open(&url).await;
    let text = "'; DROP TABLE executions; -- \0 \u{1F980} \\u0000 {a,\"b\"} NULL";
    let long = "x".repeat(300_000);
    let history = History::new("web", "a", 1)
        .start(&[("check", "cli"), ("fix", "cli")])
        .task("check")
        .succeeded(
            "check",
            json!({ "stdout": text, "long": long, text: [1.5, null, {"z": 1, "a": 2}] }),
        );
    let record = history.record("fix", StepStatus::Failed, None, Some(text));
    let history = history.end(vec![record], EndStatus::Failed, Some(text), Some("fix"));
    store.apply(&history.batch()).await.unwrap();
    let record = store.record(history.id).await.unwrap().unwrap();
    assert_eq!(record.view(history.id), history.fold().view(history.id));
    let kept = record.outputs().unwrap().to_string();
    assert_eq!(
        kept,
        history.fold().outputs().unwrap().to_string(),
        "the order of keys too"
    );
    // A record that ended is whole for the next fold as well.
    store
        .apply(&history.clone().cancel_request().batch())
        .await
        .unwrap();
    assert_eq!(
        store.record(history.id).await.unwrap().unwrap().outputs(),
        history.fold().outputs()
    );
}

async fn alerts_are_listed_and_counted(url: String) {
    let store = open(&url).await;
    let messages = [
        disposition(1, 1, 0, 1, DispositionKind::Started),
        disposition(2, 2, 0, 2, DispositionKind::Merged),
        disposition(3, 2, 1, 2, DispositionKind::Filtered),
        disposition(4, 3, 0, 2, DispositionKind::Rejected),
    ];
    store.apply(&batch(&messages)).await.unwrap();
    let scan = AlertScan {
        rows_max: 3,
        ..AlertScan::default()
    };
    let page = store.alerts(&scan).await.unwrap();
    let ids = |page: &[AlertView]| page.iter().map(|alert| alert.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&page), ["0000012c.3", "000000c9.2-1", "000000c8.2"]);
    let last = page.last().unwrap();
    let next = AlertScan {
        after: Some((last.received_at, last.id.clone())),
        ..scan.clone()
    };
    assert_eq!(ids(&store.alerts(&next).await.unwrap()), ["00000064.1"]);
    assert_eq!(page[0].status, None, "a rejected alert could not be read");
    assert_eq!(page[1].labels["pod"], "web-1");
    assert_eq!(page[1].executions, [ExecutionId::derive(&["x"])]);
    for (id, count) in [("000000c9", 1), ("000000c9.2-1", 1), ("ffff", 0)] {
        let by_id = AlertScan {
            id: Some(id.to_owned()),
            ..scan.clone()
        };
        assert_eq!(store.alerts(&by_id).await.unwrap().len(), count, "{id}");
    }
    let merged = AlertScan {
        disposition: Some(DispositionKind::Merged),
        ..scan.clone()
    };
    assert_eq!(store.alerts(&merged).await.unwrap().len(), 1);
    let other = AlertScan {
        source: Some("other".to_owned()),
        ..scan
    };
    assert_eq!(store.alerts(&other).await.unwrap(), []);
    let mut huge = batch(&[disposition(9, 9, 0, 1, DispositionKind::Merged)]);
    let alert = &mut huge.alerts[0].disposition;
    alert.reason = "ä".repeat(5_000);
    let labels = &mut alert.alert.as_mut().unwrap().labels;
    labels.insert("huge".to_owned(), json!("x".repeat(70_000)));
    let fresh = AlertScan {
        rows_max: 1,
        ..AlertScan::default()
    };
    let other = History::new("web", "long", 50).start(&[]);
    let other = other.end(Vec::new(), EndStatus::Failed, Some(&"ö".repeat(5_000)), None);
    huge.changes = other.batch().changes;
    store.apply(&huge).await.unwrap();
    let listed = store.alerts(&fresh).await.unwrap().remove(0);
    assert_eq!(listed.labels["…"], "70025 bytes of labels are not listed");
    assert_eq!(listed.reason, "ä".repeat(LISTED_CHARS_MAX));
    for summary in [
        store
            .executions_between(other.id, other.id, 1)
            .await
            .unwrap()
            .remove(0),
        store
            .executions(&ExecutionScan {
                rows_max: 1,
                ..ExecutionScan::default()
            })
            .await
            .unwrap()
            .remove(0),
    ] {
        assert_eq!(summary.error, Some("ö".repeat(LISTED_CHARS_MAX)));
    }
    let counts = store.alert_counts().await.unwrap();
    // Of the third message one alert is missing.
    assert_eq!(counts.messages, 3);
    assert_eq!(counts.dispositions.values().sum::<u64>(), 5);
    assert_eq!(counts.dispositions.get(&DispositionKind::Resolved), None);
}

async fn forgetting_keeps_what_the_log_lost(url: String) {
    let store = open(&url).await;
    let old = History::success("web", "old", 1);
    let new = History::success("web", "new", 101);
    let alerts = [
        disposition(10, 10, 0, 1, DispositionKind::Started),
        disposition(110, 110, 0, 1, DispositionKind::Started),
    ];
    store.apply(&old.batch()).await.unwrap();
    store.apply(&new.batch()).await.unwrap();
    store.apply(&batch(&alerts)).await.unwrap();
    store
        .forget_from(Horizon {
            seq: 100,
            at: instant(100),
        })
        .await
        .unwrap();
    assert_row_equals_fold(&*store, &old).await;
    assert_eq!(store.record(new.id).await.unwrap(), None);
    assert_eq!(store.alert_counts().await.unwrap().messages, 1);
    // Read again, it is as it was.
    store.apply(&new.batch()).await.unwrap();
    assert_row_equals_fold(&*store, &new).await;
}

async fn expiry_keeps_the_counts(url: String) {
    let store = open(&url).await;
    let old = History::success("web", "old", 1);
    let orphan = History::success("web", "orphan", 1);
    let running = History::new("web", "running", 1)
        .start(&[("check", "cli")])
        .task("check");
    let new = History::success("web", "new", 101);
    for history in [&old, &running, &new] {
        store.apply(&history.batch()).await.unwrap();
    }
    store.apply(&batch(&orphan.messages[1..3])).await.unwrap();
    let alerts = [
        disposition(10, 2, 0, 2, DispositionKind::Started),
        disposition(11, 2, 1, 2, DispositionKind::Merged),
        disposition(12, 3, 0, 1, DispositionKind::Merged),
        disposition(110, 4, 0, 1, DispositionKind::Merged),
    ];
    store.apply(&batch(&alerts)).await.unwrap();
    let before: AlertCounts = store.alert_counts().await.unwrap();
    let horizon = Horizon {
        seq: 100,
        at: instant(100),
    };
    let mut rounds = 0;
    while store.expire(instant(50), instant(50), horizon, 1).await.unwrap() > 0 {
        rounds += 1;
        assert!(rounds < 10, "expiry comes to its end");
    }
    assert_eq!(store.record(old.id).await.unwrap(), None);
    assert_eq!(store.record(orphan.id).await.unwrap(), None);
    assert_row_equals_fold(&*store, &running).await;
    assert_row_equals_fold(&*store, &new).await;
    let left = store
        .alerts(&AlertScan {
            rows_max: 10,
            ..AlertScan::default()
        })
        .await
        .unwrap();
    // The log still holds the last one, from where it could come again.
    assert_eq!(left.len(), 1);
    assert_eq!(store.alert_counts().await.unwrap(), before);
}

async fn expiry_by_count_spares_what_runs(url: String) {
    let store = open(&url).await;
    let running = History::new("web", "running", 1)
        .start(&[("check", "cli")])
        .task("check");
    let over: Vec<History> = (0..4)
        .map(|n| History::success("web", &n.to_string(), 20 * (n + 1)))
        .collect();
    for history in over.iter().chain([&running]) {
        store.apply(&history.batch()).await.unwrap();
    }
    assert_eq!(store.expire_beyond(2, 1).await.unwrap(), 1);
    assert_eq!(store.expire_beyond(2, 10).await.unwrap(), 1);
    assert_eq!(store.expire_beyond(2, 10).await.unwrap(), 0);
    for gone in &over[..2] {
        assert_eq!(store.record(gone.id).await.unwrap(), None);
    }
    for left in over[2..].iter().chain([&running]) {
        assert_row_equals_fold(&*store, left).await;
    }

    let alerts: Vec<_> = (1..=3)
        .map(|n| disposition(100 + n, n, 0, 1, DispositionKind::Merged))
        .collect();
    store.apply(&batch(&alerts)).await.unwrap();
    let counts = store.alert_counts().await.unwrap();
    assert_eq!(store.nth_newest_alert(3).await.unwrap(), None);
    let newest = store.nth_newest_alert(0).await.unwrap().unwrap();
    let none = Timestamp::from_millis(0);
    let horizon = Horizon {
        seq: u64::MAX,
        at: instant(1000),
    };
    assert_eq!(store.expire(none, newest, horizon, 10).await.unwrap(), 2);
    let left = store.alert_rows(0, u64::MAX, 10).await.unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(store.alert_counts().await.unwrap(), counts);
}

async fn schedulers_output_stands(url: String) {
    let store = open(&url).await;
    let history = History::new("web", "a", 1)
        .start(&[("check", "cli")])
        .task("check")
        .done(
            "check",
            Outcome::Succeeded,
            Some(Body::Inline(json!({ "from": "runner" }))),
        );
    let record = history.record(
        "check",
        StepStatus::Failed,
        Some(json!({ "from": "scheduler" })),
        Some("late"),
    );
    let history = history.end(vec![record], EndStatus::Failed, Some("late"), Some("check"));
    for message in &history.messages {
        store.apply(&batch(std::slice::from_ref(message))).await.unwrap();
    }
    assert_row_equals_fold(&*store, &history).await;
}

#[tokio::test]
async fn an_absent_database_is_unavailable_and_does_not_hang() {
    let limits = Limits {
        connections_max: 2,
        acquire_timeout: Duration::from_millis(300),
    };
    let store = from_url("postgres://nobody@127.0.0.1:9/none", limits).unwrap();
    assert!(matches!(store.ping().await, Err(StoreError::Unavailable(_))));
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/missing/fist.db", directory.path().display());
    let store = from_url(&url, limits).unwrap();
    assert!(matches!(store.migrate().await, Err(StoreError::Unavailable(_))));
}

#[test]
fn an_unusable_url_says_what_to_write() {
    let problem = |url: &str| from_url(url, Limits::default()).err().unwrap().to_string();
    assert!(problem("mysql://u:secret@h/d").contains("begin it with `sqlite://` or `postgres://`"));
    assert!(!problem("mysql://u:secret@h/d").contains("secret"));
    assert!(problem("sqlite::memory:").contains("name a file"));
}
