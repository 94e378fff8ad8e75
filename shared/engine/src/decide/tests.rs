//! A test here is a workflow, what happens in order, and the printed log that it leads to.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, fmt::Write, sync::Arc, time::Duration};

use expect_test::{Expect, expect};
use protocol::{
    Body, Cancel, Dead, Done, ExecutionId, Fact, Input, Json, LaneAction, Namespace, Outcome, Start,
    StepError, StepFailure, StepName, Subject, TimerFired, Timestamp, WorkflowName,
};
use serde_json::{Value, json};

use crate::{Decision, Definition, Logged, Observed, Rules, State, decide, fixgate::Gate};

fn rules() -> Rules {
    Rules {
        timer_grace: Duration::from_secs(10),
        gate: Gate::new(
            &["rollout restart", "delete pod", "scale"].map(str::to_owned),
            &["quiet".to_owned()],
        )
        .unwrap(),
        propose_namespaces: vec!["quiet".to_owned()],
    }
}

/// A log with its newest state, and every line that happened.
struct World {
    log: Vec<(u64, Logged)>,
    state: State,
    timers: BTreeMap<String, Vec<protocol::TimerId>>,
    now: Timestamp,
    printed: String,
}

impl World {
    fn new(spec: Value, input: Input) -> (Self, Fact) {
        let start = Start {
            namespace: Namespace::default(),
            execution: ExecutionId::derive(&["test"]),
            workflow: WorkflowName::new("w").unwrap(),
            trigger_source: "api".into(),
            spec: Json::of(&spec).unwrap(),
            input: Json::of(&input).unwrap(),
            delivery: None,
            uid: None,
        };
        let definition = compile(&start);
        let state = State::new(&start, definition);
        let now = Timestamp::from_millis(1_800_000_000_000);
        let world = Self {
            log: vec![],
            state,
            timers: BTreeMap::new(),
            now,
            printed: String::new(),
        };
        (world, Fact::Start(Box::new(start)))
    }

    fn deliver(&mut self, seq: u64, fact: &Fact) {
        let subject = match fact {
            Fact::Done(done) => Subject::Done(
                Namespace::default(),
                self.state.start().execution,
                done.step.clone(),
                done.attempt,
            )
            .to_string(),
            _ => "fist.fact.other".to_owned(),
        };
        let observed = Observed {
            fact: fact.clone(),
            subject,
            seq,
        };
        match decide(&self.state, &observed, self.now, &rules()) {
            Ok(Decision::Append(planned)) => {
                for (timer, _) in &planned.timers {
                    let (step, ..) = timer.as_step_deadline().unwrap();
                    self.timers
                        .entry(step.to_string())
                        .or_default()
                        .push(timer.clone());
                }
                for record in &planned.append.records {
                    let why = record
                        .error
                        .as_ref()
                        .map(|error| &error.message)
                        .or(record.message.as_ref());
                    writeln!(
                        self.printed,
                        "  {} {}: {}",
                        record.step,
                        record.status.as_str(),
                        why.map_or("", String::as_str)
                    )
                    .unwrap();
                }
                let lane = planned.subject.to_string();
                let lane = lane.split('.').nth(2).unwrap();
                match &planned.append.action {
                    LaneAction::Task(task) => {
                        let what = task.work.get("command").or(task.work.get("goal")).unwrap();
                        let fix = match (task.work.get("proposed_by"), task.work.get("dry_run")) {
                            (Some(who), dry_run) => {
                                format!(" proposed by {who}{}", dry_run.map_or("", |_| ", dry run first"))
                            }
                            _ => String::new(),
                        };
                        writeln!(
                            self.printed,
                            "  -> {lane}: {} #{} {what}{fix}",
                            task.step, task.attempt
                        )
                        .unwrap();
                        for earlier in task.work["earlier"].as_array().into_iter().flatten() {
                            let [step, kind, status] =
                                ["step", "type", "status"].map(|key| earlier[key].as_str().unwrap());
                            let left = &earlier["left"];
                            writeln!(self.printed, "     may read {step} ({kind}, {status}): {left}")
                                .unwrap();
                        }
                    }
                    LaneAction::Plan(_) => unreachable!("no step type plans yet"),
                    LaneAction::End(end) => writeln!(
                        self.printed,
                        "  -> {lane}: {} {}",
                        end.status.as_str(),
                        end.error.as_deref().unwrap_or("")
                    )
                    .unwrap(),
                }
                self.state.apply(&planned.append, fact).unwrap();
                let lane_seq = 1_000 + self.log.len() as u64;
                self.log.push((lane_seq, Logged::Lane(planned.append)));
            }
            Ok(Decision::Nothing(why)) => writeln!(self.printed, "  nothing: {why:?}").unwrap(),
            Err(illegal) => writeln!(self.printed, "  illegal: {illegal}").unwrap(),
        }
    }
}

