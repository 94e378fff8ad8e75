//! The read_file tool on the log and the object store of the simulated broker.
#![allow(clippy::unwrap_used)]

use std::{sync::Arc, time::Duration};

use agent_runner::{
    artefacts::{Earlier, InLog},
    redact::{Redactor, untagged},
    tools::{Given, Surroundings, Toolbox},
};
use bus::{
    Blobs, Log as _,
    sim::{Faults, SimBroker, SimLog},
};
use expect_test::expect;
use protocol::{
    Attempt, BlobRef, Body, Done, ExecutionId, Fact, Namespace, Outcome, StepName, StepStatus, Subject,
    encode,
    lane::{EarlierStep, Left},
};
use serde_json::{Map, Value, json};
use service::Metrics;

struct Execution {
    log: SimLog,
    blobs: Blobs,
    namespace: Namespace,
    execution: ExecutionId,
    steps: Vec<EarlierStep>,
    output_bytes_max: usize,
}

impl Execution {
    fn new() -> Self {
        Self {
            log: SimBroker::new(1, Faults::default()).client(),
            blobs: Blobs::in_memory(),
            namespace: Namespace::new("prod").unwrap(),
            execution: ExecutionId::derive(&["test"]),
            steps: Vec::new(),
            output_bytes_max: 32 * 1024,
        }
    }

    fn names(&mut self, step: &str, step_type: &str, status: StepStatus, left: Left) {
        self.steps.push(EarlierStep {
            step: StepName::new(step).unwrap(),
            step_type: step_type.to_owned(),
            status,
            left,
        });
    }

    /// A step that a runner performed; the task names it.
    async fn ran(&mut self, step: &str, step_type: &str, output: Body) {
        self.write(step, Some(output)).await;
        self.names(step, step_type, StepStatus::Succeeded, Left::Fact(Attempt::FIRST));
    }

    async fn write(&self, step: &str, output: Option<Body>) {
        let (name, now) = (StepName::new(step).unwrap(), self.log.now());
        let done = Fact::Done(Done {
            step: name.clone(),
            attempt: Attempt::FIRST,
            outcome: Outcome::Succeeded,
            output,
            started_at: now,
            completed_at: now,
            runner: "r".into(),
        });
        let subject = Subject::Done(self.namespace.clone(), self.execution, name, Attempt::FIRST);
        self.log.write_fact(&subject, encode(now, &done)).await.unwrap();
    }

    async fn put(&self, bytes: impl Into<bytes::Bytes>) -> Value {
        json!(self.blobs.put(bytes.into()).await.unwrap())
    }

    fn toolbox(&self) -> Toolbox {
        let earlier: Arc<dyn Earlier> = Arc::new(InLog {
            log: self.log.clone(),
            blobs: self.blobs.clone(),
            namespace: self.namespace.clone(),
            execution: self.execution,
            steps: self.steps.clone(),
        });
        let surroundings = Surroundings {
            tools: &service::Config::default().tools,
            output_bytes_max: self.output_bytes_max,
            timeout_ms: 60_000,
            env: &Map::new(),
            namespace: "prod",
            investigator: None,
            earlier: Some(&earlier),
            redactor: &Redactor::new(&[], []).unwrap(),
        };
        Toolbox::from_config(&["read_file".to_owned()], &surroundings).unwrap()
    }

    async fn read(&self, arguments: Value) -> Given {
        read(&self.toolbox(), arguments).await
    }
}

async fn read(toolbox: &Toolbox, arguments: Value) -> Given {
    let redactor = Redactor::new(&[], []).unwrap();
    toolbox
        .call(
            "read_file",
            &arguments,
            Duration::from_secs(60),
            &redactor,
            &Metrics::new(),
        )
        .await
}

fn numbered(count: usize) -> String {
    (1..=count).map(|n| format!("line {n}\n")).collect()
}

