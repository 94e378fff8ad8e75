//! Schedulers and runners on the simulated broker, in virtual time: writes and acks get lost, deliveries come
//! twice and out of order, reads fail or are behind, processes are killed between any two awaits and start
//! again. Every execution must end, once, with no step handed out twice.
//!
//! `FIST_SIM_SEEDS=N` sets how many histories (200); `FIST_SIM_SEED=S` runs that one and prints its log.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use bus::{
    Blobs, Consume, Durable, Failure, Handler, Log, LogMessage, StreamId,
    sim::{Faults, Rng, SimBroker, SimLog},
    topology,
};
use engine::{Rules, fixgate::Gate};
use protocol::{
    Append, Body, Cancel, Done, ExecutionId, Fact, Input, LaneAction, Namespace, Outcome, Start, StepError,
    StepFailure, StepName, Subject, Task, Timestamp, WorkflowName, subjects,
};
use serde_json::{Value, json};
use service::Metrics;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

const ON_FALSE: [&str; 4] = ["skip_remaining", "skip_next", "fail", "continue"];

/// Executions in one history.
const EXECUTIONS: u64 = 6;
/// How long after a step's deadline its timer fires.
const GRACE: Duration = Duration::from_secs(10);
/// By then, in virtual time, everything must be over.
const OVER_WITHIN: Duration = Duration::from_secs(4 * 3600);

fn consume_options() -> Consume {
    Consume {
        concurrency: 4,
        poison_after: 50,
        drain: Duration::from_secs(1),
    }
}

/// What a runner comes to is a function of the task and the seed, as the outcome of a command is of its input.
fn chance(seed: u64, task: &Task, salt: u64) -> u64 {
    let mut rng = Rng::new(seed ^ salt ^ u64::from(task.index) ^ task.execution.as_uuid().as_u64_pair().1);
    rng.next_u64();
    rng.below(1000)
}

struct Runner {
    seed: u64,
    log: SimLog,
}

impl Handler for Runner {
    async fn handle(&self, message: LogMessage, _deliveries: u64) -> Result<(), Failure> {
        let append: Append = protocol::decode(&message.payload).unwrap().body;
        let LaneAction::Task(task) = append.action else {
            return Ok(());
        };
        let subject = Subject::Done(
            task.namespace.clone(),
            task.execution,
            task.step.clone(),
            task.attempt,
        );
        if self.log.last(&subject.to_string()).await?.is_some() {
            return Ok(());
        }
        let fate = chance(self.seed, &task, 1);
        if (100..130).contains(&fate) {
            // Deaf for long past its deadline; its result comes too late to count.
            sleep(Duration::from_secs(600)).await;
        }
        if fate < 100 {
            // Hangs for ever, deaf to everything, and is given up without a word once its execution has ended:
            // only the timer ends the step.
            let lane = subjects::lane_filter(&task.namespace, task.execution);
            loop {
                sleep(Duration::from_secs(30)).await;
                if let Ok(Some(last)) = self.log.last(&lane).await
                    && let LaneAction::End(_) = protocol::decode::<Append>(&last.payload).unwrap().body.action
                {
                    return Ok(());
                }
            }
        }
        sleep(Duration::from_millis(chance(self.seed, &task, 2) * 5)).await;
        let outcome = if chance(self.seed, &task, 3) < 80 {
            Outcome::Failed(StepError {
                reason: StepFailure::Command,
                message: "exit code 1".into(),
            })
        } else {
            Outcome::Succeeded
        };
        let done = Fact::Done(Done {
            step: task.step.clone(),
            attempt: task.attempt,
            outcome,
            output: Some(Body::Inline(json!({ "exit_code": 0, "stdout": "x" }))),
            started_at: self.log.now(),
            completed_at: self.log.now(),
            runner: "sim".into(),
        });
        self.log
            .write_fact(&subject, protocol::encode(self.log.now(), &done))
            .await?;
        Ok(())
    }
}

