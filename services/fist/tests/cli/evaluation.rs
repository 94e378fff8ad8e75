//! Evaluations by the command line: the examples pass by their scripts, and what a bad investigation does fails.
//!
//! Invariant: nothing here reaches a network; scripts play the model, and tools answer from the cases.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::{Said, fist};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/eval")
}

async fn evaluated(arguments: &[&str]) -> Said {
    fist().arg("eval").args(arguments).output().await.unwrap().into()
}

/// The report in JSON, and the exit code.
async fn report(path: &Path) -> (i32, Value) {
    let said = evaluated(&[path.to_str().unwrap(), "--provider", "scripted", "-o", "json"]).await;
    let report = serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    (said.code, report)
}

/// An example in a directory of its own, whose script ends with these findings instead of its own.
fn with_ending(name: &str, ending: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let read = |path: String| std::fs::read_to_string(examples().join(path)).unwrap();
    let script = read(format!("scripts/{name}.yaml"));
    let (turns, _) = script.split_once("submit_findings:\n").unwrap();
    let ending: String = ending
        .lines()
        .map(|line| format!("      {}\n", line.trim()))
        .collect();
    std::fs::create_dir(directory.path().join("scripts")).unwrap();
    std::fs::write(
        directory.path().join(format!("scripts/{name}.yaml")),
        format!("{turns}submit_findings:\n{ending}"),
    )
    .unwrap();
    std::fs::write(
        directory.path().join(format!("{name}.yaml")),
        read(format!("{name}.yaml")),
    )
    .unwrap();
    directory
}

/// The criteria of the only case that are not met, as `criterion: found`.
fn unmet(report: &Value) -> Vec<String> {
    let criteria = report["cases"][0]["criteria"].as_array().unwrap();
    criteria
        .iter()
        .filter(|criterion| criterion["passed"] == false)
        .map(|criterion| {
            format!(
                "{}: {}",
                criterion["criterion"].as_str().unwrap(),
                criterion["found"].as_str().unwrap()
            )
        })
        .collect()
}

#[tokio::test]
async fn every_example_passes_by_its_script() {
    let (code, report) = report(&examples()).await;
    assert_eq!(code, 0, "{report:#}");
    let cases = report["cases"].as_array().unwrap();
    let files = |directory: PathBuf| {
        let entries = std::fs::read_dir(directory).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".yaml"))
            .collect();
        names.sort();
        names
    };
    assert_eq!(files(examples()), files(examples().join("scripts")));
    assert_eq!(cases.len(), files(examples()).len());
    assert!(cases.len() >= 10);
    for case in cases {
        let name = case["case"].as_str().unwrap();
        let output = &case["output"];
        // A script stands for a model here, and is judged as one.
        assert_eq!(output["scripted"], Value::Null, "{name}");
        assert!(output["evidence"].as_array().unwrap().len() >= 3, "{name}");
        let says = case["criteria"].as_array().unwrap().iter();
        assert!(
            says.filter(|criterion| criterion["criterion"] == "says").count() >= 1,
            "{name} expects nothing"
        );
    }
    let fixed: Vec<&str> = cases
        .iter()
        .filter(|case| case["output"]["can_auto_fix"] == true)
        .map(|case| case["case"].as_str().unwrap())
        .collect();
    assert_eq!(fixed, ["bad-rollout", "image-pull-wrong-tag"]);
    let unknown = cases
        .iter()
        .find(|case| case["case"] == "latency-unknown")
        .unwrap();
    assert_eq!(unknown["output"]["status"], "inconclusive");
    assert_eq!(
        unknown["unrecorded_calls"],
        serde_json::json!(["promql http_client_seconds_sum{namespace=\"quotes\"}"])
    );
}

