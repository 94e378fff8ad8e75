//! Loki: log lines, metric queries, and which labels there are. Lines are merged in the order of time, equal ones are
//! folded, and only the labels that tell streams apart are repeated.
//!
//! Invariants:
//! - Range and number of lines are bounded before anything is asked; what is cut or left out is said.
//! - A line is redacted before it is cut: half a secret at the edge would not be recognised.
//! - Errors and warnings of the server are passed on in its words.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use protocol::Timestamp;
use reqwest::StatusCode;
use serde_json::{Value, json};
use service::clock;

use super::{
    Surroundings, Tool, ToolError,
    query_api::{Api, Server},
    series::{self, duration_s},
};
use crate::redact::Redactor;

/// Lines that one call may ask for. Loki's own limit is 5000, more than a model should read at once.
const LINES_MAX: u64 = 1000;
/// Lines where the call does not say, as in Loki.
const LINES_DEFAULT: u64 = 100;
/// The longest range: Loki's own limit, where its configuration does not set another, is 30 days and an hour.
const RANGE_MAX_S: u64 = 30 * 86400;
/// The range where the call does not say, as in Loki.
const RANGE_DEFAULT_S: u64 = 3600;
/// Points of one series of a metric query over a range.
const POINTS: u64 = 120;
/// The least step of a metric query.
const STEP_MIN_S: u64 = 15;
/// Bytes of one line that are shown.
const LINE_BYTES_MAX: usize = 2000;
/// Bytes of one line that are searched for secrets: a secret that begins in what is shown is recognised within this.
const SEARCHED_BYTES_MAX: usize = 64 * 1024;
/// Bytes of the labels that stand before one line.
const LABELS_BYTES_MAX: usize = 300;
/// Names or values of labels that one result shows.
const VALUES_MAX: usize = 500;
/// Bytes of an error's text that are passed on.
const ERROR_BYTES_MAX: usize = 1000;
/// Bytes of a result that its head and its notes take.
const NOTES_BYTES: usize = 1024;

struct Logs {
    server: Server,
    redactor: Redactor,
    output_bytes_max: usize,
}

/// Makes the tool, for the workflow's `LOKI_URL`, else the configured address.
///
/// # Errors
/// When the address is none.
pub fn make(surroundings: &Surroundings<'_>) -> Result<Box<dyn Tool>, String> {
    let api = Api {
        name: "Loki",
        variable: "LOKI_URL",
        key: "tools.loki_url",
        configured: &surroundings.tools.loki_url,
        example: "http://loki:3100",
        smaller: "use a smaller limit or range, or a filter such as |= \"error\"",
    };
    let mut server = Server::new(surroundings, &api)?;
    if let Some(tenant) = &surroundings.tools.loki_tenant {
        server = server.with_header("x-scope-orgid", tenant)?;
    }
    Ok(Box::new(Logs {
        server,
        redactor: surroundings.redactor.clone(),
        output_bytes_max: surroundings.output_bytes_max,
    }))
}

impl Tool for Logs {
    fn description(&self) -> String {
        "Reads logs from Loki. With `query` (LogQL) alone it shows the newest lines of the last hour in the order of time; \
         a metric query such as sum by (pod) (rate({namespace=\"prod\"} |= \"error\" [5m])) is summarised for each \
         series. With `label` it lists the values of that label instead, or with \"*\" the labels there are: begin with \
         these where you do not know how streams are labelled."
            .to_owned()
    }

