//! What the simulated broker holds: streams, consumers, timers. A plain state machine; time is told to it.
//!
//! Invariant: it behaves as the server does wherever the conformance table looks.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use protocol::{Timestamp, subjects};
use tokio::time::Instant;

use super::{
    client::Client,
    rng::Rng,
    strikes::{FaultKind, Strike, Strikes},
};
use crate::{
    inbox::Settlement,
    log::{ConsumerState, LogMessage, StreamState},
    topology::{DURABLES, Durable, StreamId},
};

/// What a write demands of the stream.
pub(super) enum Expected {
    Anything,
    /// Rule 1: nothing on the message's own subject.
    Nothing,
    /// Rule 2: the last message on `filter` is at `seq`.
    Last {
        filter: String,
        seq: u64,
    },
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    WrongLast,
    /// Error 10164: another write to the same place is under way.
    Contended,
    Full,
}

/// Something that took effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A message was stored.
    Stored {
        /// In which stream.
        stream: StreamId,
        /// Its sequence there.
        seq: u64,
    },
    /// A timer was armed.
    Armed {
        /// The subject it fires on.
        fires_on: String,
        /// When it fires.
        at: Timestamp,
    },
    /// A delivery was acknowledged, or set aside for good.
    Acked {
        /// Name of the consumer.
        consumer: &'static str,
        /// The message's sequence in the consumer's stream.
        seq: u64,
    },
}

/// A broker that breaks a promise of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// Appends to a lane whatever its last sequence is.
    IgnoresLaneGuard,
    /// Stores a second fact on a subject.
    IgnoresWriteOnce,
    /// Delivers nothing a second time.
    NeverRedelivers,
    /// Acknowledges facts of runners, and does not store each fifth.
    LosesResults,
    /// Takes timers, and never fires them.
    NeverFires,
}

/// Instant and timestamp of the same moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) instant: Instant,
    pub(super) at: Timestamp,
}

#[derive(Default)]
struct Stored {
    messages: BTreeMap<u64, LogMessage>,
    last_seq: u64,
    bytes: u64,
    bytes_max: Option<u64>,
}

/// A message that a consumer was given, or gave back.
struct Loan {
    deliveries: u64,
    due: Instant,
}

struct Consumer {
    durable: Durable,
    filters: Vec<String>,
    /// Not delivered yet, with when it may be.
    fresh: BTreeMap<u64, Instant>,
    on_loan: BTreeMap<u64, Loan>,
    /// Every message up to here was offered to it.
    offered: u64,
}

/// A delivery in the making.
pub(super) struct Given {
    pub(super) message: LogMessage,
    pub(super) deliveries: u64,
}

pub(super) struct State {
    streams: BTreeMap<StreamId, Stored>,
    consumers: BTreeMap<&'static str, Consumer>,
    /// Armed timers by the subject they fire on.
    timers: BTreeMap<String, Timestamp>,
    trials: BTreeMap<(&'static str, u64), u64>,
    dead: BTreeSet<(String, String, u64)>,
    clients: Vec<Client>,
    pub(super) rng: Rng,
    pub(super) faults: super::Faults,
    pub(super) strikes: Strikes,
    pub(super) effects: Vec<Effect>,
    pub(super) defect: Option<Defect>,
}

impl State {
    pub(super) fn new(seed: u64, faults: super::Faults, only: Option<BTreeSet<Strike>>) -> Self {
        let consumer = |durable: Durable| Consumer {
            filters: (durable.filters)(),
            durable,
            fresh: BTreeMap::new(),
            on_loan: BTreeMap::new(),
            offered: 0,
        };
        Self {
            streams: StreamId::ALL
                .into_iter()
                .map(|id| (id, Stored::default()))
                .collect(),
            consumers: DURABLES
                .into_iter()
                .map(|durable| (durable.name, consumer(durable)))
                .collect(),
            timers: BTreeMap::new(),
            trials: BTreeMap::new(),
            dead: BTreeSet::new(),
            clients: Vec::new(),
            rng: Rng::new(seed),
            faults,
            strikes: Strikes::new(seed, only),
            effects: Vec::new(),
            defect: None,
        }
    }

