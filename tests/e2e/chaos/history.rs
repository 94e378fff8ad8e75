//! The log, read from its beginning and folded anew: by code of this test's own, so that it does not repeat what the
//! services might do wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use bus::{Log, LogMessage, NatsLog};
use protocol::{
    Append, Disposition, Done, End, ExecutionId, Fact, LaneAction, Start, StepRecord, Subject, decode,
};

/// Messages read at one time.
const PAGE: usize = 1_000;

/// One attempt at a step: its name and number.
pub type AttemptOf = (String, u32);

/// What the log says of one execution.
#[derive(Default)]
pub struct Execution {
    pub start: Option<Start>,
    /// Commands handed out, by attempt.
    pub tasks: BTreeMap<AttemptOf, u64>,
    pub done: BTreeMap<AttemptOf, Done>,
    /// Attempts that are on record as made again.
    pub begun: BTreeSet<AttemptOf>,
    pub records: Vec<StepRecord>,
    pub ends: Vec<End>,
    /// Facts that lane messages name, and how many of these do; a plan and its commands count as one.
    pub causes: BTreeMap<u64, u64>,
}

impl Execution {
    /// The number by which the load knows it.
    pub fn number(&self) -> Option<u64> {
        let data = self.start.as_ref()?.input.read().data;
        data.get("n")?.as_str()?.parse().ok()
    }
}

/// What the log says.
#[derive(Default)]
pub struct History {
    pub messages: u64,
    pub executions: BTreeMap<ExecutionId, Execution>,
    pub dispositions: Vec<Disposition>,
    pub turns: u64,
    /// What could not be understood, or must not be there.
    pub problems: Vec<String>,
}

impl History {
    /// Reads it all.
    pub async fn read(log: &NatsLog) -> Self {
        let mut history = Self::default();
        let (mut next, deadline) = (1, Instant::now() + Duration::from_secs(600));
        loop {
            assert!(
                Instant::now() < deadline,
                "the log cannot be read within ten minutes"
            );
            match log.read_from(next, PAGE).await {
                Ok(page) if page.is_empty() => return history,
                Ok(page) => {
                    for message in page {
                        next = message.seq + 1;
                        history.read_one(&message);
                    }
                }
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
        }
    }

    /// Takes in one message.
    pub fn read_one(&mut self, message: &LogMessage) {
        self.messages += 1;
        if let Err(problem) = self.take(message) {
            self.problems.push(format!("{message:?}: {problem}"));
        }
    }

    fn take(&mut self, message: &LogMessage) -> Result<(), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let subject = Subject::parse(&message.subject).map_err(|error| text(&error))?;
        match subject {
            Subject::Disposition(..) => {
                let disposition = decode::<Disposition>(&message.payload).map_err(|error| text(&error))?;
                self.dispositions.push(disposition.body);
                return Ok(());
            }
            Subject::Turn(..) => {
                self.turns += 1;
                return Ok(());
            }
            _ => {}
        }
        let (_, id) = subject.execution().ok_or("it belongs to no execution")?;
        let execution = self.executions.entry(id).or_default();
        if matches!(
            subject,
            Subject::Command(..) | Subject::Note(..) | Subject::Cancel(..)
        ) {
            let append = decode::<Append>(&message.payload)
                .map_err(|error| text(&error))?
                .body;
            return execution.append(append);
        }
        match decode::<Fact>(&message.payload)
            .map_err(|error| text(&error))?
            .body
        {
            Fact::Start(start) => match execution.start.replace(*start) {
                Some(_) => Err("a second start".to_owned()),
                None => Ok(()),
            },
            Fact::Done(done) => {
                let attempt = (done.step.to_string(), done.attempt.get());
                match execution.done.insert(attempt, done) {
                    Some(_) => Err("a second end of an attempt".to_owned()),
                    None => Ok(()),
                }
            }
            Fact::Begun(begun) => {
                execution
                    .begun
                    .insert((begun.step.to_string(), begun.attempt.get()));
                Ok(())
            }
            Fact::Cancel(_) | Fact::Timer(_) => Ok(()),
            Fact::Dead(dead) => Err(format!("set aside: {}", dead.reason)),
        }
    }
}

impl Execution {
    fn append(&mut self, append: Append) -> Result<(), String> {
        *self.causes.entry(append.cause.seq).or_default() += 1;
        let is_late = !self.ends.is_empty();
        self.records.extend(append.records);
        match append.action {
            LaneAction::Task(task) => {
                *self
                    .tasks
                    .entry((task.step.to_string(), task.attempt.get()))
                    .or_default() += 1;
            }
            // None of the campaign's workflows has steps side by side.
            LaneAction::Plan(_) => return Err("a plan".to_owned()),
            LaneAction::End(end) => self.ends.push(end),
        }
        if is_late {
            Err("after the end of its execution".to_owned())
        } else {
            Ok(())
        }
    }
}
