//! Definitions: kept in the KV bucket, watched into memory, and matched against alerts.
//!
//! Invariants:
//! - An alert is matched against every definition that was acknowledged before the alert became durable:
//!   [`Registry::current`] waits until the watch has come so far.
//! - Only admitted manifests are stored.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use bus::{Change, Connection, Definition, Definitions, LogError, Stored};
use engine::{
    admit::Policy,
    filters::Matcher,
    fixgate::Gate,
    manifest::{Trigger, Workflow},
};
use futures_util::StreamExt;
use protocol::{Alert, Namespace, Timestamp, WorkflowName};
use service::{Config, Fatal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{sources, stream_info};

/// How long an alert waits for the watch to come up to date before all definitions are read anew.
const CATCH_UP_MAX: Duration = Duration::from_secs(2);
/// How soon a broken watch is begun again.
const WATCH_AGAIN_AFTER: Duration = Duration::from_millis(500);
/// Attempts at storing a definition against others who store it at the same time.
const APPLY_ATTEMPTS_MAX: u32 = 10;

/// A stored definition.
#[derive(Clone, Debug)]
pub struct Known {
    /// Where it belongs.
    pub namespace: Namespace,
    /// Its name.
    pub name: WorkflowName,
    /// The manifest.
    pub workflow: Workflow,
    /// When it was last applied.
    pub updated_at: Timestamp,
    /// Its revision in the bucket.
    pub generation: u64,
    trigger: Option<Compiled>,
}

#[derive(Clone, Debug)]
struct Compiled {
    whole: Matcher,
    /// Each filter by itself, to tell which definition came nearest.
    each: Vec<Matcher>,
}

impl Known {
    /// Namespace and name, for sorting.
    pub fn place(&self) -> (&str, &str) {
        (self.namespace.as_str(), self.name.as_str())
    }

    fn read(entry: &Definition) -> Result<Self, String> {
        let workflow: Workflow =
            serde_json::from_slice(&entry.manifest).map_err(|error| error.to_string())?;
        let trigger = workflow.spec.trigger.as_ref().map(Compiled::new).transpose()?;
        Ok(Self {
            namespace: entry.namespace.clone(),
            name: entry.name.clone(),
            workflow,
            updated_at: entry.updated_at,
            generation: entry.revision,
            trigger,
        })
    }
}

impl Compiled {
    fn new(trigger: &Trigger) -> Result<Self, String> {
        let one = |(label, expected): (&String, &String)| {
            Matcher::new(&Trigger {
                source: trigger.source.clone(),
                filters: [(label.clone(), expected.clone())].into(),
            })
        };
        Ok(Self {
            whole: Matcher::new(trigger)?,
            each: trigger.filters.iter().map(one).collect::<Result<_, _>>()?,
        })
    }
}

/// What storing a definition did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// There was none.
    Created,
    /// It took another's place.
    Configured,
    /// It was there already, just like that.
    Unchanged,
}

/// Which definitions an alert starts.
#[derive(Clone, Debug)]
pub enum Match {
    /// These.
    Wanted(Vec<Arc<Known>>),
    /// None, for this reason.
    Filtered(String),
}

type Held = BTreeMap<(Namespace, WorkflowName), Arc<Known>>;

/// All definitions. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    connection: Connection,
    definitions: Definitions,
    policy: Arc<Policy>,
    held: Arc<RwLock<Held>>,
    /// The revision up to which `held` is true.
    seen: Arc<watch::Sender<u64>>,
}

impl Registry {
    /// Over this bucket; [`Registry::watch`] must run beside it.
    ///
    /// # Errors
    /// [`Fatal`] names the verb that the fix gate cannot check.
    pub fn new(connection: Connection, definitions: Definitions, config: &Config) -> Result<Self, Fatal> {
        let gate = Gate::new(&config.fix.verbs, &config.fix.allowed_namespaces)
            .map_err(|error| Fatal::new(format!("fix.verbs: {error}")))?;
        let policy = Policy {
            sources: config.sources.keys().cloned().collect(),
            model_aliases: config.llm.model_aliases.clone().into_iter().collect(),
            gate,
            ..Policy::default()
        };
        Ok(Self {
            connection,
            definitions,
            policy: Arc::new(policy),
            held: Arc::default(),
            seen: Arc::new(watch::Sender::new(0)),
        })
    }

