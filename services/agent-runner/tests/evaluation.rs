//! An evaluation with real providers behind HTTP: the model sees the recording, and nothing that was redacted.
#![allow(clippy::unwrap_used)]

mod mock;

use agent_runner::evaluation::{Asked, CaseReport, Evaluator, case};
use mock::{DIALECTS, Mock, PLANTED, Reply, submits};
use serde_json::json;

const CASE: &str = "
goal: Why does web-1 crash?
alert: {name: KubePodCrashLooping, labels: {namespace: shop, password: hunter2xyzzy}}
tools: [kubectl]
answers:
  - {tool: kubectl, match: '^kubectl logs', result: 'FATAL: DB_URL is not set; password=hunter2xyzzy'}
expect:
  says: [DB_URL]
  fix: kubectl rollout undo deployment/web -n shop
  turns_max: 3
  calls_max: 3
  unrecorded_max: 1
";

fn kubectl(id: &'static str, words: &[&str]) -> (&'static str, &'static str, String) {
    (id, "kubectl", json!({ "args": words }).to_string())
}

async fn evaluated(mock: &Mock, endpoint: Option<String>) -> CaseReport {
    service::install_crypto();
    let asked = Asked {
        provider: Some(mock.dialect.name().to_owned()),
        model: Some("test-model".to_owned()),
        endpoint,
    };
    let mut config = service::Config::default();
    config.llm.retries_max = 0;
    let evaluator = Evaluator::new(config, mock.secrets(), asked).unwrap();
    let case = case::parse("case.yaml", CASE).unwrap();
    let ready = evaluator
        .ready(case)
        .unwrap_or_else(|problems| panic!("{problems:?}"));
    evaluator.run(&ready).await.unwrap()
}

fn good() -> Vec<Reply> {
    vec![
        Reply::Answer(
            "I look.",
            vec![
                kubectl("toolu_1", &["logs", "web-1", "-n", "shop"]),
                kubectl("toolu_2", &["get", "jobs"]),
                kubectl("toolu_3", &["get", "secrets"]),
            ],
        ),
        submits(&json!({
            "summary": "DB_URL is not set.", "can_auto_fix": true,
            "fix_command": "kubectl rollout undo deployment/web -n shop",
            "evidence": [{"call_id": "toolu_1", "quote": "DB_URL is not set"}],
        })),
    ]
}

#[tokio::test]
async fn a_model_of_either_dialect_is_judged_as_in_a_step() {
    for dialect in DIALECTS {
        let mock = Mock::start(dialect, good()).await;
        let report = evaluated(&mock, None).await;
        assert!(report.passed, "{report:#?}");
        assert_eq!(mock.problems(), Vec::<String>::new());
        assert_eq!((report.turns, report.calls, report.unrecorded), (2, 3, 1));
        assert_eq!(report.unrecorded_calls, ["kubectl get jobs"]);
        let asked = mock.requests()[1].to_string();
        assert!(
            asked.contains("DB_URL is not set; password=[REDACTED:"),
            "{asked}"
        );
        assert!(
            asked.contains("nothing is recorded for `kubectl get jobs`"),
            "{asked}"
        );
        // As in a step, and not for want of a recording.
        assert!(asked.contains("refused: Secrets"), "{asked}");
        assert!(!report.output.to_string().contains(PLANTED));
    }
}

#[tokio::test]
async fn an_address_on_the_command_line_gets_the_key_without_being_listed() {
    for dialect in DIALECTS {
        let mock = Mock::start(dialect, good()).await;
        let nobody = Mock::start(dialect, vec![]).await;
        let there = Mock {
            port: nobody.port,
            ..mock.clone()
        };
        let report = evaluated(&there, Some(format!("http://127.0.0.1:{}", mock.port))).await;
        assert!(report.passed, "{report:#?}");
        assert_eq!(nobody.requests().len(), 0);
    }
}

#[tokio::test]
async fn a_provider_that_fails_is_a_case_that_fails() {
    let mock = Mock::start(
        DIALECTS[0],
        vec![Reply::Status(401, vec![], json!({"error": {"message": "no"}}))],
    )
    .await;
    let report = evaluated(&mock, None).await;
    assert!(!report.passed);
    assert!(
        report.criteria[0].found.starts_with("partial (provider_error): "),
        "{report:#?}"
    );
}
