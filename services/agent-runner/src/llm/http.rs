//! One streamed call of a provider over HTTP: deadlines, the end of a stream, and what is tried again.
//!
//! Invariants:
//! - Tried again: 408, 429, 5xx and 529, a connection that failed or broke off, a stream without its end.
//!   Never: 400, 401, 403, 404 and the other 4xx, an exhausted quota, an answer that we cannot read.
//! - `Retry-After` is honoured; where it, or our own pause, would end after the deadline, the call fails now.
//! - Redirects are not followed (`web.rs`): they could carry the key elsewhere.

use std::{future::Future, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt as _;
use protocol::turns::Usage;
use reqwest::{StatusCode, header::HeaderMap};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Answer, LlmError, LlmErrorKind, sse, sum};
use crate::web::cause;

/// Bytes of an error's body that are read.
const ERROR_BYTES_MAX: usize = 64 * 1024;
/// Characters of a provider's message that an error shows.
const ERROR_CHARS_MAX: usize = 600;
/// Bytes of one answer's stream.
const STREAM_BYTES_MAX: usize = 32 * 1024 * 1024;

/// How patient a call is.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// To connect.
    pub connect: Duration,
    /// From the request until the first byte of the answer.
    pub first_byte: Duration,
    /// Between two pieces of the answer.
    pub idle: Duration,
    /// Attempts after the first.
    pub retries_max: u32,
    /// The pause before the first retry; doubled each time.
    pub pause: Duration,
    /// The longest pause of our own.
    pub pause_max: Duration,
}

/// Whom an error names, and what it must not show.
pub struct Caller<'a> {
    /// The provider.
    pub provider: &'static str,
    /// The model.
    pub model: &'a str,
    /// The key, which is cut out of every text.
    pub key: Option<&'a str>,
    /// Where the key comes from, for the remedy.
    pub key_source: &'a str,
}

/// Why one attempt gave no answer.
#[derive(Debug)]
pub struct Failed {
    /// What happened, and the remedy.
    pub message: String,
    /// Whether, and after how long at least, another attempt makes sense.
    pub again: Again,
    /// What the attempt cost, as far as is known.
    pub usage: Usage,
}

/// Whether another attempt makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// It does not.
    Never,
    /// It does, after a pause of our own choice.
    Soon,
    /// It does, not before this.
    After(Duration),
}

impl Failed {
    /// An attempt that broke off: worth another.
    pub fn broken(message: impl Into<String>) -> Self {
        Self::new(message, Again::Soon)
    }

    /// An attempt whose repetition would end the same way.
    pub fn for_good(message: impl Into<String>) -> Self {
        Self::new(message, Again::Never)
    }

    fn new(message: impl Into<String>, again: Again) -> Self {
        Self {
            message: message.into(),
            again,
            usage: Usage::default(),
        }
    }
}

/// Reads the events of one answer.
pub trait Reader: Send {
    /// Takes one event; true when it was the last.
    ///
    /// # Errors
    /// When the event is none that can be, or is an error of the provider.
    fn event(&mut self, event: &sse::Event) -> Result<bool, Failed>;
    /// What is known of the cost so far.
    fn usage(&self) -> Usage;
    /// The answer, after the last event.
    ///
    /// # Errors
    /// When what came does not make an answer.
    fn finish(self: Box<Self>) -> Result<Answer, Failed>;
}

