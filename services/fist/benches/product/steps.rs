//! Steps in a second and the time of one flow: the product and the bare protocol by turns, on a server each.

use std::{path::Path, sync::Arc, time::Duration};

use bus::{Log as _, topology::STORE_WRITER};

use crate::{
    Bench,
    bare::{Bare, Shape},
    databases::Database,
    flows::{Driven, Ends, Kind, Product, SCRIPT, Workflow, drive, median, one, sizes},
    report::{Row, Target},
    world::{Nats, Running, Sync, until},
};

/// Steps of a flow.
const STEPS: usize = 3;
/// Flows that show what messages there are, and warm everything up; of long ones, fewer.
const WARM_FLOWS: usize = 32;
const WARM_STEPS_MAX: usize = 200;

/// What a pair is for.
#[derive(Clone, Debug)]
pub struct Setup {
    pub sync: Sync,
    pub kind: Kind,
    /// Steps of a flow.
    pub steps: usize,
    /// Replicas of each service.
    pub replicas: usize,
    /// The database, where store-writer takes part.
    pub database: Option<String>,
}

impl Setup {
    /// Flows of three steps, one replica of each service, no database.
    pub fn of(kind: Kind) -> Self {
        Self {
            sync: Sync::Default,
            kind,
            steps: STEPS,
            replicas: 1,
            database: None,
        }
    }

    fn warm_flows(&self) -> usize {
        (WARM_STEPS_MAX / self.steps).clamp(1, WARM_FLOWS)
    }
}

/// A server with the product on it, and one with the bare protocol.
pub struct Pair {
    pub product_nats: Nats,
    pub product: Arc<Product>,
    pub product_ends: Ends,
    services: Vec<Running>,
    bare_nats: Nats,
    bare: Bare,
    bare_starter: Arc<crate::bare::BareStarter>,
    bare_ends: Ends,
    _scripts: tempfile::TempDir,
}

/// Who takes the tasks of this kind.
async fn runners(nats: &Nats, kind: Kind, count: usize, scripts: &Path) -> Vec<Running> {
    let mut running = Vec::new();
    for _ in 0..count {
        match kind {
            Kind::Conditional => {}
            Kind::InProcess => running.push(Running::in_process_runner(nats).await),
            Kind::Cli => running.push(Running::cli_runner(nats).await),
            Kind::Agent => running.push(Running::agent_runner(nats, scripts).await),
        }
    }
    running
}

impl Pair {
    /// Starts both.
    pub async fn start(setup: Setup) -> Self {
        let Setup {
            sync,
            kind,
            steps,
            replicas,
            ..
        } = setup;
        let scripts = tempfile::tempdir().unwrap();
        std::fs::write(scripts.path().join("bench.yaml"), SCRIPT).unwrap();
        let product_nats = Nats::start(sync).await;
        let mut services = runners(&product_nats, kind, replicas, scripts.path()).await;
        for _ in 0..replicas {
            services.push(Running::scheduler(&product_nats).await);
            if let Some(database) = &setup.database {
                services.push(Running::store_writer(&product_nats, database).await);
            }
        }
        // Ingest has a connection of its own, too.
        let log = bus::NatsLog::open(&product_nats.server.connect().await)
            .await
            .unwrap();
        let product = Arc::new(Product {
            log,
            workflow: Workflow::new(kind, steps),
        });
        // Runners ask the log about every task until their connection has stood for so long.
        let log = product.log.clone();
        let is_trusted = async || log.now() >= log.connected_since().after(service::clock::TOLERANCE);
        until("the connections have stood", is_trusted).await;
        let mut product_ends = Ends::follow(&product_nats.log).await;
        for _ in 0..setup.warm_flows() {
            one(&*product, &mut product_ends).await;
        }
        let shape = shape(&product_nats, &setup).await;
        let bare_nats = Nats::start(sync).await;
        let bare = Bare::start(&bare_nats, shape).await;
        let bare_starter = bare.starter(&bare_nats).await;
        let mut bare_ends = Ends::follow(&bare_nats.log).await;
        for _ in 0..setup.warm_flows() {
            one(&*bare_starter, &mut bare_ends).await;
        }
        // Neither side has a message more than the other.
        assert_eq!(bare_nats.counts().await, product_nats.counts().await, "{kind:?}");
        Self {
            product_nats,
            product,
            product_ends,
            services,
            bare_nats,
            bare,
            bare_starter,
            bare_ends,
            _scripts: scripts,
        }
    }

    pub async fn bare(&mut self, in_flight: usize, time: Duration) -> Driven {
        drive(&self.bare_starter, &mut self.bare_ends, in_flight, time).await
    }

    pub async fn product(&mut self, in_flight: usize, time: Duration) -> Driven {
        drive(&self.product, &mut self.product_ends, in_flight, time).await
    }

