//! Shows more of a result that was cut or left out. Not a tool that looks at the world: the loop answers it from the
//! record.
//!
//! Invariant: what is shown fits the bytes it may have, and says where to go on.

use regex::{Regex, RegexBuilder};
use serde_json::{Value, json};

use super::schema;
use crate::llm::ToolSpec;

/// By what name the model calls it.
pub const NAME: &str = "read_more";

/// Lines that are shown where nothing else is asked for.
const LINES: usize = 200;
/// Lines that may be asked for.
const LINES_MAX: usize = 5000;
/// Lines around a match that may be asked for.
const CONTEXT_MAX: usize = 50;
/// Characters of a line; longer ones are shown as several.
const LINE_CHARS_MAX: usize = 1000;
/// Bytes of a compiled pattern.
const PATTERN_BYTES_MAX: usize = 1 << 20;

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
    let number = |description: &str, least: usize, most: usize| json!({"type": ["integer", "null"], "description": description, "minimum": least, "maximum": most});
    json!({
        "type": "object",
        "required": ["call_id"],
        "additionalProperties": false,
        "properties": {
            "call_id": {"type": "string", "description": "The id of the earlier call", "minLength": 1, "maxLength": 200},
            "grep": {
                "type": ["string", "null"], "maxLength": 500,
                "description": "A regular expression; only lines that match it are shown. (?i) ignores case",
            },
            "context": number("Lines shown before and after each match", 0, CONTEXT_MAX),
            "from_line": number("The first line shown or searched, from 1", 1, 10_000_000),
            "lines": number("How many lines are shown at most; 200 where absent", 1, LINES_MAX),
        },
    })
}

/// What is asked for.
#[derive(Debug)]
pub struct Ask {
    /// The call whose result it is.
    pub call_id: String,
    grep: Option<Regex>,
    context: usize,
    from_line: usize,
    lines: usize,
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
        let number = |key: &str, or: usize| {
            let given = arguments[key].as_u64();
            given.map_or(or, |number| usize::try_from(number).unwrap_or(usize::MAX))
        };
        let grep = match arguments["grep"].as_str().filter(|text| !text.is_empty()) {
            None => None,
            Some(pattern) => Some(
                RegexBuilder::new(pattern)
                    .size_limit(PATTERN_BYTES_MAX)
                    .build()
                    .map_err(|error| format!("`grep` is no regular expression that can be used: {error}"))?,
            ),
        };
        Ok(Self {
            call_id: arguments["call_id"].as_str().unwrap_or_default().to_owned(),
            grep,
            context: number("context", 0),
            from_line: number("from_line", 1),
            lines: number("lines", LINES),
        })
    }

    /// That part of `text`, in at most `bytes_max` bytes.
    pub fn show(&self, text: &str, bytes_max: usize) -> String {
        let lines = wrapped(text);
        let searched = lines.iter().enumerate().skip(self.from_line - 1);
        // The numbers of the lines to show, and whether each matches.
        let mut wanted: Vec<(usize, bool)> = Vec::new();
        let mut matches = 0;
        match &self.grep {
            None => wanted.extend(searched.take(self.lines).map(|(at, _)| (at, true))),
            Some(grep) => {
                for (at, _) in searched.filter(|(_, line)| grep.is_match(line)) {
                    matches += 1;
                    let next = wanted.last().map_or(0, |(last, _)| last + 1);
                    let until = (at + self.context).min(lines.len() - 1);
                    if let Some(known) = wanted.iter_mut().rev().find(|(line, _)| *line == at) {
                        known.1 = true;
                    }
                    let around = at.saturating_sub(self.context).max(next)..=until;
                    wanted.extend(around.map(|line| (line, line == at)));
                    if wanted.len() > self.lines {
                        break;
                    }
                }
                wanted.truncate(self.lines);
            }
        }
        let total = lines.len();
        let Some((first, _)) = wanted.first() else {
            return match &self.grep {
                Some(_) => format!("(no line from {} to {total} matches)", self.from_line),
                None => format!("(it has {total} lines)"),
            };
        };
        // The frame's own words: what is below, and where to go on.
        const FRAME_BYTES: usize = 160;
        let mut room = bytes_max.saturating_sub(FRAME_BYTES);
        let mut shown = String::new();
        let mut last = *first;
        for (at, is_match) in &wanted {
            let mark = if *is_match { ':' } else { '-' };
            let gap = if *at > last + 1 { "…\n" } else { "" };
            let line = format!("{gap}{}{mark} {}\n", at + 1, lines[*at]);
            match room.checked_sub(line.len()) {
                Some(left) => room = left,
                None => break,
            }
            shown.push_str(&line);
            last = *at;
        }
        let title = match self.grep {
            Some(_) => format!(
                "matches: {matches}{}",
                if last + 1 < total { " or more" } else { "" }
            ),
            None => format!("lines {} to {}", first + 1, last + 1),
        };
        let more = match last + 1 < total {
            true => format!("(go on with from_line {})", last + 2),
            false => "(that is its end)".to_owned(),
        };
        format!("{title}, of {total} lines\n{shown}{more}")
    }
}

