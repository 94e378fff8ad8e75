//! Which provider, model, address and key a step gets.
//!
//! Invariants:
//! - The operator's key goes to the provider's default address, and to addresses that the configuration
//!   lists; to no other, whatever a workflow says. A key that a workflow brings goes where it says, and takes the
//!   place of the operator's.
//! - No error text holds a key.

use std::time::Duration;

use engine::manifest::{self, LlmConfig};
use reqwest::Url;
use serde_json::{Map, Value};
use service::config::{Llm, Secret, Secrets};

use super::{
    LlmError, LlmErrorKind, Provider,
    anthropic::{self, Anthropic},
    http::Patience,
    openai::{self, OpenAi},
    scripted::{self, Scripted},
};
use crate::{kubernetes::OwnKey, web};

/// Where OpenAI's own tools look for a key.
const OPENAI_VARIABLE: &str = "OPENAI_API_KEY";
/// Where Anthropic's own tools look for a key.
const ANTHROPIC_VARIABLE: &str = "ANTHROPIC_API_KEY";
/// The pause before a call is tried again for the first time, unless the provider names one.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// The longest pause of our own.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(30);

/// The provider of a step, and what the step asks of it.
pub struct Choice {
    /// Who answers.
    pub provider: Box<dyn Provider>,
    /// The most tokens of one answer, where the workflow says so.
    pub output_tokens_max: Option<u32>,
    /// The most turns, where the workflow says so.
    pub turns_max: Option<u32>,
}

/// The Secret that a step's key stands in.
#[derive(Debug, PartialEq, Eq)]
pub struct WantedKey {
    /// The Secret's name, in the workflow's namespace.
    pub secret: String,
    /// The variable in which the provider's own tools look for a key.
    pub variable: &'static str,
}

/// The Secret to read before [`from_config`], where the step names one and its provider needs a key.
///
/// # Errors
/// As [`from_config`].
pub fn wanted_key(
    asked: &Map<String, Value>,
    llm: &Llm,
    secrets: &Secrets,
) -> Result<Option<WantedKey>, LlmError> {
    let asked = read(asked)?;
    let Some(secret) = asked.api_key_secret.clone() else {
        return Ok(None);
    };
    let variable = match provider_name(&asked, llm, secrets)? {
        scripted::NAME => return Ok(None),
        openai::NAME => OPENAI_VARIABLE,
        _ => ANTHROPIC_VARIABLE,
    };
    Ok(Some(WantedKey { secret, variable }))
}

fn read(asked: &Map<String, Value>) -> Result<LlmConfig, LlmError> {
    serde_json::from_value(Value::Object(asked.clone()))
        .map_err(|error| refused("agent", "", format!("llm_config cannot be read: {error}")))
}

/// Chooses by the step's `llm_config`, then the configuration, then the keys that are there. `own_key` is what
/// stands in the Secret of [`wanted_key`].
///
/// # Errors
/// What is missing or not allowed, and the remedy.
pub fn from_config(
    asked: &Map<String, Value>,
    llm: &Llm,
    secrets: &Secrets,
    own_key: Option<&OwnKey>,
) -> Result<Choice, LlmError> {
    let asked = read(asked)?;
    let name = provider_name(&asked, llm, secrets)?;
    let provider: Box<dyn Provider> = match name {
        scripted::NAME => {
            let model = asked.model.as_deref().ok_or_else(|| {
                refused(
                    scripted::NAME,
                    "",
                    "llm_config.model must name a file of turns".to_owned(),
                )
            })?;
            Box::new(Scripted::load(llm.scripted_dir.as_deref(), model)?)
        }
        openai::NAME => {
            let found = Found::look(openai::NAME, &asked, llm, secrets, own_key)?;
            Box::new(OpenAi {
                client: found.client,
                patience: found.patience,
                url: openai::endpoint(&found.base),
                model: found.model,
                key: found.key,
                key_source: found.key_source,
                temperature: asked.temperature,
            })
        }
        _ => {
            let found = Found::look(anthropic::NAME, &asked, llm, secrets, own_key)?;
            Box::new(Anthropic {
                client: found.client,
                patience: found.patience,
                url: anthropic::endpoint(&found.base),
                model: found.model,
                key: found.key,
                key_source: found.key_source,
                temperature: asked.temperature,
            })
        }
    };
    Ok(Choice {
        provider,
        output_tokens_max: asked.max_tokens,
        turns_max: asked.max_turns,
    })
}

