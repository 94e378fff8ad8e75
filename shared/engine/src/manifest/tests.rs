#![allow(clippy::unwrap_used)]

use expect_test::{Expect, expect};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::admit::{admit, admit_all, admit_value};
use crate::problem::listed;

fn policy() -> Policy {
    Policy {
        sources: ["pager".to_owned()].into(),
        model_aliases: [("claude-3-5-sonnet".to_owned(), "claude-sonnet-4-5".to_owned())].into(),
        ..Policy::default()
    }
}

/// Admits and prints: the role and warnings, or the problems.
fn printed(text: &str, format: Format) -> String {
    match admit(text, format, &policy()) {
        Ok(admitted) => {
            let role = format!("{:?}", admitted.role);
            let warnings = listed(&admitted.warnings);
            [role, warnings]
                .into_iter()
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join("\n")
        }
        Err(problems) => listed(&problems),
    }
}

fn check(yaml: &str, expect: &Expect) {
    expect.assert_eq(&printed(yaml, Format::Yaml));
}

/// A manifest around some steps.
fn with_steps(steps: &str) -> String {
    format!(
        "apiVersion: punching-fist.io/v1alpha1\nkind: Workflow\nmetadata:\n  name: w\nspec:\n  steps:\n{steps}"
    )
}

const FULL: &str = r#"# Everything that can be said.
apiVersion: punching-fist.io/v1alpha1
kind: Workflow
metadata:
  name: pod-crash.investigation
  namespace: team-a
  labels: {team: a}
  annotations:
    kubectl.kubernetes.io/last-applied-configuration: "{}"
spec:
  trigger:
    source: alertmanager
    filters:
      alertname: ~Pod(Crash|OOM).*
      severity: critical
  runtime:
    image: bitnami/kubectl:1.31
    environment:
      PROMETHEUS_URL: http://prometheus:9090
    llm_config:
      provider: anthropic
      model: claude-3-5-sonnet
      endpoint: https://gateway.example.com/v1
      api_key_secret: anthropic
      temperature: 0.2
      max_tokens: 4096
      max_turns: 20
  steps:
    - name: get-pod
      type: cli
      command: kubectl get pod
      timeout_minutes: 5
      image: alpine
      env: {A: "1"}
      resources:
        requests: {cpu: 100m, memory: 64Mi}
        limits: {cpu: 1, memory: 1.5Gi}
    - name: investigate
      type: agent
      goal: Find out.
      tools: [kubectl, promql, curl, logs, read_file, "mcp:git"]
      timeout_seconds: 90
      on_timeout: fail
      llm_config: {max_turns: 5}
    - name: can-fix
      type: conditional
      condition: steps.investigate.output.can_auto_fix == true
      on_false: skip_remaining
    - name: restart
      type: cli
      command: kubectl rollout restart deployment/web
      fix: true
      mode: propose
  suspend: false
"#;

