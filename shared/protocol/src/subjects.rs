//! Every subject: the only place where one is built or parsed.
//!
//! Invariant: `Subject::parse(&subject.to_string()) == Ok(subject)`.

use std::fmt;

use crate::ids::{
    AlertId, Attempt, ExecutionId, IdError, Namespace, SourceName, StepName, TaskType, TimerId,
};

/// What the stream `FIST_LOG` takes.
pub const LOG_SUBJECTS: [&str; 4] = ["fist.fact.>", "fist.cmd.>", "fist.turn.>", "fist.alert.>"];
/// All facts: what the scheduler reads.
pub const ALL_FACTS: &str = "fist.fact.>";
/// All messages of all command lanes.
pub const ALL_COMMANDS: &str = "fist.cmd.>";
/// All ends that running tasks must hear of.
pub const ALL_CANCELS: &str = "fist.cmd.cancel.>";
/// What the stream `FIST_ALERTS` takes.
pub const ALL_INTAKE: &str = "fist.alerts.>";
/// What the stream `FIST_TIMERS` takes.
pub const TIMER_SUBJECTS: [&str; 2] = ["fist.timer.set.>", "fist.timer.fire.>"];
/// Timers that fired.
pub const ALL_FIRED: &str = "fist.timer.fire.>";
/// What the stream `FIST_DLQ` takes of our own.
pub const ALL_DEAD: &str = "fist.dead.>";
/// What the stream `FIST_LIVE` takes.
pub const ALL_LIVE: &str = "fist.live.>";
/// Questions to store-writer; all on one subject, answered by one member of a queue group.
pub const QUERY: &str = "fist.query.read";

/// A concrete subject.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// `fist.fact.<ns>.<exec>.start`
    Start(Namespace, ExecutionId),
    /// `fist.fact.<ns>.<exec>.<step>.<attempt>.begun`
    Begun(Namespace, ExecutionId, StepName, Attempt),
    /// `fist.fact.<ns>.<exec>.<step>.<attempt>.done`
    Done(Namespace, ExecutionId, StepName, Attempt),
    /// `fist.fact.<ns>.<exec>.cancel.<n>`
    CancelRequest(Namespace, ExecutionId, u32),
    /// `fist.fact.<ns>.<exec>.dead.<seq>`
    Dead(Namespace, ExecutionId, u64),
    /// `fist.fact.<ns>.<exec>.timer.<id>`
    Timer(Namespace, ExecutionId, TimerId),
    /// `fist.cmd.<type>.<ns>.<exec>`
    Command(TaskType, Namespace, ExecutionId),
    /// `fist.cmd.note.<ns>.<exec>`
    Note(Namespace, ExecutionId),
    /// `fist.cmd.cancel.<ns>.<exec>`
    Cancel(Namespace, ExecutionId),
    /// `fist.turn.<ns>.<exec>.<step>.<attempt>.<k>`
    Turn(Namespace, ExecutionId, StepName, Attempt, u32),
    /// `fist.alert.<source>.<id>.<delivery>`
    Disposition(SourceName, AlertId, String),
    /// `fist.alerts.<source>`
    Intake(SourceName),
    /// `fist.timer.set.<ns>.<exec>.<id>`
    TimerSet(Namespace, ExecutionId, TimerId),
    /// `fist.timer.fire.<ns>.<exec>.<id>`
    TimerFire(Namespace, ExecutionId, TimerId),
    /// `fist.live.<ns>.<exec>.<step>.<attempt>`
    Live(Namespace, ExecutionId, StepName, Attempt),
    /// `fist.dead.<consumer>`: a message that the consumer could not process.
    DeadLetter(TaskType),
}

impl Subject {
    /// Reads a subject.
    ///
    /// # Errors
    /// [`SubjectError`] where the text is none of ours.
    pub fn parse(text: &str) -> Result<Self, SubjectError> {
        parse(text).map_err(|reason| SubjectError {
            subject: text.chars().take(300).collect(),
            reason,
        })
    }

