//! Commands as pods: one for each attempt, adopted by whoever is handed the attempt again.
//!
//! Invariants:
//! - A pod's name follows from its attempt, so there is at most one at a time.
//! - A pod is deleted only after its result is stored, or to end its command.
//! - A pod that vanished is made again at most [`TRIES_MAX`] times in all, and never for a command that passed the
//!   fix gate.
//! - Every request and every wait has a bound; while the API server is away, what runs goes on, and what came of it
//!   is read when the server is back.

mod follow;
mod position;
mod requests;
mod spec;
mod standing;
mod watching;
mod wrapper;

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use protocol::{Attempt, ExecutionId, Namespace, Timestamp};
use service::{clock, config};
use tokio::time::{Instant, sleep_until, timeout};
use uuid::Uuid;

use self::{
    follow::{Followed, Follower},
    requests::{Created, Requests},
    standing::{Ending, Standing, Trouble, standing},
    watching::Watched,
};
use super::{End, Executor, ExecutorError, Finished, Job, Over, Stop, Swept};
use crate::{capture::Limits, live::LiveSink};

/// How often a vanished pod is made, the first time included.
const TRIES_MAX: u32 = 3;
/// How long an image may fail to be pulled, since a registry may have a bad moment.
const IMAGE_PATIENCE: Duration = Duration::from_secs(12);
/// How long a container may fail to be made: what it needs may be on its way.
const CONTAINER_PATIENCE: Duration = Duration::from_secs(5);
/// How long a pod that was made may be missing from the watch before the API server is asked for it by name.
const UNSEEN_PATIENCE: Duration = Duration::from_secs(10);
/// How long the pod's status may lag behind its log.
const STATUS_LAG: Duration = Duration::from_secs(10);
/// How long a pod that is being deleted may take to be gone, beyond its grace period.
const GONE_WITHIN: Duration = Duration::from_secs(30);
/// How soon a task comes again whose pod's name is still taken.
const NAME_TAKEN_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// How old a pod is that a sweep looks at: a younger one's runner may be about to report it.
const SWEPT_AFTER: Duration = Duration::from_secs(60);
/// How long a pod outlives its attempt's deadline at most, whatever the log says of it.
const KEPT_BEYOND_DEADLINE: Duration = Duration::from_secs(3600);
/// Pods that one sweep looks at.
const SWEEP_PODS_MAX: usize = 500;

/// What pods are made of.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where pods run.
    pub namespace: String,
    /// The image where neither step nor workflow names one.
    pub image: String,
    /// Kubernetes' word for when to pull; `None` leaves it to Kubernetes.
    pub image_pull_policy: Option<String>,
    /// The service account of ordinary commands; `None` mounts no token.
    pub account: Option<String>,
    /// The service account of commands that passed the fix gate.
    pub fix_account: Option<String>,
    /// What a pod is promised, where its step says nothing.
    pub requests: BTreeMap<String, String>,
    /// What a pod may use, where its step says nothing.
    pub limits_default: BTreeMap<String, String>,
    /// Until a pod's command must have begun.
    pub start_timeout: Duration,
    /// Between asking a command to end and killing it.
    pub kill_grace: Duration,
    /// Limits of what is kept of its output.
    pub limits: Limits,
}

impl Settings {
    /// What the configuration says; `own_namespace` is where this runner is at home.
    pub fn from_config(cli: &config::Cli, limits: Limits, own_namespace: &str) -> Self {
        let account = |name: &str| Some(name.to_owned()).filter(|name| name != "none");
        Self {
            namespace: cli
                .pod_namespace
                .clone()
                .unwrap_or_else(|| own_namespace.to_owned()),
            image: cli.default_image.clone(),
            image_pull_policy: Some(cli.pod_image_pull_policy.clone()).filter(|policy| policy != "default"),
            account: account(&cli.pod_service_account),
            fix_account: account(&cli.pod_fix_service_account),
            requests: cli.pod_requests.clone(),
            limits_default: cli.pod_limits.clone(),
            start_timeout: Duration::from_millis(cli.pod_start_timeout_ms),
            kill_grace: Duration::from_millis(cli.kill_grace_ms),
            limits,
        }
    }

