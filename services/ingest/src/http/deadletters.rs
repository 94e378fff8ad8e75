//! Reading dead letters: messages that could not be processed, with the reason.

use std::sync::Arc;

use axum::http::StatusCode;
use bus::{Log, StoredDeadLetter};
use protocol::{
    query::{LIMIT_DEFAULT, REPLY_BYTES_MAX},
    views::{DeadLetterView, Page},
};

use super::{Answer, App, Call, json, problem::Problem};

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
    json(StatusCode::OK, &Page { items, next })
}

/// One dead letter.
pub async fn one(app: Arc<App>, call: Call) -> Answer {
    let id = call.path("id");
    let no_such = || {
        let shown: String = id.chars().take(80).collect();
        Problem::not_found(format!("there is no dead letter {shown}"))
    };
    let number = id.parse::<u64>().map_err(|_| no_such())?;
    let letter = app.log.dead_letter_by_id(number).await?.ok_or_else(no_such)?;
    json(StatusCode::OK, &viewed(letter, usize::MAX))
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
