//! A real Prometheus scrapes the health door and answers a query from it.
#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use service::{Health, Metrics, health, health_limits, http};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn prometheus_scrapes_what_was_counted() {
    let metrics = Metrics::new();
    metrics.alert("alertmanager", "started");
    metrics.step_ended("cli", "succeeded", Duration::from_millis(1500));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let app = health::router(Health::new(), metrics);
    let door = tokio::spawn(http::serve(listener, app, health_limits(), shutdown.clone()));

    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("prometheus.yml");
    let text = format!(
        "scrape_configs: [{{job_name: fist, scrape_interval: 200ms, scrape_timeout: 200ms, \
         static_configs: [{{targets: ['{target}']}}]}}]\n"
    );
    std::fs::write(&config, text).unwrap();
    let address = free_port().await;
    let spawned = tokio::process::Command::new("prometheus")
        .arg(format!("--config.file={}", config.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            dir.path().join("data").display()
        ))
        .arg(format!("--web.listen-address={address}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let mut prometheus = match spawned {
        Ok(prometheus) => prometheus,
        Err(error) => {
            // Written past the test runner's capture, to be seen.
            writeln!(
                std::io::stderr(),
                "SKIPPED: metrics are not scraped by Prometheus, which cannot be run: {error}"
            )
            .unwrap();
            return;
        }
    };

    for (query, value) in [
        ("fist_alerts_total{source=%22alertmanager%22}", "1"),
        ("fist_step_duration_seconds_sum", "1.5"),
        // The third of the buckets that 1.5 s falls into, and no earlier one.
        ("fist_step_duration_seconds_bucket{le=%225.0%22}", "1"),
        ("fist_step_duration_seconds_bucket{le=%221.0%22}", "0"),
    ] {
        wait_for(&mut prometheus, address, query, value).await;
    }
    prometheus.kill().await.unwrap();
    shutdown.cancel();
    door.await.unwrap();
}

/// A port nobody has; Prometheus cannot say which one it took itself.
async fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
}

async fn wait_for(prometheus: &mut tokio::process::Child, address: SocketAddr, query: &str, value: &str) {
    let deadline = Instant::now() + DEADLINE;
    let wanted = format!(",\"{value}\"]");
    let mut last = String::new();
    let mut pause = tokio::time::interval(Duration::from_millis(50));
    while Instant::now() < deadline {
        if let Some(status) = prometheus.try_wait().unwrap() {
            panic!("Prometheus ended by itself: {status}");
        }
        if let Ok(answer) = get(address, &format!("/api/v1/query?query={query}")).await {
            if answer.contains(&wanted) {
                return;
            }
            last = answer;
        }
        pause.tick().await;
    }
    panic!("{query} never became {value}; last answer: {last}");
}

async fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