    /// Small ones, with the accounts `cli` and `fix`.
    pub fn for_tests(namespace: &str, image: &str) -> Self {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        Self {
            namespace: namespace.to_owned(),
            image: image.to_owned(),
            image_pull_policy: Some("IfNotPresent".to_owned()),
            account: Some("cli".to_owned()),
            fix_account: Some("fix".to_owned()),
            requests: [pair("cpu", "20m"), pair("memory", "32Mi")].into(),
            limits_default: [pair("memory", "256Mi")].into(),
            start_timeout: Duration::from_secs(60),
            kill_grace: Duration::from_secs(2),
            limits: Limits {
                inline_bytes_max: 64 * 1024,
                spill_bytes_max: 16 * 1024 * 1024,
            },
        }
    }

    /// Kubernetes counts in whole seconds, and takes 0 for a kill without asking.
    fn kill_grace_seconds(&self) -> i64 {
        i64::try_from(self.kill_grace.as_secs_f64().ceil() as u64)
            .unwrap_or(i64::MAX)
            .max(1)
    }
}

/// Runs commands as pods of one namespace.
pub struct Pods {
    settings: Settings,
    requests: Requests,
    watched: Watched,
    /// Names of the pods that this process is at.
    in_hand: Mutex<HashSet<String>>,
}

/// What became of one pod.
enum Attended {
    Finished(Finished),
    /// Somebody took it away, and the command has no result.
    Vanished(String),
}

impl Pods {
    /// Over this cluster; begins to watch.
    pub fn new(client: kube::Client, settings: Settings) -> Self {
        let api: Api<Pod> = Api::namespaced(client, &settings.namespace);
        Self {
            watched: Watched::begin(api.clone()),
            requests: Requests::new(api),
            settings,
            in_hand: Mutex::default(),
        }
    }

    /// Runs or adopts; only adopts where `may_create` is false.
    async fn run_in_hand(
        &self,
        job: &Job,
        stop: &Stop,
        live: &LiveSink,
        may_create: bool,
    ) -> Result<Finished, ExecutorError> {
        let tries = if job.program.is_gated() { 1 } else { TRIES_MAX };
        let mut gone = Vec::new();
        for _ in 0..tries {
            let pod = if may_create {
                self.created(job, stop).await?
            } else {
                self.requests
                    .get(&job.name())
                    .await?
                    .ok_or_else(|| ExecutorError::Infrastructure("its pod is there no longer".to_owned()))?
            };
            match self.attend(job, &pod, stop, live).await? {
                Attended::Finished(finished) => return Ok(finished),
                Attended::Vanished(reason) => {
                    tracing::warn!(pod = job.name(), reason, "a command's pod vanished");
                    gone.push(reason);
                }
            }
        }
        Err(ExecutorError::Infrastructure(match gone.as_slice() {
            [only] => only.clone(),
            all => format!(
                "its pod was lost {} times, and is not made again: {}",
                all.len(),
                gone.last().map_or("", String::as_str)
            ),
        }))
    }

    /// The attempt's pod, made or adopted.
    async fn created(&self, job: &Job, stop: &Stop) -> Result<Pod, ExecutorError> {
        let mark = Uuid::now_v7().simple().to_string();
        let wanted = spec::pod(job, &self.settings, &mark, clock::now());
        let until = Instant::now() + GONE_WITHIN + self.settings.kill_grace;
        let mut changes = self.watched.changes();
        loop {
            let taken = match self.requests.create(&wanted).await? {
                Created::New(pod) => return Ok(*pod),
                Created::Taken => self.requests.get(&job.name()).await?,
            };
            match taken {
                Some(pod) if pod.metadata.deletion_timestamp.is_none() => {
                    return match spec::is_of(&pod, job) {
                        true => Ok(pod),
                        false => Err(ExecutorError::CannotStart(format!(
                            "the pod {} in the namespace {} is not ours, and has the name that this attempt's needs: delete it",
                            job.name(),
                            self.settings.namespace
                        ))),
                    };
                }
                // On its way out: its name comes free.
                Some(_) | None => {}
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = stop.cancel.cancelled() => {
                    return Err(ExecutorError::CannotStart("cancelled before its pod was made".to_owned()));
                }
                () = stop.release.cancelled() => return Err(ExecutorError::Released(None)),
                () = sleep_until(until) => {
                    return Err(ExecutorError::Unavailable {
                        after: NAME_TAKEN_AGAIN_AFTER,
                        reason: format!("the former pod {} is still being deleted", job.name()),
                    });
                }
            }
        }
    }

