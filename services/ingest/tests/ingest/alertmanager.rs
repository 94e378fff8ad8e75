//! A real Alertmanager, as Debian packages it, fires at the webhook.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use protocol::DispositionKind as Kind;
use serde_json::json;

use super::world::{World, answered, definition, until};

struct Alertmanager {
    child: Child,
    base: String,
    _directory: tempfile::TempDir,
}

impl Drop for Alertmanager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn installed() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .flat_map(|dir| ["prometheus-alertmanager", "alertmanager"].map(|name| dir.join(name)))
        .find(|file| file.is_file());
    if found.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "prometheus-alertmanager is not installed, and CI is set"
        );
        eprintln!("SKIPPED: a real Alertmanager, because prometheus-alertmanager is not on PATH");
    }
    found
}

async fn started(binary: PathBuf, webhook: &str) -> Alertmanager {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("alertmanager.yml");
    std::fs::write(
        &file,
        format!(
            "route: {{receiver: fist, group_by: ['...'], group_wait: 0s, group_interval: 1s, repeat_interval: 1s}}\n\
             receivers:\n  - name: fist\n    webhook_configs: [{{url: '{webhook}', send_resolved: true}}]\n"
        ),
    )
    .unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let base = format!("http://127.0.0.1:{port}");
    let child = Command::new(binary)
        .arg(format!("--config.file={}", file.display()))
        .arg(format!("--storage.path={}", directory.path().display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .arg("--cluster.listen-address=")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Alertmanager {
        child,
        base,
        _directory: directory,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_firing_starts_once_however_often_it_is_sent() {
    let Some(binary) = installed() else {
        return;
    };
    let world = World::new().await;
    world
        .apply(&definition("one", "alertmanager", "alertname: DiskFull"))
        .await;
    let alertmanager = started(binary, &format!("{}/webhooks/alertmanager", world.ingest.base)).await;
    let alerts = json!([
        { "labels": { "alertname": "DiskFull", "severity": "critical", "pod": "db-1" }, "annotations": { "summary": "93 %" } },
        { "labels": { "alertname": "Other" } },
    ]);
    let post = |alerts: &serde_json::Value| {
        world
            .client
            .post(format!("{}/api/v2/alerts", alertmanager.base))
            .json(alerts)
            .send()
    };
    until("Alertmanager takes alerts", || async {
        post(&alerts).await.ok().filter(|answer| answer.status() == 200)
    })
    .await;
    // It repeats itself every second or so.
    let recorded = until("it was sent again", || async {
        let found = world.dispositions().await;
        let merged = found
            .iter()
            .filter(|each| each.disposition == Kind::Merged)
            .count();
        (merged >= 1).then_some(found)
    })
    .await;
    let starts = world.starts().await;
    assert_eq!(starts.len(), 1, "{recorded:#?}");
    assert_eq!(starts[0].input.read().data["pod"], "db-1");
    assert_eq!(
        starts[0].input.read().alert.as_ref().unwrap()["annotations"]["summary"],
        "93 %"
    );
    assert!(recorded.iter().any(|each| each.disposition == Kind::Filtered));

    let mut over = alerts.clone();
    for alert in over.as_array_mut().unwrap() {
        alert["endsAt"] = json!("2026-01-01T00:00:00Z");
    }
    until("Alertmanager hears that it is over", || async {
        post(&over).await.ok().filter(|answer| answer.status() == 200)
    })
    .await;
    until("the end is recorded", || async {
        world
            .dispositions()
            .await
            .iter()
            .any(|each| each.disposition == Kind::Resolved)
            .then_some(())
    })
    .await;
    assert_eq!(world.starts().await.len(), 1);
    answered(world.get("/readyz"), 200).await;
}
