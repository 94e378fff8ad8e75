//! What must be true when everything works again, seen from outside: by the log, the API, the database, the commands'
//! own witness, the process table, and the servers' lists.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use bus::{ConsumerState, Log, LogMessage, NatsLog, StreamId, topology};
use futures_util::{StreamExt as _, stream};
use protocol::{
    Append, Attempt, Begun, Body, Cause, DispositionKind, Done, End, EndStatus, ExecutionId, Fact, Input,
    Json, LaneAction, Namespace, Outcome, Start, StepName, StepStatus, Subject, Timestamp, encode,
};
use serde_json::Value;
use store_writer::testing::TestPostgres;

use super::{
    history::{Execution, History},
    load::{Accepted, Expected, Kind, Load, Seen},
    servers::Admin,
};

/// One thing that must be true.
pub struct Check {
    pub what: &'static str,
    /// Of how many things it was asked.
    pub counted: u64,
    /// Where it is not.
    pub problems: Vec<String>,
}

impl Check {
    fn new(what: &'static str) -> Self {
        Self {
            what,
            counted: 0,
            problems: Vec::new(),
        }
    }

    fn expect(&mut self, is_so: bool, otherwise: impl FnOnce() -> String) {
        self.counted += 1;
        if !is_so {
            self.problems.push(otherwise());
        }
    }
}

/// What is read from the log, beside the checks.
#[derive(Default)]
pub struct Counts {
    pub executions: u64,
    pub steps: u64,
    pub alerts: u64,
    /// Attempts whose command ran more than once, all on record.
    pub second_runs: u64,
    /// Attempts on record as perhaps made again, whose command ran once.
    pub spared: u64,
    pub messages: u64,
    pub turns: u64,
}

/// Waits until nothing is left to do; what is, where that takes too long.
pub async fn quiet(log: &NatsLog, patience: Duration) -> Result<(), String> {
    let deadline = Instant::now() + patience;
    let durables = [
        topology::INGEST,
        topology::SCHEDULER,
        topology::TIMERS,
        topology::CLI,
        topology::AGENT,
        topology::STORE_WRITER,
    ];
    let mut looks = tokio::time::interval(Duration::from_millis(500));
    let mut still = 0;
    loop {
        looks.tick().await;
        let mut busy = Vec::new();
        for durable in &durables {
            match log.consumer_state(durable).await {
                Ok(ConsumerState {
                    waiting: 0,
                    in_flight: 0,
                    ..
                }) => {}
                Ok(state) => busy.push(format!("{}: {state:?}", durable.name)),
                Err(error) => busy.push(error.to_string()),
            }
        }
        // One consumer's end is another's beginning, so it is to be still for more than a look.
        still = if busy.is_empty() { still + 1 } else { 0 };
        if still > 3 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(busy.join("; "));
        }
    }
}

/// Every accepted delivery of an alert has one disposition, and every alert one execution.
pub async fn alerts(load: &Load, history: &History, log: &NatsLog) -> Vec<Check> {
    let mut each = Check::new("each delivery of an alert has exactly one disposition");
    let mut deliveries: BTreeMap<u64, u64> = BTreeMap::new();
    for disposition in &history.dispositions {
        *deliveries.entry(disposition.delivery_seq).or_default() += 1;
    }
    let state = log.stream_state(StreamId::Alerts).await.unwrap();
    for seq in 1..=state.last_seq {
        let count = deliveries.get(&seq).copied().unwrap_or(0);
        each.expect(count == 1, || format!("delivery {seq} has {count} dispositions"));
    }
    let mut right = Check::new("each accepted alert started one execution, and its repeats were merged");
    let mut kinds: BTreeMap<String, Vec<DispositionKind>> = BTreeMap::new();
    for disposition in &history.dispositions {
        let fingerprint = disposition
            .alert
            .as_ref()
            .map_or("unread", |alert| &alert.fingerprint);
        kinds
            .entry(fingerprint.to_owned())
            .or_default()
            .push(disposition.disposition);
    }
    for accepted in load.accepted().iter().filter(|accepted| accepted.kind.is_alert()) {
        let mut found = kinds.remove(&format!("chaos-{}", accepted.n)).unwrap_or_default();
        found.sort();
        // What was not answered, and asked again, is a delivery more.
        let (first, rest) = match accepted.kind {
            Kind::Unwanted => (DispositionKind::Filtered, DispositionKind::Filtered),
            _ => (DispositionKind::Started, DispositionKind::Merged),
        };
        let is_right = found.len() as u64 >= accepted.deliveries
            && found.first() == Some(&first)
            && found.iter().skip(1).all(|kind| *kind == rest);
        right.expect(is_right, || format!("{accepted:?}: {found:?}"));
    }
    right.expect(kinds.is_empty(), || {
        format!("dispositions of what was not sent: {kinds:?}")
    });
    vec![each, right]
}

