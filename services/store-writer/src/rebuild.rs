//! The database built anew from the log.
//!
//! Invariants:
//! - What the log no longer holds stays as it is; everything else is forgotten and folded again.
//! - It may be interrupted and repeated, and replicas may go on projecting meanwhile: folding is idempotent.

use bus::{Log, LogError, LogMessage, StreamId};
use protocol::Timestamp;
use service::{
    Service,
    backoff::{self, Failed, GaveUp},
};

use crate::{
    projector::{batch_of, prepare},
    reading::{Message, Reading, read},
    store::{Horizon, Store, StoreError},
};

/// Messages read and written at one time.
pub(crate) const PAGE_MESSAGES: usize = 1_000;

/// What a rebuild did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Messages of the log that were folded again.
    pub messages: u64,
    /// Messages that could not be read; they are among the dead letters since they were first delivered.
    pub unreadable: u64,
}

/// Why the database was not built anew. Repeating it is safe.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The process is ending.
    #[error("interrupted; run it again to finish")]
    Interrupted,
    /// The log cannot be read.
    #[error("the log cannot be read: {0}; run it again to finish")]
    Log(#[from] LogError),
    /// The database refuses.
    #[error("{0}; run it again to finish")]
    Store(#[from] StoreError),
}

/// Forgets what the log holds, and folds it again, to where the log ends now.
///
/// # Errors
/// [`RebuildError`].
pub async fn rebuild<L: Log>(log: &L, store: &dyn Store, service: &Service) -> Result<Rebuilt, RebuildError> {
    prepare(store, service).await.map_err(gave_up)?;
    let state = log.stream_state(StreamId::Log).await?;
    let mut rebuilt = Rebuilt::default();
    let Some(horizon) = horizon(log).await?.filter(|_| state.messages > 0) else {
        tracing::info!("the log is empty, so that all rows stay as they are");
        return Ok(rebuilt);
    };
    patiently(service, || store.forget_from(horizon)).await?;
    let mut next = horizon.seq;
    while next <= state.last_seq {
        let page = log.read_from(next, PAGE_MESSAGES).await?;
        let Some(last) = page.last() else { break };
        next = last.seq + 1;
        rebuilt.messages += page.len() as u64;
        let readings = readings(&page, &mut rebuilt.unreadable);
        let batch = batch_of(&readings);
        patiently(service, || store.apply(&batch)).await?;
        tracing::info!(
            messages = rebuilt.messages,
            next_seq = next,
            last_seq = state.last_seq,
            "folding the log again"
        );
    }
    Ok(rebuilt)
}

/// The oldest message that the log holds; `None` where it is empty.
pub(crate) async fn horizon<L: Log>(log: &L) -> Result<Option<Horizon>, LogError> {
    let first = log.read_from(1, 1).await?;
    Ok(first.first().map(|message| Horizon {
        seq: message.seq,
        at: message.at,
    }))
}

/// From where on nothing is in the log, where it is empty.
pub(crate) fn horizon_of_an_empty_log(now: Timestamp) -> Horizon {
    Horizon {
        seq: u64::MAX,
        at: now,
    }
}

pub(crate) fn readings(page: &[LogMessage], unreadable: &mut u64) -> Vec<Reading> {
    let mut readings = Vec::with_capacity(page.len());
    for message in page {
        let reading = read(Message {
            subject: &message.subject,
            seq: message.seq,
            at: message.at,
            payload: &message.payload,
        });
        match reading {
            Ok(reading) => readings.push(reading),
            Err(error) => {
                tracing::warn!(?message, %error, "left out, because it cannot be read");
                *unreadable += 1;
            }
        }
    }
    readings
}

/// Does `work` until it succeeds, while the database is away.
pub(crate) async fn patiently<T, Working>(
    service: &Service,
    mut work: impl FnMut() -> Working,
) -> Result<T, RebuildError>
where
    Working: Future<Output = Result<T, StoreError>>,
{
    let attempt = || {
        let working = work();
        async move {
            working.await.map_err(|error| match error {
                StoreError::Unavailable(_) => Failed::Transient(error),
                StoreError::Refused(_) | StoreError::Unusable(_) => Failed::Permanent(error),
            })
        }
    };
    let tell = |again: backoff::Again<'_, StoreError>| tracing::warn!(error = %again.error, "waiting for the database");
    backoff::retry(backoff::Policy::PATIENT, &service.shutdown, attempt, tell)
        .await
        .map_err(gave_up)
}

fn gave_up(error: GaveUp<StoreError>) -> RebuildError {
    match error {
        GaveUp::Shutdown => RebuildError::Interrupted,
        GaveUp::Permanent(error) | GaveUp::Exhausted { last: error, .. } => RebuildError::Store(error),
    }
}