/// One process: runs until it is killed, and is started again.
async fn process(kind: u64, seed: u64, broker: SimBroker, mut rng: Rng, calm: CancellationToken) {
    loop {
        let log = broker.client();
        let work = tokio::spawn(async move {
            let never = CancellationToken::new();
            if kind == 0 {
                let rules = Rules {
                    timer_grace: GRACE,
                    gate: Gate::default(),
                    propose_namespaces: Vec::new(),
                };
                scheduler::decide_facts(
                    log,
                    Blobs::in_memory(),
                    rules,
                    4,
                    Metrics::new(),
                    consume_options(),
                    never,
                )
                .await
            } else {
                let durable: &Durable = if kind == 1 {
                    &topology::CLI
                } else {
                    &topology::AGENT
                };
                let runner = Runner {
                    seed,
                    log: log.clone(),
                };
                bus::consume(log, durable, consume_options(), Arc::new(runner), never).await
            }
        });
        if calm.is_cancelled() {
            let _ = work.await;
            return;
        }
        let lives_for = Duration::from_millis(500 + rng.below(40_000));
        tokio::select! {
            biased;
            () = calm.cancelled() => {}
            () = sleep(lives_for) => {}
        }
        // What `kill -9` does: whatever was under way ends at its next await, and nothing is said to anybody.
        work.abort();
        let _ = work.await;
        sleep(Duration::from_millis(rng.below(3_000))).await;
    }
}

fn spec(rng: &mut Rng) -> Value {
    let count = 1 + rng.below(5);
    let steps: Vec<Value> = (0..count)
        .map(|number| {
            let mut step = match rng.below(4) {
                0 => json!({ "type": "agent", "goal": "look", "tools": [] }),
                1 => json!({
                    "type": "conditional",
                    "condition": if rng.chance(700) { "source.data.n == 1" } else { "source.data.n == 2" },
                    "on_false": ON_FALSE[rng.below(4) as usize],
                }),
                _ => json!({ "type": "cli", "command": "echo {{ source.data.n }}" }),
            };
            step["name"] = json!(format!("step-{number}"));
            if step["type"] != "conditional" {
                step["timeout_seconds"] = json!(60);
            }
            step
        })
        .collect();
    json!({ "steps": steps })
}

/// Tries until it is done: what every writer outside the scheduler does.
async fn write(log: &SimLog, subject: Subject, fact: Fact) {
    while log
        .write_fact(&subject, protocol::encode(log.now(), &fact))
        .await
        .is_err()
    {
        sleep(Duration::from_millis(500)).await;
    }
}

async fn submit(broker: SimBroker, seed: u64, number: u64) {
    let mut rng = Rng::new(seed.wrapping_mul(1_000_003) ^ number);
    let log = broker.client();
    sleep(Duration::from_millis(rng.below(60_000))).await;
    let execution = execution(seed, number);
    let start = Start {
        namespace: Namespace::default(),
        execution,
        workflow: WorkflowName::new("sim").unwrap(),
        trigger_source: "api".into(),
        spec: spec(&mut rng),
        input: Input {
            data: json!({ "n": 1 }).as_object().unwrap().clone(),
            alert: None,
        },
        delivery: None,
        uid: None,
    };
    let subject = Subject::Start(Namespace::default(), execution);
    write(&log, subject.clone(), Fact::Start(Box::new(start.clone()))).await;
    if rng.chance(300) {
        write(&log, subject, Fact::Start(Box::new(start))).await;
    }
    if rng.chance(250) {
        sleep(Duration::from_millis(rng.below(20_000))).await;
        let subject = Subject::CancelRequest(Namespace::default(), execution, 0);
        write(
            &log,
            subject,
            Fact::Cancel(Cancel {
                reason: "by hand".into(),
            }),
        )
        .await;
    }
}

fn execution(seed: u64, number: u64) -> ExecutionId {
    ExecutionId::derive(&["sim", &seed.to_string(), &number.to_string()])
}

fn lane(broker: &SimBroker) -> BTreeMap<ExecutionId, Vec<(u64, Append)>> {
    let mut lanes: BTreeMap<ExecutionId, Vec<(u64, Append)>> = BTreeMap::new();
    for message in broker.messages(StreamId::Log) {
        if message.subject.starts_with("fist.cmd.") {
            let execution = Subject::parse(&message.subject).unwrap().execution().unwrap().1;
            let append: Append = protocol::decode(&message.payload).unwrap().body;
            lanes.entry(execution).or_default().push((message.seq, append));
        }
    }
    lanes
}

fn has_ended(appends: &[(u64, Append)]) -> bool {
    appends
        .iter()
        .any(|(_, append)| matches!(append.action, LaneAction::End(_)))
}

