//! The numbers a process gives about itself, as Prometheus reads them.
//!
//! Invariants: one registry for the whole process, however many services run
//! in it; a label's values are bounded, since names come from alerts and
//! workflows that anyone may write.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

/// Different values that one label may take; later ones are counted as `other`.
const LABEL_VALUES_MAX: usize = 200;

/// Characters of a label's value that are kept.
const LABEL_CHARS_MAX: usize = 80;

/// Steps run from milliseconds to hours: 10 ms to a day.
const STEP_SECONDS: [f64; 14] = [
    0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 7200.0, 86400.0,
];

/// Requests and calls are answered within a minute or so.
const CALL_SECONDS: [f64; 12] = [
    0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0,
];

/// A batch of the projection holds one message to some thousands.
const BATCH_MESSAGES: [f64; 9] = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0];

type Labels<const N: usize> = [(&'static str, String); N];
type Counters<const N: usize> = Family<Labels<N>, Counter>;
type Gauges<const N: usize> = Family<Labels<N>, Gauge>;
type Seconds<const N: usize> = Family<Labels<N>, Gauge<f64, AtomicU64>>;
type Histograms<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;

/// Every number of this process; clones share them.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

struct Inner {
    registry: Registry,
    seen: Mutex<BTreeMap<&'static str, BTreeSet<String>>>,
    alerts: Counters<2>,
    executions_started: Counters<1>,
    executions: Counters<1>,
    steps: Counters<2>,
    step_seconds: Histograms<2>,
    steps_running: Gauges<1>,
    queue_messages: Gauges<1>,
    queue_oldest_seconds: Seconds<1>,
    stream_filled: Seconds<1>,
    deliveries: Counters<1>,
    redeliveries: Counters<1>,
    dead_letters: Counters<1>,
    http_requests: Counters<3>,
    http_seconds: Histograms<2>,
    llm_requests: Counters<3>,
    llm_seconds: Histograms<2>,
    llm_tokens: Counters<3>,
    budget_tokens_used: Counters<1>,
    tool_calls: Counters<2>,
    tool_seconds: Histograms<1>,
    // Families without labels: only the process that writes the database
    // shows a lag, where a bare gauge would claim 0 for all the others.
    projection_messages: Gauges<0>,
    projection_seconds: Seconds<0>,
    projection_batch_messages: Histograms<0>,
    projection_batch_seconds: Histograms<0>,
    projection_rows: Counters<0>,
    spans: Counters<1>,
}

/// What one call of a model took, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Read by the model, those from its cache included.
    pub input: u64,
    /// Written by the model.
    pub output: u64,
    /// Of `input`, those that came from the provider's cache.
    pub cached: u64,
}

impl Metrics {
    /// The content type of [`Metrics::encode`].
    pub const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    /// The one registry of this process.
    pub fn global() -> Self {
        static GLOBAL: OnceLock<Metrics> = OnceLock::new();
        GLOBAL.get_or_init(Self::new).clone()
    }

    /// A registry of its own, for tests that count.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("fist");
        let step_histogram: fn() -> Histogram = || Histogram::new(STEP_SECONDS);
        let call_histogram: fn() -> Histogram = || Histogram::new(CALL_SECONDS);
        let batch_histogram: fn() -> Histogram = || Histogram::new(BATCH_MESSAGES);
        let build: Gauges<1> = add(
            &mut registry,
            "build_info",
            "Always 1; the version is its label",
            Family::default(),
        );
        build
            .get_or_create(&[("version", env!("CARGO_PKG_VERSION").to_owned())])
            .set(1);
        let inner = Inner {
            alerts: add(
                &mut registry,
                "alerts",
                "Alerts received, by source and what became of them",
                Family::default(),
            ),
            executions_started: add(
                &mut registry,
                "executions_started",
                "Executions started, by the source that triggered them",
                Family::default(),
            ),
            executions: add(
                &mut registry,
                "executions",
                "Executions ended, by status",
                Family::default(),
            ),
            steps: add(
                &mut registry,
                "steps",
                "Step attempts ended, by type and outcome",
                Family::default(),
            ),
            step_seconds: add(
                &mut registry,
                "step_duration_seconds",
                "Time from a step attempt's start to its end",
                Family::new_with_constructor(step_histogram),
            ),
            steps_running: add(
                &mut registry,
                "steps_running",
                "Step attempts that this process is working on",
                Family::default(),
            ),
            queue_messages: add(
                &mut registry,
                "queue_messages",
                "Messages that wait for a consumer",
                Family::default(),
            ),
            queue_oldest_seconds: add(
                &mut registry,
                "queue_oldest_age_seconds",
                "Age of the oldest message that waits for a consumer",
                Family::default(),
            ),
            stream_filled: add(
                &mut registry,
                "stream_filled_ratio",
                "Part of the bytes that a stream may hold which is used, from 0 to 1",
                Family::default(),
            ),
            deliveries: add(
                &mut registry,
                "deliveries",
                "Messages delivered to a consumer of this process",
                Family::default(),
            ),
            redeliveries: add(
                &mut registry,
                "redeliveries",
                "Deliveries that were not the first of their message",
                Family::default(),
            ),
            dead_letters: add(
                &mut registry,
                "dead_letters",
                "Messages given up on, by consumer",
                Family::default(),
            ),
            http_requests: add(
                &mut registry,
                "http_requests",
                "HTTP requests answered, by route, method and status",
                Family::default(),
            ),
            http_seconds: add(
                &mut registry,
                "http_request_duration_seconds",
                "Time to the head of the answer",
                Family::new_with_constructor(call_histogram),
            ),
            llm_requests: add(
                &mut registry,
                "llm_requests",
                "Calls of a model, by provider, model and outcome",
                Family::default(),
            ),
            llm_seconds: add(
                &mut registry,
                "llm_request_duration_seconds",
                "Time of one call of a model",
                Family::new_with_constructor(call_histogram),
            ),
            llm_tokens: add(
                &mut registry,
                "llm_tokens",
                "Tokens by provider, model and kind: input (cached ones included), output, cached",
                Family::default(),
            ),
            budget_tokens_used: add(
                &mut registry,
                "budget_tokens_used",
                "Tokens taken from budgets by this process, by namespace",
                Family::default(),
            ),
            tool_calls: add(
                &mut registry,
                "tool_calls",
                "Tool calls of agents, by tool and outcome",
                Family::default(),
            ),
            tool_seconds: add(
                &mut registry,
                "tool_call_duration_seconds",
                "Time of one tool call",
                Family::new_with_constructor(call_histogram),
            ),
            projection_messages: add(
                &mut registry,
                "projection_lag_messages",
                "Messages of the log that are not in the database yet",
                Family::default(),
            ),
            projection_seconds: add(
                &mut registry,
                "projection_lag_seconds",
                "Age of the oldest message of the log that is not in the database yet",
                Family::default(),
            ),
            projection_batch_messages: add(
                &mut registry,
                "projection_batch_messages",
                "Messages of the log written to the database in one transaction",
                Family::new_with_constructor(batch_histogram),
            ),
            projection_batch_seconds: add(
                &mut registry,
                "projection_batch_duration_seconds",
                "Time to write one batch, waiting for the database included",
                Family::new_with_constructor(call_histogram),
            ),
            projection_rows: add(
                &mut registry,
                "projection_rows",
                "Rows of the database inserted or changed",
                Family::default(),
            ),
            spans: add(
                &mut registry,
                "spans",
                "Spans of traces, by what became of them: sent; dropped, since the queue was full; failed or rejected by the receiver",
                Family::default(),
            ),
            seen: Mutex::default(),
            registry,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// One alert has been decided upon: `started`, `merged`, `filtered`,
    /// `resolved` or `rejected`.
    pub fn alert(&self, source: &str, disposition: &str) {
        let labels = [
            ("source", self.bounded("source", source)),
            ("disposition", self.bounded("disposition", disposition)),
        ];
        self.inner.alerts.get_or_create(&labels).inc();
    }

    /// One execution's start has been recorded.
    pub fn execution_started(&self, source: &str) {
        self.inner
            .executions_started
            .get_or_create(&[("source", self.bounded("source", source))])
            .inc();
    }

    /// One execution has ended: `Succeeded`, `Failed` or `Cancelled`.
    pub fn execution_ended(&self, status: &str) {
        self.inner
            .executions
            .get_or_create(&[("status", self.bounded("status", status))])
            .inc();
    }

    /// One step attempt has ended.
    pub fn step_ended(&self, step_type: &str, outcome: &str, duration: Duration) {
        let labels = [
            ("type", self.bounded("type", step_type)),
            ("outcome", self.bounded("outcome", outcome)),
        ];
        self.inner.steps.get_or_create(&labels).inc();
        self.inner
            .step_seconds
            .get_or_create(&labels)
            .observe(duration.as_secs_f64());
    }

    /// A step attempt is being worked on until the returned value is dropped.
    pub fn step_running(&self, step_type: &str) -> Running {
        let gauge = self
            .inner
            .steps_running
            .get_or_create_owned(&[("type", self.bounded("type", step_type))]);
        gauge.inc();
        Running { gauge }
    }

    /// How much waits for a durable consumer, and since when.
    pub fn queue(&self, consumer: &str, messages: u64, oldest: Duration) {
        let labels = [("consumer", self.bounded("consumer", consumer))];
        self.inner
            .queue_messages
            .get_or_create(&labels)
            .set(i64::try_from(messages).unwrap_or(i64::MAX));
        self.inner
            .queue_oldest_seconds
            .get_or_create(&labels)
            .set(oldest.as_secs_f64());
    }

    /// How much of what a stream may hold is used, from 0 to 1.
    pub fn stream_filled(&self, stream: &str, ratio: f64) {
        let labels = [("stream", self.bounded("stream", stream))];
        self.inner.stream_filled.get_or_create(&labels).set(ratio);
    }

    /// A message has been delivered, for the n-th time (from 1).
    pub fn delivery(&self, consumer: &str, deliveries: u64) {
        let labels = [("consumer", self.bounded("consumer", consumer))];
        self.inner.deliveries.get_or_create(&labels).inc();
        if deliveries > 1 {
            self.inner.redeliveries.get_or_create(&labels).inc();
        }
    }

    /// A message has become a dead letter.
    pub fn dead_letter(&self, consumer: &str) {
        self.inner
            .dead_letters
            .get_or_create(&[("consumer", self.bounded("consumer", consumer))])
            .inc();
    }

    /// An HTTP request has been answered. `route` is the pattern, never the path.
    pub fn http_request(&self, route: &str, method: &str, status: u16, duration: Duration) {
        let route = self.bounded("route", route);
        let method = self.bounded("method", method);
        let counted = [
            ("route", route.clone()),
            ("method", method.clone()),
            ("status", status.to_string()),
        ];
        self.inner.http_requests.get_or_create(&counted).inc();
        self.inner
            .http_seconds
            .get_or_create(&[("route", route), ("method", method)])
            .observe(duration.as_secs_f64());
    }

    /// A model has been called; `outcome` is `ok` or the kind of failure.
    pub fn llm_request(&self, provider: &str, model: &str, outcome: &str, duration: Duration) {
        let provider = self.bounded("provider", provider);
        let model = self.bounded("model", model);
        let outcome = self.bounded("outcome", outcome);
        let counted = [
            ("provider", provider.clone()),
            ("model", model.clone()),
            ("outcome", outcome),
        ];
        self.inner.llm_requests.get_or_create(&counted).inc();
        self.inner
            .llm_seconds
            .get_or_create(&[("provider", provider), ("model", model)])
            .observe(duration.as_secs_f64());
    }

    /// What a call of a model took.
    pub fn llm_tokens(&self, provider: &str, model: &str, tokens: Tokens) {
        let provider = self.bounded("provider", provider);
        let model = self.bounded("model", model);
        for (kind, count) in [
            ("input", tokens.input),
            ("output", tokens.output),
            ("cached", tokens.cached),
        ] {
            let labels = [
                ("provider", provider.clone()),
                ("model", model.clone()),
                ("kind", kind.to_owned()),
            ];
            self.inner.llm_tokens.get_or_create(&labels).inc_by(count);
        }
    }

    /// So many tokens have been taken from a namespace's budget.
    pub fn budget_tokens_used(&self, namespace: &str, tokens: u64) {
        self.inner
            .budget_tokens_used
            .get_or_create(&[("namespace", self.bounded("namespace", namespace))])
            .inc_by(tokens);
    }

    /// An agent's tool has been called; `outcome` is `ok`, `refused`, `error` and the like.
    pub fn tool_call(&self, tool: &str, outcome: &str, duration: Duration) {
        let tool = self.bounded("tool", tool);
        let outcome = self.bounded("outcome", outcome);
        self.inner
            .tool_calls
            .get_or_create(&[("tool", tool.clone()), ("outcome", outcome)])
            .inc();
        self.inner
            .tool_seconds
            .get_or_create(&[("tool", tool)])
            .observe(duration.as_secs_f64());
    }

    /// How far the database is behind the log.
    pub fn projection_lag(&self, messages: u64, oldest: Duration) {
        let messages = i64::try_from(messages).unwrap_or(i64::MAX);
        self.inner.projection_messages.get_or_create(&[]).set(messages);
        self.inner
            .projection_seconds
            .get_or_create(&[])
            .set(oldest.as_secs_f64());
    }

    /// A batch of messages has been written to the database, as so many rows.
    pub fn projection_batch(&self, messages: usize, rows: u64, duration: Duration) {
        self.inner
            .projection_batch_messages
            .get_or_create(&[])
            .observe(messages as f64);
        self.inner
            .projection_batch_seconds
            .get_or_create(&[])
            .observe(duration.as_secs_f64());
        self.inner.projection_rows.get_or_create(&[]).inc_by(rows);
    }

    /// So many spans were `sent`, `dropped`, `failed` or `rejected`.
    pub fn spans(&self, outcome: &'static str, count: u64) {
        self.inner
            .spans
            .get_or_create(&[("outcome", outcome.to_owned())])
            .inc_by(count);
    }

    /// Everything in Prometheus' text format, version 0.0.4.
    pub fn encode(&self) -> String {
        let mut open_metrics = String::new();
        if let Err(error) = text::encode(&mut open_metrics, &self.inner.registry) {
            tracing::error!(%error, "metrics cannot be written");
            return String::new();
        }
        as_prometheus_text(&open_metrics)
    }

    /// A label's value, cleaned and bounded in length and number.
    fn bounded(&self, label: &'static str, value: &str) -> String {
        let cleaned: String = value
            .chars()
            .take(LABEL_CHARS_MAX)
            .map(|c| if c.is_control() { '?' } else { c })
            .collect();
        let mut seen = self.inner.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let values = seen.entry(label).or_default();
        if values.contains(&cleaned) {
            return cleaned;
        }
        if values.len() >= LABEL_VALUES_MAX {
            return "other".to_owned();
        }
        values.insert(cleaned.clone());
        cleaned
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// A step attempt in work; see [`Metrics::step_running`].
#[derive(Debug)]
pub struct Running {
    gauge: Gauge,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

fn add<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

/// OpenMetrics names a counter without its `_total` in HELP and TYPE, which
/// readers of the older format (promtool among them) take for another metric.
fn as_prometheus_text(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len() + 1024);
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let suffix = if kind == "counter" { "_total" } else { "" };
            let text = help.take().map_or("", |(_, text)| text);
            // Writing to a String cannot fail.
            let _ = write!(
                out,
                "# HELP {name}{suffix} {text}\n# TYPE {name}{suffix} {kind}\n"
            );
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_counter_has_one_name_in_help_type_and_samples() {
        let metrics = Metrics::new();
        metrics.alert("alertmanager", "started");
        metrics.alert("alertmanager", "started");
        let text = metrics.encode();
        let alerts: Vec<&str> = text.lines().filter(|line| line.contains("fist_alerts")).collect();
        assert_eq!(
            alerts,
            [
                "# HELP fist_alerts_total Alerts received, by source and what became of them.",
                "# TYPE fist_alerts_total counter",
                "fist_alerts_total{source=\"alertmanager\",disposition=\"started\"} 2",
            ]
        );
        assert!(!text.contains("# EOF"));
    }

    #[test]
    fn hostile_names_neither_break_the_text_nor_fill_the_memory() {
        let metrics = Metrics::new();
        metrics.llm_request("x\"} 1\nfake 7", "m\\", "ok", Duration::ZERO);
        for n in 0..2 * LABEL_VALUES_MAX {
            metrics.alert(&format!("source-{n}"), "started");
        }
        let text = metrics.encode();
        assert!(!text.contains("\nfake"));
        let sources = text
            .lines()
            .filter(|line| line.starts_with("fist_alerts_total{"))
            .count();
        assert_eq!(sources, LABEL_VALUES_MAX + 1);
        assert!(text.contains("fist_alerts_total{source=\"other\",disposition=\"started\"} 200"));
    }

    #[test]
    fn only_who_writes_the_database_shows_its_lag() {
        let metrics = Metrics::new();
        let lag = |metrics: &Metrics| {
            let text = metrics.encode();
            text.lines()
                .filter(|line| line.starts_with("fist_projection"))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(lag(&metrics), [""; 0]);
        metrics.projection_lag(3, Duration::from_millis(1500));
        assert_eq!(
            lag(&metrics),
            [
                "fist_projection_lag_messages{} 3",
                "fist_projection_lag_seconds{} 1.5"
            ]
        );
    }

    #[test]
    fn a_running_step_counts_until_it_is_dropped() {
        let metrics = Metrics::new();
        let running = metrics.step_running("cli");
        assert!(metrics.encode().contains("fist_steps_running{type=\"cli\"} 1"));
        drop(running);
        assert!(metrics.encode().contains("fist_steps_running{type=\"cli\"} 0"));
    }
}