/// The lines of `text`, long ones as several.
fn wrapped(text: &str) -> Vec<&str> {
    let mut lines = Vec::new();
    for mut line in text.lines() {
        while let Some((at, _)) = line.char_indices().nth(LINE_CHARS_MAX) {
            lines.push(&line[..at]);
            line = &line[at..];
        }
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn shown(text: &str, arguments: Value, bytes_max: usize) -> String {
        let mut all = json!({"call_id": "c"});
        for (key, value) in arguments.as_object().unwrap() {
            all[key] = value.clone();
        }
        match Ask::read(&all) {
            Ok(ask) => ask.show(text, bytes_max),
            Err(problem) => problem,
        }
    }

    #[test]
    fn a_window_or_a_search_is_shown_and_where_to_go_on() {
        schema::assert_known(&arguments_schema());
        let text: String = (1..=9).map(|n| format!("line {n}\n")).collect();
        for (arguments, expected) in [
            (
                json!({"from_line": 3, "lines": 2}),
                "lines 3 to 4, of 9 lines\n3: line 3\n4: line 4\n(go on with from_line 5)",
            ),
            (
                json!({"from_line": 9}),
                "lines 9 to 9, of 9 lines\n9: line 9\n(that is its end)",
            ),
            (json!({"from_line": 10}), "(it has 9 lines)"),
            (
                json!({"grep": "[27]$", "context": 1}),
                "matches: 2 or more, of 9 lines\n1- line 1\n2: line 2\n3- line 3\n…\n6- line 6\n7: line 7\n8- line 8\n(go on with from_line 9)",
            ),
            (
                json!({"grep": "(?i)LINE [89]", "context": 1}),
                "matches: 2, of 9 lines\n7- line 7\n8: line 8\n9: line 9\n(that is its end)",
            ),
            (json!({"grep": "ten"}), "(no line from 1 to 9 matches)"),
            (json!({"lines": 0}), "lines must be between 1 and 5000"),
            (json!({"frm": 0}), "there is no `frm`"),
        ] {
            assert_eq!(shown(&text, arguments.clone(), 4000), expected, "{arguments}");
        }
        assert!(shown(&text, json!({"grep": "("}), 4000).starts_with("`grep` is no regular expression"));
        assert_eq!(shown("", json!({}), 100), "(it has 0 lines)");
    }

    #[test]
    fn what_is_shown_fits_whatever_the_lines() {
        let text = format!("{}\n{}", "ü".repeat(2500), "short\n".repeat(3000));
        for bytes_max in [500, 3000, 40_000] {
            for arguments in [json!({}), json!({"lines": 5000}), json!({"grep": "s"})] {
                let shown = shown(&text, arguments, bytes_max);
                assert!(shown.len() <= bytes_max, "{} of {bytes_max}", shown.len());
                assert!(shown.contains("go on with"), "{shown}");
            }
        }
        let first = shown(&text, json!({"lines": 3}), 40_000);
        assert!(first.starts_with("lines 1 to 3, of 3003 lines"), "{first}");
    }
}
