#![allow(clippy::unwrap_used)]
use expect_test::{Expect, expect};
use proptest::prelude::*;
use protocol::{BlobRef, Body, EndStatus, ExecutionId, Outcome, StepStatus, views::ExecutionStatus};
use serde_json::json;

use super::*;
use crate::samples::{History, Stored, fold};

/// The record as one line each: the execution, its steps, its outputs.
fn check(record: &Record, id: ExecutionId, expected: &Expect) {
    let view = record.view(id).unwrap();
    let summary = &view.summary;
    let mut text = format!(
        "{} {}/{} current={} error={} completed={}\n",
        summary.status.as_str(),
        summary.steps_completed,
        summary.total_steps,
        summary.current_step.as_deref().unwrap_or("-"),
        summary.error.as_deref().unwrap_or("-"),
        summary.completed_at.is_some(),
    );
    for step in &view.steps {
        text += &format!(
            "{} {} #{} {} error={} message={} output={}\n",
            step.name,
            step.step_type,
            step.attempt,
            step.status.as_str(),
            step.error.as_deref().unwrap_or("-"),
            step.message.as_deref().unwrap_or("-"),
            step.output.as_ref().map_or("-".to_owned(), ToString::to_string),
        );
    }
    text += &format!("{}\n", view.outputs.unwrap_or(Value::Null));
    expected.assert_eq(&text);
}

