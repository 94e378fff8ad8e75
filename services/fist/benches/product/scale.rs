//! One, two and four replicas of each service on one NATS server and one machine.

use crate::{
    Bench, alerts,
    alone::projected,
    databases::Database,
    flows::Kind,
    report::Row,
    steps::{Pair, Setup},
    world::Sync,
};

const GROUP: &str = "Replicas of a service, on this machine";

pub async fn replicas(bench: &mut Bench) {
    for (sync, in_flight) in [(Sync::Default, 256), (Sync::Always, 256)] {
        for replicas in [1, 2, 4] {
            let setup = Setup {
                replicas,
                sync,
                ..Setup::of(Kind::InProcess)
            };
            let mut pair = Pair::start(setup).await;
            let (product, bare) = pair.flows_per_s(bench, in_flight).await;
            pair.stop().await;
            let what = format!(
                "scheduler and runner × {replicas}, in-process steps, {}",
                sync.name()
            );
            let row = Row::new(GROUP, what, product * 3.0, "steps/s").beside(bare * 3.0);
            bench.report.add(row);
        }
    }
    for replicas in [1, 2, 4] {
        let rate = alerts::replicas(bench, replicas).await;
        let what = format!("ingest × {replicas}, one alert in a request");
        bench.report.add(Row::new(GROUP, what, rate, "alerts/s"));
    }
    let events = bench.choose(100_000, 20_000);
    for database in Database::all(bench) {
        // SQLite has one writer.
        let Database::Postgres(_) = database else { continue };
        for replicas in [1, 2, 4] {
            let took = projected(bench, &database, events, replicas).await;
            let what = format!("store-writer × {replicas} on PostgreSQL");
            bench
                .report
                .add(Row::new(GROUP, what, events as f64 / took, "events/s"));
        }
    }
}
