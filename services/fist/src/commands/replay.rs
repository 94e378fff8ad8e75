//! `fist replay`: delivers alerts again that could not be processed.
//!
//! Invariant: each is tried, whatever becomes of the others.

use super::Outcome;
use crate::{
    args::Replay,
    client::{Client, Request},
    failure::Code,
    show,
};

/// Does it.
pub async fn run(client: &Client, asked: &Replay) -> Outcome {
    let mut code = Code::Succeeded;
    for id in &asked.ids {
        let id = id.strip_prefix("deadletter/").unwrap_or(id);
        let path = ["api", "v1", "deadletters", id, "replay"];
        // Whatever an alert starts is derived from it, so that sending it twice starts nothing twice.
        let request = Request::post(&path, "application/json", "").repeatable();
        match client.send(&request).await {
            Ok(answer) => {
                let subject = answer.json()?["subject"].as_str().unwrap_or_default().to_owned();
                show::line(&format!("deadletter/{id} replayed to {}", show::clean(&subject)));
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
