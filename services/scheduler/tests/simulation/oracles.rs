//! What must hold whatever happened: one function for each guarantee, judging from outside alone.
//!
//! | guarantee | here |
//! |---|---|
//! | nothing acknowledged is lost | [`acknowledged_is_kept`] |
//! | rule 1: a fact is written once | [`facts_are_written_once`] |
//! | rule 2: a lane's messages build on each other | [`lane_replays`], [`lane_ends_once`] |
//! | rule 3: a fact leads to at most one message that names it | [`causes_are_named_once`], [`causes_stand_before`] |
//! | rule 3: and none is left unanswered | [`nothing_is_left_to_answer`] |
//! | rule 5: an ack follows the durable effect | [`acks_follow_effects`] |
//! | one outcome per attempt | [`tasks_are_handed_out_once`] |
//! | every state has a deadline, and nothing hangs | [`everything_ends`], [`timers_are_armed_first`] |
//! | no step is ended before its time | [`steps_have_their_time`] |
//! | an end follows from what happened | [`ends_have_reasons`] |
//! | what cannot be processed, and nothing else, is set aside | [`dead_letters_are_deserved`] |

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use bus::{StreamId, sim::Effect, topology};
use engine::{Decision, Definition, Logged, Observed, Phase, State, decide};
use protocol::{
    Append, DeadLetter, EndStatus, ExecutionId, Fact, LaneAction, Start, StepFailure, StepName, StepRecord,
    Subject, TimerId, Timestamp,
};

use crate::world::{Evidence, GRACE};

/// What one guarantee says to a history: what breaks it.
type Oracle = fn(&Case<'_>) -> Result<(), String>;

/// All of them, by name.
pub const ORACLES: [(&str, Oracle); 14] = [
    ("everything_ends", everything_ends),
    ("acknowledged_is_kept", acknowledged_is_kept),
    ("facts_are_written_once", facts_are_written_once),
    ("lane_ends_once", lane_ends_once),
    ("tasks_are_handed_out_once", tasks_are_handed_out_once),
    ("causes_are_named_once", causes_are_named_once),
    ("causes_stand_before", causes_stand_before),
    ("lane_replays", lane_replays),
    ("nothing_is_left_to_answer", nothing_is_left_to_answer),
    ("acks_follow_effects", acks_follow_effects),
    ("timers_are_armed_first", timers_are_armed_first),
    ("steps_have_their_time", steps_have_their_time),
    ("ends_have_reasons", ends_have_reasons),
    ("dead_letters_are_deserved", dead_letters_are_deserved),
];

/// A guarantee that a history breaks.
#[derive(Clone, Debug, PartialEq)]
pub struct Broken {
    pub guarantee: &'static str,
    pub how: String,
}

/// A history, read.
pub struct Case<'a> {
    evidence: &'a Evidence,
    /// Everything about each execution, in stream order.
    executions: BTreeMap<ExecutionId, Vec<Entry>>,
    /// What each execution's start fact asks for, compiled once.
    definitions: BTreeMap<ExecutionId, Compiled>,
    /// Place among the effects at which each message of the log was stored.
    stored: HashMap<u64, usize>,
}

type Compiled = Result<Arc<Definition>, String>;

/// One message of an execution.
#[derive(Clone)]
struct Entry {
    seq: u64,
    subject: String,
    /// `None` where it cannot be read.
    logged: Option<Logged>,
}

