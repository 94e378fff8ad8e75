//! Runs a plan: schedulers and runners on the simulated broker, in virtual time, and gives back what can be seen
//! from outside.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    fmt::Write as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use bus::{
    Blobs, Consume, Failure, Handler, Log, LogMessage, StreamId,
    runner::{Running, Tasks, perform},
    sim::{Effect, Faults, SimBroker, SimLog, Struck},
    topology,
};
use engine::{Rules, fixgate::Gate};
use protocol::{
    Append, Body, Cancel, Done, ExecutionId, Fact, Input, Json, LaneAction, Namespace, Outcome, Start,
    StepError, StepFailure, Subject, Timestamp, WorkflowName,
};
use serde_json::json;
use service::Metrics;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::plan::{Disturbance, Execution, Fate, Plan, Process, STEP_TIMEOUT, What};

/// How long after a step's deadline its timer fires.
pub const GRACE: Duration = Duration::from_secs(10);
/// By then, in virtual time and after the storm, everything must be over: each step's time, and what redeliveries
/// after lost acks take.
const OVER_WITHIN: Duration = Duration::from_secs(1200);
/// Where nothing took effect for so long, nothing will: longer than any time-out, ack wait or pause.
const STALLED_AFTER: Duration = Duration::from_secs(300);

/// What can be seen of a history from outside.
#[derive(Clone, Debug)]
pub struct Evidence {
    pub log: Vec<LogMessage>,
    pub dead: Vec<LogMessage>,
    /// What took effect, in order.
    pub effects: Vec<Effect>,
    /// Facts whose writers heard that they are recorded.
    pub accepted: Vec<Subject>,
    /// Subjects of messages that nobody can read.
    pub garbled: BTreeSet<String>,
    /// Whether it was over in time.
    pub is_over: bool,
    pub struck: Vec<Struck>,
    pub rules: Rules,
    /// The most points that one life of each process passed.
    pub points: Vec<u64>,
    /// Executions of the plan.
    pub executions: Vec<ExecutionId>,
}

struct Shared {
    plan: Arc<Plan>,
    broker: SimBroker,
    calm: CancellationToken,
    accepted: Mutex<Vec<Subject>>,
    garbled: Mutex<BTreeSet<String>>,
    points: Mutex<Vec<u64>>,
    metrics: Metrics,
    blobs: Blobs,
}

fn options() -> Consume {
    Consume {
        concurrency: 4,
        poison_after: 50,
        drain: Duration::from_secs(1),
    }
}

pub fn rules() -> Rules {
    Rules {
        timer_grace: GRACE,
        gate: Gate::default(),
        propose_namespaces: Vec::new(),
    }
}

/// What the tasks of one runner come to.
struct Runner {
    tasks: Tasks<SimLog>,
    shared: Arc<Shared>,
}

impl Handler for Runner {
    async fn handle(&self, message: LogMessage, deliveries: u64) -> Result<(), Failure> {
        let Some((task, in_hand)) = self.tasks.take(&message, deliveries).await? else {
            return Ok(());
        };
        let log = &self.tasks.log;
        let fate = self
            .shared
            .plan
            .fate(task.execution, task.index)
            .expect("a task of the plan");
        let (after_ms, failure) = match fate {
            Fate::Succeeds { after_ms } => (after_ms, None),
            Fate::Garbles => (0, None),
            Fate::Fails { after_ms } => (after_ms, Some((StepFailure::Command, "exit code 1"))),
            Fate::Late => (200_000, None),
            Fate::Hangs => loop {
                sleep(Duration::from_secs(30)).await;
                if self
                    .tasks
                    .is_over(&task.namespace, task.execution, &task.step, task.attempt)
                    .await
                    .unwrap_or(false)
                {
                    return Ok(());
                }
            },
        };
        let started_at = log.now();
        let cancelled = tokio::select! {
            biased;
            () = in_hand.cancelled.cancelled() => true,
            () = sleep(Duration::from_millis(after_ms)) => false,
        };
        let failure = if cancelled {
            Some((StepFailure::Cancelled, "cancelled"))
        } else {
            failure
        };
        let done = Fact::Done(Done {
            step: task.step.clone(),
            attempt: task.attempt,
            outcome: failure.map_or(Outcome::Succeeded, |(reason, message)| {
                Outcome::Failed(StepError {
                    reason,
                    message: message.into(),
                })
            }),
            output: Some(Body::Inline(json!({ "exit_code": 0, "stdout": "x" }))),
            started_at,
            completed_at: log.now(),
            runner: self.tasks.instance.clone(),
        });
        let payload = match fate {
            Fate::Garbles => {
                self.shared
                    .garbled
                    .lock()
                    .unwrap()
                    .insert(task.done_subject().to_string());
                b"exit code 0".to_vec()
            }
            _ => protocol::encode(log.now(), &done),
        };
        if !self.shared.plan.runner_forgets {
            log.write_fact(&task.done_subject(), payload).await?;
        }
        Ok(())
    }
}

