//! Spans as OTLP writes them: the message `ExportTraceServiceRequest` of opentelemetry-proto 1.x in protobuf's wire
//! format, and what its answer says.
//!
//! Invariant: numbers of fields are those of the published `.proto` files, which never change; a test holds what their
//! own generated code writes.

use protocol::{SpanContext, Timestamp};

use super::{Kind, Recorded, Span, TEXT_BYTES_MAX, Value};

/// Who made these spans.
const SCOPE: &str = "punching-fist";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The body of one request with all of `spans`, those of each service together.
pub(super) fn request(spans: &[Recorded]) -> Vec<u8> {
    let mut services: Vec<&'static str> = spans.iter().map(|recorded| recorded.service).collect();
    services.sort_unstable();
    services.dedup();
    let mut request = Message::default();
    for service in services {
        request.message(1, |resource_spans| {
            resource_spans.message(1, |resource| {
                resource.attribute(1, "service.name", &service.into());
                resource.attribute(1, "service.namespace", &SCOPE.into());
                resource.attribute(1, "service.version", &VERSION.into());
            });
            resource_spans.message(2, |scope_spans| {
                scope_spans.message(1, |scope| {
                    scope.text(1, SCOPE);
                    scope.text(2, VERSION);
                });
                for recorded in spans.iter().filter(|recorded| recorded.service == service) {
                    scope_spans.message(2, |message| write(message, &recorded.span));
                }
            });
        });
    }
    request.bytes
}

fn write(message: &mut Message, span: &Span) {
    message.bytes(1, span.trace.as_bytes());
    message.bytes(2, span.id.as_bytes());
    if let Some(parent) = span.parent {
        message.bytes(4, parent.as_bytes());
    }
    message.text(5, &span.name);
    message.number(6, kind(span.kind));
    message.fixed64(7, nanos(span.began));
    message.fixed64(8, nanos(span.ended.max(span.began)));
    for (key, value) in &span.attributes {
        message.attribute(9, key, value);
    }
    if let Some(error) = &span.error {
        message.attribute(9, "error.type", &error.as_str().into());
    }
    if let Some(link) = &span.link {
        message.message(13, |message| write_link(message, link));
    }
    if let Some(error) = &span.error {
        message.message(15, |status| {
            status.text(2, error);
            status.number(3, STATUS_ERROR);
        });
    }
    message.fixed32(16, FLAG_SAMPLED);
}

fn write_link(message: &mut Message, link: &SpanContext) {
    message.bytes(1, link.trace.as_bytes());
    message.bytes(2, link.span.as_bytes());
    message.fixed32(6, u32::from(link.is_sampled) | FLAGS_REMOTE);
}

const STATUS_ERROR: u64 = 2;
const FLAG_SAMPLED: u32 = 1;
/// It is known that the span is of another process.
const FLAGS_REMOTE: u32 = 0x300;

fn kind(kind: Kind) -> u64 {
    match kind {
        Kind::Internal => 1,
        Kind::Server => 2,
        Kind::Client => 3,
        Kind::Consumer => 5,
    }
}

fn nanos(at: Timestamp) -> u64 {
    u64::try_from(at.as_millis())
        .unwrap_or(0)
        .saturating_mul(1_000_000)
}

/// As much of a text as is kept.
fn cut(text: &str) -> &str {
    match text.len() {
        0..=TEXT_BYTES_MAX => text,
        _ => &text[..text.floor_char_boundary(TEXT_BYTES_MAX)],
    }
}

/// A protobuf message while it is written.
#[derive(Default)]
struct Message {
    bytes: Vec<u8>,
}

// The wire types of protobuf.
const VARINT: u64 = 0;
const I64: u64 = 1;
const LEN: u64 = 2;
const I32: u64 = 5;

