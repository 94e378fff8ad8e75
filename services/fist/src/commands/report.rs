//! `fist report`: the report on an execution as Markdown, for a ticket or a chat.

use super::Outcome;
use crate::{
    args::Report,
    client::{Client, Request},
    failure::Code,
    show,
};

/// Does it.
pub async fn run(client: &Client, asked: &Report) -> Outcome {
    let path = ["api", "v1", "executions", asked.id.as_str(), "report"];
    let answer = client.send(&Request::get(&path)).await?;
    show::data(&answer.text);
    Ok(Code::Succeeded)
}