/// One life of one process.
async fn life(process: Process, shared: Arc<Shared>, log: SimLog, shutdown: CancellationToken) {
    let queue = match process {
        Process::Scheduler => {
            let (blobs, metrics) = (shared.blobs.clone(), shared.metrics.clone());
            // Two executions in mind: states are dropped and read again.
            let _ = scheduler::decide_facts(log, blobs, rules(), 2, metrics, options(), shutdown).await;
            return;
        }
        Process::CliRunner => topology::CLI,
        Process::AgentRunner => topology::AGENT,
    };
    let tasks = Tasks {
        instance: format!("runner-{}", log.salt()),
        log,
        blobs: shared.blobs.clone(),
        queue,
        metrics: shared.metrics.clone(),
        running: Running::default(),
        shutdown,
    };
    let runner = Arc::new(Runner {
        tasks: tasks.clone(),
        shared,
    });
    let _ = perform(&tasks, options(), runner).await;
}

/// One process: lives, suffers its disturbances, is started again.
async fn process(index: usize, shared: Arc<Shared>, began: Instant) {
    let kind = shared.plan.processes[index];
    let mut disturbances: Vec<Disturbance> = shared
        .plan
        .disturbances
        .iter()
        .filter(|disturbance| disturbance.process == index)
        .cloned()
        .collect();
    disturbances.sort_by_key(|disturbance| disturbance.at_ms);
    let mut disturbances = disturbances.into_iter().peekable();
    loop {
        let log = shared.broker.client();
        let (shutdown, mut killed_for) = (CancellationToken::new(), 1_000);
        if let Some(Disturbance {
            at_ms: 0,
            what: What::KilledAt { point, down_ms },
            ..
        }) = disturbances.peek()
        {
            // From its very first request on.
            log.crash_at(*point);
            killed_for = *down_ms;
            disturbances.next();
        }
        let mut work = tokio::spawn(life(kind, Arc::clone(&shared), log.clone(), shutdown.clone()));
        // Until this life ends.
        let down_ms = loop {
            let next = disturbances
                .peek()
                .map(|next| began + Duration::from_millis(next.at_ms));
            let disturbance = tokio::select! {
                biased;
                () = shared.calm.cancelled() => break None,
                () = log.crashed() => break Some(killed_for),
                // A service that ends with an error is started again.
                _ = &mut work => break Some(1_000),
                () = sleep_until(next.unwrap_or(began)), if next.is_some() => disturbances.next(),
            };
            match disturbance.map(|disturbance| disturbance.what) {
                None => {}
                Some(What::Killed { down_ms }) => break Some(down_ms),
                Some(What::KilledAt { point, down_ms }) => {
                    killed_for = down_ms;
                    log.crash_at(log.points() + point);
                }
                Some(What::Stopped { down_ms }) => {
                    shutdown.cancel();
                    tokio::select! {
                        biased;
                        () = shared.calm.cancelled() => break None,
                        () = log.crashed() => {}
                        _ = &mut work => {}
                    }
                    break Some(down_ms);
                }
                Some(What::CutOff { cut, for_ms }) => log.cut_off(cut, Duration::from_millis(for_ms)),
                Some(What::Frozen { for_ms }) => log.freeze(Duration::from_millis(for_ms)),
                Some(What::ClockJumps { by_ms }) => log.jump_clock(by_ms),
            }
        };
        // What `kill -9` does: whatever was under way ends where it is, and nothing is said to anybody.
        log.crash();
        if !work.is_finished() {
            work.abort();
            let _ = work.await;
        }
        note_points(&shared, index, log.points());
        match down_ms {
            Some(down_ms) => sleep(Duration::from_millis(down_ms)).await,
            None => break,
        }
    }
    // One more life, in calm.
    life(
        kind,
        Arc::clone(&shared),
        shared.broker.client(),
        CancellationToken::new(),
    )
    .await;
}