    fn schema(&self) -> Value {
        json!({
            "type": "object",
            "additionalProperties": false,
            "properties": {
                "query": {"type": ["string", "null"], "description": "LogQL, such as {namespace=\"prod\", pod=~\"web-.*\"} |= \"error\"; beside `label` only a selector of streams", "maxLength": 4000},
                "label": {"type": ["string", "null"], "description": "Lists the values of this label; \"*\" lists the labels", "maxLength": 200},
                "since": {"type": ["string", "null"], "description": "How far back from `end`, such as 30m, 6h, 2d; 1h where absent", "maxLength": 20},
                "start": {"type": ["string", "null"], "description": "Instead of `since`: the range's beginning, as RFC 3339", "maxLength": 40},
                "end": {"type": ["string", "null"], "description": "The range's end, as RFC 3339; now where absent", "maxLength": 40},
                "instant": {"type": ["boolean", "null"], "description": "Evaluates a metric query once, at `end`"},
                "limit": {"type": ["integer", "null"], "description": "Lines at most; 100 where absent", "minimum": 1, "maximum": LINES_MAX},
                "direction": {"type": ["string", "null"], "enum": ["backward", "forward", null], "description": "Which lines where there are more: the newest (backward, the default) or the oldest (forward)"},
            },
        })
    }

    fn call<'a>(&'a self, arguments: &'a Value) -> BoxFuture<'a, Result<String, ToolError>> {
        Box::pin(async {
            let ask = Ask::read(arguments, clock::now()).map_err(ToolError::Refused)?;
            self.ask(&ask).await.map_err(ToolError::Failed)
        })
    }
}

/// A call, as the API is asked.
#[derive(Debug)]
struct Ask {
    /// Below `loki/api/v1/`.
    path: String,
    parameters: Vec<(&'static str, String)>,
    /// What is listed, where labels are asked for.
    listed: Option<String>,
    start: Timestamp,
    end: Timestamp,
    step_s: u64,
    limit: u64,
    is_forward: bool,
}

impl Ask {
    fn read(arguments: &Value, now: Timestamp) -> Result<Self, String> {
        let text = |key: &str| {
            arguments[key]
                .as_str()
                .map(str::trim)
                .filter(|text| !text.is_empty())
        };
        let time = |key: &str| match text(key) {
            Some(time) => time
                .parse::<Timestamp>()
                .map(Some)
                .map_err(|error| format!("{key}: {error}")),
            None => Ok(None),
        };
        let (start, end) = range(time("start")?, time("end")?.unwrap_or(now), text("since"))?;
        let (query, label) = (text("query"), text("label"));
        let range_s = (end.as_millis() - start.as_millis()).unsigned_abs() / 1000;
        let mut ask = Self {
            path: String::new(),
            parameters: query
                .map(|query| ("query", query.to_owned()))
                .into_iter()
                .collect(),
            listed: None,
            start,
            end,
            step_s: (range_s / POINTS).max(STEP_MIN_S),
            limit: arguments["limit"].as_u64().unwrap_or(LINES_DEFAULT),
            is_forward: arguments["direction"] == "forward",
        };
        let nanoseconds = |at: Timestamp| (i128::from(at.as_millis()) * 1_000_000).to_string();
        let range = [("start", nanoseconds(start)), ("end", nanoseconds(end))];
        if let Some(label) = label {
            ask.path = match label {
                "*" => "labels".to_owned(),
                name if is_label(name) => format!("label/{name}/values"),
                other => {
                    return Err(format!(
                        "`{other}` is no label's name; use one such as namespace, or * for the labels there are"
                    ));
                }
            };
            ask.listed = Some(label.to_owned());
            ask.parameters.extend(range);
            return Ok(ask);
        }
        if query.is_none() {
            return Err(
                "there is nothing to ask: give a `query`, or a `label` (* lists the labels)".to_owned(),
            );
        }
        if arguments["instant"] == true {
            ask.path = "query".to_owned();
            ask.parameters.push(("time", nanoseconds(end)));
            return Ok(ask);
        }
        ask.path = "query_range".to_owned();
        ask.parameters.extend(range);
        ask.parameters.extend([
            ("limit", ask.limit.to_string()),
            (
                "direction",
                if ask.is_forward { "forward" } else { "backward" }.to_owned(),
            ),
            ("step", ask.step_s.to_string()),
        ]);
        Ok(ask)
    }
}

/// The range that a call means, bounded.
fn range(
    start: Option<Timestamp>,
    end: Timestamp,
    since: Option<&str>,
) -> Result<(Timestamp, Timestamp), String> {
    let start = match (start, since) {
        (Some(_), Some(_)) => {
            return Err("`since` and `start` exclude each other: give one of them".to_owned());
        }
        (Some(start), None) => start,
        (None, since) => {
            let since_s = match since {
                Some(since) => duration_s(since)
                    .filter(|since| (1..=RANGE_MAX_S).contains(since))
                    .ok_or("`since` is no duration up to 30 days; use one such as 30m, 6h or 2d")?,
                None => RANGE_DEFAULT_S,
            };
            // At most 30 days, so it fits.
            Timestamp::from_millis(end.as_millis().saturating_sub(since_s as i64 * 1000))
        }
    };
    let range_ms = end.as_millis().saturating_sub(start.as_millis());
    if range_ms <= 0 {
        return Err(format!(
            "the range is empty: it would begin at {start} and end at {end}"
        ));
    }
    if range_ms > RANGE_MAX_S as i64 * 1000 {
        return Err("the range is longer than 30 days: ask for less".to_owned());
    }
    Ok((start, end))
}

/// Whether Loki takes it for the name of a label; what is not could leave its place in the address.
fn is_label(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}

impl Logs {
    async fn ask(&self, ask: &Ask) -> Result<String, String> {
        let path = format!("loki/api/v1/{}", ask.path);
        let (status, body) = self.server.get(&path, &ask.parameters).await?;
        let answer = serde_json::from_slice::<Value>(&body).ok();
        match answer {
            Some(answer) if status.is_success() && answer["status"] == "success" => {
                Ok(self.shown(&answer, ask))
            }
            None if status.is_success() => Err(self.server.is_another(status)),
            answer => Err(self.error(status, answer.as_ref(), &body)),
        }
    }

