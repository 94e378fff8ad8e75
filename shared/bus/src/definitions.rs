//! Workflow definitions: KV `fist-workflows`, key `<namespace>.<name>`, value the canonical manifest.
//!
//! Invariant: a definition's revision only grows; whoever follows sees every definition's newest state, also
//! across reconnects.

use async_nats::jetstream::kv;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use protocol::{Namespace, Timestamp, WorkflowName};

use crate::{
    connect::Connection,
    log::{LogError, Position},
    nats::{
        api::Api,
        follow,
        log::bucket_error,
        read::{Raw, Reader, timestamp},
    },
    topology::WORKFLOWS_BUCKET,
};

/// A definition as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// Where it belongs.
    pub namespace: Namespace,
    /// Its name.
    pub name: WorkflowName,
    /// The manifest.
    pub manifest: Bytes,
    /// Counts the changes of the bucket; grows with each change of this definition.
    pub revision: u64,
    /// When it was last written.
    pub updated_at: Timestamp,
}

/// A change of a definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is this now.
    Put(Definition),
    /// It is gone.
    Deleted {
        /// Where it belonged.
        namespace: Namespace,
        /// Its name.
        name: WorkflowName,
        /// The revision of the deletion.
        revision: u64,
    },
}

/// What became of a conditional write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// It stands, with this revision.
    At(u64),
    /// It was changed by another meanwhile: read it again.
    Conflict,
}

/// Definitions of one bucket; no more are listed.
const DEFINITIONS_MAX: usize = 100_000;

/// The definitions. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Definitions {
    api: Api,
    store: kv::Store,
    reader: Reader,
}

fn stream_name() -> String {
    format!("KV_{WORKFLOWS_BUCKET}")
}

/// All keys of the bucket, as its stream has them.
fn all_keys() -> String {
    format!("$KV.{WORKFLOWS_BUCKET}.>")
}

fn key(namespace: &Namespace, name: &WorkflowName) -> String {
    format!("{namespace}.{name}")
}

impl Definitions {
    /// Opens the bucket on `connection`.
    ///
    /// # Errors
    /// [`LogError::Missing`] where `fist nats init` did not run.
    pub async fn open(connection: &Connection) -> Result<Self, LogError> {
        let store = connection
            .context
            .get_key_value(WORKFLOWS_BUCKET)
            .await
            .map_err(|error| bucket_error(WORKFLOWS_BUCKET, &error))?;
        let api = Api {
            connection: connection.clone(),
        };
        let replicas = store.stream.cached_info().config.num_replicas;
        Ok(Self {
            reader: Reader::new(api.clone(), &stream_name(), replicas),
            api,
            store,
        })
    }

    /// Writes a definition, whatever was there, and returns its revision.
    ///
    /// # Errors
    /// [`LogError`]; writing again is safe.
    pub async fn put(
        &self,
        namespace: &Namespace,
        name: &WorkflowName,
        manifest: Bytes,
    ) -> Result<u64, LogError> {
        self.store
            .put(key(namespace, name), manifest)
            .await
            .map_err(|error| LogError::unavailable("store a workflow", error))
    }

    /// Writes a definition if its revision is `expected` (0: there is none).
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn put_if(
        &self,
        namespace: &Namespace,
        name: &WorkflowName,
        manifest: Bytes,
        expected: u64,
    ) -> Result<Stored, LogError> {
        put_if(
            &self.store,
            key(namespace, name),
            manifest,
            expected,
            "store a workflow",
        )
        .await
    }

