//! The loop with a budget whose days are in this process: what it does without room, and what it settles.

use bus::LogError;
use protocol::{
    Attempt, BudgetDay, Day, ExecutionId, Namespace, StepName, Task, TaskType, WorkflowName,
    budget::{Request as Reserve, Shortage, Spent, TurnId},
};
use service::config::{BudgetExhausted, Price};

use super::*;
use crate::budget::{Change, Ledger};

/// Days that live here; the n-th change dies, before or after it took effect.
struct Days {
    days: Mutex<BTreeMap<Day, BudgetDay>>,
    changes_left: AtomicUsize,
    takes_effect: bool,
}

impl Ledger for Days {
    fn change<'a>(
        &'a self,
        _: &'a Namespace,
        day: Day,
        _: Timestamp,
        change: Change<'a>,
    ) -> BoxFuture<'a, Result<Result<bool, Shortage>, LogError>> {
        Box::pin(async move {
            let dies = self.changes_left.fetch_sub(1, Ordering::Relaxed) == 1;
            let mut said = Ok(false);
            if !dies || self.takes_effect {
                said = change(self.days.lock().unwrap().entry(day).or_default());
            }
            match dies {
                true => Err(LogError::Unavailable {
                    action: "change a budget".into(),
                    reason: "died".into(),
                }),
                false => Ok(said),
            }
        })
    }
}

/// A namespace with a budget, in which one task runs.
struct Purse {
    days: Days,
    task: Task,
    metrics: Metrics,
    limit_tokens: u64,
    exhausted: BudgetExhausted,
    began: (Timestamp, Instant),
}

impl Purse {
    fn new(limit_tokens: u64, used_tokens: u64) -> Self {
        let now = clock::now();
        let used = BudgetDay {
            used_tokens,
            ..BudgetDay::default()
        };
        Self {
            days: Days {
                days: Mutex::new(BTreeMap::from([(Day::of(now), used)])),
                changes_left: AtomicUsize::new(usize::MAX),
                takes_effect: false,
            },
            task: Task {
                namespace: Namespace::new("prod").unwrap(),
                execution: ExecutionId::derive(&["budget"]),
                workflow: WorkflowName::new("w").unwrap(),
                step: StepName::new("look").unwrap(),
                index: 0,
                attempt: Attempt::FIRST,
                task_type: TaskType::agent(),
                dispatched_at: now,
                deadline: now.after(Duration::from_secs(600)),
                timeout: "10 minutes".into(),
                work: Value::Null,
            },
            metrics: Metrics::new(),
            limit_tokens,
            exhausted: BudgetExhausted::Inconclusive,
            began: (now, Instant::now()),
        }
    }

    fn budget(&self) -> Budget<'_> {
        Budget {
            ledger: &self.days,
            task: &self.task,
            limit_tokens: self.limit_tokens,
            exhausted: self.exhausted,
            price: Some(Price {
                input: 3_000_000,
                output: 15_000_000,
                cached: 300_000,
            }),
            metrics: &self.metrics,
            began: self.began,
        }
    }

    async fn run(&self, bench: &Bench) -> Result<Concluded, Failure> {
        bench
            .run_with(&CancellationToken::new(), Some(self.budget()))
            .await
    }

    /// What is used and reserved over all days.
    fn sums(&self) -> (u64, u64) {
        let days = self.days.days.lock().unwrap();
        let used = days.values().map(|day| day.used_tokens).sum();
        let reserved = days.values().map(|day| day.reserved_tokens(self.began.0)).sum();
        (used, reserved)
    }
}

/// As [`short`], for an end by the budget: what it says.
fn out_of_budget(concluded: &Concluded) -> String {
    let output = &concluded.output;
    assert_eq!(
        (&output["status"], &output["stop_reason"]),
        (&json!("inconclusive"), &json!("budget"))
    );
    assert_eq!(
        (&output["can_auto_fix"], &output["fix_command"]),
        (&json!(false), &Value::Null)
    );
    match &concluded.end {
        End::Short { message, .. } => message.clone(),
        End::Submitted => panic!("{concluded:?}"),
    }
}

