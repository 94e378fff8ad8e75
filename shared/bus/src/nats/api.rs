//! Requests to JetStream, with their errors told apart by what the caller does next.
//!
//! Invariant: every request ends within [`REQUEST_TIME`].

use async_nats::{
    HeaderMap,
    client::{Request, RequestErrorKind},
    header,
};
use bytes::Bytes;
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    connect::{Connection, REQUEST_TIME},
    log::LogError,
};

/// Requests on one connection.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) connection: Connection,
}

/// Why a message was not stored.
#[derive(Debug)]
pub(crate) enum PublishError {
    /// 10071: the subject, or the lane, is not at the expected sequence.
    WrongLast,
    /// 10164: another write to the same subject is under way in the cluster.
    Contended,
    /// It may have been stored.
    Unknown(LogError),
    /// It was not stored.
    Failed(LogError),
}

/// An error as JetStream's replies carry it.
#[derive(Debug, Deserialize)]
pub(crate) struct ApiError {
    #[serde(default)]
    pub(crate) code: u16,
    #[serde(default)]
    pub(crate) err_code: u32,
    #[serde(default)]
    pub(crate) description: String,
}

#[derive(Deserialize)]
struct Reply<T> {
    error: Option<ApiError>,
    #[serde(flatten)]
    body: Option<T>,
}

#[derive(Deserialize)]
struct PublishReply {
    seq: Option<u64>,
    error: Option<ApiError>,
}

// The server's numbers, from its `errors.json`.
const WRONG_LAST_SEQUENCE: u32 = 10071;
const WRONG_LAST_SEQUENCE_CONSTANT: u32 = 10164;
const STORE_FAILED: u32 = 10077;
const STREAM_NOT_FOUND: u32 = 10059;
const CONSUMER_NOT_FOUND: u32 = 10014;
const MESSAGE_TOO_LARGE: u32 = 10054;
const RESOURCES: [u32; 4] = [10002, 10023, 10028, 10047];

impl Api {
    /// Stores one message and returns its sequence.
    pub(crate) async fn publish(
        &self,
        stream: &str,
        subject: String,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<u64, PublishError> {
        let action = format!("take a message on {subject}");
        let bytes = payload.len();
        let mut request = Request::new().payload(payload).timeout(Some(REQUEST_TIME));
        if let Some(headers) = headers {
            request = request.headers(headers);
        }
        let reply = match self
            .connection
            .client
            .send_request(subject.clone(), request)
            .await
        {
            Ok(reply) => reply,
            Err(error) => {
                return Err(match error.kind() {
                    RequestErrorKind::NoResponders => PublishError::Failed(LogError::unavailable(
                        action,
                        format!("{stream} has no leader just now"),
                    )),
                    RequestErrorKind::MaxPayloadExceeded => PublishError::Failed(LogError::TooLarge {
                        subject,
                        bytes,
                        bytes_max: self.connection.client.max_payload(),
                    }),
                    RequestErrorKind::InvalidSubject => PublishError::Failed(LogError::Refused {
                        action,
                        reason: error.to_string(),
                    }),
                    RequestErrorKind::TimedOut | RequestErrorKind::Other => {
                        PublishError::Unknown(LogError::unavailable(action, error))
                    }
                });
            }
        };
        let reply: PublishReply = serde_json::from_slice(&reply.payload)
            .map_err(|error| PublishError::Unknown(LogError::unavailable(action.clone(), error)))?;
        match (reply.error, reply.seq) {
            (None, Some(seq)) => Ok(seq),
            (Some(error), _) => Err(refused(stream, action, subject, bytes, error)),
            (None, None) => Err(PublishError::Unknown(LogError::unavailable(
                action,
                "an acknowledgement without a sequence",
            ))),
        }
    }

    /// Asks JetStream's own interface, such as `STREAM.INFO.<name>`.
    pub(crate) async fn request<T: DeserializeOwned>(
        &self,
        endpoint: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<T, RequestFailure> {
        let action = format!("answer {endpoint}");
        let payload = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let request = Request::new().payload(payload).timeout(Some(REQUEST_TIME));
        let reply = self
            .connection
            .client
            .send_request(format!("$JS.API.{endpoint}"), request)
            .await
            .map_err(|error| RequestFailure::Log(LogError::unavailable(action.clone(), error)))?;
        let reply: Reply<T> = serde_json::from_slice(&reply.payload)
            .map_err(|error| RequestFailure::Log(LogError::unavailable(action.clone(), error)))?;
        match (reply.error, reply.body) {
            (Some(error), _) => Err(RequestFailure::of(action, error)),
            (None, Some(body)) => Ok(body),
            (None, None) => Err(RequestFailure::Log(LogError::unavailable(
                action,
                "an answer of another shape",
            ))),
        }
    }
}

/// Why JetStream's interface gave no answer.
#[derive(Debug)]
pub(crate) enum RequestFailure {
    /// There is no such stream, consumer or message.
    NotFound,
    /// Anything else.
    Log(LogError),
}

impl RequestFailure {
    fn of(action: String, error: ApiError) -> Self {
        match error {
            ApiError {
                err_code: STREAM_NOT_FOUND | CONSUMER_NOT_FOUND,
                ..
            }
            | ApiError { code: 404, .. } => Self::NotFound,
            ApiError {
                code: 500..,
                description,
                ..
            } => Self::Log(LogError::unavailable(action, description)),
            ApiError { description, .. } => Self::Log(LogError::Refused {
                action,
                reason: description,
            }),
        }
    }

    /// As an error about `what`, which should be there.
    pub(crate) fn about(self, what: impl FnOnce() -> String) -> LogError {
        match self {
            Self::NotFound => LogError::Missing { what: what() },
            Self::Log(error) => error,
        }
    }
}

fn refused(stream: &str, action: String, subject: String, bytes: usize, error: ApiError) -> PublishError {
    let reason = error.description;
    match error.err_code {
        WRONG_LAST_SEQUENCE => PublishError::WrongLast,
        WRONG_LAST_SEQUENCE_CONSTANT => PublishError::Contended,
        STORE_FAILED if reason.contains("exceeded") => PublishError::Failed(LogError::Full {
            stream: stream.to_owned(),
            reason,
        }),
        code if RESOURCES.contains(&code) => PublishError::Failed(LogError::Full {
            stream: stream.to_owned(),
            reason,
        }),
        MESSAGE_TOO_LARGE => PublishError::Failed(LogError::TooLarge {
            subject,
            bytes,
            bytes_max: 0,
        }),
        // 5xx: no leader, a cluster in motion. It may have been stored all the same.
        _ if error.code >= 500 => PublishError::Unknown(LogError::unavailable(action, reason)),
        _ => PublishError::Failed(LogError::Refused { action, reason }),
    }
}

/// Headers of rule 1: the first writer of a subject wins.
pub(crate) fn write_once() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, "0");
    headers
}

/// Not among the client's constants.
pub(super) const EXPECTED_LAST_SUBJECT_SEQUENCE_SUBJECT: &str = "Nats-Expected-Last-Subject-Sequence-Subject";

/// Headers of rule 2: the lane, as `filter` names it, is at `expected_last`.
pub(crate) fn compare_and_set(filter: &str, expected_last: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(
        header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE,
        expected_last.to_string().as_str(),
    );
    headers.insert(EXPECTED_LAST_SUBJECT_SEQUENCE_SUBJECT, filter);
    headers
}
