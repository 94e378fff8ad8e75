//! Takes workflow objects in: definitions into the bucket, everything else to its one execution.
//!
//! Invariants:
//! - Everything is done again after a resync, and comes to the same.
//! - What an object asks for is tried until it is done or the object has changed or gone.
//! - An execution is named in the object's status before it starts, and starts by an id that follows from the object;
//!   one whose status says that it began is never started again.
//! - Only what came from an object is taken out of the bucket with it: `fist apply` and `kubectl apply` of one name
//!   share an entry, the last one holds, and the object takes it back at its next change or resync.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bus::{Log, NatsLog};
use engine::{
    Admitted, Role, admit_value,
    manifest::{RERUN_ANNOTATION, Workflow},
    problem::listed,
};
use futures_util::{StreamExt as _, stream};
use kube::{
    api::DynamicObject,
    runtime::watcher::{self, Event},
};
use protocol::{ExecutionId, Json, Namespace, Start, Subject, WorkflowName, subjects};
use serde_json::{Value, json};
use service::{backoff::Policy, clock};
use tokio_util::sync::CancellationToken;

use super::{
    Parts, cancel,
    heard::{Heard, Version},
    lock,
    objects::{Objects, Place, Said, place_of},
    status::Status,
};
use crate::{
    admission::Admission,
    definitions::Registry,
    identity,
    start::{Occasion, Outcome, Starter},
};

/// Objects worked on at one time.
const CONCURRENCY: usize = 32;
/// Between two attempts at a watch, and at taking an object in.
const AGAIN: Policy = Policy {
    first: Duration::from_millis(500),
    longest: Duration::from_secs(15),
    ..Policy::PATIENT
};
/// What kubectl keeps of its own in an object, which is no business of a definition.
const KUBECTL_ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Takes objects in.
pub struct Intake {
    objects: Objects,
    log: NatsLog,
    registry: Registry,
    starter: Starter,
    admission: Admission,
    heard: Mutex<Heard>,
}

/// What is to be done.
enum Change {
    /// A list begins.
    Listing,
    Applied(Box<DynamicObject>),
    Deleted(Box<DynamicObject>),
    /// All objects are known: what is stored of others has lost its object.
    Listed,
}

impl Intake {
    pub fn new(objects: Objects, parts: &Parts) -> Self {
        Self {
            objects,
            log: parts.log.clone(),
            registry: parts.registry.clone(),
            starter: parts.starter.clone(),
            admission: parts.admission.clone(),
            heard: Mutex::default(),
        }
    }

    /// Watches `namespaces`, or all where none is named, until `end`.
    pub async fn watch(self: &Arc<Self>, namespaces: &[String], end: &CancellationToken) {
        let scopes: Vec<Option<&str>> = match namespaces {
            [] => vec![None],
            some => some.iter().map(|namespace| Some(namespace.as_str())).collect(),
        };
        let watches = scopes.into_iter().map(|scope| self.watch_scope(scope));
        let all = stream::iter(watches).for_each_concurrent(None, |watch| watch);
        tokio::select! {
            () = all => {}
            () = end.cancelled() => {}
        }
    }

    async fn watch_scope(&self, scope: Option<&str>) {
        let events = kube::runtime::watcher(self.objects.api(scope), watcher::Config::default());
        let mut waits = AGAIN.waits();
        let changes = events
            .then(move |event| {
                let wait = match &event {
                    Ok(_) => {
                        waits.reset();
                        None
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the watch of Workflow objects broke; beginning again");
                        Some(waits.next_wait())
                    }
                };
                async move {
                    if let Some(wait) = wait {
                        tokio::time::sleep(wait).await;
                    }
                    event.ok()
                }
            })
            .filter_map(|event| async move {
                Some(match event? {
                    Event::Init => Change::Listing,
                    Event::Apply(object) | Event::InitApply(object) => Change::Applied(Box::new(object)),
                    Event::Delete(object) => Change::Deleted(Box::new(object)),
                    Event::InitDone => Change::Listed,
                })
            });
        changes
            .map(|change| {
                // In the order in which they come, before anybody works on them.
                self.note(&change, scope);
                change
            })
            .for_each_concurrent(CONCURRENCY, |change| self.take(change, scope))
            .await;
    }

    fn note(&self, change: &Change, scope: Option<&str>) {
        let mut heard = lock(&self.heard);
        match change {
            Change::Listing => heard.listing(scope),
            Change::Applied(object) => {
                if let Some(version) = Version::of(object) {
                    heard.there(version);
                }
            }
            Change::Deleted(object) => {
                if let Some(version) = Version::of(object) {
                    heard.gone(&version);
                }
            }
            Change::Listed => {}
        }
    }

    async fn take(&self, change: Change, scope: Option<&str>) {
        match change {
            Change::Listing => {}
            Change::Applied(object) => {
                let Some(version) = Version::of(&object) else {
                    return;
                };
                let is_latest = || lock(&self.heard).is_latest(&version);
                self.persist(&object, is_latest, |object| self.applied(object))
                    .await;
            }
            Change::Deleted(object) => {
                self.persist(&object, || true, |object| self.deleted(object))
                    .await
            }
            Change::Listed => {
                if let Err(error) = self.take_out_orphans(scope).await {
                    // The next list tries again.
                    tracing::warn!(error, "definitions whose object is gone could not be looked for");
                }
            }
        }
    }

