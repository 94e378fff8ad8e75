//! The loop with a model, tools and a journal in this process: killed at every point, and at every limit.

mod budget;

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::future::BoxFuture;
use protocol::{output::BlobRef, turns::ToolCall};

use super::*;
use crate::tools::{Tool, ToolError};

/// A model whose answer to turn n is the n-th of a list.
struct Listed {
    answers: Vec<Answer>,
    asked: AtomicUsize,
    /// What was offered, turn by turn.
    offered: Mutex<Vec<Vec<String>>>,
}

impl Listed {
    fn new(answers: Vec<Answer>) -> Self {
        Self {
            answers,
            asked: AtomicUsize::new(0),
            offered: Mutex::default(),
        }
    }
}

impl Provider for Listed {
    fn name(&self) -> &'static str {
        "mock"
    }

    fn model(&self) -> &str {
        "m"
    }

    fn answer<'a>(&'a self, request: &'a Request<'a>) -> BoxFuture<'a, Result<Answer, LlmError>> {
        Box::pin(async {
            self.asked.fetch_add(1, Ordering::Relaxed);
            self.offered
                .lock()
                .unwrap()
                .push(request.tools.iter().map(|tool| tool.name.clone()).collect());
            let at = request
                .messages
                .iter()
                .filter(|m| matches!(m, Message::Assistant { .. }))
                .count();
            let paired = request.messages.iter().zip(request.messages.iter().skip(1));
            for (message, next) in paired {
                if let Message::Assistant { calls, .. } = message {
                    let ids: Vec<&str> = calls.iter().map(|call| call.id.as_str()).collect();
                    let given: Vec<&str> = match next {
                        Message::Results(results) => {
                            results.iter().map(|result| result.call_id.as_str()).collect()
                        }
                        _ => vec![],
                    };
                    assert_eq!(ids, given, "calls and results are paired, in order");
                }
            }
            match self.answers.get(at) {
                Some(answer) => Ok(answer.clone()),
                None => tokio::time::timeout_at(request.deadline, std::future::pending())
                    .await
                    .map_err(|_| LlmError {
                        provider: "mock",
                        model: "m".into(),
                        message: "too late".into(),
                        kind: LlmErrorKind::Deadline,
                        usage: Usage::default(),
                    })?,
            }
        })
    }
}

fn answer(text: &str, calls: &[(&str, &str, Value)]) -> Answer {
    Answer {
        text: text.into(),
        calls: calls
            .iter()
            .map(|(id, tool, arguments)| ToolCall {
                id: (*id).into(),
                tool: (*tool).into(),
                arguments: arguments.clone(),
            })
            .collect(),
        stop: Stop::Finished,
        stop_reason: if calls.is_empty() { "end_turn" } else { "tool_use" }.into(),
        usage: Usage {
            input_tokens: 100,
            output_tokens: 10,
            cached_tokens: 5,
        },
        model: None,
    }
}

/// A tool that counts by argument how often it ran; with `hang` it never returns.
#[derive(Default, Clone)]
struct Counting(std::sync::Arc<Mutex<BTreeMap<String, usize>>>);

impl Tool for Counting {
    fn description(&self) -> String {
        String::new()
    }

    fn schema(&self) -> Value {
        json!({"type": "object", "properties": {"n": {"type": "string"}}})
    }

    fn call<'a>(&'a self, arguments: &'a Value) -> BoxFuture<'a, Result<String, ToolError>> {
        Box::pin(async {
            let n = arguments["n"].as_str().unwrap_or_default();
            *self.0.lock().unwrap().entry(n.to_owned()).or_default() += 1;
            if n == "hang" {
                std::future::pending::<()>().await;
            }
            Ok(format!("the result of {n}"))
        })
    }
}

/// A journal that dies at the n-th write, before or after it took effect.
#[derive(Default)]
struct Dying {
    points: Mutex<Vec<Point>>,
    kept: Mutex<Vec<String>>,
    writes_left: AtomicUsize,
    takes_effect: bool,
}

