//! Manifests: nothing makes the parser or the validator panic, every refusal has a reason, and what is admitted is
//! admitted again, the same, as the JSON that the Kubernetes API would hold, and compiles.

use engine::{Definition, Format, Policy, Severity, admit, admit_all};
use fuzz::{Target, gist, shape};

use crate::texts;

#[test]
fn what_is_admitted_is_admitted_again() {
    let mut seeds = texts("examples", "yaml");
    seeds.push(
        r#"{"apiVersion":"punching-fist.io/v1alpha1","kind":"Workflow","metadata":{"name":"w","annotations":{"source.data":"{\"a\":1}"}},"spec":{"steps":[{"name":"a","type":"cli","command":"echo {{ source.data.a }}"}]}}"#
            .to_owned(),
    );
    seeds.push("kind: List\nitems: []\n".to_owned());
    let target = Target {
        name: "manifest",
        crate_dir: env!("CARGO_MANIFEST_DIR"),
        tmp_dir: env!("CARGO_TARGET_TMPDIR"),
        seeds,
        words: &[
            "steps:\n  - ",
            "name: ",
            "type: cli",
            "type: agent",
            "type: conditional",
            "command: ",
            "condition: ",
            "on_false: ",
            "goal: ",
            "tools: [kubectl]",
            "timeout_minutes: ",
            "timeoutSeconds: ",
            "trigger:\n",
            "filters:\n",
            "~",
            "{{ ",
            " }}",
            "{% if ",
            "{% for x in ",
            "%}",
            "steps.",
            "source.data.",
            "alert.name",
            "env.",
            "&a ",
            "*a",
            "!!int ",
            "|\n",
            ">-\n",
            "---\n",
            "? ",
            "- ",
            "  ",
            "null",
            "fix: true",
            "llm_config:\n",
            "suspend: true",
            "image: ",
            "kind: List\n",
            "items:\n",
            "# ",
            "\"\\u0000\"",
        ],
    };
    let policy = Policy::default();
    fuzz::fuzz(&target, |text| {
        let all = admit_all(text, Format::Yaml, &policy);
        assert!(!all.is_empty(), "there is always a result");
        let as_json = admit_all(text, Format::Json, &policy);
        assert!(!as_json.is_empty(), "there is always a result");
        let mut shapes = Vec::new();
        for result in all {
            match result {
                Ok(admitted) => {
                    let json = serde_json::to_string(&admitted.workflow).unwrap();
                    let again = admit(&json, Format::Json, &policy);
                    let again = again
                        .unwrap_or_else(|problems| panic!("as JSON it is refused: {problems:?}\n{json}"));
                    assert_eq!(
                        again.workflow, admitted.workflow,
                        "as JSON it is another workflow"
                    );
                    assert_eq!(
                        (again.role, &again.input),
                        (admitted.role, &admitted.input),
                        "as JSON it is another kind of workflow"
                    );
                    let steps = admitted.workflow.spec.steps.len();
                    let compiled = Definition::compile(admitted.workflow.spec);
                    assert!(
                        compiled.is_ok(),
                        "what is admitted compiles: {:?}",
                        compiled.err()
                    );
                    shapes.push(format!("{steps} {:?} {}", admitted.role, admitted.warnings.len()));
                }
                Err(problems) => {
                    assert!(
                        problems.iter().any(|problem| problem.severity == Severity::Error),
                        "it is refused for a reason"
                    );
                    assert!(
                        problems.iter().all(|problem| !problem.message.is_empty()),
                        "each problem says what it is"
                    );
                    shapes.extend(problems.iter().take(3).map(|problem| gist(&problem.message)));
                }
            }
        }
        shape(shapes)
    });
}