#[test]
fn a_life_from_pending_to_succeeded() {
    let history = History::success("web", "a", 1);
    let upto = |count: usize| fold(&history.messages[..count]);
    check(
        &upto(1),
        history.id,
        &expect![[r#"
        Pending 0/2 current=- error=- completed=false
        check cli #0 Pending error=- message=- output=-
        decide conditional #0 Pending error=- message=- output=-
        null
    "#]],
    );
    check(
        &upto(2),
        history.id,
        &expect![[r#"
        Running 0/2 current=check error=- completed=false
        check cli #1 Running error=- message=- output=-
        decide conditional #0 Pending error=- message=- output=-
        null
    "#]],
    );
    check(
        &history.fold(),
        history.id,
        &expect![[r#"
        Succeeded 2/2 current=- error=- completed=true
        check cli #1 Succeeded error=- message=- output={"stdout":"ok","exit_code":0}
        decide conditional #1 Succeeded error=- message=1 == 1 output={"condition_met":true}
        {"steps":{"check":{"stdout":"ok","exit_code":0},"decide":{"condition_met":true}}}
    "#]],
    );
    assert!(history.fold().is_settled());
    assert!(!upto(3).is_settled());
}

#[test]
fn a_report_after_the_time_out_keeps_the_verdict_and_its_output() {
    let history = History::timed_out("web", "a", 1);
    check(
        &history.fold(),
        history.id,
        &expect![[r#"
        Failed 2/3 current=- error=step fix ran longer than its 10 minutes completed=true
        check cli #1 Succeeded error=- message=- output={"stdout":"bad"}
        fix cli #1 Failed error=step fix ran longer than its 10 minutes message=- output={"stdout":"half"}
        verify cli #0 Pending error=- message=- output=-
        {"error":"step fix ran longer than its 10 minutes","failed_step":"fix","outputs":{"check":{"stdout":"bad"}},"failed_step_output":{"stdout":"half"}}
    "#]],
    );
}

#[test]
fn a_cancelled_execution_keeps_what_was_done_and_its_end() {
    let history = History::cancelled("web", "a", 1);
    let before_the_report = fold(&history.messages[..history.messages.len() - 1]);
    check(
        &before_the_report,
        history.id,
        &expect![[r#"
        Cancelled 2/2 current=- error=cancelled: enough completed=true
        check cli #1 Succeeded error=- message=- output={"stdout":"bad"}
        fix cli #1 Failed error=the execution was cancelled while this step ran message=- output=-
        {"error":"cancelled: enough","failed_step":"fix","outputs":{"check":{"stdout":"bad"}},"failed_step_output":null}
    "#]],
    );
    check(
        &history.fold(),
        history.id,
        &expect![[r#"
        Cancelled 2/2 current=- error=cancelled: enough completed=true
        check cli #1 Succeeded error=- message=- output={"stdout":"bad"}
        fix cli #1 Failed error=stopped message=- output={"stdout":"part"}
        {"error":"cancelled: enough","failed_step":"fix","outputs":{"check":{"stdout":"bad"}},"failed_step_output":{"stdout":"part"}}
    "#]],
    );
    let (early, late) = (
        before_the_report.summary(history.id),
        history.fold().summary(history.id),
    );
    assert_eq!(early, late);
}

#[test]
fn a_large_output_shows_as_a_reference() {
    let blob = BlobRef {
        sha256: "0".repeat(64),
        bytes: 70_000,
    };
    let body = Body::Blob {
        blob,
        preview: json!({ "stdout": "…" }),
    };
    let history = History::new("web", "a", 1)
        .start(&[("check", "cli")])
        .task("check")
        .done("check", Outcome::Succeeded, Some(body))
        .end(Vec::new(), EndStatus::Succeeded, None, None);
    let outputs = history.fold().outputs().unwrap();
    let shown =
        json!({ "blob": { "sha256": "0".repeat(64), "bytes": 70_000 }, "preview": { "stdout": "…" } });
    assert_eq!(outputs, json!({ "steps": { "check": shown } }));
}

#[test]
fn without_the_start_there_is_no_view() {
    let history = History::success("web", "a", 1);
    let record = fold(&history.messages[1..]);
    assert_eq!(record.view(history.id), None);
    assert_eq!(record.status(), ExecutionStatus::Succeeded);
}

#[test]
fn nul_never_reaches_a_column_of_text() {
    let history = History::new("web", "a", 1)
        .start(&[("check", "cli")])
        .task("check");
    let record = history.record("check", StepStatus::Failed, None, Some("a\0b"));
    let history = history.end(vec![record], EndStatus::Failed, Some("a\0b"), Some("check"));
    let view = history.fold().view(history.id).unwrap();
    assert_eq!(view.summary.error.as_deref(), Some("a\u{FFFD}b"));
    assert_eq!(view.steps[0].error.as_deref(), Some("a\u{FFFD}b"));
}

fn any_history() -> impl Strategy<Value = History> {
    prop_oneof![
        Just(History::success("web", "a", 5)),
        Just(History::timed_out("web", "a", 5)),
        Just(History::cancelled("web", "a", 5)),
    ]
}

/// A history, and its messages in any order with any of them repeated.
fn disordered() -> impl Strategy<Value = (History, Vec<Stored>)> {
    any_history().prop_flat_map(|history| {
        let messages = history.messages.clone();
        let repeats = proptest::collection::vec(0..messages.len(), 0..8);
        let everything = repeats.prop_map(move |repeats| {
            let mut all = messages.clone();
            all.extend(repeats.into_iter().map(|index| messages[index].clone()));
            all
        });
        (Just(history), everything.prop_shuffle())
    })
}

proptest! {
    #[test]
    fn any_order_and_any_repetition_give_the_same_record((history, messages) in disordered()) {
        prop_assert_eq!(fold(&messages), history.fold());
    }

    /// What a fold says it touched is all that differs: the stores write nothing else.
    #[test]
    fn rows_that_are_not_touched_do_not_change((_, messages) in disordered()) {
        let mut record = Record::default();
        for message in &messages {
            let before = record.clone();
            let mut touched = Touched::default();
            if let crate::reading::Reading::Change(change) = message.read() {
                record.apply(change, &mut touched);
            }
            for (step, attempt) in record.attempts.keys() {
                if !touched.attempts.contains(&(step.clone(), *attempt)) {
                    prop_assert_eq!(before.attempt_view(step, *attempt), record.attempt_view(step, *attempt));
                }
            }
            if !touched.execution {
                prop_assert_eq!(&before, &record);
            }
            if !touched.start {
                prop_assert_eq!(&before.start, &record.start);
            }
        }
    }
}