/// Every accepted execution is over, as it should be, and nothing ran that should not.
pub fn executions(accepted: &[Accepted], seen: &Seen, history: &History, counts: &mut Counts) -> Vec<Check> {
    let mut known = Check::new("each accepted execution is in the log, once, and no other is");
    let mut over = Check::new("each is over, once, with the right end");
    let mut steps = Check::new("each step came to what it must");
    let mut once = Check::new("each attempt was handed out once, and each fact answered once");
    let mut runs = Check::new("each command ran once, or its second run is on record");
    let mut by_number: BTreeMap<u64, Vec<(String, &Execution)>> = BTreeMap::new();
    for (id, execution) in &history.executions {
        match execution.number() {
            Some(n) => by_number.entry(n).or_default().push((id.to_string(), execution)),
            None => known.expect(false, || {
                format!("execution {id} has no start, or is none of the load's")
            }),
        }
    }
    let mut explained = BTreeSet::new();
    for Accepted { n, kind, id, .. } in accepted.iter().filter(|accepted| accepted.kind != Kind::Unwanted) {
        let found = by_number.remove(n).unwrap_or_default();
        known.expect(found.len() == 1, || {
            format!("{n} ({kind:?}) has {} executions", found.len())
        });
        let Some((found_id, execution)) = found.first() else {
            continue;
        };
        known.expect(id.as_ref().is_none_or(|id| id == found_id), || {
            format!("{n}: {id:?} is {found_id}")
        });
        counts.executions += 1;
        let ends: Vec<_> = execution.ends.iter().map(|end| end.status.as_str()).collect();
        over.expect(ends == [kind.status()], || {
            format!("{n} ({kind:?}, {found_id}) ended {ends:?}: {:?}", execution.ends)
        });
        for (cause, count) in &execution.causes {
            once.expect(*count == 1, || {
                format!("{n}: fact {cause} was answered {count} times")
            });
        }
        for (step, expected) in kind.steps() {
            counts.steps += 1;
            let attempt = ((*step).to_owned(), 1);
            let what = came_to(execution, step);
            steps.expect(
                what.1 == *expected || (*expected == Expected::Ended && what.1 == Expected::Skipped),
                || format!("{n} ({kind:?}, {found_id}): {step} is {}", what.0),
            );
            let handed_out = execution.tasks.get(&attempt).copied().unwrap_or(0);
            once.expect(handed_out <= 1, || {
                format!("{n}: {step} was handed out {handed_out} times")
            });
            let (begun, ended) = seen.get(&(*n, (*step).to_owned())).copied().unwrap_or_default();
            explained.insert((*n, (*step).to_owned()));
            let is_recorded = execution.begun.contains(&attempt);
            let is_right = match expected {
                Expected::Ran | Expected::RanAndFailed => begun >= 1 && ended >= 1,
                Expected::Ended => true,
                Expected::Skipped | Expected::Met => begun == 0,
            };
            runs.expect(is_right, || {
                format!("{n} ({kind:?}): {step} began {begun} times and ended {ended} times")
            });
            runs.expect(begun <= 1 || is_recorded, || {
                format!("{n} ({kind:?}, {found_id}): {step} began {begun} times, and that is not on record")
            });
            counts.second_runs += u64::from(begun > 1 && is_recorded);
            counts.spared += u64::from(begun <= 1 && is_recorded);
        }
        let other_steps = execution
            .tasks
            .keys()
            .filter(|(step, attempt)| *attempt != 1 || !kind.steps().iter().any(|(known, _)| known == step));
        once.expect(other_steps.count() == 0, || format!("{n}: {:?}", execution.tasks));
    }
    known.expect(by_number.is_empty(), || {
        format!("executions that nobody asked for: {:?}", by_number.keys())
    });
    for (key, count) in seen {
        if !explained.contains(key) {
            runs.expect(false, || {
                format!("a command ran that nobody asked for: {key:?} {count:?}")
            });
        }
    }
    counts.alerts = history.dispositions.len() as u64;
    counts.messages = history.messages;
    counts.turns = history.turns;
    let mut readable =
        Check::new("each message of the log can be read, and none comes after its execution's end");
    readable.counted = history.messages;
    readable.problems.clone_from(&history.problems);
    vec![known, over, steps, once, runs, readable]
}

