//! [`Log`] on the simulated broker.

use std::{future::pending, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use protocol::{
    Attempt, DeadLetter, ExecutionId, Namespace, SourceName, SpanContext, StepName, Subject, TaskType,
    TimerId, Timestamp, decode, encode, subjects,
};

use super::{
    Cut, FaultKind, Found, SimBroker, SimInbox,
    client::Pass,
    state::{Expected, Refusal, stream_of},
};
use crate::{
    log::{
        Appended, ConsumerState, Follow, Log, LogError, LogMessage, Position, StoredDeadLetter, StreamState,
        Written,
    },
    topology::{Durable, StreamId},
};

/// One client of the simulated broker. Cheap to clone; clones are the same client.
#[derive(Clone)]
pub struct SimLog {
    pub(super) broker: SimBroker,
    pub(super) id: u64,
}

/// After this a client gives up waiting for an acknowledgement, as a real one does.
const TIME_OUT: Duration = Duration::from_secs(5);

/// How often a write that is safe to repeat is tried.
const WRITES_MAX: u32 = 3;

/// Messages larger than this are refused, as by a server as it comes.
const PAYLOAD_BYTES_MAX: usize = 1 << 20;

const READ_MESSAGES_MAX: usize = 10_000;
const DEAD_LETTERS_MAX: usize = 1_000;

impl SimLog {
    pub(super) fn new(broker: SimBroker, id: u64) -> Self {
        Self { broker, id }
    }

    /// The client is gone as if its process was killed: what it still attempts never happens and never
    /// returns, and what was lent to it goes to others after `ack_wait`.
    pub fn crash(&self) {
        self.broker.state().client(self.id).is_crashed = true;
        self.broker.wake_all();
    }

    /// It crashes at the `point`th, from 0, of the points before and after the effects of its requests. Between two
    /// of them nothing can be seen from outside, so these are all the moments at which a kill makes a difference.
    pub fn crash_at(&self, point: u64) {
        self.broker.state().client(self.id).crash_at = Some(point);
    }

    /// How many such points it has passed.
    pub fn points(&self) -> u64 {
        self.broker.state().client(self.id).points
    }

    /// Waits until it has crashed.
    pub async fn crashed(&self) {
        let id = self.id;
        self.broker
            .wait_for(None, |state, _| match state.client(id).is_crashed {
                true => Found::This(()),
                false => Found::Nothing { until: None },
            })
            .await;
    }

    /// It does nothing for so long, as under SIGSTOP, and then goes on as if nothing had been.
    pub fn freeze(&self, time: Duration) {
        let until = self.broker.moment().instant + time;
        self.broker.state().client(self.id).frozen_until = Some(until);
    }

    /// It is cut off for so long.
    pub fn cut_off(&self, cut: Cut, time: Duration) {
        let until = self.broker.moment().instant + time;
        self.broker.state().client(self.id).cut = Some((until, cut));
    }

    /// Its clock jumps by so many milliseconds.
    pub fn jump_clock(&self, by_ms: i64) {
        self.broker.state().client(self.id).clock_ms += by_ms;
    }

    /// The broker it is a client of.
    pub fn broker(&self) -> &SimBroker {
        &self.broker
    }

    /// What a request takes, one way. The dead wait for ever.
    pub(super) async fn lag(&self) {
        let now = self.broker.moment().instant;
        let pass = {
            let mut state = self.broker.state();
            let max = state.faults.latency_max;
            let lag = state.rng.up_to(max);
            state.client(self.id).pass(now, lag)
        };
        if let Pass::After(lag) = pass {
            if lag > Duration::ZERO {
                tokio::time::sleep(lag).await;
            }
            if !self.broker.state().client(self.id).is_crashed {
                return;
            }
        }
        self.broker.wake_all();
        pending::<()>().await;
    }

    fn cut(&self) -> Option<Cut> {
        let now = self.broker.moment().instant;
        self.broker.state().client(self.id).cut_at(now)
    }

    /// No answer comes.
    async fn time_out(&self, action: impl Into<String>) -> LogError {
        tokio::time::sleep(TIME_OUT).await;
        LogError::unavailable(action, "injected: no answer in time")
    }

    /// A request that reads.
    async fn ask(&self, action: &str) -> Result<(), LogError> {
        self.lag().await;
        if self.cut().is_some() {
            return Err(self.time_out(action).await);
        }
        let now = self.broker.moment();
        let fails = self.broker.state().strikes(FaultKind::Unavailable, now.at, || {
            format!("client {}, which asks to {action}", self.id)
        });
        if fails {
            return Err(LogError::unavailable(action, "injected: no answer"));
        }
        Ok(())
    }

    /// Whether a write arrives, and whether its answer comes back.
    fn way(&self, subject: &str) -> (bool, bool) {
        let cut = self.cut();
        let now = self.broker.moment();
        let mut state = self.broker.state();
        let hit = || format!("client {}, which writes {subject}", self.id);
        let arrives = cut != Some(Cut::Requests) && !state.strikes(FaultKind::PublishLost, now.at, hit);
        let answers = arrives && cut.is_none() && !state.strikes(FaultKind::PublishAckLost, now.at, hit);
        (arrives, answers)
    }

    /// One write. The error within is the time-out, after which it is unknown whether it took effect.
    async fn write_once(
        &self,
        subject: &str,
        payload: Bytes,
        expected: &Expected,
    ) -> Result<Result<u64, Refusal>, LogError> {
        let Some(id) = stream_of(subject) else {
            return Err(LogError::Refused {
                action: format!("take a message on {subject}"),
                reason: "no stream takes this subject".to_owned(),
            });
        };
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(LogError::TooLarge {
                subject: subject.to_owned(),
                bytes: payload.len(),
                bytes_max: PAYLOAD_BYTES_MAX,
            });
        }
        self.lag().await;
        let (arrives, answers) = self.way(subject);
        let answer = if arrives {
            let now = self.broker.moment();
            let mut state = self.broker.state();
            state.advance(now);
            let is_guarded = !matches!(expected, Expected::Anything);
            let hit = || format!("client {}, which writes {subject}", self.id);
            let stored = if is_guarded && state.strikes(FaultKind::Contended, now.at, hit) {
                Err(Refusal::Contended)
            } else {
                state.publish(id, subject, payload, expected, now)
            };
            answers.then_some(stored)
        } else {
            None
        };
        self.broker.wake_all();
        match answer {
            Some(stored) => {
                self.lag().await;
                Ok(stored)
            }
            None => {
                let error = self.time_out(format!("take a message on {subject}")).await;
                self.lag().await;
                Err(error)
            }
        }
    }

    /// A write that is safe to repeat.
    async fn write(&self, subject: &str, payload: Bytes, expected: &Expected) -> Result<Written, LogError> {
        let mut tries = 1;
        loop {
            match self.write_once(subject, payload.clone(), expected).await {
                Ok(Ok(seq)) => return Ok(Written::New(seq)),
                Ok(Err(Refusal::WrongLast)) => return Ok(Written::Already),
                Ok(Err(Refusal::Full)) => return Err(full(subject)),
                Ok(Err(Refusal::Contended)) if tries == WRITES_MAX => {
                    return Err(LogError::unavailable(
                        format!("take a message on {subject}"),
                        "injected: another writer is at it",
                    ));
                }
                Ok(Err(Refusal::Contended)) => tries += 1,
                Err(error) if !error.is_transient() || tries == WRITES_MAX => return Err(error),
                Err(_) => tries += 1,
            }
        }
    }

    fn follow_stream(&self, id: StreamId, filters: Vec<String>, position: Position) -> Follow {
        let first = match position {
            Position::All => 1,
            Position::Seq(seq) => seq.max(1),
            Position::New => self.broker.state().stream_state(id).last_seq + 1,
        };
        Follow::new(stream::unfold(
            (self.clone(), filters, first),
            move |(log, filters, next)| async move {
                log.lag().await;
                let found = log.broker.wait_for(None, |state, now| {
                    state.advance(now);
                    if let until @ Some(_) = state.client(log.id).deaf_until(now.instant) {
                        return Found::Nothing { until };
                    }
                    match state.range(id, &filters, next, u64::MAX).next() {
                        Some(message) => Found::This(message.clone()),
                        None => Found::Nothing { until: None },
                    }
                });
                let message = found.await?;
                let next = message.seq + 1;
                Some((Ok(message), (log, filters, next)))
            },
        ))
    }
}

