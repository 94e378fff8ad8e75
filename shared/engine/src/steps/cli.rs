//! A command: rendered with every value escaped for the place in which it stands, and past the fix gate
//! where it changes something.

use std::collections::BTreeMap;

use protocol::{StepFailure, TaskType, Timestamp, lane::CliWork as Task};
use serde_json::{Map, Value, json};

use super::{Next, task};
use crate::{
    advance::{Walk, template_failure},
    decide::Rules,
    fixgate::{Argv, GateContext, Provenance, Refusal},
    manifest::{FixMode, StepKind},
    program::{CliWork, Gated, Work},
    steps,
    template::Reference,
};

/// A rendered command stays under this: Linux' limit for one argument (`MAX_ARG_STRLEN`, 32 pages).
pub(crate) const COMMAND_BYTES_MAX: usize = 128 * 1024;

/// All of a task's variables together, in bytes.
const ENV_BYTES_MAX: usize = 256 * 1024;

pub(super) fn next(walk: &Walk<'_>, index: usize, work: &CliWork, now: Timestamp, rules: &Rules) -> Next {
    let rendered = match &work.gate {
        // Text to be run as code: only ever a proposed fix, and only past the gate, which takes it apart
        // without a shell.
        Some(Gated::Suggested { .. }) => walk.render_plain(&work.command, COMMAND_BYTES_MAX - 1),
        Some(Gated::Declared) | None => walk.render(&work.command, COMMAND_BYTES_MAX - 1),
    };
    let command = match rendered {
        Ok(command) => command,
        Err(error) => return template_failure(&error),
    };
    let env = match env(walk, work) {
        Ok(env) => env,
        Err(failed) => return failed,
    };
    let gated = match &work.gate {
        Some(_) => match gated(walk, work, &command, rules) {
            Ok(argv) => Some(argv),
            Err(next) => return *next,
        },
        None => None,
    };
    let dry_run = gated.as_ref().is_some_and(Argv::has_dry_run);
    let proposed_by = gated
        .as_ref()
        .map(|_| proposed_by(walk, work))
        .unwrap_or_default();
    let StepKind::Cli(step) = &walk.definition.spec().steps[index].kind else {
        return Next::Failed {
            reason: StepFailure::Command,
            message: "the step is compiled as another type than it is written".to_owned(),
            output: None,
        };
    };
    let task_work = Task {
        command,
        fix: gated.map(Argv::into_words),
        dry_run,
        proposed_by,
        image: step
            .image
            .clone()
            .or_else(|| walk.definition.spec().runtime.image.clone()),
        env,
        resources: step.resources.as_ref().map(|resources| json!(resources)),
        run_as_user: step.run_as_user,
    };
    task(walk, index, TaskType::cli(), json!(task_work), now)
}

/// The workflow's variables, and the step's own over them.
fn env(walk: &Walk<'_>, work: &CliWork) -> Result<Map<String, Value>, Next> {
    let mut env: BTreeMap<String, String> = walk.definition.spec().runtime.environment.clone();
    for (name, template) in &work.env {
        let value = walk.render(template, ENV_BYTES_MAX).map_err(|error| {
            let message = format!("env.{name}: {error}");
            Next::Failed {
                reason: StepFailure::Template,
                message,
                output: None,
            }
        })?;
        if value.contains('\0') {
            let message = format!("env.{name}: the value holds a NUL character, which no environment can");
            return Err(Next::Failed {
                reason: StepFailure::Template,
                message,
                output: None,
            });
        }
        env.insert(name.clone(), value);
    }
    let bytes: usize = env.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
    if bytes > ENV_BYTES_MAX {
        let message = format!("the variables take {bytes} bytes; the limit is {ENV_BYTES_MAX}");
        return Err(Next::Failed {
            reason: StepFailure::Template,
            message,
            output: None,
        });
    }
    Ok(env
        .into_iter()
        .map(|(name, value)| (name, Value::String(value)))
        .collect())
}

/// What the fix gate says of `command`: the argv to run; else what becomes of the step.
fn gated(walk: &Walk<'_>, work: &CliWork, command: &str, rules: &Rules) -> Result<Argv, Box<Next>> {
    let fix_namespace = walk.state.fix_namespace();
    let argv = check(walk, work, command, &fix_namespace, rules).map_err(|refusal| {
        Box::new(Next::Failed {
            reason: StepFailure::Refused,
            message: format!("the fix gate refused the command: {refusal}"),
            output: Some(json!({ "command": command, "proposed_by": proposed_by(walk, work) })),
        })
    })?;
    let namespaces = [Some(fix_namespace.as_str()), argv.namespace()];
    let is_listed = |listed: &String| listed == "*" || namespaces.contains(&Some(listed.as_str()));
    if work.mode == Some(FixMode::Propose) || rules.propose_namespaces.iter().any(is_listed) {
        let proposed = argv.words().join(" ");
        return Err(Box::new(Next::Skipped {
            output: json!({ "command": proposed, "proposed": true, "proposed_by": proposed_by(walk, work) }),
            message: format!("proposed, not run: {proposed}"),
        }));
    }
    Ok(argv)
}

/// The gate's word on the command alone, and with each investigation whose findings stand in it.
fn check(
    walk: &Walk<'_>,
    work: &CliWork,
    command: &str,
    namespace: &str,
    rules: &Rules,
) -> Result<Argv, Refusal> {
    for provenance in provenances(walk, work) {
        rules.gate.check(
            command,
            &GateContext {
                namespace,
                provenance: Some(provenance),
            },
        )?;
    }
    rules.gate.check(
        command,
        &GateContext {
            namespace,
            provenance: None,
        },
    )
}

/// The investigations whose findings stand in the command, by their steps.
fn investigations(walk: &Walk<'_>, work: &CliWork) -> Vec<usize> {
    let names = work.command.references().iter().filter_map(Reference::step);
    let mut found: Vec<usize> = names
        .filter_map(|name| walk.definition.index_of(name))
        .filter(|index| matches!(walk.definition.step(*index).work, Work::Agent { .. }))
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// What is known of each of them.
fn provenances(walk: &Walk<'_>, work: &CliWork) -> Vec<Provenance> {
    let of = |index| {
        let provider = steps::agent::llm_config_of(walk.definition.spec(), index).provider;
        Provenance::of_output(walk.output(index).unwrap_or(&Value::Null), provider)
    };
    investigations(walk, work).into_iter().map(of).collect()
}

/// Who proposed the command, in words.
fn proposed_by(walk: &Walk<'_>, work: &CliWork) -> String {
    let of = |index: usize| {
        let step = walk.definition.spec().steps[index].name.as_str();
        format!("the investigation of step {step}")
    };
    let found: Vec<String> = investigations(walk, work).into_iter().map(of).collect();
    match found.is_empty() {
        true => "the workflow itself".to_owned(),
        false => found.join(" and "),
    }
}
