//! Traces: an execution is one trace. The ids of its spans follow from what they are about, so that every service
//! knows the parent of its own spans without being told, and a service that goes on after a crash gives the same.
//!
//! Invariant: never change how an id follows; traces of one execution may be written by services of two versions.

use std::{fmt, str::FromStr};

use uuid::Uuid;

use crate::{
    ids::{Attempt, ExecutionId, StepName},
    subjects::Subject,
};

/// The header of NATS messages and HTTP requests that names the span behind them (W3C Trace Context).
pub const TRACEPARENT: &str = "traceparent";

/// The UUIDv5 name space of span ids.
const SPANS: Uuid = Uuid::from_u128(0x0b9e_21f6_5d0a_5c7e_9a44_7d31_c80f_5e12);

/// A trace: 16 bytes, an execution's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 16]);

/// A span of a trace: 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpanId([u8; 8]);

impl TraceId {
    /// The trace of an execution: its id without the hyphens.
    pub fn of(execution: ExecutionId) -> Self {
        Self(execution.as_uuid().into_bytes())
    }

    /// The bytes as they travel.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl SpanId {
    /// The span of a whole execution, the root of its trace.
    pub fn of_execution(execution: ExecutionId) -> Self {
        Self::derived(execution, &["execution"])
    }

    /// The span of one attempt at a step, from when it was handed out to its end.
    pub fn of_attempt(execution: ExecutionId, step: &StepName, attempt: Attempt) -> Self {
        Self::derived(execution, &["attempt", step.as_str(), &attempt.to_string()])
    }

    /// A further span of an execution, told from its others by `parts`.
    pub fn of_part(execution: ExecutionId, parts: &[&str]) -> Self {
        Self::derived(execution, &[&["part"], parts].concat())
    }

    fn derived(execution: ExecutionId, parts: &[&str]) -> Self {
        let mut name = execution.as_uuid().into_bytes().to_vec();
        for part in parts {
            name.extend_from_slice(&(part.len() as u64).to_be_bytes());
            name.extend_from_slice(part.as_bytes());
        }
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&Uuid::new_v5(&SPANS, &name).into_bytes()[..8]);
        // Zero stands for no span.
        match bytes {
            [0, 0, 0, 0, 0, 0, 0, 0] => Self([0, 0, 0, 0, 0, 0, 0, 1]),
            bytes => Self(bytes),
        }
    }

    /// The bytes as they travel.
    pub fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

/// Names a span in any trace, as the header `traceparent` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpanContext {
    /// The trace.
    pub trace: TraceId,
    /// The span.
    pub span: SpanId,
    /// Whether the span is recorded.
    pub is_sampled: bool,
}

impl fmt::Display for SpanContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "00-{:032x}-{:016x}-{:02x}",
            u128::from_be_bytes(self.trace.0),
            u64::from_be_bytes(self.span.0),
            u8::from(self.is_sampled)
        )
    }
}

/// A text that is no `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not of the form 00-<32 hexadecimal digits>-<16 hexadecimal digits>-<2 hexadecimal digits>")]
pub struct NotATraceparent;

impl FromStr for SpanContext {
    type Err = NotATraceparent;

    fn from_str(text: &str) -> Result<Self, NotATraceparent> {
        // A later version may add parts behind these.
        let mut parts = text.splitn(5, '-');
        let mut next = |digits: usize| {
            parts
                .next()
                .filter(|part| part.len() == digits)
                .filter(|part| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
                .ok_or(NotATraceparent)
        };
        let (version, trace, span, flags) = (next(2)?, next(32)?, next(16)?, next(2)?);
        let is_known = version != "ff" && (version != "00" || parts.next().is_none());
        let number = |hex: &str| u128::from_str_radix(hex, 16).map_err(|_| NotATraceparent);
        let (trace, span, flags) = (number(trace)?, number(span)? as u64, number(flags)?);
        if !is_known || trace == 0 || span == 0 {
            return Err(NotATraceparent);
        }
        Ok(Self {
            trace: TraceId(trace.to_be_bytes()),
            span: SpanId(span.to_be_bytes()),
            is_sampled: flags & 1 == 1,
        })
    }
}

impl Subject {
    /// The span that a message on this subject is about: an attempt's where the subject names one, else that of
    /// the whole execution; `None` where it belongs to none.
    pub fn span(&self) -> Option<(TraceId, SpanId)> {
        let (_, execution) = self.execution()?;
        let span = match self {
            Self::Begun(_, _, step, attempt)
            | Self::Done(_, _, step, attempt)
            | Self::Turn(_, _, step, attempt, _)
            | Self::Live(_, _, step, attempt) => SpanId::of_attempt(execution, step, *attempt),
            _ => SpanId::of_execution(execution),
        };
        Some((TraceId::of(execution), span))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::ids::Namespace;

    fn execution() -> ExecutionId {
        "01932f4e-7a4b-7c3d-9f10-2a4b6c8d0e1f".parse().unwrap()
    }

    #[test]
    fn ids_follow_from_what_they_are_about() {
        let step = StepName::new("check").unwrap();
        let second = Attempt::try_from(2).unwrap();
        let context = |span| SpanContext {
            trace: TraceId::of(execution()),
            span,
            is_sampled: true,
        };
        // These very ids are in traces already: they must never change.
        for (span, expected) in [
            (SpanId::of_execution(execution()), "b8cb22d14d3156e6"),
            (
                SpanId::of_attempt(execution(), &step, Attempt::FIRST),
                "693deee2d6ed532b",
            ),
            (SpanId::of_attempt(execution(), &step, second), "ed2bf68672ca592b"),
            (
                SpanId::of_part(execution(), &["check", "run"]),
                "176f89feb96e5227",
            ),
        ] {
            assert_eq!(
                context(span).to_string(),
                format!("00-01932f4e7a4b7c3d9f102a4b6c8d0e1f-{expected}-01")
            );
        }
    }

    #[test]
    fn a_subject_tells_which_span_it_is_about() {
        let (ns, step) = (Namespace::default(), StepName::new("check").unwrap());
        let done = Subject::Done(ns.clone(), execution(), step.clone(), Attempt::FIRST);
        let attempt = SpanId::of_attempt(execution(), &step, Attempt::FIRST);
        assert_eq!(done.span(), Some((TraceId::of(execution()), attempt)));
        let root = SpanId::of_execution(execution());
        let start = Subject::Start(ns, execution());
        assert_eq!(start.span(), Some((TraceId::of(execution()), root)));
        let source = crate::ids::SourceName::new("web").unwrap();
        assert_eq!(Subject::Intake(source).span(), None);
    }

    #[test]
    fn a_traceparent_is_read_strictly() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context: SpanContext = good.parse().unwrap();
        assert!(context.is_sampled);
        assert_eq!(context.to_string(), good);
        let unsampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        assert!(!unsampled.parse::<SpanContext>().unwrap().is_sampled);
        assert!(format!("cc{}-more", &good[2..]).parse::<SpanContext>().is_ok());
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(bad.parse::<SpanContext>(), Err(NotATraceparent), "{bad}");
        }
    }
}
