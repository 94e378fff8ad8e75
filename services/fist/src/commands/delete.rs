//! `fist delete`: removes a definition. What runs goes on.

use super::{Outcome, kind_and_id};
use crate::{
    args::Delete,
    client::{Client, Request},
    failure::{Code, Failure},
    show,
};

/// Does it.
pub async fn run(client: &Client, asked: &Delete) -> Outcome {
    let (kind, name) = kind_and_id(&asked.kind, asked.name.as_deref())?;
    if !matches!(kind.as_str(), "workflow" | "workflows" | "wf") {
        return Err(Failure::misuse(format!(
            "`{kind}` cannot be deleted: only workflows can; `fist cancel ID` ends an execution"
        )));
    }
    let Some(name) = name else {
        return Err(Failure::misuse(
            "name the workflow to delete: `fist delete workflow NAME`",
        ));
    };
    client
        .send(&Request::delete(&[
            "api",
            "v1",
            "workflows",
            &asked.namespace,
            &name,
        ]))
        .await?;
    show::line(&format!("workflow/{name} deleted"));
    Ok(Code::Succeeded)
}