    /// A new client's id: from 1, for people to read.
    pub(super) fn new_client(&mut self, connected_at: Timestamp) -> u64 {
        self.clients.push(Client {
            connected_at,
            ..Client::default()
        });
        self.clients.len() as u64
    }

    pub(super) fn client(&mut self, id: u64) -> &mut Client {
        let index = usize::try_from(id - 1).expect("ids are counted from 1");
        &mut self.clients[index]
    }

    /// Whether a fault strikes now, and whom.
    pub(super) fn strikes(&mut self, kind: FaultKind, at: Timestamp, hit: impl FnOnce() -> String) -> bool {
        self.strikes.draw(kind, &self.faults, at, hit)
    }

    fn stream(&self, id: StreamId) -> &Stored {
        &self.streams[&id]
    }

    pub(super) fn set_bytes_max(&mut self, id: StreamId, bytes_max: Option<u64>) {
        self.streams.entry(id).or_default().bytes_max = bytes_max;
    }

    pub(super) fn set_ack_wait(&mut self, consumer: &str, ack_wait: Duration) {
        if let Some(consumer) = self.consumers.get_mut(consumer) {
            consumer.durable.ack_wait = ack_wait;
        }
    }

    pub(super) fn publish(
        &mut self,
        id: StreamId,
        subject: &str,
        payload: Bytes,
        expected: &Expected,
        now: Now,
    ) -> Result<u64, Refusal> {
        let found = match expected {
            Expected::Anything => None,
            Expected::Nothing => Some((self.last_seq_on(id, subject), 0)),
            Expected::Last { filter, seq } => Some((self.last_seq_on(id, filter), *seq)),
        };
        let is_guarded = !matches!(
            (self.defect, expected),
            (Some(Defect::IgnoresLaneGuard), Expected::Last { .. })
                | (Some(Defect::IgnoresWriteOnce), Expected::Nothing)
        );
        if is_guarded && found.is_some_and(|(last, expected)| last != expected) {
            return Err(Refusal::WrongLast);
        }
        let stream = self.streams.entry(id).or_default();
        let bytes = (subject.len() + payload.len()) as u64;
        if stream.bytes_max.is_some_and(|max| stream.bytes + bytes > max) {
            return Err(Refusal::Full);
        }
        stream.last_seq += 1;
        let seq = stream.last_seq;
        if self.defect == Some(Defect::LosesResults) && subject.ends_with(".done") && seq.is_multiple_of(5) {
            return Ok(seq);
        }
        stream.bytes += bytes;
        let message = LogMessage {
            subject: subject.to_owned(),
            seq,
            at: now.at,
            payload,
            caller: None,
        };
        stream.messages.insert(seq, message);
        self.effects.push(Effect::Stored { stream: id, seq });
        self.offer(id, seq, subject, now.instant);
        Ok(seq)
    }

    /// Enters a new message with every consumer that wants it, each with a delay of its own.
    fn offer(&mut self, id: StreamId, seq: u64, subject: &str, now: Instant) {
        for consumer in self
            .consumers
            .values_mut()
            .filter(|consumer| consumer.durable.stream == id)
        {
            consumer.offered = seq;
            let mut filters = consumer.filters.iter();
            if consumer.filters.is_empty() || filters.any(|filter| matches(filter, subject)) {
                let delay = self.rng.up_to(self.faults.delivery_delay_max);
                consumer.fresh.insert(seq, now + delay);
            }
        }
    }

    /// 0 where there is none.
    fn last_seq_on(&self, id: StreamId, filter: &str) -> u64 {
        self.last(id, filter).map_or(0, |message| message.seq)
    }

    pub(super) fn last(&self, id: StreamId, filter: &str) -> Option<&LogMessage> {
        let mut newest_first = self.stream(id).messages.values().rev();
        newest_first.find(|message| matches(filter, &message.subject))
    }

    pub(super) fn at(&self, id: StreamId, seq: u64) -> Option<&LogMessage> {
        self.stream(id).messages.get(&seq)
    }

