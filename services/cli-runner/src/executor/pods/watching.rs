//! One watch for all pods of this runner's namespace that are a command's: whoever waits for a pod waits here.
//!
//! Invariants:
//! - What is held is what the API server said last; while it is away, nothing changes here.
//! - Nobody lists pods to find out about one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cluster::names;
use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    runtime::watcher::{self, Event},
};
use service::backoff::Policy;
use tokio::sync::watch;

/// Between two attempts at a watch that fails.
const AGAIN: Policy = Policy {
    first: Duration::from_millis(250),
    longest: Duration::from_secs(5),
    ..Policy::PATIENT
};

/// The pods as they are. Cheap to clone.
#[derive(Clone)]
pub struct Watched {
    pods: Arc<Mutex<HashMap<String, Arc<Pod>>>>,
    changed: Arc<watch::Sender<u64>>,
}

impl Watched {
    /// Begins to watch; goes on until the value's last clone is dropped.
    pub fn begin(api: Api<Pod>) -> Self {
        let watched = Self {
            pods: Arc::default(),
            changed: Arc::new(watch::Sender::new(0)),
        };
        let pods = Arc::downgrade(&watched.pods);
        let mut closing = watched.changed.subscribe();
        let changed = Arc::downgrade(&watched.changed);
        tokio::spawn(async move {
            let selector = format!(
                "{}={},{}={}",
                names::APP_LABEL,
                names::APP,
                names::COMPONENT_LABEL,
                names::CLI_COMPONENT
            );
            let config = watcher::Config::default().labels(&selector);
            let mut events = std::pin::pin!(kube::runtime::watcher(api, config));
            let mut listed = HashMap::new();
            let mut waits = AGAIN.waits();
            loop {
                let event = tokio::select! {
                    event = events.next() => event,
                    // Ends when the last sender is gone.
                    closed = async { while closing.changed().await.is_ok() {} } => { let () = closed; return; }
                };
                let (Some(pods), Some(changed), Some(event)) = (pods.upgrade(), changed.upgrade(), event)
                else {
                    return;
                };
                match event {
                    Ok(event) => {
                        waits.reset();
                        if apply(event, &mut lock(&pods), &mut listed) {
                            changed.send_modify(|version| *version += 1);
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the watch of pods broke; beginning again");
                        drop((pods, changed));
                        tokio::time::sleep(waits.next_wait()).await;
                    }
                }
            }
        });
        watched
    }

    /// A pod as it was last seen; not another that has its name by now.
    pub fn pod(&self, name: &str, uid: &str) -> Option<Arc<Pod>> {
        let pods = lock(&self.pods);
        pods.get(name)
            .filter(|pod| pod.metadata.uid.as_deref() == Some(uid))
            .cloned()
    }

    /// All pods as they were last seen.
    pub fn all(&self) -> Vec<Arc<Pod>> {
        lock(&self.pods).values().cloned().collect()
    }

    /// Tells of changes from now on.
    pub fn changes(&self) -> watch::Receiver<u64> {
        let mut changes = self.changed.subscribe();
        changes.borrow_and_update();
        changes
    }
}

/// Whether anybody may want to look.
fn apply(
    event: Event<Pod>,
    pods: &mut HashMap<String, Arc<Pod>>,
    listed: &mut HashMap<String, Arc<Pod>>,
) -> bool {
    match event {
        Event::Init => {
            listed.clear();
            false
        }
        Event::InitApply(pod) => {
            put(pod, listed);
            false
        }
        Event::InitDone => {
            *pods = std::mem::take(listed);
            true
        }
        Event::Apply(pod) => {
            put(pod, pods);
            true
        }
        Event::Delete(pod) => {
            // The same name may be another's by now.
            let name = pod.metadata.name.unwrap_or_default();
            if pods
                .get(&name)
                .is_some_and(|held| held.metadata.uid == pod.metadata.uid)
            {
                pods.remove(&name);
            }
            true
        }
    }
}

fn put(mut pod: Pod, pods: &mut HashMap<String, Arc<Pod>>) {
    pod.metadata.managed_fields = None;
    if let Some(spec) = &mut pod.spec {
        // A command may have 128 KiB, and nobody here reads it again.
        spec.containers.clear();
    }
    if let Some(name) = pod.metadata.name.clone() {
        pods.insert(name, Arc::new(pod));
    }
}

fn lock(pods: &Mutex<HashMap<String, Arc<Pod>>>) -> MutexGuard<'_, HashMap<String, Arc<Pod>>> {
    // Whole entries are put in and taken out, so what a panic left is sound.
    pods.lock().unwrap_or_else(PoisonError::into_inner)
}
