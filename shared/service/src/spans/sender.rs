//! Sends spans in batches, and goes on when they are not taken.
//!
//! Invariants:
//! - A batch is tried a few times and then dropped; meanwhile the queue fills up to its bound, and no further.
//! - A receiver that is away is warned of once, until it is back.
//! - No redirect is followed, and no error's text holds the address or a header.

use std::error::Error;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Client, StatusCode, Url, redirect};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Recorded, otlp};
use crate::backoff::Policy;
use crate::config;
use crate::metrics::Metrics;

/// Spans of one request: some hundred kilobytes.
const BATCH_SPANS_MAX: usize = 512;
/// How long a first span waits for others.
const LINGER: Duration = Duration::from_secs(1);
/// Between the attempts at one batch.
const AGAIN: Policy = Policy {
    first: Duration::from_millis(500),
    longest: Duration::from_secs(10),
    ..Policy::PATIENT
}
.attempts(5);
/// Longest pause that a receiver may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);
/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Where spans go.
pub(super) struct Receiver {
    client: Client,
    url: Url,
}

/// Why a batch was not taken.
struct NotTaken {
    reason: String,
    /// Where another attempt may help: how long the receiver wants to rest.
    again_after: Option<Option<Duration>>,
}

impl Receiver {
    pub(super) fn new(endpoint: &str, tracing: &config::Tracing) -> Result<Self, String> {
        let url = address(endpoint).map_err(|error| format!("tracing.otlp_endpoint: {error}"))?;
        crate::install_crypto();
        let mut headers = HeaderMap::new();
        for (name, value) in &tracing.otlp_headers {
            let name = HeaderName::try_from(name.as_str())
                .map_err(|_| format!("tracing.otlp_headers: `{name}` is not a header's name"))?;
            let mut value = HeaderValue::try_from(value.expose())
                .map_err(|_| format!("tracing.otlp_headers: the value of {name} is none of a header"))?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let mut client = Client::builder()
            .timeout(Duration::from_millis(tracing.timeout_ms))
            .redirect(redirect::Policy::none())
            .user_agent(concat!("punching-fist/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers);
        if url.scheme() == "http" {
            // What is sent without TLS needs no certificates on the machine.
            client = client.tls_certs_only(std::iter::empty());
        }
        let client = client.build().map_err(|error| {
            format!(
                "tracing.otlp_endpoint: TLS cannot be set up: {}; the machine needs its CA certificates (package ca-certificates)",
                cause(&error)
            )
        })?;
        Ok(Self { client, url })
    }

    async fn post(&self, body: Vec<u8>) -> Result<otlp::PartialSuccess, NotTaken> {
        let sent = self.client.post(self.url.clone()).body(body).send().await;
        let mut response = sent.map_err(|error| NotTaken {
            reason: cause(&error),
            again_after: Some(None),
        })?;
        let status = response.status();
        if !status.is_success() {
            let asked = response.headers().get(RETRY_AFTER);
            let asked = asked.and_then(|value| value.to_str().ok()?.parse().ok());
            let asked = asked.map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
            return Err(NotTaken {
                reason: format!("it answered {status}"),
                again_after: is_passing(status).then_some(asked),
            });
        }
        let mut answer = Vec::new();
        while let Ok(Some(chunk)) = response.chunk().await {
            if answer.len() + chunk.len() > ANSWER_BYTES_MAX {
                break;
            }
            answer.extend_from_slice(&chunk);
        }
        Ok(otlp::answer(&answer))
    }
}

/// The address of traces at a receiver.
fn address(endpoint: &str) -> Result<Url, String> {
    const PATH: &str = "/v1/traces";
    let endpoint = endpoint.trim().trim_end_matches('/');
    let whole = match endpoint.ends_with(PATH) {
        true => endpoint.to_owned(),
        false => format!("{endpoint}{PATH}"),
    };
    Url::parse(&whole).map_err(|error| error.to_string())
}

/// As the protocol has it: these four pass, all others do not.
fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502 | 503 | 504)
}

/// The innermost reason: those around it name the address.
fn cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "it did not answer in time (tracing.timeout_ms)".to_owned();
    }
    let mut source = error.source();
    let mut innermost = "it cannot be reached".to_owned();
    while let Some(inner) = source {
        innermost = inner.to_string();
        source = inner.source();
    }
    innermost
}

