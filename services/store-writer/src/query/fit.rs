//! Answers of bounded size: lists end early, large bodies become references.
//!
//! Invariant: whatever the record, its answer is under [`BUDGET_BYTES`]; nothing fails for being large.

use std::future::Future;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use protocol::{
    Attempt, BlobRef, ExecutionId, StepName,
    query::{Answer, REPLY_BYTES_MAX},
    views::ExecutionView,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::record::Record;

/// What an answer's content may take; the rest is for what is around it.
pub(super) const BUDGET_BYTES: usize = REPLY_BYTES_MAX - 4096;

/// Outputs below this stay whole: a reference would not be much smaller.
const SMALL_BYTES: usize = 1024;

/// Previews are cut to about this.
const PREVIEW_BYTES: usize = 512;

/// Characters of an error or message where there is no room for more.
const TEXT_CHARS: usize = 64;

/// Bodies put into the object store at one time.
const PUTS_AT_ONCE: usize = 16;

/// Bytes of `value` as JSON.
pub(super) fn bytes_of<T: Serialize>(value: &T) -> usize {
    // Our own types with string keys: serialising them cannot fail.
    serde_json::to_vec(value).map_or(usize::MAX, |bytes| bytes.len())
}

/// As many of `items` as an answer may hold, and whether that is all of them; at least one.
pub(super) fn page<T: Serialize>(mut items: Vec<T>) -> (Vec<T>, bool) {
    let mut bytes = 0;
    let fitting = items.iter().take_while(|item| {
        bytes += bytes_of(item) + 1;
        bytes <= BUDGET_BYTES
    });
    let count = fitting.count().max(1);
    let is_all = count >= items.len();
    items.truncate(count);
    (items, is_all)
}

/// The view of `record`, with bodies replaced by references, the largest first, until it fits. `put` stores a
/// body and names it; `None` where that does not work just now.
pub(super) async fn view<Putting>(
    id: ExecutionId,
    record: Record,
    put: impl Fn(Bytes) -> Putting,
) -> Option<ExecutionView>
where
    Putting: Future<Output = Option<BlobRef>>,
{
    let view = record.view(id)?;
    let excess = size(&view).saturating_sub(BUDGET_BYTES);
    if excess == 0 {
        return Some(view);
    }
    let mut record = record;
    let saved = replace_input(&mut record, &put).await;
    if saved < excess {
        replace_outputs(&mut record, excess - saved, &put).await;
    }
    let mut view = record.view(id)?;
    if size(&view) > BUDGET_BYTES {
        squeeze(&mut view, &put).await;
    }
    Some(view)
}

fn size(view: &ExecutionView) -> usize {
    bytes_of(&Answer::Execution(Some(Box::new(view.clone()))))
}

/// Replaces the input where it is larger than every output. Returns how many bytes that saved.
async fn replace_input<Putting>(record: &mut Record, put: &impl Fn(Bytes) -> Putting) -> usize
where
    Putting: Future<Output = Option<BlobRef>>,
{
    let outputs = record
        .attempts
        .values()
        .filter_map(|parts| parts.output().map(bytes_of));
    let largest = outputs.max().unwrap_or_default().max(SMALL_BYTES);
    let Some(start) = &mut record.start else { return 0 };
    let bytes = bytes_of(&start.input_context);
    if bytes <= largest {
        return 0;
    }
    start.input_context = reference(std::mem::take(&mut start.input_context), PREVIEW_BYTES, put).await;
    bytes - bytes_of(&start.input_context)
}

/// Replaces outputs of steps, the largest first, until `excess` bytes are saved or only small ones are left.
async fn replace_outputs<Putting>(record: &mut Record, excess: usize, put: &impl Fn(Bytes) -> Putting)
where
    Putting: Future<Output = Option<BlobRef>>,
{
    let is_over = record.end.is_some();
    let mut sizes: Vec<(usize, (StepName, Attempt))> = record
        .attempts
        .iter()
        .filter_map(|(key, parts)| Some((bytes_of(parts.output()?), key.clone())))
        .filter(|(bytes, _)| *bytes > SMALL_BYTES)
        .collect();
    sizes.sort_by(|a, b| b.cmp(a));
    let mut saved = 0;
    let chosen: Vec<_> = sizes
        .into_iter()
        .take_while(|(bytes, _)| {
            let goes_on = saved < excess;
            // At the end an output stands twice: in its step, and in the outputs.
            saved += bytes.saturating_sub(SMALL_BYTES) * if is_over { 2 } else { 1 };
            goes_on
        })
        .collect();
    let shortened: Vec<_> = stream::iter(chosen)
        .map(|(_, key)| {
            let output = record
                .attempts
                .get(&key)
                .and_then(|parts| parts.output().cloned());
            async {
                (
                    key,
                    reference(output.unwrap_or(Value::Null), PREVIEW_BYTES, put).await,
                )
            }
        })
        .buffer_unordered(PUTS_AT_ONCE)
        .collect()
        .await;
    for (key, output) in shortened {
        if let Some(parts) = record.attempts.get_mut(&key) {
            parts.replace_output(output);
        }
    }
}

/// For records of very many steps, where the small things add up.
async fn squeeze<Putting>(view: &mut ExecutionView, put: &impl Fn(Bytes) -> Putting)
where
    Putting: Future<Output = Option<BlobRef>>,
{
    if let Some(outputs) = view.outputs.take() {
        view.outputs = Some(reference(outputs, PREVIEW_BYTES, put).await);
    }
    if size(view) > BUDGET_BYTES {
        let input = std::mem::take(&mut view.input_context);
        view.input_context = reference(input, PREVIEW_BYTES, put).await;
    }
    if size(view) > BUDGET_BYTES {
        view.summary.error = view
            .summary
            .error
            .as_deref()
            .map(|error| cut_text(error, PREVIEW_BYTES));
        for step in &mut view.steps {
            step.output = None;
            step.error = step.error.as_deref().map(|error| cut_text(error, TEXT_CHARS));
            step.message = step
                .message
                .as_deref()
                .map(|message| cut_text(message, TEXT_CHARS));
        }
    }
    // 1,000 steps fit by now; more attempts than that would be retries, of which the last ones matter.
    while size(view) > BUDGET_BYTES && !view.steps.is_empty() {
        let surplus = view.steps.len().div_ceil(4);
        view.steps.drain(..surplus);
    }
}

/// `value` as a reference to the object store, with a preview. What is a reference already keeps its blob.
async fn reference<Putting>(value: Value, preview_bytes: usize, put: &impl Fn(Bytes) -> Putting) -> Value
where
    Putting: Future<Output = Option<BlobRef>>,
{
    let is_reference = value.as_object().is_some_and(|object| {
        object.len() == 2
            && object.contains_key("preview")
            && object
                .get("blob")
                .is_some_and(|blob| blob.get("sha256").is_some())
    });
    if is_reference {
        return json!({ "blob": value["blob"], "preview": preview(&value["preview"], preview_bytes) });
    }
    let blob = put(Bytes::from(value.to_string())).await;
    json!({ "blob": blob, "preview": preview(&value, preview_bytes) })
}

/// The same shape with long texts and lists cut, at most about `bytes_max`; where that is not enough, the
/// beginning of its JSON.
pub(super) fn preview(value: &Value, bytes_max: usize) -> Value {
    for text_max in [bytes_max / 2, bytes_max / 8, 16] {
        let short = shortened(value, text_max);
        if bytes_of(&short) <= bytes_max {
            return short;
        }
    }
    Value::String(cut_text(&value.to_string(), bytes_max / 4))
}

/// Entries of a list or object that a preview shows.
const PREVIEW_ENTRIES: usize = 16;

fn shortened(value: &Value, text_max: usize) -> Value {
    match value {
        Value::String(text) => Value::String(cut_text(text, text_max)),
        Value::Array(list) => list
            .iter()
            .take(PREVIEW_ENTRIES)
            .map(|item| shortened(item, text_max))
            .collect(),
        Value::Object(object) => object
            .iter()
            .take(PREVIEW_ENTRIES)
            .map(|(key, item)| (cut_text(key, text_max), shortened(item, text_max)))
            .collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

/// At most `chars_max` characters of `text`, and a sign where more were there.
pub(super) fn cut_text(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
