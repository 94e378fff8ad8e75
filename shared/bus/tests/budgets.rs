//! The bucket of budgets on a real server: writers of several connections at one key.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bus::{Budgets, LogError, Sizes, testing::TestNats, topology};
use protocol::{
    Attempt, BudgetDay, Day, ExecutionId, Namespace, StepName, Timestamp,
    budget::{Request, Spent, TurnId},
};

const LIMIT: u64 = 1000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_millis(1_795_445_258_000 + seconds * 1000)
}

fn turn(task: usize, turn: u32) -> TurnId {
    let execution = ExecutionId::derive(&["budgets", &task.to_string()]);
    TurnId::new(execution, &StepName::new("look").unwrap(), Attempt::FIRST, turn)
}

fn request(tokens: u64) -> Request {
    Request {
        tokens,
        spare: 0,
        is_last: false,
        expires_at: at(60),
    }
}

fn spent(tokens: u64) -> Spent {
    Spent {
        tokens,
        cost_nano_usd: Some(3 * tokens),
    }
}

fn committed(day: &BudgetDay) -> u64 {
    day.used_tokens + day.reserved_tokens(at(0))
}

/// Reserves and settles turn after turn until the budget is spent; returns what it settled. Every settlement is made
/// twice, as after a lost answer.
async fn hammer(budgets: Budgets, namespace: Namespace, task: usize) -> u64 {
    let (day, mut settled) = (Day::of(at(0)), 0);
    for n in 1.. {
        let id = turn(task, n);
        let reserved = budgets.change(&namespace, day, at(0), |day| {
            let granted = day.reserve(&id, request(10), LIMIT, at(0));
            (granted, committed(day))
        });
        let (granted, committed_tokens) = reserved.await.unwrap();
        assert!(committed_tokens <= LIMIT, "{committed_tokens}");
        if granted.is_err() {
            return settled;
        }
        // Some calls take less than was set aside for them.
        let took = 1 + u64::from(n) % 10;
        for _ in 0..2 {
            let settling = budgets.change(&namespace, day, at(0), |day| {
                day.settle(&id, spent(took), at(3600), at(0));
                committed(day)
            });
            assert!(settling.await.unwrap() <= LIMIT);
        }
        settled += took;
    }
    settled
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_writers_never_exceed_the_budget_and_sums_are_exact() {
    let (server, first) = TestNats::ready().await;
    let second = server.connect().await;
    let namespace = Namespace::new("prod").unwrap();
    let mut tasks = Vec::new();
    for task in 0..8 {
        let connection = if task % 2 == 0 { &first } else { &second };
        let budgets = Budgets::open(connection).await.unwrap();
        tasks.push(tokio::spawn(hammer(budgets, namespace.clone(), task)));
    }
    let mut settled = 0;
    for task in tasks {
        settled += tokio::time::timeout(Duration::from_secs(120), task)
            .await
            .unwrap()
            .unwrap();
    }
    let budgets = Budgets::open(&first).await.unwrap();
    let today = Day::of(at(0));
    let day = budgets.get(&namespace, today).await.unwrap();
    assert_eq!((day.used_tokens, day.cost_nano_usd), (settled, 3 * settled));
    assert!(day.reservations.is_empty(), "{day:?}");
    // Nobody stopped while there was still room for a call.
    assert!((LIMIT - 80..=LIMIT).contains(&settled), "{settled}");
}

#[tokio::test]
async fn what_a_killed_owner_reserved_comes_back() {
    let (_server, connection) = TestNats::ready().await;
    let budgets = Budgets::open(&connection).await.unwrap();
    let namespace = Namespace::default();
    let reserve = async |task, tokens, now: Timestamp| {
        let id = turn(task, 1);
        let reserved = budgets.change(&namespace, Day::of(now), now, |day| {
            day.reserve(&id, request(tokens), LIMIT, now)
        });
        reserved.await.unwrap()
    };
    reserve(1, 900, at(0)).await.unwrap();
    let shortage = reserve(2, 200, at(59)).await.unwrap_err();
    assert_eq!((shortage.used_tokens, shortage.reserved_tokens), (0, 900));
    reserve(2, 200, at(60)).await.unwrap();
}

#[tokio::test]
async fn days_and_namespaces_are_apart_and_listed() {
    let (_server, connection) = TestNats::ready().await;
    let budgets = Budgets::open(&connection).await.unwrap();
    let (today, tomorrow) = (Day::of(at(0)), Day::of(at(0)).end());
    for (name, when, tokens) in [("b", at(0), 2), ("a", at(0), 1), ("a", tomorrow, 4)] {
        let namespace = Namespace::new(name).unwrap();
        budgets
            .change(&namespace, Day::of(when), when, |day| {
                day.settle(
                    &turn(1, 1),
                    spent(tokens),
                    when.after(Duration::from_secs(60)),
                    when,
                )
            })
            .await
            .unwrap();
    }
    let used = async |day| -> Vec<(String, u64)> {
        let listed = budgets.list(day).await.unwrap().into_iter();
        listed
            .map(|entry| (entry.namespace.to_string(), entry.day.used_tokens))
            .collect()
    };
    assert_eq!(used(today).await, [("a".to_owned(), 1), ("b".to_owned(), 2)]);
    assert_eq!(used(Day::of(tomorrow)).await, [("a".to_owned(), 4)]);
    let nobody = Namespace::new("nobody").unwrap();
    assert_eq!(budgets.get(&nobody, today).await.unwrap(), BudgetDay::default());
}

/// As all writes: a server that is away is waited for, and what is repeated counts once.
#[tokio::test]
async fn a_change_waits_for_a_server_that_is_away() {
    let (mut server, connection) = TestNats::ready().await;
    let budgets = Budgets::open(&connection).await.unwrap();
    let (namespace, today) = (Namespace::default(), Day::of(at(0)));
    let settle = |n| {
        let (budgets, namespace) = (budgets.clone(), namespace.clone());
        async move {
            let change = |day: &mut BudgetDay| day.settle(&turn(1, n), spent(5), at(3600), at(0));
            loop {
                match budgets.change(&namespace, today, at(0), change).await {
                    Ok(_) => return,
                    Err(error) => assert!(error.is_transient(), "{error}"),
                }
            }
        }
    };
    settle(1).await;
    server.kill9();
    let settling = tokio::spawn(settle(2));
    server.restart().await;
    tokio::time::timeout(Duration::from_secs(60), settling)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(budgets.get(&namespace, today).await.unwrap().used_tokens, 10);
}

/// An installation from before there were budgets.
#[tokio::test]
async fn without_the_bucket_the_remedy_is_named() {
    let (_server, connection) = TestNats::ready().await;
    let delete = "$JS.API.STREAM.DELETE.KV_fist-budgets".to_owned();
    connection.client().request(delete, "".into()).await.unwrap();
    topology::check(&connection).await.unwrap();
    let error = Budgets::open(&connection).await.unwrap_err();
    assert!(matches!(error, LogError::Missing { .. }), "{error}");
    assert!(
        error.to_string().contains("fist-budgets") && error.to_string().contains("`fist nats init`"),
        "{error}"
    );
    topology::init(&connection, &Sizes::small()).await.unwrap();
    Budgets::open(&connection).await.unwrap();
}
