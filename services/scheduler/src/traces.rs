//! The spans that only the scheduler can write: the whole execution, and each attempt from when it was handed out,
//! whoever made it and whether or not they lived to tell.
//!
//! Invariant: a span is recorded after the append that it is about, so one scheduler records it, and once but for
//! crashes.

use protocol::{
    Append, Attempt, End, EndStatus, Fact, LaneAction, SpanId, StepFailure, StepName, Timestamp, TraceId,
};
use service::{
    Spans,
    spans::{Kind, Span, Value},
};

use crate::executions::Known;

/// Records what ended with `append`, which answers `fact` and is folded into `known`.
pub(crate) fn record(spans: &Spans, known: &Known, append: &Append, fact: &Fact) {
    if !spans.is_recorded(TraceId::of(known.state.start().execution)) {
        return;
    }
    if let Fact::Done(done) = fact {
        let ended = Ended {
            step: &done.step,
            attempt: done.attempt,
            status: done.outcome.status(),
            failure: done.outcome.failure(),
            began: done.started_at,
            at: done.completed_at,
        };
        attempt(spans, known, &ended);
    }
    for record in append.records.iter().filter(|record| record.status.is_terminal()) {
        let ended = Ended {
            step: &record.step,
            attempt: record.attempt,
            status: record.status.as_str(),
            failure: record.error.as_ref().map(|error| error.reason),
            began: record.at,
            at: record.at,
        };
        attempt(spans, known, &ended);
    }
    if let LaneAction::End(end) = &append.action {
        execution(spans, known, end);
    }
}

/// How an attempt ended.
struct Ended<'a> {
    step: &'a StepName,
    attempt: Attempt,
    status: &'static str,
    failure: Option<StepFailure>,
    /// When a runner began it; where none did, when it was decided.
    began: Timestamp,
    at: Timestamp,
}

fn attempt(spans: &Spans, known: &Known, ended: &Ended<'_>) {
    let start = known.state.start();
    let trace = TraceId::of(start.execution);
    let index = known.state.index_of(ended.step);
    let dispatched_at = index.and_then(|index| known.state.steps().get(index)?.dispatched_at);
    let mut attributes: Vec<(&'static str, Value)> = vec![
        ("fist.step.name", ended.step.as_str().into()),
        ("fist.step.type", known.state.step_type(ended.step).into()),
        ("fist.step.attempt", ended.attempt.get().into()),
        ("fist.step.status", ended.status.into()),
    ];
    if let Some(dispatched_at) = dispatched_at {
        let queued = ended.began.since(dispatched_at).as_millis();
        let queued = u64::try_from(queued).unwrap_or(u64::MAX);
        attributes.push(("fist.step.queued_ms", queued.into()));
    }
    spans.record(trace, || Span {
        trace,
        id: SpanId::of_attempt(start.execution, ended.step, ended.attempt),
        parent: Some(SpanId::of_execution(start.execution)),
        name: format!("step {}", ended.step),
        kind: Kind::Internal,
        began: dispatched_at.unwrap_or(ended.began),
        ended: ended.at,
        attributes,
        error: ended.failure.map(|failure| failure.as_str().to_owned()),
        link: None,
    });
}

fn execution(spans: &Spans, known: &Known, end: &End) {
    let start = known.state.start();
    let trace = TraceId::of(start.execution);
    spans.record(trace, || Span {
        trace,
        id: SpanId::of_execution(start.execution),
        parent: None,
        name: format!("execution {}", start.workflow),
        kind: Kind::Internal,
        began: known.started_at,
        ended: end.at,
        attributes: vec![
            ("fist.execution.id", start.execution.to_string().into()),
            ("fist.execution.namespace", start.namespace.as_str().into()),
            ("fist.execution.status", end.status.as_str().into()),
            ("fist.workflow.name", start.workflow.as_str().into()),
            ("fist.trigger.source", (&*start.trigger_source).into()),
        ],
        error: match end.status {
            EndStatus::Succeeded => None,
            EndStatus::Failed => Some("failed".to_owned()),
            EndStatus::Cancelled => Some("cancelled".to_owned()),
        },
        link: None,
    });
}
