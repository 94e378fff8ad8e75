//! Reaching the API server: by a kubeconfig, or as the pod's own service account.
//!
//! Invariant: nothing is asked of the server here. A cluster that is away is found by the first request, and
//! is no reason to end a service.

use std::{path::Path, time::Duration};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::Endpoint;

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a read may last without a byte: longer than the five minutes after which a watch ends by itself.
const READ_TIMEOUT: Duration = Duration::from_secs(310);

/// A way to one API server. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    /// For requests.
    pub client: Client,
    /// Namespace that requests mean where they name none: the pod's own, or the kubeconfig's.
    pub namespace: String,
    /// Address of the API server, for logs and errors.
    pub address: String,
    /// The same for programs that are started with a token of their own.
    pub endpoint: Endpoint,
}

/// Why there is no way to a cluster.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig is missing or cannot be used.
    #[error("kubernetes.kubeconfig {path}: {reason}")]
    Kubeconfig {
        /// Which file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is neither a service account nor a kubeconfig.
    #[error(
        "no Kubernetes cluster is known: {0}; run in a pod with a service account, or name a kubeconfig in kubernetes.kubeconfig (FIST_KUBERNETES_KUBECONFIG)"
    )]
    Unknown(String),
}

/// The cluster that `kubernetes` in the configuration means.
///
/// # Errors
/// [`ConnectError`] where nothing leads to a cluster. That it answers is not tried.
pub async fn connect(settings: &service::config::Kubernetes) -> Result<Cluster, ConnectError> {
    let config = match &settings.kubeconfig {
        Some(path) => of_file(path).await.map_err(|error| ConnectError::Kubeconfig {
            path: path.display().to_string(),
            reason: error.to_string(),
        })?,
        None => Config::infer()
            .await
            .map_err(|error| ConnectError::Unknown(error.to_string()))?,
    };
    of_config(config)
}

async fn of_file(path: &Path) -> Result<Config, kube::config::KubeconfigError> {
    let kubeconfig = Kubeconfig::read_from(path)?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await
}

fn of_config(mut config: Config) -> Result<Cluster, ConnectError> {
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    let namespace = config.default_namespace.clone();
    let address = config.cluster_url.to_string();
    let endpoint = Endpoint::of(&config);
    let client = Client::try_from(config).map_err(|error| ConnectError::Unknown(error.to_string()))?;
    Ok(Cluster {
        client,
        namespace,
        address,
        endpoint,
    })
}
