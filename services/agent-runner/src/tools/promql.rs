//! Prometheus: instant and range queries. Series are summarised, since a model reads numbers badly and pays for each.
//!
//! Invariants: what is left out is said; errors and warnings of the server are passed on in its words.

use std::time::Duration;

use futures_util::{StreamExt as _, future::BoxFuture};
use protocol::Timestamp;
use reqwest::{Client, Url};
use serde_json::{Value, json};
use service::clock;

use super::{Surroundings, Tool, ToolError};
use crate::web::{self, cause};

/// Series that one result shows.
const SERIES_MAX: usize = 60;
/// Points of one series that are asked for, where the query does not say a step.
const POINTS: u64 = 120;
/// Points of one series that may be asked for.
const POINTS_MAX: u64 = 5000;
/// The least step that is chosen: the usual scrape interval.
const STEP_MIN_S: u64 = 15;
/// The longest range: a year.
const RANGE_MAX_S: u64 = 366 * 86400;
/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

struct Promql {
    client: Client,
    base: Url,
}

/// Makes the tool, for the workflow's `PROMETHEUS_URL`, else the configured address.
///
/// # Errors
/// When the address is none.
pub fn make(surroundings: &Surroundings<'_>) -> Result<Box<dyn Tool>, String> {
    let of_workflow = surroundings
        .env
        .get("PROMETHEUS_URL")
        .and_then(Value::as_str)
        .filter(|url| !url.trim().is_empty());
    let (text, source) = match of_workflow {
        Some(url) => (url, "the workflow's PROMETHEUS_URL"),
        None => (surroundings.tools.prometheus_url.as_str(), "tools.prometheus_url"),
    };
    let base = Url::parse(text.trim())
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or_else(|| format!("{source} is no address; use one such as http://prometheus:9090"))?;
    let client = web::client(&base, Duration::from_secs(5), |builder| builder)?;
    Ok(Box::new(Promql { client, base }))
}

impl Tool for Promql {
    fn description(&self) -> String {
        "Asks Prometheus. Without `range` the query is evaluated once, and each series has one value; with `range` it is \
         evaluated over that time up to now (or `time`), and each series is summarised as count, min, mean, max, last and \
         trend. At most 60 series are shown, so aggregate (sum by, topk)."
            .to_owned()
    }

    fn schema(&self) -> Value {
        json!({
            "type": "object",
            "required": ["query"],
            "additionalProperties": false,
            "properties": {
                "query": {"type": "string", "description": "A PromQL expression", "minLength": 1, "maxLength": 4000},
                "range": {"type": ["string", "null"], "description": "How far back, such as 30m, 6h, 2d", "maxLength": 20},
                "step": {"type": ["string", "null"], "description": "Distance of the points, such as 1m; chosen for the range where absent", "maxLength": 20},
                "time": {"type": ["string", "null"], "description": "The instant, or the range's end, as RFC 3339; now where absent", "maxLength": 40},
            },
        })
    }

    fn check(&self, arguments: &Value) -> Result<(), ToolError> {
        let ask = Ask::read(arguments, clock::now());
        ask.map(|_| ()).map_err(ToolError::Refused)
    }

    fn call<'a>(&'a self, arguments: &'a Value) -> BoxFuture<'a, Result<String, ToolError>> {
        Box::pin(async {
            let ask = Ask::read(arguments, clock::now()).map_err(ToolError::Refused)?;
            self.ask(&ask).await.map_err(ToolError::Failed)
        })
    }
}

