//! A database that follows the log is equal to it; every kind of tampering is found and named.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use protocol::DispositionKind;
use sqlx::{Connection as _, PgConnection, SqliteConnection};

use super::*;
use crate::{
    samples::{History, Stored, disposition},
    testing::TestPostgres,
    world::{World, mixed, open, service},
};

/// Does `sql` behind the store's back.
async fn tamper(url: &str, sql: &str) {
    let statement = sqlx::AssertSqlSafe(sql.to_owned());
    if url.starts_with("sqlite") {
        let mut connection = SqliteConnection::connect(url).await.unwrap();
        sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
    } else {
        let mut connection = PgConnection::connect(url).await.unwrap();
        sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
    }
}

fn alerts() -> Vec<Stored> {
    (1..=3)
        .map(|n| disposition(n, n, 0, 1, DispositionKind::Started))
        .collect()
}

async fn finds_what_differs(world: &World, url: String) {
    let store = open(&url);
    let projector = world.project(&store, 7);
    world.write(&mixed(9)).await;
    world.write(&alerts()).await;
    // While store-writers go on, and more is written.
    let later: Vec<Stored> = (0..20)
        .flat_map(|n| History::success("web", &format!("later {n}"), 1).messages)
        .collect();
    let verifying = service(7);
    let (found, ()) = tokio::join!(verify(&world.log, &*store, &verifying), world.write(&later));
    let found = found.unwrap();
    assert_eq!(found.told, Vec::<String>::new());
    assert!(found.executions >= 9 && found.alerts == 3, "{found:?}");
    world.drained().await;
    projector.end().await;

    let found = verify(&world.log, &*store, &service(7)).await.unwrap();
    assert!(found.is_equal() && found.messages > 0, "{found:?}");
    let id = |key: &str| History::new("web", key, 1).id;
    let alert = store.alert_rows(0, u64::MAX, 1).await.unwrap().remove(0).0.id;
    let (status, output, gone, step) = (id("0"), id("3"), id("6"), id("4"));
    for sql in [
        format!("UPDATE executions SET status = 'Running' WHERE id = '{status}'"),
        format!("UPDATE steps SET output = '{{\"stdout\": \"another\"}}' WHERE execution_id = '{output}'"),
        format!("DELETE FROM executions WHERE id = '{gone}'"),
        format!("DELETE FROM steps WHERE execution_id = '{step}'"),
        format!("UPDATE alerts SET reason = 'none' WHERE id = '{alert}'"),
    ] {
        tamper(&url, &sql).await;
    }
    let stranger = History::success("web", "stranger", found.messages - 9);
    let mut stranger = stranger.batch();
    for part in stranger
        .changes
        .values_mut()
        .flatten()
        .flat_map(|change| &mut change.parts)
    {
        if let crate::record::Part::Start(start) = part {
            start.created_at = world.log.now();
        }
    }
    let stranger_id = *stranger.changes.keys().next().unwrap();
    store.apply(&stranger).await.unwrap();

    let found = verify(&world.log, &*store, &service(7)).await.unwrap();
    let told = |part: &str| {
        assert!(
            found.told.iter().any(|told| told.contains(part)),
            "no `{part}` in {:#?}",
            found.told
        );
    };
    told(&format!(
        "execution {status}: status is `Running`, and the log says `Succeeded`"
    ));
    told(&format!(
        "execution {output}, step check attempt 1: output is `{{\"stdout\": \"another\"}}`, and the log says"
    ));
    told(&format!("execution {gone}: the log has it, the database has not"));
    told(&format!(
        "execution {step}, step check attempt 1: the log has it, the database has not"
    ));
    told(&format!(
        "alert {alert}: reason is `none`, and the log says `because`"
    ));
    told(&format!(
        "execution {stranger_id}: the database has it, the log has not"
    ));
    let named = [status, output, gone, step, stranger_id];
    for told in &found.told {
        let is_one_of_these =
            told.starts_with("alert ") || named.iter().any(|id| told.contains(&id.to_string()));
        assert!(is_one_of_these, "{told}");
    }

    // Neither does a row that cannot even be read end the comparison.
    let nonsense = format!("UPDATE executions SET status = 'nonsense' WHERE id = '{status}'");
    tamper(&url, &nonsense).await;
    let found = verify(&world.log, &*store, &service(7)).await.unwrap();
    for part in ["status is `nonsense`", "cannot be listed"] {
        assert!(
            found.told.iter().any(|told| told.contains(part)),
            "{:#?}",
            found.told
        );
    }

    // What retention took is no difference, and a rebuild mends the rest.
    let mut retaining = service(7);
    let mut config = (*retaining.config).clone();
    config.database.retention_executions_max = 1;
    retaining.config = Arc::new(config);
    // The samples' alerts are older than the log, so that a rebuild leaves them as they are.
    tamper(
        &url,
        &format!("UPDATE alerts SET reason = 'because' WHERE id = '{alert}'"),
    )
    .await;
    crate::rebuild(&world.log, &*store, &service(7)).await.unwrap();
    let found = verify(&world.log, &*store, &retaining).await.unwrap();
    assert_eq!(found.told, Vec::<String>::new());
    let gone = store.expire_beyond(1, 1_000).await.unwrap();
    let found = verify(&world.log, &*store, &retaining).await.unwrap();
    assert_eq!((found.told.len(), found.expired), (0, gone));
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_is_compared_with_the_log() {
    let world = World::new().await;
    let url = world.sqlite_url("a.db");
    finds_what_differs(&world, url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_compared_with_the_log() {
    let Some(server) = TestPostgres::start() else {
        return;
    };
    let world = World::new().await;
    finds_what_differs(&world, server.create_database("verified")).await;
}
