//! Runners on the simulated broker, in virtual time, with gated commands: a gated command is started at most once for
//! ever, whatever is lost, repeated, killed or cut off; and every task comes to one `done` fact.
//!
//! `FIST_SIM_SEEDS=N` sets how many storms (40).
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, sync::Mutex};

use bus::{
    Appended, Blobs, Consume, StreamId,
    runner::{Running, perform},
    sim::{Cut, Defect, Faults, Rng, SimBroker, SimLog},
    topology,
};
use protocol::{
    Append, Attempt, Cause, Done, ExecutionId, LaneAction, Namespace, Outcome, Subject, TaskType,
    WorkflowName,
};
use serde_json::json;
use service::Metrics;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::executor::{Over, Stop, Swept};

/// By then, in virtual time, every task has its fact: its own time-out, and redeliveries after lost acks.
const OVER_WITHIN: Duration = Duration::from_secs(1_800);
const TASK_TIMEOUT: Duration = Duration::from_secs(120);

/// What happens outside of all processes, and outlives them: which commands were started, by their jobs' names.
#[derive(Clone, Default)]
struct Machine(Arc<Mutex<BTreeMap<String, u32>>>);

/// Starts commands of the machine for one process.
struct Starts {
    machine: Machine,
    rng: Mutex<Rng>,
}

impl Executor for Starts {
    async fn run(&self, job: &Job, stop: &Stop, _: &LiveSink) -> Result<Finished, ExecutorError> {
        let (is_busy, takes) = {
            let mut rng = self.rng.lock().unwrap();
            (rng.chance(200), Duration::from_millis(rng.below(5_000)))
        };
        if is_busy {
            // Certainly not started: it may be attempted again.
            return Err(ExecutorError::Unavailable {
                after: Duration::from_secs(1),
                reason: "busy".into(),
            });
        }
        // From here on nobody can tell from outside whether it ran.
        *self.machine.0.lock().unwrap().entry(job.name()).or_default() += 1;
        let _ = stop;
        sleep(takes).await;
        Ok(tests::finished())
    }

    async fn adopt(&self, _: &Job, _: &Stop, _: &LiveSink) -> Option<Result<Finished, ExecutorError>> {
        None
    }

    async fn forget(&self, _: &Job) {}

    async fn sweep(&self, _: &impl Over) -> Result<Swept, ExecutorError> {
        Ok(Swept::default())
    }
}

struct Storm {
    broker: SimBroker,
    machine: Machine,
    calm: CancellationToken,
}

/// One life of a runner.
async fn life(log: SimLog, machine: Machine, seed: u64) {
    let tasks = Tasks {
        instance: format!("runner-{}", log.salt()),
        log,
        blobs: Blobs::in_memory(),
        queue: topology::CLI,
        metrics: Metrics::new(),
        running: Running::default(),
        shutdown: CancellationToken::new(),
    };
    let runner = Runner {
        tasks: tasks.clone(),
        executor: Arc::new(Starts {
            machine,
            rng: Mutex::new(Rng::new(seed)),
        }),
        limits: tests::LIMITS,
        release: Release::default(),
        started_gated: StartedGated::default(),
    };
    let options = Consume {
        concurrency: 3,
        poison_after: 50,
        drain: Duration::from_secs(1),
    };
    let _ = perform(&tasks, options, Arc::new(runner)).await;
}

/// A runner that is killed, frozen and cut off, until the calm; `first_point`: where its first life ends.
async fn process(storm: Arc<Storm>, mut rng: Rng, first_point: Option<u64>, is_stormy: bool) {
    let mut first_point = first_point;
    loop {
        let log = storm.broker.client();
        if let Some(point) = first_point.take() {
            log.crash_at(point);
        }
        let work = tokio::spawn(life(log.clone(), storm.machine.clone(), rng.next_u64()));
        loop {
            let pause = Duration::from_millis(rng.below(20_000));
            tokio::select! {
                biased;
                () = log.crashed() => break,
                () = storm.calm.cancelled() => break,
                () = sleep(pause), if is_stormy => match rng.below(4) {
                    0 => break,
                    1 => log.cut_off(Cut::Requests, Duration::from_millis(rng.below(40_000))),
                    2 => log.cut_off(Cut::Answers, Duration::from_millis(rng.below(40_000))),
                    _ => log.freeze(Duration::from_millis(rng.below(40_000))),
                },
            }
        }
        log.crash();
        work.abort();
        let _ = work.await;
        if storm.calm.is_cancelled() {
            break;
        }
        sleep(Duration::from_millis(rng.below(3_000))).await;
    }
    life(storm.broker.client(), storm.machine.clone(), rng.next_u64()).await;
}

fn task(log: &SimLog, number: u64) -> Task {
    let now = log.now();
    Task {
        namespace: Namespace::default(),
        execution: ExecutionId::derive(&["gated", &number.to_string()]),
        workflow: WorkflowName::new("w").unwrap(),
        step: "fix".parse().unwrap(),
        index: 0,
        attempt: Attempt::FIRST,
        task_type: TaskType::cli(),
        dispatched_at: now,
        deadline: now.after(TASK_TIMEOUT),
        timeout: "2 minutes (timeout_seconds: 120)".into(),
        work: json!({ "command": "kubectl cordon n", "fix": ["kubectl", "cordon", "n"] }),
    }
}

/// What came of a storm: for each task how often it was started, and its outcome.
type Came = Vec<(u32, Option<Outcome>)>;

struct Setup {
    seed: u64,
    faults: Faults,
    runners: u64,
    tasks: u64,
    first_point: Option<u64>,
    is_stormy: bool,
    defect: Option<Defect>,
}

