//! A case: what an investigation begins with, what its tools answer, and what a good one must come to.
//!
//! Invariants:
//! - Reading a case finds everything that is wrong with it at once, each with its field and the remedy.
//! - A case that was read holds no pattern, time or count that could fail later.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use protocol::{Namespace, Timestamp};
use regex::Regex;
use serde_json::{Map, Value};

/// Bytes of the largest case that is read.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// Recorded answers of one case.
const ANSWERS_MAX: usize = 500;
/// Entries of one list of expectations.
const EXPECTATIONS_MAX: usize = 100;
/// Minutes of an investigation, where the case says nothing; as long as a step of type `agent` has.
const TIMEOUT_MINUTES: u32 = 10;
/// Minutes that a case can ask for.
const TIMEOUT_MINUTES_MAX: u32 = 120;

/// Something wrong with a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub file: String,
    /// The field, such as `answers[2].match`; empty for the file as a whole.
    pub field: String,
    /// What is wrong, and the remedy.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.as_str() {
            "" => write!(f, "{}: {}", self.file, self.message),
            field => write!(f, "{}: {field}: {}", self.file, self.message),
        }
    }
}

/// One case.
#[derive(Debug)]
pub struct Case {
    /// Its file, as errors name it.
    pub file: String,
    /// The file's name without its ending.
    pub name: String,
    /// For readers.
    pub description: String,
    /// What is asked.
    pub goal: String,
    /// The alert as templates see it.
    pub alert: Option<Value>,
    /// What a fix may touch.
    pub namespace: String,
    /// The time that the model is told; absent: now.
    pub at: Option<Timestamp>,
    /// The tools by name.
    pub tools: Vec<String>,
    /// How long the investigation may take.
    pub timeout: Duration,
    /// The file of turns that plays the model where there is none.
    pub script: Option<PathBuf>,
    /// What tools answer.
    pub answers: Vec<RecordedAnswer>,
    /// What a good investigation comes to.
    pub expect: Expectations,
}

/// What a tool answers to a call.
#[derive(Clone, Debug)]
pub struct RecordedAnswer {
    /// The tool.
    pub tool: String,
    /// Which calls it answers.
    pub to: Calls,
    /// What the tool gave.
    pub result: String,
    /// Whether the call failed or was refused.
    pub is_error: bool,
}

/// Which calls of a tool are meant.
#[derive(Clone, Debug)]
pub enum Calls {
    /// Those with exactly these arguments; one that is null is as good as absent.
    Exactly(Value),
    /// Those whose line, the tool and then the values of its arguments, matches.
    Matching(Pattern),
    /// The next that nothing else answers.
    Next,
}

impl Calls {
    /// Whether both mean the same calls.
    pub fn is_alike(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exactly(one), Self::Exactly(other)) => one == other,
            (Self::Matching(one), Self::Matching(other)) => one.text == other.text,
            (Self::Next, Self::Next) => true,
            (Self::Exactly(_) | Self::Matching(_) | Self::Next, _) => false,
        }
    }
}

/// A regular expression, with its text for reports.
#[derive(Clone, Debug)]
pub struct Pattern {
    /// As it is written.
    pub text: String,
    /// Compiled.
    pub regex: Regex,
}

/// What a good investigation comes to.
#[derive(Debug)]
pub struct Expectations {
    /// `complete` or `inconclusive`.
    pub status: String,
    /// What summary, root cause and findings must say.
    pub says: Vec<Pattern>,
    /// What they must not say.
    pub says_not: Vec<Pattern>,
    /// The right fix; absent: none is judged.
    pub fix: Option<Fix>,
    /// The least share of quotes that are grounded, from 0 to 1.
    pub grounded_min: f64,
    /// The most turns.
    pub turns_max: Option<u32>,
    /// The most tool calls.
    pub calls_max: Option<u32>,
    /// The most calls that nothing is recorded for.
    pub unrecorded_max: Option<u32>,
}

/// Which fix is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fix {
    /// None may be proposed.
    NoFix,
    /// One of these commands, fit to be applied by itself.
    AnyOf(Vec<String>),
}

