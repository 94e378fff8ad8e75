//! Tells objects how their executions stand, message by message of the log.
//!
//! Invariants:
//! - A message is acknowledged when the object's status says at least as much, or the object is gone.
//! - Of several messages about one execution that come at once, only the newest is written.
//! - An execution whose object is gone is cancelled, also where nobody saw it go.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use bus::{Failure, Handler, Log, LogMessage, NatsLog};
use protocol::{
    Append, End, ExecutionId, Fact, LaneAction, Namespace, Subject, decode, views::ExecutionStatus,
};
use tokio::time::{Instant, sleep_until};

use super::{
    cancel, lock,
    objects::{Objects, Place, Said, Told},
    status::Standing,
};
use crate::{definitions::Registry, story::status_of};

/// Executions whose object is remembered.
const KNOWN_MAX: usize = 10_000;
/// Between two writes of one object's status.
const WRITE_EVERY: Duration = Duration::from_millis(300);
/// How soon a message comes again after the API server could not be reached.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

/// Whose status an execution belongs to.
#[derive(Clone, Debug)]
struct Target {
    place: Place,
    /// Whether the object is this one execution, and not its definition.
    is_own: bool,
    total_steps: u32,
}

/// What was told of an execution lately.
#[derive(Clone, Copy, Debug)]
struct Recent {
    newest: u64,
    next_write: Instant,
}

/// Handles the messages of all lanes.
pub struct Progress {
    objects: Objects,
    log: NatsLog,
    registry: Registry,
    known: Mutex<HashMap<ExecutionId, Option<Arc<Target>>>>,
    recent: Mutex<HashMap<ExecutionId, Recent>>,
}

impl Progress {
    pub fn new(objects: Objects, log: NatsLog, registry: Registry) -> Self {
        Self {
            objects,
            log,
            registry,
            known: Mutex::default(),
            recent: Mutex::default(),
        }
    }

    /// Whose execution it is; `None` where it is no object's.
    async fn target(
        &self,
        namespace: &Namespace,
        execution: ExecutionId,
    ) -> Result<Option<Arc<Target>>, Failure> {
        if let Some(known) = lock(&self.known).get(&execution) {
            return Ok(known.clone());
        }
        let subject = Subject::Start(namespace.clone(), execution).to_string();
        let start = self.log.last(&subject).await?;
        let start = start.and_then(|message| decode::<Fact>(&message.payload).ok());
        let target = match start.map(|envelope| envelope.body) {
            Some(Fact::Start(start)) => {
                let uid = match &start.uid {
                    Some(uid) => Some(uid.clone()),
                    // As it is stored, and not from memory, which may not be up to date yet.
                    None => match self.registry.read(&start.namespace, &start.workflow).await {
                        Ok(known) => known.and_then(|known| known.workflow.metadata.uid),
                        Err(error) if error.is_transient() => return Err(error.into()),
                        // What cannot be read starts nothing either.
                        Err(_) => None,
                    },
                };
                let total_steps = start.spec.read()["steps"].as_array().map_or(0, Vec::len);
                uid.map(|uid| {
                    Arc::new(Target {
                        place: Place {
                            namespace: start.namespace.to_string(),
                            name: start.workflow.to_string(),
                            uid,
                        },
                        is_own: start.uid.is_some(),
                        total_steps: u32::try_from(total_steps).unwrap_or(u32::MAX),
                    })
                })
            }
            // It has left the log, or cannot be read: nobody's.
            _ => None,
        };
        let mut known = lock(&self.known);
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(execution, target.clone());
        Ok(target)
    }

    /// Waits for this execution's turn to be written; false where a newer message takes this one's place.
    async fn turn(&self, execution: ExecutionId, seq: u64) -> bool {
        let at = {
            let mut recent = lock(&self.recent);
            if recent.len() >= KNOWN_MAX {
                let now = Instant::now();
                recent.retain(|_, one| one.next_write > now);
            }
            let one = recent.entry(execution).or_insert(Recent {
                newest: seq,
                next_write: Instant::now(),
            });
            one.newest = one.newest.max(seq);
            one.next_write
        };
        sleep_until(at).await;
        let mut recent = lock(&self.recent);
        match recent.get_mut(&execution) {
            Some(one) if one.newest > seq => false,
            Some(one) => {
                one.next_write = Instant::now() + WRITE_EVERY;
                true
            }
            None => true,
        }
    }

