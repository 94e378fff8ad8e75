//! The Tera a template runs in: which filters, tests and functions exist, and ours among them.
//!
//! - Nothing here reads a clock, chance, a file, the network or the process's environment.
//! - What is missing is an error, never an empty text; null prints as `null`, in a command not at all.
//! - Every filter that could make much out of little has a bound.
//! - In a command, a printed value leaves as a mark (see [`super::marks`]), so that nobody mistakes it for
//!   the template's own text.

use tera::{Error, Kwargs, State, StringInput, TeraResult, Value};

use super::{Kind, marks};

/// Prints a value; put around every `{{ … }}`.
pub(super) const PRINT: &str = "fist_print";
/// Makes text of an operand of `~`.
pub(super) const TEXT: &str = "fist_text";
/// Bounds the list of a loop.
pub(super) const ITEMS: &str = "fist_items";
/// Bounds the list of a loop inside a loop.
pub(super) const ITEMS_NESTED: &str = "fist_items_nested";
/// Bounds what `set` keeps.
pub(super) const BOUNDED: &str = "fist_bounded";

/// What [`PRINT`] and its like say when there is no value; `render` turns it into a path.
pub(super) const MISSING: &str = "there is no such value";
/// What [`PRINT`] says of null in a command.
pub(super) const NULL: &str = "is null, which cannot be an argument; give it a value with `| default(value=…, boolean=true)` or test it with `{% if … %}`";

const RANGE_ITEMS_MAX: i128 = 1_000;
const LOOP_ITEMS_MAX: usize = 10_000;
const NESTED_LOOP_ITEMS_MAX: usize = 1_000;
/// Of one text that a filter or `set` makes.
const TEXT_BYTES_MAX: usize = 1024 * 1024;

pub(super) const FUNCTIONS: [&str; 2] = ["range", "throw"];

pub(super) const TESTS: [&str; 17] = [
    "string",
    "number",
    "map",
    "bool",
    "array",
    "integer",
    "float",
    "none",
    "iterable",
    "defined",
    "undefined",
    "odd",
    "even",
    "divisible_by",
    "starting_with",
    "ending_with",
    "containing",
];

pub(super) const FILTERS: [&str; 40] = [
    "abs",
    "as_str",
    "capitalize",
    "default",
    "escape",
    "escape_html",
    "escape_xml",
    "first",
    "float",
    "get",
    "group_by",
    "indent",
    "int",
    "join",
    "json",
    "json_encode",
    "keys",
    "last",
    "length",
    "lower",
    "newlines_to_br",
    "nth",
    "pairs",
    "pluralize",
    "replace",
    "reverse",
    "round",
    "safe",
    "sort",
    "split",
    "str",
    "title",
    "trim",
    "trim_end",
    "trim_start",
    "truncate",
    "unique",
    "upper",
    "values",
    "wordcount",
];

/// A Tera without templates.
pub(super) fn tera(kind: Kind) -> tera::Tera {
    let mut tera = tera::Tera::new();
    match kind {
        Kind::Text => tera.autoescape_on(Vec::<&'static str>::new()),
        Kind::Command => {
            // Every name ends with nothing: whatever is printed and did not pass our print filter
            // becomes a value all the same, and is escaped like one.
            tera.autoescape_on(vec![""]);
            tera.set_escape_fn(|text, out| out.write_all(marks::write(usize::MAX, text, false).as_bytes()));
        }
    }
    tera.register_function("range", range);
    tera.register_filter("replace", replace);
    tera.register_filter("join", join);
    tera.register_filter("json", |value: Value, _: Kwargs, _: &State| json(&value));
    tera.register_filter("json_encode", |value: Value, _: Kwargs, _: &State| json(&value));
    tera.register_filter(ITEMS, |value: Value, _: Kwargs, _: &State| {
        items(value, LOOP_ITEMS_MAX)
    });
    tera.register_filter(ITEMS_NESTED, |value: Value, _: Kwargs, _: &State| {
        items(value, NESTED_LOOP_ITEMS_MAX)
    });
    tera.register_filter(BOUNDED, |value: Value, _: Kwargs, _: &State| bounded(value));
    let text_of = move |value: Value, _: Kwargs, _: &State| -> TeraResult<Value> {
        if value.is_number() {
            Ok(value)
        } else {
            text(&value, kind).map(Value::from)
        }
    };
    tera.register_filter(TEXT, text_of);
    let to_text = move |value: Value, _: Kwargs, _: &State| text(&value, kind);
    tera.register_filter("str", to_text);
    tera.register_filter("as_str", to_text);
    tera.register_filter(
        PRINT,
        move |value: Value, arguments: Kwargs, _: &State| -> TeraResult<Value> {
            let text = text(&value, kind)?;
            Ok(match kind {
                Kind::Text => Value::from(text),
                Kind::Command => Value::safe_string(&marks::write(
                    arguments.must_get("n")?,
                    &text,
                    value.is_number() || value.is_bool(),
                )),
            })
        },
    );
    tera
}

/// A value as it is printed: text as it is, lists and maps as JSON.
fn text(value: &Value, kind: Kind) -> TeraResult<String> {
    if value.is_undefined() {
        return Err(Error::message(MISSING));
    }
    if value.is_none() && kind == Kind::Command {
        return Err(Error::message(NULL));
    }
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => json(value),
    }
}

