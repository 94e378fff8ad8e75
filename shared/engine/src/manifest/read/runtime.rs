//! Reads the trigger, and what the steps have in common: image, environment, model.

use std::collections::BTreeMap;

use protocol::ids::{SourceName, WorkflowName};

use super::BUILT_IN_SOURCES;
use crate::admit::Policy;
use crate::filters;
use crate::manifest::object::Object;
use crate::manifest::types::{LlmConfig, Provider, Runtime, Trigger};
use crate::nearest::did_you_mean;

pub(super) fn trigger(mut object: Object, policy: &Policy) -> Option<Trigger> {
    let source = object.text("source");
    let known: Vec<&str> = BUILT_IN_SOURCES
        .into_iter()
        .chain(policy.sources.iter().map(String::as_str))
        .collect();
    let path = object.path_of("source");
    match source.as_deref() {
        None if object.take("source").is_none() => {
            object.missing("source", &format!("it may be: {}", known.join(", ")));
        }
        Some(name) if !known.contains(&name) => {
            let message = match SourceName::new(name) {
                Err(error) => error.to_string(),
                Ok(_) => format!(
                    "unknown source \"{name}\"; {}",
                    did_you_mean(name, "the sources are", &known)
                ),
            };
            object.sink.error(&path, message);
        }
        _ => {}
    }
    let filters = object.texts("filters");
    for (label, expected) in &filters {
        if let Err(message) = filters::check(expected) {
            object
                .sink
                .error(&format!("{}.{label}", object.path_of("filters")), message);
        }
    }
    object.finish(&|_| None);
    Some(Trigger {
        source: source?,
        filters,
    })
}

pub(super) fn runtime(mut object: Object, policy: &Policy) -> Runtime {
    let image = image(&mut object);
    let environment = object.texts("environment");
    check_variables(&object, "environment", &environment);
    for (name, value) in &environment {
        if value.contains("{{") || value.contains("{%") {
            let path = format!("{}.{name}", object.path_of("environment"));
            let message = "is taken as it stands; only a step's own env holds templates";
            object.sink.warning(&path, message);
        }
    }
    let llm_config = object
        .object("llm_config")
        .map(|object| llm_config(object, policy));
    object.finish(&|name| match name {
        "env" => Some("unknown field; did you mean \"environment\"?".to_owned()),
        "provider" | "model" | "endpoint" | "api_key_secret" | "temperature" | "max_tokens" | "max_turns" => {
            Some(format!("unknown field; \"{name}\" belongs into llm_config"))
        }
        _ => None,
    });
    Runtime {
        image,
        environment,
        llm_config,
    }
}

pub(super) fn image(object: &mut Object) -> Option<String> {
    let image = object.filled_text("image")?;
    if image.chars().any(char::is_whitespace) {
        let message = format!("\"{image}\" is not an image's name: it holds white space");
        object.sink.error(&object.path_of("image"), message);
    }
    Some(image)
}

pub(super) fn check_variables(object: &Object, field: &str, variables: &BTreeMap<String, String>) {
    for name in variables.keys() {
        let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_name {
            let message = format!(
                "\"{name}\" is not a variable's name; use letters, digits and `_`, and no digit at the start"
            );
            object
                .sink
                .error(&format!("{}.{name}", object.path_of(field)), message);
        }
    }
}

pub(super) fn llm_config(mut object: Object, policy: &Policy) -> LlmConfig {
    let providers = [
        ("anthropic", Provider::Anthropic),
        ("openai", Provider::OpenAi),
        ("scripted", Provider::Scripted),
    ];
    let provider = object.choice("provider", &providers);
    let mut model = object.filled_text("model");
    if let Some(written) = &model
        && let Some(current) = policy.model_aliases.get(written)
        && provider != Some(Provider::Scripted)
    {
        let message =
            format!("\"{written}\" is retired or has no date; \"{current}\" is used, by llm.model_aliases");
        object.sink.warning(&object.path_of("model"), message);
        model = Some(current.clone());
    }
    if provider == Some(Provider::Scripted)
        && let Some(file) = &model
        && (file.contains(['/', '\\']) || file.starts_with('.'))
    {
        let message = "for `scripted` this names a file in the configured directory, without a path";
        object.sink.error(&object.path_of("model"), message);
    }
    let endpoint = object.filled_text("endpoint");
    if let Some(Err(message)) = endpoint.as_deref().map(check_endpoint) {
        object.sink.error(&object.path_of("endpoint"), message);
    }
    let api_key_secret = object.filled_text("api_key_secret");
    if let Some(name) = &api_key_secret
        && WorkflowName::new(name.as_str()).is_err()
    {
        let message = "names a Kubernetes Secret in the workflow's namespace: lower-case letters, digits, \
                       `-` and `.`; a key itself must not stand in a manifest";
        object.sink.error(&object.path_of("api_key_secret"), message);
    }
    let temperature = object.number("temperature", 0.0..=2.0);
    let max_tokens = object.whole_number("max_tokens", 1..=1_000_000, &|_| String::new());
    let max_turns = object.whole_number("max_turns", 1..=200, &|_| String::new());
    object.finish(&|name| match name {
        "api_key" | "key" | "token" => Some(
            "a key must not stand in a manifest; put it into a Secret, and name that as api_key_secret"
                .to_owned(),
        ),
        "base_url" | "url" => Some("unknown field; did you mean \"endpoint\"?".to_owned()),
        _ => None,
    });
    LlmConfig {
        provider,
        model,
        endpoint,
        api_key_secret,
        temperature,
        max_tokens: max_tokens.and_then(|n| u32::try_from(n).ok()),
        max_turns: max_turns.and_then(|n| u32::try_from(n).ok()),
    }
}

fn check_endpoint(endpoint: &str) -> Result<(), String> {
    let rest = endpoint
        .strip_prefix("https://")
        .or_else(|| endpoint.strip_prefix("http://"))
        .ok_or_else(|| format!("\"{endpoint}\" is not an address; it begins with https:// or http://"))?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.is_empty() || endpoint.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(format!("\"{endpoint}\" is not an address"));
    }
    if authority.contains('@') {
        return Err(
            "holds credentials; put the key into a Secret, and name that as api_key_secret".to_owned(),
        );
    }
    Ok(())
}