/// Reads a case from its file.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load(path: &Path) -> Result<Case, Vec<Problem>> {
    let file = path.display().to_string();
    let whole = |message: String| {
        vec![Problem {
            file: file.clone(),
            field: String::new(),
            message,
        }]
    };
    let bytes = std::fs::metadata(path)
        .map_err(|error| whole(format!("cannot be read: {error}")))?
        .len();
    if bytes > FILE_BYTES_MAX {
        return Err(whole(format!(
            "has {bytes} bytes, and a case may have {FILE_BYTES_MAX}: shorten its results"
        )));
    }
    let text = std::fs::read_to_string(path).map_err(|error| whole(format!("cannot be read: {error}")))?;
    let mut case = parse(&file, &text)?;
    let stem = path.file_stem().unwrap_or_default();
    case.name = stem.to_string_lossy().into_owned();
    let directory = path.parent().unwrap_or(Path::new("."));
    case.script = case.script.map(|script| directory.join(script));
    Ok(case)
}

/// Reads a case from its text; `file` is what errors call it.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(file: &str, text: &str) -> Result<Case, Vec<Problem>> {
    let mut reader = Reader {
        file,
        problems: Vec::new(),
    };
    let root: Value = match serde_saphyr::from_str(text) {
        Ok(root) => root,
        Err(error) => {
            reader.wrong("", format!("is not YAML or JSON: {error}"));
            return Err(reader.problems);
        }
    };
    let case = reader.case(&root);
    match reader.problems.is_empty() {
        true => Ok(case),
        false => Err(reader.problems),
    }
}