fn note_points(shared: &Shared, index: usize, passed: u64) {
    let most = &mut shared.points.lock().unwrap()[index];
    *most = passed.max(*most);
}

/// Tries until it is done: what every writer outside the scheduler does.
async fn write(shared: &Shared, log: &SimLog, subject: Subject, fact: Fact) {
    while log
        .write_fact(&subject, protocol::encode(log.now(), &fact))
        .await
        .is_err()
    {
        sleep(Duration::from_millis(500)).await;
    }
    shared.accepted.lock().unwrap().push(subject);
}

async fn submit(shared: Arc<Shared>, plan: Execution) {
    sleep(Duration::from_millis(plan.at_ms)).await;
    let id = shared.plan.execution_id(plan.number);
    let subject = Subject::Start(Namespace::default(), id);
    let start = |delivery: &str| {
        Fact::Start(Box::new(Start {
            namespace: Namespace::default(),
            execution: id,
            workflow: WorkflowName::new("sim").unwrap(),
            trigger_source: "api".into(),
            spec: Json::of(&plan.spec()).unwrap(),
            input: Json::of(&Input {
                data: json!({ "n": 1 }).as_object().unwrap().clone(),
                alert: None,
            })
            .unwrap(),
            delivery: Some(delivery.to_owned()),
            uid: None,
        }))
    };
    let (one, two) = (shared.broker.client(), shared.broker.client());
    let second = async {
        if plan.by_two {
            write(&shared, &two, subject.clone(), start("2")).await;
        }
    };
    tokio::join!(biased; write(&shared, &one, subject.clone(), start("1")), second);
    if let Some(after_ms) = plan.cancelled_after_ms {
        sleep(Duration::from_millis(after_ms)).await;
        let subject = Subject::CancelRequest(Namespace::default(), id, 0);
        write(
            &shared,
            &one,
            subject,
            Fact::Cancel(Cancel {
                reason: "by hand".into(),
            }),
        )
        .await;
    }
}

thread_local! {
    /// Registering metrics takes as long as a small history.
    static METRICS: RefCell<Option<Metrics>> = const { RefCell::new(None) };
}

/// Runs one history.
pub fn run(plan: &Plan) -> Evidence {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let metrics = METRICS.with_borrow_mut(|metrics| metrics.get_or_insert_with(Metrics::new).clone());
    runtime.block_on(Box::pin(history(plan, metrics)))
}

async fn history(plan: &Plan, metrics: Metrics) -> Evidence {
    let broker = SimBroker::with_strikes(plan.seed, plan.faults.clone(), plan.strikes.clone());
    if let Some(defect) = plan.defect {
        broker.set_defect(defect);
    }
    let shared = Arc::new(Shared {
        plan: Arc::new(plan.clone()),
        broker: broker.clone(),
        calm: CancellationToken::new(),
        accepted: Mutex::default(),
        garbled: Mutex::default(),
        points: Mutex::new(vec![0; plan.processes.len()]),
        metrics,
        blobs: Blobs::in_memory(),
    });
    let began = Instant::now();
    let mut processes = tokio::task::JoinSet::new();
    for index in 0..plan.processes.len() {
        processes.spawn(process(index, Arc::clone(&shared), began));
    }
    let mut submissions = tokio::task::JoinSet::new();
    for execution in &plan.executions {
        submissions.spawn(submit(Arc::clone(&shared), execution.clone()));
    }
    while submissions.join_next().await.is_some() {}
    if plan.storm_ms() > 0 {
        sleep_until(began + Duration::from_millis(plan.storm_ms()) + STEP_TIMEOUT).await;
        // Calm: what is left over must be repaired by redelivery alone.
        broker.set_faults(Faults::default());
        shared.calm.cancel();
    }
    let is_over = over(&shared).await;
    // Processes of the plan end with it, unless the test itself is wrong.
    assert!(
        processes.try_join_next().is_none(),
        "a process of the plan has ended"
    );
    let evidence = Evidence {
        log: broker.messages(StreamId::Log),
        dead: broker.messages(StreamId::DeadLetters),
        effects: broker.effects(),
        accepted: shared.accepted.lock().unwrap().clone(),
        garbled: shared.garbled.lock().unwrap().clone(),
        is_over,
        struck: broker.struck(),
        rules: rules(),
        points: Vec::new(),
        executions: plan
            .executions
            .iter()
            .map(|execution| plan.execution_id(execution.number))
            .collect(),
    };
    if plan.storm_ms() == 0 {
        // Nobody died: what each life has passed so far.
        shared.calm.cancel();
        tokio::task::yield_now().await;
        sleep(Duration::from_millis(1)).await;
    }
    let points = shared.points.lock().unwrap().clone();
    Evidence { points, ..evidence }
}

