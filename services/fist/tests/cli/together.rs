//! Two `fist up` on one NATS server: they share the work, and nothing runs twice.

use std::path::Path;

use bus::testing::TestNats;
use futures_util::future::join_all;

use crate::harness::{Up, eventually, lines, workflow};

const EXECUTIONS: usize = 12;

/// Two that wait for each other: each can only end while the other runs, and a process runs one at a time.
fn pair(home: &Path, own: &str, other: &str) -> String {
    let (own, other) = (home.join(own), home.join(other));
    workflow(
        "pair",
        &format!(
            "touch {}; until test -e {}; do sleep 0.05; done",
            own.display(),
            other.display()
        ),
    )
}

#[tokio::test]
async fn two_share_the_work_and_nothing_runs_twice() {
    let nats = TestNats::start().await;
    let url = nats.url();
    let home = tempfile::tempdir().unwrap();
    let one_at_a_time = [("FIST_CLI_CONCURRENCY", "1")];
    let start = |name: &str| {
        let dir = home.path().join(name);
        let url = url.clone();
        async move { Up::start_in(&dir, &["--nats", &url], &one_at_a_time).await }
    };
    let (one, two) = tokio::join!(start("one"), start("two"));
    let a = one.submits("a.yaml", &pair(home.path(), "a", "b")).await;
    let b = two.submits("b.yaml", &pair(home.path(), "b", "a")).await;
    for id in [&a, &b] {
        assert_eq!(two.ended(id).await["status"], "Succeeded");
    }
    let witness = home.path().join("witness");
    let submitted = (0..EXECUTIONS).map(|n| {
        let up = if n % 2 == 0 { &one } else { &two };
        let command = format!("echo {n} >> {}", witness.display());
        let text = workflow("count", &command);
        async move { up.submits(&format!("count-{n}.yaml"), &text).await }
    });
    let ids = join_all(submitted).await;
    for id in &ids {
        assert_eq!(one.ended(id).await["status"], "Succeeded");
    }
    let mut ran: Vec<usize> = lines(&witness).iter().map(|line| line.parse().unwrap()).collect();
    ran.sort_unstable();
    assert_eq!(ran, (0..EXECUTIONS).collect::<Vec<_>>());

    // Each has the whole record, not its half: either answers for both.
    let all = EXECUTIONS + 2;
    two.stop().await;
    has_all(&one, all).await;
    let two = start("two").await;
    one.stop().await;
    has_all(&two, all).await;
    two.stop().await;
}

async fn has_all(up: &Up, all: usize) {
    eventually("the record is whole", async || {
        let said = up
            .says(&["get", "executions", "--status", "succeeded", "-o", "name"])
            .await;
        (said.out.lines().count() == all).then_some(())
    })
    .await;
}
