//! The state of the streams under the buckets, which the log's own trait does not tell of.
//!
//! Invariant: it is asked of a stream's leader, so what was acknowledged before is in the answer.

use bus::{Connection, LogError, topology::BLOBS_BUCKET, topology::WORKFLOWS_BUCKET};
use serde::Deserialize;

/// How a bucket's stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketState {
    /// The revision of its newest change.
    pub last_revision: u64,
    bytes: u64,
    bytes_max: Option<u64>,
}

impl BucketState {
    /// How much of the allowed bytes is used, from 0 to 1; 0 without a bound.
    pub fn filled_ratio(self) -> f64 {
        self.bytes_max
            .map_or(0.0, |max| self.bytes as f64 / max.max(1) as f64)
    }

    /// Whether at least `percent` of the allowed bytes are used.
    pub fn is_filled_to(self, percent: u64) -> bool {
        self.bytes_max
            .is_some_and(|max| u128::from(self.bytes) * 100 >= u128::from(max) * u128::from(percent))
    }
}

/// The bucket of definitions.
///
/// # Errors
/// [`LogError::Unavailable`].
pub async fn of_workflows(connection: &Connection) -> Result<BucketState, LogError> {
    state(connection, &format!("KV_{WORKFLOWS_BUCKET}")).await
}

/// The store of large bodies.
///
/// # Errors
/// [`LogError::Unavailable`].
pub async fn of_blobs(connection: &Connection) -> Result<BucketState, LogError> {
    state(connection, &format!("OBJ_{BLOBS_BUCKET}")).await
}

async fn state(connection: &Connection, stream: &str) -> Result<BucketState, LogError> {
    let unavailable = |reason: String| LogError::Unavailable {
        action: format!("tell the state of {stream}"),
        reason,
    };
    let reply = connection
        .client()
        .request(format!("$JS.API.STREAM.INFO.{stream}"), bytes::Bytes::new())
        .await
        .map_err(|error| unavailable(error.to_string()))?;
    let info: Info = serde_json::from_slice(&reply.payload).map_err(|_| {
        unavailable(
            String::from_utf8_lossy(&reply.payload)
                .chars()
                .take(200)
                .collect(),
        )
    })?;
    Ok(BucketState {
        last_revision: info.state.last_seq,
        bytes: info.state.bytes,
        // Absent, 0 and -1 mean "without a bound".
        bytes_max: u64::try_from(info.config.max_bytes).ok().filter(|max| *max > 0),
    })
}

#[derive(Deserialize)]
struct Info {
    config: Config,
    state: State,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    max_bytes: i64,
}

#[derive(Deserialize)]
struct State {
    last_seq: u64,
    bytes: u64,
}
