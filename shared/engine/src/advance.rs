//! The walk from one step to the next that needs a runner: conditions are settled on the way, steps are
//! skipped, and at the end the execution has succeeded.
//!
//! Invariant: bounded by the number of steps, since it only ever goes forward.

use std::{cell::RefCell, sync::Arc};

use protocol::{
    Attempt, Cause, End, EndStatus, StepError, StepFailure, StepName, StepRecord, StepStatus, Timestamp,
};
use serde_json::Value;

use crate::{
    decide::{Decision, Rules, end, failed, hand_out},
    definition::Definition,
    scope::{Outputs, Scope, Wanted},
    state::State,
    steps::{self, Next},
    template::{RenderError, RenderLimits, Template},
};

/// Goes on from step `from`. `result` is what the step that has just ended left, which `state` does not
/// hold yet.
pub(crate) fn advance(
    state: &State,
    definition: &Arc<Definition>,
    from: usize,
    result: Option<(usize, Option<&Value>)>,
    cause: Cause,
    now: Timestamp,
    rules: &Rules,
) -> Decision {
    let mut walk = Walk {
        state,
        definition,
        records: Vec::new(),
        result,
        scope: RefCell::default(),
    };
    let mut index = from;
    while index < definition.len() {
        match steps::next(&walk, index, now, rules) {
            Next::Task(task) => return hand_out(state, cause, walk.records, task, rules),
            Next::Settled {
                output,
                message,
                skip,
            } => {
                walk.record(index, StepStatus::Succeeded, Some(output), Some(message), now);
                let why = format!("skipped: the condition of `{}` was not met", walk.name(index));
                let after = index.saturating_add(skip).min(definition.len() - 1);
                for skipped in index + 1..=after {
                    walk.record(skipped, StepStatus::Skipped, None, Some(why.clone()), now);
                }
                index = after;
            }
            Next::Skipped { output, message } => {
                walk.record(index, StepStatus::Skipped, Some(output), Some(message), now);
            }
            Next::Failed {
                reason,
                message,
                output,
            } => {
                let name = walk.name(index);
                let error = StepError {
                    reason,
                    message: message.clone(),
                };
                walk.fail(index, error, output, now);
                return end(state, cause, walk.records, failed(&name, &message, now));
            }
        }
        index += 1;
    }
    let over = End {
        status: EndStatus::Succeeded,
        error: None,
        failed_step: None,
        at: now,
    };
    end(state, cause, walk.records, over)
}

/// What is known on the way: the state, and what was found out since.
pub(crate) struct Walk<'a> {
    pub(crate) state: &'a State,
    pub(crate) definition: &'a Arc<Definition>,
    records: Vec<StepRecord>,
    result: Option<(usize, Option<&'a Value>)>,
    scope: RefCell<Scope>,
}

impl Walk<'_> {
    /// What `read` makes of the values behind `paths`.
    pub(crate) fn with_context<'p, T>(
        &self,
        paths: impl Iterator<Item = &'p [String]>,
        read: impl FnOnce(&Value) -> T,
    ) -> T {
        let mut scope = self.scope.borrow_mut();
        read(scope.show(self.state, self.definition, self, &Wanted::paths(paths)))
    }

    /// `template` with the values it reads, at most `bytes_max` long.
    pub(crate) fn render(&self, template: &Template, bytes_max: usize) -> Result<String, RenderError> {
        let limits = RenderLimits {
            output_bytes_max: bytes_max,
        };
        self.with_context(paths(template), |context| template.render(context, &limits))
    }

    /// As [`Walk::render`], with nothing escaped.
    pub(crate) fn render_plain(&self, template: &Template, bytes_max: usize) -> Result<String, RenderError> {
        let limits = RenderLimits {
            output_bytes_max: bytes_max,
        };
        self.with_context(paths(template), |context| template.render_plain(context, &limits))
    }

    /// What the step at `index` left, where it has ended.
    pub(crate) fn output(&self, index: usize) -> Option<&Value> {
        self.of(index).and_then(|(_, output)| output)
    }

    /// The step's name.
    pub(crate) fn name(&self, index: usize) -> StepName {
        self.definition.name(index).clone()
    }

    fn record(
        &mut self,
        index: usize,
        status: StepStatus,
        output: Option<Value>,
        message: Option<String>,
        at: Timestamp,
    ) {
        let (step, index) = (self.name(index), u32::try_from(index).unwrap_or(u32::MAX));
        let attempt = Attempt::FIRST;
        self.records.push(StepRecord {
            step,
            index,
            attempt,
            status,
            output,
            error: None,
            message,
            at,
        });
    }

    fn fail(&mut self, index: usize, error: StepError, output: Option<Value>, at: Timestamp) {
        self.record(index, StepStatus::Failed, output, None, at);
        if let Some(record) = self.records.last_mut() {
            record.error = Some(error);
        }
    }
}

impl Outputs for Walk<'_> {
    fn of(&self, index: usize) -> Option<(StepStatus, Option<&Value>)> {
        if let Some((just_ended, output)) = self.result
            && just_ended == index
        {
            return Some((StepStatus::Succeeded, output));
        }
        let recorded = self
            .records
            .iter()
            .rev()
            .find(|record| record.index as usize == index);
        if let Some(record) = recorded {
            return Some((record.status, record.output.as_ref()));
        }
        let step = self.state.steps.get(index)?;
        step.status
            .is_terminal()
            .then_some((step.status, step.output.as_ref()))
    }
}

/// The paths of the context that `template` reads.
fn paths(template: &Template) -> impl Iterator<Item = &[String]> {
    template
        .references()
        .iter()
        .filter(|reference| !reference.is_bound)
        .map(|reference| reference.path.as_slice())
}

/// A template failed, in the words of its error.
pub(crate) fn template_failure(error: &dyn std::fmt::Display) -> Next {
    Next::Failed {
        reason: StepFailure::Template,
        message: error.to_string(),
        output: None,
    }
}
