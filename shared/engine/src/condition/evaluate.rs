//! Evaluates a condition against a context, in three values.
//!
//! Invariants:
//! - A missing path makes its comparison unknown, for `!=` too.
//! - The result says what was found, cut to a bound.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};

use super::parse::number;
use super::{Comparison, Condition, Expr, Path, Test};

/// What is reported of a value, at most.
const SHOWN_CHARS_MAX: usize = 2_000;
/// What a message quotes of a value, at most.
const QUOTED_CHARS_MAX: usize = 120;
/// So many of the keys that exist are listed.
const KEYS_LISTED_MAX: usize = 20;

/// Three-valued truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Truth {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// What it compares is not there, or has no order.
    Unknown,
}

impl Truth {
    fn of(holds: bool) -> Truth {
        if holds { Truth::True } else { Truth::False }
    }

    pub(super) fn not(self) -> Truth {
        match self {
            Truth::True => Truth::False,
            Truth::False => Truth::True,
            Truth::Unknown => Truth::Unknown,
        }
    }

    pub(super) fn and(self, other: Truth) -> Truth {
        match (self, other) {
            (Truth::False, _) | (_, Truth::False) => Truth::False,
            (Truth::True, Truth::True) => Truth::True,
            _ => Truth::Unknown,
        }
    }

    pub(super) fn or(self, other: Truth) -> Truth {
        self.not().and(other.not()).not()
    }
}

/// The outcome of a condition.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Whether it is met: only when it is true.
    pub met: bool,
    /// Its truth.
    pub truth: Truth,
    /// The value that was compared (null where it is missing); of several, an object from path to
    /// value. Cut where it is long.
    pub actual: Value,
    /// Why it is met, or not.
    pub message: String,
}

pub(super) fn evaluate(condition: &Condition, context: &Value) -> Evaluation {
    let mut notes = Vec::new();
    let truth = walk(&condition.root, context, &mut notes);
    let comparisons = condition.comparisons();
    let actual = match comparisons.as_slice() {
        [only] => shown(lookup(&only.path, context).unwrap_or(&Value::Null)),
        several => Value::Object(
            several
                .iter()
                .map(|c| {
                    let value = lookup(&c.path, context).unwrap_or(&Value::Null);
                    (c.path.to_string(), shown(value))
                })
                .collect::<Map<_, _>>(),
        ),
    };
    let why = |wanted: Truth| {
        let mut said: Vec<String> = Vec::new();
        for (truth, note) in &notes {
            if *truth == wanted && !said.contains(note) {
                said.push(note.clone());
            }
        }
        said.join("; ")
    };
    let all = || {
        let mut said: Vec<String> = notes.iter().map(|(_, note)| note.clone()).collect();
        said.dedup();
        said.join("; ")
    };
    let message = match truth {
        Truth::True => format!("met: {}", all()),
        Truth::False => format!("not met: {}", all()),
        Truth::Unknown => format!("unknown, and so not met: {}", why(Truth::Unknown)),
    };
    Evaluation {
        met: truth == Truth::True,
        truth,
        actual,
        message,
    }
}

fn walk(expr: &Expr, context: &Value, notes: &mut Vec<(Truth, String)>) -> Truth {
    match expr {
        Expr::Or(parts) => parts
            .iter()
            .map(|part| walk(part, context, notes))
            .fold(Truth::False, Truth::or),
        Expr::And(parts) => parts
            .iter()
            .map(|part| walk(part, context, notes))
            .fold(Truth::True, Truth::and),
        Expr::Not(inner) => walk(inner, context, notes).not(),
        Expr::Compare(comparison) => {
            let (truth, note) = compare(comparison, context);
            notes.push((truth, note));
            truth
        }
    }
}

fn compare(comparison: &Comparison, context: &Value) -> (Truth, String) {
    let path = &comparison.path;
    let Ok(actual) = lookup(path, context) else {
        return (Truth::Unknown, missing(path, context));
    };
    let truth = holds(&comparison.test, actual);
    let found = quoted(actual);
    let note = match truth {
        Truth::Unknown => format!("{path} is {found}, for which `{}` has no answer", comparison.text),
        Truth::True => format!("{path} is {found}"),
        Truth::False => format!("{path} is {found}, so `{}` is false", comparison.text),
    };
    (truth, note)
}

/// Whether a value that exists passes.
pub(super) fn holds(test: &Test, actual: &Value) -> Truth {
    match test {
        Test::Equal(literal) => Truth::of(equal(actual, literal)),
        Test::NotEqual(literal) => Truth::of(!equal(actual, literal)),
        Test::Less(literal) => ordered(actual, literal, Ordering::is_lt),
        Test::LessOrEqual(literal) => ordered(actual, literal, Ordering::is_le),
        Test::Greater(literal) => ordered(actual, literal, Ordering::is_gt),
        Test::GreaterOrEqual(literal) => ordered(actual, literal, Ordering::is_ge),
        Test::In(literals) => Truth::of(literals.iter().any(|literal| equal(actual, literal))),
        Test::Contains(literal) => contains(actual, literal),
        Test::Matches(regex) => match actual {
            Value::String(text) => Truth::of(regex.is_match(without_last_newlines(text))),
            Value::Number(_) | Value::Bool(_) => Truth::of(regex.is_match(&text_of(actual))),
            Value::Null | Value::Array(_) | Value::Object(_) => Truth::Unknown,
        },
    }
}

