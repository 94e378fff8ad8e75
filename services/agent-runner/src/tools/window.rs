//! A part of a long text: its lines from one on, or those that match a pattern, with their numbers.
//!
//! Invariant: what is shown is bounded, and says where to go on.

use std::{collections::VecDeque, fmt::Write as _};

use regex::{Regex, RegexBuilder};
use serde_json::{Value, json};

/// Lines, or matches, where the call does not say.
const LINES_DEFAULT: u64 = 200;
/// Lines, or matches, that one call may ask for.
const LINES_MAX: u64 = 2000;
/// Lines around a match where the call does not say.
const CONTEXT_DEFAULT: u64 = 2;
/// Lines around a match that may be asked for.
const CONTEXT_MAX: u64 = 50;
/// Bytes that a compiled pattern may take.
const PATTERN_BYTES_MAX: usize = 1024 * 1024;
/// Characters of a pattern.
const PATTERN_CHARS_MAX: u64 = 500;
/// Bytes of a result that its head and its notes take.
const NOTES_BYTES: usize = 1024;
/// The part of a result that one line may take.
const LINE_PART: usize = 4;
/// Which lines a call wants.
#[derive(Debug)]
pub struct Window {
    /// From 1; negative from the end.
    from_line: i64,
    lines: usize,
    grep: Option<(Regex, usize)>,
}

/// Adds the arguments that [`Window::read`] reads to a tool's schema.
pub fn add_properties(schema: &mut Value) {
    let Value::Object(properties) = json!({
        "from_line": {"type": ["integer", "null"], "description": "The first line, from 1; a negative number counts from the end, so -50 gives the last 50. 1 where absent", "minimum": -100_000_000, "maximum": 100_000_000},
        "lines": {"type": ["integer", "null"], "description": "Lines at most, or matches with `grep`; 200 where absent", "minimum": 1, "maximum": LINES_MAX},
        "grep": {"type": ["string", "null"], "description": "A regular expression (Rust's regex; (?i) ignores case): only lines that match, from `from_line` on", "maxLength": PATTERN_CHARS_MAX},
        "context": {"type": ["integer", "null"], "description": "Lines around each match; 2 where absent", "minimum": 0, "maximum": CONTEXT_MAX},
    }) else {
        return;
    };
    if let Some(all) = schema["properties"].as_object_mut() {
        all.extend(properties);
    }
}

impl Window {
    /// Reads a call's arguments, which fit the schema.
    ///
    /// # Errors
    /// What is wrong with them, in words that a model can act on.
    pub fn read(arguments: &Value) -> Result<Self, String> {
        // A whole number may be written as 50.0.
        let whole = |key: &str| {
            let number = &arguments[key];
            number
                .as_i64()
                .or_else(|| number.as_f64().map(|float| float as i64))
        };
        let count = |key: &str, default: u64| match whole(key) {
            Some(number) => usize::try_from(number).unwrap_or(0),
            None => usize::try_from(default).unwrap_or(usize::MAX),
        };
        let from_line = whole("from_line").unwrap_or(1);
        if from_line == 0 {
            return Err("from_line counts from 1; -1 is the last line".to_owned());
        }
        let grep = match arguments["grep"].as_str().filter(|pattern| !pattern.is_empty()) {
            Some(pattern) => {
                let regex = RegexBuilder::new(pattern)
                    .size_limit(PATTERN_BYTES_MAX)
                    .dfa_size_limit(PATTERN_BYTES_MAX)
                    .build()
                    .map_err(|error| format!("grep is no regular expression that can be used: {error}"))?;
                Some((regex, count("context", CONTEXT_DEFAULT)))
            }
            None => None,
        };
        Ok(Self {
            from_line,
            lines: count("lines", LINES_DEFAULT),
            grep,
        })
    }

