//! A provider without a model: its turns are read from a file, and what it says is cut out of what its
//! tools really returned. For tests and the demo; `docs/scripted-provider.md` documents the format.
//!
//! ```yaml
//! let:                                  # texts cut out before the first turn
//!   pod: {from: goal, match: 'pod=(\S+)', else: web-1}
//! turns:
//!   - text: I look at the pod ${pod}.   # what it says
//!     calls:                            # what it calls
//!       - {name: pods, tool: kubectl, arguments: {args: [get, pods]}}
//!   - let:                              # cut out before this turn
//!       line: {from: pods, match: '(?m)^${pod}.*$', else: no such pod}
//!     submit_findings:
//!       summary: "The pod is listed as: ${line}"
//!       findings: ["${line}", {text: It crashes., when: {from: pods, match: CrashLoop}}]
//!       confidence: 0.8
//!       evidence: [{call: pods, match: '(?m)^${pod}.*$'}]
//! ```
//!
//! Invariants: the same request always leads to the same answer; a text that is not in a result is never
//! claimed to be (evidence whose pattern matches nothing is left out); the file's name cannot leave the
//! configured directory. That its findings lead to no fix is seen to where findings are judged, by the
//! provider's name.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::future::BoxFuture;
use protocol::turns::{ToolCall, Usage};
use regex::{Captures, Regex};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Answer, LlmError, LlmErrorKind, Message, Provider, Request, Stop};

/// The provider's name.
pub const NAME: &str = "scripted";
/// Bytes of the largest script that is read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Matches that `join` and `count` look at.
const MATCHES_MAX: usize = 1000;
/// Matches that `join` joins.
const JOINED_MAX: usize = 20;
const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];

/// A provider that plays one file.
#[derive(Debug)]
pub struct Scripted {
    model: String,
    script: Script,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Script {
    /// For readers of the file.
    #[serde(default, rename = "description")]
    _description: Option<String>,
    #[serde(default, rename = "let")]
    cuts: Map<String, Value>,
    turns: Vec<ScriptedTurn>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ScriptedTurn {
    #[serde(rename = "let")]
    cuts: Map<String, Value>,
    text: String,
    calls: Vec<ScriptedCall>,
    submit_findings: Option<Map<String, Value>>,
    pause_ms: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScriptedCall {
    #[serde(default)]
    name: Option<String>,
    tool: String,
    #[serde(default)]
    arguments: Value,
}

/// A text to cut out.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cut {
    from: Sources,
    #[serde(rename = "match")]
    pattern: String,
    /// All matches, with this between them.
    #[serde(default)]
    join: Option<String>,
    /// How many matches there are.
    #[serde(default)]
    count: bool,
    #[serde(default, rename = "else")]
    fallback: Option<String>,
}

/// A condition on an item of a list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct When {
    from: Sources,
    #[serde(rename = "match")]
    pattern: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    text: Value,
    #[serde(default)]
    when: Option<When>,
    #[serde(default)]
    unless: Option<When>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Quote {
    call: Name,
    #[serde(default)]
    quote: Option<String>,
    #[serde(default, rename = "match")]
    pattern: Option<String>,
    #[serde(default, rename = "else")]
    fallback: Option<String>,
}

/// `goal`, `last`, or the name or number of a call; of several, the first in which the pattern matches.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Sources {
    One(Name),
    Several(Vec<Name>),
}

/// A name, or a number that may be written without quotes.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "NameForm")]
struct Name(String);

#[derive(Deserialize)]
#[serde(untagged)]
enum NameForm {
    Text(String),
    Number(u32),
}

impl From<NameForm> for Name {
    fn from(form: NameForm) -> Self {
        match form {
            NameForm::Text(text) => Self(text),
            NameForm::Number(number) => Self(number.to_string()),
        }
    }
}

impl Sources {
    fn names(&self) -> impl Iterator<Item = &str> {
        let names = match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Several(names) => names,
        };
        names.iter().map(|name| name.0.as_str())
    }
}