/// Waits until every execution has ended and no queue holds anything; false where that takes too long.
async fn over(shared: &Shared) -> bool {
    let (broker, began) = (&shared.broker, Instant::now());
    let log = broker.client();
    let (mut ended, mut seen) = (BTreeSet::new(), 0);
    let mut last_effect = (0, began);
    let durables = [
        topology::SCHEDULER,
        topology::TIMERS,
        topology::CLI,
        topology::AGENT,
    ];
    while began.elapsed() < OVER_WITHIN {
        for message in broker.messages_from(StreamId::Log, seen + 1) {
            seen = message.seq;
            if let Ok(Subject::Note(_, id) | Subject::Cancel(_, id)) = Subject::parse(&message.subject)
                && protocol::decode::<Append>(&message.payload)
                    .is_ok_and(|append| matches!(append.body.action, LaneAction::End(_)))
            {
                ended.insert(id);
            }
        }
        let mut waiting = 0;
        for durable in &durables {
            if let Ok(state) = log.consumer_state(durable).await {
                waiting += state.waiting + state.in_flight;
            }
        }
        if waiting == 0 && ended.len() == shared.plan.executions.len() {
            return true;
        }
        let effects = broker.effects_count();
        if effects != last_effect.0 {
            last_effect = (effects, Instant::now());
        } else if last_effect.1.elapsed() > STALLED_AFTER {
            return false;
        }
        sleep(Duration::from_secs(5)).await;
    }
    false
}

/// The log and the faults that struck, in the order of time, one line each.
pub fn print(evidence: &Evidence) -> String {
    let mut lines: Vec<(Timestamp, String)> = evidence
        .struck
        .iter()
        .map(|struck| (struck.at, format!("     ! {struck}")))
        .collect();
    for message in &evidence.log {
        lines.push((
            message.at,
            format!("{:>6} {} {}", message.seq, message.subject, said(message)),
        ));
    }
    for message in &evidence.dead {
        lines.push((
            message.at,
            format!("  dead {}", String::from_utf8_lossy(&message.payload)),
        ));
    }
    lines.sort_by_key(|(at, _)| *at);
    let mut text = String::new();
    for (at, line) in lines {
        let _ = writeln!(text, "{at} {line}");
    }
    text
}

fn said(message: &LogMessage) -> String {
    if let Ok(append) = protocol::decode::<Append>(&message.payload) {
        let records: Vec<String> = append
            .body
            .records
            .iter()
            .map(|record| format!("{} {}", record.step, record.status.as_str()))
            .collect();
        let records = if records.is_empty() {
            String::new()
        } else {
            format!(" [{}]", records.join(", "))
        };
        let action = match append.body.action {
            LaneAction::Task(task) => format!(
                "run {} attempt {} until {}",
                task.step, task.attempt, task.deadline
            ),
            LaneAction::Plan(tasks) => format!("plan of {}", tasks.len()),
            LaneAction::End(end) => format!("{}: {}", end.status.as_str(), end.error.unwrap_or_default()),
        };
        return format!("because of {}{records}: {action}", append.body.cause.seq);
    }
    match protocol::decode::<Fact>(&message.payload).map(|envelope| envelope.body) {
        Ok(Fact::Start(_)) => "start".to_owned(),
        Ok(Fact::Done(done)) => format!("{:?} by {}", done.outcome, done.runner),
        Ok(fact) => format!("{fact:?}"),
        Err(error) => format!("unreadable: {error}"),
    }
}