    /// What the configuration decides about manifests.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Keeps the memory up to date until the shutdown.
    pub async fn watch(&self, shutdown: &CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                ended = self.watch_once() => {
                    if let Err(error) = ended {
                        tracing::warn!(%error, "the watch of workflow definitions broke; beginning again");
                    }
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(WATCH_AGAIN_AFTER) => {}
            }
        }
    }

    async fn watch_once(&self) -> Result<(), LogError> {
        let changes = self.definitions.watch().await?;
        let mut changes = std::pin::pin!(changes);
        while let Some(change) = changes.next().await {
            let (place, known, revision) = match change? {
                Change::Put(entry) => (
                    (entry.namespace.clone(), entry.name.clone()),
                    readable(&entry),
                    entry.revision,
                ),
                Change::Deleted {
                    namespace,
                    name,
                    revision,
                } => ((namespace, name), None, revision),
            };
            {
                let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
                let is_newer = held.get(&place).is_none_or(|held| held.generation <= revision);
                match known {
                    Some(known) if is_newer => held.insert(place, known),
                    None if is_newer => held.remove(&place),
                    Some(_) | None => None,
                };
            }
            self.has_seen(revision);
        }
        Ok(())
    }

    fn has_seen(&self, revision: u64) {
        self.seen.send_if_modified(|seen| {
            let is_later = revision > *seen;
            *seen = revision.max(*seen);
            is_later
        });
    }

    /// All definitions that are stored at this moment, from memory.
    ///
    /// # Errors
    /// [`LogError`] where that cannot be made sure of.
    pub async fn current(&self) -> Result<Snapshot, LogError> {
        let needed = stream_info::of_workflows(&self.connection).await?.last_revision;
        let mut seen = self.seen.subscribe();
        let is_late = tokio::time::timeout(CATCH_UP_MAX, seen.wait_for(|seen| *seen >= needed))
            .await
            .is_err();
        if is_late {
            // The last change was one that is not told of, such as a foreign key: look at all of them.
            self.read_anew(needed).await?;
        }
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        Ok(Snapshot(held.values().cloned().collect()))
    }

    async fn read_anew(&self, needed: u64) -> Result<(), LogError> {
        let entries = self.definitions.list().await?;
        let all = entries.iter().filter_map(readable);
        let all: Held = all
            .map(|known| ((known.namespace.clone(), known.name.clone()), known))
            .collect();
        {
            let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
            held.retain(|place, known| known.generation > needed || all.contains_key(place));
            for (place, known) in all {
                if held
                    .get(&place)
                    .is_none_or(|held| held.generation <= known.generation)
                {
                    held.insert(place, known);
                }
            }
        }
        self.has_seen(needed);
        Ok(())
    }

    /// One definition, as it is stored.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn read(&self, namespace: &Namespace, name: &WorkflowName) -> Result<Option<Known>, LogError> {
        match self.definitions.get(namespace, name).await? {
            Some(entry) => Known::read(&entry)
                .map(Some)
                .map_err(|reason| damaged(namespace, name, reason)),
            None => Ok(None),
        }
    }

    /// All definitions, as they are stored; those that cannot be read are left out.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn read_all(&self) -> Result<Vec<Known>, LogError> {
        let entries = self.definitions.list().await?;
        Ok(entries
            .iter()
            .filter_map(|entry| Known::read(entry).ok())
            .collect())
    }

    /// Stores a definition, and says what that changed and its revision.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn apply(
        &self,
        namespace: &Namespace,
        name: &WorkflowName,
        workflow: &Workflow,
    ) -> Result<(Applied, u64), LogError> {
        let manifest =
            serde_json::to_vec(workflow).map_err(|error| damaged(namespace, name, error.to_string()))?;
        let manifest = bytes::Bytes::from(manifest);
        for _ in 0..APPLY_ATTEMPTS_MAX {
            let before = self.definitions.get(namespace, name).await?;
            if let Some(before) = before.as_ref().filter(|before| before.manifest == manifest) {
                return Ok((Applied::Unchanged, before.revision));
            }
            let expected = before.as_ref().map_or(0, |before| before.revision);
            if let Stored::At(revision) = self
                .definitions
                .put_if(namespace, name, manifest.clone(), expected)
                .await?
            {
                let applied = if before.is_some() {
                    Applied::Configured
                } else {
                    Applied::Created
                };
                return Ok((applied, revision));
            }
        }
        Err(LogError::Unavailable {
            action: format!("store workflow {namespace}/{name}"),
            reason: "others kept changing it at the same time".to_owned(),
        })
    }

    /// Deletes a definition; whether there was one.
    ///
    /// # Errors
    /// [`LogError`].
    pub async fn delete(&self, namespace: &Namespace, name: &WorkflowName) -> Result<bool, LogError> {
        self.definitions.delete(namespace, name).await
    }
}