fn json(value: &Value) -> TeraResult<String> {
    if value.is_undefined() {
        return Err(Error::message(MISSING));
    }
    serde_json::to_string(value)
        .map_err(|error| Error::message(format!("cannot be written as JSON: {error}")))
}

fn range(arguments: Kwargs, _: &State) -> TeraResult<Vec<i128>> {
    let start = arguments.get::<i128>("start")?.unwrap_or_default();
    let end = arguments.must_get::<i128>("end")?;
    let step = arguments.get::<i128>("step_by")?.unwrap_or(1);
    let mut out = Vec::new();
    let mut at = start;
    while (step > 0 && at < end) || (step < 0 && at > end) {
        if out.len() as i128 == RANGE_ITEMS_MAX {
            return Err(Error::message(format!(
                "`range` gives at most {RANGE_ITEMS_MAX} items"
            )));
        }
        out.push(at);
        at = at.saturating_add(step);
    }
    if step == 0 {
        return Err(Error::message("`range` needs a `step_by` other than 0"));
    }
    Ok(out)
}

fn items(value: Value, max: usize) -> TeraResult<Value> {
    if value.is_undefined() {
        return Err(Error::message(MISSING));
    }
    match value.len() {
        Some(length) if length > max => Err(Error::message(format!(
            "a loop here runs over at most {max} items, this has {length}; take a part of it, as in `list[:{max}]`"
        ))),
        _ => Ok(value),
    }
}

fn bounded(value: Value) -> TeraResult<Value> {
    let mut left = TEXT_BYTES_MAX;
    if spend(&value, &mut left) {
        Ok(value)
    } else {
        Err(Error::message(format!(
            "`set` keeps at most {TEXT_BYTES_MAX} bytes"
        )))
    }
}

/// Takes the size of `value` off `left`; false when that is more than there is.
fn spend(value: &Value, left: &mut usize) -> bool {
    let own = value.as_str().map_or(8, |text| text.len() + 8);
    let Some(rest) = left.checked_sub(own) else {
        return false;
    };
    *left = rest;
    if let Some(list) = value.as_array() {
        return list.iter().all(|item| spend(item, left));
    }
    match value.as_map() {
        Some(map) => map.values().all(|item| spend(item, left)),
        None => true,
    }
}

fn replace(value: StringInput, arguments: Kwargs, _: &State) -> TeraResult<Value> {
    let from = arguments.must_get::<&str>("from")?;
    let to = arguments.must_get::<&str>("to")?;
    let text = value.as_str();
    check_bytes(text.matches(from).count().saturating_mul(to.len()), "replace")?;
    // A section's text stays the template's own; what is printed passes the print filter anyway.
    Ok(value.inherit_safety(text.replace(from, to)))
}

fn join(value: &[Value], arguments: Kwargs, _: &State) -> TeraResult<String> {
    let between = arguments.get::<&str>("sep")?.unwrap_or_default();
    check_bytes(value.len().saturating_mul(between.len()), "join")?;
    let texts: Vec<String> = value
        .iter()
        .map(|item| text(item, Kind::Text))
        .collect::<TeraResult<_>>()?;
    check_bytes(texts.iter().map(String::len).sum(), "join")?;
    Ok(texts.join(between))
}

fn check_bytes(bytes: usize, filter: &str) -> TeraResult<()> {
    if bytes > TEXT_BYTES_MAX {
        return Err(Error::message(format!(
            "`{filter}` makes at most {TEXT_BYTES_MAX} bytes"
        )));
    }
    Ok(())
}