fn full(subject: &str) -> LogError {
    LogError::Full {
        stream: stream_of(subject).map_or("", StreamId::name).to_owned(),
        reason: "maximum bytes exceeded".to_owned(),
    }
}

fn stored_letter(message: &LogMessage) -> Option<StoredDeadLetter> {
    Some(StoredDeadLetter {
        id: message.seq,
        at: message.at,
        letter: decode::<DeadLetter>(&message.payload).ok()?.body,
    })
}

impl Log for SimLog {
    type Inbox = SimInbox;

    fn now(&self) -> Timestamp {
        let at = self.broker.now();
        let clock_ms = self.broker.state().client(self.id).clock_ms;
        Timestamp::from_millis(at.as_millis().saturating_add(clock_ms))
    }

    fn connected_since(&self) -> Timestamp {
        self.broker.state().client(self.id).connected_at
    }

    fn is_replicated(&self) -> bool {
        false
    }

    fn salt(&self) -> u64 {
        self.id
    }

    async fn write_fact(&self, subject: &Subject, payload: Vec<u8>) -> Result<Written, LogError> {
        self.write(&subject.to_string(), payload.into(), &Expected::Nothing)
            .await
    }

    async fn append(
        &self,
        subject: &Subject,
        payload: Vec<u8>,
        expected_last: u64,
    ) -> Result<Appended, LogError> {
        let Some(filter) = crate::log::lane_of(subject) else {
            return Err(crate::log::not_a_lane(subject));
        };
        let expected = Expected::Last {
            filter,
            seq: expected_last,
        };
        match self
            .write_once(&subject.to_string(), payload.into(), &expected)
            .await
        {
            Ok(Ok(seq)) => Ok(Appended::At(seq)),
            Ok(Err(Refusal::WrongLast | Refusal::Contended)) => Ok(Appended::Conflict),
            Ok(Err(Refusal::Full)) => Err(full(&subject.to_string())),
            Err(error) if error.is_transient() => Ok(Appended::Conflict),
            Err(error) => Err(error),
        }
    }

