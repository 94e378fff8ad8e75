//! Workflow objects at the API server: read, told their status, given events.
//!
//! Invariant: a status is applied only over the version of the object that it was made from, so that two writers
//! never undo each other.

use std::time::Duration;

use cluster::names;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client, Error,
    api::{ApiResource, DynamicObject, GroupVersionKind, ObjectMeta, Patch, PatchParams, PostParams},
};
use protocol::ExecutionId;
use serde_json::json;
use tokio::time::timeout;

use super::status::Status;

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// Attempts at one status against others who write it.
const WRITE_TRIES_MAX: u32 = 10;
/// Characters of an event's note, by Kubernetes' rules.
const NOTE_CHARS_MAX: usize = 1000;

/// Which object, and which of those that ever had this name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// What came of writing a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    Written,
    Unchanged,
    /// The object is there no longer.
    Gone,
}

/// What is to be said in an event.
pub struct Said<'a> {
    /// One word.
    pub reason: &'a str,
    /// What this is about beside the object, so that each is said once.
    pub about: &'a str,
    pub note: String,
    pub is_warning: bool,
}

/// The workflows of a cluster. Cheap to clone.
#[derive(Clone)]
pub struct Objects {
    client: Client,
    resource: ApiResource,
}

impl Objects {
    pub fn new(client: Client) -> Self {
        let kind = GroupVersionKind::gvk(names::GROUP, names::VERSION, names::KIND);
        Self {
            client,
            resource: ApiResource::from_gvk_with_plural(&kind, names::PLURAL),
        }
    }

    /// Those of one namespace, or of all.
    pub fn api(&self, namespace: Option<&str>) -> Api<DynamicObject> {
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &self.resource),
            None => Api::all_with(self.client.clone(), &self.resource),
        }
    }

    /// The object as it is now; `None` where it is gone or another has its name.
    pub async fn get(&self, place: &Place) -> Result<Option<DynamicObject>, String> {
        let api = self.api(Some(&place.namespace));
        let found = timeout(REQUEST_TIMEOUT, api.get_opt(&place.name)).await;
        let found = found.map_err(|_| "the API server did not answer in time".to_owned())?;
        let found = found.map_err(|error| cluster::reason(&error))?;
        Ok(found.filter(|object| object.metadata.uid.as_deref() == Some(&place.uid)))
    }

    /// Writes what `change` makes of the status, where that is another.
    pub async fn tell(
        &self,
        place: &Place,
        change: impl Fn(&mut Status, &DynamicObject),
    ) -> Result<Told, String> {
        for _ in 0..WRITE_TRIES_MAX {
            let Some(object) = self.get(place).await? else {
                return Ok(Told::Gone);
            };
            let told = Status::of(&object);
            let mut status = told.clone();
            change(&mut status, &object);
            if status == told {
                return Ok(Told::Unchanged);
            }
            let applied = json!({
                "apiVersion": format!("{}/{}", names::GROUP, names::VERSION),
                "kind": names::KIND,
                "metadata": {
                    "name": place.name,
                    "namespace": place.namespace,
                    "resourceVersion": object.metadata.resource_version,
                },
                "status": status,
            });
            let parameters = PatchParams::apply(names::FIELD_MANAGER).force();
            let api = self.api(Some(&place.namespace));
            let patch = Patch::Apply(&applied);
            let written = timeout(
                REQUEST_TIMEOUT,
                api.patch_status(&place.name, &parameters, &patch),
            )
            .await;
            match written.map_err(|_| "the API server did not answer in time".to_owned())? {
                Ok(_) => return Ok(Told::Written),
                Err(Error::Api(status)) if status.code == 409 => {}
                Err(Error::Api(status)) if status.code == 404 => return Ok(Told::Gone),
                Err(error) => {
                    return Err(format!(
                        "the status of {}/{}: {}",
                        place.namespace,
                        place.name,
                        cluster::reason(&error)
                    ));
                }
            }
        }
        Err(format!(
            "the status of {}/{} is written by others all the time",
            place.namespace, place.name
        ))
    }

    /// Says it once, whoever says it too. An event that cannot be written is lost: the status says the same.
    pub async fn say(&self, place: &Place, said: Said<'_>) {
        let id = ExecutionId::derive(&["event", &place.uid, said.reason, said.about]);
        let name: String = place.name.chars().take(200).collect();
        let event = Event {
            metadata: ObjectMeta {
                name: Some(format!("{name}.{}", id.as_uuid().simple())),
                namespace: Some(place.namespace.clone()),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(k8s_openapi::jiff::Timestamp::now())),
            reporting_controller: Some("punching-fist.io/ingest".to_owned()),
            reporting_instance: Some("ingest".to_owned()),
            action: Some("Execute".to_owned()),
            reason: Some(said.reason.to_owned()),
            type_: Some(if said.is_warning { "Warning" } else { "Normal" }.to_owned()),
            note: Some(said.note.chars().take(NOTE_CHARS_MAX).collect()),
            regarding: Some(ObjectReference {
                api_version: Some(format!("{}/{}", names::GROUP, names::VERSION)),
                kind: Some(names::KIND.to_owned()),
                name: Some(place.name.clone()),
                namespace: Some(place.namespace.clone()),
                uid: Some(place.uid.clone()),
                ..ObjectReference::default()
            }),
            ..Event::default()
        };
        let api: Api<Event> = Api::namespaced(self.client.clone(), &place.namespace);
        match timeout(REQUEST_TIMEOUT, api.create(&PostParams::default(), &event)).await {
            Ok(Ok(_)) => {}
            Ok(Err(Error::Api(status))) if status.code == 409 => {}
            Ok(Err(error)) => tracing::debug!(%error, "an event could not be written"),
            Err(_) => tracing::debug!("an event could not be written in time"),
        }
    }
}

/// Where an object is; `None` for one without name, namespace or UID, which no API server gives.
pub fn place_of(object: &DynamicObject) -> Option<Place> {
    Some(Place {
        namespace: object.metadata.namespace.clone()?,
        name: object.metadata.name.clone()?,
        uid: object.metadata.uid.clone()?,
    })
}