    /// Tries until it is done, or not wanted any more.
    async fn persist<'a, F: Future<Output = Result<(), String>>>(
        &self,
        object: &'a DynamicObject,
        is_wanted: impl Fn() -> bool,
        work: impl Fn(&'a DynamicObject) -> F,
    ) {
        let mut waits = AGAIN.waits();
        while is_wanted() {
            let Err(error) = work(object).await else { return };
            tracing::warn!(
                namespace = object.metadata.namespace.as_deref().unwrap_or_default(),
                workflow = object.metadata.name.as_deref().unwrap_or_default(),
                error,
                "a Workflow object could not be taken in; trying again"
            );
            tokio::time::sleep(waits.next_wait()).await;
        }
    }

    async fn applied(&self, object: &DynamicObject) -> Result<(), String> {
        let Some(place) = place_of(object) else {
            return Ok(());
        };
        if object.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let generation = object.metadata.generation;
        let admitted = admit_value(&manifest_of(object), self.registry.policy());
        let names = (
            Namespace::new(place.namespace.as_str()),
            WorkflowName::new(place.name.as_str()),
        );
        let (namespace, name, admitted) = match (names, admitted) {
            ((Ok(namespace), Ok(name)), Ok(admitted)) => (namespace, name, admitted),
            ((Err(error), _) | (_, Err(error)), _) => {
                return self.refused(&place, generation, &error.to_string()).await;
            }
            (_, Err(problems)) => return self.refused(&place, generation, &listed(&problems)).await,
        };
        match admitted.role {
            Role::Definition => {
                self.define(&place, &namespace, &name, &admitted, generation)
                    .await
            }
            Role::Execution => self.execute(&place, &namespace, &name, admitted, object).await,
        }
    }

    async fn refused(&self, place: &Place, generation: Option<i64>, problems: &str) -> Result<(), String> {
        let told = self.objects.tell(place, |status, _| {
            status.set_valid(false, problems, generation, clock::now());
            // What runs or ran of a former spec is told on.
            if status.execution_id.is_none() {
                status.phase = Some("Invalid".to_owned());
            }
        });
        told.await?;
        let said = Said {
            reason: "Invalid",
            about: &generation.unwrap_or_default().to_string(),
            note: problems.to_owned(),
            is_warning: true,
        };
        self.objects.say(place, said).await;
        Ok(())
    }

    async fn define(
        &self,
        place: &Place,
        namespace: &Namespace,
        name: &WorkflowName,
        admitted: &Admitted,
        generation: Option<i64>,
    ) -> Result<(), String> {
        let mut workflow: Workflow = admitted.workflow.clone();
        workflow.metadata.uid = Some(place.uid.clone());
        workflow.metadata.annotations.remove(KUBECTL_ANNOTATION);
        self.registry
            .apply(namespace, name, &workflow)
            .await
            .map_err(|error| error.to_string())?;
        let phase = if workflow.spec.suspend {
            "Suspended"
        } else {
            "Ready"
        };
        self.objects
            .tell(place, |status, _| {
                status.set_valid(true, &warnings(admitted), generation, clock::now());
                status.phase = Some(phase.to_owned());
                status.runs.get_or_insert(0);
            })
            .await?;
        Ok(())
    }

    async fn execute(
        &self,
        place: &Place,
        namespace: &Namespace,
        name: &WorkflowName,
        admitted: Admitted,
        object: &DynamicObject,
    ) -> Result<(), String> {
        let since = clock::now();
        let id = execution_of(object, namespace, name, &place.uid);
        let text = id.to_string();
        let status = Status::of(object);
        let is_told = status.execution_id.as_deref() == Some(&text);
        if is_told && status.phase.as_deref() != Some("Pending") {
            return self.still_valid(place, &admitted, object).await;
        }
        // Once it was a definition, it may have left its entry.
        self.undefine(namespace, name, &place.uid).await?;
        self.admission
            .check()
            .await
            .map_err(|closed| closed.to_string())?;
        let total = u32::try_from(admitted.workflow.spec.steps.len()).unwrap_or(u32::MAX);
        let generation = object.metadata.generation;
        self.objects
            .tell(place, |status, _| {
                status.set_valid(true, &warnings(&admitted), generation, clock::now());
                if status.execution_id.as_deref() != Some(&text) {
                    status.set_pending(&text, total, generation, clock::now());
                }
            })
            .await?;
        let start = Start {
            namespace: namespace.clone(),
            execution: id,
            workflow: name.clone(),
            trigger_source: "kubernetes".to_owned(),
            spec: admitted
                .workflow
                .spec
                .carried()
                .map_err(|error| format!("the spec: {error}"))?,
            input: Json::of(&admitted.input.unwrap_or_default())
                .map_err(|error| format!("the input: {error}"))?,
            delivery: None,
            uid: Some(place.uid.clone()),
        };
        let occasion = Occasion { since, caller: None };
        let outcome = self.starter.start_execution(&start, &occasion).await;
        if outcome.map_err(|error| error.to_string())? == Outcome::New {
            let said = Said {
                reason: "Started",
                about: &text,
                note: format!("execution {text} is accepted"),
                is_warning: false,
            };
            self.objects.say(place, said).await;
        }
        Ok(())
    }

