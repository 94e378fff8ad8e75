//! `GET /api/v1/executions/{id}/events`: what happens in an execution, as server-sent events.
//!
//! Invariants:
//! - One follower of the log gives history and then what comes, so nothing is missed between the two.
//! - The id of an event is its message's sequence in the log. Of several events from one message only the last
//!   has it, so that who resumes after it has seen them all.
//! - Live progress has no id: it is lossy, and never history.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::StatusCode,
};
use bus::{Log, LogMessage, Position};
use futures_util::{Stream, StreamExt};
use protocol::{
    Append, ExecutionId, LaneAction, Namespace, Subject, decode, subjects, views::ExecutionStatus,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Answer, App, Call, executions, problem::Problem, with_type};
use crate::story::{self, Event, Story, recorded};

/// Events that wait for a slow reader; then the log is simply read more slowly.
const WAITING_MAX: usize = 32;
/// A comment after so much silence, since proxies cut silent connections after a minute.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(15);
/// How soon a reader that lost its connection should come again, in milliseconds.
const RECONNECT_MS: u64 = 2000;

/// The stream of one execution.
pub async fn stream(app: Arc<App>, call: Call) -> Answer {
    let after = last_event_id(&call)?;
    let permit = permit(&app)?;
    let found = executions::located(&app, call.path("id")).await?;
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    match found {
        executions::Place::Log {
            namespace,
            id,
            start_seq,
        } => {
            if has_ended_by(&app, &namespace, id, after).await? {
                // The answer that tells a reader not to come again.
                return Ok(with_type(
                    StatusCode::NO_CONTENT,
                    "text/event-stream",
                    Body::empty(),
                ));
            }
            let sources = Sources::open(&app, &namespace, id, start_seq, Position::New).await?;
            let shutdown = app.shutdown.clone();
            tokio::spawn(async move {
                let _permit = permit;
                follow(sources, after, &sender, &shutdown).await;
            });
        }
        executions::Place::Record(view) => {
            tokio::spawn(async move {
                let _permit = permit;
                for event in recorded(&view) {
                    if sender.send(framed(&event, None)).await.is_err() {
                        return;
                    }
                }
            });
        }
    }
    let body = Body::from_stream(chunks(receiver));
    Ok(with_type(StatusCode::OK, "text/event-stream", body))
}

/// One of the places for streams.
pub fn permit(app: &App) -> Result<tokio::sync::OwnedSemaphorePermit, Problem> {
    app.streams.clone().try_acquire_owned().map_err(|_| {
        Problem::unavailable(
            "too many event streams and followed logs are open; close some, or try again later",
        )
    })
}

/// What is sent, as a body.
pub fn chunks(receiver: mpsc::Receiver<String>) -> impl Stream<Item = Result<Bytes, Infallible>> {
    futures_util::stream::unfold(receiver, |mut receiver| async move {
        let text = receiver.recv().await?;
        Some((Ok(Bytes::from(text)), receiver))
    })
}

fn last_event_id(call: &Call) -> Result<u64, Problem> {
    match call.header("last-event-id").map(str::trim) {
        None | Some("") => Ok(0),
        Some(id) => id.parse().map_err(|_| {
            Problem::bad_request("header Last-Event-ID: use the id of an event of this stream, a number")
        }),
    }
}

/// Whether everything that will ever happen was seen by `after`.
async fn has_ended_by(
    app: &App,
    namespace: &Namespace,
    id: ExecutionId,
    after: u64,
) -> Result<bool, Problem> {
    if after == 0 {
        return Ok(false);
    }
    let last = app.log.last(&subjects::lane_filter(namespace, id)).await?;
    Ok(last.is_some_and(|message| message.seq <= after && end_status(&message).is_some()))
}

/// How an execution ended, where this message of its lane is the end.
pub fn end_status(message: &LogMessage) -> Option<ExecutionStatus> {
    match decode::<Append>(&message.payload).ok()?.body.action {
        LaneAction::End(end) => Some(story::status_of(end.status)),
        LaneAction::Task(_) | LaneAction::Plan(_) => None,
    }
}

/// What an execution is followed by.
pub struct Sources {
    /// Facts, the lane and turns, from the start on.
    pub log: bus::Follow,
    /// Progress, as far as it is still there.
    pub live: bus::Follow,
    /// Reads both.
    pub story: Story,
}

impl Sources {
    /// Opens both.
    pub async fn open(
        app: &App,
        namespace: &Namespace,
        id: ExecutionId,
        start_seq: u64,
        live_from: Position,
    ) -> Result<Self, Problem> {
        let live = app
            .log
            .follow_live(vec![subjects::live_filter(namespace, id)], live_from)
            .await?;
        let filters = vec![
            subjects::facts_filter(namespace, id),
            subjects::lane_filter(namespace, id),
            subjects::turns_filter(namespace, id),
        ];
        let log = app.log.follow(filters, Position::Seq(start_seq)).await?;
        Ok(Self {
            log,
            live,
            story: Story::default(),
        })
    }
}

async fn follow(
    mut sources: Sources,
    after: u64,
    sender: &mpsc::Sender<String>,
    shutdown: &CancellationToken,
) {
    if sender.send(format!("retry: {RECONNECT_MS}\n\n")).await.is_err() {
        return;
    }
    let mut lives = true;
    loop {
        let (events, id) = tokio::select! {
            biased;
            () = sender.closed() => return,
            () = shutdown.cancelled() => return,
            message = sources.log.next() => match message {
                Some(Ok(message)) => (sources.story.read(&message), Some(message.seq)),
                Some(Err(error)) => {
                    tracing::warn!(%error, "an event stream ends early");
                    return;
                }
                None => return,
            },
            message = sources.live.next(), if lives => match message {
                Some(Ok(message)) => (live(&message), None),
                // Without progress the events still come.
                Some(Err(_)) | None => { lives = false; continue; }
            },
            () = tokio::time::sleep(KEEP_ALIVE_EVERY) => {
                if sender.send(": keep-alive\n\n".to_owned()).await.is_err() {
                    return;
                }
                continue;
            }
        };
        if id.is_some_and(|seq| seq <= after) {
            continue;
        }
        let last = events.len();
        for (index, event) in events.iter().enumerate() {
            let id = id.filter(|_| index + 1 == last);
            if sender.send(framed(event, id)).await.is_err() || event.is_last() {
                return;
            }
        }
    }
}

fn live(message: &LogMessage) -> Vec<Event> {
    match Subject::parse(&message.subject) {
        Ok(Subject::Live(_, _, step, attempt)) => {
            Event::of_progress(message, &step, attempt).into_iter().collect()
        }
        _ => Vec::new(),
    }
}

/// An event as it is sent.
fn framed(event: &Event, id: Option<u64>) -> String {
    let data = serde_json::to_string(event).unwrap_or_default();
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    format!("{id}event: {}\ndata: {data}\n\n", event.kind)
}
