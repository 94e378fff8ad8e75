//! The trace of a task as one process works on it: a span below the attempt's own, which the scheduler writes, and
//! parts below that.
//!
//! Invariant: each run of an attempt has a span of its own, also where an attempt is run again after a crash.

use protocol::{ExecutionId, SpanId, Task, Timestamp, TraceId};
use service::{
    Spans,
    spans::{Kind, Span},
};

/// One run of an attempt, for its trace; where tracing is off nearly nothing.
#[derive(Clone, Debug)]
pub struct TaskTrace {
    spans: Spans,
    execution: ExecutionId,
    run: Option<Run>,
}

/// What is only needed where the trace is recorded.
#[derive(Clone, Debug)]
struct Run {
    attempt: SpanId,
    id: SpanId,
    key: String,
    began: Timestamp,
}

impl TaskTrace {
    /// Begins a run of `task` by the process `instance`.
    pub fn begin(spans: Spans, task: &Task, instance: &str, now: Timestamp) -> Self {
        let is_recorded = spans.is_recorded(TraceId::of(task.execution));
        let run = is_recorded.then(|| {
            let key = format!("{} {} {instance} {}", task.step, task.attempt, now.as_millis());
            Run {
                attempt: SpanId::of_attempt(task.execution, &task.step, task.attempt),
                id: SpanId::of_part(task.execution, &[&key]),
                key,
                began: now,
            }
        });
        Self {
            spans,
            execution: task.execution,
            run,
        }
    }

    /// Records a part of the run, told from its others by `what`; `fill` completes the span.
    pub fn part(&self, what: &[&str], fill: impl FnOnce(&mut Span)) {
        let Some(run) = &self.run else { return };
        let id = SpanId::of_part(self.execution, &[&[run.key.as_str()], what].concat());
        self.record(id, run.id, run.began, fill);
    }

    /// Records the run itself, up to `now`; `fill` completes the span.
    pub fn end(&self, now: Timestamp, fill: impl FnOnce(&mut Span)) {
        let Some(run) = &self.run else { return };
        self.record(run.id, run.attempt, run.began, |span| {
            span.kind = Kind::Consumer;
            span.ended = now;
            fill(span);
        });
    }

    fn record(&self, id: SpanId, parent: SpanId, began: Timestamp, fill: impl FnOnce(&mut Span)) {
        let trace = TraceId::of(self.execution);
        self.spans.record(trace, || {
            let mut span = Span {
                trace,
                id,
                parent: Some(parent),
                name: String::new(),
                kind: Kind::Internal,
                began,
                ended: began,
                attributes: Vec::new(),
                error: None,
                link: None,
            };
            fill(&mut span);
            span
        });
    }
}