impl Message {
    fn varint(&mut self, mut number: u64) {
        while number > 0x7f {
            self.bytes.push((number as u8 & 0x7f) | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    fn field(&mut self, field: u64, wire: u64) {
        self.varint(field << 3 | wire);
    }

    fn number(&mut self, field: u64, number: u64) {
        self.field(field, VARINT);
        self.varint(number);
    }

    fn fixed64(&mut self, field: u64, number: u64) {
        self.field(field, I64);
        self.bytes.extend_from_slice(&number.to_le_bytes());
    }

    fn fixed32(&mut self, field: u64, number: u32) {
        self.field(field, I32);
        self.bytes.extend_from_slice(&number.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.field(field, LEN);
        self.varint(bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
    }

    fn text(&mut self, field: u64, text: &str) {
        self.bytes(field, cut(text).as_bytes());
    }

    fn message(&mut self, field: u64, write: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        write(&mut inner);
        self.bytes(field, &inner.bytes);
    }

    fn attribute(&mut self, field: u64, key: &str, value: &Value) {
        self.message(field, |attribute| {
            attribute.text(1, key);
            attribute.message(2, |any| any.value(value));
        });
    }

    /// The fields of an `AnyValue`.
    fn value(&mut self, value: &Value) {
        match value {
            Value::Text(text) => self.text(1, text),
            Value::Flag(flag) => self.number(2, u64::from(*flag)),
            Value::Number(number) => self.number(3, number.cast_unsigned()),
            Value::Texts(texts) => self.message(5, |list| {
                for text in texts {
                    list.message(1, |any| any.text(1, text));
                }
            }),
        }
    }
}

/// What the receiver did not want of a request that it took: `ExportTraceServiceResponse`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PartialSuccess {
    /// So many spans.
    pub(super) rejected: u64,
    /// The reason, in its words.
    pub(super) message: String,
}

/// Reads an answer. What is not understood of it counts as nothing: the request was taken.
pub(super) fn answer(body: &[u8]) -> PartialSuccess {
    let mut partial = PartialSuccess::default();
    let Some(inner) = Fields(body).find_map(|(field, value)| match value {
        Field::Bytes(bytes) if field == 1 => Some(bytes),
        _ => None,
    }) else {
        return partial;
    };
    for (field, value) in Fields(inner) {
        match (field, value) {
            (1, Field::Number(rejected)) => partial.rejected = rejected,
            (2, Field::Bytes(text)) => {
                partial.message = cut(&String::from_utf8_lossy(text)).to_owned();
            }
            _ => {}
        }
    }
    partial
}

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, up to one that cannot be read.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn take(&mut self, bytes: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(bytes).ok()?)?;
        self.0 = rest;
        Some(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, Field<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            VARINT => Field::Number(self.varint()?),
            LEN => {
                let length = self.varint()?;
                Field::Bytes(self.take(length)?)
            }
            I64 => Field::Bytes(self.take(8)?),
            I32 => Field::Bytes(self.take(4)?),
            _ => return None,
        };
        Some((tag >> 3, value))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use protocol::{Attempt, ExecutionId, SpanId, StepName, TraceId};

    use super::*;

    #[test]
    fn a_request_is_what_the_published_definitions_write() {
        let execution: ExecutionId = "01932f4e-7a4b-7c3d-9f10-2a4b6c8d0e1f".parse().unwrap();
        let step = StepName::new("check").unwrap();
        let at = |ms| Timestamp::from_millis(1_795_445_258_123_i64 + ms);
        let span = Span {
            trace: TraceId::of(execution),
            id: SpanId::of_attempt(execution, &step, Attempt::FIRST),
            parent: Some(SpanId::of_execution(execution)),
            name: "step check".to_owned(),
            kind: Kind::Consumer,
            began: at(0),
            ended: at(1500),
            attributes: vec![
                ("text", "ü".into()),
                ("number", (-7).into()),
                ("flag", true.into()),
                ("texts", Value::Texts(vec!["a".to_owned(), "b".to_owned()])),
            ],
            error: Some("timeout".to_owned()),
            link: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
                .parse()
                .ok(),
        };
        let root = Span {
            id: SpanId::of_execution(execution),
            parent: None,
            name: "x".repeat(3000),
            kind: Kind::Internal,
            attributes: Vec::new(),
            error: None,
            link: None,
            ..span.clone()
        };
        let recorded =
            [("scheduler", span), ("cli-runner", root)].map(|(service, span)| Recorded { service, span });
        let hex: String = request(&recorded)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        expect_test::expect_file!["otlp.hex"].assert_eq(&format!("{hex}\n"));
    }

    #[test]
    fn an_answer_says_what_was_not_wanted() {
        // partial_success { rejected_spans: 300, error_message: "no" }
        let body = [0x0a, 7, 0x08, 0xac, 0x02, 0x12, 2, b'n', b'o'];
        let partial = answer(&body);
        assert_eq!((partial.rejected, partial.message.as_str()), (300, "no"));
        for nothing in [&b""[..], b"{}", b"\x0a\xff", &[0xff; 20], b"<html>"] {
            assert_eq!(answer(nothing), PartialSuccess::default(), "{nothing:?}");
        }
    }
}
