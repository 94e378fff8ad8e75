//! The local executor against real processes: what they get, what is kept, and that nothing is left.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cli_runner::{
    capture::Limits,
    executor::{
        End, Executor, ExecutorError, Finished, Job, Over, Program, Stop,
        local::{Local, Settings},
    },
    live::LiveSink,
};
use protocol::{Attempt, ExecutionId, Namespace, StepName, WorkflowName, live::Live};
use service::clock;

const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";

/// Knows of no attempt that is over.
struct Nothing;

impl Over for Nothing {
    async fn is_over(&self, _: &Namespace, _: ExecutionId, _: &StepName, _: Attempt) -> bool {
        false
    }
}

struct Bench {
    root: tempfile::TempDir,
    local: Local,
}

impl Bench {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let local = Self::open(root.path(), Duration::from_millis(300));
        Self { root, local }
    }

    fn open(root: &Path, kill_grace: Duration) -> Local {
        Local::open(Settings {
            work_dir: root.join("work"),
            path: PATH.into(),
            kubeconfig: Some("/etc/kube/config".into()),
            limits: Limits {
                inline_bytes_max: 64 * 1024,
                spill_bytes_max: 1024 * 1024,
            },
            kill_grace,
        })
        .unwrap()
    }

    async fn run(&self, command: &str) -> Finished {
        self.try_run(&job(command), &Stop::default()).await.unwrap()
    }

    async fn try_run(&self, job: &Job, stop: &Stop) -> Result<Finished, ExecutorError> {
        let (sink, _lines) = LiveSink::new(16);
        let bound = Duration::from_secs(60);
        let result = tokio::time::timeout(bound, self.local.run(job, stop, &sink)).await;
        result.expect("a run is bounded")
    }

    fn left(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.root.path().join("work")).unwrap();
        entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| !path.ends_with(".lock"))
            .collect()
    }

    /// Processes that were started for this bench: its directory is in their environment or theirs to work in.
    fn processes(&self) -> Vec<String> {
        processes_of(self.root.path())
    }

    fn assert_nothing_left(&self) {
        assert_eq!(self.left(), Vec::<PathBuf>::new());
        assert_eq!(self.processes(), Vec::<String>::new());
    }
}

fn processes_of(root: &Path) -> Vec<String> {
    let marker = root.to_str().unwrap().as_bytes().to_vec();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_str().unwrap_or("").parse::<u32>() else {
            continue;
        };
        let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
        if pid != std::process::id() && environ.windows(marker.len()).any(|window| window == marker) {
            let name = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push(format!(
                "{pid} {}",
                String::from_utf8_lossy(&name).replace('\0', " ")
            ));
        }
    }
    found
}

fn job(command: &str) -> Job {
    with_program(Program::Shell(command.into()))
}

fn with_program(program: Program) -> Job {
    Job {
        namespace: Namespace::default(),
        execution: ExecutionId::derive(&["test"]),
        workflow: WorkflowName::new("test").unwrap(),
        step: StepName::new("step").unwrap(),
        attempt: Attempt::FIRST,
        program,
        env: BTreeMap::new(),
        image: None,
        resources: None,
        run_as_user: None,
        deadline: clock::now().after(Duration::from_secs(60)),
    }
}

fn text(finished: &Finished) -> (&str, &str) {
    (
        std::str::from_utf8(finished.stdout.kept()).unwrap(),
        std::str::from_utf8(finished.stderr.kept()).unwrap(),
    )
}

#[tokio::test]
async fn stdout_stderr_and_the_exit_code_are_kept_apart() {
    let bench = Bench::new();
    let finished = bench.run("echo out; echo err >&2; exit 3").await;
    assert_eq!(text(&finished), ("out\n", "err\n"));
    assert_eq!(finished.end, End::Exited(3));
    bench.assert_nothing_left();
}