impl Scripted {
    /// Reads `<dir>/<model>.yaml`, `.yml` or `.json`; `model` may also bring its ending.
    ///
    /// # Errors
    /// When there is no such file, it is no script, or the name would leave the directory.
    pub fn load(dir: Option<&Path>, model: &str) -> Result<Self, LlmError> {
        let failed = |message: String| error(model, message);
        let dir = dir.ok_or_else(|| {
            failed(
                "the scripted provider is off: set llm.scripted_dir to the directory of its files".to_owned(),
            )
        })?;
        let path = find(dir, model).map_err(failed)?;
        let text = read(&path).map_err(|reason| failed(format!("{}: {reason}", path.display())))?;
        Self::parse(model, &text).map_err(|reason| failed(format!("{}: {reason}", path.display())))
    }

    /// Reads a script's text. JSON is YAML too.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(model: &str, text: &str) -> Result<Self, String> {
        let value: Value =
            serde_saphyr::from_str(text).map_err(|error| format!("is not YAML or JSON: {error}"))?;
        let script: Script =
            serde_json::from_value(value).map_err(|error| format!("is not a script: {error}"))?;
        script.check()?;
        Ok(Self {
            model: model.to_owned(),
            script,
        })
    }

    fn play(&self, request: &Request<'_>) -> Result<(Answer, Duration), String> {
        let scene = Scene::of(&self.script, request);
        let played = request
            .messages
            .iter()
            .filter(|m| matches!(m, Message::Assistant { .. }))
            .count();
        // On the reserved last turn only the ending is offered, so the script skips to its own.
        let at = match request.must_call {
            Some(_) => self
                .script
                .turns
                .iter()
                .position(|turn| turn.submit_findings.is_some()),
            None => Some(played),
        };
        let turn = at.and_then(|at| self.script.turns.get(at)).ok_or_else(|| {
            format!(
                "the script has {} turns, and a turn after them was asked for; let its last turn be `submit_findings`",
                self.script.turns.len()
            )
        })?;
        let at = at.unwrap_or_default();
        let scene = scene.cut_until(&self.script, at)?;
        let answer = scene.answer(&self.script, at, turn)?;
        Ok((answer, Duration::from_millis(turn.pause_ms)))
    }
}

impl Provider for Scripted {
    fn name(&self) -> &'static str {
        NAME
    }

    fn model(&self) -> &str {
        &self.model
    }

    fn answer<'a>(&'a self, request: &'a Request<'a>) -> BoxFuture<'a, Result<Answer, LlmError>> {
        Box::pin(async move {
            let (answer, pause) = self.play(request).map_err(|reason| error(&self.model, reason))?;
            let timed_out = || LlmError {
                kind: LlmErrorKind::Deadline,
                ..error(
                    &self.model,
                    "the time was over before the scripted pause was".to_owned(),
                )
            };
            tokio::time::timeout_at(request.deadline, tokio::time::sleep(pause))
                .await
                .map_err(|_| timed_out())?;
            Ok(answer)
        })
    }
}

fn error(model: &str, message: String) -> LlmError {
    LlmError {
        provider: NAME,
        model: model.to_owned(),
        message,
        kind: LlmErrorKind::Permanent,
        usage: Usage::default(),
    }
}

fn find(dir: &Path, model: &str) -> Result<PathBuf, String> {
    // One plain file name: no separators, no parent, nothing hidden.
    let is_plain = !model.starts_with('.')
        && (1..=200).contains(&model.len())
        && model
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if !is_plain {
        return Err(
            "the model of `scripted` is the name of a file: use letters, digits, `.`, `_` and `-`".to_owned(),
        );
    }
    let named = EXTENSIONS
        .iter()
        .map(|extension| dir.join(format!("{model}.{extension}")));
    let itself = EXTENSIONS
        .iter()
        .filter(|extension| model.ends_with(&format!(".{extension}")))
        .map(|_| dir.join(model));
    named.chain(itself).find(|path| path.is_file()).ok_or_else(|| {
        format!(
            "there is no {model}.yaml, {model}.yml or {model}.json in {} (llm.scripted_dir)",
            dir.display()
        )
    })
}