    /// Messages on any of `filters` from `first_seq` to `last_seq`, in order.
    pub(super) fn range<'a>(
        &'a self,
        id: StreamId,
        filters: &'a [String],
        first_seq: u64,
        last_seq: u64,
    ) -> impl DoubleEndedIterator<Item = &'a LogMessage> {
        let last_seq = last_seq.max(first_seq);
        self.stream(id)
            .messages
            .range(first_seq..=last_seq)
            .map(|(_, message)| message)
            .filter(move |message| filters.iter().any(|filter| matches(filter, &message.subject)))
    }

    /// All messages from `first_seq` on, in order.
    pub(super) fn from(&self, id: StreamId, first_seq: u64) -> impl Iterator<Item = &LogMessage> {
        self.stream(id)
            .messages
            .range(first_seq..)
            .map(|(_, message)| message)
    }

    pub(super) fn stream_state(&self, id: StreamId) -> StreamState {
        let stream = self.stream(id);
        StreamState {
            first_seq: stream
                .messages
                .keys()
                .next()
                .copied()
                .unwrap_or(stream.last_seq + 1),
            last_seq: stream.last_seq,
            messages: stream.messages.len() as u64,
            bytes: stream.bytes,
            bytes_max: stream.bytes_max,
        }
    }

    pub(super) fn arm(&mut self, fires_on: String, at: Timestamp) {
        self.effects.push(Effect::Armed {
            fires_on: fires_on.clone(),
            at,
        });
        if self.defect != Some(Defect::NeverFires) {
            self.timers.insert(fires_on, at);
        }
    }

    /// Fires what is due.
    pub(super) fn advance(&mut self, now: Now) {
        let due: Vec<String> = self
            .timers
            .iter()
            .filter(|(_, at)| **at <= now.at)
            .map(|(subject, _)| subject.clone())
            .collect();
        for subject in due {
            self.timers.remove(&subject);
            // One message per subject: what fired before and was not fetched gives way.
            let former = self.last_seq_on(StreamId::Timers, &subject);
            self.remove(StreamId::Timers, former);
            let _ = self.publish(StreamId::Timers, &subject, Bytes::new(), &Expected::Anything, now);
        }
    }

    pub(super) fn remove(&mut self, id: StreamId, seq: u64) {
        let stream = self.streams.entry(id).or_default();
        if let Some(message) = stream.messages.remove(&seq) {
            stream.bytes -= (message.subject.len() + message.payload.len()) as u64;
            for consumer in self
                .consumers
                .values_mut()
                .filter(|consumer| consumer.durable.stream == id)
            {
                consumer.fresh.remove(&seq);
                consumer.on_loan.remove(&seq);
            }
        }
    }

    /// Lends out up to `max` messages of a consumer: what comes again first, then what is new.
    pub(super) fn take(&mut self, name: &'static str, max: usize, now: Now) -> Vec<Given> {
        self.advance(now);
        let Some(consumer) = self.consumers.get_mut(name) else {
            return Vec::new();
        };
        let wait = consumer.durable.ack_wait;
        let stream = &self.streams[&consumer.durable.stream];
        let mut given = Vec::new();
        for (seq, loan) in &mut consumer.on_loan {
            if given.len() == max {
                return given;
            }
            if loan.due <= now.instant
                && self.defect != Some(Defect::NeverRedelivers)
                && let Some(message) = stream.messages.get(seq)
            {
                loan.deliveries += 1;
                loan.due = now.instant + wait;
                given.push(Given {
                    message: message.clone(),
                    deliveries: loan.deliveries,
                });
            }
        }
        let mut ready: Vec<(Instant, u64)> = consumer
            .fresh
            .iter()
            .filter(|(_, from)| **from <= now.instant)
            .map(|(seq, from)| (*from, *seq))
            .collect();
        ready.sort_unstable();
        let room = (consumer.durable.in_flight_max as usize).saturating_sub(consumer.on_loan.len());
        for (_, seq) in ready.into_iter().take(room.min(max - given.len())) {
            consumer.fresh.remove(&seq);
            let Some(message) = stream.messages.get(&seq) else {
                continue;
            };
            // A duplicate is a delivery whose loan is over at once.
            let twice = self
                .strikes
                .draw(FaultKind::Duplicated, &self.faults, now.at, || {
                    format!("delivery of {} to {name}", message.subject)
                });
            let due = if twice { now.instant } else { now.instant + wait };
            consumer.on_loan.insert(seq, Loan { deliveries: 1, due });
            given.push(Given {
                message: message.clone(),
                deliveries: 1,
            });
        }
        given
    }

    /// When a consumer may have something without a further write.
    pub(super) fn next_due(&self, name: &str, now: Now) -> Option<Instant> {
        let consumer = self.consumers.get(name)?;
        let timer = (consumer.durable.stream == StreamId::Timers)
            .then(|| self.timers.values().min())
            .flatten()
            .map(|at| now.instant + at.since(now.at).max(Duration::from_millis(1)));
        let loans = consumer.on_loan.values().map(|loan| loan.due);
        loans.chain(consumer.fresh.values().copied()).chain(timer).min()
    }

    pub(super) fn settle(&mut self, name: &'static str, seq: u64, settlement: Settlement, now: Now) {
        let Some(consumer) = self.consumers.get_mut(name) else {
            return;
        };
        let stream = consumer.durable.stream;
        match settlement {
            Settlement::Ack | Settlement::Term => {
                self.effects.push(Effect::Acked { consumer: name, seq });
                let was_on_loan = consumer.on_loan.remove(&seq).is_some();
                // Work queues keep nothing that was handled.
                if was_on_loan && matches!(stream, StreamId::Alerts | StreamId::Timers) {
                    self.remove(stream, seq);
                }
            }
            Settlement::NakAfter(after) => {
                if let Some(loan) = consumer.on_loan.get_mut(&seq) {
                    loan.due = now.instant + after;
                }
            }
            Settlement::Progress => {
                if let Some(loan) = consumer.on_loan.get_mut(&seq) {
                    loan.due = now.instant + consumer.durable.ack_wait;
                }
            }
        }
    }

    pub(super) fn consumer_state(&self, name: &str) -> Option<ConsumerState> {
        let consumer = self.consumers.get(name)?;
        let stream = self.stream(consumer.durable.stream);
        let oldest = consumer.on_loan.keys().chain(consumer.fresh.keys()).min();
        Some(ConsumerState {
            waiting: consumer.fresh.len() as u64,
            in_flight: consumer.on_loan.len() as u64,
            oldest: oldest.and_then(|seq| Some(stream.messages.get(seq)?.at)),
            acked_to_seq: oldest.map_or(consumer.offered, |seq| seq - 1),
        })
    }

    pub(super) fn trial_begins(&mut self, name: &'static str, seq: u64) -> u64 {
        let trials = self.trials.entry((name, seq)).or_default();
        *trials += 1;
        *trials - 1
    }

    pub(super) fn trial_ends(&mut self, name: &'static str, seq: u64) {
        if let Some(trials) = self.trials.get_mut(&(name, seq)) {
            *trials = trials.saturating_sub(1);
        }
    }

    /// Whether a dead letter is the first about its message.
    pub(super) fn is_first_letter(&mut self, letter: &protocol::DeadLetter) -> bool {
        self.dead
            .insert((letter.stream.clone(), letter.consumer.clone(), letter.seq))
    }
}