    /// The execution it belongs to, where it belongs to one.
    pub fn execution(&self) -> Option<(&Namespace, ExecutionId)> {
        match self {
            Self::Start(ns, exec)
            | Self::Begun(ns, exec, ..)
            | Self::Done(ns, exec, ..)
            | Self::CancelRequest(ns, exec, _)
            | Self::Dead(ns, exec, _)
            | Self::Timer(ns, exec, _)
            | Self::Command(_, ns, exec)
            | Self::Note(ns, exec)
            | Self::Cancel(ns, exec)
            | Self::Turn(ns, exec, ..)
            | Self::TimerSet(ns, exec, _)
            | Self::TimerFire(ns, exec, _)
            | Self::Live(ns, exec, ..) => Some((ns, *exec)),
            Self::Disposition(..) | Self::Intake(_) | Self::DeadLetter(_) => None,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(ns, exec) => write!(f, "fist.fact.{ns}.{exec}.start"),
            Self::Begun(ns, exec, step, attempt) => write!(f, "fist.fact.{ns}.{exec}.{step}.{attempt}.begun"),
            Self::Done(ns, exec, step, attempt) => write!(f, "fist.fact.{ns}.{exec}.{step}.{attempt}.done"),
            Self::CancelRequest(ns, exec, n) => write!(f, "fist.fact.{ns}.{exec}.cancel.{n}"),
            Self::Dead(ns, exec, seq) => write!(f, "fist.fact.{ns}.{exec}.dead.{seq}"),
            Self::Timer(ns, exec, id) => write!(f, "fist.fact.{ns}.{exec}.timer.{id}"),
            Self::Command(task_type, ns, exec) => write!(f, "fist.cmd.{task_type}.{ns}.{exec}"),
            Self::Note(ns, exec) => write!(f, "fist.cmd.note.{ns}.{exec}"),
            Self::Cancel(ns, exec) => write!(f, "fist.cmd.cancel.{ns}.{exec}"),
            Self::Turn(ns, exec, step, attempt, k) => write!(f, "fist.turn.{ns}.{exec}.{step}.{attempt}.{k}"),
            Self::Disposition(source, id, delivery) => write!(f, "fist.alert.{source}.{id}.{delivery}"),
            Self::Intake(source) => write!(f, "fist.alerts.{source}"),
            Self::TimerSet(ns, exec, id) => write!(f, "fist.timer.set.{ns}.{exec}.{id}"),
            Self::TimerFire(ns, exec, id) => write!(f, "fist.timer.fire.{ns}.{exec}.{id}"),
            Self::Live(ns, exec, step, attempt) => write!(f, "fist.live.{ns}.{exec}.{step}.{attempt}"),
            Self::DeadLetter(consumer) => write!(f, "fist.dead.{consumer}"),
        }
    }
}

/// Why a text is not one of our subjects.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{subject}` is not a subject of ours: {reason}")]
pub struct SubjectError {
    subject: String,
    reason: String,
}

fn parse(text: &str) -> Result<Subject, String> {
    let tokens: Vec<&str> = text.split('.').take(9).collect();
    let id = |error: IdError| error.to_string();
    match tokens.as_slice() {
        ["fist", "fact", ns, exec, rest @ ..] => {
            let ns = Namespace::new(*ns).map_err(id)?;
            let exec = exec.parse::<ExecutionId>().map_err(id)?;
            match rest {
                ["start"] => Ok(Subject::Start(ns, exec)),
                ["cancel", n] => Ok(Subject::CancelRequest(ns, exec, number(n)?)),
                ["dead", seq] => Ok(Subject::Dead(ns, exec, number(seq)?)),
                ["timer", timer] => Ok(Subject::Timer(ns, exec, TimerId::new(*timer).map_err(id)?)),
                [step, attempt, "begun"] => Ok(Subject::Begun(
                    ns,
                    exec,
                    StepName::new(*step).map_err(id)?,
                    attempt.parse().map_err(id)?,
                )),
                [step, attempt, "done"] => Ok(Subject::Done(
                    ns,
                    exec,
                    StepName::new(*step).map_err(id)?,
                    attempt.parse().map_err(id)?,
                )),
                _ => Err("no fact has this form".to_owned()),
            }
        }
        ["fist", "cmd", lane, ns, exec] => {
            let ns = Namespace::new(*ns).map_err(id)?;
            let exec = exec.parse::<ExecutionId>().map_err(id)?;
            match *lane {
                "note" => Ok(Subject::Note(ns, exec)),
                "cancel" => Ok(Subject::Cancel(ns, exec)),
                task_type => Ok(Subject::Command(TaskType::new(task_type).map_err(id)?, ns, exec)),
            }
        }
        ["fist", "turn", ns, exec, step, attempt, k] => Ok(Subject::Turn(
            Namespace::new(*ns).map_err(id)?,
            exec.parse().map_err(id)?,
            StepName::new(*step).map_err(id)?,
            attempt.parse().map_err(id)?,
            number(k)?,
        )),
        ["fist", "live", ns, exec, step, attempt] => Ok(Subject::Live(
            Namespace::new(*ns).map_err(id)?,
            exec.parse().map_err(id)?,
            StepName::new(*step).map_err(id)?,
            attempt.parse().map_err(id)?,
        )),
        ["fist", "timer", lane @ ("set" | "fire"), ns, exec, timer] => {
            let ns = Namespace::new(*ns).map_err(id)?;
            let exec = exec.parse::<ExecutionId>().map_err(id)?;
            let timer = TimerId::new(*timer).map_err(id)?;
            Ok(match *lane {
                "set" => Subject::TimerSet(ns, exec, timer),
                _ => Subject::TimerFire(ns, exec, timer),
            })
        }
        ["fist", "alert", source, alert, delivery] => {
            let is_delivery =
                !delivery.is_empty() && delivery.bytes().all(|b| b.is_ascii_digit() || b == b'-');
            if !is_delivery {
                return Err("a delivery is a number, or two with `-` between".to_owned());
            }
            Ok(Subject::Disposition(
                SourceName::new(*source).map_err(id)?,
                AlertId::new(*alert).map_err(id)?,
                (*delivery).to_owned(),
            ))
        }
        ["fist", "alerts", source] => Ok(Subject::Intake(SourceName::new(*source).map_err(id)?)),
        ["fist", "dead", consumer] => Ok(Subject::DeadLetter(TaskType::new(*consumer).map_err(id)?)),
        _ => Err("it does not begin like any of them, or has too few or too many parts".to_owned()),
    }
}

