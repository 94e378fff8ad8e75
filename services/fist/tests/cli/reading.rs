//! An agent that reads what earlier steps left, through the whole product: its task, the facts and the object store.

use crate::harness::Up;

const WORKFLOW: &str = r#"
apiVersion: punching-fist.io/v1alpha1
kind: Workflow
metadata: {name: reading}
spec:
  runtime:
    llm_config: {provider: scripted, model: reading}
  steps:
    - name: print
      type: cli
      command: seq 1 20000; echo needle password=hunter2xyzzy; seq 1 20000; echo oops >&2
    - {name: is-printed, type: conditional, condition: steps.print.output.exit_code == 0}
    - {name: look, type: agent, goal: What was printed?, tools: [read_file]}
    - name: look-again
      type: agent
      goal: What was found?
      tools: [read_file]
      llm_config: {model: reading-again}
"#;

const READING: &str = r#"
turns:
  - text: I read on.
    calls:
      - {name: needle, tool: read_file, arguments: {step: print, grep: needle, context: 0}}
      - {name: tail, tool: read_file, arguments: {step: print, from_line: -1}}
      - {name: errors, tool: read_file, arguments: {step: print, stream: stderr}}
      - {name: met, tool: read_file, arguments: {step: is-printed}}
  - let:
      line: {from: needle, match: '(?m)^(\d+): needle'}
      last: {from: tail, match: '(?m)^(\d+: \d+)$'}
      error: {from: errors, match: oops}
      met: {from: met, match: '"condition_met": (\w+)'}
    submit_findings:
      summary: needle at ${line}, last ${last}, ${error}, met ${met}
      evidence: [{call: needle, match: 'needle.*'}]
"#;

const READING_AGAIN: &str = r#"
turns:
  - calls: [{name: found, tool: read_file, arguments: {step: look, grep: '"summary"', context: 0}}]
  - let: {summary: {from: found, match: '"summary": "(.*)"'}}
    submit_findings: {summary: "before: ${summary}"}
"#;

#[tokio::test]
async fn an_agent_reads_the_whole_of_what_earlier_steps_left() {
    let home = tempfile::tempdir().unwrap();
    let scripts = home.path().join("scripts");
    std::fs::create_dir(&scripts).unwrap();
    for (name, text) in [("reading", READING), ("reading-again", READING_AGAIN)] {
        std::fs::write(scripts.join(format!("{name}.yaml")), text).unwrap();
    }
    let scripted = [("FIST_LLM_SCRIPTED_DIR", scripts.to_str().unwrap())];
    let up = Up::start_in(&home.path().join("up"), &[], &scripted).await;
    let id = up.submits("reading.yaml", WORKFLOW).await;
    let ended = up.ended(&id).await;
    assert_eq!(ended["status"], "Succeeded", "{ended:#}");
    let output = |at: usize| &ended["steps"][at]["output"];
    // Of what was printed the record has beginning and end: the needle is only in the object store.
    let printed = &ended["outputs"]["steps"]["print"]["preview"];
    assert!(printed["stdout_ref"].is_object(), "{ended:#}");
    let stdout = printed["stdout"].as_str().unwrap();
    assert!(
        stdout.starts_with("1\n2\n") && !stdout.contains("needle"),
        "{stdout}"
    );
    let found = "needle at 20001, last 40001: 20000, oops, met true";
    assert_eq!(output(2)["summary"], found, "{ended:#}");
    assert_eq!(
        agent_runner::redact::untagged(output(2)["evidence"][0]["quote"].as_str().unwrap()),
        "needle password=[REDACTED:value]"
    );
    assert_eq!(output(2)["evidence"][0]["grounded"], true);
    assert_eq!(output(3)["summary"], format!("before: {found}"));
    for at in [2, 3] {
        assert!(!output(at).to_string().contains("hunter2"), "{ended:#}");
    }
    up.stop().await;
}
