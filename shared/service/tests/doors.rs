//! Health, metrics and the bounds on clients, over real connections.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::routing::get;
use service::http::{Limits, observed, serve};
use service::metrics::Tokens;
use service::{Health, Metrics, health};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Nothing here takes this long unless it hangs.
const DEADLINE: Duration = Duration::from_secs(20);

struct Door {
    address: SocketAddr,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
}

async fn open(app: Router, limits: Limits) -> Door {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(serve(listener, app, limits, shutdown.clone()));
    Door {
        address,
        shutdown,
        serving,
    }
}

fn limits() -> Limits {
    Limits {
        header_timeout: DEADLINE,
        idle_timeout: DEADLINE,
        connections_max: 16,
        drain: DEADLINE,
    }
}

impl Door {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// The whole answer, head and body.
    async fn get(&self, path: &str) -> String {
        let mut stream = self.connect().await;
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(DEADLINE, stream.read_to_string(&mut answer))
            .await
            .expect("an answer in time")
            .unwrap();
        answer
    }

    async fn close(self) {
        self.shutdown.cancel();
        timeout(DEADLINE, self.serving)
            .await
            .expect("the door closes in time")
            .unwrap();
    }
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

#[tokio::test]
async fn health_says_what_fails() {
    let health = Health::new();
    let door = open(health::router(health.clone(), Metrics::new()), limits()).await;
    let answer = door.get("/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert_eq!(
        body(&answer),
        r#"{"status":"not ready","failing":{"start":"nothing has reported yet"}}"#
    );

    health.set("nats", Err("no server at nats://127.0.0.1:4222".into()));
    health.set("database", Ok(()));
    let answer = door.get("/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert_eq!(
        body(&answer),
        r#"{"status":"not ready","failing":{"nats":"no server at nats://127.0.0.1:4222"}}"#
    );
    // A neighbour that is away is no reason to restart this process.
    let answer = door.get("/healthz").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(body(&answer), r#"{"status":"alive"}"#);

    health.set("nats", Ok(()));
    let answer = door.get("/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(body(&answer), r#"{"status":"ready"}"#);

    let _silent = health.watch_loop("decide", Duration::ZERO);
    let answer = door.get("/healthz").await;
    assert!(
        answer.starts_with("HTTP/1.1 503") && answer.contains("decide"),
        "{answer}"
    );
    door.close().await;
}

fn filled() -> Metrics {
    let metrics = Metrics::new();
    let second = Duration::from_millis(1500);
    metrics.alert("alertmanager", "started");
    metrics.alert("we\"ird\\", "rejected");
    metrics.execution_started("alertmanager");
    metrics.execution_ended("Succeeded");
    metrics.step_ended("cli", "succeeded", second);
    std::mem::forget(metrics.step_running("agent"));
    metrics.queue("cli", 7, second);
    metrics.delivery("cli", 1);
    metrics.stream_filled("FIST_LOG", 0.5);
    metrics.delivery("cli", 2);
    metrics.dead_letter("scheduler");
    metrics.http_request("/api/v1/executions/{id}", "GET", 200, second);
    metrics.llm_request("anthropic", "claude-sonnet-4-5", "ok", second);
    metrics.llm_tokens(
        "anthropic",
        "claude-sonnet-4-5",
        Tokens {
            input: 100,
            output: 20,
            cached: 60,
        },
    );
    metrics.budget_tokens_used("prod", 120);
    metrics.tool_call("kubectl", "ok", second);
    metrics.projection_lag(3, second);
    metrics
}

#[tokio::test]
async fn metrics_are_served_filled() {
    let door = open(health::router(Health::new(), filled()), limits()).await;
    let answer = door.get("/metrics").await;
    assert!(
        answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8"),
        "{answer}"
    );
    for line in [
        r#"fist_alerts_total{source="alertmanager",disposition="started"} 1"#,
        r#"fist_executions_total{status="Succeeded"} 1"#,
        r#"fist_steps_total{type="cli",outcome="succeeded"} 1"#,
        r#"fist_step_duration_seconds_sum{type="cli",outcome="succeeded"} 1.5"#,
        r#"fist_steps_running{type="agent"} 1"#,
        r#"fist_queue_messages{consumer="cli"} 7"#,
        r#"fist_queue_oldest_age_seconds{consumer="cli"} 1.5"#,
        r#"fist_stream_filled_ratio{stream="FIST_LOG"} 0.5"#,
        r#"fist_deliveries_total{consumer="cli"} 2"#,
        r#"fist_redeliveries_total{consumer="cli"} 1"#,
        r#"fist_dead_letters_total{consumer="scheduler"} 1"#,
        r#"fist_http_requests_total{route="/api/v1/executions/{id}",method="GET",status="200"} 1"#,
        r#"fist_llm_tokens_total{provider="anthropic",model="claude-sonnet-4-5",kind="cached"} 60"#,
        r#"fist_budget_tokens_used_total{namespace="prod"} 120"#,
        r#"fist_tool_calls_total{tool="kubectl",outcome="ok"} 1"#,
        "fist_projection_lag_messages{} 3",
    ] {
        assert!(
            body(&answer).lines().any(|seen| seen == line),
            "{line} is not in\n{answer}"
        );
    }
    door.close().await;
}

#[tokio::test]
async fn promtool_finds_nothing_to_complain_about() {
    use std::io::Write as _;
    let spawned = tokio::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut promtool = match spawned {
        Ok(promtool) => promtool,
        Err(error) => {
            // Written past the test runner's capture, to be seen.
            writeln!(
                std::io::stderr(),
                "SKIPPED: metrics are not checked by promtool, which cannot be run: {error}"
            )
            .unwrap();
            return;
        }
    };
    let mut stdin = promtool.stdin.take().unwrap();
    stdin.write_all(filled().encode().as_bytes()).await.unwrap();
    drop(stdin);
    let output = timeout(DEADLINE, promtool.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.trim().is_empty(),
        "{}: {said}",
        output.status
    );
}

#[tokio::test]
async fn requests_are_counted_by_pattern() {
    let metrics = Metrics::new();
    let app = Router::new().route("/things/{id}", get(|| async { "thing" }));
    let door = open(observed(app, metrics.clone()), limits()).await;
    door.get("/things/1").await;
    door.get("/things/2").await;
    door.get("/nothing/3").await;
    door.close().await;
    let text = metrics.encode();
    for line in [
        r#"fist_http_requests_total{route="/things/{id}",method="GET",status="200"} 2"#,
        r#"fist_http_requests_total{route="none",method="GET",status="404"} 1"#,
    ] {
        assert!(text.lines().any(|seen| seen == line), "{line} is not in\n{text}");
    }
}

#[tokio::test]
async fn a_handler_learns_who_asks() {
    let who = |ConnectInfo(peer): ConnectInfo<SocketAddr>| async move { peer.ip().to_string() };
    let door = open(Router::new().route("/", get(who)), limits()).await;
    assert_eq!(body(&door.get("/").await), "127.0.0.1");
    door.close().await;
}

#[tokio::test]
async fn a_client_that_never_finishes_its_head_is_cut_off() {
    let brief = Limits {
        header_timeout: Duration::from_millis(50),
        ..limits()
    };
    let door = open(health::router(Health::new(), Metrics::new()), brief).await;
    let mut slow = door.connect().await;
    slow.write_all(b"GET /healthz HTTP/1.1\r\nho").await.unwrap();
    let mut answer = Vec::new();
    timeout(DEADLINE, slow.read_to_end(&mut answer))
        .await
        .expect("the connection is closed")
        .unwrap();
    assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));
    door.close().await;
}

#[tokio::test]
async fn a_client_that_keeps_its_connection_idle_is_cut_off() {
    let brief = Limits {
        header_timeout: Duration::from_millis(50),
        ..limits()
    };
    let app = Router::new().route("/", get(|| async { "answer" }));
    let door = open(app, brief).await;
    let mut idle = door.connect().await;
    idle.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
        .await
        .unwrap();
    let mut answers = String::new();
    // Kept alive after the answer, and closed without a second request.
    timeout(DEADLINE, idle.read_to_string(&mut answers))
        .await
        .expect("the connection is closed")
        .unwrap();
    assert_eq!(body(&answers), "answer");
    door.close().await;
}

#[tokio::test]
async fn a_client_that_stops_reading_gives_its_place_to_another() {
    // More than the kernel buffers of one connection hold.
    let large = || async { vec![0_u8; 64 * 1024 * 1024] };
    let app = Router::new()
        .route("/large", get(large))
        .route("/small", get(|| async { "small" }));
    let one = Limits {
        connections_max: 1,
        idle_timeout: Duration::from_millis(50),
        ..limits()
    };
    let door = open(app, one).await;
    let mut greedy = door.connect().await;
    greedy
        .write_all(b"GET /large HTTP/1.1\r\nhost: test\r\n\r\n")
        .await
        .unwrap();
    // Wait until the answer has begun, so that the only place is taken.
    let mut first = [0; 1];
    timeout(DEADLINE, greedy.read_exact(&mut first))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(body(&door.get("/small").await), "small");
    door.close().await;
}

#[tokio::test]
async fn shutdown_lets_a_request_end_and_takes_no_new_one() {
    let (entered, release) = (CancellationToken::new(), CancellationToken::new());
    let (inside, until) = (entered.clone(), release.clone());
    let slow = move || {
        let (inside, until) = (inside.clone(), until.clone());
        async move {
            inside.cancel();
            until.cancelled().await;
            "finished"
        }
    };
    let door = open(Router::new().route("/", get(slow)), limits()).await;
    let mut stream = door.connect().await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
        .await
        .unwrap();
    timeout(DEADLINE, entered.cancelled()).await.unwrap();
    door.shutdown.cancel();
    let refused = async {
        while TcpStream::connect(door.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, refused).await.expect("the port is closed");
    release.cancel();
    let mut answer = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(body(&answer), "finished");
    door.close().await;
}

#[tokio::test]
async fn a_request_that_never_ends_is_cut_off_after_the_drain_time() {
    let entered = CancellationToken::new();
    let inside = entered.clone();
    let endless = move || {
        inside.cancel();
        std::future::pending::<&'static str>()
    };
    let brief = Limits {
        drain: Duration::from_millis(50),
        ..limits()
    };
    let door = open(Router::new().route("/", get(endless)), brief).await;
    let mut stream = door.connect().await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
        .await
        .unwrap();
    timeout(DEADLINE, entered.cancelled()).await.unwrap();
    door.close().await;
}