/// A query as Prometheus wants it.
#[derive(Debug, PartialEq)]
struct Ask {
    path: &'static str,
    parameters: Vec<(&'static str, String)>,
    /// From, to and step of a range.
    window: Option<(Timestamp, Timestamp, u64)>,
}

impl Ask {
    fn read(arguments: &Value, now: Timestamp) -> Result<Self, String> {
        let text = |key: &str| {
            arguments[key]
                .as_str()
                .map(str::trim)
                .filter(|text| !text.is_empty())
        };
        let query = text("query").ok_or("the query is empty")?.to_owned();
        let time: Timestamp = match text("time") {
            Some(time) => time.parse()?,
            None => now,
        };
        let seconds = |at: Timestamp| format!("{:.3}", at.as_millis() as f64 / 1000.0);
        let Some(range) = text("range") else {
            return Ok(Self {
                path: "query",
                parameters: vec![("query", query), ("time", seconds(time))],
                window: None,
            });
        };
        let range = duration_s(range).filter(|range| (1..=RANGE_MAX_S).contains(range));
        let range = range.ok_or("the range is no duration up to a year; use one such as 30m, 6h or 2d")?;
        let step = match text("step") {
            Some(step) => duration_s(step)
                .filter(|step| *step > 0)
                .ok_or("the step is no duration such as 30s or 5m")?,
            None => (range / POINTS).max(STEP_MIN_S),
        };
        if range / step > POINTS_MAX {
            return Err(format!(
                "that is {} points a series, and at most {POINTS_MAX} may be asked for: use a step of {} s or more",
                range / step,
                range.div_ceil(POINTS_MAX)
            ));
        }
        let start = Timestamp::from_millis(time.as_millis() - i64::try_from(range * 1000).unwrap_or(0));
        Ok(Self {
            path: "query_range",
            parameters: vec![
                ("query", query),
                ("start", seconds(start)),
                ("end", seconds(time)),
                ("step", step.to_string()),
            ],
            window: Some((start, time, step)),
        })
    }
}

/// A duration as Prometheus writes it, in seconds.
fn duration_s(text: &str) -> Option<u64> {
    let mut total: u64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        let unit_end = rest[digits..]
            .find(|c: char| c.is_ascii_digit())
            .map_or(rest.len(), |at| digits + at);
        let unit = match &rest[digits..unit_end] {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86400,
            "w" => 7 * 86400,
            "y" => 365 * 86400,
            _ => return None,
        };
        total = total.checked_add(number.checked_mul(unit)?)?;
        rest = &rest[unit_end..];
    }
    Some(total)
}

impl Promql {
    async fn ask(&self, ask: &Ask) -> Result<String, String> {
        let mut url = self.base.clone();
        url.set_path(&format!(
            "{}/api/v1/{}",
            self.base.path().trim_end_matches('/'),
            ask.path
        ));
        let place = self.base.origin().ascii_serialization();
        let response = self.client.get(url).query(&ask.parameters).send().await.map_err(|error| {
            format!(
                "Prometheus cannot be reached at {place}: {}. Its address is the workflow's PROMETHEUS_URL, else \
                 tools.prometheus_url",
                cause(&error)
            )
        })?;
        let status = response.status();
        let mut body = Vec::new();
        let mut stream = response.bytes_stream();
        while let Some(piece) = stream.next().await {
            let piece =
                piece.map_err(|error| format!("the answer of {place} broke off: {}", cause(&error)))?;
            if body.len() + piece.len() > ANSWER_BYTES_MAX {
                return Err(format!(
                    "the answer has more than {ANSWER_BYTES_MAX} bytes; aggregate, or use a larger step"
                ));
            }
            body.extend_from_slice(&piece);
        }
        let answer: Value = serde_json::from_slice(&body)
            .map_err(|_| format!("{place} answered {status} and no JSON: it is perhaps no Prometheus"))?;
        if answer["status"] != "success" {
            let text = |key: &str| answer[key].as_str().unwrap_or("unknown").to_owned();
            return Err(format!(
                "Prometheus answered {}: {}: {}",
                status.as_u16(),
                text("errorType"),
                text("error")
            ));
        }
        Ok(shown(&answer, ask))
    }
}

fn shown(answer: &Value, ask: &Ask) -> String {
    let mut lines = Vec::new();
    for kind in ["warnings", "infos"] {
        for text in answer[kind]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
        {
            lines.push(format!("{}: {text}", kind.trim_end_matches('s')));
        }
    }
    let result = &answer["data"]["result"];
    match answer["data"]["resultType"].as_str() {
        Some("vector") => series(&mut lines, result, "value", &|item| instant(item)),
        Some("matrix") => {
            if let Some((start, end, step)) = ask.window {
                lines.push(format!("from {start} to {end}, one point every {step} s"));
            }
            series(&mut lines, result, "range", &summary);
        }
        Some("scalar" | "string") => lines.push(result[1].as_str().unwrap_or("?").to_owned()),
        _ => lines.push("Prometheus gave a kind of result that is not known here".to_owned()),
    }
    lines.join("\n")
}

