//! A definition ready to be executed: its spec, and its steps compiled once for all executions of it.
//!
//! Invariant: steps have valid, distinct names and are 1 to 1,000, whatever wrote the spec: this is built from
//! start facts too, which have not necessarily passed through our admission.

use std::collections::HashMap;

use protocol::StepName;

use crate::{
    manifest::{STEPS_MAX, Spec},
    program::{Program, ProgramStep},
};

/// A definition ready to be executed.
#[derive(Debug)]
pub struct Definition {
    spec: Spec,
    program: Program,
    names: Vec<StepName>,
    indexes: HashMap<String, usize>,
}

impl Definition {
    /// Compiles `spec`.
    ///
    /// # Errors
    /// All problems, one to a line, each with its field.
    pub fn compile(spec: Spec) -> Result<Self, String> {
        let count = spec.steps.len();
        if !(1..=STEPS_MAX).contains(&count) {
            return Err(format!(
                "spec.steps: it has {count} steps; a workflow has 1 to {STEPS_MAX}"
            ));
        }
        let (mut names, mut indexes) = (Vec::with_capacity(count), HashMap::with_capacity(count));
        for (index, step) in spec.steps.iter().enumerate() {
            names.push(
                StepName::new(step.name.clone())
                    .map_err(|error| format!("spec.steps[{index}].name: {error}"))?,
            );
            if indexes.insert(step.name.clone(), index).is_some() {
                return Err(format!("spec.steps[{index}].name: `{}` stands twice", step.name));
            }
        }
        let program = Program::compile(&spec).map_err(|problems| {
            problems
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("\n")
        })?;
        Ok(Self {
            spec,
            program,
            names,
            indexes,
        })
    }

    /// The definition as written.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// How many steps.
    #[allow(clippy::len_without_is_empty)] // There is at least one.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// The name of the step at `index`, which must be below [`Definition::len`].
    pub fn name(&self, index: usize) -> &StepName {
        &self.names[index]
    }

    /// The step at `index`, which must be below [`Definition::len`].
    pub fn step(&self, index: usize) -> &ProgramStep {
        &self.program.steps[index]
    }

    /// The place of the step with this name.
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.indexes.get(name).copied()
    }
}
