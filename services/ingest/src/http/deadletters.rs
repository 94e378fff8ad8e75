//! Dead letters: messages that could not be processed, with the reason; read, replayed where that can do good, purged.
//!
//! Invariant: only an alert is replayed, as it came: whatever it starts is derived from the alert, so that replaying it
//! twice starts nothing twice. What else is set aside has had its consequence: its execution has ended with it.

use std::sync::Arc;

use axum::http::StatusCode;
use bus::{Log, StoredDeadLetter, topology};
use protocol::{
    DeadLetter, Subject,
    query::{LIMIT_DEFAULT, REPLY_BYTES_MAX},
    views::{DeadLetterView, Page},
};
use serde_json::json;

use super::{Answer, App, Call, problem::Problem, webhooks};

/// Characters of a payload in a list; one dead letter has all that was kept.
const LISTED_CHARS_MAX: usize = 2048;

/// A page of dead letters.
pub async fn list(app: Arc<App>, call: Call) -> Answer {
    let before = match call.query.text("cursor") {
        None => None,
        Some(cursor) => Some(cursor.parse::<u64>().map_err(|_| {
            Problem::bad_request("parameter cursor: use the `next` of the page before")
                .with("parameter", "cursor")
        })?),
    };
    let limit = call.query.parsed("limit").unwrap_or(LIMIT_DEFAULT as usize);
    let mut letters = app.log.dead_letters(before, limit + 1).await?;
    let mut is_last = letters.len() <= limit;
    letters.truncate(limit);
    let mut items: Vec<DeadLetterView> = Vec::new();
    let mut bytes = 0;
    for letter in letters {
        let view = viewed(letter, LISTED_CHARS_MAX);
        bytes += view.payload.len() + view.reason.len() + view.subject.len();
        if bytes > REPLY_BYTES_MAX && !items.is_empty() {
            is_last = false;
            break;
        }
        items.push(view);
    }
    let next = items.last().filter(|_| !is_last).map(|last| last.id.to_string());
    super::json(StatusCode::OK, &Page { items, next })
}

/// One dead letter.
pub async fn one(app: Arc<App>, call: Call) -> Answer {
    let letter = found(&app, call.path("id")).await?;
    super::json(StatusCode::OK, &viewed(letter, usize::MAX))
}

/// Delivers one again, as it came.
pub async fn replay(app: Arc<App>, call: Call) -> Answer {
    let StoredDeadLetter { id, letter, .. } = found(&app, call.path("id")).await?;
    let source = match Subject::parse(&letter.subject) {
        Ok(Subject::Intake(source)) => source,
        _ => {
            let remedy = remedy(&letter);
            return Err(Problem::conflict(format!(
                "dead letter {id} is no alert, and only alerts can be replayed: {remedy}"
            )));
        }
    };
    // What was not UTF-8 is not kept as it was.
    let is_whole = letter.payload.len() as u64 == letter.payload_bytes
        && !letter.payload.contains(char::REPLACEMENT_CHARACTER);
    if !is_whole {
        return Err(Problem::conflict(format!(
            "dead letter {id} does not hold its message as it came ({} bytes, of which it keeps text): have {source} send it again",
            letter.payload_bytes
        )));
    }
    let delivery = webhooks::made_durable(&app, &source, letter.payload.into_bytes(), call.caller()).await?;
    let body = json!({"id": id, "subject": letter.subject, "delivery": delivery});
    super::json(StatusCode::ACCEPTED, &body)
}

/// Removes one for good.
pub async fn purge(app: Arc<App>, call: Call) -> Answer {
    let StoredDeadLetter { id, letter, .. } = found(&app, call.path("id")).await?;
    if !app.log.purge_dead_letter(id).await? {
        return Err(Problem::not_found(format!("there is no dead letter {id}")));
    }
    // The message itself may quote secrets: the audit says which one it was, not what it said.
    tracing::info!(
        target: "audit",
        id,
        subject = letter.subject,
        consumer = letter.consumer,
        stream = letter.stream,
        seq = letter.seq,
        "a dead letter was purged"
    );
    let body = json!({"result": "purged", "id": id, "subject": letter.subject});
    super::json(StatusCode::OK, &body)
}

/// What to do about a message that cannot be replayed.
fn remedy(letter: &DeadLetter) -> &'static str {
    match Subject::parse(&letter.subject) {
        _ if letter.consumer == topology::STORE_WRITER.name => {
            "`fist store rebuild` has the database read the log again"
        }
        Ok(Subject::Command(..) | Subject::Start(..) | Subject::Done(..) | Subject::Timer(..)) => {
            "its execution has ended with it, so run the workflow again"
        }
        _ => "look at its reason; nothing waits for it",
    }
}

async fn found(app: &App, id: &str) -> Result<StoredDeadLetter, Problem> {
    let no_such = || {
        let shown: String = id.chars().take(80).collect();
        Problem::not_found(format!("there is no dead letter {shown}"))
    };
    let number = id.parse::<u64>().map_err(|_| no_such())?;
    app.log.dead_letter_by_id(number).await?.ok_or_else(no_such)
}

fn viewed(stored: StoredDeadLetter, payload_chars_max: usize) -> DeadLetterView {
    let letter = stored.letter;
    let mut payload: String = letter.payload.chars().take(payload_chars_max).collect();
    if (payload.len() as u64) < letter.payload_bytes {
        payload.push('…');
    }
    DeadLetterView {
        id: stored.id,
        subject: letter.subject,
        seq: letter.seq,
        stream: letter.stream,
        consumer: letter.consumer,
        reason: letter.reason,
        deliveries: letter.deliveries,
        at: stored.at,
        payload,
    }
}