fn compile(start: &Start) -> Result<Arc<Definition>, String> {
    let spec = serde_json::from_str(start.spec.as_str()).map_err(|error| error.to_string())?;
    Definition::compile(spec).map(Arc::new)
}

fn done(step: &str, outcome: Outcome, output: Value) -> Fact {
    Fact::Done(Done {
        step: StepName::new(step).unwrap(),
        attempt: protocol::Attempt::FIRST,
        outcome,
        output: Some(Body::Inline(output)),
        started_at: Timestamp::default(),
        completed_at: Timestamp::default(),
        runner: "r".into(),
    })
}

/// One line a happening: `start`, `ok STEP JSON`, `fail STEP MESSAGE`, `timer STEP`, `cancel`, `dead STEP`, and
/// `again` for the line before once more.
fn check(spec: Value, data: Value, script: &str, expect: Expect) {
    let input = Input {
        data: data.as_object().unwrap().clone(),
        alert: None,
    };
    let (mut world, start) = World::new(spec, input);
    let mut last: Option<(u64, Fact)> = None;
    for (number, line) in script
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .enumerate()
    {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (step, text) = rest.split_once(' ').unwrap_or((rest, "{}"));
        let fact = match verb {
            "start" => start.clone(),
            "ok" => done(step, Outcome::Succeeded, serde_json::from_str(text).unwrap()),
            "fail" => {
                let error = StepError {
                    reason: StepFailure::Command,
                    message: text.to_owned(),
                };
                done(step, Outcome::Failed(error), json!({ "exit_code": 1 }))
            }
            "timer" => {
                let timer = world.timers[step].last().unwrap().clone();
                Fact::Timer(TimerFired { timer })
            }
            "cancel" => Fact::Cancel(Cancel {
                reason: "by hand".into(),
            }),
            "dead" => Fact::Dead(Dead {
                subject: "s".into(),
                seq: 7,
                reason: "poison".into(),
                task: Some((StepName::new(step).unwrap(), protocol::Attempt::FIRST)),
            }),
            "again" => last.clone().unwrap().1,
            other => unreachable!("{other}"),
        };
        let seq = if verb == "again" {
            last.clone().unwrap().0
        } else {
            number as u64 + 1
        };
        if verb != "again" {
            world.log.push((seq, Logged::Fact(fact.clone())));
        }
        writeln!(world.printed, "{line}").unwrap();
        world.deliver(seq, &fact);
        last = Some((seq, fact));
    }
    let replayed = State::replay(&world.log, compile).unwrap();
    assert_eq!(
        replayed.steps(),
        world.state.steps(),
        "a replay gives the state that was decided on"
    );
    assert_eq!(replayed.phase(), world.state.phase());
    expect.assert_eq(&world.printed);
}

fn three_steps() -> Value {
    json!({ "steps": [
        { "name": "check-disk", "type": "cli", "command": "df {{ source.data.path }}" },
        { "name": "is-full", "type": "conditional", "condition": "steps.check-disk.output.exit_code == 0" },
        { "name": "explain", "type": "agent", "goal": "why: {{ steps.check-disk.output.stdout }}", "tools": [] },
    ]})
}