    /// Follows a pod from where it stands to its end.
    async fn attend(
        &self,
        job: &Job,
        pod: &Pod,
        stop: &Stop,
        live: &LiveSink,
    ) -> Result<Attended, ExecutorError> {
        let name = job.name();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let mark = spec::annotation(pod, spec::MARK_ANNOTATION).unwrap_or_default();
        let deadline = Instant::now() + job.deadline.since(clock::now());
        let mut follower = Follower::new(
            &self.requests,
            &self.watched,
            &name,
            &uid,
            mark,
            self.settings.limits,
            live,
        );
        // How we end it, where we do.
        let mut ours = match self.begun(&name, &uid, deadline, stop).await? {
            Begun::Yes => None,
            Begun::No(end) => Some(end),
            Begun::Vanished(reason) => return Ok(Attended::Vanished(reason)),
        };
        if ours.is_none() {
            ours = tokio::select! {
                biased;
                followed = follower.follow() => match followed {
                    Followed::Vanished => return Ok(Attended::Vanished(deleted(&name))),
                    Followed::Whole | Followed::CutOff => None,
                },
                () = stop.cancel.cancelled() => Some(End::Cancelled),
                () = stop.release.cancelled() => return Err(ExecutorError::Released(None)),
                () = sleep_until(deadline) => Some(End::TimedOut),
            };
        }
        let started_at = self.started_at(&name, &uid);
        if ours.is_some() {
            self.requests
                .delete(&name, &uid, self.settings.kill_grace_seconds())
                .await;
            // What it has printed, and still prints as it ends, is kept. It may run though its status, which lags
            // behind, does not say so yet.
            let bound = self.settings.kill_grace + STATUS_LAG;
            let _ = timeout(bound, follower.follow()).await;
        }
        let code = follower.code();
        let end = match ours {
            Some(end) => end(code),
            None => match self.judged(&name, &uid, code).await? {
                Judged::End(end) => end,
                Judged::Vanished(reason) => return Ok(Attended::Vanished(reason)),
            },
        };
        let (stdout, stderr) = follower.finish();
        Ok(Attended::Finished(Finished {
            end,
            stdout,
            stderr,
            started_at,
            duration: clock::now().since(started_at),
        }))
    }

    /// Waits until the command runs or is over.
    async fn begun(
        &self,
        name: &str,
        uid: &str,
        deadline: Instant,
        stop: &Stop,
    ) -> Result<Begun, ExecutorError> {
        let mut changes = self.watched.changes();
        let begun_at = Instant::now();
        let start_by = begun_at + self.settings.start_timeout;
        let mut trouble: Option<(Trouble, Instant, String)> = None;
        let mut was_seen = false;
        let mut ask_at = begun_at + UNSEEN_PATIENCE;
        let mut waiting_for = None;
        loop {
            let pod = self.watched.pod(name, uid);
            let mut patience = None;
            match &pod {
                Some(pod) => {
                    was_seen = true;
                    match standing(pod) {
                        Standing::Running | Standing::Ended(_) => return Ok(Begun::Yes),
                        Standing::Lost(reason) => {
                            return Err(ExecutorError::Infrastructure(lost(name, &reason)));
                        }
                        Standing::Waiting(reason) => {
                            waiting_for = reason;
                            trouble = None;
                        }
                        Standing::Stuck(kind, reason) => {
                            // The first text says more than the later "Back-off pulling image".
                            let (since, reason) = match trouble.take() {
                                Some((former, since, first)) if former == kind => (since, first),
                                _ => (Instant::now(), reason),
                            };
                            let lasts = match kind {
                                Trouble::Image => IMAGE_PATIENCE,
                                Trouble::Container => CONTAINER_PATIENCE,
                            };
                            patience = Some(since + lasts);
                            trouble = Some((kind, since, reason));
                        }
                    }
                    if pod.metadata.deletion_timestamp.is_some() {
                        return Ok(Begun::Vanished(deleted_early(name)));
                    }
                }
                None if was_seen => {
                    return Ok(Begun::Vanished(deleted_early(name)));
                }
                None => {}
            }
            let next = patience.map_or(start_by, |patience| patience.min(start_by));
            let next = if was_seen { next } else { next.min(ask_at) };
            tokio::select! {
                _ = changes.changed() => {}
                () = stop.cancel.cancelled() => return Ok(Begun::No(End::Cancelled)),
                () = stop.release.cancelled() => return Err(ExecutorError::Released(None)),
                () = sleep_until(deadline) => return Ok(Begun::No(End::TimedOut)),
                () = sleep_until(next) => {
                    let now = Instant::now();
                    if let Some((_, _, reason)) = trouble.as_ref().filter(|_| patience.is_some_and(|until| now >= until)) {
                        return Err(ExecutorError::CannotStart(format!("the pod {name} cannot start: {reason}")));
                    }
                    if now >= start_by {
                        let reason = waiting_for.as_deref().unwrap_or("Kubernetes gives no reason");
                        return Err(ExecutorError::CannotStart(format!(
                            "the pod {name} did not start within {} s (cli.pod_start_timeout_ms): {reason}",
                            self.settings.start_timeout.as_secs()
                        )));
                    }
                    if !was_seen && now >= ask_at {
                        ask_at = now + UNSEEN_PATIENCE;
                        match self.requests.get(name).await {
                            Ok(Some(pod)) if pod.metadata.uid.as_deref() == Some(uid) => {}
                            Ok(_) => return Ok(Begun::Vanished(deleted_early(name))),
                            // The API server is away; the watch tells when it is back.
                            Err(_) => {}
                        }
                    }
                }
            }
        }
    }