    /// Flows in a second of the product and of the bare protocol, by turns; the median of each.
    pub async fn flows_per_s(&mut self, bench: &Bench, in_flight: usize) -> (f64, f64) {
        let (mut product, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..bench.rounds() {
            bare.push(self.bare(in_flight, bench.time()).await.flows_per_s());
            product.push(self.product(in_flight, bench.time()).await.flows_per_s());
        }
        (median(product), median(bare))
    }

    pub async fn one_bare(&mut self) -> Duration {
        one(&*self.bare_starter, &mut self.bare_ends).await
    }

    pub async fn one_product(&mut self) -> Duration {
        one(&*self.product, &mut self.product_ends).await
    }

    /// Leaves out what somebody else has written meanwhile.
    pub async fn follow_anew(&mut self) {
        self.product_ends = Ends::follow(&self.product_nats.log).await;
    }

    /// Ends all but the product's server, with what is in its log.
    pub async fn stop(self) -> Nats {
        for service in self.services {
            service.stop().await;
        }
        self.bare.stop().await;
        self.product_nats
    }
}

/// What the bare protocol has to write for the same flow, from what the product wrote for some.
async fn shape(nats: &Nats, setup: &Setup) -> Shape {
    let sizes = sizes(&nats.log, 1).await;
    let size = |kind: &str| sizes.get(kind).copied().unwrap_or(0);
    let tasks = if setup.kind == Kind::Conditional {
        0
    } else {
        setup.steps
    };
    let flows = setup.warm_flows() as u64;
    let [log, timers] = nats.counts().await;
    assert_eq!(timers, flows * tasks as u64, "one timer for each task");
    let [per_flow, others] = [log / flows, 2 + 2 * tasks as u64];
    let turns = (per_flow - others).checked_div(tasks as u64).unwrap_or(0) as usize;
    Shape {
        tasks,
        turns,
        start_bytes: size("start"),
        command_bytes: size("cli").max(size("agent")),
        turn_bytes: size("turn"),
        done_bytes: size("done"),
        end_bytes: size("note"),
        is_read: setup.database.is_some(),
    }
}

/// The target at 256 in flight; of steps that are processes or agents, none.
fn target(kind: Kind, in_flight: usize) -> Option<Target> {
    (in_flight == 256 && matches!(kind, Kind::Conditional | Kind::InProcess))
        .then_some(Target::RatioAtLeast(0.8))
}

const GROUP: &str = "Steps in a second, flows of 3 steps (scheduler and runner against the bare protocol)";
const ALWAYS: &str = "The same with `sync_interval: always`";
const WHOLE: &str =
    "The same with store-writer at work (the bare protocol has a third reader of the whole log)";
const ONE: &str = "One flow of 3 steps at a time";

/// Steps in a second by how many are in flight.
pub async fn throughput(bench: &mut Bench) {
    for kind in [Kind::Conditional, Kind::InProcess, Kind::Cli, Kind::Agent] {
        let mut pair = Pair::start(Setup::of(kind)).await;
        for in_flight in [1, 16, 256, 1024] {
            let (product, bare) = pair.flows_per_s(bench, in_flight).await;
            add(bench, GROUP, kind, in_flight, product, bare);
        }
        pair.stop().await;
    }
}

/// The same where every message is on the disk before it is acknowledged.
pub async fn always(bench: &mut Bench) {
    for kind in [Kind::Conditional, Kind::InProcess] {
        let mut pair = Pair::start(Setup {
            sync: Sync::Always,
            ..Setup::of(kind)
        })
        .await;
        for in_flight in [16, 256] {
            let (product, bare) = pair.flows_per_s(bench, in_flight).await;
            add(bench, ALWAYS, kind, in_flight, product, bare);
        }
        pair.stop().await;
    }
}

fn add(bench: &mut Bench, group: &'static str, kind: Kind, in_flight: usize, product: f64, bare: f64) {
    let what = format!("{}, {in_flight} in flight", kind.name());
    let steps = STEPS as f64;
    let mut row = Row::new(group, what, product * steps, "steps/s").beside(bare * steps);
    row.target = target(kind, in_flight);
    bench.report.add(row);
}

/// The whole product: the database is written beside.
pub async fn whole(bench: &mut Bench) {
    let databases = Database::all(bench);
    for kind in [Kind::Conditional, Kind::InProcess] {
        for database in &databases {
            let setup = Setup {
                database: Some(database.fresh()),
                ..Setup::of(kind)
            };
            let mut pair = Pair::start(setup).await;
            let (mut product, mut bare, mut behind) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..bench.rounds() {
                bare.push(pair.bare(256, bench.time()).await.flows_per_s());
                let driven = pair.product(256, bench.time()).await;
                let begun = std::time::Instant::now();
                pair.product_nats.settled(&STORE_WRITER).await;
                behind.push(begun.elapsed().as_secs_f64());
                product.push(driven.flows_per_s());
            }
            let what = format!("{}, 256 in flight, {}", kind.name(), database.name());
            let steps = STEPS as f64;
            bench.report.add(
                Row::new(WHOLE, what, median(product) * steps, "steps/s")
                    .beside(median(bare) * steps)
                    .noting(format!(
                        "the database had all {:.2} s after the last end",
                        median(behind)
                    )),
            );
            pair.stop().await;
        }
    }
}

/// How long one flow takes where nothing else goes on.
pub async fn latency(bench: &mut Bench) {
    for sync in [Sync::Default, Sync::Always] {
        for kind in [Kind::Conditional, Kind::InProcess, Kind::Cli, Kind::Agent] {
            if sync == Sync::Always && !matches!(kind, Kind::Conditional | Kind::InProcess) {
                continue;
            }
            let mut pair = Pair::start(Setup {
                sync,
                ..Setup::of(kind)
            })
            .await;
            let (mut product, mut bare): (Vec<Driven>, Vec<Driven>) = (Vec::new(), Vec::new());
            for _ in 0..bench.rounds() {
                bare.push(pair.bare(1, bench.time()).await);
                product.push(pair.product(1, bench.time()).await);
            }
            for (name, part) in [("p50", 0.5), ("p99", 0.99)] {
                let of = |all: &[Driven]| median(all.iter().map(|driven| driven.quantile_ms(part)).collect());
                let what = format!("{name}, {}, {}", kind.name(), sync.name());
                let mut row = Row::new(ONE, what, of(&product), "ms").beside(of(&bare));
                let is_wanted = name == "p50"
                    && sync == Sync::Default
                    && matches!(kind, Kind::Conditional | Kind::InProcess);
                row.target = is_wanted.then_some(Target::AtMost(5.0));
                bench.report.add(row);
            }
            pair.stop().await;
        }
    }
}
