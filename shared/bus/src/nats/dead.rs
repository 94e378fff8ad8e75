//! The stream of dead letters: ours, and what the server says by itself about messages it gave up.

use protocol::{DeadLetter, Subject, Timestamp, decode};
use serde::Deserialize;

use super::{
    inbox::TERM_REASON,
    read::{Raw, Reader},
};
use crate::log::{LogError, StoredDeadLetter, StreamState};

/// Sequences looked through in one read, backwards from the newest.
const WINDOW: u64 = 500;

/// Most letters of one list.
const LIST_MAX: usize = 1_000;

/// Letters below `before`, newest first, at most `max`.
pub(crate) async fn list(
    reader: &Reader,
    state: &StreamState,
    before: Option<u64>,
    max: usize,
) -> Result<Vec<StoredDeadLetter>, LogError> {
    let max = max.min(LIST_MAX);
    let mut letters = Vec::new();
    // Messages are read forwards only, so a window at a time.
    let mut end = before.unwrap_or(u64::MAX).min(state.last_seq.saturating_add(1));
    while letters.len() < max && end > state.first_seq {
        let begin = end.saturating_sub(WINDOW).max(state.first_seq);
        let window = usize::try_from(end - begin).unwrap_or(usize::MAX);
        let messages = reader.all(">", begin, window).await?;
        let mut found: Vec<_> = messages
            .iter()
            .filter(|raw| raw.message.seq < end)
            .filter_map(stored)
            .collect();
        found.reverse();
        letters.extend(found);
        end = begin;
    }
    letters.truncate(max);
    Ok(letters)
}

/// A message of the stream as a letter; `None` for an advisory that only repeats one of ours.
pub(crate) fn stored(raw: &Raw) -> Option<StoredDeadLetter> {
    let message = &raw.message;
    let letter = match Subject::parse(&message.subject) {
        Ok(_) => match decode::<DeadLetter>(&message.payload) {
            Ok(envelope) => envelope.body,
            Err(error) => unreadable(raw, &format!("a dead letter that cannot be read: {error}")),
        },
        Err(_) => match serde_json::from_slice::<Advisory>(&message.payload) {
            Ok(advisory) if advisory.reason.as_deref() == Some(TERM_REASON) => return None,
            Ok(advisory) => advisory.letter(message.at),
            Err(error) => unreadable(
                raw,
                &format!("an advisory of the server that cannot be read: {error}"),
            ),
        },
    };
    Some(StoredDeadLetter {
        id: message.seq,
        at: message.at,
        letter,
    })
}

/// The server's account of a message that it delivers no more.
#[derive(Deserialize)]
struct Advisory {
    stream: String,
    consumer: String,
    stream_seq: u64,
    #[serde(default)]
    deliveries: u64,
    #[serde(default)]
    reason: Option<String>,
}

impl Advisory {
    fn letter(self, at: Timestamp) -> DeadLetter {
        let reason = self.reason.unwrap_or_else(|| {
            "the server gave it up: a consumer's max_deliver is set, or something else terminated it"
                .to_owned()
        });
        DeadLetter {
            stream: self.stream,
            seq: self.stream_seq,
            subject: String::new(),
            written_at: at,
            consumer: self.consumer,
            reason,
            deliveries: self.deliveries,
            payload: String::new(),
            payload_bytes: 0,
        }
    }
}

fn unreadable(raw: &Raw, reason: &str) -> DeadLetter {
    let message = &raw.message;
    DeadLetter {
        stream: crate::StreamId::DeadLetters.name().to_owned(),
        seq: message.seq,
        subject: message.subject.clone(),
        written_at: message.at,
        consumer: String::new(),
        reason: reason.to_owned(),
        deliveries: 0,
        payload: DeadLetter::payload_text(&message.payload),
        payload_bytes: message.payload.len() as u64,
    }
}
