//! Random workflows under a random world: results, timers and cancels in any order, delivered twice, decided
//! on by schedulers whose view is behind, that lose races. Whatever happens, every execution ends, no step is
//! handed out twice, and nothing follows the end.
#![allow(clippy::unwrap_used)]

use std::{collections::HashSet, sync::Arc, time::Duration};

use engine::{Decision, Definition, Logged, Observed, Phase, Rules, State, decide, fixgate::Gate};
use proptest::prelude::*;
use protocol::{
    Attempt, Body, Cancel, Done, ExecutionId, Fact, Input, Json, LaneAction, Namespace, Outcome, Start,
    StepError, StepFailure, StepName, Task, TimerFired, Timestamp, WorkflowName,
};
use serde_json::{Value, json};

#[derive(Clone, Debug)]
enum Happening {
    /// A fact that is on the log is delivered to a scheduler whose view of the log is this much behind.
    Deliver { which: usize, behind: usize },
    /// The runner of a handed-out task reports.
    Report { which: usize, succeeds: bool },
    /// A timer fires, whether its task is over or not.
    Fire { which: usize },
    /// Somebody cancels.
    Cancel,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        8 => (any::<usize>(), 0usize..4).prop_map(|(which, behind)| Happening::Deliver { which, behind }),
        4 => (any::<usize>(), prop::bool::weighted(0.85)).prop_map(|(which, succeeds)| Happening::Report { which, succeeds }),
        1 => any::<usize>().prop_map(|which| Happening::Fire { which }),
        1 => Just(Happening::Cancel),
    ]
}

fn spec() -> impl Strategy<Value = Value> {
    let step = prop_oneof![
        3 => Just(json!({ "type": "cli", "command": "true" })),
        1 => Just(json!({ "type": "agent", "goal": "look", "tools": [] })),
        2 => (any::<bool>(), prop::sample::select(vec!["skip_remaining", "skip_next", "fail", "continue"])).prop_map(
            |(met, on_false)| json!({
                "type": "conditional",
                "condition": if met { "source.data.n == 1" } else { "source.data.n == 2" },
                "on_false": on_false,
            })
        ),
    ];
    prop::collection::vec(step, 1..7).prop_map(|mut steps| {
        for (number, step) in steps.iter_mut().enumerate() {
            step["name"] = json!(format!("s-{number}"));
        }
        json!({ "steps": steps })
    })
}

struct World {
    /// The log: facts and lane, by sequence from 1.
    log: Vec<Logged>,
    subjects: Vec<String>,
    tasks: Vec<Task>,
    timers: Vec<TimerFired>,
    written: HashSet<String>,
    now_ms: i64,
}

fn compile(start: &Start) -> Result<Arc<Definition>, String> {
    Definition::compile(serde_json::from_str(start.spec.as_str()).unwrap()).map(Arc::new)
}

impl World {
    fn new(spec: Value) -> Self {
        let start = Start {
            namespace: Namespace::default(),
            execution: ExecutionId::derive(&["history"]),
            workflow: WorkflowName::new("w").unwrap(),
            trigger_source: "api".into(),
            spec: Json::of(&spec).unwrap(),
            input: Json::of(&Input {
                data: json!({ "n": 1 }).as_object().unwrap().clone(),
                alert: None,
            })
            .unwrap(),
            delivery: None,
            uid: None,
        };
        let mut world = Self {
            log: vec![],
            subjects: vec![],
            tasks: vec![],
            timers: vec![],
            written: HashSet::new(),
            now_ms: 1_800_000_000_000,
        };
        world.write("start".into(), Fact::Start(Box::new(start)));
        world
    }

    /// Rule 1: a fact is written once on its subject.
    fn write(&mut self, subject: String, fact: Fact) {
        if self.written.insert(subject.clone()) {
            self.log.push(Logged::Fact(fact));
            self.subjects.push(subject);
        }
    }

    fn state(&self, length: usize) -> (State, u64) {
        let messages: Vec<(u64, Logged)> = self.numbered().take(length).collect();
        let mut lane = messages
            .iter()
            .filter(|(_, message)| matches!(message, Logged::Lane(_)));
        let lane_seq = lane.next_back().map_or(0, |(seq, _)| *seq);
        (State::replay(&messages, compile).unwrap(), lane_seq)
    }

    /// The messages with their sequences.
    fn numbered(&self) -> impl Iterator<Item = (u64, Logged)> {
        self.log
            .iter()
            .cloned()
            .enumerate()
            .map(|(index, message)| (index as u64 + 1, message))
    }