/// Takes a document apart, and keeps what is wrong with it.
struct Reader<'f> {
    file: &'f str,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn wrong(&mut self, field: &str, message: impl Into<String>) {
        self.problems.push(Problem {
            file: self.file.to_owned(),
            field: field.to_owned(),
            message: message.into(),
        });
    }

    fn case(&mut self, root: &Value) -> Case {
        const KEYS: [&str; 10] = [
            "description",
            "goal",
            "alert",
            "namespace",
            "at",
            "tools",
            "timeout_minutes",
            "script",
            "answers",
            "expect",
        ];
        let root = self.object(root, "", &KEYS);
        let alert = match root.get("alert") {
            None | Some(Value::Null) => None,
            Some(alert @ Value::Object(_)) => Some(alert.clone()),
            Some(_) => {
                self.wrong(
                    "alert",
                    "must be the alert as templates see it: name, severity, labels, annotations",
                );
                None
            }
        };
        let tools = self.texts(&root, "", "tools");
        if tools.is_empty() {
            self.wrong(
                "tools",
                "is missing: list the tools that the agent may use, such as [kubectl, promql]",
            );
        }
        let minutes = self
            .count(&root, "", "timeout_minutes")
            .unwrap_or(TIMEOUT_MINUTES);
        if !(1..=TIMEOUT_MINUTES_MAX).contains(&minutes) {
            self.wrong(
                "timeout_minutes",
                format!("must be between 1 and {TIMEOUT_MINUTES_MAX}"),
            );
        }
        let at = self.text(&root, "", "at").and_then(|text| {
            let at = text.parse::<Timestamp>();
            if at.is_err() {
                self.wrong(
                    "at",
                    format!("`{text}` is no time: write it as 2026-01-31T12:00:00Z"),
                );
            }
            at.ok()
        });
        Case {
            file: self.file.to_owned(),
            name: self.file.to_owned(),
            description: self.text(&root, "", "description").unwrap_or_default(),
            goal: self.needed(&root, "goal", "what the agent is asked"),
            namespace: self.namespace(&root, alert.as_ref()),
            alert,
            at,
            answers: self.answers(root.get("answers"), &tools),
            tools,
            timeout: Duration::from_secs(60 * u64::from(minutes)),
            script: self.text(&root, "", "script").map(PathBuf::from),
            expect: self.expectations(root.get("expect")),
        }
    }

    fn namespace(&mut self, root: &Map<String, Value>, alert: Option<&Value>) -> String {
        let given = self.text(root, "", "namespace");
        let of_alert = alert
            .and_then(|alert| alert["labels"]["namespace"].as_str())
            .map(str::to_owned);
        let namespace = given.or(of_alert).unwrap_or_else(|| "default".to_owned());
        if let Err(error) = Namespace::new(namespace.as_str()) {
            self.wrong(
                "namespace",
                format!("`{namespace}` cannot be one ({error}); name one of Kubernetes"),
            );
        }
        namespace
    }

    fn answers(&mut self, list: Option<&Value>, tools: &[String]) -> Vec<RecordedAnswer> {
        let items = self.list(list, "answers", ANSWERS_MAX);
        items
            .iter()
            .enumerate()
            .map(|(at, item)| self.answer(item, &format!("answers[{at}]"), tools))
            .collect()
    }

    fn answer(&mut self, item: &Value, place: &str, tools: &[String]) -> RecordedAnswer {
        let item = self.object(item, place, &["tool", "arguments", "match", "result", "is_error"]);
        let field = |name: &str| format!("{place}.{name}");
        let tool = self.text(&item, place, "tool").unwrap_or_default();
        if !tools.contains(&tool) {
            self.wrong(
                &field("tool"),
                match tool.as_str() {
                    "" => "is missing: name the tool that answers".to_owned(),
                    tool => format!("`{tool}` is none of the tools of this case: add it to `tools`"),
                },
            );
        }
        let to = match (item.get("arguments"), item.get("match")) {
            (Some(_), Some(_)) => {
                self.wrong(
                    &field("match"),
                    "stands beside `arguments`: keep one of them, exact or by pattern",
                );
                Calls::Next
            }
            (Some(arguments @ Value::Object(_)), None) => Calls::Exactly(without_nulls(arguments)),
            (Some(_), None) => {
                self.wrong(
                    &field("arguments"),
                    "must be the call's arguments, such as {args: [get, pods]}",
                );
                Calls::Next
            }
            (None, Some(_)) => {
                let text = self.text(&item, place, "match").unwrap_or_default();
                self.pattern(&text, &field("match"))
                    .map_or(Calls::Next, Calls::Matching)
            }
            (None, None) => Calls::Next,
        };
        if item.get("result").is_none() {
            self.wrong(
                &field("result"),
                "is missing: write what the tool gave, \"\" where that was nothing",
            );
        }
        RecordedAnswer {
            tool,
            to,
            result: self.text(&item, place, "result").unwrap_or_default(),
            is_error: self.truth(&item, place, "is_error"),
        }
    }

    fn expectations(&mut self, value: Option<&Value>) -> Expectations {
        const KEYS: [&str; 8] = [
            "status",
            "says",
            "says_not",
            "fix",
            "grounded_min",
            "turns_max",
            "calls_max",
            "unrecorded_max",
        ];
        const PLACE: &str = "expect";
        if value.is_none() {
            self.wrong(
                PLACE,
                "is missing: say what a good investigation comes to, such as {says: ['(?i)out of memory'], fix: none}",
            );
        }
        let empty = Value::Object(Map::new());
        let expect = self.object(value.unwrap_or(&empty), PLACE, &KEYS);
        let status = self
            .text(&expect, PLACE, "status")
            .unwrap_or_else(|| "complete".to_owned());
        if !["complete", "inconclusive"].contains(&status.as_str()) {
            self.wrong(
                "expect.status",
                format!("`{status}` is no end of a good investigation: use complete or inconclusive"),
            );
        }
        let grounded_min = match expect.get("grounded_min") {
            None | Some(Value::Null) => 1.0,
            Some(share) => share
                .as_f64()
                .filter(|share| (0.0..=1.0).contains(share))
                .unwrap_or_else(|| {
                    self.wrong(
                        "expect.grounded_min",
                        "must be a share between 0 and 1: 1 is all quotes",
                    );
                    1.0
                }),
        };
        Expectations {
            status,
            says: self.patterns(&expect, "says"),
            says_not: self.patterns(&expect, "says_not"),
            fix: self.fix(expect.get("fix")),
            grounded_min,
            turns_max: self.count(&expect, PLACE, "turns_max"),
            calls_max: self.count(&expect, PLACE, "calls_max"),
            unrecorded_max: self.count(&expect, PLACE, "unrecorded_max"),
        }
    }

    fn fix(&mut self, value: Option<&Value>) -> Option<Fix> {
        let commands = match value {
            None | Some(Value::Null) => return None,
            Some(Value::String(text)) if text == "none" => return Some(Fix::NoFix),
            Some(Value::String(text)) => vec![text.clone()],
            Some(list) => self.all_texts(list, "expect.fix"),
        };
        if commands.is_empty() {
            self.wrong(
                "expect.fix",
                "names no command: list the right ones, or write none where none is right",
            );
        }
        Some(Fix::AnyOf(commands))
    }

    fn patterns(&mut self, expect: &Map<String, Value>, name: &str) -> Vec<Pattern> {
        let field = format!("expect.{name}");
        let Some(list) = expect.get(name) else {
            return Vec::new();
        };
        let texts = self.all_texts(list, &field);
        let compiled = texts
            .iter()
            .enumerate()
            .filter_map(|(at, text)| self.pattern(text, &format!("{field}[{at}]")));
        compiled.collect()
    }

    fn pattern(&mut self, text: &str, field: &str) -> Option<Pattern> {
        match Regex::new(text) {
            Ok(regex) => Some(Pattern {
                text: text.to_owned(),
                regex,
            }),
            Err(error) => {
                self.wrong(
                    field,
                    format!("is no regular expression (Rust's regex, docs.rs/regex): {error}"),
                );
                None
            }
        }
    }

    fn object(&mut self, value: &Value, place: &str, known: &[&str]) -> Map<String, Value> {
        let Value::Object(fields) = value else {
            self.wrong(place, format!("must be an object with {}", known.join(", ")));
            return Map::new();
        };
        for name in fields.keys().filter(|name| !known.contains(&name.as_str())) {
            self.wrong(
                &joined(place, name),
                format!("there is no such field: use {}", known.join(", ")),
            );
        }
        fields.clone()
    }

    fn list(&mut self, value: Option<&Value>, field: &str, max: usize) -> Vec<Value> {
        match value {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(items)) if items.len() <= max => items.clone(),
            Some(Value::Array(items)) => {
                self.wrong(field, format!("has {} entries, and may have {max}", items.len()));
                Vec::new()
            }
            Some(_) => {
                self.wrong(field, "must be a list");
                Vec::new()
            }
        }
    }

    fn text(&mut self, fields: &Map<String, Value>, place: &str, name: &str) -> Option<String> {
        match fields.get(name) {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text.clone()),
            Some(_) => {
                self.wrong(&joined(place, name), "must be a text: put it in quotes");
                None
            }
        }
    }

    fn needed(&mut self, fields: &Map<String, Value>, name: &str, what: &str) -> String {
        let text = self.text(fields, "", name).unwrap_or_default();
        if text.trim().is_empty() && !matches!(fields.get(name), Some(value) if !value.is_string()) {
            self.wrong(name, format!("is missing: write {what}"));
        }
        text
    }

    fn texts(&mut self, fields: &Map<String, Value>, place: &str, name: &str) -> Vec<String> {
        match fields.get(name) {
            None | Some(Value::Null) => Vec::new(),
            Some(list) => self.all_texts(list, &joined(place, name)),
        }
    }

    fn all_texts(&mut self, list: &Value, field: &str) -> Vec<String> {
        let items = self.list(Some(list), field, EXPECTATIONS_MAX);
        let mut texts = Vec::new();
        for (at, item) in items.iter().enumerate() {
            match item.as_str().filter(|text| !text.trim().is_empty()) {
                Some(text) => texts.push(text.to_owned()),
                None => self.wrong(&format!("{field}[{at}]"), "must be a text that is not empty"),
            }
        }
        texts
    }

    fn count(&mut self, fields: &Map<String, Value>, place: &str, name: &str) -> Option<u32> {
        let value = fields.get(name).filter(|value| !value.is_null())?;
        let count = value.as_u64().and_then(|count| u32::try_from(count).ok());
        if count.is_none() {
            self.wrong(&joined(place, name), "must be a whole number, 0 or more");
        }
        count
    }

    fn truth(&mut self, fields: &Map<String, Value>, place: &str, name: &str) -> bool {
        match fields.get(name) {
            None | Some(Value::Null) => false,
            Some(Value::Bool(truth)) => *truth,
            Some(_) => {
                self.wrong(&joined(place, name), "must be true or false");
                false
            }
        }
    }
}

