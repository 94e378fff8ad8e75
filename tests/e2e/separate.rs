//! The five services, each a process of its own and each twice: they share the work, and nothing runs twice,
//! whoever is killed.

use std::{collections::BTreeMap, fs};

use bus::sim::Rng;
use futures_util::future::join_all;
use serde_json::Value;

use crate::product::Product;

/// Three steps, each of which leaves one line in a file of this execution.
fn workflow(witness: &str, name: &str) -> String {
    format!(
        "apiVersion: punching-fist.io/v1alpha1
kind: Workflow
metadata:
  name: {name}
  annotations:
    source.data: '{{\"witness\": \"{witness}\"}}'
spec:
  steps:
    - name: first
      type: cli
      timeout_minutes: 2
      command: echo first-$$ | tee -a -- {{{{ source.data.witness }}}} && echo one
    - name: is-one
      type: conditional
      condition: steps.first.output.stdout contains one
    - name: second
      type: cli
      timeout_minutes: 2
      command: echo second-$$ | tee -a -- {{{{ source.data.witness }}}}
"
    )
}

/// What each step left, by step.
fn witnesses(path: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for line in fs::read_to_string(path).unwrap_or_default().lines() {
        *counts
            .entry(line.split('-').next().unwrap().to_owned())
            .or_default() += 1;
    }
    counts
}

async fn submit(product: &Product, number: usize) -> (String, String) {
    let witness = product
        .directory()
        .join(format!("witness-{number}"))
        .to_string_lossy()
        .into_owned();
    let manifest = workflow(&witness, &format!("w-{number}"));
    let key = format!("submission-{number}");
    let accepted = product
        .post(number, "/api/v1/executions", "application/yaml", &key, &manifest)
        .await;
    (accepted["id"].as_str().unwrap().to_owned(), witness)
}

fn is_success(execution: &Value) -> bool {
    execution["status"] == "Succeeded" && execution["steps_completed"] == 3
}

#[tokio::test]
async fn two_of_each_share_the_work_and_nothing_runs_twice() {
    let Some(product) = Product::start(2).await else {
        return;
    };
    let submitted = join_all((0..40).map(|number| submit(&product, number))).await;
    for (id, witness) in &submitted {
        let execution = product.ended(id).await;
        assert!(is_success(&execution), "{execution:#}");
        let expected = BTreeMap::from([("first".to_owned(), 1), ("second".to_owned(), 1)]);
        assert_eq!(witnesses(witness), expected, "{id}");
    }
    // The same submissions again, to the other replica, are the same executions.
    let again = join_all((0..40).map(|number| submit(&product, number + 40 * (number % 2)))).await;
    let known: Vec<_> = submitted.iter().map(|(id, _)| id).collect();
    for (number, (id, _)) in again.iter().enumerate().filter(|(number, _)| number % 2 == 0) {
        assert!(
            known.contains(&id),
            "submission {number} became another execution"
        );
    }
}

#[tokio::test]
async fn whoever_is_killed_every_execution_ends_as_it_would_have() {
    let Some(mut product) = Product::start(2).await else {
        return;
    };
    let seed = std::env::var("FIST_CHAOS_SEED")
        .ok()
        .map_or(1, |seed| seed.parse().unwrap());
    let mut rng = Rng::new(seed);
    let mut submitted = Vec::new();
    let mut killed = Vec::new();
    for round in 0..10 {
        submitted.extend(join_all((0..4).map(|number| submit(&product, round * 4 + number))).await);
        let index = rng.below(product.processes() as u64) as usize;
        killed.push(product.kill_and_restart(index));
        if round == 4 {
            product.nats.restart().await;
            killed.push("nats-server".to_owned());
        }
    }
    let context = format!("seed {seed}, killed {killed:?}");
    for (id, witness) in &submitted {
        let execution = product.ended(id).await;
        assert!(is_success(&execution), "{context}: {execution:#}");
        // A command whose runner was killed in the middle runs once more, with the same attempt; it never
        // leaves less than one trace, and is recorded once.
        let counts = witnesses(witness);
        assert!(
            counts.get("first").is_some_and(|count| *count >= 1),
            "{context}: {id}: {counts:?}"
        );
        assert!(
            counts.get("second").is_some_and(|count| *count >= 1),
            "{context}: {id}: {counts:?}"
        );
        let steps = execution["steps"].as_array().unwrap();
        assert_eq!(steps.len(), 3, "{context}: {execution:#}");
    }
}

#[tokio::test]
async fn the_database_and_the_log_tell_the_same_and_the_balance_holds() {
    let Some(product) = Product::start(1).await else {
        return;
    };
    let definition = "apiVersion: punching-fist.io/v1alpha1
kind: Workflow
metadata: {name: on-alert}
spec:
  trigger: {source: alertmanager, filters: {alertname: ~Disk.*}}
  steps:
    - {name: say, type: cli, command: 'echo {{ source.data.mountpoint }}'}
";
    product
        .post(0, "/api/v1/workflows", "application/yaml", "", definition)
        .await;
    let group = |status: &str| {
        serde_json::json!({
            "version": "4", "groupKey": "g", "status": status, "receiver": "fist",
            "groupLabels": {}, "commonLabels": {}, "commonAnnotations": {}, "externalURL": "http://am",
            "truncatedAlerts": 0,
            "alerts": [
                { "status": status, "labels": { "alertname": "DiskFull", "mountpoint": "/; false" },
                  "annotations": {}, "startsAt": "2026-01-01T00:00:00Z", "endsAt": "0001-01-01T00:00:00Z",
                  "generatorURL": "http://p", "fingerprint": "aaaa" },
                { "status": status, "labels": { "alertname": "Other" }, "annotations": {},
                  "startsAt": "2026-01-01T00:00:00Z", "endsAt": "0001-01-01T00:00:00Z",
                  "generatorURL": "http://p", "fingerprint": "bbbb" },
            ],
        })
        .to_string()
    };
    for status in ["firing", "firing", "resolved"] {
        product
            .post(
                0,
                "/webhooks/alertmanager",
                "application/json",
                "",
                &group(status),
            )
            .await;
    }
    let audit = product
        .until("every alert has its disposition", || async {
            let audit = product.get(0, "/api/v1/alerts/audit").await?;
            (audit["alerts"] == 6 && audit["balanced"] == true).then_some(audit)
        })
        .await;
    assert_eq!(
        audit["dispositions"],
        serde_json::json!({ "started": 1, "merged": 1, "filtered": 2, "resolved": 2, "rejected": 0 }),
        "{audit:#}"
    );
    let executions = product.get(0, "/api/v1/executions").await.unwrap();
    let items = executions["items"].as_array().unwrap();
    assert_eq!(items.len(), 1, "{executions:#}");
    let execution = product.ended(items[0]["id"].as_str().unwrap()).await;
    assert_eq!(
        execution["steps"][0]["output"]["stdout"], "/; false\n",
        "{execution:#}"
    );
    assert_eq!(
        execution["outputs"]["steps"]["say"]["exit_code"], 0,
        "{execution:#}"
    );
}