#[tokio::test]
async fn the_environment_holds_nothing_of_ours() {
    let bench = Bench::new();
    let mut job = job(
        "env -0 | tr '\\0' '\\n' | cut -d= -f1 | sort; echo $HOME; pwd; echo \"$PATH|$KUBECONFIG|$MINE\"",
    );
    job.env.insert("MINE".into(), "two words; $HOME".into());
    job.env.insert("HOME".into(), "/elsewhere".into());
    let finished = bench.try_run(&job, &Stop::default()).await.unwrap();
    let (out, err) = text(&finished);
    assert_eq!(err, "");
    let home = bench
        .root
        .path()
        .canonicalize()
        .unwrap()
        .join("work")
        .join(job.name());
    let home = home.to_str().unwrap();
    // `PWD` and the like are the shell's own.
    let names: Vec<&str> = out.lines().take_while(|line| *line != home).collect();
    let given: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| !matches!(*name, "PWD" | "OLDPWD" | "SHLVL" | "_"))
        .collect();
    assert_eq!(given, ["HOME", "KUBECONFIG", "LANG", "MINE", "PATH"]);
    let rest: Vec<&str> = out.lines().skip(names.len()).collect();
    assert_eq!(
        rest,
        [home, home, &format!("{PATH}|/etc/kube/config|two words; $HOME")]
    );
    bench.assert_nothing_left();
}

#[tokio::test]
async fn stdin_is_empty_and_files_are_removed() {
    let bench = Bench::new();
    let finished = bench
        .run("cat; mkdir -p a/b; echo x > a/b/c; chmod 500 a/b a; ls")
        .await;
    assert_eq!(text(&finished), ("a\n", ""));
    bench.assert_nothing_left();
}

#[tokio::test]
async fn a_signal_is_told_from_an_exit() {
    let bench = Bench::new();
    assert_eq!(bench.run("kill -SEGV $$").await.end, End::Signalled(11));
    assert_eq!(
        bench.run("sh -c 'kill -KILL $$'; exit $?").await.end,
        End::Exited(137)
    );
}

#[tokio::test]
async fn a_deadline_ends_the_whole_group_and_keeps_what_was_printed() {
    let bench = Bench::new();
    let mut job = job("echo begun; sleep 600 & sleep 601");
    job.deadline = clock::now().after(Duration::from_millis(300));
    let finished = bench.try_run(&job, &Stop::default()).await.unwrap();
    assert_eq!(finished.end, End::TimedOut(Some(143)));
    assert_eq!(text(&finished).0, "begun\n");
    bench.assert_nothing_left();
}

#[tokio::test]
async fn what_ignores_the_request_to_end_is_killed() {
    let bench = Bench::new();
    let mut job = job("trap '' TERM HUP INT; echo begun; while :; do sleep 600; done");
    job.deadline = clock::now().after(Duration::from_millis(300));
    let began = Instant::now();
    let finished = bench.try_run(&job, &Stop::default()).await.unwrap();
    assert_eq!(finished.end, End::TimedOut(Some(137)));
    assert!(began.elapsed() < Duration::from_secs(10));
    bench.assert_nothing_left();
}

#[tokio::test]
async fn what_is_asked_to_end_can_say_its_last_words() {
    let bench = Bench::new();
    let mut job = job("trap 'echo cleaned up; exit 9' TERM; echo begun; sleep 600 & wait");
    job.deadline = clock::now().after(Duration::from_millis(300));
    let finished = bench.try_run(&job, &Stop::default()).await.unwrap();
    assert_eq!(finished.end, End::TimedOut(Some(9)));
    assert_eq!(text(&finished).0, "begun\ncleaned up\n");
}

#[tokio::test]
async fn a_cancel_ends_a_command_that_is_stopped() {
    let bench = Bench::new();
    let stop = Stop::default();
    let job = job("kill -STOP $$");
    let ((), finished) = tokio::join!(
        async {
            // Only once the command stands still.
            until(|| bench.processes().iter().any(|process| is_stopped(process))).await;
            stop.cancel.cancel();
        },
        bench.try_run(&job, &stop)
    );
    assert!(matches!(finished.unwrap().end, End::Cancelled(_)));
    bench.assert_nothing_left();
}

fn is_stopped(process: &str) -> bool {
    let pid = process.split(' ').next().unwrap();
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") T "))
}

async fn until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut look = tokio::time::interval(Duration::from_millis(5));
    while !condition() {
        assert!(Instant::now() < deadline, "it never came to be");
        look.tick().await;
    }
}

#[tokio::test]
async fn a_child_in_the_background_neither_holds_the_step_nor_lives_on() {
    let bench = Bench::new();
    for command in [
        "sleep 600 & echo done",
        "(trap '' TERM; sleep 600; sleep 601) & echo done",
        "setsid sleep 600 & echo done",
        "setsid sh -c 'trap \"\" TERM; while :; do sleep 600; done' >/dev/null 2>&1 </dev/null & echo done",
        "(cd / && exec setsid sleep 600) & echo done",
        "env -i setsid sleep 600 & echo done",
    ] {
        let began = Instant::now();
        let finished = bench.run(command).await;
        assert_eq!(
            (finished.end.clone(), text(&finished).0),
            (End::Exited(0), "done\n"),
            "{command}"
        );
        assert!(began.elapsed() < Duration::from_secs(10), "{command}");
        assert!(
            finished.duration < Duration::from_secs(1),
            "the command itself was quick: {command}"
        );
        bench.assert_nothing_left();
    }
}