    /// How a command that was followed to its end came out: by its own account, unless the node's explains more.
    async fn judged(&self, name: &str, uid: &str, code: Option<i32>) -> Result<Judged, ExecutorError> {
        // Only a killed one may have been killed by the node.
        let is_plain = code.is_some_and(|code| code != 137 && code != 143);
        if let (true, Some(code)) = (is_plain, code) {
            return Ok(Judged::End(End::Exited(code)));
        }
        let mut changes = self.watched.changes();
        let until = Instant::now() + STATUS_LAG;
        loop {
            let pod = self.watched.pod(name, uid);
            let Some(pod) = pod else {
                return Ok(Judged::Vanished(deleted(name)));
            };
            if pod.metadata.deletion_timestamp.is_some() {
                return Ok(Judged::Vanished(deleted(name)));
            }
            match standing(&pod) {
                Standing::Ended(Ending::OutOfMemory(code)) => {
                    return Ok(Judged::End(End::OutOfMemory(code)));
                }
                Standing::Ended(Ending::NotStarted(reason)) => {
                    return Err(ExecutorError::CannotStart(format!(
                        "the command could not be started in its image: {reason}"
                    )));
                }
                Standing::Ended(Ending::DeadlineExceeded) => return Ok(Judged::End(End::TimedOut(code))),
                Standing::Ended(Ending::Exited(by_node)) => {
                    return Ok(Judged::End(End::Exited(code.unwrap_or(by_node))));
                }
                Standing::Lost(reason) => return Err(ExecutorError::Infrastructure(lost(name, &reason))),
                Standing::Running | Standing::Waiting(_) | Standing::Stuck(..) => {}
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = sleep_until(until) => {
                    return match code {
                        Some(code) => Ok(Judged::End(End::Exited(code))),
                        None => Err(ExecutorError::Infrastructure(format!(
                            "the log of the pod {name} ended, and the node does not say how its command did"
                        ))),
                    };
                }
            }
        }
    }

    /// When the command began, as the node says; now, where it has not yet.
    fn started_at(&self, name: &str, uid: &str) -> Timestamp {
        let pod = self.watched.pod(name, uid);
        pod.and_then(|pod| {
            let status = pod.status.as_ref()?;
            let state = status.container_statuses.as_ref()?.first()?.state.as_ref()?;
            let running = state
                .running
                .as_ref()
                .and_then(|running| running.started_at.clone());
            let ended = state
                .terminated
                .as_ref()
                .and_then(|ended| ended.started_at.clone());
            let millis = running.or(ended)?.0.as_millisecond();
            Some(Timestamp::from_millis(millis))
        })
        .unwrap_or_else(clock::now)
    }