#[tokio::test]
async fn with_room_every_turn_is_counted_with_its_cost() {
    let (bench, purse) = (Bench::new(usual()), Purse::new(100_000, 0));
    let concluded = purse.run(&bench).await.unwrap();
    assert_eq!(concluded.end, End::Submitted);
    assert_eq!(purse.sums(), (440, 0));
    // 380 read anew, 20 from the cache, 40 written.
    let cost_usd = (380.0 * 3.0 + 20.0 * 0.3 + 40.0 * 15.0) / 1e6;
    assert_eq!(concluded.output["usage"]["cost_usd"], json!(cost_usd));
    let metrics = purse.metrics.encode();
    assert!(
        metrics.contains(r#"fist_budget_tokens_used_total{namespace="prod"} 440"#),
        "{metrics}"
    );
}

#[tokio::test]
async fn killed_at_any_point_it_reserves_and_settles_once() {
    for takes_effect in [true, false] {
        // Before and after each of four answers the budget is changed; six results are recorded besides.
        for (journal_dies_at, budget_dies_at) in (1..=10).map(|n| (n, 0)).chain((1..=8).map(|n| (0, n))) {
            let (mut bench, mut purse) = (Bench::new(usual()), Purse::new(100_000, 0));
            let never = |n: usize| AtomicUsize::new(if n == 0 { usize::MAX } else { n });
            (bench.journal.takes_effect, purse.days.takes_effect) = (takes_effect, takes_effect);
            bench.journal.writes_left = never(journal_dies_at);
            purse.days.changes_left = never(budget_dies_at);
            let died = purse.run(&bench).await;
            let at = format!("{journal_dies_at} {budget_dies_at} {takes_effect}");
            assert!(died.is_err(), "{at}");
            let concluded = purse.run(&bench).await.unwrap();
            assert_eq!(concluded.end, End::Submitted, "{at}");
            assert_eq!(purse.sums(), (440, 0), "{at}");
        }
    }
}

#[tokio::test]
async fn a_budget_that_runs_out_ends_the_step_with_what_it_has() {
    let mut answers = usual();
    answers[0].usage.input_tokens = 2500;
    answers[1] = answer("", &[("c9", "submit_findings", findings())]);
    let (bench, purse) = (Bench::new(answers), Purse::new(6000, 0));
    let concluded = purse.run(&bench).await.unwrap();
    let message = out_of_budget(&concluded);
    let day = Day::of(purse.began.0);
    for part in [
        "namespace prod",
        "6000 tokens",
        &format!("{day}"),
        &format!("resets at {}", day.end()),
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(
        (concluded.turns, &concluded.output["summary"]),
        (2, &json!("it is so"))
    );
    let offered = bench.provider.offered.lock().unwrap().clone();
    assert_eq!(offered[1], ["submit_findings"]);
    assert_eq!(purse.sums(), (2510 + 110, 0));
    // Somebody who only has the record and the budget comes to the same end.
    let again = purse.run(&bench).await.unwrap();
    assert!(out_of_budget(&again).contains("namespace prod"));
    assert_eq!(
        (bench.provider.asked.load(Ordering::Relaxed), purse.sums()),
        (2, (2620, 0))
    );
}

#[tokio::test]
async fn without_any_room_no_model_is_asked() {
    let (bench, purse) = (Bench::new(usual()), Purse::new(10_000, 9900));
    let concluded = purse.run(&bench).await.unwrap();
    assert!(out_of_budget(&concluded).contains("9900 are used"));
    assert_eq!(
        (concluded.turns, bench.provider.asked.load(Ordering::Relaxed)),
        (0, 0)
    );
    assert_eq!(purse.sums(), (9900, 0));
}

#[tokio::test(start_paused = true)]
async fn where_configured_it_waits_for_the_next_day_or_to_its_end() {
    let two_days = Duration::from_secs(2 * 24 * 3600);
    for (time, is_enough) in [(two_days, true), (Duration::from_secs(1), false)] {
        let (mut bench, mut purse) = (Bench::new(usual()), Purse::new(10_000, 9900));
        let midnight = Day::of(purse.began.0).end().since(purse.began.0);
        purse.exhausted = BudgetExhausted::Wait;
        let begun = Instant::now();
        // The short time must not reach over midnight, whenever this test runs.
        bench.limits.deadline = begun + time.min(if is_enough { time } else { midnight });
        bench.limits.reserve = Duration::from_millis(300);
        bench.limits.margin = Duration::from_millis(50);
        let concluded = purse.run(&bench).await.unwrap();
        if is_enough {
            assert_eq!(concluded.end, End::Submitted);
            assert!(begun.elapsed() >= midnight, "{:?}", begun.elapsed());
            assert!(
                begun.elapsed() < midnight + Duration::from_secs(1),
                "{:?}",
                begun.elapsed()
            );
        } else {
            out_of_budget(&concluded);
            assert!(begun.elapsed() < time, "{:?}", begun.elapsed());
            assert_eq!(bench.provider.asked.load(Ordering::Relaxed), 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn it_waits_for_others_to_settle_what_they_did_not_need() {
    let (bench, mut purse) = (Bench::new(usual()), Purse::new(10_000, 0));
    purse.exhausted = BudgetExhausted::Wait;
    // The other's call may last as long as this step: only its settlement makes room.
    let begun = purse.began.0;
    let expires_at = begun.after(Duration::from_secs(24 * 3600));
    let other = TurnId::new(
        ExecutionId::derive(&["other"]),
        &purse.task.step,
        Attempt::FIRST,
        1,
    );
    let change = |change: &dyn Fn(&mut BudgetDay)| {
        let mut days = purse.days.days.lock().unwrap();
        days.values_mut().for_each(change);
    };
    change(&|day| {
        let reserve = Reserve {
            tokens: 9900,
            spare: 0,
            is_last: false,
            expires_at,
        };
        day.reserve(&other, reserve, 10_000, begun).unwrap();
    });
    let settling = async {
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(bench.provider.asked.load(Ordering::Relaxed), 0);
        let spent = Spent {
            tokens: 50,
            cost_nano_usd: None,
        };
        change(&|day| {
            day.settle(&other, spent, expires_at, begun);
        });
    };
    let (concluded, ()) = tokio::join!(purse.run(&bench), settling);
    assert_eq!(concluded.unwrap().end, End::Submitted);
    assert_eq!(purse.sums(), (440 + 50, 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_without_an_answer_gives_back_what_it_did_not_take() {
    let (bench, purse) = (Bench::new(vec![usual()[0].clone()]), Purse::new(100_000, 0));
    let concluded = purse.run(&bench).await.unwrap();
    assert_eq!(short(&concluded), "time");
    assert_eq!(purse.sums(), (110, 0));
    // And so does one that was cancelled.
    let (bench, purse) = (Bench::new(vec![]), Purse::new(100_000, 0));
    let cancelled = CancellationToken::new();
    let cancelling = async {
        while bench.provider.asked.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        assert!(purse.sums().1 > 0);
        cancelled.cancel();
    };
    let (concluded, ()) = tokio::join!(bench.run_with(&cancelled, Some(purse.budget())), cancelling);
    assert_eq!(short(&concluded.unwrap()), "cancelled");
    assert_eq!(purse.sums(), (0, 0));
}