/// What a step came to by the log, in words and in the load's terms.
fn came_to(execution: &Execution, step: &str) -> (String, Expected) {
    let done = execution.done.get(&(step.to_owned(), 1));
    let record = execution
        .records
        .iter()
        .find(|record| record.step.as_str() == step);
    let n = execution.number().unwrap_or(0);
    let expected = match (done, record) {
        (Some(done), None) => match &done.outcome {
            Outcome::Succeeded => {
                let stdout = done
                    .output
                    .as_ref()
                    .map(|output| output.preview()["stdout"].clone());
                match stdout {
                    Some(Value::String(stdout)) if stdout == format!("out {n}\n") => Expected::Ran,
                    Some(Value::Null) => Expected::Met,
                    _ => {
                        return (
                            format!("right, but for what it printed: {stdout:?}"),
                            Expected::Skipped,
                        );
                    }
                }
            }
            Outcome::Failed(error) if error.reason == protocol::StepFailure::Command => {
                Expected::RanAndFailed
            }
            Outcome::Failed(_) => Expected::Ended,
            Outcome::Skipped { .. } => Expected::Skipped,
        },
        (_, Some(record)) => match record.status {
            StepStatus::Succeeded => Expected::Met,
            StepStatus::Skipped => Expected::Skipped,
            StepStatus::Failed
                if record
                    .error
                    .as_ref()
                    .is_some_and(|error| error.reason == protocol::StepFailure::Cancelled) =>
            {
                Expected::Ended
            }
            _ => return (format!("{record:?}"), Expected::Ran),
        },
        // Nothing after a failure, a cancellation or an unmet condition is touched.
        (None, None) => match execution.tasks.contains_key(&(step.to_owned(), 1)) {
            true => Expected::Ended,
            false => Expected::Skipped,
        },
    };
    (format!("{done:?} {record:?}"), expected)
}

/// What the API says of every execution is what the log says.
pub async fn api(load: &Load, history: &History) -> Check {
    let mut check = Check::new("the API tells of each execution what the log does");
    let asked = history.executions.iter().map(|(id, execution)| async move {
        let n = execution.number().unwrap_or(0);
        let door = &load.doors[n as usize % load.doors.len()];
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut tries = tokio::time::interval(Duration::from_millis(200));
        let view = loop {
            tries.tick().await;
            let answer = load
                .client
                .get(format!("{door}/api/v1/executions/{id}"))
                .send()
                .await;
            match answer {
                Ok(answer) if answer.status().is_success() => match answer.json::<Value>().await {
                    Ok(view) => break view,
                    Err(error) if Instant::now() >= deadline => return Err(format!("{id}: {error}")),
                    Err(_) => {}
                },
                other if Instant::now() >= deadline => return Err(format!("{id}: {other:?}")),
                _ => {}
            }
        };
        let status = execution
            .ends
            .first()
            .map_or("Running", |end| end.status.as_str());
        let completed = execution
            .done
            .values()
            .filter(|done| done.outcome == Outcome::Succeeded)
            .count();
        let is_same = view["status"] == status
            && view["input_context"]["source"]["data"]["n"]
                .as_str()
                .and_then(|text| text.parse().ok())
                == Some(n)
            && view["steps"].as_array().is_some_and(|steps| {
                let succeeded = steps
                    .iter()
                    .filter(|step| step["status"] == "Succeeded" && step["type"] != "conditional");
                succeeded.count() == completed
            });
        if is_same {
            Ok(())
        } else {
            Err(format!("{id}: {view}"))
        }
    });
    let mut answers = stream::iter(asked).buffer_unordered(8);
    while let Some(answer) = answers.next().await {
        check.counted += 1;
        check.problems.extend(answer.err());
    }
    let audit = load
        .client
        .get(format!("{}/api/v1/alerts/audit", load.doors[0]))
        .send()
        .await;
    let audit: Value = audit.unwrap().json().await.unwrap();
    check.expect(audit["balanced"] == true, || {
        format!("the audit of alerts: {audit}")
    });
    check
}