impl Journal for Dying {
    fn read(&self) -> BoxFuture<'_, Result<Vec<Point>, Failure>> {
        Box::pin(async { Ok(self.points.lock().unwrap().clone()) })
    }

    fn write<'a>(&'a self, k: u32, point: &'a Point) -> BoxFuture<'a, Result<bool, Failure>> {
        Box::pin(async move {
            let dies = self.writes_left.fetch_sub(1, Ordering::Relaxed) == 1;
            let mut points = self.points.lock().unwrap();
            if !dies || self.takes_effect {
                if points.len() != k as usize {
                    return Ok(false);
                }
                points.push(point.clone());
            }
            if dies {
                Err(Failure::retry("died"))
            } else {
                Ok(true)
            }
        })
    }

    fn keep(&self, text: String) -> BoxFuture<'_, Result<Option<BlobRef>, Failure>> {
        let mut kept = self.kept.lock().unwrap();
        kept.push(text);
        let whole = BlobRef {
            sha256: format!("{:064x}", kept.len() - 1),
            bytes: kept[kept.len() - 1].len() as u64,
        };
        Box::pin(async { Ok(Some(whole)) })
    }

    fn kept<'a>(&'a self, whole: &'a BlobRef) -> BoxFuture<'a, Result<Option<String>, Failure>> {
        let at = usize::from_str_radix(&whole.sha256, 16).unwrap();
        let text = self.kept.lock().unwrap().get(at).cloned();
        Box::pin(async { Ok(text) })
    }

    fn tell(&self, _: Live) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

struct Bench {
    provider: Listed,
    tool: Counting,
    journal: Dying,
    limits: Limits,
}

impl Bench {
    fn new(answers: Vec<Answer>) -> Self {
        let begun = Instant::now();
        Self {
            provider: Listed::new(answers),
            tool: Counting::default(),
            journal: Dying {
                writes_left: AtomicUsize::new(usize::MAX),
                ..Dying::default()
            },
            limits: Limits {
                turns_max: 10,
                calls_max: 20,
                tokens_max: 1_000_000,
                output_tokens_max: 100,
                deadline: begun + Duration::from_secs(600),
                reserve: Duration::from_secs(60),
                reserve_begins: clock::now().after(Duration::from_secs(540)),
                margin: Duration::from_secs(2),
            },
        }
    }

    async fn run(&self) -> Result<Concluded, Failure> {
        self.run_until(&CancellationToken::new()).await
    }

    async fn run_until(&self, cancelled: &CancellationToken) -> Result<Concluded, Failure> {
        self.run_with(cancelled, None).await
    }

    async fn run_with(
        &self,
        cancelled: &CancellationToken,
        budget: Option<Budget<'_>>,
    ) -> Result<Concluded, Failure> {
        let toolbox = Toolbox::of(
            vec![("look", Box::new(self.tool.clone()))],
            Duration::from_secs(300),
        );
        let shutdown = CancellationToken::new();
        Investigation {
            provider: &self.provider,
            toolbox: &toolbox,
            journal: &self.journal,
            redactor: &Redactor::new(&[], []).unwrap(),
            metrics: &Metrics::new(),
            trace: None,
            opening: Opening {
                goal: "g",
                alert: None,
                at: "now".into(),
                namespace: "prod",
                turns_max: 10,
                calls_max: 20,
                context_bytes_max: 100_000,
                seed: "s",
            },
            limits: self.limits,
            price: budget.as_ref().and_then(|budget| budget.price),
            budget,
            gate: &Gate::default(),
            fix_namespace: "prod",
            transcript_ref: "ref".into(),
            cancelled,
            shutdown: &shutdown,
        }
        .run()
        .await
    }
}

fn look(n: &str) -> Value {
    json!({ "n": n })
}

