//! `fist cancel`: asks for an execution to be cancelled.

use serde_json::{Value, json};

use super::Outcome;
use crate::{
    args::Cancel,
    client::{Client, Request},
    failure::Code,
    show,
};

/// Does it.
pub async fn run(client: &Client, asked: &Cancel) -> Outcome {
    let body = match &asked.reason {
        Some(reason) => json!({ "reason": reason }).to_string(),
        None => String::new(),
    };
    let path = ["api", "v1", "executions", asked.id.as_str(), "cancel"];
    let answer = client
        .send(&Request::post(&path, "application/json", body).repeatable())
        .await?
        .json()?;
    let id = answer.get("id").and_then(Value::as_str).unwrap_or(&asked.id);
    show::line(&format!("execution/{id} cancel requested"));
    Ok(Code::Succeeded)
}