    async fn read_execution_after(
        &self,
        namespace: &Namespace,
        execution: ExecutionId,
        after: u64,
    ) -> Result<Vec<LogMessage>, LogError> {
        self.ask("read an execution").await?;
        let filters = [
            subjects::lane_filter(namespace, execution),
            subjects::facts_filter(namespace, execution),
        ];
        let now = self.broker.moment();
        let mut state = self.broker.state();
        let known = state.range(StreamId::Log, &filters[..1], 1, after).last();
        let from = match known.is_some_and(|known| known.seq == after) {
            true => after + 1,
            false => 1,
        };
        let mut messages: Vec<LogMessage> = state
            .range(StreamId::Log, &filters, from, u64::MAX)
            .cloned()
            .collect();
        let hit = || format!("client {}, which reads {execution}", self.id);
        if !messages.is_empty() && state.strikes(FaultKind::StaleRead, now.at, hit) {
            let missing = 1 + state.rng.below(messages.len().min(3) as u64) as usize;
            messages.truncate(messages.len() - missing);
        }
        Ok(messages)
    }

    async fn read_turns(
        &self,
        namespace: &Namespace,
        execution: ExecutionId,
        step: &StepName,
        attempt: Attempt,
    ) -> Result<Vec<LogMessage>, LogError> {
        self.ask("read a transcript").await?;
        let filters = [subjects::attempt_turns_filter(
            namespace, execution, step, attempt,
        )];
        Ok(self
            .broker
            .state()
            .range(StreamId::Log, &filters, 1, u64::MAX)
            .cloned()
            .collect())
    }

    async fn read_from(&self, first_seq: u64, max: usize) -> Result<Vec<LogMessage>, LogError> {
        self.ask("read the log").await?;
        let everything = [">".to_owned()];
        let state = self.broker.state();
        let messages = state.range(StreamId::Log, &everything, first_seq, u64::MAX);
        Ok(messages.take(max.min(READ_MESSAGES_MAX)).cloned().collect())
    }

    async fn last(&self, filter: &str) -> Result<Option<LogMessage>, LogError> {
        self.ask("read the newest message").await?;
        Ok(self.broker.state().last(StreamId::Log, filter).cloned())
    }

    async fn holds_any(&self, subjects: &[String]) -> Result<bool, LogError> {
        self.ask("look for messages").await?;
        let state = self.broker.state();
        Ok(subjects
            .iter()
            .any(|subject| state.last(StreamId::Log, subject).is_some()))
    }

    async fn follow(&self, filters: Vec<String>, position: Position) -> Result<Follow, LogError> {
        self.ask("follow the log").await?;
        Ok(self.follow_stream(StreamId::Log, filters, position))
    }

