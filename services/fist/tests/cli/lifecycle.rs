//! `fist up` from its start to its end, whatever kind of end.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{Said, Up, eventually, fist, lines, processes, signal, workflow};

#[tokio::test]
async fn a_directory_has_one_at_a_time() {
    let up = Up::start().await;
    let second: Said = fist()
        .args(["up", "--http", "127.0.0.1:0", "--dir"])
        .arg(&up.dir)
        .output()
        .await
        .unwrap()
        .into();
    assert_eq!(second.code, 1, "{second:?}");
    let pid = up.child.id().unwrap();
    assert!(
        second.err.contains(&format!("process {pid}")) && second.err.contains("--dir"),
        "{second:?}"
    );
    assert_eq!(
        up.says(&["get", "executions"]).await.code,
        0,
        "the first one goes on"
    );
    up.stop().await;
}

#[tokio::test]
async fn a_taken_port_is_said_and_nothing_is_left() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let home = tempfile::tempdir().unwrap();
    let said: Said = fist()
        .args(["up", "--http", &address, "--dir"])
        .arg(home.path())
        .output()
        .await
        .unwrap()
        .into();
    assert_eq!(said.code, 1, "{said:?}");
    assert!(
        said.err.contains(&address) && said.err.contains("--http"),
        "{said:?}"
    );
    let home = home.path().canonicalize().unwrap();
    assert_eq!(processes(|line| line.contains(home.to_str().unwrap())), [0; 0]);
}

#[tokio::test]
async fn the_end_is_orderly_and_what_was_is_there_again() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("up");
    let up = Up::start_in(&dir, &[], &[]).await;
    let id = up.submits("ok.yaml", &workflow("ok", "echo fine")).await;
    let before = up.ended(&id).await;
    up.stop().await;
    assert!(!dir.join("http").exists());
    let config = dir.canonicalize().unwrap();
    assert_eq!(processes(|line| line.contains(config.to_str().unwrap())), [0; 0]);
    let up = Up::start_in(&dir, &[], &[]).await;
    assert_eq!(up.ended(&id).await, before);
    up.stop().await;
}

#[tokio::test]
async fn a_closed_terminal_ends_it_in_order() {
    let mut up = Up::start().await;
    signal(up.child.id().unwrap(), Signal::SIGHUP);
    let status = up.child.wait().await.unwrap();
    assert!(status.success(), "{status}: {}", up.log());
    assert_eq!(up.nats_servers(), [0; 0]);
}

#[tokio::test]
async fn a_dead_nats_server_is_started_again() {
    let up = Up::start().await;
    let first = up.nats_servers();
    assert_eq!(first.len(), 1);
    signal(first[0], Signal::SIGKILL);
    let id = eventually("work is taken again", async || {
        let file = up.file("ok.yaml", &workflow("ok", "echo fine"));
        let said = up.says(&["run", "-f", &file, "--detach"]).await;
        (said.code == 0).then(|| said.out.trim().to_owned())
    })
    .await;
    assert_eq!(up.ended(&id).await["status"], "Succeeded");
    assert_ne!(up.nats_servers(), first);
    assert!(up.log().contains("starting it again"), "{}", up.log());
    up.stop().await;
}

/// Three steps; the second says that it began, with its process, and waits for a file.
fn three_steps(witness: &std::path::Path, gate: &std::path::Path) -> String {
    let (witness, gate) = (witness.display(), gate.display());
    let second = format!(
        "echo began $$ >> {witness}; until test -e {gate}; do sleep 0.05; done; echo ended >> {witness}"
    );
    let steps = json!([
        {"name": "first", "type": "cli", "command": format!("echo first >> {witness}")},
        {"name": "second", "type": "cli", "command": second},
        {"name": "third", "type": "cli", "command": format!("echo third >> {witness}")},
    ]);
    format!(
        "apiVersion: punching-fist.io/v1alpha1\nkind: Workflow\nmetadata: {{name: three}}\nspec:\n  steps: {steps}\n"
    )
}

async fn survives_a_kill(kills_nats: bool) {
    let home = tempfile::tempdir().unwrap();
    let (dir, witness, gate) = (
        home.path().join("up"),
        home.path().join("witness"),
        home.path().join("gate"),
    );
    let mut up = Up::start_in(&dir, &[], &[]).await;
    let id = up.submits("three.yaml", &three_steps(&witness, &gate)).await;
    eventually("the second step runs", async || {
        (lines(&witness).len() == 2).then_some(())
    })
    .await;
    let also = if kills_nats { up.nats_servers() } else { Vec::new() };
    up.kill9(&also).await;
    let up = Up::start_in(&dir, &[], &[]).await;
    assert_eq!(up.nats_servers().len(), 1, "the one that was left behind is gone");
    // It is handed out anew, to the process that lives.
    eventually("the second step runs again", async || {
        (lines(&witness).len() == 3).then_some(())
    })
    .await;
    let began: Vec<u32> = lines(&witness)
        .iter()
        .filter_map(|line| line.strip_prefix("began ")?.parse().ok())
        .collect();
    let alive = |pid: u32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty());
    assert!(
        !alive(began[0]),
        "what the killed process ran was ended before it ran again"
    );
    std::fs::write(&gate, "").unwrap();
    let view = up.ended(&id).await;
    assert_eq!(view["status"], "Succeeded", "{view}");
    assert_eq!(
        lines(&witness).iter().filter(|line| *line == "ended").count(),
        1,
        "{:?}",
        lines(&witness)
    );
    assert_eq!(lines(&witness).iter().filter(|line| *line == "first").count(), 1);
    assert_eq!(lines(&witness).iter().filter(|line| *line == "third").count(), 1);
    let steps = view["steps"].as_array().unwrap();
    let recorded: Vec<(&str, &Value)> = steps
        .iter()
        .map(|step| (step["name"].as_str().unwrap(), &step["attempt"]))
        .collect();
    assert_eq!(
        recorded,
        [("first", &json!(1)), ("second", &json!(1)), ("third", &json!(1))]
    );
    let (_, events) = up
        .api("GET", &format!("/api/v1/executions/{id}/events"), None)
        .await;
    for step in ["first", "second", "third"] {
        let completed = events.lines().filter(|line| {
            line.contains("\"step.completed\"") && line.contains(&format!("\"step\":\"{step}\""))
        });
        assert_eq!(completed.count(), 1, "{step} is recorded once: {events}");
    }
    up.stop().await;
    eventually("no process is left behind", async || {
        let home = home.path().canonicalize().unwrap();
        processes(|line| line.contains(home.to_str().unwrap()))
            .is_empty()
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn kill_9_in_the_middle_of_a_step_changes_no_outcome() {
    survives_a_kill(false).await;
}

#[tokio::test]
async fn kill_9_of_nats_with_it_changes_no_outcome_either() {
    survives_a_kill(true).await;
}
