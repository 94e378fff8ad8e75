//! The decision loop: each fact leads to at most one message on its execution's lane.
//!
//! Invariants:
//! - A fact is acknowledged after the message that answers it is on the lane, or when it changes nothing.
//! - Every append is guarded by the lane's last sequence, so two schedulers never both answer.
//! - Timers are armed before the append that they watch over.

use std::{
    fmt::Display,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use bus::{Appended, Blobs, Failure, Handler, Log, LogMessage};
use engine::{Decision, Logged, Nothing, Observed, Planned, Rules, State, decide, outstanding};
use protocol::{
    Append, Dead, DecodeError, ExecutionId, Fact, LaneAction, Namespace, Outcome, Subject, TimerId,
};
use service::Metrics;

use crate::{
    definitions::Definitions,
    executions::{Executions, Known},
    read::{self, ReadError},
};

/// Rounds of reading again after another scheduler was first, before the fact is left to a redelivery.
const ROUNDS_MAX: u32 = 12;

/// Deliveries of a fact that contradicts the log before it is a dead letter. With the growing pause between
/// them some two minutes pass: longer than any message that may explain it is under way.
const ILLEGAL_DELIVERIES_MAX: u64 = 12;

/// Deliveries of a message of a newer format before it is a dead letter: an hour and more, for the upgrade
/// that wrote it to reach the other replicas.
const NEWER_DELIVERIES_MAX: u64 = 360;

/// Answers facts.
pub(crate) struct Facts<L> {
    pub(crate) log: L,
    pub(crate) blobs: Blobs,
    pub(crate) rules: Rules,
    pub(crate) executions: Executions,
    pub(crate) definitions: Definitions,
    pub(crate) metrics: Metrics,
}

impl<L: Log> Handler for Facts<L> {
    async fn handle(&self, message: LogMessage, deliveries: u64) -> Result<(), Failure> {
        let (namespace, execution) = owner(&message)?;
        let fact = match read::fact(&message, &self.blobs).await {
            Ok(fact) => fact,
            Err(error) => return Err(unreadable(error, deliveries)),
        };
        let observed = Observed {
            fact,
            subject: message.subject.clone(),
            seq: message.seq,
        };
        self.answer(&namespace, execution, &observed, deliveries).await
    }

    async fn poisoned(&self, message: LogMessage, trials: u64) -> Result<(), Failure> {
        let failure = bus::consume::poison(&message, trials);
        let (namespace, execution) = owner(&message)?;
        // A dead letter about a dead letter would go on for ever.
        let is_dead = matches!(Subject::parse(&message.subject), Ok(Subject::Dead(..)));
        if !is_dead {
            let dead = Fact::Dead(Dead {
                subject: message.subject.clone(),
                seq: message.seq,
                reason: failure.to_string(),
                task: None,
            });
            let subject = Subject::Dead(namespace, execution, message.seq);
            self.log
                .write_fact(&subject, protocol::encode(self.log.now(), &dead))
                .await?;
        }
        Err(failure)
    }
}

impl<L: Log> Facts<L> {
    /// Answers one fact, reading the log again as often as another scheduler was first.
    async fn answer(
        &self,
        namespace: &Namespace,
        execution: ExecutionId,
        observed: &Observed,
        deliveries: u64,
    ) -> Result<(), Failure> {
        let mut slot = self.executions.lock(execution).await;
        for round in 0..ROUNDS_MAX {
            let is_fresh = slot.is_none();
            if is_fresh {
                *slot = Some(
                    self.know(namespace, execution, observed, deliveries, round)
                        .await?,
                );
            }
            let Some(known) = slot.as_mut() else { continue };
            match decide(&known.state, observed, self.log.now(), &self.rules) {
                Ok(Decision::Append(planned)) => {
                    if self
                        .append(known, namespace, execution, planned, observed)
                        .await?
                    {
                        return self.repair(known, namespace, execution).await;
                    }
                    // Another scheduler was first, or it is unknown whether we were.
                    *slot = None;
                    tokio::time::sleep(pause(round, observed.seq)).await;
                }
                Ok(Decision::Nothing(why)) if is_fresh || is_final(why) => {
                    return self.repair(known, namespace, execution).await;
                }
                Err(illegal) if is_fresh => return Err(contradiction(&illegal, deliveries)),
                // The state may be behind the log.
                Ok(Decision::Nothing(_)) | Err(_) => *slot = None,
            }
        }
        Err(Failure::retry(format!(
            "other schedulers were first {ROUNDS_MAX} times in a row"
        )))
    }

    /// The state of an execution, from the log.
    async fn know(
        &self,
        namespace: &Namespace,
        execution: ExecutionId,
        observed: &Observed,
        deliveries: u64,
        round: u32,
    ) -> Result<Known, Failure> {
        // A start fact delivered for the first time: the lane is empty, or the append will say otherwise.
        if let (Fact::Start(start), 1, 0) = (&observed.fact, deliveries, round) {
            let definition = self.definitions.of(start);
            return Ok(Known {
                state: State::new(Arc::new(start.as_ref().clone()), definition),
                lane_seq: 0,
            });
        }
        let messages = self.log.read_execution(namespace, execution).await?;
        let mut lane_seq = 0;
        let mut logged = Vec::with_capacity(messages.len());
        for message in &messages {
            let entry = read::logged(message, &self.blobs)
                .await
                .map_err(|error| unreadable(error, deliveries))?;
            if let Logged::Lane(_) = entry {
                lane_seq = message.seq;
            }
            logged.push((message.seq, entry));
        }
        let state = State::replay(&logged, |start| self.definitions.of(start))
            .map_err(|error| contradiction(&error, deliveries))?;
        Ok(Known { state, lane_seq })
    }

    /// Arms the timers and appends. False: the lane has moved on.
    async fn append(
        &self,
        known: &mut Known,
        namespace: &Namespace,
        execution: ExecutionId,
        planned: Box<Planned>,
        observed: &Observed,
    ) -> Result<bool, Failure> {
        for (timer, at) in &planned.timers {
            self.log.arm_timer(namespace, execution, timer, *at).await?;
        }
        if !self
            .put(known, &planned.subject, &planned.append, &observed.fact)
            .await?
        {
            return Ok(false);
        }
        self.count(known, &planned.append, observed);
        Ok(true)
    }

    /// Puts one message at the end of the lane that `known` is a fold of, and folds it.
    async fn put(
        &self,
        known: &mut Known,
        subject: &Subject,
        append: &Append,
        cause: &Fact,
    ) -> Result<bool, Failure> {
        let payload = protocol::encode(self.log.now(), append);
        match self.log.append(subject, payload, known.lane_seq).await? {
            Appended::At(seq) => {
                known.lane_seq = seq;
                known
                    .state
                    .apply(append, cause)
                    .map_err(|error| Failure::reject(error.to_string()))?;
                Ok(true)
            }
            Appended::Conflict => Ok(false),
        }
    }

    /// Appends what a plan holds and the lane does not.
    async fn repair(
        &self,
        known: &mut Known,
        namespace: &Namespace,
        execution: ExecutionId,
    ) -> Result<(), Failure> {
        for planned in outstanding(&known.state) {
            let task = &planned.task;
            let timer = TimerId::step_deadline(&task.step, task.attempt, task.deadline);
            let fires_at = task.deadline.after(self.rules.timer_grace);
            self.log.arm_timer(namespace, execution, &timer, fires_at).await?;
            let append = Append {
                cause: planned.cause.clone(),
                records: Vec::new(),
                action: LaneAction::Task(Box::new(task.clone())),
            };
            let payload = protocol::encode(self.log.now(), &append);
            match self.log.append(&planned.subject, payload, known.lane_seq).await? {
                Appended::At(seq) => {
                    known.lane_seq = seq;
                    known
                        .state
                        .dispatched(task)
                        .map_err(|error| Failure::reject(error.to_string()))?;
                }
                // The fact is delivered again, and the plan is gone through anew from the log.
                Appended::Conflict => return Err(Failure::retry("another scheduler repairs the same plan")),
            }
        }
        Ok(())
    }

    fn count(&self, known: &Known, append: &Append, observed: &Observed) {
        if let Fact::Done(done) = &observed.fact {
            let outcome = match &done.outcome {
                Outcome::Succeeded => "Succeeded",
                Outcome::Skipped { .. } => "Skipped",
                Outcome::Failed(_) => "Failed",
            };
            let took = done.completed_at.since(done.started_at);
            self.metrics
                .step_ended(known.state.step_type(&done.step), outcome, took);
        }
        for record in &append.records {
            self.metrics.step_ended(
                known.state.step_type(&record.step),
                record.status.as_str(),
                Duration::ZERO,
            );
        }
        if let LaneAction::End(end) = &append.action {
            self.metrics.execution_ended(end.status.as_str());
        }
    }
}

/// The pause after a lost race: longer each time, and not the same for two schedulers that race.
fn pause(round: u32, seq: u64) -> Duration {
    let mut hasher = DefaultHasher::new();
    (round, seq, std::process::id()).hash(&mut hasher);
    Duration::from_micros(1_000 + hasher.finish() % 5_000) * (round + 1)
}

/// Whether a state that is behind the log would give the same answer as the newest.
fn is_final(why: Nothing) -> bool {
    match why {
        Nothing::Answered | Nothing::Ended | Nothing::StepOver | Nothing::RunnersOwn => true,
        Nothing::StaleTimer => false,
    }
}

fn owner(message: &LogMessage) -> Result<(Namespace, ExecutionId), Failure> {
    let subject = Subject::parse(&message.subject).map_err(|error| Failure::reject(error.to_string()))?;
    match subject.execution() {
        Some((namespace, execution)) => Ok((namespace.clone(), execution)),
        None => Err(Failure::reject(format!(
            "{} belongs to no execution",
            message.subject
        ))),
    }
}

fn unreadable(error: ReadError, deliveries: u64) -> Failure {
    match error {
        ReadError::Blob(failure) => failure,
        ReadError::Decode(error @ DecodeError::NewerVersion { .. }) if deliveries < NEWER_DELIVERIES_MAX => {
            Failure::Retry {
                after: Duration::from_secs(10),
                reason: error.to_string(),
            }
        }
        ReadError::Decode(error) => Failure::reject(error.to_string()),
    }
}

/// The fact and the log do not fit. A view that is behind looks just so: it is given time first.
fn contradiction(why: &dyn Display, deliveries: u64) -> Failure {
    if deliveries < ILLEGAL_DELIVERIES_MAX {
        Failure::Retry {
            after: Duration::from_secs(2 * deliveries.min(10)),
            reason: why.to_string(),
        }
    } else {
        Failure::reject(why.to_string())
    }
}