/// Repeats `attempt` as its failures deserve, until the deadline.
///
/// # Errors
/// The last failure, with everything that the attempts cost.
pub async fn persist<F, A>(
    caller: &Caller<'_>,
    patience: &Patience,
    deadline: Instant,
    mut attempt: F,
) -> Result<Answer, LlmError>
where
    F: FnMut() -> A,
    A: Future<Output = Result<Answer, Failed>>,
{
    let mut spent = Usage::default();
    let mut tries = 0;
    loop {
        let outcome = timeout_at(deadline, attempt()).await;
        let failed = match outcome {
            Ok(Ok(answer)) => {
                let usage = sum(spent, answer.usage);
                return Ok(Answer { usage, ..answer });
            }
            Ok(Err(failed)) => failed,
            Err(_) => {
                let message = "the time for this step was over before the answer was complete".to_owned();
                return Err(caller.error(message, LlmErrorKind::Deadline, spent));
            }
        };
        spent = sum(spent, failed.usage);
        let pause = match failed.again {
            Again::Never => return Err(caller.error(failed.message, LlmErrorKind::Permanent, spent)),
            _ if tries >= patience.retries_max => {
                let message = format!("{} (tried {} times)", failed.message, tries + 1);
                return Err(caller.error(message, LlmErrorKind::Exhausted, spent));
            }
            Again::Soon => pause(patience, tries, jitter()),
            Again::After(after) => after.max(pause(patience, tries, jitter()).min(patience.pause)),
        };
        if Instant::now() + pause >= deadline {
            let seconds = pause.as_secs_f64();
            let message = format!(
                "{}; the next attempt, {seconds:.1} s later, would be after this step's time",
                failed.message
            );
            return Err(caller.error(message, LlmErrorKind::Deadline, spent));
        }
        tracing::warn!(
            provider = caller.provider,
            model = caller.model,
            attempt = tries + 1,
            pause_ms = pause.as_millis(),
            reason = caller.without_key(&failed.message),
            "the model is asked again"
        );
        sleep(pause).await;
        tries += 1;
    }
}

/// The pause before retry `tries` (from 0): doubled each time, then between half and all of it.
fn pause(patience: &Patience, tries: u32, jitter: f64) -> Duration {
    let whole = patience
        .pause
        .saturating_mul(1_u32.checked_shl(tries).unwrap_or(u32::MAX))
        .min(patience.pause_max);
    whole.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0)
}

/// A number between 0 and 1 that differs between processes and calls.
fn jitter() -> f64 {
    // The last 32 bits of a UUIDv7 are random.
    let [.., a, b, c, d] = *uuid::Uuid::now_v7().as_bytes();
    f64::from(u32::from_be_bytes([a, b, c, d])) / f64::from(u32::MAX)
}

