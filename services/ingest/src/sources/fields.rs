//! What all kinds of sources read alike: times, labels, states, and the fingerprint of what has none.

use protocol::{AlertStatus, Timestamp};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// Longest fingerprint that is kept as it came; a longer one is replaced by its hash.
const FINGERPRINT_BYTES_MAX: usize = 256;

/// What a value is, in an error text.
pub fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A scalar as text; `None` for null, lists and objects.
pub fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(boolean) => Some(boolean.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// An object of names and values: scalars as text, nulls left out, the rest as it is.
///
/// # Errors
/// When it is anything else; `place` names it.
pub fn named_values(value: Option<&Value>, place: &str) -> Result<Map<String, Value>, String> {
    let object = match value {
        None | Some(Value::Null) => return Ok(Map::new()),
        Some(Value::Object(object)) => object,
        Some(other) => {
            return Err(format!(
                "{place} is {}, and must be an object of names and values",
                kind_of(other)
            ));
        }
    };
    let entries = object.iter().filter(|(_, value)| !value.is_null());
    let entry = |(name, value): (&String, &Value)| {
        let value = text_of(value).map_or_else(|| value.clone(), Value::String);
        (name.clone(), value)
    };
    Ok(entries.map(entry).collect())
}

/// An instant: RFC 3339, or seconds since 1970 as number or text. Before 1970 means "not set", as the zero
/// time of Go programs does.
///
/// # Errors
/// When it is neither; `place` names it.
pub fn instant(value: Option<&Value>, place: &str) -> Result<Option<Timestamp>, String> {
    let text = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => {
            text_of(value).ok_or_else(|| format!("{place} is {}, and must be a time", kind_of(value)))?
        }
    };
    if text.is_empty() {
        return Ok(None);
    }
    let at = match text.parse::<f64>() {
        Ok(number) if number.is_finite() => from_unix(number),
        _ => text.parse().map_err(|_| {
            let shown: String = text.chars().take(80).collect();
            format!(
                "{place}: `{shown}` is not a time; use RFC 3339 such as 2026-01-31T03:00:00Z, or Unix seconds"
            )
        })?,
    };
    Ok((at.as_millis() > 0).then_some(at))
}

/// Seconds, or milliseconds where seconds would lie beyond the year 5138.
fn from_unix(number: f64) -> Timestamp {
    let ms = if number.abs() < 1e11 {
        number * 1000.0
    } else {
        number
    };
    // Saturates, and Timestamp clamps; there is no instant that this could get wrong silently.
    #[expect(clippy::cast_possible_truncation, reason = "saturates")]
    Timestamp::from_millis(ms as i64)
}

/// `firing` and `resolved`, strictly.
///
/// # Errors
/// When it is anything else; `place` names it.
pub fn alertmanager_status(value: Option<&Value>, place: &str) -> Result<AlertStatus, String> {
    match value.and_then(Value::as_str) {
        Some("firing") => Ok(AlertStatus::Firing),
        Some("resolved") => Ok(AlertStatus::Resolved),
        None if value.is_none_or(Value::is_null) => Ok(AlertStatus::Firing),
        _ => Err(format!(
            "{place} is {}, and must be \"firing\" or \"resolved\"",
            value.unwrap_or(&Value::Null)
        )),
    }
}

/// Any tool's word for the state of an alert: what means "over" is resolved, everything else firing.
pub fn loose_status(word: &str) -> AlertStatus {
    match word.to_ascii_lowercase().as_str() {
        "resolved" | "resolve" | "ok" | "closed" | "recovered" | "normal" | "inactive" => {
            AlertStatus::Resolved
        }
        _ => AlertStatus::Firing,
    }
}

/// The source's own fingerprint, else a hash of the labels, in the 16 digits that Alertmanager's have.
pub fn fingerprint(given: Option<String>, labels: &Map<String, Value>) -> String {
    match given {
        Some(text) if !text.is_empty() && text.len() <= FINGERPRINT_BYTES_MAX => text,
        Some(text) if !text.is_empty() => hex(&Sha256::digest(text.as_bytes()), 16),
        _ => {
            let mut sorted: Vec<_> = labels.iter().collect();
            sorted.sort_by_key(|(name, _)| name.as_str());
            let mut hash = Sha256::new();
            for (name, value) in sorted {
                for part in [name.clone(), value.to_string()] {
                    hash.update((part.len() as u64).to_be_bytes());
                    hash.update(part.as_bytes());
                }
            }
            hex(&hash.finalize(), 16)
        }
    }
}

/// The first `digits` hexadecimal digits of `bytes`.
pub fn hex(bytes: &[u8], digits: usize) -> String {
    let text = bytes.iter().map(|byte| format!("{byte:02x}"));
    text.flat_map(|pair| pair.chars().collect::<Vec<_>>())
        .take(digits)
        .collect()
}