#[test]
fn everything_that_can_be_said_is_read() {
    let admitted = admit(FULL, Format::Yaml, &policy()).unwrap();
    expect![[r#"
        {
          "apiVersion": "punching-fist.io/v1alpha1",
          "kind": "Workflow",
          "metadata": {
            "name": "pod-crash.investigation",
            "namespace": "team-a",
            "labels": {
              "team": "a"
            },
            "annotations": {
              "kubectl.kubernetes.io/last-applied-configuration": "{}"
            }
          },
          "spec": {
            "trigger": {
              "source": "alertmanager",
              "filters": {
                "alertname": "~Pod(Crash|OOM).*",
                "severity": "critical"
              }
            },
            "runtime": {
              "image": "bitnami/kubectl:1.31",
              "environment": {
                "PROMETHEUS_URL": "http://prometheus:9090"
              },
              "llm_config": {
                "provider": "anthropic",
                "model": "claude-sonnet-4-5",
                "endpoint": "https://gateway.example.com/v1",
                "api_key_secret": "anthropic",
                "temperature": 0.2,
                "max_tokens": 4096,
                "max_turns": 20
              }
            },
            "steps": [
              {
                "name": "get-pod",
                "type": "cli",
                "timeout_minutes": 5,
                "command": "kubectl get pod",
                "image": "alpine",
                "env": {
                  "A": "1"
                },
                "resources": {
                  "requests": {
                    "cpu": "100m",
                    "memory": "64Mi"
                  },
                  "limits": {
                    "cpu": "1",
                    "memory": "1.5Gi"
                  }
                }
              },
              {
                "name": "investigate",
                "type": "agent",
                "timeout_seconds": 90,
                "goal": "Find out.",
                "tools": [
                  "kubectl",
                  "promql",
                  "curl",
                  "logs",
                  "read_file",
                  "mcp:git"
                ],
                "llm_config": {
                  "max_turns": 5
                },
                "on_timeout": "fail"
              },
              {
                "name": "can-fix",
                "type": "conditional",
                "timeout_minutes": 10,
                "condition": "steps.investigate.output.can_auto_fix == true"
              },
              {
                "name": "restart",
                "type": "cli",
                "timeout_minutes": 10,
                "command": "kubectl rollout restart deployment/web",
                "fix": true,
                "mode": "propose"
              }
            ]
          }
        }"#]]
    .assert_eq(&serde_json::to_string_pretty(&admitted.workflow).unwrap());
    expect![[r#"warning: line 22: spec.runtime.llm_config.model: "claude-3-5-sonnet" is retired or has no date; "claude-sonnet-4-5" is used, by llm.model_aliases"#]].assert_eq(&listed(&admitted.warnings));
    assert_eq!(admitted.role, Role::Definition);
    let spec = serde_json::to_string(&admitted.workflow.spec).unwrap();
    assert_eq!(
        serde_json::from_str::<Spec>(&spec).unwrap(),
        admitted.workflow.spec
    );
}

#[test]
fn camel_case_json_and_objects_mean_the_same() {
    let canonical = admit(FULL, Format::Yaml, &policy()).unwrap().workflow;
    let value = serde_json::to_value(&canonical).unwrap();
    let mut camel = value.to_string();
    for (snake, camel_case) in [
        ("llm_config", "llmConfig"),
        ("api_key_secret", "apiKeySecret"),
        ("max_tokens", "maxTokens"),
        ("max_turns", "maxTurns"),
        ("timeout_minutes", "timeoutMinutes"),
        ("timeout_seconds", "timeoutSeconds"),
        ("on_timeout", "onTimeout"),
    ] {
        assert!(camel.contains(&format!("\"{snake}\"")), "{snake}");
        camel = camel.replace(&format!("\"{snake}\""), &format!("\"{camel_case}\""));
    }
    assert_eq!(
        admit(&camel, Format::Json, &policy()).unwrap().workflow,
        canonical
    );
    assert_eq!(admit_value(&value, &policy()).unwrap().workflow, canonical);
}

/// Every field of the schema is read by admission, under the name and with the type it has there.
#[test]
fn the_schema_and_the_reader_know_the_same_fields() {
    for field in fields() {
        let steps = [
            json!({"name": "a", "type": "cli", "command": "true", "fix": true}),
            json!({"name": "b", "type": "agent", "goal": "g"}),
            json!({"name": "c", "type": "conditional", "condition": "alert.name == x"}),
        ];
        let complaints: Vec<String> = steps
            .iter()
            .map(|step| {
                let mut manifest = json!({
                    "apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "w"}, "spec": {"steps": [step]},
                });
                // A value that no field takes: the complaint must be about it, not about the name.
                put(&mut manifest, &field.path, json!([[["no field takes this"]]]));
                let problems = admit_value(&manifest, &policy()).map(|_| Vec::new()).unwrap_or_else(|p| p);
                listed(&problems)
            })
            .collect();
        let is_known = complaints.iter().any(|text| {
            !text.is_empty() && !text.contains("unknown field") && !text.contains("is a field of")
        });
        assert!(is_known, "{}: {complaints:?}", field.path);
    }
}

fn put(value: &mut Value, path: &str, new: Value) {
    let mut at = value;
    for part in path.split('.') {
        at = match part.strip_suffix("[]") {
            Some(list) => &mut at[list][0],
            None => &mut at[part],
        };
    }
    *at = new;
}

#[test]
fn every_problem_at_once_with_its_line() {
    check(
        r#"apiVersion: punching-fist.io/v1
kind: Workflows
metadata:
  name: Bad_Name
  namespace: a.b
  anotations: {}
  annotations:
    source.data: '{"pod": }'
    alert.severity: 5
spec:
  triggers: {}
  trigger:
    source: alertmanger
    filters: {n: 5, m: "~("}
    filter: {}
  runtime:
    env: {}
    image: "a b"
    environment: {PORT: 8080, "1X": a, DEBUG: true}
    llmConfig:
      provider: antropic
      apiKey: sk-123
      temprature: 1
      temperature: 3
      max_turns: 0
      maxTokens: 1.5
      endpoint: ftp://x
      api_key_secret: sk-ABC_1
  steps:
    - name: a
      type: cli
      comand: kubectl get pod
      timeout_minutes: 0
    - name: a
      type: agent
      goal: ""
      tools: [kubctl, prometheus, "mcp:g.t", 5, kubectl, kubectl, loki, readfile]
      timeoutMinutes: "5"
      command: x
    - name: "with space"
      type: conditional
      condition: alert.severity is critical
      onFlase: skip_rest
      on_false: skip_rest
    - name: steps
      type: clli
      command: x
      timeout_minutes: 1.5
      timeout_seconds: 90
    - type: conditional
      condition: steps.nope.output.x == 1
    - just text
    - name: later
      type: conditional
      condition: steps.later.status == Failed or steps.last.status == Succeeded
    - name: last
      type: cli
      command: [kubectl, get]
      fix: "true"
      resources: {cpu: 1, limits: {memory: lots}}
"#,
        &expect![[r#"
            error: line 1: apiVersion: unknown apiVersion "punching-fist.io/v1"; write punching-fist.io/v1alpha1
            error: line 2: kind: unknown kind "Workflows"; write Workflow
            error: line 4: metadata.name: `Bad_Name` is not a valid workflow name: use 1 to 253 lower-case letters, digits, `-` and `.`, each part between dots beginning and ending with a letter or digit
            error: line 5: metadata.namespace: `a.b` is not a valid namespace: use 1 to 63 lower-case letters, digits and `-`, beginning and ending with a letter or digit
            error: line 6: metadata.anotations: unknown field; did you mean "annotations"?
            error: line 8: metadata.annotations.source.data: is not JSON: expected value at line 1 column 9; write as in '{"pod": "web-1"}'
            error: line 9: metadata.annotations.alert.severity: expected a string, found the number 5; write "5", in quotes
            error: line 11: spec.triggers: unknown field; did you mean "trigger"?
            error: line 13: spec.trigger.source: unknown source "alertmanger"; did you mean "alertmanager"?
            error: line 14: spec.trigger.filters.n: expected a string, found the number 5; write "5", in quotes
            error: line 14: spec.trigger.filters.m: "(" is not a regular expression: unclosed group
            error: line 15: spec.trigger.filter: unknown field; did you mean "filters"?
            error: line 17: spec.runtime.env: unknown field; did you mean "environment"?
            error: line 18: spec.runtime.image: "a b" is not an image's name: it holds white space
            error: line 19: spec.runtime.environment.PORT: expected a string, found the number 8080; write "8080", in quotes
            error: line 19: spec.runtime.environment.DEBUG: expected a string, found true; write "true", in quotes
            error: line 19: spec.runtime.environment.1X: "1X" is not a variable's name; use letters, digits and `_`, and no digit at the start
            error: line 21: spec.runtime.llm_config.provider: unknown value "antropic"; did you mean "anthropic"?
            error: line 22: spec.runtime.llm_config.apiKey: a key must not stand in a manifest; put it into a Secret, and name that as api_key_secret
            error: line 23: spec.runtime.llm_config.temprature: unknown field; did you mean "temperature"?
            error: line 24: spec.runtime.llm_config.temperature: must be 0 to 2, not 3
            error: line 25: spec.runtime.llm_config.max_turns: must be 1 to 200, not 0
            error: line 26: spec.runtime.llm_config.max_tokens: must be a whole number, 1 to 1000000, not 1.5
            error: line 27: spec.runtime.llm_config.endpoint: "ftp://x" is not an address; it begins with https:// or http://
            error: line 28: spec.runtime.llm_config.api_key_secret: names a Kubernetes Secret in the workflow's namespace: lower-case letters, digits, `-` and `.`; a key itself must not stand in a manifest
            error: line 30: spec.steps[0].command: is missing; it is the line that the shell runs
            error: line 32: spec.steps[0].comand: unknown field; did you mean "command"?
            error: line 33: spec.steps[0].timeout_minutes: must be 1 to 1440, not 0
            error: line 34: spec.steps[1].name: the name "a" is taken by spec.steps[0]; each step has a name of its own
            error: line 36: spec.steps[1].goal: is empty; it says what the agent is to find out
            error: line 37: spec.steps[1].tools[0]: unknown tool "kubctl"; did you mean "kubectl"?
            error: line 37: spec.steps[1].tools[1]: unknown tool "prometheus"; did you mean "promql"?
            error: line 37: spec.steps[1].tools[2]: "g.t" is not an MCP server's name: use 1 to 32 letters, digits, `-` and `_`, as in mcp:tickets
            error: line 37: spec.steps[1].tools[3]: expected a string, found the number 5; write "5", in quotes
            error: line 37: spec.steps[1].tools[6]: unknown tool "loki"; did you mean "logs"?
            error: line 37: spec.steps[1].tools[7]: unknown tool "readfile"; did you mean "read_file"?
            error: line 38: spec.steps[1].timeout_minutes: expected a whole number, found the string "5"; remove the quotes
            error: line 39: spec.steps[1].command: "command" is a field of cli steps; this step's type is agent
            error: line 40: spec.steps[2].name: `with space` is not a valid step name: use 1 to 128 letters, digits, `_` and `-`
            error: line 42: spec.steps[2].condition: unknown operator "is"; did you mean `==`? (at character 16)
            error: line 43: spec.steps[2].onFlase: unknown field; did you mean "onFalse"?
            error: line 44: spec.steps[2].on_false: unknown value "skip_rest"; did you mean "skip_next"?
            error: line 46: spec.steps[3].type: unknown value "clli"; did you mean "cli"?
            error: line 48: spec.steps[3].timeout_minutes: must be a whole number, 1 to 1440, not 1.5; write timeout_seconds: 90
            error: line 49: spec.steps[3].timeout_seconds: stands beside timeout_minutes; keep one of them
            error: line 50: spec.steps[4].name: is missing; each step has a name of its own
            error: line 51: spec.steps[4].condition: `steps.nope.output.x` reads the step "nope", which does not exist; steps before this one: a, steps
            error: line 52: spec.steps[5]: expected an object of `key: value` fields, found the string "just text"
            error: line 55: spec.steps[6].condition: `steps.later.status` reads this step's own outcome, which is not there before it ran
            error: line 55: spec.steps[6].condition: `steps.last.status` reads the step "last", which runs later (spec.steps[7]); move it before this one
            error: line 58: spec.steps[7].command: expected a string, found a list; write it as one string
            error: line 59: spec.steps[7].fix: expected true or false, found the string "true"; remove the quotes
            error: line 60: spec.steps[7].resources.limits.memory: "lots" is not a quantity; write as in `cpu: 100m`, `memory: 64Mi`
            error: line 60: spec.steps[7].resources.cpu: unknown field; "cpu" belongs into requests or limits
            warning: line 37: spec.steps[1].tools[5]: "kubectl" is listed twice"#]],
    );
}

#[test]
fn what_is_missing_is_said() {
    check(
        "{}",
        &expect![[r#"
        error: apiVersion: is missing; write `apiVersion: punching-fist.io/v1alpha1`
        error: kind: is missing; write `kind: Workflow`
        error: metadata: is missing; it holds the workflow's name: `metadata: {name: my-workflow}`
        error: spec: is missing; it holds the steps"#]],
    );
    check(
        "apiVersion: punching-fist.io/v1alpha1\nkind: Workflow\nmetadata:\nspec:\n  steps: []\n",
        &expect![[r#"
            error: line 3: metadata: is missing; it holds the workflow's name: `metadata: {name: my-workflow}`
            error: line 5: spec.steps: is empty; a workflow needs at least one step"#]],
    );
    check(
        "apiVersion: punching-fist.io/v1alpha1\nkind: Workflow\nmetadata: {name: w}\nspec: {trigger: {}}\nsteps: []\n",
        &expect![[r#"
            error: line 4: spec.trigger.source: is missing; it may be: alertmanager, webhook, nats, pager
            error: line 4: spec.steps: is missing; a workflow needs at least one step
            error: line 5: steps: unknown field; "steps" belongs into spec"#]],
    );
    check(
        &with_steps(
            "  - {}\n  - {name: a, type: cli}\n  - {name: b, type: agent}\n  - {name: c, type: conditional}\n  - {name: d, type: conditional, condition: true}\n",
        ),
        &expect![[r#"
            error: line 7: spec.steps[0].name: is missing; each step has a name of its own
            error: line 7: spec.steps[0].type: is missing; it may be: cli, agent, conditional
            error: line 8: spec.steps[1].command: is missing; it is the line that the shell runs
            error: line 9: spec.steps[2].goal: is missing; it says what the agent is to find out
            error: line 10: spec.steps[3].condition: is missing; write as in `alert.severity == critical`
            error: line 11: spec.steps[4].condition: expected a comparison, found true; write as in `alert.severity == critical`
            warning: line 9: spec.steps[2].tools: has no tools: the agent can look at nothing but its goal"#]],
    );
}

#[test]
fn texts_that_are_no_document() {
    for (text, expect) in [
        ("", expect!["error: there is no workflow in the text"]),
        (
            "# nothing\n---\n",
            expect!["error: there is no workflow in the text"],
        ),
        (
            "a: [1\nb: 2\n",
            expect!["error: line 2: not YAML: illegal placement of ':' indicator (column 2)"],
        ),
        (
            "spec:\n\tsteps: []\n",
            expect![
                "error: line 2: not YAML: tabs disallowed within this context (block indentation) (column 2); indent with spaces, not with tabs"
            ],
        ),
        (
            "a: 1\nb: 2\na: 3\n",
            expect![[
                r#"error: line 3: the key "a" stands twice in one object, first on line 1; remove one of them"#
            ]],
        ),
        (
            "a: &x [*x]\n",
            expect!["error: line 1: an alias cannot stand inside what it names"],
        ),
        (
            "command: {{ steps.a.output }}\n",
            expect![
                "error: line 1: a key is a string, not an object; a value that begins with { or [ stands in quotes, as templates do"
            ],
        ),
        (
            "a: !secret x\n",
            expect!["error: line 1: the tag !secret has no meaning in a manifest; remove it"],
        ),
        (
            "<<: {a: 1}\n",
            expect!["error: line 1: merge keys (`<<`) are not part of YAML 1.2; write the fields out"],
        ),
        (
            "just text\n",
            expect![[
                r#"error: line 1: expected an object of `key: value` fields, found the string "just text""#
            ]],
        ),
        (
            "- a\n- b\n",
            expect!["error: line 1: expected an object of `key: value` fields, found a list"],
        ),
        (
            "kind: Workflow\n---\nkind: Workflow\n",
            expect!["error: the text holds 2 workflows, and one is expected here; send them one by one"],
        ),
    ] {
        check(text, &expect);
    }
    for (text, expect) in [
        (
            "",
            expect!["error: line 1: not JSON: EOF while parsing a value (column 0)"],
        ),
        (
            "{\"a\": 1,\n\"b\" 2}",
            expect!["error: line 2: not JSON: expected `:` (column 5)"],
        ),
        (
            "{\"a\": 1,\n\"a\": 2}",
            expect![[
                r#"error: line 2: the key "a" stands twice in one object, first on line 1; remove one of them"#
            ]],
        ),
        (
            "{\"metadata\": {\n\"nmae\": \"x\"}}",
            expect![[r#"
            error: line 1: metadata.name: is missing; name the workflow, as in `name: pod-crash-investigation`
            error: line 2: metadata.nmae: unknown field; did you mean "name"?
            error: apiVersion: is missing; write `apiVersion: punching-fist.io/v1alpha1`
            error: kind: is missing; write `kind: Workflow`
            error: spec: is missing; it holds the steps"#]],
        ),
        (
            "[]",
            expect!["error: line 1: expected an object of `key: value` fields, found a list"],
        ),
    ] {
        expect.assert_eq(&printed(text, Format::Json));
    }
}

#[test]
fn sizes_are_bounded() {
    let policy = policy();
    let refused = |text: &str, format| listed(&admit(text, format, &policy).unwrap_err());
    let long = format!("a: {}", "x".repeat(policy.manifest_bytes_max));
    assert!(refused(&long, Format::Yaml).contains("a manifest may have 1048576"));
    assert!(refused(&"[".repeat(100_000), Format::Yaml).contains("not YAML"));
    let deep = format!("{}{}", "[".repeat(60), "]".repeat(60));
    assert!(refused(&deep, Format::Yaml).contains("more than 32 deep"));
    assert!(refused(&deep, Format::Json).contains("more than 32 deep"));
    // The billion laughs.
    let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..9 {
        let copies = vec![format!("*a{}", level - 1); 10].join(", ");
        laughs.push_str(&format!("a{level}: &a{level} [{copies}]\n"));
    }
    assert!(refused(&laughs, Format::Yaml).contains("more than 200000 values"));
    let copies = vec!["*a"; 3000].join(", ");
    let text = format!("a: &a {}\nb: [{copies}]\n", "x".repeat(1000));
    assert!(refused(&text, Format::Yaml).contains("aliases copy more than"));
    let many: String = (0..50_000).map(|n| format!("x{n}: 1\n")).collect();
    let problems = admit(&many, Format::Yaml, &policy).unwrap_err();
    assert_eq!(problems.len(), crate::problem::PROBLEMS_MAX + 1);
    let long = format!(
        "  - {{name: a, type: cli, command: 'echo {}'}}\n",
        "x".repeat(65_536)
    );
    assert!(refused(&with_steps(&long), Format::Yaml).contains("has 65541 bytes; a template may have 65536"));
    let many = format!(
        "  - {{name: a, type: agent, goal: '{}'}}\n",
        "{{ env.A }}".repeat(1001)
    );
    assert!(
        refused(&with_steps(&many), Format::Yaml).contains("has 1001 expressions; a template may have 1000")
    );
    let steps: String = (0..1001)
        .map(|n| format!("  - {{name: s{n}, type: cli, command: 'true', timeout_minutes: 1}}\n"))
        .collect();
    assert_eq!(
        refused(&with_steps(&steps), Format::Yaml),
        "error: line 6: spec.steps: has 1001 steps; a workflow may have 1000"
    );
    let steps: String = (0..4)
        .map(|n| format!("  - {{name: s{n}, type: cli, command: 'true', timeout_minutes: 1440}}\n"))
        .collect();
    expect!["error: line 6: spec.steps: the steps' timeouts add up to 96 h; an execution may last 72 h; shorten them, or make two workflows of it"].assert_eq(&refused(&with_steps(&steps), Format::Yaml));
}

#[test]
fn anchors_and_several_documents_are_understood() {
    let step = "{name: s, type: cli, command: 'true', env: &e {A: b}}";
    let text = with_steps(&format!(
        "  - {step}\n  - {{name: t, type: cli, command: 'true', env: *e}}\n"
    ));
    let admitted = admit(&text, Format::Yaml, &policy()).unwrap();
    let StepKind::Cli(second) = &admitted.workflow.spec.steps[1].kind else {
        panic!("a cli step")
    };
    assert_eq!(second.env["A"], "b");
    let both = format!(
        "---\n{text}---\n{}---\n# nothing\n",
        with_steps("  - {name: s}\n")
    );
    let results = admit_all(&both, Format::Yaml, &policy());
    assert_eq!(results.len(), 2);
    assert!(results[0].is_ok());
    assert_eq!(
        results[1].as_ref().unwrap_err()[0].line,
        Some(17),
        "lines count through the whole text"
    );
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        serde_json::to_value(&admitted.workflow).unwrap(), serde_json::to_value(&admitted.workflow).unwrap(),
    ]});
    assert_eq!(admit_all(&list.to_string(), Format::Json, &policy()).len(), 2);
}

#[test]
fn kubernetes_own_fields_are_accepted() {
    let mut value = serde_json::to_value(admit(FULL, Format::Yaml, &policy()).unwrap().workflow).unwrap();
    value["metadata"]["uid"] = json!("6f1a");
    value["metadata"]["resourceVersion"] = json!("12");
    value["metadata"]["managedFields"] = json!([{"manager": "kubectl"}]);
    value["metadata"]["creationTimestamp"] = Value::Null;
    value["status"] = json!({"phase": "Running"});
    let admitted = admit_value(&value, &policy()).unwrap();
    assert_eq!(admitted.workflow.metadata.uid.as_deref(), Some("6f1a"));
}

#[test]
fn definition_or_execution() {
    let role = |annotations: &str, trigger: &str, step: &str| {
        let text = format!(
            "apiVersion: punching-fist.io/v1alpha1\nkind: Workflow\nmetadata:\n  name: w\n  annotations: {annotations}\nspec:\n  trigger: {trigger}\n  steps:\n  - {step}\n"
        );
        let admitted = admit(&text, Format::Yaml, &policy()).unwrap();
        (admitted.role, admitted.input)
    };
    let plain = "{name: a, type: cli, command: date}";
    let reading = "{name: a, type: conditional, condition: alert.severity == critical}";
    let trigger = "{source: nats}";
    assert_eq!(role("", "", plain).0, Role::Execution);
    assert_eq!(role("", trigger, plain).0, Role::Definition);
    assert_eq!(role("", "", reading).0, Role::Definition);
    assert_eq!(role("{other: x}", trigger, reading).0, Role::Definition);
    for template in [
        "echo {{ source.data.pod }}",
        "echo {{ alert.name }}",
        "{% if alert %}date{% endif %}",
    ] {
        let step = format!("{{name: a, type: cli, command: '{template}'}}");
        assert_eq!(role("", "", &step).0, Role::Definition, "{template}");
    }
    let own = "{name: a, type: cli, command: 'echo {{ execution.id }}'}";
    assert_eq!(role("", "", own).0, Role::Execution);
    let by_env = "{name: a, type: cli, command: date, env: {A: '{{ alert.name }}'}}";
    assert_eq!(role("", "", by_env).0, Role::Definition);
    for annotation in [
        "alert.name: X",
        "alert.severity: WARNING",
        "source.data: '{\"a\": 1}'",
    ] {
        let (role, input) = role(&format!("{{{annotation}}}"), trigger, reading);
        assert_eq!(role, Role::Execution, "{annotation}");
        assert!(input.is_some());
    }
    let (_, input) = role(
        "{alert.severity: WARNING, source.data: '{\"a\": [1]}'}",
        "",
        plain,
    );
    let input = input.unwrap();
    assert_eq!(input.alert.unwrap()["severity"], "warning");
    assert_eq!(input.data["a"], json!([1]));
}

#[test]
fn bad_source_data_names_the_place() {
    for (data, expect) in [
        (
            "'{\"pod\": }'",
            expect![[
                r#"error: line 6: metadata.annotations.source.data: is not JSON: expected value at line 1 column 9; write as in '{"pod": "web-1"}'"#
            ]],
        ),
        (
            "'[1]'",
            expect![[
                r#"error: line 6: metadata.annotations.source.data: must be a JSON object, not a list; write as in '{"pod": "web-1"}'"#
            ]],
        ),
        (
            "''",
            expect![[
                r#"error: line 6: metadata.annotations.source.data: is not JSON: EOF while parsing a value at line 1 column 0; write as in '{"pod": "web-1"}'"#
            ]],
        ),
        (
            "|\n      {\n        \"a\": 1,\n      }",
            expect![[
                r#"error: line 9: metadata.annotations.source.data: is not JSON: trailing comma at line 3 column 1; write as in '{"pod": "web-1"}'"#
            ]],
        ),
    ] {
        let text = format!(
            "apiVersion: punching-fist.io/v1alpha1\nkind: Workflow\nmetadata:\n  name: w\n  annotations:\n    source.data: {data}\nspec:\n  steps: [{{name: a, type: cli, command: date}}]\n"
        );
        check(&text, &expect);
    }
}

#[test]
fn warnings_of_what_is_surely_not_meant() {
    check(
        &with_steps(
            r#"  - name: list
    type: cli
    command: |
      kubectl get pods
      -n prod
  - name: ok
    type: cli
    command: |
      kubectl get pods \
      -n prod
  - name: empty
    type: conditional
    condition: alert.name == ""
    on_false: continue
  - name: never
    type: conditional
    condition: alert.severity == Critical
  - name: think
    type: agent
    goal: Think.
  - name: never-either
    type: conditional
    condition: steps.list.output.exit_code != 0 and steps.think.output.sumary contains x
    on_false: skip_next
  - name: case
    type: conditional
    condition: not steps.list.status in [Succeeded, Skipped]
    on_false: continue
  - name: last
    type: conditional
    condition: steps.list.output.stdotu == x or env.NOPE == 1 or source.pod == x or alert.severty == x or execution.uid == 1
    on_false: skip_next
"#,
        ),
        &expect![[r#"
            Definition
            warning: line 11: spec.steps[0].command: a line that begins with `-` is a command of its own; end the line before it with ` \`
            warning: line 19: spec.steps[2].condition: `alert.name == ""` compares with an empty string; a value that is not there is unknown, and never equal to it
            warning: line 24: spec.steps[4].tools: has no tools: the agent can look at nothing but its goal
            warning: line 24: spec.steps[4]: this step and those after it never run: the condition `alert.severity == Critical` of spec.steps[3] can never be met, since alert.severity is always in lower case
            warning: line 29: spec.steps[5].condition: `steps.think.output.sumary` will not be there; did you mean "summary"?
            warning: line 31: spec.steps[6]: this step never runs: the condition `steps.list.output.exit_code != 0 and steps.think.output.sumary contains x` of spec.steps[5] can never be met, since steps.list.output.exit_code can only be 0
            warning: line 37: spec.steps[7].condition: `steps.list.output.stdotu` will hardly be there; a cli step's output has "stdout"
            warning: line 37: spec.steps[7].condition: `env.NOPE` does not exist; there are no variables in spec.runtime.environment
            warning: line 37: spec.steps[7].condition: `source.pod` does not exist; an alert's and an invocation's values are under `source.data`
            warning: line 37: spec.steps[7].condition: `alert.severty` will hardly be there; an alert has "severity"
            warning: line 37: spec.steps[7].condition: `execution.uid` will not be there; an execution has: id, name, namespace
            warning: line 38: spec.steps[7].on_false: there is no next step that it could skip"#]],
    );
}

#[test]
fn a_mode_needs_a_fix() {
    check(
        &with_steps("  - {name: a, type: cli, command: 'kubectl delete pod x', mode: propose}\n"),
        &expect![
            "error: line 7: spec.steps[0].mode: says what becomes of a fix, and this command is none: it would be run without the gate; add `fix: true`, or remove `mode`"
        ],
    );
    check(
        &with_steps("  - {name: a, type: cli, command: 'kubectl delete pod x | cat', fix: true}\n"),
        &expect![
            "error: line 7: spec.steps[0].command: cannot pass the fix gate: it holds a pipe ('|'); a fix is one kubectl command, without a shell"
        ],
    );
}

#[test]
fn a_fix_that_the_gate_will_refuse_is_known_before_the_incident() {
    check(
        &with_steps(
            "  - {name: a, type: cli, command: 'kubectl delete pod --all', fix: true}
  - {name: b, type: cli, command: 'kubectl delete pod web-1 -n elsewhere', fix: true}
  - {name: c, type: cli, command: 'kubectl apply -f {{ source.data.file }}', fix: true}
",
        ),
        &expect![[r#"
            Definition
            warning: line 7: spec.steps[0].command: will not pass the fix gate as it is configured: --all is not allowed: a fix names what it changes"#]],
    );
}

#[test]
fn a_variable_that_holds_a_value_is_a_value_in_the_command() {
    check(
        &with_steps(
            r#"  - {name: a, type: cli, command: 'eval "$V"', env: {V: "{{ alert.name }}"}}
  - {name: b, type: cli, command: 'sh -c "$V"', env: {V: "{{ steps.a.output.stdout }}"}}
  - {name: c, type: cli, command: '$V', env: {V: "x{{ alert.name }}"}}
  - {name: d, type: cli, command: 'kubectl get pod $V', env: {V: "{{ alert.name }}"}}
  - {name: e, type: cli, command: 'kubectl get pod "$V" "$W" && eval "$W"', env: {V: "{{ alert.name }}", W: "true"}}
"#,
        ),
        &expect![[r#"
            error: line 7: spec.steps[0].command: `$V` holds a value: `eval` reads this as code once more, so that escaping it for the shell is not enough; call the command directly, with the value as one of its arguments
            error: line 8: spec.steps[1].command: `$V` holds a value: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            error: line 9: spec.steps[2].command: `$V` holds a value: a value cannot be the name of a command; write the name out, and pass the value as an argument
            error: line 10: spec.steps[3].command: `$V` holds a value, which unquoted would become several words; write "$V""#]],
    );
}

#[test]
fn templates_are_checked_line_by_line() {
    check(
        &with_steps(
            r#"  - name: first
    type: cli
    command: |
      # {{ alert.name }}
      echo {{ steps.frist.output.stdout }}
      echo {{ steps.later.output.stdout }} {{ steps.first.status }}
      sh -c "echo {{ alert.name }}"
    env:
      OK: "{{ source.data.pod }}"
      BAD: "{{ secrets.x }}"
  - name: agent
    type: agent
    goal: Look at {{ steps.first.output.stdotu }} and {{ nothing }}.
    tools: [kubectl]
  - name: code
    type: cli
    command: "{{ source.data.command }}"
  - name: more-code
    type: cli
    command: "{{ steps.first.output.stdout }}"
  - name: nearly
    type: cli
    command: "{{ steps.agent.output.fix_command | trim }}"
  - name: unclosed
    type: agent
    goal: "{% if alert.name %} {{ "
    tools: [kubectl]
  - name: later
    type: cli
    command: date
"#,
        ),
        &expect![[r#"
            error: line 11: spec.steps[0].command: there is no step `frist`; did you mean `first`?
            error: line 12: spec.steps[0].command: `steps.later.output.stdout` reads the step "later", which runs later (spec.steps[6]); move it before this one
            error: line 12: spec.steps[0].command: `steps.first.status` reads this step's own outcome, which is not there before it ran
            error: line 13: spec.steps[0].command: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            error: line 16: spec.steps[0].env.BAD: `secrets` is nothing a template can read; there are source, alert, steps, env, execution
            error: line 19: spec.steps[1].goal: `nothing` is nothing a template can read; there are source, alert, steps, env, execution
            error: line 23: spec.steps[2].command: a command that is nothing but `{{ source.data.command }}` runs whatever that text says; only `{{ steps.<agent step>.output.fix_command }}` may, through the fix gate; write the command out, with values as its arguments
            error: line 26: spec.steps[3].command: a command that is nothing but `{{ steps.first.output.stdout }}` runs whatever that text says; only `{{ steps.<agent step>.output.fix_command }}` may, through the fix gate; write the command out, with values as its arguments
            error: line 29: spec.steps[4].command: a command that is nothing but one expression runs text as code; only a step's output itself may stand there, as in `{{ steps.<agent step>.output.fix_command }}`, without filters or operators
            error: line 32: spec.steps[5].goal: `{{` is never closed: write `}}`
            warning: line 19: spec.steps[1].goal: `steps.first.output.stdotu` will hardly be there; a cli step's output has "stdout""#]],
    );
}

#[test]
fn a_fix_comes_from_an_agent() {
    let fix = "  - name: look-into
    type: agent
    goal: Look.
    tools: [kubectl]
  - name: fix
    type: cli
    command: '{{ steps.look-into.output.fix_command }}'
";
    check(&with_steps(fix), &expect!["Execution"]);
    let scripted = fix.replace("    tools:", "    llm_config: {provider: scripted}\n    tools:");
    check(
        &with_steps(&scripted),
        &expect![[r#"
        error: line 10: spec.steps[0].llm_config.model: is missing; for `scripted` it names the file of turns
        warning: line 14: spec.steps[1].command: "look-into" is scripted, and what a script suggests is never run: this step will always fail"#]],
    );
    let with_model = scripted.replace("provider: scripted", "provider: scripted, model: turns");
    check(
        &with_steps(&with_model),
        &expect![[r#"
        Execution
        warning: line 14: spec.steps[1].command: "look-into" is scripted, and what a script suggests is never run: this step will always fail"#]],
    );
    let admitted = admit(&with_steps(fix), Format::Yaml, &policy()).unwrap();
    let program = crate::Program::compile(&admitted.workflow.spec).unwrap();
    let program::Work::Cli(work) = &program.step("fix").unwrap().work else {
        panic!("a cli step")
    };
    assert_eq!(
        work.gate,
        Some(program::Gated::Suggested {
            by_step: "look-into".to_owned()
        })
    );
}

proptest! {
    #[test]
    fn never_panics_on_any_text(text in "[ -~\n\t€]{0,300}") {
        let _ = admit_all(&text, Format::Yaml, &policy());
        let _ = admit_all(&text, Format::Json, &policy());
    }

    #[test]
    fn never_panics_on_a_damaged_manifest(at in 0..FULL.len(), length in 0usize..40, with in "[ -~\n]{0,8}") {
        let end = (at + length).min(FULL.len());
        let text = format!("{}{with}{}", &FULL[..at], &FULL[end..]);
        for result in admit_all(&text, Format::Yaml, &policy()) {
            match result {
                Ok(admitted) => {
                    // Whatever is admitted survives the start fact.
                    let spec = serde_json::to_string(&admitted.workflow.spec).unwrap();
                    prop_assert_eq!(serde_json::from_str::<Spec>(&spec).unwrap(), admitted.workflow.spec);
                }
                Err(problems) => prop_assert!(!problems.is_empty()),
            }
        }
    }

    #[test]
    fn json_and_yaml_read_json_alike(value in value()) {
        let text = serde_json::to_string_pretty(&value).unwrap();
        let json = json::parse(&text).unwrap();
        prop_assert_eq!(strip(&json), value);
        let yaml = yaml::parse(&text).unwrap();
        prop_assert_eq!(yaml, if json.shape == Shape::Null { vec![] } else { vec![json] });
    }
}

/// JSON values whose texts YAML reads alike.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-zA-Z0-9 :#,{}\"-]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z]{1,4}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn strip(node: &Node) -> Value {
    match &node.shape {
        Shape::Null => Value::Null,
        Shape::Bool(value) => (*value).into(),
        Shape::Number(number, _) => Value::Number(number.clone()),
        Shape::Text(text) => text.as_str().into(),
        Shape::List(items) => items.iter().map(strip).collect(),
        Shape::Map(entries) => Value::Object(
            entries
                .iter()
                .map(|entry| (entry.key.clone(), strip(&entry.node)))
                .collect(),
        ),
    }
}

#[test]
fn a_command_runs_as_any_user_but_root() {
    let manifest = |user: &str| {
        format!(
            "apiVersion: punching-fist.io/v1alpha1\nkind: Workflow\nmetadata: {{name: w}}\nspec:\n  steps:\n  - {{name: s, type: cli, command: id, {user}}}\n"
        )
    };
    for written in ["run_as_user: 1000", "runAsUser: 1000"] {
        let admitted = admit(&manifest(written), Format::Yaml, &policy()).unwrap();
        let StepKind::Cli(cli) = &admitted.workflow.spec.steps[0].kind else {
            panic!("it is a command");
        };
        assert_eq!(cli.run_as_user, Some(1000));
    }
    for (written, part) in [
        (
            "run_as_user: 0",
            "spec.steps[0].run_as_user: 0 is root, as which no command runs; give a user from 1",
        ),
        (
            "runAsUser: 2147483648",
            "spec.steps[0].run_as_user: must be 0 to 2147483647",
        ),
        ("run_as_user: nobody", "expected a whole number"),
    ] {
        let problems = admit(&manifest(written), Format::Yaml, &policy()).unwrap_err();
        let text = listed(&problems);
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn the_unit_of_a_timeout_is_kept() {
    let manifest = "apiVersion: punching-fist.io/v1alpha1\nkind: Workflow\nmetadata: {name: w}\nspec:\n  steps:\n  - {name: s, type: cli, command: id, timeout_seconds: 120}\n";
    let spec = admit(manifest, Format::Yaml, &policy()).unwrap().workflow.spec;
    let canonical = serde_json::to_value(&spec).unwrap();
    assert_eq!(canonical["steps"][0]["timeout_seconds"], 120);
    assert!(serde_json::from_value::<Spec>(canonical).unwrap().steps[0].is_timeout_in_seconds);
}

#[test]
fn what_no_start_can_carry_is_refused() {
    let manifest = format!(
        "apiVersion: punching-fist.io/v1alpha1\nkind: Workflow\nmetadata:\n  name: w\nspec:\n  trigger:\n    source: alertmanager\n    filters:\n      {}RawValue: x\n  steps:\n  - {{name: a, type: cli, command: 'true'}}",
        protocol::json::RESERVED
    );
    let said = printed(&manifest, Format::Yaml);
    assert!(
        said.contains("spec") && said.contains("give it another name"),
        "{said}"
    );
}
