//! Schedulers and runners on the simulated broker, in virtual time: writes and acks get lost, deliveries come
//! twice and out of order, reads fail or are behind; processes are killed between any two effects, stopped, frozen,
//! cut off, their clocks jump. Whatever happens, every guarantee of `oracles.rs` holds.
//!
//! `FIST_SIM_SEEDS=N` sets how many histories (600), `FIST_SIM_FIRST=S` the first seed (0); `FIST_SIM_SEED=S` runs
//! that one and prints it. A history that breaks a guarantee is shrunk and printed.
#![allow(clippy::unwrap_used)]

mod broken;
mod crashes;
mod oracles;
mod plan;
mod shrink;
mod world;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use oracles::judge;
use plan::Plan;

const SEEDS: u64 = 600;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is no number")),
    )
}

/// Runs a plan; where it breaks a guarantee, the smallest that does is the panic's text.
fn check(name: &str, plan: &Plan) {
    let evidence = world::run(plan);
    if let Err(broken) = judge(&evidence) {
        panic!(
            "{name} breaks a guarantee\n{}",
            report(shrink::shrink(plan, broken, evidence))
        );
    }
}

fn report(shrunk: shrink::Shrunk) -> String {
    let shrink::Shrunk {
        plan,
        broken,
        evidence,
        runs,
    } = shrunk;
    format!(
        "{}: {}\nthe smallest history that was found, in {runs} runs:\n{plan}what happened:\n{}",
        broken.guarantee,
        broken.how,
        world::print(&evidence)
    )
}

/// Has all of `work` done, by as many threads as there are cores.
fn spread(work: u64, done: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= work {
                        break;
                    }
                    done(number);
                }
            });
        }
    });
}

#[test]
fn every_guarantee_holds_in_every_history() {
    if let Some(seed) = number("FIST_SIM_SEED") {
        let plan = Plan::from_seed(seed);
        println!("{plan}{}", world::print(&world::run(&plan)));
        return check(&format!("seed {seed}"), &plan);
    }
    let (first, seeds) = (
        number("FIST_SIM_FIRST").unwrap_or(0),
        number("FIST_SIM_SEEDS").unwrap_or(SEEDS),
    );
    let began = Instant::now();
    let done = AtomicU64::new(0);
    spread(seeds, |number| {
        let seed = first + number;
        check(&format!("seed {seed}"), &Plan::from_seed(seed));
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        if done.is_multiple_of(50_000) {
            println!(
                "{done} histories, {:.0} a second",
                done as f64 / began.elapsed().as_secs_f64()
            );
        }
    });
    println!(
        "{seeds} histories from seed {first}, {:.0} a second",
        seeds as f64 / began.elapsed().as_secs_f64()
    );
}

#[test]
fn a_seed_replays() {
    for seed in [7, 42, 4711] {
        let plan = Plan::from_seed(seed);
        let [one, two] = [world::run(&plan), world::run(&plan)];
        assert_eq!(world::print(&one), world::print(&two), "seed {seed}");
        // The list of the faults that struck is the same history again.
        assert!(
            !one.struck.is_empty() || plan.faults.publish_ack_lost == 0,
            "seed {seed}"
        );
    }
}
