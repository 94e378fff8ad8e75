//! An investigation: the goal is rendered, and handed to an agent-runner with the tools it may use.

use protocol::{
    Attempt, StepFailure, StepStatus, TaskType, Timestamp,
    lane::{AgentWork as Task, EarlierStep, Left},
};
use serde_json::{Map, Value, json};

use super::{Next, task};
use crate::{
    advance::{Walk, template_failure},
    manifest::{LlmConfig, OnTimeout, Spec, StepKind, Tool},
    scope::Outputs as _,
    template::Template,
};

/// The longest goal, in bytes: what fits a message beside everything else, and any model's patience.
const GOAL_BYTES_MAX: usize = 256 * 1024;

/// Ended steps that a task names: the latest ones.
const EARLIER_STEPS_MAX: usize = 300;
/// Bytes of JSON of one output that a task carries along. Only what the scheduler settled itself is carried: how a
/// condition came out, the command that was proposed.
const CARRIED_BYTES_MAX: usize = 4 * 1024;
/// Bytes of JSON of all of them.
const CARRIED_TOTAL_BYTES_MAX: usize = 64 * 1024;

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
        fix_namespace: state.fix_namespace(),
        alert: state.start.input.read().alert.map(Value::Object),
        earlier: match step.tools.contains(&Tool::ReadFile) {
            true => earlier(walk, index),
            false => Vec::new(),
        },
    };
    task(walk, index, TaskType::agent(), json!(work), now)
}

/// The steps before the one at `index` that have ended, and where each one's output is.
fn earlier(walk: &Walk<'_>, index: usize) -> Vec<EarlierStep> {
    let steps = &walk.definition.spec().steps;
    let mut carried_bytes = 0;
    let mut earlier = Vec::new();
    // The latest first, so that the bounds leave out what is furthest away.
    for (at, step) in steps.iter().enumerate().take(index).rev() {
        if earlier.len() == EARLIER_STEPS_MAX {
            break;
        }
        let Some((status, output)) = walk.of(at) else {
            continue;
        };
        let is_run = !matches!(step.kind, StepKind::Conditional(_));
        let left = match output {
            // What ran and succeeded has a fact, and only that.
            _ if is_run && status == StepStatus::Succeeded => {
                let attempt = walk.state.steps.get(at).and_then(|step| step.attempt);
                Left::Fact(attempt.unwrap_or(Attempt::FIRST))
            }
            None => Left::Nothing,
            Some(output) => {
                let bytes = output.to_string().len();
                if bytes <= CARRIED_BYTES_MAX && carried_bytes + bytes <= CARRIED_TOTAL_BYTES_MAX {
                    carried_bytes += bytes;
                    Left::Output(output.clone())
                } else {
                    Left::TooLarge(bytes as u64)
                }
            }
        };
        earlier.push(EarlierStep {
            step: walk.name(at),
            step_type: step.step_type().as_str().to_owned(),
            status,
            left,
        });
    }
    earlier.reverse();
    earlier
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