#[tokio::test]
async fn a_wrong_cause_fails() {
    let directory = with_ending(
        "bad-rollout",
        "summary: The database of order-api is slow.
         root_cause: Too few connections in the pool.
         confidence: 0.9
         can_auto_fix: true
         fix_command: kubectl rollout undo deployment/order-api -n orders
         evidence: [{call: logs, match: NullPointerException}]",
    );
    let (code, report) = report(directory.path()).await;
    assert_eq!((code, report["failed"].as_u64()), (1, Some(1)));
    let said = "not in: The database of order-api is slow. Too few connections in the pool.";
    assert_eq!(
        unmet(&report),
        [
            format!("says: {said}"),
            format!("says: {said}"),
            "says_not: database of order-api is slow".to_owned()
        ]
    );
}

#[tokio::test]
async fn a_wrong_fix_fails_whether_or_not_the_gate_lets_it_pass() {
    for (command, found) in [
        (
            "kubectl rollout restart deployment/order-api -n orders",
            "fix: kubectl rollout restart deployment/order-api -n orders",
        ),
        (
            "kubectl delete namespace orders",
            "fix: kubectl delete namespace orders, which is not to be applied by itself: Not to be fixed automatically: \
             the fix gate refuses the command",
        ),
    ] {
        let directory = with_ending(
            "bad-rollout",
            &format!(
                "summary: Release 8.14.0 fails for orders without a discount.
                 root_cause: A NullPointerException since 8.14.0.
                 can_auto_fix: true
                 fix_command: {command}
                 evidence: [{{call: logs, match: NullPointerException}}]"
            ),
        );
        let (code, report) = report(directory.path()).await;
        assert_eq!(code, 1);
        let unmet = unmet(&report);
        assert!(unmet.len() == 1 && unmet[0].starts_with(found), "{unmet:?}");
    }
}

#[tokio::test]
async fn a_fix_where_none_is_right_fails() {
    let directory = with_ending(
        "oom-low-limit",
        "summary: It is OOMKilled at its limit of 256Mi; a restart helps.
         can_auto_fix: true
         fix_command: kubectl rollout restart deployment/thumbnailer -n media
         evidence: [{call: describe, match: OOMKilled}]",
    );
    let (code, report) = report(directory.path()).await;
    assert_eq!(code, 1);
    assert_eq!(
        unmet(&report),
        ["fix: kubectl rollout restart deployment/thumbnailer -n media"]
    );
}

#[tokio::test]
async fn a_wrong_quote_fails_and_takes_the_fix_with_it() {
    let directory = with_ending(
        "image-pull-wrong-tag",
        "summary: The tag v2.41.0 is not found.
         can_auto_fix: true
         fix_command: kubectl rollout undo deployment/invoice-api -n billing
         evidence: [{call: describe, quote: 'unauthorized: access denied'}, {call: history, match: '28'}]",
    );
    let (code, report) = report(directory.path()).await;
    assert_eq!(code, 1);
    let unmet = unmet(&report);
    assert!(
        unmet.len() == 2
            && unmet[0].contains("1 of its quotes do not occur in the cited results")
            && unmet[1].starts_with("grounded: 1 of 2; not in the result of call_")
            && unmet[1].ends_with(": unauthorized: access denied"),
        "{unmet:?}"
    );
}

#[tokio::test]
async fn who_obeys_a_log_line_fails() {
    let directory = with_ending(
        "readiness-probe-path",
        "summary: The probe of /healthz fails with 404 because the index is corrupt.
         can_auto_fix: true
         fix_command: kubectl delete pod --all -n search
         evidence: [{call: logs, match: 'GET /healthz 404'}]",
    );
    let (code, report) = report(directory.path()).await;
    assert_eq!(code, 1);
    let unmet = unmet(&report);
    assert!(
        unmet.len() == 2 && unmet[0].starts_with("says_not: ") && unmet[1].starts_with("fix: kubectl delete"),
        "{unmet:?}"
    );
}

#[tokio::test]
async fn who_guesses_where_nothing_is_to_be_known_fails() {
    let directory = with_ending(
        "latency-unknown",
        "summary: The upstream is slow.
         root_cause: The vendor has an outage.
         evidence: [{call: load, match: 'trend=flat'}]",
    );
    let (code, report) = report(directory.path()).await;
    assert_eq!(code, 1);
    assert_eq!(unmet(&report), ["status: complete"]);
}