#[tokio::test]
async fn what_a_command_printed_is_read_by_lines() {
    let mut execution = Execution::new();
    let output = json!({"stdout": "one\ntwo\n\nfour\n", "stderr": "password=hunter2\n", "exit_code": 0});
    execution.ran("check", "cli", Body::Inline(output)).await;
    for (arguments, wanted) in [
        (
            json!({"step": "check"}),
            "stdout of check (cli, Succeeded), 4 lines, 14 bytes: lines 1 to 4\n1: one\n2: two\n3: \n4: four",
        ),
        (
            json!({"step": " check ", "from_line": 2, "lines": 1}),
            "stdout of check (cli, Succeeded), 4 lines, 14 bytes: lines 2 to 2; more with from_line=3\n2: two",
        ),
        (
            json!({"step": "check", "from_line": -1}),
            "stdout of check (cli, Succeeded), 4 lines, 14 bytes: lines 4 to 4\n4: four",
        ),
        (
            json!({"step": "check", "from_line": -100, "lines": 1}),
            "stdout of check (cli, Succeeded), 4 lines, 14 bytes: lines 1 to 1; more with from_line=2\n1: one",
        ),
        (
            json!({"step": "check", "from_line": 5}),
            "stdout of check (cli, Succeeded), 4 lines, 14 bytes: there is no line 5",
        ),
        (
            json!({"step": "check", "stream": "stderr"}),
            "stderr of check (cli, Succeeded), 1 lines, 31 bytes: lines 1 to 1\n1: password=[REDACTED:value]",
        ),
    ] {
        let given = execution.read(arguments.clone()).await;
        assert!(!given.is_error, "{}", given.text);
        assert_eq!(untagged(&given.text), wanted, "{arguments}");
    }
    let output = execution
        .read(json!({"step": "check", "stream": "output"}))
        .await
        .text;
    expect![[r#"
        output of check (cli, Succeeded), 5 lines, 102 bytes: lines 1 to 5
        1: {
        2:   "stdout": "one\ntwo\n\nfour\n",
        3:   "stderr": "password=[REDACTED:value]\n",
        4:   "exit_code": 0
        5: }"#]]
    .assert_eq(&untagged(&output));
}

#[tokio::test]
async fn lines_that_match_come_with_their_neighbours() {
    let mut execution = Execution::new();
    let mut text = numbered(40);
    text.push_str("the END\n");
    execution
        .ran(
            "check",
            "cli",
            Body::Inline(json!({"stdout": text, "stderr": ""})),
        )
        .await;
    let grep = async |arguments: Value| {
        let mut asked = json!({"step": "check"});
        for (key, value) in arguments.as_object().unwrap() {
            asked[key] = value.clone();
        }
        execution.read(asked).await.text
    };
    expect![[r#"
        stdout of check (cli, Succeeded), 41 lines, 319 bytes: 4 of 4 lines that match from 1 on
        9- line 9
        10: line 10
        11- line 11
        --
        19- line 19
        20: line 20
        21- line 21
        --
        29- line 29
        30: line 30
        31- line 31
        --
        39- line 39
        40: line 40
        41- the END"#]]
    .assert_eq(&grep(json!({"grep": "0$", "context": 1})).await);
    expect![[r#"
        stdout of check (cli, Succeeded), 41 lines, 319 bytes: 3 of 11 lines that match from 10 on; more with from_line=13
        8- line 8
        9- line 9
        10: line 10
        11: line 11
        12: line 12"#]]
    .assert_eq(&grep(json!({"grep": "line 1|END", "from_line": 10, "lines": 1})).await);
    assert!(
        grep(json!({"grep": "(?i)the end", "context": 0}))
            .await
            .ends_with("from 1 on\n41: the END")
    );
    assert!(
        grep(json!({"grep": "nowhere"}))
            .await
            .ends_with("no line from 1 on matches")
    );
}

#[tokio::test]
async fn what_was_stored_apart_is_read_whole() {
    let mut execution = Execution::new();
    let whole = numbered(20_000);
    let cut = format!(
        "line 1\n\n… [{} bytes cut; the whole is in stdout_ref] …\n\nline 20000\n",
        whole.len() - 18
    );
    let stdout_ref = execution.put(whole.clone()).await;
    let output = json!({"stdout": cut, "stdout_ref": stdout_ref, "stderr": "", "exit_code": 0});
    execution.ran("check", "cli", Body::Inline(output.clone())).await;
    let toolbox = execution.toolbox();
    let last = read(&toolbox, json!({"step": "check", "from_line": -2}))
        .await
        .text;
    expect![[r#"
        stdout of check (cli, Succeeded), 20000 lines, 208894 bytes: lines 19999 to 20000
        19999: line 19999
        20000: line 20000"#]]
    .assert_eq(&last);
    // The same toolbox, other streams and back.
    let empty = read(&toolbox, json!({"step": "check", "stream": "stderr"}))
        .await
        .text;
    assert_eq!(
        empty,
        "stderr of check (cli, Succeeded), 0 lines, 0 bytes: it is empty"
    );
    let middle = read(
        &toolbox,
        json!({"step": "check", "grep": "^line 1234$", "context": 0}),
    )
    .await
    .text;
    assert!(
        middle.ends_with("1 of 1 lines that match from 1 on\n1234: line 1234"),
        "{middle}"
    );
    // More than fits a result: whole lines, and where to go on.
    let begin = read(&toolbox, json!({"step": "check", "lines": 2000})).await.text;
    let lines: Vec<&str> = begin.lines().collect();
    assert!(!begin.contains("left out here"), "cut a second time");
    assert!(
        lines[0].ends_with(&format!("more with from_line={}", lines.len())),
        "{}",
        lines[0]
    );
    assert!(begin.len() > 28 * 1024 && begin.len() <= 32 * 1024);

    // An output that is itself stored apart, as that of an agent can be.
    let large = json!({"summary": "all is well", "findings": [ "x".repeat(70_000)]});
    let blob: BlobRef = serde_json::from_value(execution.put(large.to_string()).await).unwrap();
    let preview = json!({"summary": "all is well", "findings": []});
    execution
        .ran(
            "explain",
            "agent",
            Body::Blob {
                blob,
                preview: preview.clone(),
            },
        )
        .await;
    let text = execution.read(json!({"step": "explain"})).await.text;
    assert!(
        text.starts_with("output of explain (agent, Succeeded), 6 lines, ")
            && text.contains("bytes of this line cut]"),
        "{text}"
    );
    assert!(text.len() < 10_000, "{}", text.len());

    // The store has it no more: the log's own part is shown, and that it is a part.
    let gone = BlobRef {
        sha256: "0".repeat(64),
        bytes: 99,
    };
    execution
        .ran(
            "gone",
            "agent",
            Body::Blob {
                blob: gone.clone(),
                preview,
            },
        )
        .await;
    let text = execution.read(json!({"step": "gone"})).await.text;
    assert!(
        text.contains("\n(shortened: the object store has the whole no more)\n"),
        "{text}"
    );
    let mut lost = output;
    lost["stdout_ref"] = json!(gone);
    execution.ran("lost", "cli", Body::Inline(lost)).await;
    let text = execution.read(json!({"step": "lost"})).await.text;
    assert!(
        text.contains("\n(shortened: the object store has the whole stdout no more)\n1: line 1\n"),
        "{text}"
    );
}

#[tokio::test]
async fn matches_that_fill_a_result_are_read_on() {
    let mut execution = Execution::new();
    execution.output_bytes_max = 4096;
    let text = numbered(2000);
    let output = json!({"stdout": text, "stderr": ""});
    execution.ran("check", "cli", Body::Inline(output)).await;
    let toolbox = execution.toolbox();
    let (mut from, mut seen) = (1, Vec::new());
    loop {
        let arguments =
            json!({"step": "check", "grep": "[05]$", "from_line": from, "lines": 2000, "context": 1});
        let text = read(&toolbox, arguments).await.text;
        assert!(text.len() <= 4096 && !text.contains("left out here"), "{text}");
        let matches = text.lines().filter_map(|line| line.split_once(": line "));
        seen.extend(matches.map(|(number, _)| number.parse::<usize>().unwrap()));
        let Some((_, next)) = text.lines().next().unwrap().split_once("from_line=") else {
            break;
        };
        let next = next.parse().unwrap();
        assert!(next > from, "it goes on: {text}");
        from = next;
    }
    assert_eq!(seen, (1..=400).map(|n| n * 5).collect::<Vec<_>>());

    let long = format!("{}\n", "x".repeat(5000)).repeat(10);
    let output = json!({"stdout": format!("{long}needle\n"), "stderr": ""});
    execution.ran("long", "cli", Body::Inline(output)).await;
    let text = execution
        .read(json!({"step": "long", "grep": "needle", "context": 9}))
        .await
        .text;
    assert!(
        text.contains("0 of 1 lines that match from 1 on; the lines before the first fill the result, so ask for less context"),
        "{text}"
    );
}

#[tokio::test]
async fn what_was_never_kept_and_what_is_no_text_is_said() {
    let mut execution = Execution::new();
    let kept = b"\x7fELF\0\xff\xfe\nplain\n".to_vec();
    let stdout = "\u{7f}ELF\n… [90 bytes cut; the first 14 of 1000 bytes are in stdout_ref] …\n";
    let stdout_ref = execution.put(kept).await;
    let output = json!({"stdout": stdout, "stdout_ref": stdout_ref, "stderr": ""});
    execution.ran("dump", "cli", Body::Inline(output)).await;
    let text = execution.read(json!({"step": "dump"})).await.text;
    assert_eq!(
        text,
        "stdout of dump (cli, Succeeded), 2 lines, 20 bytes: lines 1 to 2\n\
         (the command printed 1000 bytes; the first 14 were kept)\n\
         (not all of it is text: what is none is shown as \u{fffd})\n\
         1: \u{7f}ELF\u{fffd}\u{fffd}\u{fffd}\n2: plain"
    );
}

#[tokio::test]
async fn a_secret_over_several_lines_is_hidden_from_windows_and_from_searches() {
    let mut execution = Execution::new();
    let body: String = (0..30).map(|n| format!("MIIEkeymaterial{n:02}\n")).collect();
    let text = format!(
        "before\n-----BEGIN RSA PRIVATE KEY-----\n{body}-----END RSA PRIVATE KEY-----\nafter password=hunter2\n"
    );
    execution
        .ran("leak", "cli", Body::Inline(json!({"stdout": text, "stderr": ""})))
        .await;
    for arguments in [
        json!({"step": "leak"}),
        json!({"step": "leak", "from_line": 2}),
        json!({"step": "leak", "from_line": -5}),
        json!({"step": "leak", "grep": "keymaterial"}),
        json!({"step": "leak", "grep": "."}),
        json!({"step": "leak", "stream": "output"}),
    ] {
        let given = execution.read(arguments.clone()).await.text;
        assert!(
            !given.contains("keymaterial") && !given.contains("hunter2"),
            "{arguments}: {given}"
        );
    }
    // Whether a pattern matches must not tell what is hidden.
    let probe = execution
        .read(json!({"step": "leak", "grep": "password=hunter"}))
        .await
        .text;
    assert!(probe.ends_with("no line from 1 on matches"), "{probe}");
}

#[tokio::test]
async fn any_steps_output_is_shown_and_what_there_is_not_is_explained() {
    let mut execution = Execution::new();
    let given = execution.read(json!({"step": "check"})).await;
    assert!(
        given.outcome == "refused" && given.text.contains("there is nothing to read"),
        "{}",
        given.text
    );
    assert!(
        execution.toolbox().specs()[0]
            .description
            .contains("There are no earlier steps")
    );

    execution
        .ran(
            "check",
            "cli",
            Body::Inline(json!({"stdout": "x", "exit_code": 0})),
        )
        .await;
    let met = json!({"condition_met": true});
    execution.names("is-full", "conditional", StepStatus::Succeeded, Left::Output(met));
    execution.names(
        "scale",
        "cli",
        StepStatus::Skipped,
        Left::Output(json!({"proposed": true})),
    );
    execution.names("later", "cli", StepStatus::Skipped, Left::Nothing);
    execution.names("much", "cli", StepStatus::Skipped, Left::TooLarge(9000));
    execution.names("aged", "cli", StepStatus::Succeeded, Left::Fact(Attempt::FIRST));
    // It is in the log, but the task does not name it.
    execution
        .write("other", Some(Body::Inline(json!({"stdout": "not yours"}))))
        .await;
    execution.write("empty", None).await;
    execution.names(
        "empty",
        "agent",
        StepStatus::Succeeded,
        Left::Fact(Attempt::FIRST),
    );
    let description = execution.toolbox().specs()[0].description.clone();
    assert!(
        description.ends_with("Steps: check (cli, Succeeded), is-full (conditional, Succeeded), scale (cli, Skipped), later (cli, Skipped), much (cli, Skipped), aged (cli, Succeeded), empty (agent, Succeeded)."),
        "{description}"
    );
    for (arguments, outcome, wanted) in [
        (
            json!({"step": "is-full"}),
            "ok",
            "lines 1 to 3\n1: {\n2:   \"condition_met\": true\n3: }",
        ),
        (json!({"step": "scale"}), "ok", "2:   \"proposed\": true\n3: }"),
        (
            json!({"step": "is-full", "stream": "stdout"}),
            "refused",
            "ran no command, and has only its output: use stream=output",
        ),
        (
            json!({"step": "scale", "stream": "stderr"}),
            "refused",
            "use stream=output",
        ),
        (
            json!({"step": "check", "stream": "stderr"}),
            "failed",
            "its output has no stderr; use stream=output",
        ),
        (
            json!({"step": "later"}),
            "failed",
            "later (cli, Skipped) cannot be read: it left nothing",
        ),
        (
            json!({"step": "empty"}),
            "failed",
            "empty (agent, Succeeded) cannot be read: it left nothing",
        ),
        (
            json!({"step": "much"}),
            "failed",
            "its output of 9000 bytes is only in the execution's record",
        ),
        (
            json!({"step": "aged"}),
            "failed",
            "its result is in the log no more",
        ),
        (
            json!({"step": "other"}),
            "refused",
            "no step `other` ended before this one; there are check, is-full, scale, later, much, aged, empty",
        ),
        (
            json!({"step": "../check"}),
            "refused",
            "no step `../check` ended before this one",
        ),
        (
            json!({"step": "check", "from_line": 0}),
            "refused",
            "from_line counts from 1; -1 is the last line",
        ),
        (
            json!({"step": "check", "lines": 2001}),
            "refused",
            "lines must be between 1 and 2000",
        ),
        (
            json!({"step": "check", "context": 51}),
            "refused",
            "context must be between 0 and 50",
        ),
        (json!({"step": "check", "grep": "("}), "refused", "unclosed group"),
        (
            json!({"step": "check", "grep": r"((\w{100}){100}){100}"}),
            "refused",
            "size limit",
        ),
        (
            json!({"step": "check", "grep": "x".repeat(501)}),
            "refused",
            "grep is too long: at most 500 characters",
        ),
        (
            json!({"step": "check", "stream": "stdin"}),
            "refused",
            "stream must be one of",
        ),
        (json!({"stream": "stdout"}), "refused", "`step` is missing"),
    ] {
        let given = execution.read(arguments.clone()).await;
        assert!(
            given.outcome == outcome && given.text.contains(wanted),
            "{arguments}: {}: {}",
            given.outcome,
            given.text
        );
        assert!(!given.text.contains("not yours"));
    }
    let unreadable = SimBroker::new(
        1,
        Faults {
            unavailable: 1000,
            ..Faults::default()
        },
    );
    execution.log = unreadable.client();
    let given = execution.read(json!({"step": "check"})).await;
    assert!(
        given.outcome == "failed"
            && given
                .text
                .contains("check (cli, Succeeded) cannot be read: NATS did not"),
        "{}",
        given.text
    );
}