    /// One definition.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn get(
        &self,
        namespace: &Namespace,
        name: &WorkflowName,
    ) -> Result<Option<Definition>, LogError> {
        let entry = self
            .store
            .entry(key(namespace, name))
            .await
            .map_err(|error| LogError::unavailable("read a workflow", error))?;
        Ok(entry
            .filter(|entry| entry.operation == kv::Operation::Put)
            .map(|entry| Definition {
                namespace: namespace.clone(),
                name: name.clone(),
                manifest: entry.value,
                revision: entry.revision,
                updated_at: timestamp(entry.created.unix_timestamp_nanos()),
            }))
    }

    /// Removes a definition; whether there was one.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn delete(&self, namespace: &Namespace, name: &WorkflowName) -> Result<bool, LogError> {
        if self.get(namespace, name).await?.is_none() {
            return Ok(false);
        }
        self.store
            .delete(key(namespace, name))
            .await
            .map_err(|error| LogError::unavailable("delete a workflow", error))?;
        Ok(true)
    }

    /// All definitions, by namespace and name.
    ///
    /// # Errors
    /// [`LogError`]; never a part of them.
    pub async fn list(&self) -> Result<Vec<Definition>, LogError> {
        let entries = self.reader.all(&all_keys(), 1, DEFINITIONS_MAX).await?;
        let mut definitions: Vec<Definition> = entries
            .into_iter()
            .filter_map(|raw| match change(raw)? {
                Change::Put(definition) => Some(definition),
                Change::Deleted { .. } => None,
            })
            .collect();
        definitions.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        Ok(definitions)
    }

    /// Every definition as it stands, then every change, for ever. What stands now is told first; deletions
    /// may be told of definitions that were never heard of.
    ///
    /// # Errors
    /// [`LogError`] when it cannot begin.
    pub async fn watch(
        &self,
    ) -> Result<impl Stream<Item = Result<Change, LogError>> + Send + use<>, LogError> {
        let reader = self.reader.clone();
        let messages =
            follow::follow(self.api.clone(), &stream_name(), vec![all_keys()], Position::All).await?;
        Ok(messages.filter_map(move |message| {
            let reader = reader.clone();
            async move {
                let message = match message {
                    Ok(message) => message,
                    Err(error) => return Some(Err(error)),
                };
                // An empty body is a deletion or an empty manifest: the headers tell, which followers don't carry.
                if !message.payload.is_empty() {
                    return change(Raw::plain(message)).map(Ok);
                }
                match reader.at(message.seq).await {
                    Ok(raw) => raw.and_then(change).map(Ok),
                    Err(error) => Some(Err(error)),
                }
            }
        }))
    }
}

/// Reads one message of the bucket's stream; `None` for a key that is none of ours.
fn change(raw: Raw) -> Option<Change> {
    let key = raw
        .message
        .subject
        .strip_prefix("$KV.")?
        .strip_prefix(WORKFLOWS_BUCKET)?;
    let (namespace, name) = key.strip_prefix('.')?.split_once('.')?;
    let namespace = Namespace::new(namespace).ok()?;
    let name = WorkflowName::new(name).ok()?;
    let revision = raw.message.seq;
    if raw.headers.get("KV-Operation").is_some() || raw.headers.get("Nats-Marker-Reason").is_some() {
        return Some(Change::Deleted {
            namespace,
            name,
            revision,
        });
    }
    Some(Change::Put(Definition {
        namespace,
        name,
        manifest: raw.message.payload,
        revision,
        updated_at: raw.message.at,
    }))
}

/// A compare-and-set on one key; a lost answer is a conflict, since it may have been written.
pub(crate) async fn put_if(
    store: &kv::Store,
    key: String,
    value: Bytes,
    expected: u64,
    action: &str,
) -> Result<Stored, LogError> {
    if expected == 0 {
        // Also over the mark of a deletion.
        return match store.create(key, value).await {
            Ok(revision) => Ok(Stored::At(revision)),
            Err(error) if error.kind() == kv::CreateErrorKind::AlreadyExists => Ok(Stored::Conflict),
            Err(error) => Err(LogError::unavailable(action, error)),
        };
    }
    match store.update(key, value, expected).await {
        Ok(revision) => Ok(Stored::At(revision)),
        Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => Ok(Stored::Conflict),
        Err(error) => Err(LogError::unavailable(action, error)),
    }
}
