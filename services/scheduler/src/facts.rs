//! The decision loop: each fact leads to at most one message on its execution's lane.
//!
//! Invariants:
//! - A fact is acknowledged after the message that answers it is on the lane, or when it changes nothing.
//! - Every append is guarded by the lane's last sequence, so two schedulers never both answer.
//! - Timers are armed before the append that they watch over.
//! - A fact that can never be answered does not leave its execution waiting ([`crate::lost`]).

use std::{
    fmt::Display,
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use bus::{Appended, Blobs, Failure, Handler, Log, LogError, LogMessage};
use engine::{Decision, Nothing, Observed, Planned, ReplayError, Rules, State, decide, outstanding};
use protocol::{Append, DecodeError, ExecutionId, Fact, LaneAction, Namespace, Subject, TimerId, Timestamp};
use service::{Metrics, Spans};

use crate::{
    definitions::Definitions,
    executions::{Executions, Known},
    lost,
    read::{self, ReadError},
    traces,
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
    pub(crate) spans: Spans,
}

impl<L: Log> Handler for Facts<L> {
    async fn handle(&self, message: LogMessage, deliveries: u64) -> Result<(), Failure> {
        let (namespace, execution) = owner(&message)?;
        let outcome = match read::fact(&message, &self.blobs).await {
            Ok(fact) => {
                let observed = Observed {
                    fact,
                    subject: message.subject.clone(),
                    seq: message.seq,
                };
                self.answer(&namespace, execution, &observed, message.at, deliveries)
                    .await
            }
            Err(error) => Err(unreadable(error, deliveries)),
        };
        match outcome {
            Ok(()) => Ok(()),
            Err(Stuck::Fact(failure)) => Err(failure),
            Err(Stuck::Execution(reason)) => {
                lost::tell(&self.log, &message, &reason).await?;
                Err(Failure::Reject { reason })
            }
        }
    }

    async fn poisoned(&self, message: LogMessage, trials: u64) -> Result<(), Failure> {
        let failure = bus::consume::poison(&message, trials);
        lost::tell(&self.log, &message, &failure.to_string()).await?;
        Err(failure)
    }
}

/// Why a fact was not answered.
enum Stuck {
    /// It comes again, or is set aside; its execution goes on.
    Fact(Failure),
    /// It can never be answered, and its execution would wait for that: it has to end.
    Execution(String),
}

impl From<Failure> for Stuck {
    fn from(failure: Failure) -> Self {
        Self::Fact(failure)
    }
}

impl From<LogError> for Stuck {
    fn from(error: LogError) -> Self {
        Self::Fact(error.into())
    }
}

impl<L: Log> Facts<L> {
    /// Answers one fact, reading the log again as often as another scheduler was first.
    async fn answer(
        &self,
        namespace: &Namespace,
        execution: ExecutionId,
        observed: &Observed,
        at: Timestamp,
        deliveries: u64,
    ) -> Result<(), Stuck> {
        let mut slot = self.executions.lock(execution).await;
        let mut behind = None;
        for round in 0..ROUNDS_MAX {
            let is_fresh = slot.is_none();
            if is_fresh {
                let caught_up = match behind.take() {
                    Some(known) => self.catch_up(known, namespace, execution, deliveries).await?,
                    None => None,
                };
                *slot = Some(match caught_up {
                    Some(known) => known,
                    None => {
                        self.know(namespace, execution, observed, at, deliveries, round)
                            .await?
                    }
                });
            }
            let Some(known) = slot.as_mut() else { continue };
            match decide(&known.state, observed, self.log.now(), &self.rules) {
                Ok(Decision::Append(planned)) => {
                    let appended = match self.append(known, namespace, execution, planned, observed).await {
                        Ok(true) => self.repair(known, namespace, execution).await.map(|()| true),
                        unsettled => unsettled,
                    };
                    match appended {
                        Ok(true) => return Ok(()),
                        // Another scheduler was first, or it is unknown whether we were.
                        Ok(false) => behind = slot.take(),
                        Err(failure) => {
                            *slot = None;
                            return Err(failure.into());
                        }
                    }
                    tokio::time::sleep(pause(round, observed.seq, self.log.salt())).await;
                }
                Ok(Decision::Nothing(why)) if is_fresh || is_final(why) => {
                    let repaired = self.repair(known, namespace, execution).await;
                    if repaired.is_err() {
                        *slot = None;
                    }
                    return Ok(repaired?);
                }
                Err(illegal) if is_fresh => return Err(contradiction(&illegal, deliveries).into()),
                // The state may be behind the log.
                Ok(Decision::Nothing(_)) | Err(_) => behind = slot.take(),
            }
        }
        Err(Stuck::Fact(Failure::retry(format!(
            "other schedulers were first {ROUNDS_MAX} times in a row"
        ))))
    }

    /// A state that the log has gone past, with what came since. `None` where the whole has to be read: it takes a
    /// fact from before, or nothing came since, and the state may be of messages that a server without its disk's
    /// word on them has lost.
    async fn catch_up(
        &self,
        mut known: Known,
        namespace: &Namespace,
        execution: ExecutionId,
        deliveries: u64,
    ) -> Result<Option<Known>, Stuck> {
        let messages = self
            .log
            .read_execution_after(namespace, execution, known.lane_seq)
            .await?;
        let goes_on = messages.first().is_some_and(|first| first.seq > known.lane_seq);
        if !goes_on {
            return Ok(None);
        }
        let history = read::history(&messages, &self.blobs)
            .await
            .map_err(|error| unreadable(error, deliveries))?;
        if history.lane_seq == 0 || known.state.go_on(&history.logged).is_err() {
            return Ok(None);
        }
        known.lane_seq = history.lane_seq;
        Ok(Some(known))
    }

    /// The state of an execution, from the log.
    async fn know(
        &self,
        namespace: &Namespace,
        execution: ExecutionId,
        observed: &Observed,
        at: Timestamp,
        deliveries: u64,
        round: u32,
    ) -> Result<Known, Stuck> {
        // A start fact delivered for the first time: the lane is empty, or the append will say otherwise.
        if let (Fact::Start(start), 1, 0) = (&observed.fact, deliveries, round) {
            let definition = self.definitions.of(start);
            return Ok(Known {
                state: State::new(start, definition),
                lane_seq: 0,
                started_at: at,
            });
        }
        let messages = self.log.read_execution(namespace, execution).await?;
        let history = read::history(&messages, &self.blobs)
            .await
            .map_err(|error| unreadable(error, deliveries))?;
        let replayed = State::replay(&history.logged, |start| self.definitions.of(start));
        match replayed {
            Ok(state) => Ok(Known {
                state,
                lane_seq: history.lane_seq,
                started_at: history.started_at,
            }),
            Err(error) => Err(match (contradiction(&error, deliveries), error) {
                (Failure::Reject { reason }, ReplayError::Inconsistent(_)) => Stuck::Execution(reason),
                // Its start has aged out of the log while a step was at work. Who only asks for something, such
                // as a cancel, may mean an execution that never was.
                (Failure::Reject { reason }, ReplayError::NoStart)
                    if matches!(observed.fact, Fact::Done(_) | Fact::Timer(_) | Fact::Dead(_)) =>
                {
                    Stuck::Execution(reason)
                }
                (failure, _) => Stuck::Fact(failure),
            }),
        }
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
        let (stands, append) = match self.put(known, &planned).await {
            Err(error @ LogError::TooLarge { .. }) => {
                tracing::warn!(%execution, %error, "what was decided fits no message; the execution ends instead");
                let end = engine::instead_of(&known.state, &planned, &error.to_string(), self.log.now());
                (self.put(known, &end).await?, end.append)
            }
            stands => (stands?, planned.append),
        };
        if !stands {
            return Ok(false);
        }
        known
            .state
            .apply(&append, &observed.fact)
            .map_err(|error| Failure::reject(error.to_string()))?;
        self.count(known, &append, observed);
        traces::record(&self.spans, known, &append, &observed.fact);
        Ok(true)
    }

    /// Puts one message at the end of the lane that `known` is a fold of. False: the lane has moved on.
    async fn put(&self, known: &mut Known, planned: &Planned) -> Result<bool, LogError> {
        let payload = protocol::encode(self.log.now(), &planned.append);
        match self.log.append(&planned.subject, payload, known.lane_seq).await? {
            Appended::At(seq) => {
                known.lane_seq = seq;
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
            let outcome = done.outcome.status();
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
fn pause(round: u32, seq: u64, salt: u64) -> Duration {
    let mut hasher = DefaultHasher::new();
    (round, seq, salt).hash(&mut hasher);
    Duration::from_micros(1_000 + hasher.finish() % 5_000) * (round + 1)
}

/// Whether a state that is behind the log would give the same answer as the newest.
fn is_final(why: Nothing) -> bool {
    match why {
        Nothing::Answered | Nothing::Ended | Nothing::StepOver | Nothing::RunnersOwn => true,
        Nothing::StaleTimer => false,
    }
}

pub(crate) fn owner(message: &LogMessage) -> Result<(Namespace, ExecutionId), Failure> {
    let subject = Subject::parse(&message.subject).map_err(|error| Failure::reject(error.to_string()))?;
    match subject.execution() {
        Some((namespace, execution)) => Ok((namespace.clone(), execution)),
        None => Err(Failure::reject(format!(
            "{} belongs to no execution",
            message.subject
        ))),
    }
}

fn unreadable(error: ReadError, deliveries: u64) -> Stuck {
    match error {
        ReadError::Blob(Failure::Reject { reason }) => Stuck::Execution(reason),
        ReadError::Blob(failure) => Stuck::Fact(failure),
        ReadError::Decode(error @ DecodeError::NewerVersion { .. }) if deliveries < NEWER_DELIVERIES_MAX => {
            Stuck::Fact(Failure::Retry {
                after: Duration::from_secs(10),
                reason: error.to_string(),
            })
        }
        ReadError::Decode(error) => Stuck::Execution(error.to_string()),
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
