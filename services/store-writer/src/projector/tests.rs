#![allow(clippy::unwrap_used)]
use protocol::{DispositionKind, Subject};

use crate::{
    rebuild::rebuild,
    samples::{History, Stored, disposition},
    store::AlertScan,
    testing::TestPostgres,
    world::{World, eventually, mixed, open, service},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_says_is_what_sql_says() {
    let world = World::new().await;
    let store = world.sqlite("a.db").await;
    let running = world.project(&store, 7);
    world.write(&mixed(12)).await;
    world
        .write(&[disposition(1, 1, 0, 1, DispositionKind::Started)])
        .await;
    world.drained().await;
    world.assert_equals_log(&*store).await;
    assert_eq!(
        store
            .alerts(&AlertScan {
                rows_max: 9,
                ..AlertScan::default()
            })
            .await
            .unwrap()
            .len(),
        1
    );
    let numbers = running.service.metrics.encode();
    assert!(
        numbers.contains("fist_projection_batch_messages_count"),
        "{numbers}"
    );
    running.service.health.readiness().unwrap();
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_gives_the_same_and_may_be_repeated() {
    let world = World::new().await;
    let store = world.sqlite("a.db").await;
    let running = world.project(&store, 100);
    world.write(&mixed(9)).await;
    world
        .write(&[disposition(1, 1, 0, 1, DispositionKind::Started)])
        .await;
    world.drained().await;
    let counts = store.alert_counts().await.unwrap();
    // Into an empty database, into the full one, and once more; beside a running projector.
    let fresh = world.sqlite("b.db").await;
    for store in [&fresh, &store, &store] {
        let rebuilt = rebuild(&world.log, &**store, &service(100)).await.unwrap();
        assert_eq!(rebuilt.unreadable, 0);
        assert!(rebuilt.messages > 50, "{rebuilt:?}");
        world.assert_equals_log(&**store).await;
        assert_eq!(store.alert_counts().await.unwrap(), counts);
    }
    // Interrupted before it began to fold: repeated, nothing is missing.
    let interrupted = service(100);
    interrupted.shutdown.cancel();
    rebuild(&world.log, &*store, &interrupted).await.unwrap_err();
    rebuild(&world.log, &*store, &service(100)).await.unwrap();
    world.assert_equals_log(&*store).await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_from_before_the_log_survive_a_rebuild() {
    let world = World::new().await;
    let store = world.sqlite("a.db").await;
    let old = History::success("web", "of last month", 1);
    store.apply(&old.batch()).await.unwrap();
    world.write(&mixed(3)).await;
    rebuild(&world.log, &*store, &service(100)).await.unwrap();
    assert_eq!(store.record(old.id).await.unwrap().unwrap(), old.fold());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_projectors_on_one_durable_lose_nothing() {
    let world = World::new().await;
    let url = world.sqlite_url("a.db");
    let stores = [open(&url), open(&url)];
    let running = [world.project(&stores[0], 3), world.project(&stores[1], 5)];
    world.write(&mixed(20)).await;
    world.drained().await;
    world.assert_equals_log(&*stores[0]).await;
    for projector in running {
        projector.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_projectors_on_postgres_lose_nothing() {
    let Some(server) = TestPostgres::start() else {
        return;
    };
    let world = World::new().await;
    let url = server.create_database("fist");
    let stores = [open(&url), open(&url)];
    let running = [world.project(&stores[0], 3), world.project(&stores[1], 50)];
    world.write(&mixed(30)).await;
    world.drained().await;
    world.assert_equals_log(&*stores[0]).await;
    for projector in running {
        projector.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_goes_and_comes_back_loses_nothing() {
    let Some(server) = TestPostgres::start() else {
        return;
    };
    let world = World::new().await;
    let url = server.create_database("fist");
    let store = open(&url);
    let running = world.project(&store, 10);
    let messages = mixed(12);
    let (before, after) = messages.split_at(messages.len() / 2);
    world.write(before).await;
    // Some of it is written, some of it not yet: whatever the moment is.
    eventually("rows", || async { store.ping().await.ok() }).await;
    server.stop();
    world.write(after).await;
    eventually("readiness says so", || async {
        let failing = running.service.health.readiness().err()?;
        failing.get("database").cloned()
    })
    .await;
    assert_eq!(running.service.health.liveness(), Ok(()));
    server.start_again();
    world.drained().await;
    world.assert_equals_log(&*store).await;
    eventually("ready again", || async {
        running.service.health.readiness().ok()
    })
    .await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_at_the_start_is_waited_for() {
    let Some(server) = TestPostgres::start() else {
        return;
    };
    let world = World::new().await;
    let url = server.create_database("fist");
    server.stop();
    let store = open(&url);
    let running = world.project(&store, 10);
    world.write(&mixed(3)).await;
    eventually("readiness says so", || async {
        let failing = running.service.health.readiness().err()?;
        failing
            .get("database")
            .filter(|reason| reason.contains("not available"))
            .cloned()
    })
    .await;
    server.start_again();
    world.drained().await;
    world.assert_equals_log(&*store).await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projector_that_ends_hands_back_what_it_could_not_write() {
    let Some(server) = TestPostgres::start() else {
        return;
    };
    let world = World::new().await;
    let url = server.create_database("fist");
    let first = open(&url);
    first.migrate().await.unwrap();
    let running = world.project(&first, 10);
    eventually("ready", || async { running.service.health.readiness().ok() }).await;
    server.stop();
    world.write(&mixed(3)).await;
    eventually("a batch in hand", || async {
        running.service.health.readiness().err()
    })
    .await;
    running.end().await;
    server.start_again();
    let second = open(&url);
    let running = world.project(&second, 10);
    // Handed back, and not left to ack_wait.
    world.drained().await;
    world.assert_equals_log(&*second).await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_killed_and_comes_back_is_read_on() {
    let mut world = World::new().await;
    let store = world.sqlite("a.db").await;
    let running = world.project(&store, 5);
    let messages = mixed(12);
    let (before, after) = messages.split_at(messages.len() / 2);
    world.write(before).await;
    world.nats.kill9();
    world.nats.restart().await;
    eventually("the connection is back", || async {
        world.connection.is_connected().then_some(())
    })
    .await;
    world.write(after).await;
    eventually("all is written", || async {
        let folded = world.folded().await;
        for (id, view) in &folded {
            let record = store.record(*id).await.unwrap()?;
            (record.view(*id).as_ref() == Some(view)).then_some(())?;
        }
        Some(())
    })
    .await;
    world.assert_equals_log(&*store).await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_set_aside_and_its_neighbours_are_written() {
    let world = World::new().await;
    let store = world.sqlite("a.db").await;
    let history = History::success("web", "a", 1);
    let broken = History::success("web", "b", 1).start(&[]);
    let nonsense = Stored {
        payload: b"{\"v\":1}".to_vec(),
        ..broken.messages[0].clone()
    };
    world.write(&[nonsense]).await;
    world.write(&history.messages).await;
    let running = world.project(&store, 100);
    world.drained().await;
    let letters = world.log_dead_letters().await;
    assert_eq!(letters.len(), 1);
    assert!(letters[0].reason.contains("cannot be read"), "{:?}", letters[0]);
    assert_eq!(letters[0].consumer, "store-writer");
    assert!(store.record(history.id).await.unwrap().unwrap().is_settled());
    assert!(
        running
            .service
            .metrics
            .encode()
            .contains("fist_dead_letters_total{consumer=\"store-writer\"} 1")
    );
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_database_refuses_is_set_aside_and_its_neighbours_are_written() {
    let world = World::new().await;
    let store = world.sqlite("a.db").await;
    let spoilt = History::success("web", "spoilt", 1);
    world.write(&spoilt.messages[..1]).await;
    let running = world.project(&store, 100);
    world.drained().await;
    running.end().await;
    // Somebody edited a row by hand.
    let options = sqlx::sqlite::SqliteConnectOptions::new()
        .filename(world.sqlite_url("a.db").trim_start_matches("sqlite://"));
    let pool = sqlx::SqlitePool::connect_with(options).await.unwrap();
    sqlx::query("UPDATE executions SET workflow_steps = 'nonsense'")
        .execute(&pool)
        .await
        .unwrap();
    pool.close().await;
    let history = History::success("web", "a", 1);
    world.write(&spoilt.messages[1..2]).await;
    world.write(&history.messages).await;
    let running = world.project(&store, 100);
    world.drained().await;
    let letters = world.log_dead_letters().await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].subject, spoilt.messages[1].subject.to_string());
    assert!(
        letters[0].reason.contains("the stored record"),
        "{:?}",
        letters[0]
    );
    assert!(store.record(history.id).await.unwrap().unwrap().is_settled());
    running.end().await;
    // The remedy: what the log has is folded again.
    rebuild(&world.log, &*store, &service(100)).await.unwrap();
    world.assert_equals_log(&*store).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_message_is_left_to_a_newer_replica() {
    let world = World::new().await;
    let store = world.sqlite("a.db").await;
    let mut newer = History::success("web", "a", 1).messages.remove(0);
    newer.payload = br#"{"v":99,"at":"2026-01-01T00:00:00Z","body":{}}"#.to_vec();
    assert!(matches!(newer.subject, Subject::Start(..)));
    world.write(&[newer]).await;
    let running = world.project(&store, 100);
    eventually("it is delivered", || async {
        running
            .service
            .metrics
            .encode()
            .contains("fist_deliveries_total{consumer=\"store-writer\"} 1")
            .then_some(())
    })
    .await;
    let history = History::success("web", "b", 1);
    world.write(&history.messages).await;
    eventually("its neighbours are written", || async {
        store
            .record(history.id)
            .await
            .unwrap()
            .filter(|record| record.is_settled())
    })
    .await;
    assert!(world.log_dead_letters().await.is_empty());
    running.end().await;
}