/// Two databases hold the same rows: the one that was written while everything failed, and one that is folded from
/// the log now.
pub fn databases(postgres: &TestPostgres, written: &str, folded: &str) -> Check {
    let mut check = Check::new("the database is what the log folds to, row by row");
    for table in ["executions", "steps", "alerts", "expired_alerts"] {
        let statement = format!("COPY (SELECT * FROM {table}) TO STDOUT");
        let rows = |database: &str| -> BTreeSet<String> {
            postgres
                .query(database, &statement)
                .lines()
                .map(str::to_owned)
                .collect()
        };
        let (one, other) = (rows(written), rows(folded));
        check.counted += other.len() as u64;
        check.problems.extend(
            one.difference(&other)
                .map(|row| format!("{table}: not in the log: {row}")),
        );
        check.problems.extend(
            other
                .difference(&one)
                .map(|row| format!("{table}: not in the database: {row}")),
        );
    }
    check
}

/// Nothing is left in NATS that will not go by itself.
pub async fn left_in_nats(admin: &Admin, log: &NatsLog, waits: Option<Duration>) -> Check {
    let mut check = Check::new("NATS holds no message, consumer or stream that is left over");
    let alerts = log.stream_state(StreamId::Alerts).await.unwrap();
    check.expect(alerts.messages == 0, || {
        format!("{} alerts were not taken in", alerts.messages)
    });
    let dead = log.dead_letters(None, 100).await.unwrap();
    check.expect(dead.is_empty(), || format!("dead letters: {dead:?}"));
    let list = admin.ask("STREAM.LIST", &serde_json::json!({})).await.unwrap();
    let streams = list["streams"].as_array().unwrap();
    let names: Vec<_> = streams
        .iter()
        .filter_map(|stream| stream["config"]["name"].as_str())
        .collect();
    check.expect(names.len() == 10, || format!("streams: {names:?}"));
    let fired = log.consumer_state(&topology::TIMERS).await.unwrap();
    check.expect(fired.waiting + fired.in_flight == 0, || {
        format!("fired timers: {fired:?}")
    });
    let deadline = Instant::now() + waits.unwrap_or_default();
    let mut looks = tokio::time::interval(Duration::from_secs(1));
    for name in names {
        loop {
            looks.tick().await;
            let consumers = admin.consumers(name).await.unwrap_or_default();
            // A follower's own, of processes that were killed: they go by themselves after two minutes.
            let (durable, passing): (Vec<_>, Vec<_>) = consumers
                .iter()
                .partition(|consumer| !consumer["config"]["durable_name"].is_null());
            let durable: BTreeSet<_> = durable
                .iter()
                .filter_map(|consumer| consumer["name"].as_str())
                .collect();
            let of_stream = topology::DURABLES
                .iter()
                .filter(|durable| durable.stream.name() == name);
            let wanted: BTreeSet<_> = of_stream.map(|durable| durable.name).collect();
            if waits.is_some() && !passing.is_empty() && Instant::now() < deadline {
                continue;
            }
            check.expect(durable == wanted, || {
                format!("{name}: durable consumers {durable:?}")
            });
            let for_ever = passing
                .iter()
                .filter(|consumer| consumer["config"]["inactive_threshold"].as_u64().unwrap_or(0) == 0);
            let left = for_ever.count();
            check.expect(left == 0 && (waits.is_none() || passing.is_empty()), || {
                format!(
                    "{name}: {} consumers of nobody, {left} of them for ever",
                    passing.len()
                )
            });
            break;
        }
    }
    check
}

