//! The log as services see it: the trait [`Log`], which the real server ([`crate::NatsLog`]) and the
//! simulated broker ([`crate::sim::SimLog`]) implement alike.
//!
//! Invariants:
//! - A fact is written once: [`Log::write_fact`] is idempotent, and the first body wins.
//! - A lane is appended to by compare-and-set: [`Log::append`] never lets two writers both win.
//! - What was acknowledged before a read began, the read sees.

use std::{fmt, future::Future, pin::Pin, time::Duration};

use bytes::Bytes;
use futures_util::Stream;
use protocol::{
    Attempt, DeadLetter, ExecutionId, Namespace, SourceName, SpanContext, StepName, Subject, TimerId,
    Timestamp, subjects,
};

use service::Spans;

use crate::{
    failure::Failure,
    inbox::Inbox,
    topology::{Durable, StreamId},
};

/// A message as it stands in a stream. Cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct LogMessage {
    /// Where it was written.
    pub subject: String,
    /// Its sequence in its stream, from 1.
    pub seq: u64,
    /// When the server stored it.
    pub at: Timestamp,
    /// Its body.
    pub payload: Bytes,
    /// The span behind it, where its writer named one.
    pub caller: Option<SpanContext>,
}

impl fmt::Debug for LogMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Bodies may hold what an alert carried: never into a log.
        write!(
            f,
            "#{} {} ({} bytes, {})",
            self.seq,
            self.subject,
            self.payload.len(),
            self.at
        )
    }
}

/// What became of a fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is recorded now, at this sequence.
    New(u64),
    /// It was recorded before, perhaps with another body, which stands.
    Already,
}

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It stands at this sequence, which is the lane's last now.
    At(u64),
    /// Another writer was first, or it is unknown whether this one was: read the execution again.
    Conflict,
}

/// Where a follower begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// With the oldest message there is.
    All,
    /// With this sequence, or the first one after it.
    Seq(u64),
    /// With what is written from now on.
    New,
}

/// How full a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamState {
    /// Sequence of the oldest message; one above `last_seq` where there is none.
    pub first_seq: u64,
    /// Sequence of the newest message ever written.
    pub last_seq: u64,
    /// Messages held.
    pub messages: u64,
    /// Bytes held.
    pub bytes: u64,
    /// Bytes it may hold; `None` without a bound.
    pub bytes_max: Option<u64>,
}

impl StreamState {
    /// How much of the allowed bytes is used, from 0 to 1; 0 without a bound.
    pub fn filled_ratio(&self) -> f64 {
        self.bytes_max
            .map_or(0.0, |max| self.bytes as f64 / max.max(1) as f64)
    }

    /// Whether at least `percent` of the allowed bytes are used.
    pub fn is_filled_to(&self, percent: u64) -> bool {
        self.bytes_max
            .is_some_and(|max| u128::from(self.bytes) * 100 >= u128::from(max) * u128::from(percent))
    }
}

/// How far a durable consumer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsumerState {
    /// Messages not delivered yet.
    pub waiting: u64,
    /// Messages delivered and not acknowledged yet.
    pub in_flight: u64,
    /// When the oldest message that is not acknowledged was written; `None` where all are.
    pub oldest: Option<Timestamp>,
    /// Every message up to this sequence of the stream is acknowledged.
    pub acked_to_seq: u64,
}

/// A dead letter with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredDeadLetter {
    /// Its sequence among the dead letters.
    pub id: u64,
    /// When it was set aside.
    pub at: Timestamp,
    /// The letter.
    pub letter: DeadLetter,
}

/// Why the log did not do what was asked. Texts name the remedy where there is one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The server cannot be reached, or did not answer in time. It is unknown whether a write took effect.
    #[error("NATS did not {action}: {reason}")]
    Unavailable {
        /// What it was asked to do.
        action: String,
        /// What happened.
        reason: String,
    },
    /// The stream holds as much as it may.
    #[error(
        "the stream {stream} is full: {reason}; raise its limit in the configuration and run `fist nats init`"
    )]
    Full {
        /// Which.
        stream: String,
        /// The server's words.
        reason: String,
    },
    /// The message is larger than the server accepts.
    #[error("a message of {bytes} bytes on {subject} is larger than the server accepts ({bytes_max} bytes)")]
    TooLarge {
        /// Where it should have gone.
        subject: String,
        /// Its size.
        bytes: usize,
        /// The server's limit.
        bytes_max: usize,
    },
    /// A stream, consumer or bucket is not there.
    #[error("{what} is missing in NATS: run `fist nats init`")]
    Missing {
        /// Which.
        what: String,
    },
    /// The server refused for a reason that trying again does not change.
    #[error("NATS refused to {action}: {reason}")]
    Refused {
        /// What it was asked to do.
        action: String,
        /// The server's words.
        reason: String,
    },
    /// What was read is not what was written.
    #[error("{what} is damaged: {reason}")]
    Damaged {
        /// Which.
        what: String,
        /// How that was seen.
        reason: String,
    },
}

