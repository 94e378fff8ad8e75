//! The account with which the agents' kubectl runs: its tokens are asked for by the TokenRequest API, so that
//! what an agent's command holds cannot read what the agent-runner itself can.
//!
//! Invariants: a token lives an hour at most and in memory; whoever asks gets one that lives long enough for a
//! call.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cluster::Endpoint;
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, api::PostParams};
use service::config::Secret;
use tokio::sync::Mutex;

use super::{Kubernetes, Refusal};

/// How long a token is asked to live.
const LIFETIME: Duration = Duration::from_secs(3600);
/// With less than this left, the last token is not used even where no other can be had: more than any call takes.
const LEFT_MIN: Duration = Duration::from_secs(300);

/// A service account in this process's namespace, whose tokens we ask for.
pub struct Investigator {
    kubernetes: Arc<Kubernetes>,
    account: String,
    /// Held while one is asked for: who comes meanwhile waits, and gets the same.
    token: Mutex<Option<Token>>,
}

struct Token {
    text: Secret,
    number: u64,
    begun: Instant,
    lifetime: Duration,
}

/// What a kubectl needs to run as the account.
pub struct Pass {
    /// The token.
    pub token: Secret,
    /// Where it is good.
    pub endpoint: Endpoint,
    /// Another number for another token.
    pub number: u64,
}

impl Token {
    fn left(&self) -> Duration {
        self.lifetime.saturating_sub(self.begun.elapsed())
    }
}

impl Investigator {
    /// The account of this name.
    pub fn new(kubernetes: Arc<Kubernetes>, account: &str) -> Arc<Self> {
        Arc::new(Self {
            kubernetes,
            account: account.to_owned(),
            token: Mutex::default(),
        })
    }

    /// A token that lives a while longer. Half-way through its life the next one is asked for.
    ///
    /// # Errors
    /// Why there is none, and the remedy.
    pub async fn pass(&self) -> Result<Pass, String> {
        let mut token = self.token.lock().await;
        let is_fresh = |token: &Token| token.left() > token.lifetime / 2;
        if !token.as_ref().is_some_and(is_fresh) {
            let number = token.as_ref().map_or(1, |token| token.number + 1);
            match self.request(number).await {
                Ok(next) => *token = Some(next),
                Err(refusal) => {
                    let reason = self.told(&refusal).await;
                    tracing::warn!(
                        account = self.account,
                        reason,
                        "no new token for the kubectl tool"
                    );
                    if token.as_ref().is_none_or(|token| token.left() < LEFT_MIN) {
                        return Err(reason);
                    }
                }
            }
        }
        let cluster = self.kubernetes.cluster().await.map_err(text)?;
        match token.as_ref() {
            Some(token) => Ok(Pass {
                token: token.text.clone(),
                endpoint: cluster.endpoint.clone(),
                number: token.number,
            }),
            None => Err(format!("there is no token of {}", self.account)),
        }
    }

    /// The server does not take that token any more: the account was made anew, for example.
    pub async fn forget(&self, number: u64) {
        let mut token = self.token.lock().await;
        if let Some(known) = token.as_mut()
            && known.number == number
        {
            known.lifetime = Duration::ZERO;
        }
    }

    async fn request(&self, number: u64) -> Result<Token, Refusal> {
        let cluster = self.kubernetes.cluster().await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        let asked = TokenRequest {
            spec: TokenRequestSpec {
                expiration_seconds: Some(i64::try_from(LIFETIME.as_secs()).unwrap_or(i64::MAX)),
                ..TokenRequestSpec::default()
            },
            ..TokenRequest::default()
        };
        let begun = Instant::now();
        let post = PostParams::default();
        let request = accounts.create_token_request(&self.account, &post, &asked);
        let given = self.kubernetes.request(cluster, request).await?;
        let granted = given
            .spec
            .expiration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok());
        match given.status {
            Some(status) if !status.token.is_empty() => Ok(Token {
                text: Secret::new(status.token),
                number,
                begun,
                // A server may grant less than was asked for.
                lifetime: granted.map_or(LIFETIME, Duration::from_secs).min(LIFETIME),
            }),
            _ => Err(Refusal::Other(format!(
                "the Kubernetes API at {} gave no token",
                cluster.address
            ))),
        }
    }

    async fn told(&self, refusal: &Refusal) -> String {
        let namespace = match self.kubernetes.cluster().await {
            Ok(cluster) => cluster.namespace.as_str(),
            Err(_) => "",
        };
        let account = &self.account;
        match refusal {
            Refusal::Forbidden(said) => format!(
                "the agent-runner may not have tokens of the service account {namespace}/{account} \
                 (tools.kubectl_service_account): the operator must grant its own account `create` on \
                 `serviceaccounts/token` with resourceNames [{account}] in {namespace} ({said})"
            ),
            Refusal::NotFound => format!(
                "there is no service account {account} in the namespace {namespace} (tools.kubectl_service_account): the \
                 operator must make it there, or name another"
            ),
            Refusal::Other(reason) | Refusal::Away(reason) => {
                format!("no token of the service account {account} (tools.kubectl_service_account): {reason}")
            }
        }
    }
}

fn text(refusal: Refusal) -> String {
    match refusal {
        Refusal::Forbidden(text) | Refusal::Other(text) | Refusal::Away(text) => text,
        Refusal::NotFound => "not found".to_owned(),
    }
}