fn refused(provider: &'static str, model: &str, message: String) -> LlmError {
    LlmError {
        provider,
        model: model.to_owned(),
        message,
        kind: LlmErrorKind::Permanent,
        usage: protocol::turns::Usage::default(),
    }
}

fn provider_name(asked: &LlmConfig, llm: &Llm, secrets: &Secrets) -> Result<&'static str, LlmError> {
    match asked.provider {
        Some(manifest::Provider::Anthropic) => return Ok(anthropic::NAME),
        Some(manifest::Provider::OpenAi) => return Ok(openai::NAME),
        Some(manifest::Provider::Scripted) => return Ok(scripted::NAME),
        None => {}
    }
    match llm.default_provider.as_deref() {
        Some(anthropic::NAME) => return Ok(anthropic::NAME),
        Some(openai::NAME) => return Ok(openai::NAME),
        Some(scripted::NAME) => return Ok(scripted::NAME),
        _ => {}
    }
    if secrets.anthropic_api_key.is_some() {
        Ok(anthropic::NAME)
    } else if secrets.openai_api_key.is_some() {
        Ok(openai::NAME)
    } else {
        let model = asked.model.as_deref().unwrap_or("no model named");
        Err(refused(
            "no provider",
            model,
            "llm_config names none, and no key is there: set ANTHROPIC_API_KEY or OPENAI_API_KEY in the agent-runner's \
             environment (or llm.anthropic_api_key_file, llm.openai_api_key_file), or llm.default_provider; a workflow \
             with a key of its own (api_key_secret) names the provider"
                .to_owned(),
        ))
    }
}

/// What an HTTP provider needs.
struct Found {
    client: reqwest::Client,
    patience: Patience,
    base: Url,
    model: String,
    key: Option<Secret>,
    key_source: String,
}

impl Found {
    fn look(
        name: &'static str,
        asked: &LlmConfig,
        llm: &Llm,
        secrets: &Secrets,
        own_key: Option<&OwnKey>,
    ) -> Result<Self, LlmError> {
        let (vendor, vendor_base, configured, key, variable, default_model) = match name {
            openai::NAME => (
                openai::BASE_URL,
                secrets.openai_base_url.as_deref(),
                "OPENAI_BASE_URL",
                &secrets.openai_api_key,
                OPENAI_VARIABLE,
                &llm.default_model_openai,
            ),
            _ => (
                anthropic::BASE_URL,
                secrets.anthropic_base_url.as_deref(),
                "ANTHROPIC_BASE_URL",
                &secrets.anthropic_api_key,
                ANTHROPIC_VARIABLE,
                &llm.default_model_anthropic,
            ),
        };
        let model = resolve_alias(name, asked.model.as_deref().unwrap_or(default_model), llm);
        let fail = |message: String| refused(name, &model, message);
        let default = address(vendor_base.unwrap_or(vendor), configured).map_err(fail)?;
        let base = match &asked.endpoint {
            Some(endpoint) => address(endpoint, "llm_config.endpoint").map_err(fail)?,
            None => default.clone(),
        };
        let patience = patience(llm);
        if let Some(secret) = &asked.api_key_secret {
            // Never the operator's instead, whatever went wrong.
            let own_key = own_key.ok_or_else(|| {
                fail(format!(
                    "the Secret `{secret}` of llm_config.api_key_secret was not read"
                ))
            })?;
            let client = web::client(&base, patience.connect, |builder| builder).map_err(fail)?;
            return Ok(Self {
                client,
                patience,
                base,
                model,
                key: Some(own_key.key.clone()),
                key_source: own_key.source.clone(),
            });
        }
        let is_listed = llm
            .allowed_endpoints
            .iter()
            .any(|listed| Url::parse(listed).is_ok_and(|listed| listed.origin() == base.origin()));
        if base.origin() != default.origin() && !is_listed {
            return Err(fail(format!(
                "llm_config.endpoint is {}, and the operator's key is only sent to the provider's default address or to \
                 one that llm.allowed_endpoints lists: list it there, or bring a key by llm_config.api_key_secret",
                base.origin().ascii_serialization()
            )));
        }
        let is_vendor = address(vendor, configured).is_ok_and(|vendor| vendor.origin() == base.origin());
        if key.is_none() && is_vendor {
            return Err(fail(format!(
                "no key: set {variable} in the agent-runner's environment, or llm.{name}_api_key_file"
            )));
        }
        let client = web::client(&base, patience.connect, |builder| builder).map_err(fail)?;
        Ok(Self {
            client,
            patience,
            base,
            // Servers of one's own often have no key.
            key: key.clone(),
            key_source: format!("{variable} (or llm.{name}_api_key_file)"),
            model,
        })
    }
}