impl LogError {
    /// Whether the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable { .. } | Self::Full { .. } => true,
            Self::TooLarge { .. } | Self::Missing { .. } | Self::Refused { .. } | Self::Damaged { .. } => {
                false
            }
        }
    }

    pub(crate) fn unavailable(action: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self::Unavailable {
            action: action.into(),
            reason: reason.to_string(),
        }
    }
}

/// How long a message rests when a stream is full: long enough for an operator's change to show.
const FULL_RETRY_AFTER: Duration = Duration::from_secs(5);

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        let reason = error.to_string();
        match error {
            LogError::Unavailable { .. } => Self::retry(reason),
            LogError::Full { .. } => Self::Retry {
                after: FULL_RETRY_AFTER,
                reason,
            },
            LogError::TooLarge { .. } | LogError::Damaged { .. } => Self::Reject { reason },
            LogError::Missing { .. } | LogError::Refused { .. } => Self::Fatal { reason },
        }
    }
}

/// The one string that guards appends to the lane of `subject`; `None` where it is in no lane.
pub(crate) fn lane_of(subject: &Subject) -> Option<String> {
    match subject {
        Subject::Command(_, namespace, execution)
        | Subject::Note(namespace, execution)
        | Subject::Cancel(namespace, execution) => Some(subjects::lane_filter(namespace, *execution)),
        _ => None,
    }
}

pub(crate) fn not_a_lane(subject: &Subject) -> LogError {
    LogError::Refused {
        action: format!("append to {subject}"),
        reason: "it is in no command lane".to_owned(),
    }
}

/// Messages in stream order, without a gap, across reconnects. Ends with an error that is not transient,
/// and otherwise never.
pub struct Follow(Pin<Box<dyn Stream<Item = Result<LogMessage, LogError>> + Send>>);

impl Follow {
    pub(crate) fn new(stream: impl Stream<Item = Result<LogMessage, LogError>> + Send + 'static) -> Self {
        Self(Box::pin(stream))
    }
}

impl Stream for Follow {
    type Item = Result<LogMessage, LogError>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(context)
    }
}