/// What must hold whatever happened.
fn check(seed: u64, broker: &SimBroker) {
    let lanes = lane(broker);
    for number in 0..EXECUTIONS {
        let execution = execution(seed, number);
        let appends = lanes.get(&execution).map_or(&[][..], Vec::as_slice);
        let (mut handed_out, mut causes, mut has_end) = (HashSet::new(), BTreeSet::new(), false);
        let mut deadlines: HashMap<StepName, Timestamp> = HashMap::new();
        for (seq, append) in appends {
            assert!(
                !has_end,
                "seed {seed}: {execution}: message {seq} follows the end"
            );
            assert!(
                causes.insert(append.cause.seq),
                "seed {seed}: {execution}: fact {} is answered twice",
                append.cause.seq
            );
            for record in &append.records {
                let Some(StepError {
                    reason: StepFailure::Timeout,
                    ..
                }) = record.error
                else {
                    continue;
                };
                let deadline = deadlines[&record.step].after(GRACE);
                assert!(
                    record.at >= deadline,
                    "seed {seed}: {execution}: step {} is ended before its time, {} < {deadline}",
                    record.step,
                    record.at
                );
            }
            match &append.action {
                LaneAction::Task(task) => {
                    deadlines.insert(task.step.clone(), task.deadline);
                    assert!(
                        handed_out.insert((task.step.clone(), task.attempt)),
                        "seed {seed}: {execution}: step {} is handed out twice",
                        task.step
                    );
                }
                LaneAction::Plan(_) => panic!("seed {seed}: no step type plans yet"),
                LaneAction::End(_) => has_end = true,
            }
        }
        assert!(
            has_end,
            "seed {seed}: {execution} has not ended:\n{}",
            print(broker)
        );
    }
    let dead = broker.messages(StreamId::DeadLetters);
    let dead: Vec<_> = dead
        .iter()
        .map(|message| String::from_utf8_lossy(&message.payload))
        .collect();
    assert!(dead.is_empty(), "seed {seed}: dead letters: {dead:?}");
}

fn print(broker: &SimBroker) -> String {
    broker
        .messages(StreamId::Log)
        .iter()
        .map(|m| {
            format!(
                "{:>4} {} {} {}\n",
                m.seq,
                m.at,
                m.subject,
                String::from_utf8_lossy(&m.payload)
            )
        })
        .collect()
}

/// One history. Returns its log, printed.
fn history(seed: u64) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let broker = SimBroker::new(seed, Faults::rough());
        let calm = CancellationToken::new();
        let mut processes = tokio::task::JoinSet::new();
        for (number, kind) in [0, 0, 0, 1, 1, 2].into_iter().enumerate() {
            let rng = Rng::new(seed.wrapping_mul(31) + number as u64);
            processes.spawn(process(kind, seed, broker.clone(), rng, calm.clone()));
        }
        let mut submissions = tokio::task::JoinSet::new();
        for number in 0..EXECUTIONS {
            submissions.spawn(submit(broker.clone(), seed, number));
        }
        let began = Instant::now();
        while submissions.join_next().await.is_some() {}
        // Some more of the storm, then calm: what is left over must be repaired by redelivery alone.
        sleep(Duration::from_secs(120)).await;
        broker.set_faults(Faults::default());
        calm.cancel();
        let log = broker.client();
        loop {
            let queue = log.consumer_state(&topology::SCHEDULER).await.unwrap();
            let timers = log.consumer_state(&topology::TIMERS).await.unwrap();
            let lanes = lane(&broker);
            let all_over = (0..EXECUTIONS).all(|number| {
                lanes
                    .get(&execution(seed, number))
                    .is_some_and(|appends| has_ended(appends))
            });
            if all_over && queue.waiting + queue.in_flight + timers.waiting + timers.in_flight == 0 {
                break;
            }
            assert!(
                began.elapsed() < OVER_WITHIN,
                "seed {seed}: not over after {OVER_WITHIN:?} (queue {queue:?}):\n{}",
                print(&broker)
            );
            sleep(Duration::from_secs(5)).await;
        }
        check(seed, &broker);
        print(&broker)
    })
}

#[test]
fn every_history_has_one_end() {
    if let Ok(seed) = std::env::var("FIST_SIM_SEED") {
        println!("{}", history(seed.parse().unwrap()));
        return;
    }
    let seeds = std::env::var("FIST_SIM_SEEDS")
        .ok()
        .map_or(200, |seeds| seeds.parse().unwrap());
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    std::thread::scope(|scope| {
        for first in 0..threads {
            scope.spawn(move || {
                (first..seeds)
                    .step_by(threads as usize)
                    .for_each(|seed| drop(history(seed)))
            });
        }
    });
    println!("{seeds} histories, each with {EXECUTIONS} executions");
}

#[test]
fn a_seed_replays() {
    assert_eq!(history(7), history(7));
}