fn read(path: &Path) -> Result<String, String> {
    let bytes = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(format!(
            "has {bytes} bytes, and a script may have {FILE_BYTES_MAX}"
        ));
    }
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

impl Script {
    /// Finds what would otherwise only show when a turn is played.
    fn check(&self) -> Result<(), String> {
        if self.turns.is_empty() {
            return Err("has no turns".to_owned());
        }
        for (name, value) in self
            .cuts
            .iter()
            .chain(self.turns.iter().flat_map(|turn| &turn.cuts))
        {
            let cut = cut(name, value)?;
            // Names inside a pattern stand for text, so any text will do for the check.
            let pattern = substitute(&cut.pattern, &|_| Some("x".to_owned()))?;
            regex(&pattern)?;
        }
        for (at, turn) in self.turns.iter().enumerate() {
            if turn.submit_findings.is_some() && !turn.calls.is_empty() {
                return Err(format!(
                    "turn {}: has both calls and submit_findings; give each a turn of its own",
                    at + 1
                ));
            }
            if turn.submit_findings.is_none() && turn.calls.is_empty() && turn.text.is_empty() {
                return Err(format!(
                    "turn {}: is empty; give it text, calls or submit_findings",
                    at + 1
                ));
            }
        }
        Ok(())
    }

    /// The number, from 1 over the whole script, of the first call of turn `at`.
    fn first_number(&self, at: usize) -> usize {
        1 + self
            .turns
            .iter()
            .take(at)
            .map(|turn| turn.calls.len())
            .sum::<usize>()
    }

    /// The id of the call with this name or number.
    fn call_id(&self, name: &str) -> Option<String> {
        let calls = self.turns.iter().flat_map(|turn| &turn.calls);
        let numbered = (1_usize..).zip(calls);
        numbered
            .into_iter()
            .find(|(number, call)| call.name.as_deref() == Some(name) || number.to_string() == name)
            .map(|(number, _)| call_id(number))
    }
}

fn call_id(number: usize) -> String {
    format!("call_{number}")
}

fn cut(name: &str, value: &Value) -> Result<Cut, String> {
    Cut::deserialize(value).map_err(|error| format!("let {name}: {error}"))
}

fn regex(pattern: &str) -> Result<Regex, String> {
    Regex::new(pattern).map_err(|error| format!("`{pattern}` is not a regular expression: {error}"))
}

/// `${name}` replaced by its text, `$$` by `$`.
fn substitute(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            let value =
                lookup(name).ok_or_else(|| format!("`${{{name}}}` was not cut out by any `let` so far"))?;
            result.push_str(&value);
            rest = after;
        } else {
            result.push('$');
        }
    }
    result.push_str(rest);
    Ok(result)
}

/// What a turn can cut from.
struct Scene<'a> {
    script: &'a Script,
    goal: &'a str,
    /// Call id and recorded result, in order.
    results: Vec<(&'a str, &'a str)>,
    cuts: Vec<(String, String)>,
}

impl<'a> Scene<'a> {
    fn of(script: &'a Script, request: &Request<'a>) -> Self {
        let results = request.messages.iter().filter_map(|message| match message {
            Message::Results(results) => Some(results),
            Message::User(_) | Message::Assistant { .. } => None,
        });
        Self {
            script,
            goal: request.goal,
            results: results
                .flatten()
                .map(|result| (result.call_id.as_str(), result.recorded.as_str()))
                .collect(),
            cuts: Vec::new(),
        }
    }

    /// Makes every cut of the script up to turn `at`.
    fn cut_until(mut self, script: &Script, at: usize) -> Result<Self, String> {
        let turns = script.turns.iter().take(at + 1).flat_map(|turn| &turn.cuts);
        for (name, value) in script.cuts.iter().chain(turns) {
            let text = self.make(name, &cut(name, value)?)?;
            self.cuts.push((name.clone(), text));
        }
        Ok(self)
    }

