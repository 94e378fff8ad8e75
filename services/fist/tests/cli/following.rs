//! Following executions: outcomes, Ctrl-C, a server that goes and comes back.

use std::process::Stdio;

use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::harness::{Said, Up, eventually, signal, workflow};

/// A command that waits for a file.
fn waits_for(gate: &std::path::Path) -> String {
    format!(
        "until test -e {}; do sleep 0.05; done; echo through",
        gate.display()
    )
}

#[tokio::test]
async fn the_exit_code_is_the_outcome() {
    let up = Up::start().await;
    let good = up.file("good.yaml", &workflow("good", "echo fine"));
    let said = up.says(&["run", "-f", &good]).await;
    assert_eq!(said.code, 0, "{said:?}");
    // The report is the data; how it went stands beside it.
    assert!(
        said.out.contains("good  Succeeded") && said.out.contains("  fine\n"),
        "{said:?}"
    );
    assert!(said.err.contains("[1/1] only  Running    cli"), "{said:?}");
    assert!(said.err.contains("[1/1] only  Succeeded"), "{said:?}");
    assert!(
        !said.out.contains('\u{1b}') && !said.err.contains('\u{1b}'),
        "{said:?}"
    );

    let bad = up.file("bad.yaml", &workflow("bad", "echo dear me >&2; exit 3"));
    let said = up.says(&["run", "-f", &bad]).await;
    assert_eq!(said.code, 1, "{said:?}");
    assert!(
        said.out.contains("bad  Failed") && said.out.contains("dear me"),
        "{said:?}"
    );

    let shown = up.says(&["run", "-f", &good, "--logs", "-o", "name"]).await;
    assert!(shown.err.contains("│ fine"), "{shown:?}");
    let name = shown.out.trim();
    let id = name.strip_prefix("execution/").unwrap();
    let watched = up.says(&["watch", id]).await;
    assert_eq!(watched.code, 0);
    assert!(
        watched.out.contains("[1/1] only  Succeeded") && watched.err.is_empty(),
        "{watched:?}"
    );
    up.stop().await;
}

#[tokio::test]
async fn ctrl_c_detaches_and_the_execution_goes_on() {
    let up = Up::start().await;
    let gate = up.dir.with_extension("gate");
    let file = up.file("waits.yaml", &workflow("waits", &waits_for(&gate)));
    let mut run = up
        .fist(&["run", "-f", &file])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(run.stderr.take().unwrap()).lines();
    while !lines.next_line().await.unwrap().unwrap().contains("Running") {}
    signal(run.id().unwrap(), Signal::SIGINT);
    assert_eq!(run.wait().await.unwrap().code(), Some(130));
    let mut rest = String::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        rest.push_str(&line);
    }
    let id = rest
        .split("`fist watch ")
        .nth(1)
        .unwrap()
        .split('`')
        .next()
        .unwrap()
        .to_owned();
    let (_, status) = up
        .api("GET", &format!("/api/v1/executions/{id}/status"), None)
        .await;
    assert!(status.contains("Running"), "{status}");
    std::fs::write(&gate, "").unwrap();
    let watched = up.says(&["watch", &id]).await;
    assert_eq!(watched.code, 0, "{watched:?}");
    assert!(watched.out.contains("through"), "{watched:?}");
    up.stop().await;
}

#[tokio::test]
async fn what_is_cancelled_exits_with_one() {
    let up = Up::start().await;
    let gate = up.dir.with_extension("gate");
    let file = up.file("waits.yaml", &workflow("waits", &waits_for(&gate)));
    let run = up
        .fist(&["run", "-f", &file])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let id = eventually("it runs", async || {
        let (_, body) = up.api("GET", "/api/v1/executions?status=Running", None).await;
        let page: serde_json::Value = serde_json::from_str(&body).ok()?;
        page["items"][0]["id"].as_str().map(str::to_owned)
    })
    .await;
    let cancelled = up.prints(&["cancel", &id, "--reason", "changed my mind"]).await;
    assert_eq!(cancelled, format!("execution/{id} cancel requested\n"));
    let said: Said = run.wait_with_output().await.unwrap().into();
    assert_eq!(said.code, 1, "{said:?}");
    assert!(
        said.err.contains("changed my mind") && said.out.contains("Cancelled"),
        "{said:?}"
    );
    let said = up.says(&["cancel", &id]).await;
    assert_eq!(said.code, 1, "{said:?}");
    up.stop().await;
}

#[tokio::test]
async fn a_server_that_is_killed_and_comes_back_is_followed_further() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("up");
    let mut up = Up::start_in(&dir, &[], &[]).await;
    let gate = home.path().join("gate");
    let id = up
        .submits("waits.yaml", &workflow("waits", &waits_for(&gate)))
        .await;
    let mut watch = up
        .fist(&["watch", &id])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    while !lines.next_line().await.unwrap().unwrap().contains("Running") {}
    up.kill9(&[]).await;
    let address = up.url.strip_prefix("http://").unwrap().to_owned();
    let up = Up::start_in(&dir, &["--http", &address], &[]).await;
    std::fs::write(&gate, "").unwrap();
    let mut rest = String::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        rest.push_str(&line);
        rest.push('\n');
    }
    let said: Said = watch.wait_with_output().await.unwrap().into();
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.err.contains("lost the server"), "{said:?}");
    assert!(!rest.contains("Running"), "nothing is told twice: {rest}");
    assert_eq!(rest.matches("[1/1] only  Succeeded").count(), 1, "{rest}");
    up.stop().await;
}
