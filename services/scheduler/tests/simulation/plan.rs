//! What happens in a history, as a list that can be printed and cut down: executions, processes, what befalls the
//! processes, and which of the broker's faults strike.
//!
//! Invariant: a plan decides its history; running it again gives the same log.

use std::{collections::BTreeSet, fmt, time::Duration};

use bus::sim::{Cut, Defect, Faults, Rng, Strike};
use protocol::ExecutionId;
use serde_json::{Value, json};

const ON_FALSE: [&str; 4] = ["skip_remaining", "skip_next", "fail", "continue"];
/// Time-out of the steps that have one.
pub const STEP_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub seed: u64,
    pub executions: Vec<Execution>,
    pub processes: Vec<Process>,
    pub disturbances: Vec<Disturbance>,
    pub faults: Faults,
    /// Only these of the broker's faults strike; `None`: as `faults` say, until the calm.
    pub strikes: Option<BTreeSet<Strike>>,
    /// A broker that breaks a promise, where an oracle is to object.
    pub defect: Option<Defect>,
    /// Results that are acknowledged to the queue and never written: a broken runner, where an oracle is to object.
    pub runner_forgets: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Execution {
    pub number: u64,
    pub at_ms: u64,
    pub steps: Vec<Step>,
    /// Two of them write the start, as two ingests do with one alert.
    pub by_two: bool,
    /// Somebody cancels it so long after it was accepted.
    pub cancelled_after_ms: Option<u64>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub kind: StepKind,
    pub fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StepKind {
    Cli,
    Agent,
    Conditional { is_met: bool, on_false: &'static str },
}

/// What its runner comes to, the same for every runner that is given it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fate {
    Succeeds {
        after_ms: u64,
    },
    Fails {
        after_ms: u64,
    },
    /// Never says anything, and is given up when its execution has ended: only the timer ends the step.
    Hangs,
    /// Its result comes long past the deadline, and must not count.
    Late,
    /// Its result cannot be read.
    Garbles,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    Scheduler,
    CliRunner,
    AgentRunner,
}

/// Something befalls one process.
#[derive(Clone, Debug, PartialEq)]
pub struct Disturbance {
    pub at_ms: u64,
    /// Which of the plan's processes.
    pub process: usize,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// `kill -9`, and a new one after some time.
    Killed { down_ms: u64 },
    /// Killed by the broker's hand, at the so manieth point before or behind an effect of its life.
    KilledAt { point: u64, down_ms: u64 },
    /// An orderly shutdown, and a new one.
    Stopped { down_ms: u64 },
    /// Reaches nothing, or hears nothing.
    CutOff { cut: Cut, for_ms: u64 },
    /// Does nothing, and then goes on with what it had in mind.
    Frozen { for_ms: u64 },
    /// Its clock jumps.
    ClockJumps { by_ms: i64 },
}

/// How long the storm lasts: every disturbance begins before.
pub const STORM_MS: u64 = 60_000;

impl Plan {
    /// Nothing goes wrong, as yet.
    pub fn quiet(executions: Vec<Execution>) -> Self {
        Self {
            seed: 0,
            executions,
            processes: vec![Process::Scheduler, Process::CliRunner, Process::AgentRunner],
            disturbances: Vec::new(),
            faults: Faults::default(),
            strikes: None,
            defect: None,
            runner_forgets: false,
        }
    }

    pub fn from_seed(seed: u64) -> Self {
        let mut rng = Rng::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let executions = (0..1 + rng.below(3))
            .map(|number| Execution::drawn(number, &mut rng))
            .collect();
        let mut processes = vec![
            Process::Scheduler,
            Process::Scheduler,
            Process::CliRunner,
            Process::AgentRunner,
        ];
        if rng.chance(300) {
            processes.push(Process::Scheduler);
        }
        if rng.chance(500) {
            processes.push(Process::CliRunner);
        }
        let disturbances = (0..rng.below(9))
            .map(|_| Disturbance::drawn(processes.len(), &mut rng))
            .collect();
        // Some histories are rougher than others, and some have only processes that die.
        let faults = match rng.below(5) {
            0 => Faults {
                delivery_delay_max: Duration::from_millis(500),
                latency_max: Duration::from_millis(20),
                ..Faults::default()
            },
            1 => Faults {
                stale_reads: 300,
                duplicated: 300,
                contended: 100,
                ..Faults::rough()
            },
            2 => Faults {
                publish_ack_lost: 200,
                settle_lost: 200,
                latency_max: Duration::from_secs(2),
                ..Faults::rough()
            },
            _ => Faults::rough(),
        };
        Self {
            seed,
            executions,
            processes,
            disturbances,
            faults,
            strikes: None,
            defect: None,
            runner_forgets: false,
        }
    }

    pub fn execution_id(&self, number: u64) -> ExecutionId {
        ExecutionId::derive(&["sim", &self.seed.to_string(), &number.to_string()])
    }

    /// The step that a task is of, by the execution's id and the step's place.
    pub fn fate(&self, id: ExecutionId, index: u32) -> Option<Fate> {
        let execution = self
            .executions
            .iter()
            .find(|execution| self.execution_id(execution.number) == id)?;
        Some(execution.steps.get(usize::try_from(index).ok()?)?.fate)
    }

    pub fn storm_ms(&self) -> u64 {
        if self.disturbances.is_empty() && self.faults == Faults::default() {
            0
        } else {
            STORM_MS
        }
    }
}

impl Execution {
    /// Steps of the given kinds and fates, at once.
    pub fn of(steps: Vec<Step>) -> Self {
        Self {
            number: 0,
            at_ms: 0,
            steps,
            by_two: false,
            cancelled_after_ms: None,
        }
    }

    fn drawn(number: u64, rng: &mut Rng) -> Self {
        Self {
            number,
            at_ms: rng.below(STORM_MS / 2),
            steps: (0..1 + rng.below(5)).map(|_| Step::drawn(rng)).collect(),
            by_two: rng.chance(300),
            cancelled_after_ms: rng.chance(250).then(|| rng.below(20_000)),
        }
    }

    pub fn spec(&self) -> Value {
        let steps: Vec<Value> = self
            .steps
            .iter()
            .enumerate()
            .map(|(index, step)| step.spec(index))
            .collect();
        json!({ "steps": steps })
    }
}

impl Step {
    pub const OK: Self = Self {
        kind: StepKind::Cli,
        fate: Fate::Succeeds { after_ms: 0 },
    };

    fn drawn(rng: &mut Rng) -> Self {
        let kind = match rng.below(4) {
            0 => StepKind::Agent,
            1 => StepKind::Conditional {
                is_met: rng.chance(700),
                on_false: ON_FALSE[rng.below(4) as usize],
            },
            _ => StepKind::Cli,
        };
        let fate = match rng.below(100) {
            0..6 => Fate::Hangs,
            6..10 => Fate::Late,
            10..18 => Fate::Fails {
                after_ms: rng.below(5_000),
            },
            18..20 => Fate::Garbles,
            _ => Fate::Succeeds {
                after_ms: rng.below(5_000),
            },
        };
        Self { kind, fate }
    }

    fn spec(&self, index: usize) -> Value {
        let mut step = match self.kind {
            StepKind::Cli => json!({ "type": "cli", "command": "echo {{ source.data.n }}" }),
            StepKind::Agent => json!({ "type": "agent", "goal": "look", "tools": [] }),
            StepKind::Conditional { is_met, on_false } => json!({
                "type": "conditional",
                "condition": if is_met { "source.data.n == 1" } else { "source.data.n == 2" },
                "on_false": on_false,
            }),
        };
        step["name"] = json!(format!("step-{index}"));
        if !matches!(self.kind, StepKind::Conditional { .. }) {
            step["timeout_seconds"] = json!(STEP_TIMEOUT.as_secs());
        }
        step
    }
}

impl Disturbance {
    fn drawn(processes: usize, rng: &mut Rng) -> Self {
        let what = match rng.below(8) {
            0 | 1 => What::Killed {
                down_ms: rng.below(3_000),
            },
            2 => What::KilledAt {
                point: rng.below(60),
                down_ms: rng.below(3_000),
            },
            3 => What::Stopped {
                down_ms: rng.below(3_000),
            },
            4 => What::CutOff {
                cut: Cut::Requests,
                for_ms: 1 + rng.below(40_000),
            },
            5 => What::CutOff {
                cut: Cut::Answers,
                for_ms: 1 + rng.below(40_000),
            },
            6 => What::Frozen {
                for_ms: 1 + rng.below(40_000),
            },
            _ => What::ClockJumps {
                by_ms: rng.below(20_000) as i64 - 10_000,
            },
        };
        Self {
            at_ms: rng.below(STORM_MS),
            process: rng.below(processes as u64) as usize,
            what,
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for execution in &self.executions {
            let cancelled = execution
                .cancelled_after_ms
                .map_or(String::new(), |ms| format!(", cancelled after {ms} ms"));
            let by = if execution.by_two { ", by two writers" } else { "" };
            writeln!(
                f,
                "  at {:>6} ms: execution {} = {}{by}{cancelled}",
                execution.at_ms,
                execution.number,
                self.execution_id(execution.number)
            )?;
            for (index, step) in execution.steps.iter().enumerate() {
                match step.kind {
                    StepKind::Conditional { .. } => writeln!(f, "      step-{index}: {:?}", step.kind)?,
                    StepKind::Cli | StepKind::Agent => {
                        writeln!(f, "      step-{index}: {:?}, {:?}", step.kind, step.fate)?
                    }
                }
            }
        }
        let processes: Vec<String> = self
            .processes
            .iter()
            .enumerate()
            .map(|(index, process)| format!("{index} {process:?}"))
            .collect();
        writeln!(f, "  processes: {}", processes.join(", "))?;
        for disturbance in &self.disturbances {
            writeln!(
                f,
                "  at {:>6} ms: process {} {:?}",
                disturbance.at_ms, disturbance.process, disturbance.what
            )?;
        }
        match &self.strikes {
            None => writeln!(f, "  the broker: {:?}", self.faults),
            Some(_) => writeln!(
                f,
                "  the broker: up to {:?} late, delays up to {:?}, and the faults below",
                self.faults.latency_max, self.faults.delivery_delay_max
            ),
        }
    }
}
