//! One service at a time, with its messages waiting for it: what it could do if all others were faster.

use std::time::Instant;

use bus::topology::{Durable, SCHEDULER, STORE_WRITER};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use protocol::{Attempt, ExecutionId, Namespace, StepName, Subject};

use crate::{
    Bench,
    bare::{Bare, Shape, context},
    databases::Database,
    flows::{Kind, Workflow, filler, sizes},
    report::{Row, Target},
    steps::{Pair, Setup},
    world::{Nats, Running, Sync},
};

const GROUP: &str = "One service alone, its messages waiting for it";
const CATCH_UP: &str = "Catching up";
const GROWTH: &str = "Growth of cost";

/// Writes in flight while a log is filled.
const FILLING: usize = 512;

/// Start facts of conditional flows, with nobody there to answer them.
async fn fill_with_starts(nats: &Nats, count: usize, body: Option<usize>) {
    let workflow = Workflow::new(Kind::Conditional, 3);
    let bodies = (0..count).map(|_| {
        let id = ExecutionId::from_uuid(uuid::Uuid::now_v7());
        let (subject, payload) = workflow.start(id);
        (subject.to_string(), body.map_or(payload.into(), filler))
    });
    fill(nats, bodies).await;
}

async fn fill(nats: &Nats, messages: impl Iterator<Item = (String, Bytes)>) {
    let js = context(nats).await;
    let writes = messages.map(|(subject, body)| {
        let js = js.clone();
        async move {
            js.publish(subject, body).await.unwrap().await.unwrap();
        }
    });
    stream::iter(writes)
        .buffer_unordered(FILLING)
        .for_each(|()| async {})
        .await;
}

/// How long it takes from `start` until `durable` has nothing waiting.
async fn timed<T>(nats: &Nats, durable: &Durable, start: impl Future<Output = T>) -> (T, f64) {
    let begun = Instant::now();
    let started = start.await;
    nats.settled(durable).await;
    (started, begun.elapsed().as_secs_f64())
}

/// The scheduler, with starts waiting for it.
pub async fn scheduler(bench: &mut Bench) {
    let count = bench.choose(100_000, 10_000);
    let nats = Nats::start(Sync::Default).await;
    fill_with_starts(&nats, count, None).await;
    let start_bytes = sizes(&nats.log, 1).await["start"];
    let (service, took) = timed(&nats, &SCHEDULER, Running::scheduler(&nats)).await;
    service.stop().await;
    let end_bytes = sizes(&nats.log, count as u64 + 1).await["note"];
    drop(nats);
    let nats = Nats::start(Sync::Default).await;
    fill_with_starts(&nats, count, Some(start_bytes)).await;
    let shape = Shape {
        tasks: 0,
        turns: 0,
        start_bytes,
        command_bytes: 0,
        turn_bytes: 0,
        done_bytes: 0,
        end_bytes,
        is_read: false,
    };
    let (bare, bare_took) = timed(&nats, &SCHEDULER, Bare::start(&nats, shape)).await;
    bare.stop().await;
    let row = Row::new(
        GROUP,
        "scheduler: starts of conditional flows, answered",
        count as f64 / took,
        "facts/s",
    );
    bench.report.add(row.beside(count as f64 / bare_took));
    let row = Row::new(
        CATCH_UP,
        format!("scheduler, {count} start facts waiting"),
        took,
        "s",
    );
    bench.report.add(row.beside(bare_took));
}

/// Store-writer, with the log of whole executions waiting for it.
pub async fn store_writer(bench: &mut Bench) {
    let events = bench.choose(100_000, 20_000);
    for database in Database::all(bench) {
        let rates = projected(bench, &database, events, 1).await;
        let is_postgres = matches!(database, Database::Postgres(_));
        let what = format!(
            "store-writer on {}, {events} messages of 3-step flows",
            database.name()
        );
        let mut row = Row::new(GROUP, what, events as f64 / rates, "events/s");
        row.target = is_postgres.then_some(Target::AtLeast(10_000.0));
        bench.report.add(row);
        let what = format!("store-writer on {}, {events} messages waiting", database.name());
        bench.report.add(Row::new(CATCH_UP, what, rates, "s"));
    }
}

/// How long so many replicas of store-writer need for at least `events` messages, in seconds for exactly that many.
pub async fn projected(bench: &Bench, database: &Database, events: usize, replicas: usize) -> f64 {
    let mut pair = Pair::start(Setup::of(Kind::InProcess)).await;
    while pair.product_nats.counts().await[0] < events as u64 {
        pair.product(256, bench.time()).await;
    }
    let nats = pair.stop().await;
    let there = nats.counts().await[0] as f64;
    let url = database.fresh();
    let start = async {
        let mut running = Vec::new();
        for _ in 0..replicas {
            running.push(Running::store_writer(&nats, &url).await);
        }
        running
    };
    let (running, took) = timed(&nats, &STORE_WRITER, start).await;
    for service in running {
        service.stop().await;
    }
    took * events as f64 / there
}

/// Many steps in one execution, and many executions in the stream.
pub async fn growth(bench: &mut Bench) {
    for steps in [10, 100, 1000] {
        let mut pair = Pair::start(Setup {
            steps,
            ..Setup::of(Kind::InProcess)
        })
        .await;
        let (mut product, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..bench.rounds() {
            bare.push(pair.one_bare().await.as_secs_f64());
            product.push(pair.one_product().await.as_secs_f64());
        }
        let per_step = |took| crate::flows::median(took) * 1e6 / steps as f64;
        let what = format!("one of {steps} in-process steps of an execution");
        bench
            .report
            .add(Row::new(GROWTH, what, per_step(product), "µs").beside(per_step(bare)));
        pair.stop().await;
    }
    let executions = bench.choose(1_000_000, 100_000);
    let mut pair = Pair::start(Setup::of(Kind::InProcess)).await;
    let (before, _) = pair.flows_per_s(bench, 256).await;
    let one_before = pair.product(1, bench.time()).await.quantile_ms(0.5);
    // A start and an end each, small ones; the consumer of facts passes by what nobody has to answer.
    let old = (0..executions).flat_map(|_| {
        let id = ExecutionId::from_uuid(uuid::Uuid::now_v7());
        let (namespace, step) = (Namespace::default(), StepName::new("old").unwrap());
        [
            Subject::Turn(namespace.clone(), id, step, Attempt::FIRST, 0),
            Subject::Note(namespace, id),
        ]
        .map(|subject| (subject.to_string(), filler(64)))
    });
    fill(&pair.product_nats, old).await;
    pair.follow_anew().await;
    let (after, _) = pair.flows_per_s(bench, 256).await;
    let one_after = pair.product(1, bench.time()).await.quantile_ms(0.5);
    let what = format!("steps/s at 256 in flight with {executions} executions in the stream");
    let row = Row::new(GROWTH, what, after * 3.0, "steps/s");
    bench
        .report
        .add(row.noting(format!("{:.0} before", before * 3.0)));
    let what = format!("p50 of one 3-step flow with {executions} executions in the stream");
    let row = Row::new(GROWTH, what, one_after, "ms");
    bench.report.add(row.noting(format!("{one_before:.2} before")));
    pair.stop().await;
}