impl<'a> Case<'a> {
    fn new(evidence: &'a Evidence) -> Self {
        let mut executions: BTreeMap<ExecutionId, Vec<Entry>> = BTreeMap::new();
        for message in &evidence.log {
            let Ok(subject) = Subject::parse(&message.subject) else {
                continue;
            };
            let Some((_, id)) = subject.execution() else {
                continue;
            };
            let logged = match subject {
                Subject::Command(..) | Subject::Note(..) | Subject::Cancel(..) => {
                    protocol::decode::<Append>(&message.payload)
                        .ok()
                        .map(|envelope| Logged::Lane(envelope.body))
                }
                _ => protocol::decode::<Fact>(&message.payload)
                    .ok()
                    .map(|envelope| Logged::Fact(envelope.body)),
            };
            executions.entry(id).or_default().push(Entry {
                seq: message.seq,
                subject: message.subject.clone(),
                logged,
            });
        }
        let stored = evidence
            .effects
            .iter()
            .enumerate()
            .filter_map(|(place, effect)| match effect {
                Effect::Stored {
                    stream: StreamId::Log,
                    seq,
                } => Some((*seq, place)),
                _ => None,
            });
        let definitions = executions.iter().filter_map(|(id, entries)| {
            let start = entries.iter().find_map(|entry| match &entry.logged {
                Some(Logged::Fact(Fact::Start(start))) => Some(start),
                _ => None,
            });
            Some((*id, compile(start?)))
        });
        Self {
            evidence,
            definitions: definitions.collect(),
            executions,
            stored: stored.collect(),
        }
    }

    /// The lanes, each a list of sequence and message.
    fn lanes(&self) -> impl Iterator<Item = (ExecutionId, Vec<(u64, &Append)>)> {
        self.executions.iter().map(|(id, entries)| (*id, lane(entries)))
    }

    /// The state that those of the execution's messages give that `counts` accepts.
    fn replay(&self, id: ExecutionId, counts: impl Fn(&Entry) -> bool) -> Result<State, String> {
        let entries = self.executions.get(&id).map_or(&[][..], Vec::as_slice);
        let read = entries.iter().filter(|entry| counts(entry));
        let read: Vec<(u64, Logged)> = read
            .filter_map(|entry| Some((entry.seq, entry.logged.clone()?)))
            .collect();
        let compiled = || {
            self.definitions
                .get(&id)
                .cloned()
                .unwrap_or_else(|| Err("no start".to_owned()))
        };
        State::replay(&read, |_| compiled()).map_err(|error| error.to_string())
    }

    fn entries(&self) -> impl Iterator<Item = (ExecutionId, &Entry)> {
        self.executions
            .iter()
            .flat_map(|(id, entries)| entries.iter().map(move |entry| (*id, entry)))
    }
}

fn lane(entries: &[Entry]) -> Vec<(u64, &Append)> {
    let lane = entries.iter().filter_map(|entry| match &entry.logged {
        Some(Logged::Lane(append)) => Some((entry.seq, append)),
        _ => None,
    });
    lane.collect()
}

/// The first guarantee that the history breaks.
pub fn judge(evidence: &Evidence) -> Result<(), Broken> {
    let case = Case::new(evidence);
    for (guarantee, oracle) in ORACLES {
        oracle(&case).map_err(|how| Broken { guarantee, how })?;
    }
    Ok(())
}

/// All guarantees that it breaks, by name.
pub fn broken(evidence: &Evidence) -> BTreeSet<&'static str> {
    let case = Case::new(evidence);
    ORACLES
        .into_iter()
        .filter(|(_, oracle)| oracle(&case).is_err())
        .map(|(name, _)| name)
        .collect()
}

fn demand(holds: bool, how: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(how()) }
}

fn everything_ends(case: &Case<'_>) -> Result<(), String> {
    for id in &case.evidence.executions {
        let entries = case.executions.get(id).map_or(&[][..], Vec::as_slice);
        let has_ended = lane(entries)
            .iter()
            .any(|(_, append)| matches!(append.action, LaneAction::End(_)));
        demand(has_ended, || format!("{id} has not ended"))?;
    }
    demand(case.evidence.is_over, || {
        "a queue is not empty after hours of calm".to_owned()
    })
}