    /// Loki's errors are plain text; a gateway's may be JSON, or a page.
    fn error(&self, status: StatusCode, answer: Option<&Value>, body: &[u8]) -> String {
        let told = ["error", "message"]
            .into_iter()
            .find_map(|key| answer?[key].as_str().map(str::to_owned));
        let told = told.unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned());
        let told = match told.as_str() {
            "" => "no reason given",
            told => told,
        };
        let told = cut_line(&self.redactor, told, ERROR_BYTES_MAX);
        let remedy = match status {
            StatusCode::UNAUTHORIZED if told.contains("org id") => {
                "; the operator names a tenant in tools.loki_tenant"
            }
            StatusCode::NOT_FOUND => "; what answers there is perhaps no Loki",
            _ => "",
        };
        format!("Loki answered {}: {told}{remedy}", status.as_u16())
    }

    fn shown(&self, answer: &Value, ask: &Ask) -> String {
        let mut lines = series::notices(answer);
        let data = &answer["data"];
        if let Some(label) = &ask.listed {
            listed(&self.redactor, &mut lines, data, label);
        } else if data["resultType"] == "streams" {
            self.streams(&mut lines, &data["result"], ask);
        } else {
            let window = (ask.start, ask.end, ask.step_s);
            if !series::results(&mut lines, data, Some(window)) {
                lines.push("Loki gave a kind of result that is not known here".to_owned());
            }
        }
        lines.join("\n")
    }

