//! The pod of one attempt.
//!
//! Invariants:
//! - It is admitted where the `restricted` pod security standard is enforced.
//! - Only a command that passed the fix gate gets the account that may change something.
//! - What the workflow wrote reaches the process as written: Kubernetes' own `$(NAME)` is escaped everywhere.

use std::collections::BTreeMap;

use cluster::names;
use k8s_openapi::{
    api::core::v1::{
        Capabilities, Container, EmptyDirVolumeSource, EnvVar, Pod, PodSecurityContext, PodSpec,
        ResourceRequirements, SeccompProfile, SecurityContext, Volume, VolumeMount,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use kube::api::ObjectMeta;
use protocol::Timestamp;
use serde_json::Value;

use super::{Settings, wrapper};
use crate::executor::Job;

/// The one container's name.
pub const CONTAINER: &str = "command";
/// Annotation with the mark of the log.
pub const MARK_ANNOTATION: &str = "punching-fist.io/log-mark";
/// Annotation with the moment at which the attempt must be over.
pub const DEADLINE_ANNOTATION: &str = "punching-fist.io/deadline";
/// Annotation with the namespace of the workflow.
pub const NAMESPACE_ANNOTATION: &str = "punching-fist.io/namespace";
/// Annotation with the name of the workflow.
pub const WORKFLOW_ANNOTATION: &str = "punching-fist.io/workflow";
/// User and group of commands, unless the image's own rules are stricter: `nonroot` of many small images.
const USER: i64 = 65532;
/// Bytes of a label's value, by Kubernetes' rules.
const LABEL_BYTES_MAX: usize = 63;
/// Seconds beyond the attempt's deadline after which Kubernetes itself ends the pod, should no runner do it.
const NET_SECONDS: i64 = 300;

/// The pod of `job`, whose log has `mark`.
pub fn pod(job: &Job, settings: &Settings, mark: &str, now: Timestamp) -> Pod {
    let account = if job.program.is_gated() {
        settings.fix_account.clone()
    } else {
        settings.account.clone()
    };
    let seconds = i64::try_from(job.deadline.since(now).as_secs()).unwrap_or(i64::MAX - NET_SECONDS);
    Pod {
        metadata: ObjectMeta {
            name: Some(job.name()),
            labels: Some(labels(job)),
            annotations: Some(annotations(job, mark)),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            restart_policy: Some("Never".to_owned()),
            automount_service_account_token: Some(account.is_some()),
            service_account_name: account,
            enable_service_links: Some(false),
            active_deadline_seconds: Some(seconds.max(1) + NET_SECONDS),
            termination_grace_period_seconds: Some(settings.kill_grace_seconds()),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(job.run_as_user.map_or(USER, i64::from)),
                run_as_group: Some(USER),
                fs_group: Some(USER),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    ..SeccompProfile::default()
                }),
                ..PodSecurityContext::default()
            }),
            containers: vec![container(job, settings, mark)],
            volumes: Some(vec![Volume {
                name: "stderr".to_owned(),
                empty_dir: Some(EmptyDirVolumeSource {
                    medium: Some("Memory".to_owned()),
                    size_limit: Some(Quantity(settings.limits.spill_bytes_max.to_string())),
                }),
                ..Volume::default()
            }]),
            ..PodSpec::default()
        }),
        status: None,
    }
}

fn container(job: &Job, settings: &Settings, mark: &str) -> Container {
    let mut command = vec![
        "/bin/sh".to_owned(),
        "-c".to_owned(),
        escaped(&wrapper::script(wrapper::VOLUME_PATH)),
        escaped(mark),
    ];
    command.extend(job.program.argv().into_iter().map(escaped));
    // Of the image's own environment everything stays; these are what local commands have too.
    let mut env = BTreeMap::from([
        ("HOME".to_owned(), "/tmp".to_owned()),
        ("LANG".to_owned(), "C.UTF-8".to_owned()),
    ]);
    env.extend(job.env.clone());
    let image = job.image.as_deref().unwrap_or(&settings.image);
    Container {
        name: CONTAINER.to_owned(),
        image: Some(image.to_owned()),
        image_pull_policy: settings.image_pull_policy.clone(),
        command: Some(command),
        env: Some(
            env.into_iter()
                .map(|(name, value)| EnvVar {
                    name,
                    value: Some(escaped(&value)),
                    value_from: None,
                })
                .collect(),
        ),
        resources: Some(resources(job, settings)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                add: None,
            }),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(vec![VolumeMount {
            name: "stderr".to_owned(),
            mount_path: wrapper::VOLUME_PATH.to_owned(),
            ..VolumeMount::default()
        }]),
        ..Container::default()
    }
}

