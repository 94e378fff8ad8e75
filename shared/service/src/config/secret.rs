//! Values that must not be seen: tokens, passwords, API keys.
//!
//! Invariant: the only way to the text is [`Secret::expose`]; printing,
//! logging or serializing a secret gives a fixed word, whatever its length.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::OnceLock;

use serde::{Serialize, Serializer};

use super::{ConfigErrors, Llm, Problem, read_secret_file};

/// What stands wherever a secret would have been printed.
pub const REDACTED: &str = "(hidden)";

/// A text that is never printed, logged or serialized.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text; from here on it is only visible through [`Secret::expose`].
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Stands for a secret whose file this process cannot read. It equals
    /// nothing that anyone could send: a door that was to be locked must not
    /// open because its key is missing.
    pub(super) fn unreadable() -> Self {
        static ONCE: OnceLock<String> = OnceLock::new();
        let text = ONCE.get_or_init(|| {
            let half = || RandomState::new().build_hasher().finish();
            format!("{:016x}{:016x}", half(), half())
        });
        Self(text.clone())
    }

    /// The text itself, for the one place that sends or compares it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

/// The operator's own credentials of LLM providers, and where they may go.
///
/// They are named by the vendors, not by us, so they come from the environment
/// under the vendors' names, or from the files that `[llm]` names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Secrets {
    /// `ANTHROPIC_API_KEY`, else the content of `llm.anthropic_api_key_file`.
    pub anthropic_api_key: Option<Secret>,
    /// `OPENAI_API_KEY`, else the content of `llm.openai_api_key_file`.
    pub openai_api_key: Option<Secret>,
    /// `ANTHROPIC_BASE_URL`: the default address, where it is not the vendor's.
    pub anthropic_base_url: Option<String>,
    /// `OPENAI_BASE_URL`: likewise.
    pub openai_base_url: Option<String>,
}

impl Secrets {
    /// Reads this process's environment and the configured files.
    ///
    /// # Errors
    /// Every file that cannot be read or is empty, at once.
    pub fn from_env(llm: &Llm) -> Result<Self, ConfigErrors> {
        Self::read(llm, super::process_env())
    }

    /// Reads the given environment and the configured files; see
    /// [`Secrets::from_env`].
    ///
    /// # Errors
    /// Every file that cannot be read or is empty, at once.
    pub fn read(llm: &Llm, env: impl Iterator<Item = (String, String)>) -> Result<Self, ConfigErrors> {
        let mut secrets = Self::default();
        for (name, value) in env.filter(|(_, value)| !value.trim().is_empty()) {
            let value = value.trim();
            match name.as_str() {
                "ANTHROPIC_API_KEY" => secrets.anthropic_api_key = Some(Secret::new(value)),
                "OPENAI_API_KEY" => secrets.openai_api_key = Some(Secret::new(value)),
                "ANTHROPIC_BASE_URL" => secrets.anthropic_base_url = Some(value.to_owned()),
                "OPENAI_BASE_URL" => secrets.openai_base_url = Some(value.to_owned()),
                _ => {}
            }
        }
        let mut problems = Vec::new();
        let files = [
            (
                "llm.anthropic_api_key_file",
                &llm.anthropic_api_key_file,
                &mut secrets.anthropic_api_key,
            ),
            (
                "llm.openai_api_key_file",
                &llm.openai_api_key_file,
                &mut secrets.openai_api_key,
            ),
        ];
        for (key, path, slot) in files {
            let (None, Some(path)) = (&slot, path) else {
                continue;
            };
            match read_secret_file(path) {
                Ok(text) => *slot = Some(Secret::new(text)),
                Err(reason) => problems.push(Problem::new(key, Some(&format!("{path:?}")), reason)),
            }
        }
        if problems.is_empty() {
            Ok(secrets)
        } else {
            Err(ConfigErrors { problems })
        }
    }
}