fn acknowledged_is_kept(case: &Case<'_>) -> Result<(), String> {
    let kept: BTreeSet<&str> = case
        .evidence
        .log
        .iter()
        .map(|message| message.subject.as_str())
        .collect();
    for subject in &case.evidence.accepted {
        let subject = subject.to_string();
        demand(kept.contains(subject.as_str()), || {
            format!("{subject} was acknowledged and is not in the log")
        })?;
    }
    // A runner's task is acknowledged for its result, or for the end of the execution.
    for (place, effect) in case.evidence.effects.iter().enumerate() {
        let Effect::Acked { consumer, seq } = effect else {
            continue;
        };
        if ![topology::CLI.name, topology::AGENT.name].contains(consumer) {
            continue;
        }
        let Some((id, entry)) = case.entries().find(|(_, entry)| entry.seq == *seq) else {
            continue;
        };
        let Some(Logged::Lane(Append {
            action: LaneAction::Task(task),
            ..
        })) = &entry.logged
        else {
            continue;
        };
        let done = task.done_subject().to_string();
        let is_settled = case.executions[&id].iter().any(|other| {
            let is_end = matches!(&other.logged, Some(Logged::Lane(append)) if matches!(append.action, LaneAction::End(_)));
            (other.subject == done || is_end) && case.stored.get(&other.seq).is_some_and(|stored| *stored < place)
        });
        demand(is_settled, || {
            format!("{id}: the task {seq} is acknowledged, and its result is not in the log")
        })?;
    }
    Ok(())
}

fn facts_are_written_once(case: &Case<'_>) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    let facts = case
        .evidence
        .log
        .iter()
        .filter(|message| message.subject.starts_with("fist.fact."));
    for message in facts {
        demand(seen.insert(&message.subject), || {
            format!("{} is written twice", message.subject)
        })?;
    }
    Ok(())
}

fn lane_ends_once(case: &Case<'_>) -> Result<(), String> {
    for (id, lane) in case.lanes() {
        let end = lane
            .iter()
            .position(|(_, append)| matches!(append.action, LaneAction::End(_)));
        let last = lane.len().saturating_sub(1);
        demand(end.is_none_or(|end| end == last), || {
            format!(
                "{id}: message {} follows the end",
                lane.last().map_or(0, |(seq, _)| *seq)
            )
        })?;
    }
    Ok(())
}

fn tasks_are_handed_out_once(case: &Case<'_>) -> Result<(), String> {
    for (id, lane) in case.lanes() {
        let mut handed_out = BTreeSet::new();
        for (seq, append) in lane {
            if let LaneAction::Task(task) = &append.action {
                demand(handed_out.insert((task.step.clone(), task.attempt)), || {
                    format!("{id}: message {seq} hands out step {} a second time", task.step)
                })?;
            }
        }
    }
    Ok(())
}

fn causes_are_named_once(case: &Case<'_>) -> Result<(), String> {
    for (id, lane) in case.lanes() {
        let mut causes = BTreeSet::new();
        for (_, append) in lane {
            demand(!matches!(append.action, LaneAction::Plan(_)), || {
                "no step type plans yet".to_owned()
            })?;
            demand(causes.insert(append.cause.seq), || {
                format!("{id}: fact {} is answered twice", append.cause.seq)
            })?;
        }
    }
    Ok(())
}

fn causes_stand_before(case: &Case<'_>) -> Result<(), String> {
    for (id, entries) in &case.executions {
        for (seq, append) in lane(entries) {
            let cause = entries.iter().find(|entry| entry.seq == append.cause.seq);
            let stands = cause.is_some_and(|cause| cause.seq < seq && cause.subject == append.cause.subject);
            demand(stands, || {
                format!(
                    "{id}: message {seq} names the fact {:?}, which does not stand before it",
                    append.cause
                )
            })?;
        }
    }
    Ok(())
}

fn compile(start: &Start) -> Compiled {
    let spec = serde_json::from_str(start.spec.as_str()).map_err(|error| error.to_string())?;
    Definition::compile(spec).map(Arc::new)
}

