//! Where the API server is and by what it is known, so that another program can be led there with a token that
//! is not ours.
//!
//! Invariant: nothing here holds a credential; [`Endpoint::kubeconfig`] puts in the token that it is given and no
//! other.

use std::path::PathBuf;

use k8s_openapi::ByteString;
use kube::Config;
use serde_json::{Map, Value, json};

/// Letters of one line of PEM.
const PEM_LINE_LETTERS: usize = 64;

/// An API server as this process reaches it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    server: String,
    authority: Authority,
    tls_server_name: Option<String>,
    proxy: Option<String>,
    is_unverified: bool,
}

/// Who vouches for the server.
#[derive(Clone, Debug)]
enum Authority {
    /// Whoever the machine trusts.
    Machine,
    /// A file, whose content may change while we run.
    File(PathBuf),
    /// These certificates, as PEM.
    Certificates(String),
}

impl Endpoint {
    pub(crate) fn of(config: &Config) -> Self {
        let authority = match (&config.root_cert_file, &config.root_cert) {
            (Some(file), _) => Authority::File(file.clone()),
            (None, Some(certificates)) => {
                Authority::Certificates(certificates.iter().map(|der| pem(der)).collect())
            }
            (None, None) => Authority::Machine,
        };
        Self {
            server: config.cluster_url.to_string(),
            authority,
            tls_server_name: config.tls_server_name.clone(),
            proxy: config.proxy_url.as_ref().map(ToString::to_string),
            is_unverified: config.accept_invalid_certs,
        }
    }

    /// A kubeconfig that leads there with this token. It is a secret, as the token is.
    ///
    /// # Errors
    /// When the file with the server's authority cannot be read.
    pub fn kubeconfig(&self, token: &str) -> std::io::Result<String> {
        let mut cluster = Map::new();
        cluster.insert("server".to_owned(), self.server.as_str().into());
        let authority = match &self.authority {
            Authority::Machine => None,
            Authority::File(file) => Some(std::fs::read(file)?),
            Authority::Certificates(pem) => Some(pem.clone().into_bytes()),
        };
        if self.is_unverified {
            cluster.insert("insecure-skip-tls-verify".to_owned(), true.into());
        } else if let Some(pem) = authority {
            cluster.insert("certificate-authority-data".to_owned(), base64(pem).into());
        }
        for (key, value) in [
            ("tls-server-name", &self.tls_server_name),
            ("proxy-url", &self.proxy),
        ] {
            if let Some(value) = value {
                cluster.insert(key.to_owned(), value.as_str().into());
            }
        }
        // JSON is YAML.
        Ok(json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "cluster", "cluster": cluster}],
            "users": [{"name": "account", "user": {"token": token}}],
            "contexts": [{"name": "account", "context": {"cluster": "cluster", "user": "account"}}],
            "current-context": "account",
        })
        .to_string())
    }
}

fn base64(bytes: Vec<u8>) -> String {
    match serde_json::to_value(ByteString(bytes)) {
        Ok(Value::String(text)) => text,
        _ => String::new(),
    }
}

fn pem(der: &[u8]) -> String {
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    let letters = base64(der.to_vec());
    let mut rest = letters.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(PEM_LINE_LETTERS));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text + "-----END CERTIFICATE-----\n"
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn endpoint(change: impl Fn(&mut Config)) -> Value {
        let mut config = Config::new("https://10.0.0.1:6443".parse().unwrap());
        change(&mut config);
        let text = Endpoint::of(&config).kubeconfig("t").unwrap();
        let mut kubeconfig: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(kubeconfig["users"][0]["user"], json!({"token": "t"}));
        kubeconfig["clusters"][0]["cluster"].take()
    }

    #[test]
    fn the_server_is_known_by_what_we_know_it_by() {
        assert_eq!(endpoint(|_| {}), json!({"server": "https://10.0.0.1:6443/"}));
        assert_eq!(
            endpoint(|config| {
                config.root_cert = Some(vec![vec![7; 50]]);
                config.tls_server_name = Some("kubernetes".into());
            }),
            json!({
                "server": "https://10.0.0.1:6443/",
                "tls-server-name": "kubernetes",
                "certificate-authority-data": base64(pem(&[7; 50]).into_bytes()),
            })
        );
        assert_eq!(
            endpoint(|config| {
                config.root_cert = Some(vec![vec![7]]);
                config.accept_invalid_certs = true;
            }),
            json!({"server": "https://10.0.0.1:6443/", "insecure-skip-tls-verify": true})
        );
        assert_eq!(
            pem(&[7; 50]),
            format!(
                "-----BEGIN CERTIFICATE-----\n{}\nBwc=\n-----END CERTIFICATE-----\n",
                "BwcH".repeat(16)
            )
        );
    }

    #[test]
    fn a_file_that_changes_is_read_each_time() {
        let file = std::env::temp_dir().join(format!("fist-authority-{}", std::process::id()));
        std::fs::write(&file, "one").unwrap();
        let mut config = Config::new("https://10.0.0.1:6443".parse().unwrap());
        config.root_cert_file = Some(file.clone());
        let endpoint = Endpoint::of(&config);
        std::fs::write(&file, "two").unwrap();
        assert!(
            endpoint
                .kubeconfig("t")
                .unwrap()
                .contains(&base64(b"two".to_vec()))
        );
        std::fs::remove_file(&file).unwrap();
        assert!(endpoint.kubeconfig("t").is_err());
    }
}