    fn streams(&self, lines: &mut Vec<String>, result: &Value, ask: &Ask) {
        let streams = result.as_array().map_or(&[][..], Vec::as_slice);
        let (entries, unreadable) = entries(streams, ask.is_forward);
        let range = format!("from {} to {}", ask.start, ask.end);
        if unreadable > 0 {
            lines.push(format!(
                "{unreadable} entries are not as Loki writes them, and are not shown"
            ));
        }
        if entries.is_empty() {
            lines.push(format!("no lines match {range}"));
            return;
        }
        let (common, differing) = labels(&self.redactor, streams);
        let total = entries.len();
        lines.push(format!(
            "{total} lines of {} streams {range}, oldest first",
            streams.len()
        ));
        if !common.is_empty() {
            lines.push(format!("all of {}", labels_text(&self.redactor, &common)));
        }
        let (sides, cut_side) = match ask.is_forward {
            true => (["oldest", "newer"], "end"),
            false => (["newest", "older"], "beginning"),
        };
        if total as u64 >= ask.limit {
            lines.push(format!(
                "these are the {} {}; {} ones may follow: use a filter, another range, or a larger limit (up to {LINES_MAX})",
                sides[0], ask.limit, sides[1]
            ));
        }
        let shown: Vec<(usize, String)> = folded(&entries)
            .into_iter()
            .map(|fold| (fold.count, self.line(&fold, &differing)))
            .collect();
        let bytes_max = self.output_bytes_max.saturating_sub(NOTES_BYTES);
        let (kept, left_out) = kept(shown, bytes_max, ask.is_forward);
        let note = (left_out > 0).then(|| {
            format!("[… {left_out} lines at the {cut_side} left out: more than {bytes_max} bytes; ask for a smaller range or limit …]")
        });
        if ask.is_forward {
            lines.extend(kept);
            lines.extend(note);
        } else {
            lines.extend(note);
            lines.extend(kept);
        }
    }

    fn line(&self, fold: &Fold<'_>, differing: &[String]) -> String {
        let mut text = time(fold.first);
        if let Some(labels) = differing.get(fold.stream).filter(|labels| !labels.is_empty()) {
            text.push_str(&format!(" {labels}"));
        }
        let line = cut_line(&self.redactor, fold.line.trim_end(), LINE_BYTES_MAX);
        text.push_str(&format!(" {}", line.replace('\n', "\n    ")));
        if fold.count > 1 {
            text.push_str(&format!(" (×{}, until {})", fold.count, time(fold.last)));
        }
        text
    }
}

/// One line of one stream.
struct Entry<'a> {
    /// Nanoseconds since 1970.
    at: i64,
    stream: usize,
    line: &'a str,
}

/// Equal lines that follow each other.
struct Fold<'a> {
    first: i64,
    last: i64,
    stream: usize,
    line: &'a str,
    count: usize,
}

/// The lines of all streams in the order of time, and how many could not be read.
fn entries(streams: &[Value], is_forward: bool) -> (Vec<Entry<'_>>, usize) {
    let mut entries = Vec::new();
    let mut unreadable = 0;
    for (stream, item) in streams.iter().enumerate() {
        let first = entries.len();
        for value in item["values"].as_array().into_iter().flatten() {
            match (
                value[0].as_str().and_then(|at| at.parse().ok()),
                value[1].as_str(),
            ) {
                (Some(at), Some(line)) => entries.push(Entry { at, stream, line }),
                _ => unreadable += 1,
            }
        }
        if !is_forward {
            // The newest came first. Turned round, lines of the same instant stay in their order.
            entries[first..].reverse();
        }
    }
    entries.sort_by_key(|entry| entry.at);
    (entries, unreadable)
}

fn folded<'a>(entries: &[Entry<'a>]) -> Vec<Fold<'a>> {
    let mut folds: Vec<Fold<'a>> = Vec::new();
    for entry in entries {
        match folds.last_mut() {
            Some(fold) if (fold.stream, fold.line) == (entry.stream, entry.line) => {
                fold.last = entry.at;
                fold.count += 1;
            }
            _ => folds.push(Fold {
                first: entry.at,
                last: entry.at,
                stream: entry.stream,
                line: entry.line,
                count: 1,
            }),
        }
    }
    folds
}