    /// Those lines of `text`, numbered, behind `head`, their count and `notes`, in about `output_bytes_max` bytes.
    pub fn show(&self, text: &str, head: &str, notes: &[String], output_bytes_max: usize) -> String {
        // Lines are never collected: a text of nothing but line ends would take many times its size.
        let count = text.lines().count();
        let first = match self.from_line {
            from_end if from_end < 0 => {
                let back = usize::try_from(from_end.unsigned_abs()).unwrap_or(usize::MAX);
                count.saturating_sub(back)
            }
            from => usize::try_from(from - 1).unwrap_or(usize::MAX),
        };
        let page = Page {
            body: String::new(),
            bytes_left: output_bytes_max.saturating_sub(NOTES_BYTES),
            line_bytes_max: output_bytes_max / LINE_PART,
            next: 0,
        };
        let (told, body) = match &self.grep {
            _ if count == 0 => ("it is empty".to_owned(), String::new()),
            _ if first >= count => (format!("there is no line {}", self.from_line), String::new()),
            Some((regex, context)) => matching(text, first, self.lines, regex, *context, page),
            None => plain(text, first, self.lines, count, page),
        };
        let mut shown = format!("{head}, {count} lines, {} bytes: {told}", text.len());
        for note in notes {
            // Writing into a String cannot fail.
            let _ = write!(shown, "\n({note})");
        }
        if !body.is_empty() {
            let _ = write!(shown, "\n{}", body.trim_end_matches('\n'));
        }
        shown
    }
}

/// Lines that are shown, within what a result may hold.
struct Page {
    body: String,
    bytes_left: usize,
    line_bytes_max: usize,
    /// The line after the last one that is shown, from 0.
    next: usize,
}

impl Page {
    /// Adds a line with its number, from 0. False where it does not fit: there is always room for one.
    fn add(&mut self, at: usize, mark: char, line: &str) -> bool {
        let is_first = self.body.is_empty();
        let gap = if is_first || at == self.next { "" } else { "--\n" };
        let end = line.floor_char_boundary(self.line_bytes_max);
        let mut text = format!("{gap}{}{mark} {}", at + 1, &line[..end]);
        if end < line.len() {
            let _ = write!(text, "… [{} bytes of this line cut]", line.len() - end);
        }
        text.push('\n');
        if text.len() > self.bytes_left && !is_first {
            return false;
        }
        self.bytes_left = self.bytes_left.saturating_sub(text.len());
        self.body.push_str(&text);
        self.next = at + 1;
        true
    }
}

fn plain(text: &str, first: usize, lines: usize, count: usize, mut page: Page) -> (String, String) {
    for (at, line) in text.lines().enumerate().skip(first).take(lines) {
        if !page.add(at, ':', line) {
            break;
        }
    }
    let mut told = format!("lines {} to {}", first + 1, page.next);
    if page.next < count {
        let _ = write!(told, "; more with from_line={}", page.next + 1);
    }
    (told, page.body)
}

/// The first `count` lines from `first` on that match, with their neighbours.
fn matching(
    text: &str,
    first: usize,
    count: usize,
    regex: &Regex,
    context: usize,
    mut page: Page,
) -> (String, String) {
    let mut before: VecDeque<(usize, &str)> = VecDeque::new();
    let mut neighbours_left = 0;
    let (mut total, mut shown, mut last_shown) = (0_usize, 0, first);
    let mut is_full = false;
    for (at, line) in text.lines().enumerate() {
        let is_match = at >= first && regex.is_match(line);
        total += usize::from(is_match);
        if is_full {
            continue;
        }
        let is_wanted = is_match && shown < count;
        if is_wanted {
            is_full = before.drain(..).any(|(at, line)| !page.add(at, '-', line));
            neighbours_left = context + 1;
        }
        if neighbours_left > 0 {
            neighbours_left -= 1;
            is_full = is_full || !page.add(at, if is_match { ':' } else { '-' }, line);
            if is_match && !is_full {
                shown += 1;
                last_shown = at;
            }
        } else {
            before.push_back((at, line));
            if before.len() > context {
                before.pop_front();
            }
        }
    }
    let mut told = match total {
        0 => format!("no line from {} on matches", first + 1),
        total => format!("{shown} of {total} lines that match from {} on", first + 1),
    };
    if shown == 0 && total > 0 {
        told.push_str("; the lines before the first fill the result, so ask for less context");
    } else if shown < total {
        let _ = write!(told, "; more with from_line={}", last_shown + 2);
    }
    (told, page.body)
}

/// What [`Window::show`] shows without the lines' numbers.
pub fn without_numbers(shown: &str) -> String {
    let line = |line: &str| -> String {
        let rest = line.trim_start_matches(|c: char| c.is_ascii_digit());
        let is_numbered = rest.len() < line.len();
        let unnumbered = rest.strip_prefix(": ").or_else(|| rest.strip_prefix("- "));
        unnumbered.filter(|_| is_numbered).unwrap_or(line).to_owned()
    };
    shown.lines().map(line).collect::<Vec<_>>().join("\n")
}