/// Each message follows from the state before it, decided at its own time; and folding one by one gives what folding
/// the whole gives.
fn lane_replays(case: &Case<'_>) -> Result<(), String> {
    for (id, entries) in &case.executions {
        let Some(first) = entries
            .iter()
            .find(|entry| matches!(entry.logged, Some(Logged::Fact(Fact::Start(_)))))
        else {
            continue;
        };
        let mut state = case
            .replay(*id, |entry| entry.seq <= first.seq)
            .map_err(|error| format!("{id}: {error}"))?;
        for (seq, append) in lane(entries) {
            let cause = entries.iter().find(|entry| entry.seq == append.cause.seq);
            let Some(Entry {
                logged: Some(Logged::Fact(fact)),
                subject,
                ..
            }) = cause
            else {
                continue;
            };
            let observed = Observed {
                fact: fact.clone(),
                subject: subject.clone(),
                seq: append.cause.seq,
            };
            let at = decided_at(append).unwrap_or_default();
            let decided = decide(&state, &observed, at, &case.evidence.rules)
                .map_err(|error| format!("{id}: message {seq}: {error}"))?;
            let Decision::Append(planned) = decided else {
                return Err(format!(
                    "{id}: message {seq} answers a fact that calls for nothing"
                ));
            };
            demand(planned.append == *append, || {
                format!(
                    "{id}: message {seq} is {append:?}, and the state before it leads to {:?}",
                    planned.append
                )
            })?;
            state
                .apply(append, fact)
                .map_err(|error| format!("{id}: message {seq}: {error}"))?;
        }
        let whole = case
            .replay(*id, |_| true)
            .map_err(|error| format!("{id}: {error}"))?;
        demand(
            whole.phase() == state.phase() && whole.steps() == state.steps(),
            || {
                format!(
                    "{id}: folded at once it is {:?}, one by one {:?}",
                    whole.steps(),
                    state.steps()
                )
            },
        )?;
    }
    Ok(())
}

/// When a message was decided on: it says so itself.
fn decided_at(append: &Append) -> Option<Timestamp> {
    let recorded = append.records.iter().map(|record| record.at).max();
    match &append.action {
        LaneAction::Task(task) => Some(task.dispatched_at),
        LaneAction::End(end) => Some(end.at),
        LaneAction::Plan(_) => recorded,
    }
}

/// Whatever fact is delivered once more, at the end: there is nothing to answer.
fn nothing_is_left_to_answer(case: &Case<'_>) -> Result<(), String> {
    for (id, entries) in &case.executions {
        let Ok(state) = case.replay(*id, |_| true) else {
            continue;
        };
        for entry in entries {
            let Some(Logged::Fact(fact)) = &entry.logged else {
                continue;
            };
            let observed = Observed {
                fact: fact.clone(),
                subject: entry.subject.clone(),
                seq: entry.seq,
            };
            let decided = decide(&state, &observed, Timestamp::default(), &case.evidence.rules);
            demand(matches!(decided, Ok(Decision::Nothing(_))), || {
                format!(
                    "{id}: fact {} ({}) has no answer; {decided:?}",
                    entry.seq, entry.subject
                )
            })?;
        }
    }
    Ok(())
}

/// A fact is acknowledged when the message that names it is stored, or when it called for nothing by then. (A fact
/// that nobody can read is acknowledged when its dead letter is there.)
fn acks_follow_effects(case: &Case<'_>) -> Result<(), String> {
    for (place, effect) in case.evidence.effects.iter().enumerate() {
        let Effect::Acked { consumer, seq } = effect else {
            continue;
        };
        if *consumer != topology::SCHEDULER.name {
            continue;
        }
        let Some((id, entry)) = case.entries().find(|(_, entry)| entry.seq == *seq) else {
            continue;
        };
        let Some(Logged::Fact(fact)) = &entry.logged else {
            let is_set_aside = case.evidence.effects[..place].iter().any(|effect| {
                matches!(
                    effect,
                    Effect::Stored {
                        stream: StreamId::DeadLetters,
                        ..
                    }
                )
            });
            demand(is_set_aside, || {
                format!("{id}: {} is given up without a dead letter", entry.subject)
            })?;
            continue;
        };
        let state = case
            .replay(id, |entry| {
                case.stored.get(&entry.seq).is_some_and(|stored| *stored < place)
            })
            .map_err(|error| format!("{id}: {error}"))?;
        let observed = Observed {
            fact: fact.clone(),
            subject: entry.subject.clone(),
            seq: *seq,
        };
        let decided = decide(&state, &observed, Timestamp::default(), &case.evidence.rules);
        demand(matches!(decided, Ok(Decision::Nothing(_))), || {
            format!(
                "{id}: fact {seq} ({}) is acknowledged before it is answered",
                entry.subject
            )
        })?;
    }
    Ok(())
}