    fn take(&self, name: &str) -> InHand<'_> {
        self.hands().insert(name.to_owned());
        InHand {
            pods: self,
            name: name.to_owned(),
        }
    }

    fn hands(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.in_hand.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lost(name: &str, reason: &str) -> String {
    format!("the node gave up the pod {name}: {reason}")
}

fn deleted(name: &str) -> String {
    format!("the pod {name} was deleted while its command ran")
}

fn deleted_early(name: &str) -> String {
    format!("the pod {name} was deleted before its command began")
}

enum Begun {
    Yes,
    /// It is to end before anybody saw it begin.
    No(fn(Option<i32>) -> End),
    Vanished(String),
}

enum Judged {
    End(End),
    Vanished(String),
}

/// A pod that this process is at.
struct InHand<'a> {
    pods: &'a Pods,
    name: String,
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        self.pods.hands().remove(&self.name);
    }
}

impl Executor for Pods {
    async fn run(&self, job: &Job, stop: &Stop, live: &LiveSink) -> Result<Finished, ExecutorError> {
        let _in_hand = self.take(&job.name());
        self.run_in_hand(job, stop, live, true).await
    }

    async fn adopt(
        &self,
        job: &Job,
        stop: &Stop,
        live: &LiveSink,
    ) -> Option<Result<Finished, ExecutorError>> {
        let _in_hand = self.take(&job.name());
        match self.requests.get(&job.name()).await {
            Ok(Some(pod)) if spec::is_of(&pod, job) => Some(self.run_in_hand(job, stop, live, false).await),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        }
    }

    async fn forget(&self, job: &Job) {
        self.requests.remove(&job.name()).await;
    }

    async fn sweep(&self, over: &impl Over) -> Result<Swept, ExecutorError> {
        let mut swept = Swept::default();
        let now = clock::now();
        let candidates = self
            .watched
            .all()
            .into_iter()
            .filter_map(|pod| leftover(&pod, now));
        for candidate in candidates.take(SWEEP_PODS_MAX) {
            if self.hands().contains(&candidate.name) {
                continue;
            }
            let is_over = candidate.is_expired
                || over
                    .is_over(
                        &candidate.namespace,
                        candidate.execution,
                        &candidate.step,
                        candidate.attempt,
                    )
                    .await;
            if is_over && !self.hands().contains(&candidate.name) {
                let grace = self.settings.kill_grace_seconds();
                self.requests.delete(&candidate.name, &candidate.uid, grace).await;
                swept.jobs += 1;
                swept.killed += usize::from(candidate.is_running);
            }
        }
        Ok(swept)
    }
}

/// A pod that nobody may be at.
struct Candidate {
    name: String,
    uid: String,
    namespace: Namespace,
    execution: ExecutionId,
    step: protocol::StepName,
    attempt: Attempt,
    is_running: bool,
    /// Its attempt's deadline is long past.
    is_expired: bool,
}

/// A pod of ours as a sweep looks at it; `None` where it is too young, on its way out, or not what we make.
fn leftover(pod: &Pod, now: Timestamp) -> Option<Candidate> {
    let metadata = &pod.metadata;
    let label = |name: &str| metadata.labels.as_ref()?.get(name);
    let made_at = Timestamp::from_millis(metadata.creation_timestamp.as_ref()?.0.as_millisecond());
    let is_old = now.since(made_at) >= SWEPT_AFTER;
    if !is_old || metadata.deletion_timestamp.is_some() {
        return None;
    }
    let deadline: Timestamp = spec::annotation(pod, spec::DEADLINE_ANNOTATION)?.parse().ok()?;
    Some(Candidate {
        name: metadata.name.clone()?,
        uid: metadata.uid.clone()?,
        namespace: Namespace::new(spec::annotation(pod, spec::NAMESPACE_ANNOTATION)?).ok()?,
        execution: label(cluster::names::EXECUTION_LABEL)?.parse().ok()?,
        step: spec::annotation(pod, cluster::names::STEP_LABEL)?.parse().ok()?,
        attempt: label(cluster::names::ATTEMPT_LABEL)?.parse().ok()?,
        is_running: matches!(standing(pod), Standing::Running),
        is_expired: now >= deadline.after(KEPT_BEYOND_DEADLINE),
    })
}
