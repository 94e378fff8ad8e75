//! What is asked of the API server about one pod, each within a bound, and what its refusals mean.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Error,
    api::{DeleteParams, PostParams, Preconditions},
};
use tokio::time::timeout;

use crate::executor::ExecutorError;

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// How soon a task comes again after the API server could not be asked.
const AWAY_AGAIN_AFTER: Duration = Duration::from_secs(3);
/// How soon a task comes again for which there is no room.
const NO_ROOM_AGAIN_AFTER: Duration = Duration::from_secs(10);
/// Attempts at a deletion.
const DELETE_TRIES_MAX: u32 = 3;

/// The pods of one namespace.
#[derive(Clone)]
pub struct Requests {
    pub api: Api<Pod>,
}

/// What came of making a pod.
pub enum Created {
    /// It was made.
    New(Box<Pod>),
    /// Its name is taken.
    Taken,
}

impl Requests {
    pub fn new(api: Api<Pod>) -> Self {
        Self { api }
    }

    /// Makes a pod.
    pub async fn create(&self, pod: &Pod) -> Result<Created, ExecutorError> {
        match timeout(REQUEST_TIMEOUT, self.api.create(&PostParams::default(), pod)).await {
            Ok(Ok(pod)) => Ok(Created::New(Box::new(pod))),
            Ok(Err(Error::Api(status))) if status.reason == "AlreadyExists" => Ok(Created::Taken),
            Ok(Err(error)) => Err(refused("create pods", error)),
            Err(_) => Err(away("did not answer in time")),
        }
    }

    /// A pod as it is now.
    pub async fn get(&self, name: &str) -> Result<Option<Pod>, ExecutorError> {
        match timeout(REQUEST_TIMEOUT, self.api.get_opt(name)).await {
            Ok(Ok(pod)) => Ok(pod),
            Ok(Err(error)) => Err(refused("get pods", error)),
            Err(_) => Err(away("did not answer in time")),
        }
    }

    /// Has this very pod deleted, its command asked to end first; a sweep takes what cannot be deleted now.
    pub async fn delete(&self, name: &str, uid: &str, grace_seconds: i64) {
        let precondition = Some(Preconditions {
            uid: Some(uid.to_owned()),
            ..Preconditions::default()
        });
        self.delete_with(
            name,
            &DeleteParams {
                grace_period_seconds: u32::try_from(grace_seconds).ok(),
                preconditions: precondition,
                ..DeleteParams::default()
            },
        )
        .await;
    }

    /// Has a pod deleted whose command is over.
    pub async fn remove(&self, name: &str) {
        self.delete_with(
            name,
            &DeleteParams {
                grace_period_seconds: Some(0),
                ..DeleteParams::default()
            },
        )
        .await;
    }

    async fn delete_with(&self, name: &str, parameters: &DeleteParams) {
        let mut last = String::new();
        for _ in 0..DELETE_TRIES_MAX {
            match timeout(REQUEST_TIMEOUT, self.api.delete(name, parameters)).await {
                Ok(Ok(_)) => return,
                // Gone already, or another of the same name.
                Ok(Err(Error::Api(status))) if matches!(status.code, 404 | 409) => return,
                Ok(Err(error)) => last = error.to_string(),
                Err(_) => "no answer in time".clone_into(&mut last),
            }
        }
        tracing::warn!(
            pod = name,
            error = last,
            "a pod could not be deleted; the next sweep tries again"
        );
    }
}

fn away(reason: &str) -> ExecutorError {
    ExecutorError::Unavailable {
        after: AWAY_AGAIN_AFTER,
        reason: format!("the Kubernetes API server {reason}"),
    }
}

/// What a refusal means: whether it passes, and what is to be done.
fn refused(verb: &str, error: Error) -> ExecutorError {
    let status = match error {
        Error::Api(status) => status,
        other => return away(&format!("cannot be reached: {}", cluster::reason(&other))),
    };
    let message = &status.message;
    match status.code {
        403 if message.contains("exceeded quota") => ExecutorError::Unavailable {
            after: NO_ROOM_AGAIN_AFTER,
            reason: format!("the namespace's quota is used up: {message}"),
        },
        403 if message.contains("is forbidden: User") || message.contains("cannot") => {
            ExecutorError::CannotStart(format!(
                "the cli-runner's service account may not {verb}: {message}; grant it the role that the chart has for it"
            ))
        }
        404 => ExecutorError::CannotStart(format!("{message}; make the namespace, or set cli.pod_namespace")),
        401 | 408 | 409 | 429 | 500.. => away(&format!("answered {}: {message}", status.code)),
        _ => ExecutorError::CannotStart(format!("Kubernetes refuses the step's pod: {message}")),
    }
}