fn timers_are_armed_first(case: &Case<'_>) -> Result<(), String> {
    for (id, lane) in case.lanes() {
        for (seq, append) in lane {
            let LaneAction::Task(task) = &append.action else {
                continue;
            };
            let timer = TimerId::step_deadline(&task.step, task.attempt, task.deadline);
            let subject = Subject::TimerFire(task.namespace.clone(), id, timer).to_string();
            let by_then = case
                .stored
                .get(&seq)
                .map_or(&[][..], |place| &case.evidence.effects[..*place]);
            let is_armed = by_then.iter().any(|effect| {
                matches!(effect, Effect::Armed { fires_on, at } if *fires_on == subject && *at == task.deadline.after(GRACE))
            });
            demand(is_armed, || {
                format!("{id}: step {} is handed out without a timer", task.step)
            })?;
        }
    }
    Ok(())
}

/// By the broker's clock, which timers go by; the clocks of those who decide may be off.
fn steps_have_their_time(case: &Case<'_>) -> Result<(), String> {
    for (id, lane) in case.lanes() {
        let mut deadlines: BTreeMap<&StepName, Timestamp> = BTreeMap::new();
        for (seq, append) in lane {
            for record in append.records.iter().filter(|record| is_timeout(record)) {
                let stored_at = case
                    .evidence
                    .log
                    .iter()
                    .find(|message| message.seq == seq)
                    .map(|message| message.at);
                let deadline = deadlines.get(&record.step).map(|deadline| deadline.after(GRACE));
                demand(stored_at >= deadline && deadline.is_some(), || {
                    format!(
                        "{id}: step {} is ended before its time, {stored_at:?} < {deadline:?}",
                        record.step
                    )
                })?;
            }
            if let LaneAction::Task(task) = &append.action {
                deadlines.insert(&task.step, task.deadline);
            }
        }
    }
    Ok(())
}

fn is_timeout(record: &StepRecord) -> bool {
    record
        .error
        .as_ref()
        .is_some_and(|error| error.reason == StepFailure::Timeout)
}

/// Exactly what nobody can read is set aside, once; and its execution has failed or was over.
fn dead_letters_are_deserved(case: &Case<'_>) -> Result<(), String> {
    let evidence = case.evidence;
    let mut set_aside = BTreeSet::new();
    for message in &evidence.dead {
        let letter = protocol::decode::<DeadLetter>(&message.payload)
            .map_err(|error| error.to_string())?
            .body;
        demand(set_aside.insert(letter.subject.clone()), || {
            format!("{} is set aside twice", letter.subject)
        })?;
        demand(evidence.garbled.contains(&letter.subject), || {
            format!("{} is set aside: {}", letter.subject, letter.reason)
        })?;
    }
    for (id, entry) in case.entries().filter(|(_, entry)| entry.logged.is_none()) {
        demand(set_aside.contains(&entry.subject), || {
            format!("{id}: {} cannot be read and is not set aside", entry.subject)
        })?;
    }
    Ok(())
}

/// A cancelled execution was cancelled by somebody, and a result that nobody can read is no success.
fn ends_have_reasons(case: &Case<'_>) -> Result<(), String> {
    for (id, entries) in &case.executions {
        let Ok(state) = case.replay(*id, |_| true) else {
            continue;
        };
        if let Phase::Ended(EndStatus::Succeeded) = state.phase() {
            let is_read = entries.iter().all(|entry| entry.logged.is_some());
            demand(is_read, || {
                format!("{id} has succeeded with a result that cannot be read")
            })?;
        }
        let is_cancelled = matches!(state.phase(), Phase::Ended(EndStatus::Cancelled));
        let was_asked = entries
            .iter()
            .any(|entry| matches!(entry.logged, Some(Logged::Fact(Fact::Cancel(_)))));
        demand(!is_cancelled || was_asked, || {
            format!("{id} is cancelled, and nobody asked for it")
        })?;
    }
    Ok(())
}
