//! Series as Prometheus and Loki answer them, put together: a model reads numbers badly and pays for each.
//!
//! Invariant: what is left out is said.

use protocol::Timestamp;
use serde_json::Value;

/// Series that one result shows.
const SERIES_MAX: usize = 60;

/// What the server says beside its result, in its words.
pub fn notices(answer: &Value) -> Vec<String> {
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
    lines
}

/// Adds the result of `data` to `lines`; `window` is from, to and step in seconds of a range. False where it is of a
/// kind that is none of Prometheus'.
pub fn results(lines: &mut Vec<String>, data: &Value, window: Option<(Timestamp, Timestamp, u64)>) -> bool {
    let result = &data["result"];
    match data["resultType"].as_str() {
        Some("vector") => series(lines, result, "value", &instant),
        Some("matrix") => {
            if let Some((start, end, step)) = window {
                lines.push(format!("from {start} to {end}, one point every {step} s"));
            }
            series(lines, result, "range", &summary);
        }
        Some("scalar" | "string") => lines.push(result[1].as_str().unwrap_or("?").to_owned()),
        _ => return false,
    }
    true
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

/// A duration as Prometheus writes it, in seconds.
pub fn duration_s(text: &str) -> Option<u64> {
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

#[cfg(test)]
mod tests {
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
