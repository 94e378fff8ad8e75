//! The real `fist up`: how soon it is there, and what executions that wait take of its memory.

use std::time::{Duration, Instant};

use bus::{
    Connection, Log as _, NatsLog, Settings,
    testing::TestNats,
    topology::{CLI, SCHEDULER, STORE_WRITER},
};
use futures_util::{StreamExt as _, stream};
use protocol::ExecutionId;
use serde_json::Value;

use crate::{
    Bench,
    flows::{Kind, Workflow, median},
    harness::Up,
    report::{Row, Target},
    world::until,
};

const START: &str = "Cold start";
const MEMORY: &str = "Memory of executions that wait for a runner";

/// From nothing to ready, beside a nats-server alone.
pub async fn start(bench: &mut Bench) {
    let (mut up, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..bench.choose(5, 3) {
        let begun = Instant::now();
        let server = TestNats::start().await;
        bare.push(begun.elapsed().as_secs_f64());
        drop(server);
        let begun = Instant::now();
        let started = Up::start().await;
        up.push(begun.elapsed().as_secs_f64());
        started.stop().await;
    }
    let row = Row::new(
        START,
        "`fist up` in an empty directory, until it is ready",
        median(up),
        "s",
    );
    let row = row.beside(median(bare)).noting("bare: nats-server alone");
    bench.report.add(row);
}

/// Bytes of memory that a process has.
fn memory_bytes(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
    kib.unwrap_or_default() * 1024.0
}

/// Executions that wait for a runner, which is at eight that take long.
pub async fn memory(bench: &mut Bench) {
    let count = bench.choose(10_000, 2_000);
    let home = tempfile::tempdir().unwrap();
    let env = [("FIST_SHUTDOWN_DRAIN_MS", "3000"), ("FIST_LOG_LEVEL", "warn")];
    let up = Up::start_in(&home.path().join("up"), &[], &env).await;
    let connection = connect(&up).await;
    let log = NatsLog::open(&connection).await.unwrap();
    let pids = (up.child.id().unwrap(), up.nats_servers()[0]);
    // What every process takes once it has been at work, such as its caches and buffers, is not counted.
    submit(&log, &Workflow::new(Kind::Conditional, 3), 2_000).await;
    settled(&log, 0).await;
    let before = (memory_bytes(pids.0), memory_bytes(pids.1));
    submit(&log, &Workflow::sleeping(), count).await;
    settled(&log, count as u64).await;
    let after = (memory_bytes(pids.0), memory_bytes(pids.1));
    let each = |before: f64, after: f64| (after - before).max(0.0) / count as f64 / 1024.0;
    let what = format!("`fist up`, each of {count}");
    bench.report.add(
        Row::new(MEMORY, what, each(before.0, after.0), "KiB")
            .wanted(Target::AtMost(4.0))
            .noting(format!("{:.0} MiB in all", after.0 / 1024.0 / 1024.0)),
    );
    let what = format!("its nats-server, each of {count}");
    bench.report.add(
        Row::new(MEMORY, what, each(before.1, after.1), "KiB")
            .noting(format!("{:.0} MiB in all", after.1 / 1024.0 / 1024.0)),
    );
    connection.close().await;
    up.stop().await;
}

async fn connect(up: &Up) -> Connection {
    let text = std::fs::read_to_string(up.dir.join("nats.json")).unwrap();
    let told: Value = serde_json::from_str(&text).unwrap();
    let text = |name: &str| told[name].as_str().map(str::to_owned);
    let settings = Settings {
        url: text("url").unwrap(),
        user_and_password: text("user").zip(text("password")),
        client_name: "bench".to_owned(),
        attempt_time: Duration::from_secs(5),
        deadline: Duration::from_secs(30),
        ..Settings::default()
    };
    Connection::open(&settings).await.unwrap()
}

async fn submit(log: &NatsLog, workflow: &Workflow, count: usize) {
    let writes = (0..count).map(|_| async {
        let id = ExecutionId::from_uuid(uuid::Uuid::now_v7());
        let (subject, payload) = workflow.start(id);
        log.write_fact(&subject, payload).await.unwrap();
    });
    stream::iter(writes)
        .buffer_unordered(64)
        .for_each(|()| async {})
        .await;
}

/// Waits until all is decided and recorded, and so many tasks wait or are in hand.
async fn settled(log: &NatsLog, tasks: u64) {
    until("everything is decided and recorded", async || {
        for durable in [SCHEDULER, STORE_WRITER] {
            let state = log.consumer_state(&durable).await.unwrap();
            if state.waiting + state.in_flight > 0 {
                return false;
            }
        }
        let state = log.consumer_state(&CLI).await.unwrap();
        state.waiting + state.in_flight == tasks
    })
    .await;
}
