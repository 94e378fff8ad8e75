//! How a pod stands, in our words: what Kubernetes says of it in conditions, phases and containers' states.
//!
//! Invariant: Kubernetes' own reason and message are in every text.

use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};

/// How a pod stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its command has not begun, for the reason where there is one.
    Waiting(Option<String>),
    /// Its command cannot begin as things are: the kind of trouble, and the reason.
    Stuck(Trouble, String),
    /// Its command runs.
    Running,
    /// Its command is over.
    Ended(Ending),
    /// The node or Kubernetes ended it, for this reason.
    Lost(String),
}

/// How soon trouble is taken for lasting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// An image that cannot be pulled: a registry may have had a bad moment.
    Image,
    /// A container that cannot be made of what the pod says.
    Container,
}

/// How a pod's command ended, by the container's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With this code.
    Exited(i32),
    /// It took more memory than it may.
    OutOfMemory(i32),
    /// It was never started.
    NotStarted(String),
    /// Kubernetes' own deadline passed.
    DeadlineExceeded,
}

/// How `pod` stands.
pub fn standing(pod: &Pod) -> Standing {
    let Some(status) = &pod.status else {
        return Standing::Waiting(None);
    };
    let reason = status.reason.as_deref().unwrap_or_default();
    let container = status.container_statuses.as_ref().and_then(|all| all.first());
    let state = container.and_then(|container| container.state.as_ref());
    if status.phase.as_deref() == Some("Failed") && reason == "DeadlineExceeded" {
        return Standing::Ended(Ending::DeadlineExceeded);
    }
    // Evicted, NodeLost, Preempting, Shutdown, UnexpectedAdmissionError, OutOfcpu, …
    if status.phase.as_deref() == Some("Failed") && !reason.is_empty() {
        return Standing::Lost(said(reason, status.message.as_deref()));
    }
    if let Some(terminated) = state.and_then(|state| state.terminated.as_ref()) {
        return Standing::Ended(ending(terminated));
    }
    if state.is_some_and(|state| state.running.is_some()) {
        return Standing::Running;
    }
    if status.phase.as_deref() == Some("Failed") {
        return Standing::Lost("Failed, and Kubernetes does not say why".to_owned());
    }
    match container {
        Some(container) => waiting(container),
        None => Standing::Waiting(unscheduled(pod)),
    }
}

fn ending(terminated: &ContainerStateTerminated) -> Ending {
    let reason = terminated.reason.as_deref().unwrap_or_default();
    match reason {
        "OOMKilled" => Ending::OutOfMemory(terminated.exit_code),
        "StartError" | "ContainerCannotRun" | "RunContainerError" => {
            Ending::NotStarted(said(reason, terminated.message.as_deref()))
        }
        _ => Ending::Exited(terminated.exit_code),
    }
}

fn waiting(container: &ContainerStatus) -> Standing {
    let Some(waiting) = container.state.as_ref().and_then(|state| state.waiting.as_ref()) else {
        return Standing::Waiting(None);
    };
    let reason = waiting.reason.as_deref().unwrap_or_default();
    let text = || said(reason, waiting.message.as_deref());
    match reason {
        "ErrImagePull"
        | "ImagePullBackOff"
        | "InvalidImageName"
        | "ErrImageNeverPull"
        | "RegistryUnavailable"
        | "ImageInspectError"
        | "SignatureValidationFailed" => {
            Standing::Stuck(Trouble::Image, format!("{} (image {})", text(), container.image))
        }
        "CreateContainerConfigError"
        | "CreateContainerError"
        | "RunContainerError"
        | "PreCreateHookError"
        | "PreStartHookError"
        | "PostStartHookError" => Standing::Stuck(Trouble::Container, text()),
        "" | "ContainerCreating" | "PodInitializing" => Standing::Waiting(None),
        _ => Standing::Waiting(Some(text())),
    }
}

/// What the Kubernetes scheduler says of a pod that has no node.
fn unscheduled(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions
        .iter()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")?;
    let reason = condition.reason.as_deref().unwrap_or_default();
    Some(said(reason, condition.message.as_deref()))
}

fn said(reason: &str, message: Option<&str>) -> String {
    match message.map(str::trim) {
        Some(message) if !message.is_empty() => format!("{reason}: {message}"),
        _ => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    use super::*;

    fn check(status: Value, expected: Expect) {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "status": status})).unwrap();
        expected.assert_eq(&format!("{:?}", standing(&pod)));
    }

    fn container(state: Value) -> Value {
        json!([{"name": "command", "image": "img:1", "imageID": "", "ready": false, "restartCount": 0, "state": state}])
    }

    #[test]
    fn what_kubernetes_says_in_our_words() {
        check(json!({"phase": "Pending"}), expect!["Waiting(None)"]);
        check(
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False",
                "reason": "Unschedulable", "message": "0/1 nodes are available: 1 Insufficient memory."}]}),
            expect![[r#"Waiting(Some("Unschedulable: 0/1 nodes are available: 1 Insufficient memory."))"#]],
        );
        check(
            json!({"phase": "Pending", "containerStatuses": container(json!({"waiting": {"reason": "ErrImagePull", "message": "not found"}}))}),
            expect![[r#"Stuck(Image, "ErrImagePull: not found (image img:1)")"#]],
        );
        check(
            json!({"phase": "Pending", "containerStatuses": container(json!({"waiting": {"reason": "CreateContainerConfigError", "message": "container has runAsNonRoot"}}))}),
            expect![[r#"Stuck(Container, "CreateContainerConfigError: container has runAsNonRoot")"#]],
        );
        check(
            json!({"phase": "Running", "containerStatuses": container(json!({"running": {}}))}),
            expect!["Running"],
        );
        check(
            json!({"phase": "Failed", "containerStatuses": container(json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}))}),
            expect!["Ended(OutOfMemory(137))"],
        );
        check(
            json!({"phase": "Succeeded", "containerStatuses": container(json!({"terminated": {"exitCode": 0, "reason": "Completed"}}))}),
            expect!["Ended(Exited(0))"],
        );
        check(
            json!({"phase": "Failed", "containerStatuses": container(json!({"terminated": {"exitCode": 128, "reason": "StartError", "message": "exec: /bin/sh: not found"}}))}),
            expect![[r#"Ended(NotStarted("StartError: exec: /bin/sh: not found"))"#]],
        );
        check(
            json!({"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}),
            expect![[r#"Lost("Evicted: The node was low on resource: memory.")"#]],
        );
        check(
            json!({"phase": "Failed", "reason": "DeadlineExceeded"}),
            expect!["Ended(DeadlineExceeded)"],
        );
    }
}
