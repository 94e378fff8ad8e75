//! Messages of the log as the engine reads them: decoded, with outputs fetched that were stored apart.

use std::collections::HashSet;

use bus::{Blobs, Failure, LogMessage};
use engine::Logged;
use protocol::{Append, BlobRef, Body, DecodeError, Fact, Subject, Timestamp};

/// Why a message cannot be read.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// Its bytes are not what they should be.
    Decode(DecodeError),
    /// An output that was stored apart cannot be fetched.
    Blob(Failure),
}

/// A fact, with its output inline.
pub(crate) async fn fact(message: &LogMessage, blobs: &Blobs) -> Result<Fact, ReadError> {
    let mut fact = protocol::decode::<Fact>(&message.payload)
        .map_err(ReadError::Decode)?
        .body;
    if let Fact::Done(done) = &mut fact
        && let Some(Body::Blob { blob, .. }) = &done.output
    {
        let bytes = blobs
            .get(blob)
            .await
            .map_err(|error| ReadError::Blob(error.into()))?;
        // It was stored before the fact was written, so it is gone for good: the fact cannot be answered.
        let bytes = bytes.ok_or_else(|| lost(blob, "it is not in the object store"))?;
        let whole = serde_json::from_slice(&bytes).map_err(|error| lost(blob, &error.to_string()))?;
        done.output = Some(Body::Inline(whole));
    }
    Ok(fact)
}

/// What an execution's state is a fold of.
pub(crate) struct History {
    /// The lane, its start and the facts that the lane names, in stream order.
    pub(crate) logged: Vec<(u64, Logged)>,
    /// The last sequence of the lane.
    pub(crate) lane_seq: u64,
    /// When the start was written.
    pub(crate) started_at: Timestamp,
}

/// Reads what matters of an execution's `messages`. A fact that the lane does not name changes nothing so far, so
/// one of those that cannot be read stands in nobody's way.
pub(crate) async fn history(messages: &[LogMessage], blobs: &Blobs) -> Result<History, ReadError> {
    let (mut logged, mut named, mut lane_seq) = (Vec::with_capacity(messages.len()), HashSet::new(), 0);
    let mut started_at = Timestamp::default();
    let (facts, lane): (Vec<_>, Vec<_>) = messages.iter().partition(|message| is_fact(message));
    for message in lane {
        let append = protocol::decode::<Append>(&message.payload)
            .map_err(ReadError::Decode)?
            .body;
        named.insert(append.cause.seq);
        lane_seq = message.seq;
        logged.push((message.seq, Logged::Lane(append)));
    }
    for message in facts {
        let is_start = matches!(Subject::parse(&message.subject), Ok(Subject::Start(..)));
        if is_start {
            started_at = message.at;
        }
        if is_start || named.contains(&message.seq) {
            logged.push((message.seq, Logged::Fact(fact(message, blobs).await?)));
        }
    }
    logged.sort_by_key(|(seq, _)| *seq);
    Ok(History {
        logged,
        lane_seq,
        started_at,
    })
}

fn is_fact(message: &LogMessage) -> bool {
    message.subject.starts_with("fist.fact.")
}

fn lost(blob: &BlobRef, why: &str) -> ReadError {
    ReadError::Blob(Failure::reject(format!(
        "the output {} cannot be read: {why}",
        blob.sha256
    )))
}