/// Whether `subject` is on `filter`, by NATS's rules: `*` is one token, `>` the rest, of at least one.
pub(super) fn matches(filter: &str, subject: &str) -> bool {
    let mut tokens = subject.split('.');
    for wanted in filter.split('.') {
        match (wanted, tokens.next()) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (wanted, Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
    tokens.next().is_none()
}

/// Which stream takes `subject`.
pub(super) fn stream_of(subject: &str) -> Option<StreamId> {
    let takes = |id: StreamId| -> Vec<&str> {
        match id {
            StreamId::Log => subjects::LOG_SUBJECTS.to_vec(),
            StreamId::Alerts => vec![subjects::ALL_INTAKE],
            StreamId::Timers => subjects::TIMER_SUBJECTS.to_vec(),
            StreamId::DeadLetters => vec![subjects::ALL_DEAD],
            StreamId::Live => vec![subjects::ALL_LIVE],
        }
    };
    StreamId::ALL
        .into_iter()
        .find(|id| takes(*id).iter().any(|filter| matches(filter, subject)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_match_as_in_nats() {
        for (filter, subject, is_match) in [
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("a.*", "a.b", true),
            ("a.*", "a", false),
            ("a.*.c", "a.b.c", true),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            (">", "a", true),
            ("a.b.*", "a.b", false),
        ] {
            assert_eq!(matches(filter, subject), is_match, "{filter} {subject}");
        }
    }
}
