//! Messages of the log as the engine reads them: decoded, with outputs fetched that were stored apart.

use bus::{Blobs, Failure, LogMessage};
use engine::Logged;
use protocol::{Append, BlobRef, Body, DecodeError, Fact};

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

/// A fact or a message of the lane.
pub(crate) async fn logged(message: &LogMessage, blobs: &Blobs) -> Result<Logged, ReadError> {
    if message.subject.starts_with("fist.fact.") {
        return fact(message, blobs).await.map(Logged::Fact);
    }
    Ok(Logged::Lane(
        protocol::decode::<Append>(&message.payload)
            .map_err(ReadError::Decode)?
            .body,
    ))
}

fn lost(blob: &BlobRef, why: &str) -> ReadError {
    ReadError::Blob(Failure::reject(format!(
        "the output {} cannot be read: {why}",
        blob.sha256
    )))
}
