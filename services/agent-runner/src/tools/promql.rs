//! Prometheus: instant and range queries. Series are summarised, since a model reads numbers badly and pays for each.
//!
//! Invariants: what is left out is said; errors and warnings of the server are passed on in its words.

use futures_util::future::BoxFuture;
use protocol::Timestamp;
use serde_json::{Value, json};
use service::clock;

use super::{
    Surroundings, Tool, ToolError,
    query_api::{Api, Server},
    series::{self, duration_s},
};

/// Points of one series that are asked for, where the query does not say a step.
const POINTS: u64 = 120;
/// Points of one series that may be asked for.
const POINTS_MAX: u64 = 5000;
/// The least step that is chosen: the usual scrape interval.
const STEP_MIN_S: u64 = 15;
/// The longest range: a year.
const RANGE_MAX_S: u64 = 366 * 86400;
struct Promql {
    server: Server,
}

/// Makes the tool, for the workflow's `PROMETHEUS_URL`, else the configured address.
///
/// # Errors
/// When the address is none.
pub fn make(surroundings: &Surroundings<'_>) -> Result<Box<dyn Tool>, String> {
    let api = Api {
        name: "Prometheus",
        variable: "PROMETHEUS_URL",
        key: "tools.prometheus_url",
        configured: &surroundings.tools.prometheus_url,
        example: "http://prometheus:9090",
        smaller: "aggregate, or use a larger step",
    };
    let server = Server::new(surroundings, &api)?;
    Ok(Box::new(Promql { server }))
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

impl Promql {
    async fn ask(&self, ask: &Ask) -> Result<String, String> {
        let path = format!("api/v1/{}", ask.path);
        let (status, body) = self.server.get(&path, &ask.parameters).await?;
        let answer: Value = serde_json::from_slice(&body).map_err(|_| self.server.is_another(status))?;
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
    let mut lines = series::notices(answer);
    if !series::results(&mut lines, &answer["data"], ask.window) {
        lines.push("Prometheus gave a kind of result that is not known here".to_owned());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use expect_test::expect;

    use super::*;

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
}