fn address(text: &str, source: &str) -> Result<Url, String> {
    let wrong =
        |why: &str| format!("{source} is not an address ({why}): use one such as https://llm.example.com/v1");
    let url = Url::parse(text.trim()).map_err(|error| wrong(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(wrong("it must begin with https:// or http://"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("it holds credentials"));
    }
    Ok(url)
}

fn resolve_alias(provider: &'static str, model: &str, llm: &Llm) -> String {
    match llm.model_aliases.get(model) {
        Some(current) => {
            tracing::warn!(
                provider,
                asked = model,
                used = current,
                "the model's name is an alias (llm.model_aliases)"
            );
            current.clone()
        }
        None => model.to_owned(),
    }
}

fn patience(llm: &Llm) -> Patience {
    Patience {
        connect: Duration::from_millis(llm.connect_timeout_ms),
        first_byte: Duration::from_millis(llm.first_byte_timeout_ms),
        idle: Duration::from_millis(llm.idle_timeout_ms),
        retries_max: u32::try_from(llm.retries_max).unwrap_or(u32::MAX),
        pause: RETRY_PAUSE,
        pause_max: RETRY_PAUSE_MAX,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;
    use service::Config;

    use super::*;

    fn keys(anthropic: Option<&str>, openai: Option<&str>) -> Secrets {
        Secrets {
            anthropic_api_key: anthropic.map(Secret::new),
            openai_api_key: openai.map(Secret::new),
            ..Secrets::default()
        }
    }

    /// `provider model` of what is chosen, or the error.
    fn choose(asked: Value, llm: &Llm, secrets: &Secrets) -> String {
        let Value::Object(asked) = asked else {
            panic!("an object")
        };
        let own_key = OwnKey {
            key: Secret::new("sk-own"),
            source: "the Secret".into(),
        };
        let wanted = match wanted_key(&asked, llm, secrets) {
            Ok(wanted) => wanted,
            Err(error) => return error.to_string(),
        };
        match from_config(&asked, llm, secrets, wanted.map(|_| &own_key)) {
            Ok(choice) => format!("{} {}", choice.provider.name(), choice.provider.model()),
            Err(error) => {
                let text = error.to_string();
                assert!(!text.contains("sk-"), "{text}");
                text
            }
        }
    }

    #[test]
    fn the_workflow_then_the_configuration_then_the_keys_decide() {
        let llm = Config::default().llm;
        let both = keys(Some("sk-a"), Some("sk-o"));
        let anthropic = format!("anthropic {}", llm.default_model_anthropic);
        let openai = format!("openai {}", llm.default_model_openai);
        assert_eq!(choose(json!({}), &llm, &both), anthropic);
        assert_eq!(choose(json!({}), &llm, &keys(None, Some("sk-o"))), openai);
        assert_eq!(
            choose(json!({"provider": "openai", "model": "x"}), &llm, &both),
            "openai x"
        );
        assert_eq!(
            choose(
                json!({"provider": "anthropic", "model": "claude-3-5-sonnet"}),
                &llm,
                &both
            ),
            format!("anthropic {}", llm.model_aliases["claude-3-5-sonnet"])
        );
        let by_default = Llm {
            default_provider: Some("openai".into()),
            ..llm.clone()
        };
        assert_eq!(choose(json!({}), &by_default, &both), openai);
        let none = choose(json!({}), &llm, &Secrets::default());
        assert!(
            none.contains("ANTHROPIC_API_KEY") && none.contains("OPENAI_API_KEY"),
            "{none}"
        );
        let no_key = choose(json!({"provider": "openai"}), &llm, &keys(Some("sk-a"), None));
        assert!(no_key.contains("set OPENAI_API_KEY"), "{no_key}");
    }

    #[test]
    fn the_operators_key_goes_only_where_the_configuration_says() {
        let llm = Llm {
            allowed_endpoints: vec!["https://gateway.example.com/v1".into()],
            ..Config::default().llm
        };
        let secrets = Secrets {
            openai_base_url: Some("http://vllm:8000/v1".into()),
            ..keys(Some("sk-a"), Some("sk-o"))
        };
        let at = |provider: &str, endpoint: &str| {
            choose(
                json!({"provider": provider, "model": "m", "endpoint": endpoint}),
                &llm,
                &secrets,
            )
        };
        for (provider, endpoint) in [
            ("anthropic", "https://api.anthropic.com"),
            ("anthropic", "https://gateway.example.com/other/path"),
            ("openai", "http://vllm:8000"),
            ("openai", "https://gateway.example.com:443"),
        ] {
            assert_eq!(at(provider, endpoint), format!("{provider} m"), "{endpoint}");
        }
        for (provider, endpoint) in [
            ("anthropic", "http://api.anthropic.com"),
            ("anthropic", "https://api.anthropic.com:8443"),
            ("anthropic", "https://api.anthropic.com.evil.example"),
            ("anthropic", "http://vllm:8000"),
            // The default address was moved, so the vendor's own is not it any more.
            ("openai", "https://api.openai.com/v1"),
            ("openai", "https://evil.example"),
            ("openai", "https://gateway.example.com@evil.example"),
            ("openai", "file:///etc/passwd"),
            ("openai", "not an address"),
        ] {
            let said = at(provider, endpoint);
            assert!(
                said.contains("llm.allowed_endpoints") || said.contains("is not an address"),
                "{endpoint}: {said}"
            );
        }
    }

    #[test]
    fn a_workflows_own_key_takes_the_place_of_the_operators() {
        let llm = Config::default().llm;
        let secrets = keys(Some("sk-a"), Some("sk-o"));
        let asked = json!({"provider": "openai", "model": "m", "endpoint": "https://e.example", "api_key_secret": "k"});
        let Value::Object(asked) = asked else {
            panic!("an object")
        };
        assert_eq!(
            wanted_key(&asked, &llm, &secrets),
            Ok(Some(WantedKey {
                secret: "k".into(),
                variable: "OPENAI_API_KEY"
            }))
        );
        let own_key = OwnKey {
            key: Secret::new("sk-own"),
            source: "the Secret".into(),
        };
        let look = |asked: &Map<String, Value>, own_key| {
            Found::look(openai::NAME, &read(asked).unwrap(), &llm, &secrets, own_key)
        };
        let found = look(&asked, Some(&own_key)).unwrap();
        assert_eq!(found.key.unwrap().expose(), "sk-own");
        assert_eq!(found.base.as_str(), "https://e.example/");
        let error = look(&asked, None).err().unwrap().to_string();
        assert!(error.contains("Secret `k`") && !error.contains("sk-"), "{error}");
        // A script needs no key, and a workflow that names no Secret has none read.
        for asked in [
            json!({"provider": "scripted", "model": "x", "api_key_secret": "k"}),
            json!({"provider": "openai"}),
        ] {
            let asked = asked.as_object().unwrap();
            assert_eq!(wanted_key(asked, &llm, &secrets), Ok(None));
        }
    }

    #[test]
    fn servers_of_ones_own_need_no_key() {
        let llm = Llm {
            allowed_endpoints: vec!["http://ollama:11434".into()],
            ..Config::default().llm
        };
        let asked = json!({"provider": "openai", "model": "m", "endpoint": "http://ollama:11434"});
        assert_eq!(choose(asked, &llm, &Secrets::default()), "openai m");
    }

    #[test]
    fn base_addresses_lead_to_the_calls_address_however_they_end() {
        let join = |endpoint: fn(&Url) -> Url, base: &str| endpoint(&Url::parse(base).unwrap()).to_string();
        for base in [
            "https://h",
            "https://h/",
            "https://h/v1",
            "https://h/v1/",
            "https://h/v1/messages",
        ] {
            assert_eq!(join(anthropic::endpoint, base), "https://h/v1/messages");
        }
        for base in [
            "https://h",
            "https://h/v1",
            "https://h/v1/",
            "https://h/v1/chat/completions",
        ] {
            assert_eq!(join(openai::endpoint, base), "https://h/v1/chat/completions");
        }
        assert_eq!(
            join(openai::endpoint, "https://h/openai"),
            "https://h/openai/chat/completions"
        );
    }
}
