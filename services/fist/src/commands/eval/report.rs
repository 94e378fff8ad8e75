//! The report of an evaluation: as a table for people, as JSON, as JUnit's XML for CI systems.

use agent_runner::evaluation::{CaseReport, score::Criterion};
use serde_json::json;

use crate::{
    failure::Failure,
    show::{self, Style, Tone, age::took, table::table as columns},
};

/// Calls without a recorded answer that a table names for each case.
const UNRECORDED_SHOWN_MAX: usize = 5;

/// A line for each case, then what was not met.
pub fn table(reports: &[CaseReport], style: Style) -> String {
    let row = |report: &CaseReport| {
        vec![
            report.case.clone(),
            if report.passed { "ok" } else { "fail" }.to_owned(),
            format!("{}/{}", report.met, report.criteria.len()),
            report.turns.to_string(),
            report.calls.to_string(),
            report.unrecorded.to_string(),
            took(std::time::Duration::from_millis(report.duration_ms)),
        ]
    };
    let rows: Vec<Vec<String>> = reports.iter().map(row).collect();
    let heads = ["CASE", "RESULT", "MET", "TURNS", "CALLS", "UNRECORDED", "TIME"];
    let mut text = columns(&heads, &rows, style);
    for report in reports.iter().filter(|report| !report.passed) {
        text.push_str(&format!(
            "\n{}\n",
            style.paint(Tone::Strong, &show::clean(&report.case))
        ));
        for criterion in unmet(report) {
            text.push_str(&format!(
                "  {} {}: expected {}\n    found {}\n",
                style.paint(Tone::Bad, "✗"),
                criterion.criterion,
                show::one_line(&criterion.expected, 400),
                show::one_line(&criterion.found, 800),
            ));
        }
        for call in report.unrecorded_calls.iter().take(UNRECORDED_SHOWN_MAX) {
            let line = format!("  not recorded: {}\n", show::one_line(call, 200));
            text.push_str(&style.paint(Tone::Faint, &line));
        }
    }
    let passed = reports.iter().filter(|report| report.passed).count();
    let met: usize = reports.iter().map(|report| report.met).sum();
    let criteria: usize = reports.iter().map(|report| report.criteria.len()).sum();
    text.push_str(&format!(
        "\n{passed} of {} cases passed; {met} of {criteria} criteria are met\n",
        reports.len()
    ));
    text
}

/// Everything.
pub fn json(reports: &[CaseReport]) -> Result<String, Failure> {
    let passed = reports.iter().filter(|report| report.passed).count();
    let document = json!({ "cases": reports, "passed": passed, "failed": reports.len() - passed });
    let text = serde_json::to_string_pretty(&document)
        .map_err(|error| Failure::failed(format!("the report cannot be written: {error}")))?;
    Ok(format!("{text}\n"))
}

/// One suite, with a test for each case.
pub fn junit(reports: &[CaseReport]) -> String {
    let failures = reports.iter().filter(|report| !report.passed).count();
    let seconds = |ms: u64| format!("{}.{:03}", ms / 1000, ms % 1000);
    let all_ms: u64 = reports.iter().map(|report| report.duration_ms).sum();
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n  <testsuite name=\"fist eval\" tests=\"{}\" failures=\"{failures}\" time=\"{}\">\n",
        reports.len(),
        seconds(all_ms)
    );
    for report in reports {
        let head = format!(
            "    <testcase classname=\"fist.eval\" name=\"{}\" file=\"{}\" time=\"{}\"",
            xml(&report.case),
            xml(&report.file),
            seconds(report.duration_ms)
        );
        text.push_str(&head);
        if report.passed {
            text.push_str("/>\n");
            continue;
        }
        let lines: Vec<String> = unmet(report)
            .map(|criterion| {
                format!(
                    "{}: expected {}; found {}",
                    criterion.criterion, criterion.expected, criterion.found
                )
            })
            .collect();
        text.push_str(&format!(
            ">\n      <failure message=\"{} of {} criteria are met\">{}</failure>\n    </testcase>\n",
            report.met,
            report.criteria.len(),
            xml(&lines.join("\n"))
        ));
    }
    text.push_str("  </testsuite>\n</testsuites>\n");
    text
}

fn unmet(report: &CaseReport) -> impl Iterator<Item = &Criterion> {
    report.criteria.iter().filter(|criterion| !criterion.passed)
}

/// Text that can stand in XML: what has no place there becomes `�`.
fn xml(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in show::clean(text).chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(case: &str, found: Option<&str>) -> CaseReport {
        let criterion = |name, passed, found: &str| Criterion {
            criterion: name,
            passed,
            expected: "/a<b/".to_owned(),
            found: found.to_owned(),
        };
        let mut criteria = vec![criterion("status", true, "complete")];
        criteria.extend(found.map(|found| criterion("says", false, found)));
        CaseReport {
            case: case.to_owned(),
            file: format!("cases/{case}.yaml"),
            description: String::new(),
            passed: found.is_none(),
            met: 1,
            criteria,
            turns: 3,
            calls: 4,
            unrecorded: 1,
            unrecorded_calls: vec!["kubectl get x".to_owned()],
            duration_ms: 1234,
            output: json!({}),
        }
    }

    #[test]
    fn people_see_what_was_not_met() {
        let text = table(
            &[report("good", None), report("bad", Some("a\u{1b}[2J & b"))],
            Style::default(),
        );
        assert_eq!(
            text,
            "CASE   RESULT   MET   TURNS   CALLS   UNRECORDED   TIME\n\
             good   ok       1/1   3       4       1            1.3 s\n\
             bad    fail     1/2   3       4       1            1.3 s\n\
             \n\
             bad\n  ✗ says: expected /a<b/\n    found a\u{fffd}[2J & b\n  not recorded: kubectl get x\n\
             \n\
             1 of 2 cases passed; 2 of 3 criteria are met\n"
        );
    }

    #[test]
    fn ci_systems_see_well_formed_xml() {
        let text = junit(&[report("good", None), report("bad", Some("a\u{1b}[2J & \"b\""))]);
        assert_eq!(
            text,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n  <testsuite name=\"fist eval\" tests=\"2\" failures=\"1\" time=\"2.468\">\n    \
             <testcase classname=\"fist.eval\" name=\"good\" file=\"cases/good.yaml\" time=\"1.234\"/>\n    \
             <testcase classname=\"fist.eval\" name=\"bad\" file=\"cases/bad.yaml\" time=\"1.234\">\n      \
             <failure message=\"1 of 2 criteria are met\">says: expected /a&lt;b/; found a\u{fffd}[2J &amp; &quot;b&quot;</failure>\n    \
             </testcase>\n  </testsuite>\n</testsuites>\n"
        );
    }
}
