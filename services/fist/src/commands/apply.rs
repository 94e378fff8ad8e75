//! `fist apply`: stores workflows, in kubectl's words.
//!
//! Invariant: nothing is stored unless every manifest of every file is valid.

use serde_json::Value;

use super::{Outcome, get};
use crate::{
    args::{Apply, Output},
    client::{Client, Request},
    failure::{Code, Failure},
    manifests::{self, Document},
    show,
};

/// Does it.
pub async fn run(client: &Client, asked: &Apply) -> Outcome {
    let mut documents = Vec::new();
    let mut refused = Vec::new();
    for file in &asked.files {
        let source = manifests::read(file)?;
        for document in manifests::documents(&source) {
            let document = manifests::in_namespace(document, asked.namespace.as_deref())?;
            refused.extend(problems(client, &document, &source.name, asked.files.len()).await?);
            documents.push(document);
        }
    }
    if !refused.is_empty() {
        return Err(Failure::misuse(refused.join("\n")));
    }
    for document in &documents {
        let request = Request::post(
            &["api", "v1", "workflows"],
            document.media_type(),
            document.text.as_str(),
        );
        // The same manifest again changes nothing.
        let answer = client.send(&request.repeatable()).await?;
        told(&answer.json()?, &answer.text, asked.output)?;
    }
    Ok(Code::Succeeded)
}

/// The server's own words on what is wrong with a document.
async fn problems(
    client: &Client,
    document: &Document,
    name: &str,
    files: usize,
) -> Result<Option<String>, Failure> {
    let request = Request::post(
        &["api", "v1", "validate"],
        document.media_type(),
        document.text.as_str(),
    );
    let verdict = client.send(&request.repeatable()).await?.json()?;
    if verdict["valid"].as_bool() == Some(true) {
        return Ok(None);
    }
    let text = verdict["text"]
        .as_str()
        .unwrap_or("the server refuses it without a reason")
        .to_owned();
    Ok(Some(if files > 1 {
        format!("{name}:\n{text}")
    } else {
        text
    }))
}

fn told(applied: &Value, text: &str, output: Option<Output>) -> Result<(), Failure> {
    let part = |key: &str| applied[key].as_str().unwrap_or_default();
    for warning in applied["warnings"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        show::note(warning);
    }
    let name = part("name");
    if let Some(output @ (Output::Json | Output::Yaml | Output::Name)) = output {
        return get::print_document(text, output, &format!("workflow/{name}"));
    }
    let execution = applied["execution"]["id"].as_str();
    match (part("role"), execution) {
        ("execution", Some(id)) if part("result") == "started" => {
            show::line(&format!("workflow/{name} started as execution/{id}"));
            show::aside(&format!(
                "it is no definition, and so was executed once: `fist watch {id}` follows it"
            ));
        }
        ("execution", Some(id)) => {
            show::line(&format!(
                "workflow/{name} unchanged (executed before as execution/{id})"
            ));
        }
        _ => {
            show::line(&format!("workflow/{name} {}", part("result")));
        }
    }
    Ok(())
}
