//! Spans of traces: what took how long within an execution, sent to an OTLP receiver.
//!
//! Invariants:
//! - Off, a span costs one branch: it is not even built.
//! - Nobody waits for the receiver: the queue is bounded, and what finds no room is dropped and counted.
//! - A span holds no text that a workflow, an alert, a command or a model wrote, but for names: those may hold secrets.

mod otlp;
mod sender;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use protocol::{SpanContext, SpanId, Timestamp, TraceId};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::fatal::Fatal;
use crate::metrics::Metrics;

/// How long the end of a process waits for the spans that are left.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// Bytes of a text in a span that are kept.
const TEXT_BYTES_MAX: usize = 1024;

/// Where spans go; clones share one queue.
#[derive(Clone, Default)]
pub struct Spans {
    queue: Option<Arc<Queue>>,
    service: &'static str,
}

struct Queue {
    sender: mpsc::Sender<Recorded>,
    sample_millionths: u32,
    metrics: Metrics,
    closing: CancellationToken,
    sending: Mutex<Option<JoinHandle<()>>>,
}

/// A span, and whose.
struct Recorded {
    service: &'static str,
    span: Span,
}

impl fmt::Debug for Spans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.queue.is_some() {
            "Spans(on)"
        } else {
            "Spans(off)"
        })
    }
}

/// Something that took time.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// The trace that it belongs to.
    pub trace: TraceId,
    /// Its own id.
    pub id: SpanId,
    /// The span that it is a part of; `None` for the root.
    pub parent: Option<SpanId>,
    /// What it is, in few different words.
    pub name: String,
    /// Its place between services.
    pub kind: Kind,
    /// When it began.
    pub began: Timestamp,
    /// When it ended.
    pub ended: Timestamp,
    /// More about it.
    pub attributes: Vec<(&'static str, Value)>,
    /// The class of the error that it ended with: a word of ours, never a message.
    pub error: Option<String>,
    /// A span of another trace that led to it.
    pub link: Option<SpanContext>,
}

/// A span's place between services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Within one.
    Internal,
    /// It answers somebody's request.
    Server,
    /// It asks another.
    Client,
    /// It works on a message.
    Consumer,
}

