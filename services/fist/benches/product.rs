//! What the product does in a second, beside the bare protocol measured by turns with it: `make bench`.
//!
//! It starts all that it needs: nats-server, PostgreSQL, the services by their own `run`, or the real `fist up`. The
//! table goes to stdout, the same as JSON to a file beside the build; progress goes to stderr.
//!
//! | variable | meaning |
//! |---|---|
//! | `BENCH_QUICK=1` | one short round of each: about two minutes |
//! | `BENCH_ONLY=a,b` | only these parts |
//! | `BENCH_MARKDOWN=FILE` | replaces the table in this page |
#![allow(clippy::unwrap_used, dead_code)]

#[path = "product/alerts.rs"]
mod alerts;
#[path = "product/alone.rs"]
mod alone;
#[path = "product/bare.rs"]
mod bare;
#[path = "product/databases.rs"]
mod databases;
#[path = "product/flows.rs"]
mod flows;
#[path = "../tests/cli/harness.rs"]
mod harness;
#[path = "product/machine.rs"]
mod machine;
#[path = "product/report.rs"]
mod report;
#[path = "product/scale.rs"]
mod scale;
#[path = "product/steps.rs"]
mod steps;
#[path = "product/up.rs"]
mod up;
#[path = "product/world.rs"]
mod world;

use std::{env, path::PathBuf, pin::Pin, time::Duration};

use databases::Database;
use machine::Machine;
use report::Report;

/// A run.
pub struct Bench {
    is_quick: bool,
    pub report: Report,
    pub databases: Vec<Database>,
}

impl Bench {
    /// What is measured in the full form, or in the quick one.
    pub fn choose<T>(&self, full: T, quick: T) -> T {
        if self.is_quick { quick } else { full }
    }

    /// How often each side is measured.
    pub fn rounds(&self) -> usize {
        self.choose(3, 1)
    }

    /// How long each time.
    pub fn time(&self) -> Duration {
        self.choose(Duration::from_millis(2000), Duration::from_millis(700))
    }
}

type Part = for<'a> fn(&'a mut Bench) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

/// All parts, in the order in which they are measured.
const PARTS: [(&str, Part); 11] = [
    ("throughput", |bench| Box::pin(steps::throughput(bench))),
    ("always", |bench| Box::pin(steps::always(bench))),
    ("whole", |bench| Box::pin(steps::whole(bench))),
    ("latency", |bench| Box::pin(steps::latency(bench))),
    ("alerts", |bench| Box::pin(alerts::accepted(bench))),
    ("scheduler", |bench| Box::pin(alone::scheduler(bench))),
    ("store-writer", |bench| Box::pin(alone::store_writer(bench))),
    ("memory", |bench| Box::pin(up::memory(bench))),
    ("start", |bench| Box::pin(up::start(bench))),
    ("growth", |bench| Box::pin(alone::growth(bench))),
    ("replicas", |bench| Box::pin(scale::replicas(bench))),
];

/// The parts that were asked for; all where none was named.
fn chosen(only: &str) -> Result<Vec<(&'static str, Part)>, String> {
    let wanted: Vec<&str> = only
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect();
    for name in &wanted {
        if !PARTS.iter().any(|(part, _)| part == name) {
            let names = PARTS.map(|(part, _)| part).join(", ");
            return Err(format!(
                "BENCH_ONLY: there is no part `{name}`; the parts are {names}"
            ));
        }
    }
    let is_wanted = |name: &str| wanted.is_empty() || wanted.contains(&name);
    Ok(PARTS.into_iter().filter(|(name, _)| is_wanted(name)).collect())
}

fn main() -> Result<(), String> {
    service::install_crypto();
    let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let parts = chosen(&set("BENCH_ONLY").unwrap_or_default())?;
    let is_quick = set("BENCH_QUICK").is_some_and(|value| value != "0");
    let form = if is_quick {
        "Quick form: one round of 0.7 s each."
    } else {
        "Full form: medians of three rounds of 2 s each, product and bare protocol by turns."
    };
    let mut bench = Bench {
        is_quick,
        report: Report::new(Machine::look(), form),
        databases: Vec::new(),
    };
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    for (name, part) in parts {
        eprintln!("{name}");
        runtime.block_on(part(&mut bench));
    }
    println!("{}", bench.report.text());
    // Cargo names a directory within the one of the build.
    let tmp = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let directory = tmp.parent().unwrap_or(&tmp).join("bench");
    let file = directory.join("product.json");
    let json = format!("{:#}\n", bench.report.json());
    std::fs::create_dir_all(&directory)
        .and_then(|()| std::fs::write(&file, json))
        .map_err(|error| format!("{}: {error}", file.display()))?;
    println!("as JSON: {}", file.display());
    if let Some(page) = set("BENCH_MARKDOWN") {
        bench.report.write_into(&PathBuf::from(&page))?;
        println!("the table of {page} is replaced");
    }
    Ok(())
}
