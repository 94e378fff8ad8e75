//! An investigation: the goal is rendered, and handed to an agent-runner with the tools it may use.

use protocol::{StepFailure, TaskType, Timestamp, lane::AgentWork as Task};
use serde_json::{Map, Value, json};

use super::{Next, task};
use crate::{
    advance::{Walk, template_failure},
    manifest::{LlmConfig, OnTimeout, Spec, StepKind},
    template::Template,
};

/// The longest goal, in bytes: what fits a message beside everything else, and any model's patience.
const GOAL_BYTES_MAX: usize = 256 * 1024;

pub(super) fn next(walk: &Walk<'_>, index: usize, goal: &Template, now: Timestamp) -> Next {
    let goal = match walk.render(goal, GOAL_BYTES_MAX) {
        Ok(goal) => goal,
        Err(error) => return template_failure(&error),
    };
    let state = walk.state;
    let StepKind::Agent(step) = &walk.definition.spec().steps[index].kind else {
        return Next::Failed {
            reason: StepFailure::Agent,
            message: "the step is compiled as another type than it is written".to_owned(),
            output: None,
        };
    };
    let runtime = &walk.definition.spec().runtime;
    let env: Map<String, Value> = runtime
        .environment
        .iter()
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    let llm_config = match json!(llm_config_of(walk.definition.spec(), index)) {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    let work = Task {
        goal,
        tools: step.tools.iter().map(ToString::to_string).collect(),
        llm_config,
        env,
        fail_on_timeout: step.on_timeout == OnTimeout::Fail,
        fix_namespace: state.fix_namespace().to_owned(),
        alert: state.start.input.alert.clone().map(Value::Object),
    };
    task(walk, index, TaskType::agent(), json!(work), now)
}

/// The model of the agent step at `index`: the step's own configuration over the workflow's.
pub(super) fn llm_config_of(spec: &Spec, index: usize) -> LlmConfig {
    let step = match &spec.steps[index].kind {
        StepKind::Agent(step) => step.llm_config.as_ref(),
        StepKind::Cli(_) | StepKind::Conditional(_) => None,
    };
    match (step, spec.runtime.llm_config.as_ref()) {
        (Some(step), Some(runtime)) => step.over(runtime),
        (Some(only), None) | (None, Some(only)) => only.clone(),
        (None, None) => LlmConfig::default(),
    }
}
