//! Budgets through the whole service: two runners share one bucket, and one that was shut down leaves no trace in it.

use std::time::Duration;

use bus::Budgets;
use protocol::Day;
use service::config::Price;

use super::*;

/// Room for any call here, but not for its turn and a last one's whole answer beside what is used.
const BUDGET: u64 = 30_000;

async fn with_budget(tokens: u64) -> Bench {
    let mut bench = Bench::new().await;
    bench.config.agent.budget_tokens_per_day = tokens;
    let price = Price {
        input: 1_000_000,
        output: 2_000_000,
        cached: 1_000_000,
    };
    bench.config.prices.insert("test".into(), price);
    bench
}

fn replies() -> Vec<Reply> {
    vec![
        Reply::Answer("", vec![looks("toolu_1", "web-1")]),
        Reply::Silent,
        submits(&findings("web-1 CrashLoopBackOff")),
        Reply::Answer("", vec![looks("toolu_1", "web-1")]),
        submits(&findings("web-1 CrashLoopBackOff")),
    ]
}

#[tokio::test]
async fn runners_share_a_budget_and_end_inconclusive_when_it_is_spent() {
    let bench = with_budget(BUDGET).await;
    let budgets = Budgets::open(&bench.connection).await.unwrap();
    let mock = Mock::start(Dialect::OpenAi, replies()).await;
    let first = bench.start(mock.secrets());
    let task = bench
        .hand_out(work(Dialect::OpenAi), Duration::from_secs(600))
        .await;
    let asked_twice = async {
        while mock.requests().len() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WITHIN, asked_twice).await.unwrap();
    let (prod, day) = (task.namespace.clone(), Day::of(now()));
    let used = budgets.get(&prod, day).await.unwrap();
    assert_eq!((used.used_tokens, used.reservations.len()), (130, 1), "{used:?}");
    first.stop().await;
    let second = bench.start(mock.secrets());
    let done = bench.done(&task).await;
    assert_eq!(output(&done)["usage"]["cost_usd"], json!(0.00032), "{done:?}");
    let used = budgets.get(&prod, day).await.unwrap();
    assert_eq!((used.used_tokens, used.cost_nano_usd), (260, 320_000), "{used:?}");
    assert!(used.reservations.is_empty(), "{used:?}");

    // Others use up the rest.
    budgets
        .change(&prod, day, now(), |day| day.used_tokens = BUDGET - 100)
        .await
        .unwrap();
    let task = bench
        .hand_out(work(Dialect::OpenAi), Duration::from_secs(600))
        .await;
    let done = bench.done(&task).await;
    assert_eq!(done.outcome, Outcome::Succeeded);
    let output_ = output(&done);
    assert_eq!(
        (&output_["status"], &output_["stop_reason"]),
        (&json!("inconclusive"), &json!("budget"))
    );
    assert_eq!(output_["can_auto_fix"], false);
    let notes = output_["escalation_notes"].as_str().unwrap();
    for part in [
        "namespace prod",
        "of 30000 tokens, 29900 are used",
        &format!("resets at {}", day.end()),
    ] {
        assert!(notes.contains(part), "{notes}");
    }
    assert_eq!(mock.answered(), 2, "no model was asked");

    // The budget of one namespace is none of another's.
    let task = bench
        .hand_out_in("other", work(Dialect::OpenAi), Duration::from_secs(600))
        .await;
    assert_eq!(output(&bench.done(&task).await)["status"], "complete");
    let other = budgets.get(&task.namespace, day).await.unwrap();
    assert_eq!(other.used_tokens, 260);
    second.stop().await;
}

/// An installation from before there were budgets.
#[tokio::test]
async fn only_a_budget_needs_the_bucket_of_budgets() {
    for (tokens, is_needed) in [(0, false), (BUDGET, true)] {
        let bench = with_budget(tokens).await;
        let delete = "$JS.API.STREAM.DELETE.KV_fist-budgets".to_owned();
        bench
            .connection
            .client()
            .request(delete, "".into())
            .await
            .unwrap();
        let mock = Mock::start(Dialect::OpenAi, vec![submits(&findings("x"))]).await;
        let running = bench.start(mock.secrets());
        if is_needed {
            let ended = tokio::time::timeout(WITHIN, running.service)
                .await
                .unwrap()
                .unwrap();
            let reason = ended.unwrap_err().to_string();
            assert!(
                reason.contains("fist-budgets") && reason.contains("`fist nats init`"),
                "{reason}"
            );
        } else {
            let task = bench
                .hand_out(work(Dialect::OpenAi), Duration::from_secs(600))
                .await;
            assert_eq!(bench.done(&task).await.outcome, Outcome::Succeeded);
            running.stop().await;
        }
    }
}