fn series(lines: &mut Vec<String>, result: &Value, kind: &str, line: &dyn Fn(&Value) -> String) {
    let items = result.as_array().map_or(&[][..], Vec::as_slice);
    match items.len() {
        0 => lines.push("no series match".to_owned()),
        count => lines.push(format!("{count} series ({kind})")),
    }
    for item in items.iter().take(SERIES_MAX) {
        lines.push(format!("{} {}", name(&item["metric"]), line(item)));
    }
    if items.len() > SERIES_MAX {
        lines.push(format!(
            "… {} more series left out; aggregate with sum by (…) or topk(…)",
            items.len() - SERIES_MAX
        ));
    }
}

/// A series as PromQL writes it.
fn name(metric: &Value) -> String {
    let labels = metric.as_object();
    let own = metric["__name__"].as_str().unwrap_or_default();
    let pairs: Vec<String> = labels
        .into_iter()
        .flatten()
        .filter(|(key, _)| *key != "__name__")
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    format!("{own}{{{}}}", pairs.join(", "))
}

fn instant(item: &Value) -> String {
    match item["value"][1].as_str() {
        Some(value) => number(value.parse().unwrap_or(f64::NAN)),
        None => "(a native histogram; use histogram_quantile)".to_owned(),
    }
}

/// The points of a series, put together.
fn summary(item: &Value) -> String {
    let points: Vec<(f64, f64)> = item["values"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|point| Some((point[0].as_f64()?, point[1].as_str()?.parse().ok()?)))
        .collect();
    let finite: Vec<(f64, f64)> = points
        .iter()
        .copied()
        .filter(|(_, value)| value.is_finite())
        .collect();
    let (Some((_, first)), Some((_, last))) = (finite.first(), finite.last()) else {
        return match points.len() {
            0 => "(native histograms; use histogram_quantile)".to_owned(),
            count => format!("count={count}, none of them a finite number"),
        };
    };
    let values = || finite.iter().map(|(_, value)| *value);
    let mean = values().sum::<f64>() / finite.len() as f64;
    let mut text = format!(
        "count={} min={} mean={} max={} last={} trend={} ({} -> {})",
        finite.len(),
        number(values().fold(f64::INFINITY, f64::min)),
        number(mean),
        number(values().fold(f64::NEG_INFINITY, f64::max)),
        number(*last),
        trend(&finite, mean),
        number(*first),
        number(*last),
    );
    if finite.len() < points.len() {
        text.push_str(&format!(" not_finite={}", points.len() - finite.len()));
    }
    text
}

/// The direction of the line through the points; flat where it moves less than a twentieth of the mean.
fn trend(points: &[(f64, f64)], mean: f64) -> &'static str {
    let (Some((begin, _)), Some((end, _))) = (points.first(), points.last()) else {
        return "flat";
    };
    let centre = points.iter().map(|(at, _)| at).sum::<f64>() / points.len() as f64;
    let covariance: f64 = points
        .iter()
        .map(|(at, value)| (at - centre) * (value - mean))
        .sum();
    let variance: f64 = points.iter().map(|(at, _)| (at - centre).powi(2)).sum();
    if variance == 0.0 {
        return "flat";
    }
    let change = covariance / variance * (end - begin);
    let scale = points.iter().map(|(_, value)| value.abs()).sum::<f64>() / points.len() as f64;
    if change.abs() <= scale * 0.05 {
        "flat"
    } else if change > 0.0 {
        "rising"
    } else {
        "falling"
    }
}