/// The checks on one execution of one step, whose command ran `begun` times, with more facts of it and more of its lane.
fn problems_of(begun: u64, facts: &[Fact], ends: usize, accepted: bool) -> Vec<String> {
    let (namespace, id) = (Namespace::default(), ExecutionId::derive(&["checked"]));
    let step = StepName::new("first").unwrap();
    let now = Timestamp::from_millis(0);
    let data = serde_json::json!({ "n": "1" });
    let start = Fact::Start(Box::new(Start {
        namespace: namespace.clone(),
        execution: id,
        workflow: "chaos-one".parse().unwrap(),
        trigger_source: "api".to_owned(),
        spec: Json::of(&Value::Null).unwrap(),
        input: Json::of(&Input {
            data: data.as_object().unwrap().clone(),
            alert: None,
        })
        .unwrap(),
        delivery: None,
        uid: None,
    }));
    let done = Fact::Done(Done {
        step: step.clone(),
        attempt: Attempt::FIRST,
        outcome: Outcome::Succeeded,
        output: Some(Body::Inline(serde_json::json!({ "stdout": "out 1\n" }))),
        started_at: now,
        completed_at: now,
        runner: "one".to_owned(),
    });
    let mut messages = vec![(Subject::Start(namespace.clone(), id), encode(now, &start))];
    for fact in facts.iter().chain([&done]) {
        messages.push((
            Subject::Done(namespace.clone(), id, step.clone(), Attempt::FIRST),
            encode(now, fact),
        ));
    }
    for seq in 0..ends as u64 {
        let append = Append {
            cause: Cause {
                subject: "a fact".to_owned(),
                seq,
            },
            records: Vec::new(),
            action: LaneAction::End(End {
                status: EndStatus::Succeeded,
                error: None,
                failed_step: None,
                at: now,
            }),
        };
        messages.push((Subject::Note(namespace.clone(), id), encode(now, &append)));
    }
    let mut history = History::default();
    for (seq, (subject, payload)) in (1..).zip(messages) {
        history.read_one(&LogMessage {
            subject: subject.to_string(),
            seq,
            at: now,
            payload: payload.into(),
            caller: None,
        });
    }
    let known = Accepted {
        n: 1,
        kind: Kind::One,
        id: Some(id.to_string()),
        deliveries: 0,
    };
    let accepted = if accepted { vec![known] } else { Vec::new() };
    let seen = Seen::from([((1, "first".to_owned()), (begun, begun))]);
    let checks = executions(&accepted, &seen, &history, &mut Counts::default());
    checks.into_iter().flat_map(|check| check.problems).collect()
}

#[test]
fn losses_and_doubles_are_seen() {
    let begun = Fact::Begun(Begun {
        step: StepName::new("first").unwrap(),
        attempt: Attempt::FIRST,
        runner: "another".to_owned(),
    });
    let none: Vec<String> = Vec::new();
    assert_eq!(problems_of(1, &[], 1, true), none);
    assert_eq!(problems_of(2, std::slice::from_ref(&begun), 1, true), none);
    for (problems, expected) in [
        (
            problems_of(2, &[], 1, true),
            "began 2 times, and that is not on record",
        ),
        (
            problems_of(0, &[], 1, true),
            "first began 0 times and ended 0 times",
        ),
        (problems_of(1, &[], 0, true), "ended []"),
        (problems_of(1, &[], 2, true), "after the end of its execution"),
        (problems_of(1, &[], 1, false), "executions that nobody asked for"),
    ] {
        assert!(
            problems.iter().any(|problem| problem.contains(expected)),
            "{expected}: {problems:#?}"
        );
    }
}