    async fn arm_timer(
        &self,
        namespace: &Namespace,
        execution: ExecutionId,
        timer: &TimerId,
        at: Timestamp,
    ) -> Result<(), LogError> {
        let fire = Subject::TimerFire(namespace.clone(), execution, timer.clone()).to_string();
        for _ in 0..WRITES_MAX {
            self.lag().await;
            let (arrives, answers) = self.way(&fire);
            if arrives {
                self.broker.state().arm(fire.clone(), at);
                self.broker.wake_all();
            }
            self.lag().await;
            if answers {
                return Ok(());
            }
            tokio::time::sleep(TIME_OUT).await;
        }
        Err(LogError::unavailable(
            "arm a timer",
            "injected: no acknowledgement in time",
        ))
    }

    async fn publish_intake(
        &self,
        source: &SourceName,
        payload: Vec<u8>,
        _caller: Option<SpanContext>,
    ) -> Result<u64, LogError> {
        let subject = Subject::Intake(source.clone()).to_string();
        let written = self
            .write_once(&subject, payload.into(), &Expected::Anything)
            .await?;
        written.map_err(|_| full(&subject))
    }

    async fn publish_live(&self, subject: &Subject, payload: Vec<u8>) {
        let now = self.broker.moment();
        let (arrives, _) = self.way(&subject.to_string());
        let mut state = self.broker.state();
        if arrives && !state.client(self.id).is_crashed {
            let _ = state.publish(
                StreamId::Live,
                &subject.to_string(),
                payload.into(),
                &Expected::Anything,
                now,
            );
        }
        drop(state);
        self.broker.wake_all();
    }

    async fn follow_live(&self, filters: Vec<String>, position: Position) -> Result<Follow, LogError> {
        self.ask("follow live progress").await?;
        Ok(self.follow_stream(StreamId::Live, filters, position))
    }

    async fn dead_letter(&self, letter: DeadLetter) -> Result<(), LogError> {
        let consumer = TaskType::new(letter.consumer.clone()).map_err(|error| LogError::Refused {
            action: "take a dead letter".to_owned(),
            reason: error.to_string(),
        })?;
        self.ask("take a dead letter").await?;
        let is_first = self.broker.state().is_first_letter(&letter);
        if is_first {
            let now = self.broker.moment();
            let subject = Subject::DeadLetter(consumer).to_string();
            let payload = encode(now.at, &letter).into();
            let stored = self.broker.state().publish(
                StreamId::DeadLetters,
                &subject,
                payload,
                &Expected::Anything,
                now,
            );
            stored.map_err(|_| full(&subject))?;
        }
        Ok(())
    }

    async fn dead_letters(&self, before: Option<u64>, max: usize) -> Result<Vec<StoredDeadLetter>, LogError> {
        self.ask("list the dead letters").await?;
        let everything = [">".to_owned()];
        let state = self.broker.state();
        let letters = state
            .range(StreamId::DeadLetters, &everything, 1, u64::MAX)
            .rev()
            .filter(|message| before.is_none_or(|before| message.seq < before))
            .filter_map(stored_letter);
        Ok(letters.take(max.min(DEAD_LETTERS_MAX)).collect())
    }

    async fn purge_dead_letter(&self, id: u64) -> Result<bool, LogError> {
        self.ask("purge a dead letter").await?;
        let mut state = self.broker.state();
        let is_there = state.at(StreamId::DeadLetters, id).is_some();
        state.remove(StreamId::DeadLetters, id);
        Ok(is_there)
    }

    async fn dead_letter_by_id(&self, id: u64) -> Result<Option<StoredDeadLetter>, LogError> {
        self.ask("read a dead letter").await?;
        Ok(self
            .broker
            .state()
            .at(StreamId::DeadLetters, id)
            .and_then(stored_letter))
    }

    async fn stream_state(&self, stream: StreamId) -> Result<StreamState, LogError> {
        self.ask("describe a stream").await?;
        Ok(self.broker.state().stream_state(stream))
    }

    async fn consumer_state(&self, durable: &Durable) -> Result<ConsumerState, LogError> {
        self.ask("describe a consumer").await?;
        let found = self.broker.state().consumer_state(durable.name);
        found.ok_or_else(|| LogError::Missing {
            what: format!("the consumer {} of {}", durable.name, durable.stream.name()),
        })
    }

    async fn inbox(&self, durable: &Durable) -> Result<SimInbox, LogError> {
        self.consumer_state(durable).await?;
        Ok(SimInbox::new(self.clone(), durable.clone()))
    }
}