/// A stored definition, where it can be read.
fn readable(entry: &Definition) -> Option<Arc<Known>> {
    match Known::read(entry) {
        Ok(known) => Some(Arc::new(known)),
        Err(reason) => {
            tracing::error!(
                namespace = %entry.namespace,
                workflow = %entry.name,
                reason,
                "a stored definition cannot be read, and starts nothing; apply it again"
            );
            None
        }
    }
}

fn damaged(namespace: &Namespace, name: &WorkflowName, reason: String) -> LogError {
    LogError::Damaged {
        what: format!("the stored workflow {namespace}/{name}"),
        reason,
    }
}

/// The definitions of one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot(Vec<Arc<Known>>);

impl Snapshot {
    /// Which of them this alert starts.
    pub fn matching(&self, alert: &Alert) -> Match {
        let source = alert.source.as_str();
        let mut wanted = Vec::new();
        let mut suspended = Vec::new();
        let mut refused: Vec<(usize, String)> = Vec::new();
        for known in &self.0 {
            let Some(trigger) = known
                .trigger
                .as_ref()
                .filter(|trigger| trigger.whole.wants_source(source))
            else {
                continue;
            };
            let matching = || {
                trigger
                    .each
                    .iter()
                    .filter(|one| one.matches(source, &alert.labels).is_ok())
                    .count()
            };
            match trigger.whole.matches(source, &alert.labels) {
                Ok(()) if known.workflow.spec.suspend => suspended.push(known),
                Ok(()) => wanted.push(Arc::clone(known)),
                Err(reason) => {
                    refused.push((
                        matching(),
                        format!("workflow {}/{}: {reason}", known.namespace, known.name),
                    ));
                }
            }
        }
        if !wanted.is_empty() {
            return Match::Wanted(wanted);
        }
        let others = |count: usize| match count {
            0 => String::new(),
            1 => " (and one other workflow did not match either)".to_owned(),
            count => format!(" (and {count} other workflows did not match either)"),
        };
        let names: Vec<String> = suspended
            .iter()
            .map(|known| format!("{}/{}", known.namespace, known.name))
            .collect();
        Match::Filtered(match (names.as_slice(), refused.as_slice()) {
            ([], []) => self.nobody_listens(source),
            ([only], _) => format!("workflow {only} is suspended"),
            ([_, ..], _) => format!("workflows {} are suspended", names.join(", ")),
            ([], [first, ..]) => {
                // The first of those that came nearest: in the order of namespace and name.
                let nearest = refused
                    .iter()
                    .skip(1)
                    .fold(first, |best, one| if one.0 > best.0 { one } else { best });
                format!("{}{}", nearest.1, others(refused.len() - 1))
            }
        })
    }

    fn nobody_listens(&self, source: &str) -> String {
        let mut heard: Vec<&str> = self
            .0
            .iter()
            .filter_map(|known| known.workflow.spec.trigger.as_ref())
            .map(|trigger| trigger.source.as_str())
            .collect();
        heard.sort_unstable();
        heard.dedup();
        match heard.as_slice() {
            [] if source == sources::ALERTMANAGER => {
                format!("no workflow listens to source {source}; `fist apply -f FILE` adds one")
            }
            [] => format!("no workflow listens to source {source}"),
            heard => format!(
                "no workflow listens to source {source}; they listen to {}",
                heard.join(", ")
            ),
        }
    }
}