/// Sends what comes until `closing`, and then what is left.
pub(super) async fn send(
    receiver: Receiver,
    mut spans: mpsc::Receiver<Recorded>,
    metrics: Metrics,
    closing: CancellationToken,
) {
    let mut is_warned = false;
    loop {
        let batch = next_batch(&mut spans, &closing).await;
        if batch.is_empty() {
            return;
        }
        let count = batch.len() as u64;
        let body = otlp::request(&batch);
        drop(batch);
        match deliver(&receiver, body, &closing, &mut is_warned).await {
            Ok(partial) => {
                let rejected = partial.rejected.min(count);
                metrics.spans("sent", count - rejected);
                if rejected > 0 {
                    metrics.spans("rejected", rejected);
                    tracing::warn!(
                        rejected,
                        reason = partial.message,
                        "the OTLP receiver refused spans"
                    );
                }
                if std::mem::take(&mut is_warned) {
                    tracing::info!("the OTLP receiver takes spans again");
                }
            }
            Err(_) => metrics.spans("failed", count),
        }
    }
}

/// The next spans together: as many as a request holds, or what came within a moment. Empty: there are no more.
async fn next_batch(spans: &mut mpsc::Receiver<Recorded>, closing: &CancellationToken) -> Vec<Recorded> {
    let mut batch = Vec::new();
    let mut until = None;
    while batch.len() < BATCH_SPANS_MAX {
        if closing.is_cancelled() {
            spans.close();
        }
        let room = BATCH_SPANS_MAX - batch.len();
        let linger = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            taken = spans.recv_many(&mut batch, room) => {
                if taken == 0 {
                    return batch;
                }
                until.get_or_insert_with(|| Instant::now() + LINGER);
            }
            () = closing.cancelled(), if !closing.is_cancelled() => {}
            () = linger => return batch,
        }
    }
    batch
}

/// Attempts at one batch.
async fn deliver(
    receiver: &Receiver,
    body: Vec<u8>,
    closing: &CancellationToken,
    is_warned: &mut bool,
) -> Result<otlp::PartialSuccess, ()> {
    let mut waits = AGAIN.waits();
    let attempts_max = AGAIN.attempts_max.unwrap_or(1);
    for attempt in 1..=attempts_max {
        let NotTaken { reason, again_after } = match receiver.post(body.clone()).await {
            Ok(partial) => return Ok(partial),
            Err(error) => error,
        };
        if !std::mem::replace(is_warned, true) {
            tracing::warn!(
                reason,
                "the OTLP receiver does not take spans; they are dropped and counted (fist_spans_total) while it does not"
            );
        }
        let Some(asked) = again_after else { return Err(()) };
        if attempt == attempts_max || closing.is_cancelled() {
            break;
        }
        let wait = waits.next_wait().max(asked.unwrap_or_default());
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = closing.cancelled() => {}
        }
    }
    Err(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn traces_have_an_address_of_their_own() {
        for (endpoint, expected) in [
            ("http://collector:4318", "http://collector:4318/v1/traces"),
            ("http://collector:4318/", "http://collector:4318/v1/traces"),
            ("https://a.example/otlp", "https://a.example/otlp/v1/traces"),
            ("https://a.example/v1/traces", "https://a.example/v1/traces"),
        ] {
            assert_eq!(address(endpoint).unwrap().as_str(), expected);
        }
        assert!(address("http://[").is_err());
    }

    #[test]
    fn only_what_passes_is_tried_again() {
        let passing = (400..600).filter(|code| is_passing(StatusCode::from_u16(*code).unwrap()));
        assert_eq!(passing.collect::<Vec<u16>>(), [429, 502, 503, 504]);
    }
}