impl Caller<'_> {
    fn error(&self, message: String, kind: LlmErrorKind, usage: Usage) -> LlmError {
        LlmError {
            provider: self.provider,
            model: self.model.to_owned(),
            message: self.without_key(&message),
            kind,
            usage,
        }
    }

    /// `text` without the key, should a server or a library have repeated it.
    fn without_key(&self, text: &str) -> String {
        match self.key {
            Some(key) if !key.is_empty() => text.replace(key, service::config::REDACTED),
            _ => text.to_owned(),
        }
    }

    /// Makes one request and reads its answer to the end.
    ///
    /// # Errors
    /// Whatever keeps it from a whole answer.
    pub async fn stream(
        &self,
        patience: &Patience,
        request: reqwest::RequestBuilder,
        mut reader: Box<dyn Reader>,
    ) -> Result<Answer, Failed> {
        let first_byte_at = Instant::now() + patience.first_byte;
        let late = || {
            let seconds = patience.first_byte.as_secs_f64();
            Failed::broken(format!(
                "no byte of an answer within {seconds} s (llm.first_byte_timeout_ms)"
            ))
        };
        let response = timeout_at(first_byte_at, request.send())
            .await
            .map_err(|_| late())?
            .map_err(|error| sending_failed(&error))?;
        if response.status() != StatusCode::OK {
            return Err(self.refused(response, patience).await);
        }
        require_event_stream(response.headers())?;
        let mut stream = Box::pin(response.bytes_stream());
        let mut parser = sse::Parser::default();
        let mut until = first_byte_at;
        let mut bytes = 0;
        let outcome: Result<(), Failed> = loop {
            let piece = match timeout_at(until, stream.next()).await {
                Err(_) if bytes == 0 => break Err(late()),
                Err(_) => {
                    let seconds = patience.idle.as_secs_f64();
                    break Err(Failed::broken(format!(
                        "the answer stopped for {seconds} s (llm.idle_timeout_ms)"
                    )));
                }
                Ok(None) => break Err(Failed::broken("the answer broke off before its end")),
                Ok(Some(Err(error))) => {
                    break Err(Failed::broken(format!("the answer broke off: {}", cause(&error))));
                }
                Ok(Some(Ok(piece))) => piece,
            };
            bytes += piece.len();
            if bytes > STREAM_BYTES_MAX {
                break Err(Failed::for_good(format!(
                    "the answer has more than {STREAM_BYTES_MAX} bytes"
                )));
            }
            until = Instant::now() + patience.idle;
            match take(&mut parser, &piece, reader.as_mut()) {
                Ok(false) => {}
                Ok(true) => break Ok(()),
                Err(failed) => break Err(failed),
            }
        };
        let usage = reader.usage();
        let with_usage = |failed: Failed| Failed { usage, ..failed };
        outcome.map_err(with_usage)?;
        reader.finish().map_err(with_usage)
    }

    async fn refused(&self, response: reqwest::Response, patience: &Patience) -> Failed {
        let status = response.status();
        let after = retry_after(response.headers());
        let body = error_body(response, patience).await;
        let (kind, message) = error_text(&body);
        let shown: String = message.chars().take(ERROR_CHARS_MAX).collect();
        let said = match (kind.is_empty(), shown.is_empty()) {
            (true, true) => String::new(),
            (true, false) => format!(" ({shown})"),
            (false, true) => format!(" ({kind})"),
            (false, false) => format!(" ({kind}: {shown})"),
        };
        let remedy = self.remedy(status, &kind, &message);
        let again = match status.as_u16() {
            429 if is_quota(&kind, &message) => Again::Never,
            408 | 429 | 500..=599 => after.map_or(Again::Soon, Again::After),
            _ => Again::Never,
        };
        Failed::new(format!("answered {}{said}: {remedy}", status.as_u16()), again)
    }

    fn remedy(&self, status: StatusCode, kind: &str, message: &str) -> String {
        let lower = message.to_lowercase();
        match status.as_u16() {
            400 | 404 | 422 if lower.contains("tool") && lower.contains("support") => {
                "this model cannot call tools, and an agent needs them; choose another model".to_owned()
            }
            400 | 413 | 422 => "the request was refused as it is; check llm_config (model, max_tokens, temperature, endpoint)".to_owned(),
            401 => format!("the key was refused; check {}", self.key_source),
            402 => "the account has no credit left; add some, or use another key".to_owned(),
            403 => format!("the key may not do this; check what {} is allowed, and the model", self.key_source),
            404 => "there is no such model or address; check llm_config.model and the endpoint".to_owned(),
            429 if is_quota(kind, message) => "the quota is exhausted; raise it, or use another key".to_owned(),
            429 => "too many requests; fewer at one time (agent.concurrency), or a higher limit".to_owned(),
            300..=399 => "it redirects, which is not followed; use the address it points to".to_owned(),
            _ => "the provider has a problem of its own; see its status page".to_owned(),
        }
    }
}

