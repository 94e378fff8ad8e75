//! Killed between any two effects: small histories, each run once for every point of every process, with nothing
//! else going wrong. What can be seen of a process are its requests, so the points before and behind the effect of
//! each are all the moments at which a kill makes a difference, whichever `.await` it falls on.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{
    check,
    plan::{Disturbance, Execution, Fate, Plan, Process, Step, StepKind, What},
    spread, world,
};

fn cli(fate: Fate) -> Step {
    Step {
        kind: StepKind::Cli,
        fate,
    }
}

fn small() -> Vec<(&'static str, Execution)> {
    let ok = Fate::Succeeds { after_ms: 100 };
    let condition = |is_met, on_false| Step {
        kind: StepKind::Conditional { is_met, on_false },
        fate: ok,
    };
    vec![
        (
            "two steps",
            Execution::of(vec![
                cli(ok),
                Step {
                    kind: StepKind::Agent,
                    fate: ok,
                },
            ]),
        ),
        (
            "a step that fails",
            Execution::of(vec![cli(Fate::Fails { after_ms: 100 }), Step::OK]),
        ),
        ("a step that hangs", Execution::of(vec![cli(Fate::Hangs)])),
        (
            "a result that comes too late",
            Execution::of(vec![cli(Fate::Late)]),
        ),
        (
            "a result that cannot be read",
            Execution::of(vec![cli(Fate::Garbles)]),
        ),
        (
            "conditions",
            Execution::of(vec![
                condition(true, "fail"),
                condition(false, "skip_next"),
                Step::OK,
                Step::OK,
            ]),
        ),
        (
            "cancelled at work",
            Execution {
                cancelled_after_ms: Some(500),
                ..Execution::of(vec![cli(Fate::Late)])
            },
        ),
        (
            "started by two",
            Execution {
                by_two: true,
                ..Execution::of(vec![cli(ok)])
            },
        ),
    ]
}

/// A plan with a second scheduler, which takes over or comes in between.
fn plan(execution: Execution, seed: u64) -> Plan {
    let mut plan = Plan {
        seed,
        ..Plan::quiet(vec![execution])
    };
    plan.processes.push(Process::Scheduler);
    plan.processes.push(Process::CliRunner);
    plan
}

#[test]
fn a_kill_between_any_two_effects_changes_no_guarantee() {
    let mut cases = Vec::new();
    for (name, execution) in small() {
        let quiet = plan(execution, 0);
        let points = world::run(&quiet).points;
        assert!(points.iter().all(|points| *points > 2), "{name}: {points:?}");
        for (process, points) in points.iter().enumerate() {
            // Idle rounds of waiting pass no point, so that these are few.
            for point in 0..*points {
                let what = What::KilledAt {
                    point,
                    down_ms: if point % 2 == 0 { 0 } else { 40_000 },
                };
                let kill = Disturbance {
                    at_ms: 0,
                    process,
                    what,
                };
                cases.push((
                    format!("{name}: process {process} killed at {point}"),
                    Plan {
                        disturbances: vec![kill],
                        ..quiet.clone()
                    },
                ));
            }
        }
    }
    let ran = AtomicU64::new(0);
    spread(cases.len() as u64, |number| {
        let (name, plan) = &cases[usize::try_from(number).unwrap()];
        check(name, plan);
        ran.fetch_add(1, Ordering::Relaxed);
    });
    println!("{} kills", ran.into_inner());
}