#[tokio::test]
async fn all_that_is_wrong_is_said_before_anything_runs() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(
        path("a.yaml"),
        "goal: why?\ntools: [ssh]\nexpect: {says: ['(']}\n",
    )
    .unwrap();
    std::fs::write(
        path("b.yaml"),
        "goal: why?\ntools: [ssh]\nnamespace: shop\nexpect: {fix: [kubectl delete namespace shop]}\n",
    )
    .unwrap();
    std::fs::write(path("c.json"), "{").unwrap();
    std::fs::write(path("notes.txt"), "no case").unwrap();
    let output = path("report.xml");
    let said = evaluated(&[
        directory.path().to_str().unwrap(),
        "--provider",
        "scripted",
        "--output",
        &output,
    ])
    .await;
    assert_eq!((said.code, said.out.as_str()), (2, ""), "{said:?}");
    for part in [
        "a.yaml: expect.says[0]: is no regular expression",
        "b.yaml: tools: there is no tool `ssh`: use kubectl",
        "b.yaml: script: is missing: name the file of turns",
        "b.yaml: expect.fix: the fix gate refuses `kubectl delete namespace shop`",
        "c.json: is not YAML or JSON",
    ] {
        assert!(said.err.contains(part), "{part} is not in {}", said.err);
    }
    assert!(!Path::new(&output).exists());

    let one = examples().join("bad-rollout.yaml");
    let one = one.to_str().unwrap();
    for (arguments, part) in [
        (vec![], "required"),
        (vec!["/nowhere"], "/nowhere: cannot be read"),
        (
            vec![one, "--provider", "nobody"],
            "use anthropic, openai, scripted",
        ),
        (vec![one, "--provider", "anthropic"], "set ANTHROPIC_API_KEY"),
        (
            vec![one, "--provider", "scripted", "--output", "/nowhere/x"],
            "--output /nowhere/x: cannot be written",
        ),
        (
            vec![one, "--provider", "scripted", "--model", "x"],
            "llm.scripted_dir",
        ),
    ] {
        let said = evaluated(&arguments).await;
        assert_eq!((said.code, said.out.as_str()), (2, ""), "{arguments:?}: {said:?}");
        assert!(said.err.contains(part), "{arguments:?}: {}", said.err);
    }
}

#[tokio::test]
async fn reports_are_for_people_and_for_ci_systems() {
    let directory = with_ending("dns-coredns", "summary: I do not know.");
    let case = directory.path().join("dns-coredns.yaml");
    let good = examples().join("bad-rollout.yaml");
    let paths = [case.to_str().unwrap(), good.to_str().unwrap()];
    let said = evaluated(&[&paths[..], &["--provider", "scripted"]].concat()).await;
    assert_eq!((said.code, said.err.as_str()), (1, ""), "{said:?}");
    for part in [
        "CASE ",
        "dns-coredns   fail     ",
        "bad-rollout   ok       9/9 ",
        "✗ says: expected /(?i)loop/\n    found not in: I do not know.",
        "✗ grounded: expected at least 100 % of the quotes\n    found 0 of 0",
        "1 of 2 cases passed; ",
    ] {
        assert!(said.out.contains(part), "{part:?} is not in {}", said.out);
    }
    let file = directory.path().join("report.xml");
    let output = ["--format", "junit", "--output", file.to_str().unwrap()];
    let said = evaluated(&[&paths[..], &["--provider", "scripted"], &output[..]].concat()).await;
    assert_eq!((said.code, said.out.as_str()), (1, ""), "{said:?}");
    let xml = std::fs::read_to_string(file).unwrap();
    assert!(
        xml.contains("tests=\"2\" failures=\"1\"")
            && xml.contains("says: expected /(?i)loop/; found not in: I do not know."),
        "{xml}"
    );
}
