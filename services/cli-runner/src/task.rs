//! From a task to a job: what it asks for, and what can be refused before anything runs.

use std::collections::BTreeMap;

use protocol::{StepError, StepFailure, Task, lane::CliWork};
use serde_json::{Map, Value};

use crate::{
    dry_run,
    executor::{Job, Program},
};

/// Linux' limit for one argument or variable (`MAX_ARG_STRLEN`, 32 pages), its closing NUL included.
const ARGUMENT_BYTES_MAX: usize = 128 * 1024;

/// The job that a task asks for.
///
/// # Errors
/// Why no system would run it.
pub fn job(task: &Task, work: &CliWork) -> Result<Job, StepError> {
    let program = match &work.fix {
        Some(argv) => Program::Gated(argv.clone()),
        None => Program::Shell(work.command.clone()),
    };
    let env = environment(&work.env);
    check(&program, &env).map_err(|message| StepError {
        reason: StepFailure::Refused,
        message,
    })?;
    let mut job = Job {
        namespace: task.namespace.clone(),
        execution: task.execution,
        workflow: task.workflow.clone(),
        step: task.step.clone(),
        attempt: task.attempt,
        program,
        env,
        image: work.image.clone(),
        resources: work.resources.clone(),
        // 0 is refused at admission; what a command says beyond that is not to be trusted.
        run_as_user: work.run_as_user.filter(|user| *user > 0),
        deadline: task.deadline,
    };
    if let (true, Program::Gated(argv)) = (work.dry_run, &job.program) {
        job.program = Program::Gated(dry_run::before(argv, &job.name()));
    }
    Ok(job)
}

fn environment(env: &Map<String, Value>) -> BTreeMap<String, String> {
    env.iter()
        .map(|(name, value)| match value {
            Value::String(text) => (name.clone(), text.clone()),
            other => (name.clone(), other.to_string()),
        })
        .collect()
}

fn check(program: &Program, env: &BTreeMap<String, String>) -> Result<(), String> {
    let argv = program.argv();
    let is_empty = match program {
        Program::Shell(command) => command.trim().is_empty(),
        Program::Gated(argv) => argv.first().is_none_or(|program| program.trim().is_empty()),
    };
    if is_empty {
        return Err(
            "the command is empty once rendered; an empty command is a failure, never a success".to_owned(),
        );
    }
    for argument in argv {
        if argument.contains('\0') {
            return Err("the command holds a NUL character, which no argument of a program can".to_owned());
        }
        if argument.len() >= ARGUMENT_BYTES_MAX {
            return Err(format!(
                "the command is {} bytes long, and the system takes less than {ARGUMENT_BYTES_MAX} as one argument: fetch large values within the command instead of writing them into it",
                argument.len()
            ));
        }
    }
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(format!(
                "`{}` is not a variable's name: it is empty or holds `=` or NUL",
                name.escape_debug()
            ));
        }
        if value.contains('\0') {
            return Err(format!(
                "the variable {name} holds a NUL character, which no environment can"
            ));
        }
        if name.len() + 1 + value.len() >= ARGUMENT_BYTES_MAX {
            return Err(format!(
                "the variable {name} is {} bytes long, and the system takes less than {ARGUMENT_BYTES_MAX}",
                value.len()
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn refusal(work: Value) -> String {
        let task: Task = serde_json::from_value(json!({
            "namespace": "default", "execution": "01932f4e-7a4b-7c3d-9f10-2a4b6c8d0e1f", "workflow": "w",
            "step": "s", "index": 0, "attempt": 1, "type": "cli", "dispatched_at": "2026-01-01T00:00:00Z",
            "deadline": "2026-01-01T00:10:00Z", "timeout": "10 minutes", "work": work,
        }))
        .unwrap();
        match bus::runner::work(&task).map(|work| job(&task, &work)) {
            Ok(Ok(_)) => "none".to_owned(),
            Ok(Err(error)) => error.message,
            Err(reason) => reason,
        }
    }

    #[test]
    fn what_no_system_would_run_is_refused_with_the_reason() {
        for (work, part) in [
            (json!({"command": "true"}), "none"),
            (json!({"command": "x".repeat(131_071)}), "none"),
            (
                json!({"command": "x".repeat(131_072)}),
                "the command is 131072 bytes long",
            ),
            (json!({"command": " \n"}), "the command is empty once rendered"),
            (
                json!({"command": "kubectl x", "fix": []}),
                "the command is empty once rendered",
            ),
            (json!({"command": "a\u{0}b"}), "NUL"),
            (
                json!({"command": "true", "env": {"A=B": "x"}}),
                "`A=B` is not a variable's name",
            ),
            (
                json!({"command": "true", "env": {"A": "x\u{0}"}}),
                "the variable A holds a NUL",
            ),
            (
                json!({"command": "true", "env": {"A": "x".repeat(131_072)}}),
                "the variable A is 131072 bytes long",
            ),
            (json!({"command": 7}), "the work of the step s cannot be read"),
        ] {
            let refusal = refusal(work);
            assert!(refusal.contains(part), "{refusal}");
        }
    }

    #[test]
    fn numbers_and_booleans_become_text() {
        let env = environment(json!({"A": "a", "N": 7, "B": true}).as_object().unwrap());
        assert_eq!(env.into_values().collect::<Vec<_>>(), ["a", "true", "7"]);
    }
}
