//! Each oracle can object, and what it objects to is made small: systems that break a promise on purpose, and
//! histories that were doctored.

use std::collections::BTreeSet;

use bus::{
    StreamId,
    sim::{Defect, Effect},
    topology,
};
use protocol::{Append, EndStatus, LaneAction, StepRecord, StepStatus};

use crate::{
    oracles::{Broken, ORACLES, broken, judge},
    plan::{Execution, Fate, Plan, Step, StepKind},
    report, shrink, world,
    world::Evidence,
};

/// The first history, of those of the first seeds, that breaks a guarantee after `spoil` spoilt its plan.
fn first_broken(spoil: impl Fn(&mut Plan)) -> (Plan, Broken, Evidence) {
    for seed in 0..200 {
        let mut plan = Plan::from_seed(seed);
        spoil(&mut plan);
        let evidence = world::run(&plan);
        if let Err(broken) = judge(&evidence) {
            return (plan, broken, evidence);
        }
    }
    panic!("no history of 200 breaks a guarantee");
}

#[test]
fn a_broken_broker_is_noticed() {
    for (defect, guarantees) in [
        (Defect::IgnoresWriteOnce, &["facts_are_written_once"][..]),
        (Defect::NeverRedelivers, &["everything_ends"]),
        (Defect::LosesResults, &["acknowledged_is_kept", "everything_ends"]),
        (Defect::NeverFires, &["everything_ends"]),
    ] {
        let (plan, broken, _) = first_broken(|plan| plan.defect = Some(defect));
        assert!(
            guarantees.contains(&broken.guarantee),
            "{defect:?}: {broken:?} in\n{plan}"
        );
    }
}

#[test]
fn a_lane_without_its_guard_is_noticed_and_its_history_made_small() {
    let (plan, broken, evidence) = first_broken(|plan| plan.defect = Some(Defect::IgnoresLaneGuard));
    let shrunk = shrink::shrink(&plan, broken, evidence);
    let (guarantee, plan) = (shrunk.broken.guarantee, shrunk.plan.clone());
    let text = report(shrunk);
    let two_won = [
        "lane_ends_once",
        "tasks_are_handed_out_once",
        "causes_are_named_once",
        "lane_replays",
        "everything_ends",
    ];
    assert!(two_won.contains(&guarantee), "{text}");
    // One execution, a step or two, a fault or two.
    assert_eq!(plan.executions.len(), 1, "{text}");
    assert!(plan.executions[0].steps.len() <= 3, "{text}");
    let faults = plan.strikes.as_ref().map_or(0, BTreeSet::len) + plan.disturbances.len();
    assert!(faults <= 4, "{faults} faults are left: {text}");
}