#[test]
fn steps_run_in_order_and_each_result_is_answered_once() {
    check(
        three_steps(),
        json!({ "path": "/var" }),
        r#"start
           again
           ok check-disk {"exit_code": 0, "stdout": "93%"}
           again
           ok explain {"summary": "logs"}
           again"#,
        expect![[r#"
            start
              -> cli: check-disk #1 "df '/var'"
            again
              nothing: Answered
            ok check-disk {"exit_code": 0, "stdout": "93%"}
              is-full Succeeded: met: steps.check-disk.output.exit_code is 0
              -> agent: explain #1 "why: 93%"
            again
              nothing: Answered
            ok explain {"summary": "logs"}
              -> note: Succeeded 
            again
              nothing: Answered
        "#]],
    );
}

#[test]
fn a_gated_command_is_asked_of_the_server_first_or_only_proposed() {
    let fix =
        |name: &str, command: &str| json!({ "name": name, "type": "cli", "command": command, "fix": true });
    let mut proposed = fix("here", "kubectl delete pod a");
    proposed["mode"] = "propose".into();
    check(
        json!({ "steps": [
            { "name": "look", "type": "agent", "goal": "why", "tools": [] },
            { "name": "do", "type": "cli", "command": "{{ steps.look.output.fix_command }}" },
            fix("restart", "kubectl rollout restart deployment/web"),
            fix("there", "kubectl delete pod a -n quiet"),
            proposed,
        ]}),
        json!({}),
        r#"start
           ok look {"can_auto_fix": true, "status": "complete", "fix_command": "kubectl delete pod a", "evidence": [{"call_id": "c", "quote": "q", "grounded": true}]}
           ok do {}
           ok restart {}"#,
        expect![[r#"
            start
              -> agent: look #1 "why"
            ok look {"can_auto_fix": true, "status": "complete", "fix_command": "kubectl delete pod a", "evidence": [{"call_id": "c", "quote": "q", "grounded": true}]}
              -> cli: do #1 "kubectl delete pod a" proposed by "the investigation of step look", dry run first
            ok do {}
              -> cli: restart #1 "kubectl rollout restart deployment/web" proposed by "the workflow itself"
            ok restart {}
              there Skipped: proposed, not run: kubectl delete pod/a --namespace=quiet
              here Skipped: proposed, not run: kubectl delete pod/a --namespace=default
              -> note: Succeeded 
        "#]],
    );
}

#[test]
fn an_agent_that_reads_files_is_told_where_earlier_outputs_are() {
    let mut spec = three_steps();
    let steps = spec["steps"].as_array_mut().unwrap();
    steps[1]["on_false"] = json!("skip_next");
    steps.insert(2, json!({ "name": "not-run", "type": "cli", "command": "true" }));
    let command = "kubectl scale deployment/web --replicas=2 -n default";
    steps.insert(
        3,
        json!({ "name": "scale", "type": "cli", "command": command, "fix": true, "mode": "propose" }),
    );
    steps[4]["tools"] = json!(["read_file"]);
    let again = json!({ "name": "again", "type": "agent", "goal": "more", "tools": ["curl", "read_file"] });
    steps.push(again);
    steps.push(json!({ "name": "without", "type": "agent", "goal": "most", "tools": ["kubectl"] }));
    check(
        spec,
        json!({ "path": "/var" }),
        r#"start
           ok check-disk {"exit_code": 1, "stdout": "93%"}
           ok explain {"summary": "logs"}
           ok again {"summary": "logs"}"#,
        expect![[r#"
            start
              -> cli: check-disk #1 "df '/var'"
            ok check-disk {"exit_code": 1, "stdout": "93%"}
              is-full Succeeded: not met: steps.check-disk.output.exit_code is 1, so `steps.check-disk.output.exit_code == 0` is false
              not-run Skipped: skipped: the condition of `is-full` was not met
              scale Skipped: proposed, not run: kubectl scale deployment/web --replicas=2 --namespace=default
              -> agent: explain #1 "why: 93%"
                 may read check-disk (cli, Succeeded): {"fact":1}
                 may read is-full (conditional, Succeeded): {"output":{"condition_met":false,"condition":"steps.check-disk.output.exit_code == 0","actual":1,"message":"not met: steps.check-disk.output.exit_code is 1, so `steps.check-disk.output.exit_code == 0` is false"}}
                 may read not-run (cli, Skipped): "nothing"
                 may read scale (cli, Skipped): {"output":{"command":"kubectl scale deployment/web --replicas=2 --namespace=default","proposed":true,"proposed_by":"the workflow itself"}}
            ok explain {"summary": "logs"}
              -> agent: again #1 "more"
                 may read check-disk (cli, Succeeded): {"fact":1}
                 may read is-full (conditional, Succeeded): {"output":{"condition_met":false,"condition":"steps.check-disk.output.exit_code == 0","actual":1,"message":"not met: steps.check-disk.output.exit_code is 1, so `steps.check-disk.output.exit_code == 0` is false"}}
                 may read not-run (cli, Skipped): "nothing"
                 may read scale (cli, Skipped): {"output":{"command":"kubectl scale deployment/web --replicas=2 --namespace=default","proposed":true,"proposed_by":"the workflow itself"}}
                 may read explain (agent, Succeeded): {"fact":1}
            ok again {"summary": "logs"}
              -> agent: without #1 "most"
        "#]],
    );
}

#[test]
fn what_a_task_carries_of_earlier_steps_is_bounded() {
    let earlier = |conditions: usize, outcome, output| -> Value {
        let cli = |name: &str| json!({ "name": name, "type": "cli", "command": "true" });
        let mut steps = vec![cli("first"), cli("second")];
        steps.extend((0..conditions).map(|n| {
            json!({ "name": format!("{n:0>128}"), "type": "conditional", "condition": "steps.first.output.exit_code == 0" })
        }));
        steps.push(json!({ "name": "explain", "type": "agent", "goal": "why", "tools": ["read_file"] }));
        let (mut world, start) = World::new(json!({ "steps": steps }), Input::default());
        world.deliver(1, &start);
        world.deliver(2, &done("first", outcome, output));
        world.deliver(3, &done("second", Outcome::Succeeded, json!({})));
        let Some((_, Logged::Lane(append))) = world.log.last() else {
            unreachable!("something was decided")
        };
        let LaneAction::Task(task) = &append.action else {
            unreachable!("the agent is asked")
        };
        task.work["earlier"].clone()
    };
    let many = earlier(600, Outcome::Succeeded, json!({ "exit_code": 0 }));
    assert_eq!(many.as_array().unwrap().len(), 300);
    assert_eq!(many[299]["step"], json!(format!("{:0>128}", 599)));
    assert!(many.to_string().len() < 128 * 1024, "{}", many.to_string().len());
    let skipped = Outcome::Skipped {
        message: "not now".into(),
    };
    let large = earlier(0, skipped, json!({ "exit_code": 0, "text": "x".repeat(5000) }));
    assert_eq!(large[0]["left"], json!({ "too_large": 5025 }));
}

#[test]
fn a_condition_that_is_not_met_skips_the_rest() {
    check(
        three_steps(),
        json!({ "path": "/var" }),
        r#"start
           ok check-disk {"exit_code": 2}"#,
        expect![[r#"
            start
              -> cli: check-disk #1 "df '/var'"
            ok check-disk {"exit_code": 2}
              is-full Succeeded: not met: steps.check-disk.output.exit_code is 2, so `steps.check-disk.output.exit_code == 0` is false
              explain Skipped: skipped: the condition of `is-full` was not met
              -> note: Succeeded 
        "#]],
    );
}

#[test]
fn a_failed_step_fails_the_execution_and_nothing_follows() {
    check(
        three_steps(),
        json!({ "path": "/var" }),
        r#"start
           fail check-disk exit code 1: no such file
           ok explain {}"#,
        expect![[r#"
            start
              -> cli: check-disk #1 "df '/var'"
            fail check-disk exit code 1: no such file
              -> note: Failed step `check-disk` failed: exit code 1: no such file
            ok explain {}
              nothing: Ended
        "#]],
    );
}

#[test]
fn a_step_whose_runner_is_silent_times_out_and_its_late_result_changes_nothing() {
    check(
        three_steps(),
        json!({ "path": "/var" }),
        r#"start
           timer check-disk
           ok check-disk {"exit_code": 0}"#,
        expect![[r#"
            start
              -> cli: check-disk #1 "df '/var'"
            timer check-disk
              check-disk Failed: timed out after 10 minutes (timeout_minutes: 10); its runner had not reported by then
              -> cancel: Failed step `check-disk` failed: timed out after 10 minutes (timeout_minutes: 10); its runner had not reported by then
            ok check-disk {"exit_code": 0}
              nothing: Ended
        "#]],
    );
}

#[test]
fn a_timer_of_a_step_that_ended_is_stale() {
    check(
        three_steps(),
        json!({ "path": "/var" }),
        r#"start
           ok check-disk {"exit_code": 0, "stdout": "93%"}
           timer check-disk"#,
        expect![[r#"
            start
              -> cli: check-disk #1 "df '/var'"
            ok check-disk {"exit_code": 0, "stdout": "93%"}
              is-full Succeeded: met: steps.check-disk.output.exit_code is 0
              -> agent: explain #1 "why: 93%"
            timer check-disk
              nothing: StaleTimer
        "#]],
    );
}

#[test]
fn cancelling_tells_the_runner_and_ends_it_for_good() {
    check(
        three_steps(),
        json!({ "path": "/var" }),
        r#"start
           cancel
           cancel
           fail check-disk cancelled"#,
        expect![[r#"
            start
              -> cli: check-disk #1 "df '/var'"
            cancel
              -> cancel: Cancelled cancelled: by hand
            cancel
              nothing: Ended
            fail check-disk cancelled
              nothing: Ended
        "#]],
    );
}

#[test]
fn cancelling_before_the_start_was_seen_leaves_nothing_to_start() {
    check(
        three_steps(),
        json!({ "path": "/var" }),
        r#"cancel
           start"#,
        expect![[r#"
            cancel
              -> note: Cancelled cancelled: by hand
            start
              nothing: Ended
        "#]],
    );
}

#[test]
fn a_dead_letter_of_its_task_fails_the_step() {
    check(
        three_steps(),
        json!({ "path": "/var" }),
        "start\ndead check-disk",
        expect![[r#"
            start
              -> cli: check-disk #1 "df '/var'"
            dead check-disk
              check-disk Failed: poison (message 7 is among the dead letters)
              -> cancel: Failed step `check-disk` failed: poison (message 7 is among the dead letters)
        "#]],
    );
}

#[test]
fn a_result_nobody_asked_for_is_illegal() {
    check(
        three_steps(),
        json!({ "path": "/var" }),
        r#"start
           ok explain {}
           ok nonsense {}"#,
        expect![[r#"
            start
              -> cli: check-disk #1 "df '/var'"
            ok explain {}
              illegal: attempt 1 of step `explain` was never handed out
            ok nonsense {}
              illegal: the workflow has no step `nonsense`
        "#]],
    );
}

#[test]
fn a_dead_letter_of_a_step_that_is_not_at_work_is_illegal() {
    // A state that is behind the log looks just so: to say that nothing follows would leave the step to its time-out.
    check(
        three_steps(),
        json!({ "path": "/var" }),
        r#"start
           dead explain
           ok check-disk {}
           dead check-disk"#,
        expect![[r#"
            start
              -> cli: check-disk #1 "df '/var'"
            dead explain
              illegal: attempt 1 of step `explain` was never handed out
            ok check-disk {}
              is-full Succeeded: unknown, and so not met: there is no steps.check-disk.output.exit_code; steps.check-disk.output is empty
              explain Skipped: skipped: the condition of `is-full` was not met
              -> note: Succeeded 
            dead check-disk
              nothing: Ended
        "#]],
    );
}

#[test]
fn a_missing_value_fails_the_step_with_its_path() {
    check(
        three_steps(),
        json!({ "pod": "x" }),
        "start",
        expect![[r#"
        start
          check-disk Failed: line 1 of the template: `source.data.path` does not exist: `source.data` has pod
          -> note: Failed step `check-disk` failed: line 1 of the template: `source.data.path` does not exist: `source.data` has pod
    "#]],
    );
}

#[test]
fn each_on_false_does_what_it_says() {
    for (on_false, expect) in [
        (
            "skip_remaining",
            expect![[r#"
                start
                  c Succeeded: not met: source.data.n is 1, so `source.data.n > 5` is false
                  a Skipped: skipped: the condition of `c` was not met
                  b Skipped: skipped: the condition of `c` was not met
                  -> note: Succeeded 
            "#]],
        ),
        (
            "skip_next",
            expect![[r#"
            start
              c Succeeded: not met: source.data.n is 1, so `source.data.n > 5` is false
              a Skipped: skipped: the condition of `c` was not met
              -> cli: b #1 "false"
        "#]],
        ),
        (
            "fail",
            expect![[r#"
                start
                  c Failed: the condition was not met: source.data.n is 1, so `source.data.n > 5` is false
                  -> note: Failed step `c` failed: the condition was not met: source.data.n is 1, so `source.data.n > 5` is false
            "#]],
        ),
        (
            "continue",
            expect![[r#"
            start
              c Succeeded: not met: source.data.n is 1, so `source.data.n > 5` is false
              -> cli: a #1 "true"
        "#]],
        ),
    ] {
        let spec = json!({ "steps": [
            { "name": "c", "type": "conditional", "condition": "source.data.n > 5", "on_false": on_false },
            { "name": "a", "type": "cli", "command": "true" },
            { "name": "b", "type": "cli", "command": "false" },
        ]});
        check(spec, json!({ "n": 1 }), "start", expect);
    }
}

#[test]
fn a_workflow_of_conditions_alone_ends_at_once() {
    let spec = json!({ "steps": [
        { "name": "a", "type": "conditional", "condition": "source.data.n == 1" },
        { "name": "b", "type": "conditional", "condition": "steps.a.output.condition_met == true" },
    ]});
    check(
        spec,
        json!({ "n": 1 }),
        "start",
        expect![[r#"
        start
          a Succeeded: met: source.data.n is 1
          b Succeeded: met: steps.a.output.condition_met is true
          -> note: Succeeded 
    "#]],
    );
}

#[test]
fn a_start_fact_with_an_impossible_workflow_ends_visibly() {
    check(
        json!({ "steps": [] }),
        json!({}),
        "start",
        expect![[r#"
        start
          -> note: Failed the workflow is not valid: spec.steps: it has 0 steps; a workflow has 1 to 1000
    "#]],
    );
}