fn joined(place: &str, name: &str) -> String {
    match place {
        "" => name.to_owned(),
        place => format!("{place}.{name}"),
    }
}

/// Arguments as calls are compared: models write null for what they leave out.
pub fn without_nulls(arguments: &Value) -> Value {
    match arguments {
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect::<Map<_, _>>()
            .into(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use expect_test::expect;

    use super::*;

    #[test]
    fn everything_wrong_is_found_at_once_with_field_and_remedy() {
        let text = "
goal: 7
alert: KubePodCrashLooping
at: yesterday
timeout_minutes: 0
tools: [kubectl, 3]
colour: red
answers:
  - {tool: promql, result: '1'}
  - {tool: kubectl, arguments: {args: [get]}, match: get}
  - {tool: kubectl, match: '(', result: x, is_error: 'no'}
expect:
  status: partial
  says: ['[']
  says_not: all of it
  fix: []
  grounded_min: 2
  turns_max: -1
  maximum: 3
";
        let problems = parse("bad.yaml", text).unwrap_err();
        let shown: Vec<String> = problems
            .iter()
            .map(|problem| {
                let line = problem.to_string();
                line.lines().next().unwrap_or_default().to_owned()
            })
            .collect();
        expect![[r#"
            bad.yaml: colour: there is no such field: use description, goal, alert, namespace, at, tools, timeout_minutes, script, answers, expect
            bad.yaml: alert: must be the alert as templates see it: name, severity, labels, annotations
            bad.yaml: tools[1]: must be a text that is not empty
            bad.yaml: timeout_minutes: must be between 1 and 120
            bad.yaml: at: `yesterday` is no time: write it as 2026-01-31T12:00:00Z
            bad.yaml: goal: must be a text: put it in quotes
            bad.yaml: answers[0].tool: `promql` is none of the tools of this case: add it to `tools`
            bad.yaml: answers[1].match: stands beside `arguments`: keep one of them, exact or by pattern
            bad.yaml: answers[1].result: is missing: write what the tool gave, "" where that was nothing
            bad.yaml: answers[2].match: is no regular expression (Rust's regex, docs.rs/regex): regex parse error:
            bad.yaml: answers[2].is_error: must be true or false
            bad.yaml: expect.maximum: there is no such field: use status, says, says_not, fix, grounded_min, turns_max, calls_max, unrecorded_max
            bad.yaml: expect.status: `partial` is no end of a good investigation: use complete or inconclusive
            bad.yaml: expect.grounded_min: must be a share between 0 and 1: 1 is all quotes
            bad.yaml: expect.says[0]: is no regular expression (Rust's regex, docs.rs/regex): regex parse error:
            bad.yaml: expect.says_not: must be a list
            bad.yaml: expect.fix: names no command: list the right ones, or write none where none is right
            bad.yaml: expect.turns_max: must be a whole number, 0 or more"#]].assert_eq(&shown.join("\n"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let problems = parse("empty.yaml", "{}").unwrap_err();
        let fields: Vec<&str> = problems.iter().map(|problem| problem.field.as_str()).collect();
        assert_eq!(fields, ["tools", "goal", "expect"]);
        assert!(
            parse("list.yaml", "[]").unwrap_err()[0]
                .message
                .contains("must be an object")
        );
        assert!(
            parse("none.yaml", "goal: [")
                .unwrap_err()
                .first()
                .unwrap()
                .message
                .contains("is not YAML or JSON")
        );
    }

    #[test]
    fn the_rest_has_defaults() {
        let case = parse(
            "case.yaml",
            "goal: why?\ntools: [kubectl]\nalert: {labels: {namespace: shop}}\nexpect: {says: [OOM]}\n",
        )
        .unwrap();
        assert_eq!(
            (case.namespace.as_str(), case.timeout, case.expect.status.as_str()),
            ("shop", Duration::from_secs(600), "complete")
        );
        assert!(case.expect.fix.is_none() && case.expect.grounded_min >= 1.0);
    }
}