#[tokio::test]
async fn huge_output_is_counted_and_its_ends_are_kept() {
    let bench = Bench::new();
    let finished = bench
        .run("echo first; head -c 5000000 /dev/zero | tr '\\0' x; echo; echo last; echo small >&2")
        .await;
    assert_eq!(finished.stdout.bytes(), 6 + 5_000_000 + 6);
    assert_eq!(finished.stdout.kept().len(), 1024 * 1024);
    let text = finished.stdout.text(65_536, |cut| format!("[{cut} cut]"));
    assert!(text.starts_with("first\nxx") && text.ends_with("xx\nlast\n") && text.len() <= 65_536);
    assert_eq!(finished.stderr.text(65_536, |_| String::new()), "small\n");
}

#[tokio::test]
async fn bytes_that_are_no_text_are_kept_exactly() {
    let bench = Bench::new();
    let finished = bench.run(r"printf 'a\377\000b'").await;
    assert_eq!(finished.stdout.kept(), b"a\xff\0b");
    assert_eq!(finished.stdout.text(100, |_| String::new()), "a\u{FFFD}\0b");
}

#[tokio::test]
async fn lines_are_seen_while_the_command_runs() {
    let bench = Bench::new();
    let (sink, mut lines) = LiveSink::new(16);
    let stop = Stop::default();
    let job = job("echo one; echo two >&2; sleep 600");
    let (seen, finished) = tokio::join!(
        async {
            let mut seen = Vec::new();
            while seen.len() < 2 {
                match lines.recv().await.unwrap() {
                    Live::Line { text, .. } => seen.push(text),
                    other => panic!("{other:?}"),
                }
            }
            stop.cancel.cancel();
            seen.sort();
            seen
        },
        bench.local.run(&job, &stop, &sink)
    );
    assert_eq!(seen, ["one", "two"]);
    assert!(matches!(finished.unwrap().end, End::Cancelled(Some(143))));
}

#[tokio::test]
async fn an_argv_runs_without_a_shell() {
    let bench = Bench::new();
    let argv = ["printf", "%s|", "$HOME", "; echo x", "*"]
        .map(str::to_owned)
        .to_vec();
    let finished = bench
        .try_run(&with_program(Program::Gated(argv)), &Stop::default())
        .await
        .unwrap();
    assert_eq!(text(&finished), ("$HOME|; echo x|*|", ""));
    let missing = with_program(Program::Gated(vec!["no-such-program".into()]));
    match bench.try_run(&missing, &Stop::default()).await {
        Err(ExecutorError::CannotStart(reason)) => {
            assert_eq!(
                reason,
                format!(
                    "no-such-program was not found in {PATH}: install it on the machine of the cli-runner, or set cli.path"
                )
            );
        }
        other => panic!("{other:?}"),
    }
    bench.assert_nothing_left();
}

#[tokio::test]
async fn one_attempt_runs_once_at_a_time_on_a_machine() {
    let bench = Bench::new();
    let other = Bench::open(bench.root.path(), Duration::from_millis(300));
    let stop = Stop::default();
    let job = job("echo begun; sleep 600");
    let (sink, mut lines) = LiveSink::new(16);
    let (unused, _) = LiveSink::new(1);
    let ((), first) = tokio::join!(
        async {
            lines.recv().await.unwrap();
            assert_eq!(
                other.sweep(&Nothing).await.unwrap().jobs,
                0,
                "what lives is not swept"
            );
            let second = other.run(&job, &Stop::default(), &unused).await;
            assert!(
                matches!(second, Err(ExecutorError::Unavailable { .. })),
                "{second:?}"
            );
            stop.cancel.cancel();
        },
        bench.local.run(&job, &stop, &sink)
    );
    assert!(matches!(first.unwrap().end, End::Cancelled(_)));
    let again = other
        .run(&self::job("echo again"), &Stop::default(), &unused)
        .await
        .unwrap();
    assert_eq!(again.end, End::Exited(0));
}