fn number<N: std::str::FromStr + ToString>(text: &str) -> Result<N, String> {
    // One number has one spelling, since a subject is an identity.
    text.parse::<N>()
        .ok()
        .filter(|number| number.to_string() == text)
        .ok_or_else(|| format!("`{text}` is not a number in its plain form"))
}

/// The lane of an execution: the one string that guards every append to it (byte-identical for all writers).
pub fn lane_filter(ns: &Namespace, exec: ExecutionId) -> String {
    format!("fist.cmd.*.{ns}.{exec}")
}

/// All facts of one execution.
pub fn facts_filter(ns: &Namespace, exec: ExecutionId) -> String {
    format!("fist.fact.{ns}.{exec}.>")
}

/// All turns of one execution.
pub fn turns_filter(ns: &Namespace, exec: ExecutionId) -> String {
    format!("fist.turn.{ns}.{exec}.>")
}

/// All turns of one attempt.
pub fn attempt_turns_filter(ns: &Namespace, exec: ExecutionId, step: &StepName, attempt: Attempt) -> String {
    format!("fist.turn.{ns}.{exec}.{step}.{attempt}.*")
}

/// Live progress of one execution.
pub fn live_filter(ns: &Namespace, exec: ExecutionId) -> String {
    format!("fist.live.{ns}.{exec}.>")
}

/// The start fact of an execution whose namespace is not known.
pub fn start_anywhere(exec: ExecutionId) -> String {
    format!("fist.fact.*.{exec}.start")
}

/// The queue of one task type.
pub fn queue_filter(task_type: &TaskType) -> String {
    format!("fist.cmd.{task_type}.>")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::time::Timestamp;

    fn every_kind(ns: &str, step: &str, number: u32) -> Vec<Subject> {
        let ns = Namespace::new(ns).unwrap();
        let step = StepName::new(step).unwrap();
        let exec = ExecutionId::derive(&["x"]);
        let attempt = Attempt::try_from(number.max(1)).unwrap();
        let timer = TimerId::step_deadline(&step, attempt, Timestamp::from_millis(number.into()));
        let source = SourceName::new(step.as_str()).unwrap();
        vec![
            Subject::Start(ns.clone(), exec),
            Subject::Begun(ns.clone(), exec, step.clone(), attempt),
            Subject::Done(ns.clone(), exec, step.clone(), attempt),
            Subject::CancelRequest(ns.clone(), exec, number),
            Subject::Dead(ns.clone(), exec, number.into()),
            Subject::Timer(ns.clone(), exec, timer.clone()),
            Subject::Command(TaskType::cli(), ns.clone(), exec),
            Subject::Note(ns.clone(), exec),
            Subject::Cancel(ns.clone(), exec),
            Subject::Turn(ns.clone(), exec, step.clone(), attempt, number),
            Subject::Disposition(source.clone(), AlertId::new("0a").unwrap(), format!("{number}-1")),
            Subject::Intake(source),
            Subject::TimerSet(ns.clone(), exec, timer.clone()),
            Subject::TimerFire(ns.clone(), exec, timer),
            Subject::Live(ns, exec, step, attempt),
            Subject::DeadLetter(TaskType::agent()),
        ]
    }

    proptest! {
        #[test]
        fn what_is_built_is_parsed(ns in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", step in "[A-Za-z0-9_-]{1,40}", n in any::<u32>()) {
            for subject in every_kind(&ns, &step, n) {
                prop_assert_eq!(Subject::parse(&subject.to_string()).unwrap(), subject);
            }
        }

        #[test]
        fn arbitrary_text_never_panics(text in ".{0,200}") {
            let _ = Subject::parse(&text);
        }
    }

    #[test]
    fn steps_named_like_lanes_are_told_apart() {
        // A step may be called `timer`, `cancel` or `dead`: the count of tokens decides.
        for name in ["timer", "cancel", "dead", "start", "done"] {
            let subject = every_kind("default", name, 1).swap_remove(2);
            assert_eq!(Subject::parse(&subject.to_string()).unwrap(), subject);
        }
    }

    #[test]
    fn malformed_subjects_say_why() {
        let exec = ExecutionId::derive(&["x"]);
        for (text, part) in [
            (
                "fist.fact.default.nonsense.start".to_owned(),
                "not a valid execution id",
            ),
            (format!("fist.fact.Default.{exec}.start"), "not a valid namespace"),
            (
                format!("fist.fact.default.{exec}.check.0.done"),
                "attempts count from 1",
            ),
            (format!("fist.fact.default.{exec}.cancel.01"), "plain form"),
            (format!("fist.cmd.cli.default.{exec}.more"), "too few or too many"),
            ("other.thing".to_owned(), "does not begin"),
        ] {
            let error = Subject::parse(&text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
