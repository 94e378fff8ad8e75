//! `fist purge`: removes dead letters for good.
//!
//! Invariant: each is tried, whatever becomes of the others.

use std::time::Duration;

use protocol::{
    Timestamp,
    views::{DeadLetterView, Page},
};
use service::clock;

use super::Outcome;
use crate::{
    args::Purge,
    client::{Client, Request},
    failure::{Code, Failure},
    show,
};

/// Dead letters of one page.
const PAGE_MAX: u32 = 500;

/// Does it.
pub async fn run(client: &Client, asked: &Purge) -> Outcome {
    let before = match (&asked.before, asked.all) {
        (Some(text), _) => Some(instant(text, clock::now())?),
        // The list is the server's, whatever the clock here says.
        (None, true) => None,
        (None, false) => {
            let ids = asked
                .ids
                .iter()
                .map(|id| id.strip_prefix("deadletter/").unwrap_or(id));
            return purge(client, ids).await;
        }
    };
    let ids = listed(client, before).await?;
    if ids.is_empty() {
        show::aside("No resources found.");
    }
    purge(client, ids.iter().map(String::as_str)).await
}

async fn purge(client: &Client, ids: impl Iterator<Item = &str>) -> Outcome {
    let mut code = Code::Succeeded;
    for id in ids {
        match client
            .send(&Request::delete(&["api", "v1", "deadletters", id]))
            .await
        {
            Ok(_) => {
                show::line(&format!("deadletter/{id} purged"));
            }
            // Nobody is there: the others would fail as well.
            Err(failure) if failure.code == Code::NoServer => return Err(failure),
            Err(failure) => {
                show::aside(&format!("error: {failure}"));
                code = Code::Failed;
            }
        }
    }
    Ok(code)
}

/// Those that were set aside before this time; without one, all.
async fn listed(client: &Client, before: Option<Timestamp>) -> Result<Vec<String>, Failure> {
    let mut ids = Vec::new();
    let mut cursor = None;
    loop {
        let request = Request::get(&["api", "v1", "deadletters"])
            .query("limit", Some(PAGE_MAX))
            .query("cursor", cursor);
        let page: Page<DeadLetterView> = super::get::read(&client.send(&request).await?)?;
        let is_old = |letter: &&DeadLetterView| before.is_none_or(|before| letter.at < before);
        let old = page.items.iter().filter(is_old);
        ids.extend(old.map(|letter| letter.id.to_string()));
        match page.next {
            Some(next) => cursor = Some(next),
            None => return Ok(ids),
        }
    }
}

/// `30d`, `12h`, `5m`, or a time.
fn instant(text: &str, now: Timestamp) -> Result<Timestamp, Failure> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    let units = [('d', 24 * 3600), ('h', 3600), ('m', 60)];
    let age = units.iter().find_map(|(unit, seconds)| {
        let number: u32 = text.strip_suffix(*unit)?.parse().ok()?;
        Some(Duration::from_secs(u64::from(number) * seconds))
    });
    let age = age.ok_or_else(|| {
        Failure::misuse(format!(
            "--before {text}: write an age such as 30d, 12h or 5m, or a time such as 2026-01-31T12:00:00Z"
        ))
    })?;
    let age_ms = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
    Ok(Timestamp::from_millis(now.as_millis().saturating_sub(age_ms)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ages_and_times_are_understood() {
        let now: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
        for (text, at) in [
            ("30d", "2026-01-01T12:00:00Z"),
            ("12h", "2026-01-31T00:00:00Z"),
            ("5m", "2026-01-31T11:55:00Z"),
            ("2025-12-24T00:00:00Z", "2025-12-24T00:00:00Z"),
        ] {
            assert_eq!(instant(text, now).unwrap(), at.parse().unwrap(), "{text}");
        }
        for text in ["", "d", "5", "5w", "-5d", "yesterday"] {
            assert!(instant(text, now).is_err(), "{text}");
        }
    }
}