/// Feeds a piece to the reader; true when the answer is complete.
fn take(parser: &mut sse::Parser, piece: &Bytes, reader: &mut dyn Reader) -> Result<bool, Failed> {
    for event in parser.push(piece).map_err(Failed::broken)? {
        if reader.event(&event)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn require_event_stream(headers: &HeaderMap) -> Result<(), Failed> {
    let content_type = headers
        .get("content-type")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    if content_type.to_ascii_lowercase().starts_with("text/event-stream") {
        return Ok(());
    }
    Err(Failed::for_good(format!(
        "answered 200 with content type `{}` instead of a stream of events: check that the endpoint is the provider's \
         API, and can stream",
        content_type.chars().take(80).collect::<String>()
    )))
}

fn sending_failed(error: &reqwest::Error) -> Failed {
    let what = if error.is_connect() {
        "cannot connect"
    } else {
        "the request failed"
    };
    let message = format!(
        "{what}: {}; check the endpoint's address, and that it can be reached",
        cause(error)
    );
    if error.is_builder() {
        return Failed::for_good(message);
    }
    Failed::broken(message)
}

/// When the provider wants to be asked again.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::trim)
    };
    if let Some(ms) = text("retry-after-ms").and_then(|text| text.parse::<u64>().ok()) {
        return Some(Duration::from_millis(ms));
    }
    let value = text("retry-after")?;
    if let Some(seconds) = value
        .parse::<f64>()
        .ok()
        .filter(|seconds| seconds.is_finite() && *seconds >= 0.0)
    {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let at = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
    let ms = at.as_millisecond() - jiff::Timestamp::now().as_millisecond();
    Some(Duration::from_millis(u64::try_from(ms).unwrap_or(0)))
}

async fn error_body(response: reqwest::Response, patience: &Patience) -> Vec<u8> {
    let mut body = Vec::new();
    let mut stream = Box::pin(response.bytes_stream());
    let until = Instant::now() + patience.idle;
    while let Ok(Some(Ok(piece))) = timeout_at(until, stream.next()).await {
        body.extend_from_slice(&piece);
        if body.len() >= ERROR_BYTES_MAX {
            break;
        }
    }
    body.truncate(ERROR_BYTES_MAX);
    body
}

/// Kind and message of an error's body, in either dialect.
pub fn error_text(body: &[u8]) -> (String, String) {
    let Ok(value) = serde_json::from_slice::<Value>(body) else {
        let text = String::from_utf8_lossy(body);
        return (
            String::new(),
            text.split_whitespace().collect::<Vec<_>>().join(" "),
        );
    };
    let error = value.get("error").unwrap_or(&value);
    let text = |key: &str| {
        error
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    // OpenAI puts the exact reason into `code`, Anthropic has `type` alone.
    let kind = Some(text("code"))
        .filter(|code| !code.is_empty())
        .unwrap_or_else(|| text("type"));
    let message = error.as_str().map_or_else(|| text("message"), str::to_owned);
    (kind, message)
}

/// Whether a 429 says that there is nothing left, rather than that it was too fast.
fn is_quota(kind: &str, message: &str) -> bool {
    let message = message.to_lowercase();
    matches!(
        kind,
        "insufficient_quota" | "billing_hard_limit_reached" | "billing_error"
    ) || message.contains("exceeded your current quota")
        || message.contains("credit balance")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::cell::Cell;

    use reqwest::header::HeaderValue;

    use super::{super::Stop, *};

    const PATIENCE: Patience = Patience {
        connect: Duration::from_secs(1),
        first_byte: Duration::from_secs(1),
        idle: Duration::from_secs(1),
        retries_max: 3,
        pause: Duration::from_secs(1),
        pause_max: Duration::from_secs(30),
    };

    fn caller() -> Caller<'static> {
        Caller {
            provider: "mock",
            model: "m",
            key: Some("sk-hidden"),
            key_source: "MOCK_KEY",
        }
    }

    fn answer(tokens: u64) -> Answer {
        Answer {
            text: String::new(),
            calls: vec![],
            stop: Stop::Finished,
            stop_reason: "end_turn".into(),
            usage: Usage {
                input_tokens: tokens,
                ..Usage::default()
            },
            model: None,
        }
    }

    /// Runs a list of outcomes; gives the result, the attempts and the (virtual) seconds that passed.
    async fn run(
        outcomes: Vec<Result<Answer, Failed>>,
        deadline_s: u64,
    ) -> (Result<Answer, LlmError>, usize, f64) {
        let begun = Instant::now();
        let attempts = Cell::new(0);
        let mut outcomes = outcomes.into_iter();
        let deadline = begun + Duration::from_secs(deadline_s);
        let result = persist(&caller(), &PATIENCE, deadline, || {
            attempts.set(attempts.get() + 1);
            std::future::ready(outcomes.next().expect("no attempt too many"))
        })
        .await;
        (result, attempts.get(), begun.elapsed().as_secs_f64())
    }

    #[tokio::test(start_paused = true)]
    async fn retries_wait_longer_each_time_and_add_up_the_cost() {
        let failed = |tokens| {
            Err(Failed {
                usage: answer(tokens).usage,
                ..Failed::broken("x")
            })
        };
        let (result, attempts, seconds) = run(vec![failed(1), failed(20), Ok(answer(300))], 600).await;
        assert_eq!(result.unwrap().usage.input_tokens, 321);
        assert_eq!(attempts, 3);
        assert!((1.5..=3.01).contains(&seconds), "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn retry_after_is_honoured_exactly() {
        let after = Failed::new("slow down", Again::After(Duration::from_secs(42)));
        let (result, _, seconds) = run(vec![Err(after), Ok(answer(1))], 600).await;
        assert!(result.is_ok());
        assert!((42.0..42.1).contains(&seconds), "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_beyond_the_deadline_is_not_begun() {
        let after = Failed::new("slow down", Again::After(Duration::from_secs(42)));
        let (result, attempts, seconds) = run(vec![Err(after)], 10).await;
        let error = result.unwrap_err();
        assert_eq!((error.kind, attempts), (LlmErrorKind::Deadline, 1));
        assert!(seconds < 0.1 && error.message.contains("42.0 s later"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_for_good_is_tried_once_and_what_is_not_is_tried_so_often() {
        let (result, attempts, _) = run(vec![Err(Failed::for_good("key sk-hidden refused"))], 600).await;
        assert_eq!(attempts, 1);
        assert_eq!(result.unwrap_err().to_string(), "mock (m): key (hidden) refused");
        let (result, attempts, _) = run((0..4).map(|_| Err(Failed::broken("x"))).collect(), 600).await;
        assert_eq!((result.unwrap_err().kind, attempts), (LlmErrorKind::Exhausted, 4));
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_ends_at_the_deadline() {
        let deadline = Instant::now() + Duration::from_secs(5);
        let result = persist(
            &caller(),
            &PATIENCE,
            deadline,
            std::future::pending::<Result<Answer, Failed>>,
        )
        .await;
        assert_eq!(result.unwrap_err().kind, LlmErrorKind::Deadline);
        assert_eq!(Instant::now(), deadline);
    }

    #[test]
    fn pauses_double_up_to_their_limit() {
        let seconds: Vec<f64> = (0..8)
            .map(|tries| pause(&PATIENCE, tries, 1.0).as_secs_f64())
            .collect();
        assert_eq!(seconds, [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]);
        assert_eq!(pause(&PATIENCE, 1, 0.0), Duration::from_secs(1));
        assert_eq!(pause(&PATIENCE, 4_000_000_000, 1.0), Duration::from_secs(30));
    }

    #[test]
    fn retry_after_is_read_in_all_its_forms() {
        let read = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_str(value).unwrap());
            retry_after(&headers)
        };
        assert_eq!(read("retry-after", "7"), Some(Duration::from_secs(7)));
        assert_eq!(read("retry-after", " 1.5 "), Some(Duration::from_millis(1500)));
        assert_eq!(read("retry-after-ms", "250"), Some(Duration::from_millis(250)));
        assert_eq!(
            read("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"),
            Some(Duration::ZERO)
        );
        assert!(read("retry-after", "Wed, 21 Oct 2099 07:28:00 GMT").unwrap() > Duration::from_secs(86400));
        for bad in ["-1", "soon", "NaN", "inf", "1e400"] {
            assert_eq!(read("retry-after", bad), None, "{bad}");
        }
    }
}
