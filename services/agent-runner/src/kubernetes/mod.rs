//! What an agent-runner wants of a cluster for itself: tokens for the agents' kubectl, and keys that workflows
//! bring.
//!
//! Invariants:
//! - The way to the cluster is sought when it is first needed: without one, whatever needs none works.
//! - Nothing is read but what is asked for by name.

mod api_key;
mod investigator;

use std::{future::Future, sync::Arc, time::Duration};

use cluster::Cluster;
use tokio::sync::OnceCell;

pub use api_key::{KeyError, OwnKey};
pub use investigator::{Investigator, Pass};

/// How long one request may take. Shorter than a tool's time, so that a server that is away is told as such.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The cluster, once it is needed.
pub struct Kubernetes {
    settings: service::config::Kubernetes,
    found: OnceCell<Cluster>,
}

/// Why a request gave nothing.
#[derive(Debug)]
enum Refusal {
    /// The server says 403; what it says of it.
    Forbidden(String),
    /// The server says 404.
    NotFound,
    /// The server refuses it for another reason, or nothing leads to a server.
    Other(String),
    /// The server is away, or not able to answer.
    Away(String),
}

impl Kubernetes {
    /// By these settings; nothing is tried yet.
    pub fn new(settings: service::config::Kubernetes) -> Arc<Self> {
        let found = OnceCell::new();
        Arc::new(Self { settings, found })
    }

    async fn cluster(&self) -> Result<&Cluster, Refusal> {
        // A failure is not kept: a kubeconfig may be put right while we run.
        let found = self
            .found
            .get_or_try_init(|| cluster::connect(&self.settings))
            .await;
        found.map_err(|error| Refusal::Other(error.to_string()))
    }

    async fn request<T>(
        &self,
        cluster: &Cluster,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Refusal> {
        let Ok(outcome) = tokio::time::timeout(REQUEST_TIMEOUT, request).await else {
            return Err(Refusal::Away(format!(
                "the Kubernetes API at {} did not answer within {} s",
                cluster.address,
                REQUEST_TIMEOUT.as_secs()
            )));
        };
        outcome.map_err(|error| match error {
            kube::Error::Api(status) => match status.code {
                403 => Refusal::Forbidden(status.message),
                404 => Refusal::NotFound,
                408 | 429 | 500.. => Refusal::Away(format!(
                    "the Kubernetes API at {} answers {}: {}",
                    cluster.address, status.code, status.message
                )),
                code => Refusal::Other(format!(
                    "the Kubernetes API at {} answers {code}: {}",
                    cluster.address, status.message
                )),
            },
            // An answer may be quoted by such an error, and an answer may hold a secret.
            kube::Error::SerdeError(_) => Refusal::Other(format!(
                "the Kubernetes API at {} gave an answer that cannot be read",
                cluster.address
            )),
            error => Refusal::Away(format!(
                "the Kubernetes API at {} cannot be reached: {}",
                cluster.address,
                cluster::reason(&error)
            )),
        })
    }
}