#[test]
fn a_broken_runner_is_noticed_and_its_history_is_one_step() {
    let (plan, broken, evidence) = first_broken(|plan| plan.runner_forgets = true);
    let shrunk = shrink::shrink(&plan, broken, evidence);
    assert_eq!(shrunk.broken.guarantee, "acknowledged_is_kept");
    let plan = shrunk.plan.clone();
    let text = report(shrunk);
    assert_eq!(plan.executions.len(), 1, "{text}");
    assert_eq!(plan.executions[0].steps.len(), 1, "{text}");
    assert_eq!(plan.disturbances, [], "{text}");
    assert_eq!(plan.strikes, Some(BTreeSet::new()), "{text}");
    for part in [
        "acknowledged_is_kept",
        "step-0: Cli",
        "run step-0 attempt 1",
        "what happened",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

/// A history of two steps, a condition, a time-out and a result that nobody can read, without any fault.
fn good() -> Evidence {
    let step = |fate| Step {
        kind: StepKind::Cli,
        fate,
    };
    let condition = Step {
        kind: StepKind::Conditional {
            is_met: true,
            on_false: "fail",
        },
        fate: Fate::Hangs,
    };
    let executions = [
        vec![Step::OK, condition, Step::OK],
        vec![step(Fate::Hangs)],
        vec![step(Fate::Garbles)],
    ];
    let executions = executions.into_iter().zip(0..).map(|(steps, number)| Execution {
        number,
        ..Execution::of(steps)
    });
    let evidence = world::run(&Plan::quiet(executions.collect()));
    assert_eq!(judge(&evidence), Ok(()));
    evidence
}

/// Changes the first message of a lane that `pick` accepts, by `change`.
fn doctor(evidence: &mut Evidence, pick: impl Fn(&Append) -> bool, change: impl Fn(&mut Append)) {
    for message in &mut evidence.log {
        let Ok(mut envelope) = protocol::decode::<Append>(&message.payload) else {
            continue;
        };
        if pick(&envelope.body) {
            change(&mut envelope.body);
            message.payload = protocol::encode(message.at, &envelope.body).into();
            return;
        }
    }
    panic!("no message of the history is to be changed");
}

fn is_end(append: &Append) -> bool {
    matches!(append.action, LaneAction::End(_))
}

fn is_task(append: &Append) -> bool {
    matches!(append.action, LaneAction::Task(_))
}

/// The message that `pick` accepts a second time, at the end of the log.
fn again(evidence: &mut Evidence, pick: impl Fn(&Append) -> bool) {
    let found = evidence.log.iter().find(|message| {
        protocol::decode::<Append>(&message.payload).is_ok_and(|envelope| pick(&envelope.body))
    });
    let mut message = found.unwrap().clone();
    message.seq = evidence.log.last().unwrap().seq + 1;
    evidence.effects.push(Effect::Stored {
        stream: StreamId::Log,
        seq: message.seq,
    });
    evidence.log.push(message);
}

#[test]
fn each_oracle_objects_to_a_doctored_history() {
    type Doctor = fn(&mut Evidence);
    let doctors: [(&str, Doctor); 14] = [
        ("everything_ends", |evidence| evidence.is_over = false),
        ("acknowledged_is_kept", |evidence| {
            let first = evidence.accepted[0].to_string();
            evidence.log.retain(|message| message.subject != first);
        }),
        ("facts_are_written_once", |evidence| {
            let first = evidence.log[0].clone();
            evidence.log.push(first);
        }),
        ("lane_ends_once", |evidence| again(evidence, is_end)),
        ("tasks_are_handed_out_once", |evidence| again(evidence, is_task)),
        ("causes_are_named_once", |evidence| again(evidence, is_task)),
        ("causes_stand_before", |evidence| {
            doctor(evidence, is_end, |append| append.cause.subject.push('x'))
        }),
        ("lane_replays", |evidence| {
            doctor(evidence, is_task, |append| {
                append.records.push(StepRecord {
                    step: "step-2".parse().unwrap(),
                    index: 2,
                    attempt: protocol::Attempt::FIRST,
                    status: StepStatus::Skipped,
                    at: Default::default(),
                    output: None,
                    error: None,
                    message: None,
                });
            });
        }),
        ("nothing_is_left_to_answer", |evidence| {
            // The end of the one whose result nobody can read, and the end of the one that timed out.
            evidence.log.retain(|message| {
                !protocol::decode::<Append>(&message.payload).is_ok_and(|envelope| is_end(&envelope.body))
            });
        }),
        ("acks_follow_effects", |evidence| {
            let acked = |effect: &Effect| matches!(effect, Effect::Acked { consumer, .. } if *consumer == topology::SCHEDULER.name);
            let place = evidence.effects.iter().position(acked).unwrap();
            let ack = evidence.effects.remove(place);
            evidence.effects.insert(1, ack);
        }),
        ("timers_are_armed_first", |evidence| {
            let place = evidence
                .effects
                .iter()
                .position(|effect| matches!(effect, Effect::Armed { .. }))
                .unwrap();
            let armed = evidence.effects.remove(place);
            evidence.effects.push(armed);
        }),
        ("steps_have_their_time", |evidence| {
            for message in &mut evidence.log {
                message.at = Default::default();
            }
        }),
        ("ends_have_reasons", |evidence| {
            doctor(evidence, is_end, |append| {
                if let LaneAction::End(end) = &mut append.action {
                    end.status = EndStatus::Cancelled;
                }
            });
        }),
        ("dead_letters_are_deserved", |evidence| evidence.dead.clear()),
    ];
    let good = good();
    let doctored: BTreeSet<&str> = doctors
        .into_iter()
        .map(|(guarantee, doctor)| {
            let mut evidence = good.clone();
            doctor(&mut evidence);
            assert!(
                broken(&evidence).contains(guarantee),
                "{guarantee} accepts it: {:?}",
                broken(&evidence)
            );
            guarantee
        })
        .collect();
    let all: BTreeSet<&str> = ORACLES.into_iter().map(|(guarantee, _)| guarantee).collect();
    assert_eq!(doctored, all, "every oracle has its doctored history");
}

#[test]
fn lists_are_cut_to_what_matters() {
    let needs =
        |needed: &'static [u32]| move |list: &[u32]| needed.iter().all(|number| list.contains(number));
    assert_eq!(shrink::cut((0..100).collect(), needs(&[17, 63])), [17, 63]);
    assert_eq!(shrink::cut((0..7).collect(), needs(&[])), Vec::<u32>::new());
    assert_eq!(shrink::cut(vec![5], needs(&[5])), [5]);
    assert_eq!(
        shrink::cut((0..5).collect(), needs(&[0, 1, 2, 3, 4])),
        [0, 1, 2, 3, 4]
    );
}
