//! Following an execution: its events as they come, then the report.
//!
//! Invariants:
//! - A broken connection is taken up again where it broke, for [`RECONNECT_MAX`] at most.
//! - The exit code is the execution's outcome as the log tells it, whether or not the database has it yet.

use std::time::Duration;

use protocol::views::{ExecutionStatus, ExecutionView};
use tokio::time::Instant;

use super::Outcome;
use crate::{
    args::{Output, Watch},
    client::{Client, Request, Streamed},
    events::{Event, Frames, Teller},
    failure::{Code, Failure},
    show::{self, Style, report},
};

/// How long a server may stay away while it is followed.
const RECONNECT_MAX: Duration = Duration::from_secs(120);
/// How long to wait between attempts.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);
/// How long the record may take to follow the log.
const RECORD_MAX: Duration = Duration::from_secs(30);
/// How often to look meanwhile.
const RECORD_PAUSE: Duration = Duration::from_millis(50);

/// Where the lines go while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lines {
    /// They are what was asked for.
    Stdout,
    /// The report is what was asked for.
    Stderr,
}

/// How to follow.
#[derive(Clone, Copy, Debug)]
pub struct Following {
    /// Where the lines go.
    pub lines: Lines,
    /// Whether what commands print is shown.
    pub logs: bool,
    /// The form of the end; absent: the report.
    pub output: Option<Output>,
}

/// `fist watch`.
pub async fn watch(client: &Client, asked: &Watch) -> Outcome {
    let following = Following {
        lines: Lines::Stdout,
        logs: asked.logs,
        output: None,
    };
    follow(client, &asked.id, following).await
}

/// Follows an execution to its end, and says how it ended.
pub async fn follow(client: &Client, id: &str, how: Following) -> Outcome {
    let style = match how.lines {
        Lines::Stdout => Style::stdout(),
        Lines::Stderr => Style::stderr(),
    };
    let mut teller = Teller::new(style, how.logs);
    tokio::select! {
        told = tell(client, id, &mut teller, how.lines) => told?,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.map_err(|error| Failure::failed(format!("cannot listen for Ctrl-C: {error}")))?;
            show::aside(&format!("\ndetached; the execution goes on: `fist watch {id}` follows it again, `fist cancel {id}` ends it"));
            return Ok(Code::Detached);
        }
    }
    let status = finish(client, id, &teller, how).await?;
    Ok(if status == ExecutionStatus::Succeeded {
        Code::Succeeded
    } else {
        Code::Failed
    })
}

/// Tells all events until the last.
async fn tell(client: &Client, id: &str, teller: &mut Teller, lines: Lines) -> Result<(), Failure> {
    let mut frames = Frames::default();
    let mut away_since: Option<Instant> = None;
    loop {
        let mut request = Request::get(&["api", "v1", "executions", id, "events"]);
        if let Some(last) = &frames.last_id {
            request = request.header("last-event-id", last);
        }
        let broke = match client.stream(&request).await {
            // There is nothing after what was seen.
            Ok(streamed) if streamed.status().as_u16() == 204 => return Ok(()),
            Ok(streamed) => {
                let seen = frames.last_id.clone();
                match tell_stream(streamed, &mut frames, teller, lines).await {
                    Ok(true) => return Ok(()),
                    ended => {
                        if frames.last_id != seen {
                            away_since = None;
                        }
                        ended
                            .err()
                            .unwrap_or_else(|| "the server closed the stream".to_owned())
                    }
                }
            }
            // Before anything was seen, that there is no server is the answer.
            Err(failure) if frames.last_id.is_none() || failure.code != Code::NoServer => {
                return Err(failure);
            }
            Err(failure) => failure.message,
        };
        frames.broken();
        let since = *away_since.get_or_insert_with(|| {
            show::aside(&format!("lost the server ({broke}); trying again"));
            Instant::now()
        });
        if since.elapsed() > RECONNECT_MAX {
            return Err(Failure::no_server(format!(
                "the server at {} stays away: `fist watch {id}` follows again when it is back",
                client.address()
            )));
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

/// Tells one stream; whether its last event was the last of all.
async fn tell_stream(
    mut streamed: Streamed,
    frames: &mut Frames,
    teller: &mut Teller,
    lines: Lines,
) -> Result<bool, String> {
    while let Some(piece) = streamed.next().await? {
        for text in frames.read(&piece)? {
            let Ok(event) = serde_json::from_str::<Event>(&text) else {
                continue;
            };
            for line in teller.tell(&event) {
                match lines {
                    Lines::Stdout => {
                        show::line(&line);
                    }
                    Lines::Stderr => show::aside(&line),
                }
            }
            if event.is_last() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Shows the end, once the record has it.
async fn finish(
    client: &Client,
    id: &str,
    teller: &Teller,
    how: Following,
) -> Result<ExecutionStatus, Failure> {
    let ended = teller.ended.as_deref();
    let by_log = ended.and_then(|text| {
        ExecutionStatus::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
    });
    let recorded = recorded(client, id).await;
    let (text, view) = match (recorded, by_log) {
        (Ok(recorded), _) => recorded,
        (Err(failure), Some(status)) => {
            show::aside(&format!(
                "the record is not there yet ({}): `fist get execution {id}` shows it later",
                failure.message
            ));
            return Ok(status);
        }
        (Err(failure), None) => return Err(failure),
    };
    match how.output {
        None | Some(Output::Wide) => {
            let style = Style::stdout();
            // An empty line between what was told and the report, where both are seen.
            show::data(&format!("\n{}", report::report(&view, style)));
        }
        Some(output) => super::get::print_document(&text, output, &format!("execution/{}", view.summary.id))?,
    }
    Ok(view.summary.status)
}

/// The execution as it is recorded, at its end.
async fn recorded(client: &Client, id: &str) -> Result<(String, ExecutionView), Failure> {
    let deadline = Instant::now() + RECORD_MAX;
    loop {
        let failure = match client.send(&Request::get(&["api", "v1", "executions", id])).await {
            Ok(answer) => {
                let view: ExecutionView = serde_json::from_value(answer.json()?).map_err(|error| {
                    Failure::failed(format!("the server's answer cannot be read: {error}"))
                })?;
                if view.summary.status.is_terminal() {
                    return Ok((answer.text, view));
                }
                Failure::failed("it is behind the log")
            }
            Err(failure) => failure,
        };
        if Instant::now() >= deadline {
            return Err(failure);
        }
        tokio::time::sleep(RECORD_PAUSE).await;
    }
}
