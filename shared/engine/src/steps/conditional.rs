//! A condition, settled by the scheduler itself.

use protocol::StepFailure;
use serde_json::json;

use super::Next;
use crate::{advance::Walk, condition::Condition, manifest::OnFalse};

pub(super) fn next(walk: &Walk<'_>, index: usize, condition: &Condition, on_false: OnFalse) -> Next {
    let paths = condition.references();
    let paths = paths.iter().map(|path| path.segments());
    let found = walk.with_context(paths, |context| condition.evaluate(context));
    let output = json!({
        "condition_met": found.met,
        "condition": condition.source(),
        "actual": found.actual,
        "message": found.message,
    });
    if found.met {
        return Next::Settled {
            output,
            message: found.message,
            skip: 0,
        };
    }
    match on_false {
        OnFalse::SkipRemaining => {
            let skip = walk.definition.len() - index - 1;
            Next::Settled {
                output,
                message: found.message,
                skip,
            }
        }
        OnFalse::SkipNext => Next::Settled {
            output,
            message: found.message,
            skip: 1,
        },
        OnFalse::Continue => Next::Settled {
            output,
            message: found.message,
            skip: 0,
        },
        OnFalse::Fail => Next::Failed {
            reason: StepFailure::Condition,
            message: format!("the condition was {}", found.message),
            output: Some(output),
        },
    }
}