    /// Returns whether the fact is settled: answered, or of no consequence.
    fn deliver(&mut self, index: usize, behind: usize) -> bool {
        let Logged::Fact(fact) = self.log[index].clone() else {
            return true;
        };
        let seen = self.log.len().saturating_sub(behind).max(index + 1);
        let (state, lane_seq) = self.state(seen);
        let (_, newest) = self.state(self.log.len());
        let observed = Observed {
            fact,
            subject: self.subjects[index].clone(),
            seq: index as u64 + 1,
        };
        self.now_ms += 1;
        let rules = Rules {
            timer_grace: Duration::from_secs(10),
            gate: Gate::default(),
            propose_namespaces: Vec::new(),
        };
        match decide(&state, &observed, Timestamp::from_millis(self.now_ms), &rules) {
            Ok(Decision::Append(planned)) => {
                for (timer, _) in &planned.timers {
                    self.timers.push(TimerFired { timer: timer.clone() });
                }
                if lane_seq != newest {
                    return false;
                }
                if let LaneAction::Task(task) = &planned.append.action {
                    self.tasks.push(task.as_ref().clone());
                }
                self.log.push(Logged::Lane(planned.append));
                self.subjects.push(planned.subject.to_string());
                true
            }
            Ok(Decision::Nothing(_)) => true,
            Err(_) => false,
        }
    }

    fn report(&mut self, which: usize, succeeds: bool) {
        let Some(task) = (!self.tasks.is_empty()).then(|| self.tasks[which % self.tasks.len()].clone())
        else {
            return;
        };
        let outcome = if succeeds {
            Outcome::Succeeded
        } else {
            Outcome::Failed(StepError {
                reason: StepFailure::Command,
                message: "exit code 1".into(),
            })
        };
        let done = Done {
            step: task.step.clone(),
            attempt: task.attempt,
            outcome,
            output: Some(Body::Inline(json!({ "exit_code": 0 }))),
            started_at: Timestamp::default(),
            completed_at: Timestamp::default(),
            runner: "r".into(),
        };
        self.write(format!("{}.{}.done", task.step, task.attempt), Fact::Done(done));
    }

    fn fire(&mut self, which: usize) {
        if !self.timers.is_empty() {
            let fired = self.timers[which % self.timers.len()].clone();
            self.write(format!("timer.{}", fired.timer), Fact::Timer(fired));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_history_has_one_end(spec in spec(), happenings in prop::collection::vec(happening(), 0..60)) {
        let mut world = World::new(spec);
        for happening in happenings {
            match happening {
                Happening::Deliver { which, behind } => {
                    let index = which % world.log.len();
                    world.deliver(index, behind);
                }
                Happening::Report { which, succeeds } => world.report(which, succeeds),
                Happening::Fire { which } => world.fire(which),
                Happening::Cancel => world.write("cancel.0".into(), Fact::Cancel(Cancel { reason: "x".into() })),
            }
        }
        // Then the world calms down: runners report, and every fact is delivered until it is settled.
        for _ in 0..100 {
            for which in 0..world.tasks.len() {
                world.report(which, true);
            }
            let mut all_settled = true;
            for index in 0..world.log.len() {
                all_settled &= world.deliver(index, 0);
            }
            if all_settled && world.tasks.iter().all(|task| world.written.contains(&format!("{}.{}.done", task.step, task.attempt))) {
                break;
            }
        }
        let (state, _) = world.state(world.log.len());
        prop_assert!(matches!(state.phase(), Phase::Ended(_)), "not ended: {:?}", state.steps());

        let mut handed_out: HashSet<(StepName, Attempt)> = HashSet::new();
        let mut ends = 0;
        for message in &world.log {
            let Logged::Lane(append) = message else { continue };
            prop_assert_eq!(ends, 0, "something follows the end");
            match &append.action {
                LaneAction::Task(task) => {
                    prop_assert!(handed_out.insert((task.step.clone(), task.attempt)), "{} handed out twice", task.step);
                }
                LaneAction::Plan(_) => prop_assert!(false, "no step type plans yet"),
                LaneAction::End(_) => ends += 1,
            }
        }
        prop_assert_eq!(ends, 1);
        let causes: Vec<u64> = world.log.iter().filter_map(|m| match m {
            Logged::Lane(append) => Some(append.cause.seq),
            Logged::Fact(_) => None,
        }).collect();
        let distinct: HashSet<u64> = causes.iter().copied().collect();
        prop_assert_eq!(causes.len(), distinct.len(), "a fact was answered twice");

        for length in 1..=world.log.len() {
            let (mut known, lane_seq) = world.state(length);
            let rest: Vec<(u64, Logged)> = world.numbered().filter(|(seq, _)| *seq > lane_seq).collect();
            let names_older = rest.iter().any(|(_, message)| match message {
                Logged::Lane(append) => append.cause.seq <= lane_seq,
                Logged::Fact(_) => false,
            });
            prop_assert_eq!(known.go_on(&rest).is_err(), names_older, "behind {}", lane_seq);
            if !names_older {
                prop_assert_eq!(known.phase(), state.phase());
                prop_assert_eq!(known.steps(), state.steps());
                prop_assert!((1..=world.log.len() as u64).all(|seq| known.has_answered(seq) == state.has_answered(seq)));
            }
        }
    }
}