/// Kubernetes replaces `$(NAME)` in commands and variables, and reads `$$` as `$`.
fn escaped(text: &str) -> String {
    text.replace('$', "$$")
}

/// The labels by which the pod is watched and people find it.
fn labels(job: &Job) -> BTreeMap<String, String> {
    let pair = |name: &str, value: String| (name.to_owned(), value);
    BTreeMap::from([
        pair(names::APP_LABEL, names::APP.to_owned()),
        pair(names::COMPONENT_LABEL, names::CLI_COMPONENT.to_owned()),
        pair(names::EXECUTION_LABEL, job.execution.to_string()),
        pair(names::STEP_LABEL, label_value(job.step.as_str())),
        pair(names::ATTEMPT_LABEL, job.attempt.to_string()),
    ])
}

fn annotations(job: &Job, mark: &str) -> BTreeMap<String, String> {
    let pair = |name: &str, value: String| (name.to_owned(), value);
    BTreeMap::from([
        pair(names::STEP_LABEL, job.step.to_string()),
        pair(NAMESPACE_ANNOTATION, job.namespace.to_string()),
        pair(WORKFLOW_ANNOTATION, job.workflow.to_string()),
        pair(DEADLINE_ANNOTATION, job.deadline.to_string()),
        pair(MARK_ANNOTATION, mark.to_owned()),
    ])
}

/// A step's name as a label's value: at most 63 bytes, with a letter or digit at both ends.
fn label_value(step: &str) -> String {
    let cut = &step[..step.len().min(LABEL_BYTES_MAX)];
    cut.trim_matches(['-', '_']).to_owned()
}

/// The step's own resources over the defaults, each resource for itself: a default that would contradict the
/// step's (a request over its limit) gives way.
fn resources(job: &Job, settings: &Settings) -> ResourceRequirements {
    let own = |kind: &str| -> BTreeMap<String, String> {
        let written = job.resources.as_ref().and_then(|all| all.get(kind));
        let pairs = written.and_then(Value::as_object).into_iter().flatten();
        pairs
            .map(|(name, value)| {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                (name.clone(), text)
            })
            .collect()
    };
    let (own_requests, own_limits) = (own("requests"), own("limits"));
    let with_defaults = |own: &BTreeMap<String, String>,
                         other: &BTreeMap<String, String>,
                         defaults: &BTreeMap<String, String>| {
        let mut all: BTreeMap<String, Quantity> = defaults
            .iter()
            .filter(|(name, _)| !other.contains_key(*name))
            .map(|(name, value)| (name.clone(), Quantity(value.clone())))
            .collect();
        all.extend(
            own.iter()
                .map(|(name, value)| (name.clone(), Quantity(value.clone()))),
        );
        all
    };
    ResourceRequirements {
        requests: Some(with_defaults(&own_requests, &own_limits, &settings.requests)),
        limits: Some(with_defaults(
            &own_limits,
            &own_requests,
            &settings.limits_default,
        )),
        claims: None,
    }
}

/// Whether a pod that was there already is this very attempt's.
pub fn is_of(pod: &Pod, job: &Job) -> bool {
    let is = |name: &str, value: String| {
        pod.metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(name))
            .is_some_and(|found| *found == value)
    };
    is(names::EXECUTION_LABEL, job.execution.to_string())
        && is(names::ATTEMPT_LABEL, job.attempt.to_string())
        && annotation(pod, names::STEP_LABEL) == Some(job.step.as_str())
        && annotation(pod, MARK_ANNOTATION).is_some()
}