#[tokio::test]
async fn a_run_that_is_dropped_leaves_nothing() {
    let bench = Bench::new();
    let (sink, mut lines) = LiveSink::new(16);
    let (job, stop) = (job("setsid sleep 600 & echo begun; sleep 600"), Stop::default());
    tokio::select! {
        finished = bench.local.run(&job, &stop, &sink) => panic!("{finished:?}"),
        _ = lines.recv() => {}
    }
    until(|| bench.processes().is_empty()).await;
    bench.assert_nothing_left();
}

#[tokio::test]
async fn a_released_run_says_what_it_had() {
    let bench = Bench::new();
    let stop = Stop::default();
    let (sink, mut lines) = LiveSink::new(16);
    let job = job("echo begun; sleep 600");
    let ((), result) = tokio::join!(
        async {
            lines.recv().await.unwrap();
            stop.release.cancel();
        },
        bench.local.run(&job, &stop, &sink)
    );
    match result {
        Err(ExecutorError::Released(Some(finished))) => assert_eq!(text(&finished).0, "begun\n"),
        other => panic!("{other:?}"),
    }
    bench.assert_nothing_left();
}

/// Not a test by itself: the runner that the next test kills. Runs one command for the directory it is given.
#[tokio::test]
async fn runner_to_be_killed() {
    let Ok(root) = std::env::var("CLI_RUNNER_TEST_ROOT") else {
        return;
    };
    let local = Bench::open(Path::new(&root), Duration::from_secs(1));
    let (sink, _lines) = LiveSink::new(16);
    let job = job("setsid sleep 600 & sh -c 'sleep 600; true' & touch begun; wait");
    let _ = local.run(&job, &Stop::default(), &sink).await;
}

#[tokio::test]
async fn what_a_killed_runner_left_is_ended_before_work_is_taken_up() {
    for by_sweep in [true, false] {
        let bench = Bench::new();
        let mut runner = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "runner_to_be_killed", "--nocapture"])
            .env("CLI_RUNNER_TEST_ROOT", bench.root.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let orphan = job("true");
        let home = bench.root.path().join("work").join(orphan.name());
        // Begun, and its record names the first process.
        let record = home.with_extension("json");
        until(|| {
            home.join("begun").exists()
                && fs::read_to_string(&record).is_ok_and(|text| text.contains("\"leader\":{"))
        })
        .await;
        runner.kill().unwrap();
        runner.wait().unwrap();
        assert!(bench.processes().len() >= 3, "{:?}", bench.processes());
        if by_sweep {
            let swept = bench.local.sweep(&Nothing).await.unwrap();
            assert_eq!(swept.jobs, 1);
            assert!(swept.killed >= 3, "{swept:?}");
            assert_eq!(bench.local.sweep(&Nothing).await.unwrap().jobs, 0);
        } else {
            let finished = bench.run("echo anew; ls").await;
            assert_eq!(text(&finished), ("anew\n", ""));
        }
        bench.assert_nothing_left();
    }
}

#[tokio::test]
async fn a_record_that_was_never_written_whole_goes_soon() {
    let bench = Bench::new();
    let draft = |name: &str, age: Duration| {
        let path = bench.root.path().join("work").join(name);
        fs::write(&path, "{").unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(std::time::SystemTime::now() - age).unwrap();
        path
    };
    let old = draft(".workflow-cli-a.1.0", Duration::from_secs(60));
    let new = draft(".workflow-cli-b.1.1", Duration::ZERO);
    bench.local.sweep(&Nothing).await.unwrap();
    assert!(!old.exists(), "whoever wrote it is dead");
    assert!(new.exists(), "somebody may be writing it");
}

#[tokio::test]
async fn a_group_whose_number_went_to_a_stranger_is_not_touched() {
    let bench = Bench::new();
    let mut stranger = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let record = bench
        .root
        .path()
        .join("work")
        .join(format!("{}.json", job("true").name()));
    let claimed = serde_json::json!({
        "namespace": "default", "execution": job("true").execution, "step": "step", "attempt": 1,
        "deadline": clock::now(), "place": place(), "runner": {"pid": 1, "start_ticks": 999_999_999_999_u64},
        "leader": {"pid": stranger.id(), "start_ticks": 1},
    });
    fs::write(&record, claimed.to_string()).unwrap();
    assert_eq!(bench.local.sweep(&Nothing).await.unwrap().jobs, 1);
    assert_eq!(stranger.try_wait().unwrap(), None, "the stranger lives");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    bench.assert_nothing_left();
}

fn place() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    format!(
        "{} {}",
        boot.trim(),
        fs::read_link("/proc/self/ns/pid").unwrap().display()
    )
}