/// A number with six significant digits, as a person would write it.
fn number(value: f64) -> String {
    if !value.is_finite() {
        return if value.is_nan() {
            "NaN".to_owned()
        } else if value > 0.0 {
            "+Inf".to_owned()
        } else {
            "-Inf".to_owned()
        };
    }
    if value == 0.0 {
        return "0".to_owned();
    }
    let magnitude = value.abs().log10().floor();
    if !(-5.0..15.0).contains(&magnitude) {
        return format!("{value:.5e}");
    }
    // Between -5 and 15, so the places are between 0 and 10.
    let places = (5.0 - magnitude).clamp(0.0, 10.0) as usize;
    let text = format!("{value:.places$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use expect_test::expect;

    use super::*;

    #[test]
    fn durations_are_those_of_prometheus() {
        for (text, seconds) in [
            ("30s", 30),
            ("5m", 300),
            ("1h30m", 5400),
            ("2d", 172_800),
            ("1w", 604_800),
            ("0s", 0),
        ] {
            assert_eq!(duration_s(text), Some(seconds), "{text}");
        }
        for bad in [
            "h",
            "1",
            "1x",
            "-1h",
            "1h-",
            "99999999999999999999h",
            "1.5h",
            "9223372036854775807y",
        ] {
            assert_eq!(duration_s(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_step_fits_the_range() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        let ask = |arguments: Value| Ask::read(&arguments, now);
        let step = |range: &str| {
            ask(json!({"query": "up", "range": range}))
                .unwrap()
                .window
                .unwrap()
                .2
        };
        assert_eq!(
            (step("10m"), step("1h"), step("2h"), step("2d")),
            (15, 30, 60, 1440)
        );
        let given =
            ask(json!({"query": "up", "range": "1h", "step": "5m", "time": "2026-01-01T10:00:00Z"})).unwrap();
        assert_eq!(
            given.parameters,
            [
                ("query", "up".to_owned()),
                ("start", "1767258000.000".to_owned()),
                ("end", "1767261600.000".to_owned()),
                ("step", "300".to_owned()),
            ]
        );
        let many = ask(json!({"query": "up", "range": "30d", "step": "1s"})).unwrap_err();
        assert!(many.contains("a step of 519 s or more"), "{many}");
        for bad in [
            json!({"query": " "}),
            json!({"query": "up", "range": "x"}),
            json!({"query": "up", "range": "99y"}),
            json!({"query": "up", "range": "1h", "step": "0s"}),
            json!({"query": "up", "time": "noon"}),
        ] {
            assert!(ask(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn results_are_put_together_and_what_is_left_out_is_said() {
        let window = Some((
            "2026-01-01T10:00:00Z".parse().unwrap(),
            "2026-01-01T11:00:00Z".parse().unwrap(),
            30,
        ));
        let ask = Ask {
            path: "",
            parameters: vec![],
            window,
        };
        let points = |values: &[&str]| -> Value {
            values
                .iter()
                .enumerate()
                .map(|(at, value)| json!([at * 30, value]))
                .collect()
        };
        let matrix = json!({
            "warnings": ["exceeded sample limit"],
            "data": {"resultType": "matrix", "result": [
                {"metric": {"__name__": "mem", "pod": "a"}, "values": points(&["1", "2", "3.5"])},
                {"metric": {"pod": "b"}, "values": points(&["100", "101", "100", "NaN"])},
                {"metric": {}, "values": points(&["4e20", "1e-9"])},
                {"metric": {"pod": "c"}, "values": points(&["NaN"])},
            ]},
        });
        expect![[r#"
            warning: exceeded sample limit
            from 2026-01-01T10:00:00.000Z to 2026-01-01T11:00:00.000Z, one point every 30 s
            4 series (range)
            mem{pod="a"} count=3 min=1 mean=2.16667 max=3.5 last=3.5 trend=rising (1 -> 3.5)
            {pod="b"} count=3 min=100 mean=100.333 max=101 last=100 trend=flat (100 -> 100) not_finite=1
            {} count=2 min=1.00000e-9 mean=2.00000e20 max=4.00000e20 last=1.00000e-9 trend=falling (4.00000e20 -> 1.00000e-9)
            {pod="c"} count=1, none of them a finite number"#]]
        .assert_eq(&shown(&matrix, &ask));
        let many: Value = (0..70)
            .map(|n| json!({"metric": {"n": n.to_string()}, "value": [0, "0.25"]}))
            .collect();
        let text = shown(&json!({"data": {"resultType": "vector", "result": many}}), &ask);
        assert!(text.starts_with("70 series (value)\n{n=\"0\"} 0.25\n"), "{text}");
        assert!(
            text.ends_with("… 10 more series left out; aggregate with sum by (…) or topk(…)"),
            "{text}"
        );
        let none = shown(&json!({"data": {"resultType": "vector", "result": []}}), &ask);
        assert_eq!(none, "no series match");
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.1 + 0.2, "0.3"),
            (1_234_567.0, "1234567"),
            (1e-7, "1.00000e-7"),
            (-2.5, "-2.5"),
            (12.0, "12"),
            (f64::INFINITY, "+Inf"),
            (999_999.96, "1000000"),
            (0.000_012_345_678, "0.0000123457"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