    fn make(&self, name: &str, cut: &Cut) -> Result<String, String> {
        let pattern = self.pattern(&cut.pattern)?;
        let mut found = Vec::new();
        for source in cut.from.names() {
            let text = self.source(source)?.unwrap_or_default();
            found = pattern
                .captures_iter(text)
                .take(MATCHES_MAX)
                .map(|captures| captured(&captures))
                .collect();
            if !found.is_empty() {
                break;
            }
        }
        if cut.count {
            return Ok(found.len().to_string());
        }
        if let (Some(separator), false) = (&cut.join, found.is_empty()) {
            found.truncate(JOINED_MAX);
            return Ok(found.join(separator));
        }
        match (found.into_iter().next(), &cut.fallback) {
            (Some(text), _) => Ok(text),
            (None, Some(fallback)) => self.text(fallback),
            (None, None) => Err(format!(
                "let {name}: `{pattern}` matches nothing in {}, and there is no `else`",
                cut.from.names().collect::<Vec<_>>().join(", ")
            )),
        }
    }

    /// `None` where the call has not been made.
    fn source(&self, name: &str) -> Result<Option<&'a str>, String> {
        match name {
            "goal" => Ok(Some(self.goal)),
            "last" => Ok(self.results.last().map(|(_, text)| *text)),
            name => {
                let id = self.script.call_id(name).ok_or_else(|| {
                    format!("`{name}` is no source: use goal, last, or the name or number of a call")
                })?;
                Ok(self
                    .results
                    .iter()
                    .find(|(call, _)| *call == id)
                    .map(|(_, text)| *text))
            }
        }
    }

    fn value_of(&self, name: &str) -> Option<String> {
        self.cuts
            .iter()
            .rev()
            .find(|(known, _)| known == name)
            .map(|(_, text)| text.clone())
    }

    fn text(&self, text: &str) -> Result<String, String> {
        substitute(text, &|name| self.value_of(name))
    }

    /// A pattern, in which `${name}` stands for the very text.
    fn pattern(&self, pattern: &str) -> Result<Regex, String> {
        let lookup = |name: &str| self.value_of(name).map(|text| regex::escape(&text));
        regex(&substitute(pattern, &lookup)?)
    }

    fn fill(&self, value: &Value) -> Result<Value, String> {
        Ok(match value {
            Value::String(text) => Value::String(self.text(text)?),
            Value::Array(items) => Value::Array(
                items
                    .iter()
                    .map(|item| self.fill(item))
                    .collect::<Result<_, _>>()?,
            ),
            Value::Object(fields) => {
                let filled = fields
                    .iter()
                    .map(|(key, value)| Ok((key.clone(), self.fill(value)?)));
                Value::Object(filled.collect::<Result<_, String>>()?)
            }
            other => other.clone(),
        })
    }

    fn answer(&self, script: &Script, at: usize, turn: &ScriptedTurn) -> Result<Answer, String> {
        let calls = match &turn.submit_findings {
            Some(findings) => vec![ToolCall {
                id: "call_findings".to_owned(),
                tool: "submit_findings".to_owned(),
                arguments: self.findings(findings)?,
            }],
            None => (script.first_number(at)..)
                .zip(&turn.calls)
                .map(|(number, call)| self.call(number, call))
                .collect::<Result<_, _>>()?,
        };
        Ok(Answer {
            text: self.text(&turn.text)?,
            stop_reason: if calls.is_empty() { "end_turn" } else { "tool_use" }.to_owned(),
            calls,
            stop: Stop::Finished,
            usage: Usage::default(),
            model: None,
        })
    }

    fn call(&self, number: usize, call: &ScriptedCall) -> Result<ToolCall, String> {
        let arguments = match &call.arguments {
            Value::Null => json!({}),
            given => self.fill(given)?,
        };
        Ok(ToolCall {
            id: call_id(number),
            tool: call.tool.clone(),
            arguments,
        })
    }

    fn findings(&self, written: &Map<String, Value>) -> Result<Value, String> {
        let mut findings = Map::new();
        for (key, value) in written {
            let value = match (key.as_str(), value) {
                ("evidence", Value::Array(quotes)) => self.evidence(quotes)?,
                (_, Value::Array(items)) => self.items(key, items)?,
                (_, value) => self.fill(value)?,
            };
            findings.insert(key.clone(), value);
        }
        Ok(Value::Object(findings))
    }

    /// A list, without the items whose condition is not met.
    fn items(&self, key: &str, items: &[Value]) -> Result<Value, String> {
        let mut kept = Vec::new();
        for item in items {
            if !item.is_object() {
                kept.push(self.fill(item)?);
                continue;
            }
            let item = Item::deserialize(item).map_err(|error| format!("{key}: {error}"))?;
            let holds = |when: &Option<When>, otherwise: bool| match when {
                Some(when) => self.holds(when),
                None => Ok(otherwise),
            };
            if holds(&item.when, true)? && !holds(&item.unless, false)? {
                kept.push(self.fill(&item.text)?);
            }
        }
        Ok(Value::Array(kept))
    }

    fn holds(&self, when: &When) -> Result<bool, String> {
        let pattern = self.pattern(&when.pattern)?;
        for source in when.from.names() {
            if self.source(source)?.is_some_and(|text| pattern.is_match(text)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn evidence(&self, quotes: &[Value]) -> Result<Value, String> {
        let mut evidence = Vec::new();
        for quote in quotes {
            let quote = Quote::deserialize(quote).map_err(|error| format!("evidence: {error}"))?;
            let call_id = self
                .script
                .call_id(&quote.call.0)
                .ok_or_else(|| format!("evidence: there is no call `{}`", quote.call.0))?;
            let cut = match (&quote.quote, &quote.pattern) {
                (Some(text), None) => Some(self.text(text)?),
                (None, Some(pattern)) => {
                    let pattern = self.pattern(pattern)?;
                    let result = self.source(&quote.call.0)?.unwrap_or_default();
                    let found = pattern.captures(result).map(|captures| captured(&captures));
                    match (found, &quote.fallback) {
                        (None, Some(fallback)) => Some(self.text(fallback)?),
                        (found, _) => found,
                    }
                }
                _ => return Err("evidence: give each item either `match` or `quote`".to_owned()),
            };
            if let Some(quote) = cut.filter(|quote| !quote.trim().is_empty()) {
                evidence.push(json!({"call_id": call_id, "quote": quote}));
            }
        }
        Ok(Value::Array(evidence))
    }
}

/// The first group where the pattern has one, else the whole match.
fn captured(captures: &Captures<'_>) -> String {
    captures
        .get(1)
        .or_else(|| captures.get(0))
        .map_or_else(String::new, |found| found.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::time::Instant;

    use super::{super::ToolResult, *};

    const SCRIPT: &str = r#"
description: A crashing pod.
let:
  pod: {from: goal, match: 'pod=(\S+)', else: web-1}
turns:
  - text: "I list the pods around ${pod}; that costs $$0."
    calls:
      - {name: pods, tool: kubectl, arguments: {args: [get, pod, "${pod}"]}}
      - {tool: promql, arguments: {query: up}}
  - let:
      line: {from: pods, match: '(?m)^${pod}\s.*$', else: "${pod} is not listed"}
      ups: {from: [1, "2"], match: 'up', count: true}
    submit_findings:
      summary: "Listed as ${line}; ${ups} up"
      confidence: 0.9
      findings:
        - "${line}"
        - {text: It crash-loops., when: {from: pods, match: CrashLoopBackOff}}
        - {text: It is well., unless: {from: pods, match: CrashLoopBackOff}}
      evidence:
        - {call: pods, match: '(?m)^${pod}\s.*$'}
        - {call: 2, match: never there}
        - {call: "2", match: never there, else: claimed all the same}
"#;

    fn script() -> Scripted {
        Scripted::parse("demo", SCRIPT).unwrap()
    }

    fn request<'a>(messages: &'a [Message], must_call: Option<&'a str>) -> Request<'a> {
        Request {
            system: "",
            goal: "look at pod=web.7 now",
            messages,
            tools: &[],
            must_call,
            output_tokens_max: 1,
            deadline: Instant::now() + Duration::from_secs(60),
            idempotency_key: "key",
        }
    }

    fn result(call_id: &str, recorded: &str) -> ToolResult {
        ToolResult {
            call_id: call_id.to_owned(),
            recorded: recorded.to_owned(),
            shown: String::new(),
            is_error: false,
        }
    }

    #[tokio::test]
    async fn texts_and_quotes_are_cut_from_goal_and_results() {
        let script = script();
        let first = script
            .answer(&request(&[Message::User("go".into())], None))
            .await
            .unwrap();
        assert_eq!(first.text, "I list the pods around web.7; that costs $0.");
        assert_eq!(first.calls[0].id, "call_1");
        assert_eq!(first.calls[0].arguments, json!({"args": ["get", "pod", "web.7"]}));
        let messages = [
            Message::User("go".into()),
            Message::Assistant {
                text: first.text,
                calls: first.calls,
            },
            Message::Results(vec![
                result("call_1", "NAME READY\nwebx7 1/1\nweb.7   0/1 CrashLoopBackOff"),
                result("call_2", "up up"),
            ]),
        ];
        let last = script.answer(&request(&messages, None)).await.unwrap();
        assert_eq!(
            last.calls[0].arguments,
            json!({
                "summary": "Listed as web.7   0/1 CrashLoopBackOff; 2 up",
                "confidence": 0.9,
                "findings": ["web.7   0/1 CrashLoopBackOff", "It crash-loops."],
                "evidence": [
                    {"call_id": "call_1", "quote": "web.7   0/1 CrashLoopBackOff"},
                    {"call_id": "call_2", "quote": "claimed all the same"},
                ],
            })
        );
    }

    #[tokio::test]
    async fn the_reserved_last_turn_skips_to_the_findings() {
        let messages = [Message::User("go".into())];
        let answer = script()
            .answer(&request(&messages, Some("submit_findings")))
            .await
            .unwrap();
        assert_eq!(
            answer.calls[0].arguments["findings"],
            json!(["web.7 is not listed", "It is well."])
        );
    }

    #[tokio::test]
    async fn a_turn_after_the_last_is_an_error() {
        let said = || Message::Assistant {
            text: "x".into(),
            calls: vec![],
        };
        let error = script()
            .answer(&request(&[said(), said()], None))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("the script has 2 turns"), "{error}");
    }

    #[test]
    fn what_is_wrong_with_a_script_is_said_when_it_is_read() {
        for (text, said) in [
            ("turns: []", "has no turns"),
            ("turns: [{}]", "turn 1: is empty"),
            ("turns: [{text: a, tex: b}]", "unknown field `tex`"),
            (
                "turns: [{text: a, let: {x: {from: goal, match: '('}}}]",
                "not a regular expression",
            ),
            (
                "turns: [{submit_findings: {}, calls: [{tool: a}]}]",
                "both calls and submit_findings",
            ),
            ("a: [", "is not YAML or JSON"),
        ] {
            let error = Scripted::parse("m", text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn the_name_cannot_leave_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("scripts");
        std::fs::create_dir(&inner).unwrap();
        std::fs::write(dir.path().join("outside.yaml"), "turns: [{text: a}]").unwrap();
        std::fs::write(inner.join("a.yml"), "turns: [{text: a}]").unwrap();
        std::fs::write(inner.join("b.json"), r#"{"turns": [{"text": "a"}]}"#).unwrap();
        for good in ["a", "b", "b.json"] {
            assert!(Scripted::load(Some(&inner), good).is_ok(), "{good}");
        }
        let absolute = dir.path().join("outside").display().to_string();
        for bad in ["../outside", "..", ".hidden", "", "a/../a", "c", &absolute, "a\0"] {
            let error = Scripted::load(Some(&inner), bad).unwrap_err();
            assert_eq!(error.kind, LlmErrorKind::Permanent, "{bad}");
        }
        let off = Scripted::load(None, "a").unwrap_err();
        assert!(off.to_string().contains("llm.scripted_dir"), "{off}");
    }
}
