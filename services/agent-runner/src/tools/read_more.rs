//! Shows more of a result that was cut or left out. Not a tool that looks at the world: the loop answers it from the
//! record.

use serde_json::{Value, json};

use super::{
    schema,
    window::{self, Window},
};
use crate::llm::ToolSpec;

/// By what name the model calls it.
pub const NAME: &str = "read_more";

/// Characters of a line; longer ones are shown as several, since an answer of a server often is one line.
const LINE_CHARS_MAX: usize = 1000;

/// It as a model sees it.
pub fn spec() -> ToolSpec {
    ToolSpec {
        name: NAME.to_owned(),
        description:
            "Shows more of the result of an earlier call that was cut or left out: a range of its lines, or \
                      those that match a pattern. It does not run the call again."
                .to_owned(),
        schema: arguments_schema(),
    }
}

fn arguments_schema() -> Value {
    let mut schema = json!({
        "type": "object",
        "required": ["call_id"],
        "additionalProperties": false,
        "properties": {
            "call_id": {"type": "string", "description": "The id of the earlier call", "minLength": 1, "maxLength": 200},
        },
    });
    window::add_properties(&mut schema);
    schema
}

/// What is asked for.
#[derive(Debug)]
pub struct Ask {
    /// The call whose result it is.
    pub call_id: String,
    window: Window,
}

impl Ask {
    /// Reads a call's arguments.
    ///
    /// # Errors
    /// What is wrong with them, in words that a model can act on.
    pub fn read(arguments: &Value) -> Result<Self, String> {
        let problems = schema::problems(&arguments_schema(), arguments);
        if !problems.is_empty() {
            return Err(problems.join("; "));
        }
        Ok(Self {
            call_id: arguments["call_id"].as_str().unwrap_or_default().to_owned(),
            window: Window::read(arguments)?,
        })
    }

    /// That part of `text`, in about `bytes_max` bytes.
    pub fn show(&self, text: &str, bytes_max: usize) -> String {
        let head = format!("the result of {}", self.call_id);
        self.window.show(&wrapped(text), &head, &[], bytes_max)
    }
}

/// `text` with long lines as several.
fn wrapped(text: &str) -> String {
    let mut wrapped = String::with_capacity(text.len() + text.len() / LINE_CHARS_MAX);
    for mut line in text.lines() {
        while let Some((at, _)) = line.char_indices().nth(LINE_CHARS_MAX) {
            wrapped.push_str(&line[..at]);
            wrapped.push('\n');
            line = &line[at..];
        }
        wrapped.push_str(line);
        wrapped.push('\n');
    }
    wrapped
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn lines_are_shown_or_searched_and_long_ones_are_several() {
        schema::assert_known(&arguments_schema());
        let text = format!("{}\nshort\n", "ü".repeat(2500));
        let show = |mut arguments: Value| {
            arguments["call_id"] = "c1".into();
            Ask::read(&arguments).map(|ask| ask.show(&text, 8000))
        };
        let whole = show(json!({})).unwrap();
        assert!(
            whole.starts_with("the result of c1, 4 lines, 5009 bytes: lines 1 to 4\n1: ü")
                && whole.ends_with("\n4: short"),
            "{whole}"
        );
        assert_eq!(
            show(json!({"grep": "^sho", "context": 0})).unwrap(),
            "the result of c1, 4 lines, 5009 bytes: 1 of 1 lines that match from 1 on\n4: short"
        );
        assert_eq!(
            show(json!({"lines": 0})).unwrap_err(),
            "lines must be between 1 and 2000"
        );
        assert_eq!(show(json!({"frm": 0})).unwrap_err(), "there is no `frm`");
        assert!(
            show(json!({"grep": "("}))
                .unwrap_err()
                .starts_with("grep is no regular expression")
        );
    }
}