fn run(setup: &Setup) -> (Came, u64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(Box::pin(storm(setup)))
}

async fn storm(setup: &Setup) -> (Came, u64) {
    let storm = Arc::new(Storm {
        broker: SimBroker::new(setup.seed, setup.faults.clone()),
        machine: Machine::default(),
        calm: CancellationToken::new(),
    });
    if let Some(defect) = setup.defect {
        storm.broker.set_defect(defect);
    }
    let scheduler = storm.broker.client();
    let first = scheduler.salt() + 1;
    let mut processes = tokio::task::JoinSet::new();
    for number in 0..setup.runners {
        let rng = Rng::new(setup.seed.wrapping_mul(31) + number);
        let first_point = setup.first_point.filter(|_| number == 0);
        processes.spawn(process(Arc::clone(&storm), rng, first_point, setup.is_stormy));
    }
    let tasks: Vec<Task> = (0..setup.tasks).map(|number| task(&scheduler, number)).collect();
    for task in &tasks {
        let cause = Cause {
            subject: Subject::Start(task.namespace.clone(), task.execution).to_string(),
            seq: 1,
        };
        let append = Append {
            cause,
            records: Vec::new(),
            action: LaneAction::Task(Box::new(task.clone())),
        };
        let subject = Subject::Command(TaskType::cli(), task.namespace.clone(), task.execution);
        let payload = encode(scheduler.now(), &append);
        while let Ok(Appended::Conflict) = scheduler.append(&subject, payload.clone(), 0).await {
            if storm
                .broker
                .messages(StreamId::Log)
                .iter()
                .any(|message| message.subject == subject.to_string())
            {
                break;
            }
        }
    }
    if setup.is_stormy {
        sleep(TASK_TIMEOUT).await;
        storm.broker.set_faults(Faults::default());
        storm.calm.cancel();
    }
    let began = Instant::now();
    let done = |task: &Task| {
        let subject = task.done_subject().to_string();
        let log = storm.broker.messages(StreamId::Log).into_iter();
        log.filter(|message| message.subject == subject)
            .map(|message| message.payload)
            .collect::<Vec<_>>()
    };
    while began.elapsed() < OVER_WITHIN && tasks.iter().any(|task| done(task).is_empty()) {
        sleep(Duration::from_secs(5)).await;
    }
    let starts = storm.machine.0.lock().unwrap().clone();
    let came = tasks.iter().map(|task| {
        let work = serde_json::from_value(task.work.clone()).unwrap();
        let name = task::job(task, &work).unwrap().name();
        let outcome = done(task)
            .first()
            .map(|payload| match decode::<Fact>(payload).unwrap().body {
                Fact::Done(Done { outcome, .. }) => outcome,
                other => panic!("{other:?}"),
            });
        (starts.get(&name).copied().unwrap_or(0), outcome)
    });
    // The points of the first life of the first runner.
    let points = storm.broker.points_of(first);
    (came.collect(), points)
}

/// What breaks the promise of gated commands.
fn broken(came: &Came) -> Option<String> {
    came.iter().find_map(|(starts, outcome)| match (starts, outcome) {
        (2.., _) => Some(format!("started {starts} times: {outcome:?}")),
        (_, None) => Some("it never came to a fact".to_owned()),
        (0, Some(Outcome::Succeeded)) => Some("it has succeeded and was never started".to_owned()),
        (1, Some(Outcome::Failed(error))) if error.reason == StepFailure::Timeout => Some(format!(
            "it was started, and its end says that it was not: {}",
            error.message
        )),
        _ => None,
    })
}

fn stormy(seed: u64) -> Setup {
    Setup {
        seed,
        faults: Faults::rough(),
        runners: 3,
        tasks: 6,
        first_point: None,
        is_stormy: true,
        defect: None,
    }
}

#[test]
fn a_gated_command_is_started_once_in_every_storm() {
    let seeds = std::env::var("FIST_SIM_SEEDS").map_or(40, |seeds| seeds.parse().unwrap());
    let mut outcomes = BTreeMap::new();
    for seed in 0..seeds {
        let (came, _) = run(&stormy(seed));
        assert_eq!(broken(&came), None, "seed {seed}: {came:?}");
        for (_, outcome) in came {
            let word = match outcome {
                Some(Outcome::Failed(error)) => format!("{:?}", error.reason),
                other => format!("{other:?}"),
            };
            *outcomes.entry(word).or_insert(0) += 1;
        }
    }
    println!("{outcomes:?}");
    // Storms that no command survives, or all do, would prove nothing.
    assert!(
        outcomes.contains_key("Some(Succeeded)") && outcomes.contains_key("UnknownOutcome"),
        "{outcomes:?}"
    );
}

#[test]
fn a_runner_killed_between_any_two_effects_starts_it_once() {
    let calm = |first_point| Setup {
        seed: 1,
        faults: Faults::default(),
        runners: 2,
        tasks: 1,
        first_point,
        is_stormy: false,
        defect: None,
    };
    let (_, points) = run(&calm(None));
    assert!(points > 5, "{points}");
    for point in 0..points {
        let (came, _) = run(&calm(Some(point)));
        assert_eq!(broken(&came), None, "killed at {point} of {points}: {came:?}");
    }
}

#[test]
fn a_claim_that_two_may_hold_is_noticed() {
    let is_noticed = (0..50).any(|seed| {
        let (came, _) = run(&Setup {
            defect: Some(Defect::IgnoresWriteOnce),
            ..stormy(seed)
        });
        broken(&came).is_some_and(|how| how.starts_with("started"))
    });
    assert!(
        is_noticed,
        "without the claim's guard no command was started twice"
    );
}
