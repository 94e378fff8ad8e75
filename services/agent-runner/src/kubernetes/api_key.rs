//! The provider's key that a workflow brings in a Secret of its own namespace (`api_key_secret`).
//!
//! Invariants: the key is in what is returned and nowhere else, no error holds it; it is read for one step, and
//! not kept, so that a key that was changed or taken away counts from the next step on.

use k8s_openapi::api::core::v1::Secret as KubernetesSecret;
use kube::Api;
use service::config::Secret;

use super::{Kubernetes, Refusal};

/// The entry that is looked for after the one with the provider's own variable name.
const ENTRY: &str = "api-key";
/// Bytes of a key; a longer one is something else.
const KEY_BYTES_MAX: usize = 8 * 1024;

/// A key that a workflow brought.
#[derive(Clone, Debug)]
pub struct OwnKey {
    /// The key.
    pub key: Secret,
    /// Where it is from, for errors.
    pub source: String,
}

/// Why there is no key.
#[derive(Debug)]
pub enum KeyError {
    /// Trying again cannot help; what is wrong, and the remedy.
    Refused(String),
    /// The cluster is away just now.
    Away(String),
}

impl Kubernetes {
    /// Reads the Secret `name` of the workflow's `namespace`; `variable` is the provider's.
    ///
    /// # Errors
    /// [`KeyError`], which names the Secret and the remedy.
    pub async fn api_key(&self, namespace: &str, name: &str, variable: &str) -> Result<OwnKey, KeyError> {
        let source =
            format!("the Secret `{name}` of the namespace `{namespace}` (llm_config.api_key_secret)");
        let cluster = self
            .cluster()
            .await
            .map_err(|refusal| refused(refusal, &source, name, namespace))?;
        let secrets: Api<KubernetesSecret> = Api::namespaced(cluster.client.clone(), namespace);
        let found = self
            .request(cluster, secrets.get(name))
            .await
            .map_err(|refusal| refused(refusal, &source, name, namespace))?;
        let key = entry(found, variable).map_err(|reason| KeyError::Refused(format!("{source} {reason}")))?;
        Ok(OwnKey { key, source })
    }
}

fn refused(refusal: Refusal, source: &str, name: &str, namespace: &str) -> KeyError {
    match refusal {
        // The server's text names the account.
        Refusal::Forbidden(said) => KeyError::Refused(format!(
            "{source} may not be read: the namespace must opt in by a Role with `get` on `secrets` with resourceNames \
             [{name}] in {namespace}, bound to the agent-runner's service account (with the chart: \
             agentRunner.apiKeySecrets) ({said})"
        )),
        Refusal::NotFound => KeyError::Refused(format!(
            "{source} does not exist: make it with `kubectl create secret generic {name} --namespace {namespace} \
             --from-file={ENTRY}=FILE`, or name another"
        )),
        Refusal::Other(reason) => KeyError::Refused(format!("{source} cannot be read: {reason}")),
        Refusal::Away(reason) => KeyError::Away(format!("{source} cannot be read just now: {reason}")),
    }
}

/// The key in it: under the provider's variable name, else under `api-key`, else the only entry.
fn entry(secret: KubernetesSecret, variable: &str) -> Result<Secret, String> {
    let mut data = secret.data.unwrap_or_default();
    let entries = data.len();
    let found = data.remove(variable).or_else(|| data.remove(ENTRY)).or_else(|| {
        (entries == 1)
            .then(|| data.pop_first())
            .flatten()
            .map(|(_, bytes)| bytes)
    });
    let Some(bytes) = found else {
        return Err(match entries {
            0 => format!("is empty: put the key under `{variable}` or `{ENTRY}`"),
            _ => format!("has {entries} entries and none is `{variable}` or `{ENTRY}`: name the key's so"),
        });
    };
    // A file's last newline is no part of the key.
    let text = String::from_utf8(bytes.0).unwrap_or_default().trim().to_owned();
    let is_key =
        !text.is_empty() && text.len() <= KEY_BYTES_MAX && text.bytes().all(|byte| byte.is_ascii_graphic());
    match is_key {
        true => Ok(Secret::new(text)),
        false => Err("holds no key: it must be one word of ASCII, without spaces".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::ByteString;

    use super::*;

    fn found(entries: &[(&str, &[u8])]) -> String {
        let data: BTreeMap<String, ByteString> = entries
            .iter()
            .map(|(name, bytes)| ((*name).to_owned(), ByteString(bytes.to_vec())))
            .collect();
        let secret = KubernetesSecret {
            data: Some(data),
            ..KubernetesSecret::default()
        };
        match entry(secret, "OPENAI_API_KEY") {
            Ok(key) => key.expose().to_owned(),
            Err(reason) => {
                assert!(!reason.contains("sk-"), "{reason}");
                reason
            }
        }
    }

    #[test]
    fn the_key_is_found_by_its_name_and_without_its_newline() {
        assert_eq!(
            found(&[
                ("ANTHROPIC_API_KEY", b"sk-a"),
                ("OPENAI_API_KEY", b"sk-o\n"),
                ("api-key", b"sk-x")
            ]),
            "sk-o"
        );
        assert_eq!(
            found(&[("ANTHROPIC_API_KEY", b"sk-a"), ("api-key", b"sk-x")]),
            "sk-x"
        );
        assert_eq!(found(&[("whatever", b"sk-w")]), "sk-w");
        assert_eq!(
            found(&[("one", b"sk-1"), ("two", b"sk-2")]),
            "has 2 entries and none is `OPENAI_API_KEY` or `api-key`: name the key's so"
        );
        assert_eq!(
            found(&[]),
            "is empty: put the key under `OPENAI_API_KEY` or `api-key`"
        );
        for bytes in [
            b"".as_slice(),
            b" \n",
            b"sk- two words",
            b"sk-\xff",
            &[b'k'; 9000],
        ] {
            assert_eq!(
                found(&[("api-key", bytes)]),
                "holds no key: it must be one word of ASCII, without spaces"
            );
        }
    }
}