/// What an attribute says.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A text; cut after a kilobyte.
    Text(String),
    /// A number.
    Number(i64),
    /// Yes or no.
    Flag(bool),
    /// Texts.
    Texts(Vec<String>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<i32> for Value {
    fn from(number: i32) -> Self {
        Self::Number(number.into())
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl Spans {
    /// Spans of `service`, sent where the configuration says; off where it names no receiver. Must be called within
    /// the runtime where there is one to send to.
    ///
    /// # Errors
    /// Where the address is none, or TLS cannot be set up.
    pub fn start(tracing: &config::Tracing, service: &'static str, metrics: &Metrics) -> Result<Self, Fatal> {
        let Some(endpoint) = &tracing.otlp_endpoint else {
            return Ok(Self { queue: None, service });
        };
        let receiver = sender::Receiver::new(endpoint, tracing).map_err(Fatal::new)?;
        let (sender, spans) = mpsc::channel(tracing.queue_spans_max);
        let closing = CancellationToken::new();
        let sending = tokio::spawn(sender::send(receiver, spans, metrics.clone(), closing.clone()));
        let queue = Queue {
            sender,
            sample_millionths: tracing.sample_millionths,
            metrics: metrics.clone(),
            closing,
            sending: Mutex::new(Some(sending)),
        };
        Ok(Self {
            queue: Some(Arc::new(queue)),
            service,
        })
    }

    /// The same queue for another service of this process.
    pub fn part(&self, service: &'static str) -> Self {
        Self {
            queue: self.queue.clone(),
            service,
        }
    }

    /// Whether spans of this trace are recorded: the same answer in all services with the same share.
    pub fn is_recorded(&self, trace: TraceId) -> bool {
        self.queue
            .as_ref()
            .is_some_and(|queue| is_sampled(trace, queue.sample_millionths))
    }

    /// Records what `span` builds, where spans of its trace are recorded.
    pub fn record(&self, trace: TraceId, span: impl FnOnce() -> Span) {
        let Some(queue) = &self.queue else { return };
        if !is_sampled(trace, queue.sample_millionths) {
            return;
        }
        let recorded = Recorded {
            service: self.service,
            span: span(),
        };
        if queue.sender.try_send(recorded).is_err() {
            queue.metrics.spans("dropped", 1);
        }
    }

    /// The header `traceparent` of a message that is about this span; `None` where tracing is off.
    pub fn context(&self, about: impl FnOnce() -> Option<(TraceId, SpanId)>) -> Option<SpanContext> {
        let queue = self.queue.as_ref()?;
        let (trace, span) = about()?;
        Some(SpanContext {
            trace,
            span,
            is_sampled: is_sampled(trace, queue.sample_millionths),
        })
    }

    /// Sends what is left, for as long as two seconds; what is recorded afterwards is dropped.
    pub async fn close(&self) {
        let Some(queue) = &self.queue else { return };
        queue.closing.cancel();
        let sending = queue
            .sending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(sending) = sending
            && tokio::time::timeout(CLOSE_MAX, sending).await.is_err()
        {
            tracing::warn!("the OTLP receiver did not take the last spans in time");
        }
    }
}

/// The last 56 bits of a trace's id are random, and W3C and OpenTelemetry sample by them.
fn is_sampled(trace: TraceId, millionths: u32) -> bool {
    let [.., a, b, c, d, e, f, g] = *trace.as_bytes();
    let random = u64::from_be_bytes([0, a, b, c, d, e, f, g]);
    u128::from(random) * 1_000_000 < u128::from(millionths) << 56
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use protocol::ExecutionId;

    fn trace(number: usize) -> TraceId {
        TraceId::of(ExecutionId::derive(&[&number.to_string()]))
    }

    #[test]
    fn a_share_of_the_traces_is_sampled() {
        let of = |millionths| (0..10_000).filter(|n| is_sampled(trace(*n), millionths)).count();
        assert_eq!((of(0), of(1_000_000)), (0, 10_000));
        let tenth = of(100_000);
        assert!((800..1200).contains(&tenth), "{tenth} of 10,000");
        // What a small share holds, a larger one holds as well.
        assert!((0..10_000).all(|n| !is_sampled(trace(n), 100_000) || is_sampled(trace(n), 200_000)));
    }

    /// A receiver that takes connections and answers nothing.
    async fn silent(queue_spans_max: usize) -> (tokio::net::TcpListener, Spans, Metrics) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tracing = config::Tracing {
            otlp_endpoint: Some(format!("http://{}", listener.local_addr().unwrap())),
            queue_spans_max,
            ..config::Config::default().tracing
        };
        let metrics = Metrics::new();
        let spans = Spans::start(&tracing, "scheduler", &metrics).unwrap();
        (listener, spans, metrics)
    }

    fn span(number: usize) -> Span {
        let execution = ExecutionId::derive(&[&number.to_string()]);
        Span {
            trace: trace(number),
            id: SpanId::of_execution(execution),
            parent: None,
            name: "execution".to_owned(),
            kind: Kind::Internal,
            began: Timestamp::from_millis(1),
            ended: Timestamp::from_millis(2),
            attributes: Vec::new(),
            error: None,
            link: None,
        }
    }

    #[tokio::test]
    async fn what_finds_no_room_is_dropped_and_counted() {
        let (_listener, spans, metrics) = silent(16).await;
        // The sender shares this thread, and gets no turn meanwhile.
        for number in 0..100 {
            spans.record(trace(number), || span(number));
        }
        let text = metrics.encode();
        assert!(
            text.contains("fist_spans_total{outcome=\"dropped\"} 84\n"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn the_end_does_not_wait_for_a_receiver_that_is_silent() {
        let (_listener, spans, _) = silent(16).await;
        spans.record(trace(1), || span(1));
        // Less than one request may take, by default ten seconds.
        tokio::time::timeout(Duration::from_secs(8), spans.close())
            .await
            .unwrap();
        // Afterwards there is nobody to send, and nobody who waits.
        spans.record(trace(2), || span(2));
        spans.close().await;
    }

    #[test]
    fn off_a_span_is_not_even_built() {
        let spans = Spans::default();
        spans.record(trace(1), || unreachable!("tracing is off"));
        assert_eq!(spans.context(|| unreachable!("tracing is off")), None);
        assert!(!spans.is_recorded(trace(1)));
    }
}