    /// A changed spec does not run again; it is valid all the same.
    async fn still_valid(
        &self,
        place: &Place,
        admitted: &Admitted,
        object: &DynamicObject,
    ) -> Result<(), String> {
        let generation = object.metadata.generation;
        if Status::of(object).observed_generation == generation {
            return Ok(());
        }
        self.objects
            .tell(place, |status, _| {
                status.set_valid(true, &warnings(admitted), generation, clock::now());
            })
            .await?;
        Ok(())
    }

    async fn deleted(&self, object: &DynamicObject) -> Result<(), String> {
        let Some(place) = place_of(object) else {
            return Ok(());
        };
        let names = (
            Namespace::new(place.namespace.as_str()),
            WorkflowName::new(place.name.as_str()),
        );
        let (Ok(namespace), Ok(name)) = names else {
            return Ok(());
        };
        self.undefine(&namespace, &name, &place.uid).await?;
        self.cancel(
            &namespace,
            execution_of(object, &namespace, &name, &place.uid),
            &place,
        )
        .await
    }

    /// Takes a definition out of the bucket where it came from this object.
    async fn undefine(&self, namespace: &Namespace, name: &WorkflowName, uid: &str) -> Result<(), String> {
        let known = self
            .registry
            .read(namespace, name)
            .await
            .map_err(|error| error.to_string())?;
        if known.is_some_and(|known| known.workflow.metadata.uid.as_deref() == Some(uid)) {
            self.registry
                .delete(namespace, name)
                .await
                .map_err(|error| error.to_string())?;
            tracing::info!(%namespace, workflow = %name, "its object is gone; it starts nothing any more");
        }
        Ok(())
    }

    /// Asks for the end of an execution that has begun and not ended.
    async fn cancel(&self, namespace: &Namespace, id: ExecutionId, place: &Place) -> Result<(), String> {
        let start = Subject::Start(namespace.clone(), id).to_string();
        if self
            .log
            .last(&start)
            .await
            .map_err(|error| error.to_string())?
            .is_none()
        {
            return Ok(());
        }
        let lane = self.log.last(&subjects::lane_filter(namespace, id)).await;
        let lane = lane.map_err(|error| error.to_string())?;
        if lane.as_ref().and_then(crate::http::end_status).is_some() {
            return Ok(());
        }
        cancel(&self.log, namespace, id, place)
            .await
            .map_err(|error| error.to_string())
    }

    /// Takes out of the bucket what came from objects of `scope` that are there no longer.
    async fn take_out_orphans(&self, scope: Option<&str>) -> Result<(), String> {
        for known in self
            .registry
            .read_all()
            .await
            .map_err(|error| error.to_string())?
        {
            let Some(uid) = known.workflow.metadata.uid.clone() else {
                continue;
            };
            let place = Place {
                namespace: known.namespace.to_string(),
                name: known.name.to_string(),
                uid,
            };
            let is_in_scope = scope.is_none_or(|scope| scope == place.namespace);
            let heard_of = lock(&self.heard).has(&place.namespace, &place.name, &place.uid);
            // The list is of a moment that has passed: the API server has the last word.
            if is_in_scope && !heard_of && self.objects.get(&place).await?.is_none() {
                self.undefine(&known.namespace, &known.name, &place.uid).await?;
            }
        }
        Ok(())
    }
}

/// The execution that this object is, as it stands.
fn execution_of(
    object: &DynamicObject,
    namespace: &Namespace,
    name: &WorkflowName,
    uid: &str,
) -> ExecutionId {
    let annotations = object.metadata.annotations.as_ref();
    let rerun = annotations.and_then(|annotations| annotations.get(RERUN_ANNOTATION));
    identity::execution_of_object(namespace, name, Some(uid), rerun.map(String::as_str))
}

/// The object as its author wrote it.
fn manifest_of(object: &DynamicObject) -> Value {
    let metadata = &object.metadata;
    let mut annotations = metadata.annotations.clone().unwrap_or_default();
    annotations.remove(KUBECTL_ANNOTATION);
    let mut manifest = json!({
        "apiVersion": format!("{}/{}", cluster::names::GROUP, cluster::names::VERSION),
        "kind": cluster::names::KIND,
        "metadata": {
            "name": metadata.name,
            "namespace": metadata.namespace,
            "uid": metadata.uid,
            "labels": metadata.labels.clone().unwrap_or_default(),
            "annotations": annotations,
        },
    });
    if let Some(spec) = object.data.get("spec") {
        manifest["spec"] = spec.clone();
    }
    manifest
}

fn warnings(admitted: &Admitted) -> String {
    match admitted.warnings.as_slice() {
        [] => "the manifest can be run".to_owned(),
        some => listed(some),
    }
}