/// One of the pod's annotations.
pub fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use protocol::{Attempt, ExecutionId, Namespace, StepName, WorkflowName};
    use serde_json::json;

    use super::*;
    use crate::{capture::Limits, executor::Program};

    fn job() -> Job {
        Job {
            namespace: Namespace::new("prod").unwrap(),
            execution: ExecutionId::derive(&["x"]),
            workflow: WorkflowName::new("w").unwrap(),
            step: StepName::new("get_pod").unwrap(),
            attempt: Attempt::FIRST,
            program: Program::Shell("echo $$ $(HOME) $X".into()),
            env: BTreeMap::from([("X".into(), "$(LANG)".into())]),
            image: None,
            resources: None,
            run_as_user: None,
            deadline: Timestamp::from_millis(60_000),
        }
    }

    fn settings() -> Settings {
        Settings {
            limits: Limits {
                inline_bytes_max: 1024,
                spill_bytes_max: 4096,
            },
            ..Settings::for_tests("ns", "img")
        }
    }

    #[test]
    fn a_pod_is_restricted_and_says_what_it_is() {
        let pod = pod(&job(), &settings(), "mark", Timestamp::from_millis(0));
        let value = serde_json::to_value(&pod).unwrap();
        let spec = &value["spec"];
        assert_eq!(
            spec["containers"][0]["command"].as_array().unwrap()[4..],
            [json!("/bin/sh"), json!("-c"), json!("echo $$$$ $$(HOME) $$X")]
        );
        assert_eq!(
            spec["containers"][0]["env"],
            json!([
                {"name": "HOME", "value": "/tmp"}, {"name": "LANG", "value": "C.UTF-8"},
                {"name": "X", "value": "$$(LANG)"}
            ])
        );
        assert_eq!(spec["serviceAccountName"], "cli");
        assert_eq!(spec["automountServiceAccountToken"], true);
        assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
        assert_eq!(
            spec["containers"][0]["securityContext"]["capabilities"],
            json!({"drop": ["ALL"]})
        );
        assert_eq!(spec["activeDeadlineSeconds"], 360);
        assert!(is_of(&pod, &job()));
        let mut second = job();
        second.attempt = Attempt::try_from(2).unwrap();
        assert!(!is_of(&pod, &second));
    }

    #[test]
    fn only_a_gated_command_gets_the_fixing_account() {
        let mut job = job();
        job.program = Program::Gated(vec!["kubectl".into(), "cordon".into(), "n$(X)".into()]);
        let value = serde_json::to_value(pod(&job, &settings(), "m", Timestamp::from_millis(0))).unwrap();
        assert_eq!(value["spec"]["serviceAccountName"], "fix");
        assert_eq!(
            value["spec"]["containers"][0]["command"].as_array().unwrap()[4..],
            [json!("kubectl"), json!("cordon"), json!("n$$(X)")]
        );
        let none = Settings {
            account: None,
            ..settings()
        };
        job.program = Program::Shell("true".into());
        let value = serde_json::to_value(pod(&job, &none, "m", Timestamp::from_millis(0))).unwrap();
        assert_eq!(
            (
                &value["spec"]["serviceAccountName"],
                &value["spec"]["automountServiceAccountToken"]
            ),
            (&Value::Null, &json!(false))
        );
    }

    #[test]
    fn a_step_may_have_a_user_of_its_own() {
        let user = |own| {
            let job = Job {
                run_as_user: own,
                ..job()
            };
            let spec = pod(&job, &settings(), "mark", Timestamp::from_millis(0))
                .spec
                .unwrap();
            let context = spec.security_context.unwrap();
            assert_eq!(
                (context.run_as_non_root, context.fs_group),
                (Some(true), Some(USER))
            );
            context.run_as_user
        };
        assert_eq!((user(None), user(Some(1000))), (Some(USER), Some(1000)));
    }

    #[test]
    fn a_step_s_resources_win_over_defaults_that_contradict_them() {
        for (own, expected) in [
            (
                Value::Null,
                json!({"limits": {"memory": "256Mi"}, "requests": {"cpu": "20m", "memory": "32Mi"}}),
            ),
            (
                json!({"limits": {"memory": "16Mi"}}),
                json!({"limits": {"memory": "16Mi"}, "requests": {"cpu": "20m"}}),
            ),
            (
                json!({"requests": {"memory": "1Gi", "cpu": "1"}}),
                json!({"limits": {}, "requests": {"cpu": "1", "memory": "1Gi"}}),
            ),
        ] {
            let mut job = job();
            job.resources = Some(own).filter(|own| !own.is_null());
            assert_eq!(
                serde_json::to_value(resources(&job, &settings())).unwrap(),
                expected
            );
        }
    }
}