fn findings() -> Value {
    json!({
        "summary": "it is so", "confidence": 0.9, "can_auto_fix": true,
        "fix_command": "kubectl rollout restart deployment/web -n prod",
        "evidence": [{"call_id": "c4", "quote": "the result of d"}],
    })
}

/// 4 turns, 6 calls.
fn usual() -> Vec<Answer> {
    vec![
        answer(
            "first",
            &[
                ("c1", "look", look("a")),
                ("c2", "look", look("b")),
                ("c3", "look", look("c")),
            ],
        ),
        answer("", &[("c4", "look", look("d"))]),
        answer("hm", &[("c5", "look", look("e")), ("c6", "look", look("f"))]),
        answer("", &[("c7", "submit_findings", findings())]),
    ]
}

#[tokio::test]
async fn killed_at_any_point_it_goes_on_without_paying_twice() {
    let whole = Bench::new(usual()).run().await.unwrap();
    assert_eq!(
        (&whole.end, &whole.output["can_auto_fix"]),
        (&End::Submitted, &json!(true))
    );
    assert_eq!(
        whole.output["usage"],
        json!({"input_tokens": 400, "output_tokens": 40, "cached_tokens": 20, "turns": 4})
    );
    let points = 4 + 6;
    for takes_effect in [true, false] {
        for dies_at in 1..=points {
            let mut bench = Bench::new(usual());
            bench.journal.takes_effect = takes_effect;
            bench.journal.writes_left = AtomicUsize::new(dies_at);
            assert!(bench.run().await.is_err(), "dies at {dies_at}");
            let resumed = bench.run().await.unwrap();
            assert_eq!(resumed.end, whole.end);
            let sorted = |output: &Value| {
                let mut actions: Vec<String> = output["actions_taken"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(ToString::to_string)
                    .collect();
                actions.sort();
                (
                    actions,
                    output["usage"].clone(),
                    output["evidence"].clone(),
                    output["summary"].clone(),
                )
            };
            assert_eq!(sorted(&resumed.output), sorted(&whole.output));
            // What had been recorded was neither asked nor run again; what died before its record, once more.
            let asked = bench.provider.asked.load(Ordering::Relaxed);
            let ran: usize = bench.tool.0.lock().unwrap().values().sum();
            if takes_effect {
                assert_eq!(asked, 4, "dies at {dies_at}");
                // Calls that ran beside the one whose record was written last may not have been recorded.
                assert!((6..=8).contains(&ran), "dies at {dies_at}: {ran}");
            } else {
                assert!(asked + ran <= 4 + 6 + 3, "dies at {dies_at}: {asked} {ran}");
            }
        }
    }
}

#[tokio::test]
async fn another_process_at_the_same_investigation_is_left_to_it() {
    let bench = Bench::new(usual());
    let first = bench.run().await.unwrap();
    assert_eq!(first.turns, 4);
    // A reader that sees nothing yet writes where something stands.
    struct Blind(Dying);
    impl Journal for Blind {
        fn read(&self) -> BoxFuture<'_, Result<Vec<Point>, Failure>> {
            Box::pin(async { Ok(vec![]) })
        }
        fn write<'a>(&'a self, k: u32, point: &'a Point) -> BoxFuture<'a, Result<bool, Failure>> {
            self.0.write(k, point)
        }
        fn keep(&self, text: String) -> BoxFuture<'_, Result<Option<BlobRef>, Failure>> {
            self.0.keep(text)
        }
        fn kept<'a>(&'a self, whole: &'a BlobRef) -> BoxFuture<'a, Result<Option<String>, Failure>> {
            self.0.kept(whole)
        }
        fn tell(&self, live: Live) -> BoxFuture<'_, ()> {
            self.0.tell(live)
        }
    }
    let blind = Blind(bench.journal);
    let toolbox = Toolbox::of(vec![], Duration::from_secs(1));
    let (cancelled, shutdown) = (CancellationToken::new(), CancellationToken::new());
    let outcome = Investigation {
        provider: &Listed::new(usual()),
        toolbox: &toolbox,
        journal: &blind,
        redactor: &Redactor::new(&[], []).unwrap(),
        metrics: &Metrics::new(),
        trace: None,
        opening: Opening {
            goal: "g",
            alert: None,
            at: "now".into(),
            namespace: "prod",
            turns_max: 10,
            calls_max: 20,
            context_bytes_max: 100_000,
            seed: "s",
        },
        limits: Bench::new(vec![]).limits,
        budget: None,
        price: None,
        gate: &Gate::default(),
        fix_namespace: "prod",
        transcript_ref: "ref".into(),
        cancelled: &cancelled,
        shutdown: &shutdown,
    }
    .run()
    .await;
    assert!(matches!(outcome, Err(Failure::Retry { .. })), "{outcome:?}");
}