fn equal(actual: &Value, literal: &Value) -> bool {
    if let (Some(a), Some(b)) = (numeric(actual), numeric(literal)) {
        return order_of_numbers(&a, &b) == Some(Ordering::Equal);
    }
    match (actual, literal) {
        (Value::String(a), Value::String(b)) => a == b || without_last_newlines(a) == b,
        (a, b) => text_of(a) == text_of(b),
    }
}

fn ordered(actual: &Value, literal: &Value, accepts: fn(Ordering) -> bool) -> Truth {
    let order = match (numeric(actual), numeric(literal)) {
        (Some(a), Some(b)) => order_of_numbers(&a, &b),
        _ => match (actual, literal) {
            (Value::String(a), Value::String(b)) => {
                Some(without_last_newlines(a).cmp(without_last_newlines(b)))
            }
            _ => None,
        },
    };
    order.map_or(Truth::Unknown, |order| Truth::of(accepts(order)))
}

fn contains(actual: &Value, literal: &Value) -> Truth {
    match actual {
        Value::String(text) => Truth::of(text.contains(&text_of(literal))),
        Value::Array(items) => Truth::of(items.iter().any(|item| equal(item, literal))),
        Value::Object(keys) => Truth::of(keys.contains_key(&text_of(literal))),
        Value::Null | Value::Bool(_) | Value::Number(_) => Truth::Unknown,
    }
}

/// A number, or a string that is one: white space round it does not count, since a command's
/// output ends with a newline.
fn numeric(value: &Value) -> Option<Number> {
    match value {
        Value::Number(n) => Some(n.clone()),
        Value::String(text) => number(text.trim()),
        _ => None,
    }
}

fn order_of_numbers(a: &Number, b: &Number) -> Option<Ordering> {
    let whole = |n: &Number| n.as_i64().map(i128::from).or_else(|| n.as_u64().map(i128::from));
    match (whole(a), whole(b)) {
        (Some(a), Some(b)) => Some(a.cmp(&b)),
        _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
    }
}

/// As a shell's `$(…)` reads a command's output.
fn without_last_newlines(text: &str) -> &str {
    text.trim_end_matches(['\n', '\r'])
}

fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => without_last_newlines(text).to_owned(),
        other => other.to_string(),
    }
}

/// The value at a path, or how many of its parts exist.
fn lookup<'v>(path: &Path, context: &'v Value) -> Result<&'v Value, usize> {
    let mut value = context;
    for (depth, segment) in path.segments.iter().enumerate() {
        value = step_into(value, segment).ok_or(depth)?;
    }
    Ok(value)
}

fn step_into<'v>(value: &'v Value, segment: &str) -> Option<&'v Value> {
    match value {
        Value::Object(map) => map.get(segment),
        Value::Array(items) => segment.parse::<usize>().ok().and_then(|i| items.get(i)),
        _ => None,
    }
}

fn missing(path: &Path, context: &Value) -> String {
    let depth = lookup(path, context).err().unwrap_or_default();
    let mut parent = context;
    for segment in &path.segments[..depth] {
        parent = step_into(parent, segment).unwrap_or(&Value::Null);
    }
    let name = Path {
        segments: path.segments[..depth].to_vec(),
    };
    let there = match parent {
        Value::Object(map) if map.is_empty() => format!("{name} is empty"),
        Value::Object(map) => {
            let more = if map.len() > KEYS_LISTED_MAX { ", …" } else { "" };
            let keys: Vec<&str> = map.keys().take(KEYS_LISTED_MAX).map(String::as_str).collect();
            format!("{name} has {}{more}", keys.join(", "))
        }
        Value::Array(items) => format!("{name} is a list of {}", items.len()),
        other => format!("{name} is {}", quoted(other)),
    };
    if depth == 0 {
        return format!("there is no {path}");
    }
    format!("there is no {path}; {there}")
}

fn shown(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::from(cut(text, SHOWN_CHARS_MAX)),
        Value::Array(_) | Value::Object(_) => {
            let text = value.to_string();
            if text.len() <= SHOWN_CHARS_MAX {
                value.clone()
            } else {
                Value::from(cut(&text, SHOWN_CHARS_MAX))
            }
        }
        other => other.clone(),
    }
}

fn quoted(value: &Value) -> String {
    cut(&value.to_string(), QUOTED_CHARS_MAX)
}

fn cut(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}… ({} bytes in all)", &text[..end], text.len()),
    }
}
