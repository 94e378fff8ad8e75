//! `fist health`: whether a service can work just now. For health checks that run beside it, in an image that
//! has no other program to ask with.

use super::Outcome;
use crate::{
    client::{Client, Request},
    failure::{Code, Failure},
    show,
};

/// Asks once: whoever checks health comes again by itself.
pub async fn run(client: &Client) -> Outcome {
    let answer = client.any_status(&Request::get(&["readyz"])).await?;
    if answer.status.is_success() {
        return Ok(Code::Succeeded);
    }
    Err(Failure::failed(format!(
        "{} is not ready: {}",
        client.address(),
        show::one_line(&answer.text, 500)
    )))
}
