//! `GET /api/v1/executions/{id}/transcript`: what agents were asked, what the models answered, what tools gave.
//!
//! Invariants:
//! - It is read from the log alone, also while the step runs; a database that is away is not missed.
//! - An answer is bounded: what comes after [`TRANSCRIPT_BYTES_MAX`] is left out, and the answer says so.

use std::sync::Arc;

use axum::http::StatusCode;
use bus::{Blobs, Log, LogMessage};
use protocol::{
    Body, Subject, Task, TaskType, decode,
    lane::{AgentWork, Append, LaneAction},
    turns::{ToolTurn, Turn},
    views::{AttemptTranscript, ToolTurnView, TranscriptView, TurnView},
};
use serde_json::json;

use super::{Answer, App, Call, executions, executions::Whole, json, problem::Problem};

/// Most bytes of turns and large results in one answer. An attempt within the default limits of agents has less.
const TRANSCRIPT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The transcript of every agent step, attempt by attempt.
pub async fn read(app: Arc<App>, call: Call) -> Answer {
    let (namespace, id) = match executions::located(&app, call.path("id")).await? {
        executions::Place::Log { namespace, id, .. } => (namespace, id),
        executions::Place::Record(view) => {
            return Err(Problem::not_found(format!(
                "the transcript of {} is gone: the log keeps it for `nats.log_max_age_hours`; its findings are in its outputs",
                view.summary.id
            )));
        }
    };
    let messages = app.log.read_execution(&namespace, id).await?;
    let tasks: Vec<Task> = messages.iter().filter_map(agent_task).collect();
    let wanted = call.query.text("step");
    if let Some(wanted) = wanted.filter(|wanted| tasks.iter().all(|task| task.step.as_str() != *wanted)) {
        return Err(no_such_step(wanted, &tasks));
    }
    let mut view = TranscriptView {
        id,
        attempts: Vec::new(),
        truncated: false,
    };
    let mut left = TRANSCRIPT_BYTES_MAX;
    for task in tasks {
        if wanted.is_some_and(|wanted| task.step.as_str() != wanted) {
            continue;
        }
        let mut attempt = opened(task)?;
        if !view.truncated {
            let turns = app
                .log
                .read_turns(&namespace, id, &attempt.step, attempt.attempt)
                .await?;
            view.truncated = !fill(&mut attempt.turns, &turns, &app.blobs, &mut left).await?;
        }
        view.attempts.push(attempt);
    }
    json(StatusCode::OK, &view)
}

fn agent_task(message: &LogMessage) -> Option<Task> {
    let Ok(Subject::Command(task_type, ..)) = Subject::parse(&message.subject) else {
        return None;
    };
    match decode::<Append>(&message.payload).ok()?.body.action {
        LaneAction::Task(task) if task_type == TaskType::agent() => Some(*task),
        LaneAction::Task(_) | LaneAction::Plan(_) | LaneAction::End(_) => None,
    }
}

fn no_such_step(wanted: &str, tasks: &[Task]) -> Problem {
    let mut names: Vec<&str> = tasks.iter().map(|task| task.step.as_str()).collect();
    names.dedup();
    Problem::not_found(match names.as_slice() {
        [] => format!("there is no transcript of `{wanted}`: no step of type agent has begun"),
        names => format!(
            "there is no transcript of `{wanted}`: the steps of type agent that have begun are {}",
            names.join(", ")
        ),
    })
}

/// What the attempt was given, without its turns.
fn opened(task: Task) -> Result<AttemptTranscript, Problem> {
    let work: AgentWork = serde_json::from_value(task.work).map_err(|error| {
        Problem::internal(format!(
            "the task of {} in the log cannot be read: {error}",
            task.step
        ))
    })?;
    let namespace = match work.fix_namespace.is_empty() {
        true => task.namespace.to_string(),
        false => work.fix_namespace,
    };
    Ok(AttemptTranscript {
        step: task.step,
        attempt: task.attempt,
        goal: work.goal,
        tools: work.tools,
        alert: work.alert,
        namespace,
        dispatched_at: task.dispatched_at,
        turns: Vec::new(),
    })
}

/// Adds the turns in order; false where not all had room.
async fn fill(
    turns: &mut Vec<TurnView>,
    messages: &[LogMessage],
    blobs: &Blobs,
    left: &mut usize,
) -> Result<bool, Problem> {
    for message in messages {
        let Some(rest) = left.checked_sub(message.payload.len()) else {
            return Ok(false);
        };
        *left = rest;
        let turn = decode::<Turn>(&message.payload).map_err(|error| {
            Problem::internal(format!("{} in the log cannot be read: {error}", message.subject))
        })?;
        turns.push(match turn.body {
            Turn::Model(turn) => TurnView::Model(turn),
            Turn::Tool(turn) => TurnView::Tool(tool(turn, blobs, left).await),
        });
    }
    Ok(true)
}

/// With a large result whole, where it can be read and has room.
async fn tool(turn: ToolTurn, blobs: &Blobs, left: &mut usize) -> ToolTurnView {
    let result = match turn.result {
        Body::Inline(value) => value,
        Body::Blob { blob, preview } => {
            let rest = usize::try_from(blob.bytes)
                .ok()
                .and_then(|bytes| left.checked_sub(bytes));
            let reference = json!(blob);
            let whole = match rest {
                Some(_) => executions::whole(blobs, &reference).await,
                None => Whole::Unread,
            };
            match (whole, rest) {
                (Whole::Here(whole), Some(rest)) => {
                    *left = rest;
                    whole
                }
                (Whole::Gone, _) => {
                    json!({ "blob": reference, "preview": preview, "gone": executions::GONE })
                }
                _ => json!({ "blob": reference, "preview": preview }),
            }
        }
    };
    ToolTurnView {
        call_id: turn.call_id,
        tool: turn.tool,
        arguments: turn.arguments,
        is_error: turn.is_error,
        result,
        started_at: turn.started_at,
        at: turn.at,
    }
}
