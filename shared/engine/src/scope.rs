//! What one template or condition can see of its execution: the context, cut down to what is read.
//!
//! Invariants:
//! - The cost of a step does not grow with the outputs of all steps before it: only those that it reads are copied.
//! - The input is taken apart once for all steps that are settled together, and not at all where none reads it.

use protocol::{Input, StepStatus};
use serde_json::Value;

use crate::{
    context::{self, ExecutionRoot, FinishedStep},
    definition::Definition,
    state::State,
};

/// Where the outputs of ended steps are found.
pub(crate) trait Outputs {
    /// Status and output of the step at `index`; `None` while it has not ended.
    fn of(&self, index: usize) -> Option<(StepStatus, Option<&Value>)>;
}

/// Which roots are read, and which steps.
#[derive(Debug, Default)]
pub(crate) struct Wanted<'a> {
    is_input_read: bool,
    /// Names of steps; `None` where one is looked up by a value and so may be any.
    steps: Option<Vec<&'a str>>,
}

impl<'a> Wanted<'a> {
    /// What reading these paths takes. A path is its root and the keys after it, as far as they are known.
    pub(crate) fn paths(paths: impl Iterator<Item = &'a [String]>) -> Self {
        let mut wanted = Self {
            is_input_read: false,
            steps: Some(Vec::new()),
        };
        for path in paths {
            match path {
                [root, ..] if root == "source" || root == "alert" => wanted.is_input_read = true,
                [root] if root == "steps" => wanted.steps = None,
                [root, name, ..] if root == "steps" => {
                    if let Some(names) = &mut wanted.steps {
                        names.push(name);
                    }
                }
                _ => {}
            }
        }
        wanted
    }

    fn is_step_read(&self, name: &str) -> bool {
        self.steps.as_ref().is_none_or(|names| names.contains(&name))
    }
}

/// The context that was last shown, for the next who asks: between two steps only the steps change.
#[derive(Debug, Default)]
pub(crate) struct Scope {
    context: Value,
    is_input_there: bool,
}

impl Scope {
    /// The values behind `wanted`, and maybe more of the input.
    pub(crate) fn show(
        &mut self,
        state: &State,
        definition: &Definition,
        outputs: &dyn Outputs,
        wanted: &Wanted<'_>,
    ) -> &Value {
        let steps = (0..definition.len()).filter_map(|index| {
            let name = definition.name(index).as_str();
            let (status, output) = outputs.of(index).filter(|_| wanted.is_step_read(name))?;
            Some(FinishedStep { name, status, output })
        });
        if self.context.is_null() || wanted.is_input_read && !self.is_input_there {
            let input = match wanted.is_input_read {
                true => state.start.input.read(),
                false => Input::default(),
            };
            let id = state.start.execution.to_string();
            let execution = ExecutionRoot {
                id: &id,
                name: state.start.workflow.as_str(),
                namespace: state.start.namespace.as_str(),
            };
            self.context = context::build(execution, input, &definition.spec().runtime.environment, steps);
            self.is_input_there = wanted.is_input_read;
        } else {
            context::set_steps(&mut self.context, steps);
        }
        &self.context
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(paths: &[Vec<String>]) -> (bool, bool, bool) {
        let wanted = Wanted::paths(paths.iter().map(Vec::as_slice));
        (
            wanted.is_input_read,
            wanted.is_step_read("a"),
            wanted.is_step_read("b"),
        )
    }

    #[test]
    fn only_what_is_read_is_wanted() {
        let path = |text: &str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(wanted(&[]), (false, false, false));
        assert_eq!(wanted(&[path("steps.a.output.x")]), (false, true, false));
        assert_eq!(
            wanted(&[path("steps.a"), path("alert.name")]),
            (true, true, false)
        );
        assert_eq!(
            wanted(&[path("steps.a"), path("steps")]),
            (false, true, true),
            "looked up by a value"
        );
    }
}