/// What fits `bytes_max` from the side that was asked for, and the number of lines that do not.
fn kept(mut shown: Vec<(usize, String)>, bytes_max: usize, is_forward: bool) -> (Vec<String>, usize) {
    if !is_forward {
        shown.reverse();
    }
    let mut bytes = 0;
    let fitting = shown
        .iter()
        .take_while(|(_, line)| {
            bytes += line.len() + 1;
            bytes <= bytes_max
        })
        .count()
        .max(1);
    let left_out = shown.iter().skip(fitting).map(|(count, _)| count).sum();
    let mut kept: Vec<String> = shown.into_iter().take(fitting).map(|(_, line)| line).collect();
    if !is_forward {
        kept.reverse();
    }
    (kept, left_out)
}

/// The labels that all streams share, and for each stream the others as text.
fn labels<'v>(redactor: &Redactor, streams: &'v [Value]) -> (BTreeMap<&'v str, &'v str>, Vec<String>) {
    let mut common: BTreeMap<&str, &str> = pairs(streams.first());
    for stream in streams.iter().skip(1) {
        common.retain(|name, value| stream["stream"][*name].as_str() == Some(*value));
    }
    let differing = streams
        .iter()
        .map(|stream| {
            let mut own = pairs(Some(stream));
            own.retain(|name, _| !common.contains_key(name));
            match own.is_empty() {
                true => String::new(),
                false => labels_text(redactor, &own),
            }
        })
        .collect();
    (common, differing)
}

fn pairs(stream: Option<&Value>) -> BTreeMap<&str, &str> {
    stream
        .and_then(|stream| stream["stream"].as_object())
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)))
        .collect()
}

/// Labels as LogQL writes them, so that they can be used in the next query; redacted before they are cut.
fn labels_text(redactor: &Redactor, labels: &BTreeMap<&str, &str>) -> String {
    let pairs: Vec<String> = labels
        .iter()
        .map(|(name, value)| format!("{name}={}", Value::from(*value)))
        .collect();
    let mut text = redactor.text(&format!("{{{}}}", pairs.join(", ")));
    if text.len() > LABELS_BYTES_MAX {
        let at = text.floor_char_boundary(LABELS_BYTES_MAX);
        let rest = text.len() - at;
        text.truncate(at);
        text.push_str(&format!("… [{rest} bytes of labels cut]}}"));
    }
    text
}

/// Names or values of labels.
fn listed(redactor: &Redactor, lines: &mut Vec<String>, data: &Value, label: &str) {
    let values: Vec<&str> = data
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let of = match label {
        "*" => "labels".to_owned(),
        label => format!("values of {label}"),
    };
    lines.push(match values.len() {
        0 => format!("no {of} in this range"),
        count => format!("{count} {of}"),
    });
    lines.extend(values.iter().take(VALUES_MAX).map(|value| {
        let value = redactor.text(value);
        let at = value.floor_char_boundary(LABELS_BYTES_MAX);
        if at < value.len() {
            format!("{}… [{} bytes cut]", &value[..at], value.len() - at)
        } else {
            value
        }
    }));
    if values.len() > VALUES_MAX {
        lines.push(format!(
            "… {} more left out; give a `query` that selects fewer streams",
            values.len() - VALUES_MAX
        ));
    }
}

/// `line` where it has at most `bytes_max` bytes, else its beginning, redacted before the cut.
fn cut_line(redactor: &Redactor, line: &str, bytes_max: usize) -> String {
    if line.len() <= bytes_max {
        return line.to_owned();
    }
    let searched = &line[..line.floor_char_boundary(SEARCHED_BYTES_MAX)];
    let redacted = redactor.text(searched);
    let at = redacted.floor_char_boundary(bytes_max);
    let rest = redacted.len() - at + line.len() - searched.len();
    match rest {
        0 => redacted,
        rest => format!("{}… [{rest} bytes of this line cut]", &redacted[..at]),
    }
}

/// A time to the millisecond.
fn time(nanoseconds: i64) -> String {
    Timestamp::from_millis(nanoseconds.div_euclid(1_000_000)).to_string()
}