/// The log, its timers and its dead letters.
///
/// Every method is bounded in time (about ten seconds at most); what could not be done by then is a
/// transient [`LogError`], which turns into [`Failure::Retry`] by `?`.
pub trait Log: Clone + Send + Sync + 'static {
    /// A durable consumer of this log.
    type Inbox: Inbox;

    /// The time, by the clock that the simulation turns; for `at` of what is written.
    fn now(&self) -> Timestamp;

    /// Since when this client has been connected without a break. What was written before may have been handed to
    /// another, of which a server that crashed meanwhile need not know.
    fn connected_since(&self) -> Timestamp;

    /// Whether there are copies of the log on several servers.
    fn is_replicated(&self) -> bool;

    /// A number that another process has not: for pauses of two that must not stay in step.
    fn salt(&self) -> u64 {
        std::process::id().into()
    }

    /// Records a fact, once (rule 1). Time-outs and races are tried again within the bound.
    ///
    /// # Errors
    /// [`LogError`]; after a transient one the fact may stand, and writing it again is safe.
    fn write_fact(
        &self,
        subject: &Subject,
        payload: Vec<u8>,
    ) -> impl Future<Output = Result<Written, LogError>> + Send;

    /// Appends to the command lane of the execution that `subject` belongs to, if the lane's last sequence
    /// is `expected_last` (0: the lane is empty) (rule 2).
    ///
    /// # Errors
    /// [`LogError::Full`], [`LogError::TooLarge`] and the like. A time-out is [`Appended::Conflict`].
    fn append(
        &self,
        subject: &Subject,
        payload: Vec<u8>,
        expected_last: u64,
    ) -> impl Future<Output = Result<Appended, LogError>> + Send;

    /// All facts and lane messages of an execution, in stream order. Every fact that a returned lane message
    /// names is among them.
    ///
    /// # Errors
    /// [`LogError`]; never a part of it.
    fn read_execution(
        &self,
        namespace: &Namespace,
        execution: ExecutionId,
    ) -> impl Future<Output = Result<Vec<LogMessage>, LogError>> + Send {
        self.read_execution_after(namespace, execution, 0)
    }

    /// As [`Log::read_execution`], without what stands at `after` or before it: for who knows the lane up to there,
    /// its last message at `after`. A fact that a returned lane message names may stand before it. Where the lane went
    /// on from another message (a server lost what it had acknowledged), the whole execution.
    ///
    /// # Errors
    /// [`LogError`]; never a part of it.
    fn read_execution_after(
        &self,
        namespace: &Namespace,
        execution: ExecutionId,
        after: u64,
    ) -> impl Future<Output = Result<Vec<LogMessage>, LogError>> + Send;

    /// The transcript of one attempt so far, in order.
    ///
    /// # Errors
    /// [`LogError`]; never a part of it.
    fn read_turns(
        &self,
        namespace: &Namespace,
        execution: ExecutionId,
        step: &StepName,
        attempt: Attempt,
    ) -> impl Future<Output = Result<Vec<LogMessage>, LogError>> + Send;

    /// Messages of the whole log from `first_seq` on, in order, at most `max` (to 10,000); empty at its end.
    ///
    /// # Errors
    /// [`LogError`].
    fn read_from(
        &self,
        first_seq: u64,
        max: usize,
    ) -> impl Future<Output = Result<Vec<LogMessage>, LogError>> + Send;

    /// The newest message of the log on `filter`, which may hold wildcards.
    ///
    /// # Errors
    /// [`LogError`].
    fn last(&self, filter: &str) -> impl Future<Output = Result<Option<LogMessage>, LogError>> + Send;

    /// Whether the log holds a message on any of these subjects, none of which has a wildcard; at most 64 of them.
    ///
    /// # Errors
    /// [`LogError`].
    fn holds_any(&self, subjects: &[String]) -> impl Future<Output = Result<bool, LogError>> + Send;

    /// Messages of the log on any of `filters` from `position` on, history first, then as they come.
    ///
    /// # Errors
    /// [`LogError`] when it cannot begin.
    fn follow(
        &self,
        filters: Vec<String>,
        position: Position,
    ) -> impl Future<Output = Result<Follow, LogError>> + Send;

    /// Arms a timer that fires at `at`, at once where that is past. Arming it again moves it.
    ///
    /// # Errors
    /// [`LogError`]; arming again is safe.
    fn arm_timer(
        &self,
        namespace: &Namespace,
        execution: ExecutionId,
        timer: &TimerId,
        at: Timestamp,
    ) -> impl Future<Output = Result<(), LogError>> + Send;

    /// Where spans of what is read and written here go; off where nobody said otherwise.
    fn spans(&self) -> Spans {
        Spans::default()
    }

    /// Puts what a source sent into `FIST_ALERTS`, with the span that led to it where there is one; durable when
    /// this returns its sequence there.
    ///
    /// # Errors
    /// [`LogError`]; after a transient one it may have been taken, and sending again makes a second delivery.
    fn publish_intake(
        &self,
        source: &SourceName,
        payload: Vec<u8>,
        caller: Option<SpanContext>,
    ) -> impl Future<Output = Result<u64, LogError>> + Send;

    /// Sends progress to whoever is watching; dropped where that does not work at once.
    fn publish_live(&self, subject: &Subject, payload: Vec<u8>) -> impl Future<Output = ()> + Send;

    /// Progress on any of `filters`: the last minutes of it ([`Position::All`]), and what comes.
    ///
    /// # Errors
    /// [`LogError`] when it cannot begin.
    fn follow_live(
        &self,
        filters: Vec<String>,
        position: Position,
    ) -> impl Future<Output = Result<Follow, LogError>> + Send;

    /// Sets a message aside.
    ///
    /// # Errors
    /// [`LogError`].
    fn dead_letter(&self, letter: DeadLetter) -> impl Future<Output = Result<(), LogError>> + Send;

    /// Dead letters, newest first, those below `before` (`None`: from the newest), at most `max` (to 1,000).
    ///
    /// # Errors
    /// [`LogError`].
    fn dead_letters(
        &self,
        before: Option<u64>,
        max: usize,
    ) -> impl Future<Output = Result<Vec<StoredDeadLetter>, LogError>> + Send;

    /// One dead letter.
    ///
    /// # Errors
    /// [`LogError`].
    fn dead_letter_by_id(
        &self,
        id: u64,
    ) -> impl Future<Output = Result<Option<StoredDeadLetter>, LogError>> + Send;

    /// Removes one dead letter for good, with what it holds of its message; false where there is none.
    ///
    /// # Errors
    /// [`LogError`]; removing again is safe.
    fn purge_dead_letter(&self, id: u64) -> impl Future<Output = Result<bool, LogError>> + Send;

    /// How full a stream is.
    ///
    /// # Errors
    /// [`LogError`].
    fn stream_state(&self, stream: StreamId) -> impl Future<Output = Result<StreamState, LogError>> + Send;

    /// How far a durable consumer is.
    ///
    /// # Errors
    /// [`LogError`].
    fn consumer_state(
        &self,
        durable: &Durable,
    ) -> impl Future<Output = Result<ConsumerState, LogError>> + Send;

    /// Opens a durable consumer of the topology's table.
    ///
    /// # Errors
    /// [`LogError::Missing`] where `fist nats init` did not run.
    fn inbox(&self, durable: &Durable) -> impl Future<Output = Result<Self::Inbox, LogError>> + Send;
}