fn short(concluded: &Concluded) -> &'static str {
    assert_eq!(concluded.output["status"], "partial");
    assert_eq!(concluded.output["can_auto_fix"], false);
    assert_eq!(concluded.output["fix_command"], Value::Null);
    match &concluded.end {
        End::Short { reason, .. } => {
            assert_eq!(concluded.output["stop_reason"], *reason);
            reason
        }
        End::Submitted => panic!("{concluded:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_turn_of_every_limit_offers_only_the_ending() {
    let end_only = vec!["submit_findings".to_owned()];
    type Change = fn(&mut Limits);
    let cases: [(&str, Change, usize); 3] = [
        ("turns", |limits| limits.turns_max = 3, 3),
        ("tool_calls", |limits| limits.calls_max = 4, 3),
        (
            "tokens",
            |limits| limits.tokens_max = 110 + 2 * 100 + 3 * 100 + 60,
            3,
        ),
    ];
    for (reason, change, turns) in cases {
        let mut answers = usual();
        answers[2] = answer("", &[("c9", "submit_findings", findings())]);
        let mut bench = Bench::new(answers);
        change(&mut bench.limits);
        let concluded = bench.run().await.unwrap();
        assert_eq!(short(&concluded), reason);
        assert_eq!(concluded.turns as usize, turns, "{reason}");
        assert_eq!(concluded.output["summary"], "it is so", "{reason}");
        let offered = bench.provider.offered.lock().unwrap().clone();
        assert_eq!(offered.last(), Some(&end_only), "{reason}");
        assert!(
            offered[..offered.len() - 1]
                .iter()
                .all(|names| names.contains(&"look".to_owned()))
        );
        // Somebody who only has the record comes to the same end.
        let again = bench.run().await.unwrap();
        assert_eq!(short(&again), reason);
    }
}

#[tokio::test(start_paused = true)]
async fn time_ends_model_calls_and_tools_and_leaves_room_for_the_ending() {
    // The tool hangs: it is stopped when the reserve begins, and the last turn is asked for.
    let bench = Bench::new(vec![
        answer(
            "I saw something",
            &[("c1", "look", look("a")), ("c2", "look", look("hang"))],
        ),
        answer("", &[("c3", "look", look("hang"))]),
        answer(
            "",
            &[("c9", "submit_findings", json!({"summary": "what I have"}))],
        ),
    ]);
    let begun = Instant::now();
    let concluded = bench.run().await.unwrap();
    assert_eq!((short(&concluded), concluded.turns), ("time", 3));
    assert!(
        begun.elapsed() <= Duration::from_secs(541),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(concluded.output["summary"], "what I have");
    // The model hangs: the same, and where it hangs on the last turn too, what it said is what there is.
    let bench = Bench::new(vec![answer("I saw something", &[("c1", "look", look("a"))])]);
    let begun = Instant::now();
    let concluded = bench.run().await.unwrap();
    assert_eq!((short(&concluded), concluded.turns), ("time", 1));
    assert_eq!(concluded.output["findings"], json!(["I saw something"]));
    assert!(
        begun.elapsed() <= Duration::from_secs(598),
        "{:?}",
        begun.elapsed()
    );
    // Nothing at all.
    let bench = Bench::new(vec![]);
    let concluded = bench.run().await.unwrap();
    assert_eq!((short(&concluded), concluded.turns), ("time", 0));
}

#[tokio::test]
async fn what_is_no_answer_is_told_to_the_model() {
    let cut_off = Answer {
        stop: Stop::Length,
        stop_reason: "max_tokens".into(),
        ..answer("long", &[("c1", "look", look("a"))])
    };
    let cut_findings = Answer {
        stop: Stop::Length,
        stop_reason: "max_tokens".into(),
        ..answer("", &[("c2", "submit_findings", findings())])
    };
    let bench = Bench::new(vec![
        cut_off,
        cut_findings,
        answer("", &[("c3", "submit_findings", json!({"confidence": 7}))]),
        answer(
            "",
            &[
                ("c4", "look", json!({ MALFORMED: "{" })),
                ("c4", "look", look("d")),
                ("", "no such", look("x")),
            ],
        ),
        answer("I am done", &[]),
        answer("", &[("c5", "submit_findings", json!({"summary": "s"}))]),
    ]);
    let concluded = bench.run().await.unwrap();
    assert_eq!((&concluded.end, concluded.turns), (&End::Submitted, 6));
    assert_eq!(
        *bench.tool.0.lock().unwrap(),
        BTreeMap::from([("d".to_owned(), 1)])
    );
    let points = bench.journal.points.lock().unwrap().clone();
    let texts: Vec<String> = points
        .iter()
        .filter_map(|point| match point {
            Point::Tool(tool) => Some(format!(
                "{} {} {}",
                tool.call.id,
                tool.is_error,
                tool.text.chars().take(40).collect::<String>()
            )),
            Point::Model(_) => None,
        })
        .collect();
    assert!(
        texts[0].starts_with("c1 true not run: your answer was cut off"),
        "{texts:?}"
    );
    assert!(
        texts[1].starts_with("c2 true not run: your answer was cut off"),
        "{texts:?}"
    );
    assert!(
        texts[2].starts_with("c3 true the findings were not accepted:"),
        "{texts:?}"
    );
    assert!(
        texts
            .iter()
            .any(|text| text.starts_with("c4 true refused: the arguments were not one")),
        "{texts:?}"
    );
    assert!(
        texts.iter().any(|text| text == "call_6_1 false the result of d"),
        "{texts:?}"
    );
    assert!(
        texts
            .iter()
            .any(|text| text.starts_with("call_6_2 true refused: there is no such tool")),
        "{texts:?}"
    );
}

#[tokio::test]
async fn a_model_that_only_talks_or_declines_is_ended() {
    let bench = Bench::new(vec![answer("a", &[]), answer("b", &[]), answer("c", &[])]);
    let concluded = bench.run().await.unwrap();
    assert_eq!((short(&concluded), concluded.turns), ("no_findings", 3));
    assert_eq!(concluded.output["findings"], json!(["a", "b", "c"]));
    let declined = Answer {
        stop: Stop::Declined,
        stop_reason: "refusal".into(),
        ..answer("no", &[])
    };
    let concluded = Bench::new(vec![declined]).run().await.unwrap();
    assert_eq!(short(&concluded), "declined");
}

#[tokio::test]
async fn a_cancel_ends_it_at_once_with_what_was_done() {
    let bench = Bench::new(vec![
        answer("first", &[("c1", "look", look("a"))]),
        answer("", &[("c2", "look", look("hang"))]),
    ]);
    let cancelled = CancellationToken::new();
    let cancelling = async {
        while !bench.tool.0.lock().unwrap().contains_key("hang") {
            tokio::task::yield_now().await;
        }
        cancelled.cancel();
    };
    let (concluded, ()) = tokio::join!(bench.run_until(&cancelled), cancelling);
    let concluded = concluded.unwrap();
    assert_eq!((short(&concluded), concluded.turns), ("cancelled", 2));
    assert_eq!(concluded.output["actions_taken"], json!(["look a"]));
}

#[tokio::test]
async fn secrets_of_the_model_itself_are_not_recorded() {
    let bench = Bench::new(vec![
        answer(
            "password=hunter2xyzzy",
            &[("c1", "look", look("token=hunter2xyzzy"))],
        ),
        answer(
            "",
            &[(
                "c2",
                "submit_findings",
                json!({"summary": "Authorization: Bearer hunter2xyzzy"}),
            )],
        ),
    ]);
    let concluded = bench.run().await.unwrap();
    assert!(
        !concluded.output.to_string().contains("hunter2xyzzy"),
        "{}",
        concluded.output
    );
    assert!(!format!("{:?}", bench.journal.points.lock().unwrap()).contains("hunter2xyzzy"));
    assert!(
        bench.tool.0.lock().unwrap().is_empty(),
        "a redacted value was used"
    );
}

#[tokio::test]
async fn a_cut_result_can_be_read_on_and_searched_after_a_crash_too() {
    let long: String = (1..=9000).map(|n| format!("line {n}\n")).collect();
    let answers = vec![
        answer("", &[("c1", "look", look(&long))]),
        answer(
            "",
            &[
                (
                    "c2",
                    "read_more",
                    json!({"call_id": "c1", "grep": "4[56]78$", "context": 0}),
                ),
                ("c3", "read_more", json!({"call_id": "c1", "from_line": 8999})),
                ("c4", "read_more", json!({"call_id": "c9"})),
                ("c5", "read_more", json!({"call_id": "c1", "lines": "all"})),
            ],
        ),
        answer("", &[("c6", "submit_findings", findings())]),
    ];
    let mut bench = Bench::new(answers);
    bench.journal.takes_effect = true;
    bench.journal.writes_left = AtomicUsize::new(2);
    bench.run().await.unwrap_err();
    bench.run().await.unwrap();
    let points = bench.journal.points.lock().unwrap();
    let text = |id: &str| {
        let found = points.iter().find_map(|point| match point {
            Point::Tool(tool) if tool.call.id == id => Some((tool.is_error, tool.text.clone())),
            _ => None,
        });
        found.unwrap()
    };
    let first = text("c1").1;
    assert!(
        first.len() < 33_000 && first.contains("bytes left out here") && !first.contains("line 4578\n"),
        "{first}"
    );
    assert_eq!(
        text("c2"),
        (
            false,
            "the result of c1, 9000 lines, 88907 bytes: 2 of 2 lines that match from 1 on\n4578: line 4578\n--\n4678: line \
             4678"
                .to_owned()
        )
    );
    assert_eq!(
        text("c3").1,
        "the result of c1, 9000 lines, 88907 bytes: lines 8999 to 9000\n8999: line 8999\n9000: line 9000"
    );
    assert_eq!(
        text("c4"),
        (
            true,
            "refused: there is no result of a call `c9`; use the id of an earlier call".to_owned()
        )
    );
    assert_eq!(
        text("c5"),
        (true, "refused: lines must be integer or null".to_owned())
    );
    assert_eq!(bench.tool.0.lock().unwrap().values().sum::<usize>(), 1);
}

#[tokio::test]
async fn the_same_call_again_is_not_made() {
    let bench = Bench::new(vec![
        answer("", &[("c1", "look", look("a")), ("c2", "look", look("a"))]),
        answer("", &[("c3", "look", look("a")), ("c4", "look", look("b"))]),
        answer("", &[("c5", "submit_findings", json!({"summary": "s"}))]),
    ]);
    let concluded = bench.run().await.unwrap();
    assert_eq!(
        *bench.tool.0.lock().unwrap(),
        BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 1)])
    );
    let mut actions: Vec<&str> = concluded.output["actions_taken"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    actions.sort_unstable();
    assert_eq!(
        actions,
        ["look a", "look a (no success)", "look a (no success)", "look b"]
    );
}
