//! Agents whose turns come from a script, on the real services: what is recorded of them, and read again.

use serde_json::Value;

use crate::harness::{Up, fist};

/// A `fist up` whose scripted agents may ask its own API by curl.
async fn up() -> (Up, tempfile::TempDir) {
    let home = tempfile::tempdir().unwrap();
    let scripts = home.path().join("scripts");
    std::fs::create_dir(&scripts).unwrap();
    let env = [
        ("FIST_LLM_SCRIPTED_DIR", scripts.to_str().unwrap()),
        ("FIST_TOOLS_CURL_ALLOWED_HOSTS", "127.0.0.1"),
    ];
    let up = Up::start_in(&home.path().join("up"), &[], &env).await;
    (up, home)
}

/// A workflow whose only step asks `model`, with one tool.
fn workflow(model: &str) -> String {
    format!(
        "apiVersion: punching-fist.io/v1alpha1
kind: Workflow
metadata: {{name: {model}}}
spec:
  runtime: {{llm_config: {{provider: scripted, model: {model}}}}}
  steps:
  - {{name: look, type: agent, goal: Is the server well?, tools: [curl]}}
"
    )
}

#[tokio::test]
async fn what_an_agent_did_is_shown_turn_by_turn() {
    let (up, home) = up().await;
    let script = format!(
        "turns:
  - text: I ask the server.
    calls: [{{name: health, tool: curl, arguments: {{url: '{}/healthz'}}}}]
  - submit_findings:
      summary: The server says that it is well.
      root_cause: none
      confidence: 0.9
      findings: [It answers.]
      evidence: [{{call: health, match: alive}}]
",
        up.url
    );
    std::fs::write(home.path().join("scripts/well.yaml"), script).unwrap();
    let id = up.submits("well.yaml", &workflow("well")).await;
    let view = up.ended(&id).await;
    assert_eq!(view["status"], "Succeeded", "{view:#}");

    let shown = up.prints(&["get", "execution", &id, "--transcript"]).await;
    for part in [
        "── look\n  Is the server well?\n  tools: curl\n",
        "turn 1 ",
        "  I ask the server.\n  → curl http://127.0.0.1:",
        "  ← curl ",
        "\"status\":\"alive\"",
        "turn 2 ",
        "  → submit_findings ",
    ] {
        assert!(shown.contains(part), "{part:?} is not in {shown}");
    }
    let whole = up
        .prints(&["get", &format!("execution/{id}"), "--transcript", "-o", "json"])
        .await;
    let whole: Value = serde_json::from_str(&whole).unwrap();
    let turns = whole["attempts"][0]["turns"].as_array().unwrap();
    let kinds: Vec<&str> = turns.iter().map(|turn| turn["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["model", "tool", "model"]);
    assert!(
        turns[1]["result"]
            .as_str()
            .unwrap()
            .contains("\"status\":\"alive\"")
    );

    let logs = up.prints(&["logs", &id]).await;
    assert!(
        logs.starts_with("I ask the server.\n→ curl {\"url\":\"http://127.0.0.1:")
            && logs.contains("\n← curl ")
            && logs.contains(" s)\nThe server says that it is well.\n"),
        "{logs}"
    );
    assert_eq!(up.prints(&["logs", &id, "--follow"]).await, logs);
    let report = up.prints(&["report", &id]).await;
    for part in [
        "## Investigation `look`: complete",
        "### Evidence\n\n- `",
        "## Timeline",
    ] {
        assert!(report.contains(part), "{part:?} is not in {report}");
    }

    for (arguments, code, part) in [
        (vec!["--transcript", "--step", "other"], 1, "are look"),
        (vec!["--step", "look"], 2, "--transcript"),
    ] {
        let said = up
            .says(&[&["get", "execution", &id], arguments.as_slice()].concat())
            .await;
        assert_eq!((said.code, said.out.as_str()), (code, ""), "{said:?}");
        assert!(said.err.contains(part), "{said:?}");
    }
    let said = up.says(&["get", "executions", "--transcript"]).await;
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.err.contains("give its id"), "{said:?}");
    up.stop().await;
}

#[tokio::test]
async fn an_execution_becomes_a_case_that_plays_again() {
    let (up, home) = up().await;
    let script = format!(
        "turns:
  - calls: [{{name: health, tool: curl, arguments: {{url: '{}/healthz'}}}}]
  - submit_findings:
      summary: The server says that it is alive.
      root_cause: Nothing is wrong (see /healthz).
      evidence: [{{call: health, match: alive}}]
",
        up.url
    );
    std::fs::write(home.path().join("scripts/alive.yaml"), &script).unwrap();
    let id = up.submits("alive.yaml", &workflow("alive")).await;
    up.ended(&id).await;
    let case = home.path().join("recorded.yaml");
    let case = case.to_str().unwrap();
    let said = up.says(&["eval", "record", &id, "-o", case]).await;
    assert_eq!((said.code, said.out.as_str()), (0, ""), "{said:?}");
    assert!(said.err.contains("draft"), "{said:?}");
    let recorded = std::fs::read_to_string(case).unwrap();
    assert_eq!(
        up.prints(&["eval", "record", &id, "--step", "look"]).await,
        recorded
    );
    let said = up.says(&["eval", "record", &id, "--step", "other"]).await;
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("are look"), "{said:?}");
    up.stop().await;

    // The server is gone: the case has what it answered.
    std::fs::write(case, format!("script: scripts/alive.yaml\n{recorded}")).unwrap();
    let said: crate::harness::Said = fist()
        .args(["eval", case, "--provider", "scripted"])
        .output()
        .await
        .unwrap()
        .into();
    assert_eq!(said.code, 0, "{said:?}\n{recorded}");
    assert!(said.out.contains("1 of 1 cases passed"), "{said:?}");
}