    /// Steps of an execution that are over.
    async fn completed(&self, namespace: &Namespace, execution: ExecutionId) -> Result<u32, Failure> {
        let mut over = BTreeSet::new();
        for message in self.log.read_execution(namespace, execution).await? {
            match Subject::parse(&message.subject) {
                Ok(Subject::Done(_, _, step, _)) => {
                    over.insert(step.to_string());
                }
                Ok(Subject::Command(..) | Subject::Note(..) | Subject::Cancel(..)) => {
                    if let Ok(envelope) = decode::<Append>(&message.payload) {
                        let records = envelope.body.records.into_iter();
                        over.extend(
                            records
                                .filter(|record| record.status.is_terminal())
                                .map(|record| record.step.to_string()),
                        );
                    }
                }
                Ok(_) | Err(_) => {}
            }
        }
        Ok(u32::try_from(over.len()).unwrap_or(u32::MAX))
    }

    /// Says of an execution that it has ended.
    async fn say(&self, place: &Place, standing: &Standing) {
        let id = &standing.execution;
        let error = standing.error.as_deref().unwrap_or_default();
        let (reason, note) = match standing.phase {
            "Succeeded" => ("Succeeded", format!("execution {id} succeeded")),
            "Failed" => ("Failed", format!("execution {id} failed: {error}")),
            "Cancelled" => ("Cancelled", format!("execution {id} was cancelled")),
            _ => return,
        };
        let is_warning = standing.phase == "Failed";
        let said = Said {
            reason,
            about: id,
            note,
            is_warning,
        };
        self.objects.say(place, said).await;
    }
}

impl Handler for Progress {
    async fn handle(&self, message: LogMessage, _: u64) -> Result<(), Failure> {
        let Ok(subject) = Subject::parse(&message.subject) else {
            return Ok(());
        };
        let Some((namespace, execution)) = subject.execution().map(|(namespace, id)| (namespace.clone(), id))
        else {
            return Ok(());
        };
        let Some(target) = self.target(&namespace, execution).await? else {
            return Ok(());
        };
        let Ok(envelope) = decode::<Append>(&message.payload) else {
            return Ok(());
        };
        let Some(mut standing) = standing(&target, execution, &message, envelope.body.action) else {
            return Ok(());
        };
        if !self.turn(execution, message.seq).await {
            return Ok(());
        }
        if standing.is_over {
            standing.steps_completed = self.completed(&namespace, execution).await?;
        }
        let told = self
            .objects
            .tell(&target.place, |status, object| {
                if target.is_own {
                    // The intake that started it may not have told yet which execution it is.
                    if status.execution_id.is_none() {
                        status.set_pending(
                            &standing.execution,
                            target.total_steps,
                            object.metadata.generation,
                            message.at,
                        );
                    }
                    status.advance(&standing, object.metadata.generation);
                } else {
                    status.count(&standing);
                }
            })
            .await
            .map_err(|reason| Failure::Retry {
                after: AGAIN_AFTER,
                reason,
            })?;
        match told {
            Told::Written => self.say(&target.place, &standing).await,
            Told::Gone if target.is_own && !standing.is_over => {
                cancel(&self.log, &namespace, execution, &target.place).await?;
            }
            Told::Unchanged | Told::Gone => {}
        }
        Ok(())
    }
}

/// What a message tells of how its execution stands; nothing where others follow that do. How many steps are over at
/// the end is for whoever reads the whole execution.
fn standing(
    target: &Target,
    execution: ExecutionId,
    message: &LogMessage,
    action: LaneAction,
) -> Option<Standing> {
    let of = |phase: ExecutionStatus| Standing {
        execution: execution.to_string(),
        seq: message.seq,
        at: message.at,
        phase: phase.as_str(),
        is_over: false,
        current_step: None,
        steps_completed: 0,
        total_steps: target.total_steps,
        error: None,
    };
    match action {
        LaneAction::Task(task) => Some(Standing {
            current_step: Some(task.step.to_string()),
            steps_completed: task.index,
            ..of(ExecutionStatus::Running)
        }),
        // What it plans follows in messages of its own.
        LaneAction::Plan(_) => None,
        LaneAction::End(End { status, error, .. }) => Some(Standing {
            is_over: true,
            error,
            ..of(status_of(status))
        }),
    }
}
