//! Commands as pods of a real cluster, in a namespace that enforces the `restricted` standard.
//!
//! `cluster::testing` says which cluster.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use cli_runner::{
    executor::{
        End, Executor, ExecutorError, Finished, Job, Over, Program, Stop,
        pods::{Pods, Settings},
    },
    live::LiveSink,
};
use cluster::testing::{Door, TestCluster, shell_image};
use protocol::{Attempt, ExecutionId, Namespace, StepName, WorkflowName, live::Live};
use serde_json::json;
use service::clock;

/// What anything here may take.
const PATIENCE: Duration = Duration::from_secs(120);

struct Bench {
    cluster: TestCluster,
}

/// Knows of nothing that is over, or of everything.
struct Known(bool);

impl Over for Known {
    async fn is_over(&self, _: &Namespace, _: ExecutionId, _: &StepName, _: Attempt) -> bool {
        self.0
    }
}

impl Bench {
    fn open(test: &str) -> Option<Self> {
        service::install_crypto();
        let cluster = TestCluster::open(&format!("pods-{test}"))?;
        for account in ["cli", "fix"] {
            cluster.kubectl(&["create", "serviceaccount", account]);
        }
        Some(Self { cluster })
    }

    fn settings(&self) -> Settings {
        Settings::for_tests(self.cluster.namespace(), &shell_image())
    }

    async fn pods_with(&self, settings: Settings, kubeconfig: Option<std::path::PathBuf>) -> Pods {
        let kubeconfig = kubeconfig.unwrap_or_else(|| self.cluster.kubeconfig().to_owned());
        let settings_of_cluster = service::config::Kubernetes {
            kubeconfig: Some(kubeconfig),
        };
        let cluster = cluster::connect(&settings_of_cluster).await.unwrap();
        Pods::new(cluster.client, settings)
    }

    async fn pods(&self) -> Pods {
        self.pods_with(self.settings(), None).await
    }

    fn names(&self) -> Vec<String> {
        let listed = self.cluster.kubectl(&["get", "pods", "-o", "name"]);
        listed.lines().map(str::to_owned).collect()
    }

    async fn until(&self, what: &str, is_so: impl Fn(&TestCluster) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut beats = tokio::time::interval(Duration::from_millis(200));
        while !is_so(&self.cluster) {
            assert!(Instant::now() < deadline, "not in time: {what}");
            beats.tick().await;
        }
    }
}

fn job(command: &str) -> Job {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed).to_string();
    let now = clock::now();
    Job {
        namespace: Namespace::default(),
        execution: ExecutionId::derive(&["pods", &number, &now.to_string()]),
        workflow: WorkflowName::new("w").unwrap(),
        step: StepName::new("step").unwrap(),
        attempt: Attempt::FIRST,
        program: Program::Shell(command.to_owned()),
        env: BTreeMap::new(),
        image: None,
        resources: None,
        run_as_user: None,
        deadline: now.after(PATIENCE),
    }
}

async fn run_with(pods: &Pods, job: &Job, stop: &Stop) -> Result<Finished, ExecutorError> {
    let (sink, _lines) = LiveSink::new(16);
    tokio::time::timeout(PATIENCE * 2, pods.run(job, stop, &sink))
        .await
        .unwrap()
}

async fn run(pods: &Pods, job: &Job) -> Result<Finished, ExecutorError> {
    run_with(pods, job, &Stop::default()).await
}

fn text(finished: &Finished) -> (String, String) {
    let of = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (of(finished.stdout.kept()), of(finished.stderr.kept()))
}

#[tokio::test]
async fn a_command_comes_out_as_on_any_machine() {
    let Some(bench) = Bench::open("plain") else { return };
    let pods = bench.pods().await;
    let mut job = job(
        "echo \"out $X $$ $(echo sub) `id -u`\"; printf 'err $(X)' >&2; cat /proc/1/cmdline >/dev/null; exit 3",
    );
    job.env = BTreeMap::from([("X".to_owned(), "a $(HOME) $$ b".to_owned())]);
    let (sink, mut lines) = LiveSink::new(16);
    let finished = pods.run(&job, &Stop::default(), &sink).await.unwrap();
    assert_eq!(finished.end, End::Exited(3));
    let (stdout, stderr) = text(&finished);
    let words: Vec<&str> = stdout.split(' ').collect();
    assert_eq!(
        (&words[..5], &words[6..]),
        (&["out", "a", "$(HOME)", "$$", "b"][..], &["sub", "65532\n"][..]),
        "{stdout}"
    );
    assert!(words[5].parse::<u32>().is_ok(), "{stdout}");
    assert_eq!(stderr, "err $(X)");
    let Ok(Live::Line { text: line, .. }) = lines.try_recv() else {
        panic!("no live line")
    };
    assert_eq!(format!("{line}\n"), stdout);
    assert_eq!(bench.names().len(), 1, "kept until its result is stored");
    pods.forget(&job).await;
    bench
        .until("the pod is gone", |cluster| {
            cluster.kubectl(&["get", "pods", "-o", "name"]).is_empty()
        })
        .await;
}

#[tokio::test]
async fn what_a_command_leaves_running_holds_nothing_up() {
    let Some(bench) = Bench::open("leftover") else {
        return;
    };
    let pods = bench.pods().await;
    let command = "sleep 600 & setsid sleep 600 & (trap '' TERM HUP; setsid sleep 600) & \
                   i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i + 1)); done";
    let finished = run(&pods, &job(command)).await.unwrap();
    assert_eq!(finished.end, End::Exited(0));
    let (stdout, _) = text(&finished);
    let expected: String = (0..2000).map(|number| format!("{number}\n")).collect();
    assert_eq!(stdout, expected);
}

#[tokio::test]
async fn five_megabytes_of_any_bytes_on_each_stream_are_exact() {
    let Some(bench) = Bench::open("large") else { return };
    let pods = bench.pods().await;
    // Different for each stream, and known here: the digest of what was printed comes with it.
    let command = "head -c 5000000 /dev/urandom >/tmp/o; head -c 5000000 /dev/urandom >/tmp/e; \
                   sha256sum /tmp/o /tmp/e | cut -c1-64; cat /tmp/o; cat /tmp/e >&2";
    let finished = run(&pods, &job(command)).await.unwrap();
    assert_eq!(finished.end, End::Exited(0));
    let stdout = finished.stdout.kept();
    assert_eq!(
        (stdout.len(), finished.stderr.kept().len()),
        (5_000_130, 5_000_000)
    );
    let digests = String::from_utf8(stdout[..130].to_vec()).unwrap();
    let digest = |bytes: &[u8]| {
        let path = bench.cluster.directory().join("bytes");
        std::fs::write(&path, bytes).unwrap();
        let said = std::process::Command::new("sha256sum")
            .arg(&path)
            .output()
            .unwrap()
            .stdout;
        String::from_utf8(said[..64].to_vec()).unwrap()
    };
    let found = format!("{}\n{}\n", digest(&stdout[130..]), digest(finished.stderr.kept()));
    assert_eq!(found, digests);
}

#[tokio::test]
async fn what_keeps_a_pod_from_running_is_told_at_once_in_kubernetes_words() {
    let Some(bench) = Bench::open("stuck") else { return };
    let pods = bench
        .pods_with(
            Settings {
                start_timeout: Duration::from_secs(8),
                ..bench.settings()
            },
            None,
        )
        .await;
    let image = Job {
        image: Some("127.0.0.1:1/nothing/here:1".to_owned()),
        ..job("true")
    };
    let begun = Instant::now();
    let slow = bench.pods_with(bench.settings(), None).await;
    let huge = Job {
        resources: Some(json!({"requests": {"memory": "9000Gi"}, "limits": {"memory": "9000Gi"}})),
        ..job("true")
    };
    let oom = Job {
        resources: Some(json!({"limits": {"memory": "24Mi"}})),
        ..job("x=0123456789; while :; do x=$x$x; done")
    };
    let quantity = Job {
        resources: Some(json!({"limits": {"memory": "lots"}})),
        ..job("true")
    };
    let (no_image, unschedulable, out_of_memory, refused) = tokio::join!(
        run(&slow, &image),
        run(&pods, &huge),
        run(&slow, &oom),
        run(&pods, &quantity)
    );
    let text = |result: Result<Finished, ExecutorError>| match result {
        Ok(finished) => format!("{:?}", finished.end),
        Err(ExecutorError::CannotStart(reason)) => reason,
        Err(other) => format!("{other:?}"),
    };
    let no_image = text(no_image);
    assert!(
        no_image.contains("ErrImagePull") && no_image.contains("127.0.0.1:1/nothing/here:1"),
        "{no_image}"
    );
    assert!(begun.elapsed() < Duration::from_secs(90), "{:?}", begun.elapsed());
    let unschedulable = text(unschedulable);
    assert!(
        unschedulable.contains("Unschedulable") && unschedulable.contains("Insufficient memory"),
        "{unschedulable}"
    );
    assert_eq!(text(out_of_memory), "OutOfMemory(137)");
    let refused = text(refused);
    assert!(
        refused.contains("Kubernetes refuses the step's pod") && refused.contains("quantities"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_pod_deleted_under_its_command_is_made_again_three_times_at_most() {
    let Some(bench) = Bench::open("deleted") else {
        return;
    };
    let pods = bench.pods().await;
    let once = job("echo begun; [ -e /proc/1 ]; sleep 600");
    let deleting = async {
        for round in 0..3 {
            bench
                .until(&format!("pod {round} runs"), |cluster| {
                    cluster.list(&["pods"]).iter().any(|pod| {
                        pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null()
                    })
                })
                .await;
            bench
                .cluster
                .kubectl(&["delete", "pod", &once.name(), "--grace-period=1", "--wait=true"]);
        }
    };
    let (result, ()) = tokio::join!(run(&pods, &once), deleting);
    let Err(ExecutorError::Infrastructure(reason)) = result else {
        panic!("{result:?}")
    };
    assert!(
        reason.contains("was lost 3 times") && reason.contains("was deleted"),
        "{reason}"
    );

    let gated = Job {
        program: Program::Gated(vec!["sleep".to_owned(), "600".to_owned()]),
        ..job("")
    };
    let deleting = async {
        bench
            .until("the gated pod runs", |cluster| {
                cluster
                    .list(&["pods"])
                    .iter()
                    .any(|pod| pod["status"]["phase"] == "Running")
            })
            .await;
        bench
            .cluster
            .kubectl(&["delete", "pod", &gated.name(), "--grace-period=1", "--wait=true"]);
    };
    let (result, ()) = tokio::join!(run(&pods, &gated), deleting);
    let Err(ExecutorError::Infrastructure(reason)) = result else {
        panic!("{result:?}")
    };
    assert!(reason.contains("was deleted while its command ran"), "{reason}");
    let (sink, _lines) = LiveSink::new(1);
    assert!(
        pods.adopt(&gated, &Stop::default(), &sink).await.is_none(),
        "nothing is left, and nothing is started"
    );
    assert_eq!(bench.names().len(), 0);
}

#[tokio::test]
async fn cancel_and_timeout_end_the_command_and_keep_what_it_said() {
    let Some(bench) = Bench::open("ended") else { return };
    let pods = bench.pods().await;
    let command = "trap 'echo late >&2; exit 9' TERM; echo begun; while :; do sleep 0.1; done";
    let (cancelled, mut timed_out) = (job(command), job(command));
    timed_out.deadline = clock::now().after(Duration::from_secs(8));
    let stop = Stop::default();
    let cancelling = async {
        bench
            .until("its pod has said something", |cluster| {
                cluster
                    .try_kubectl(&["logs", &cancelled.name()])
                    .is_ok_and(|log| log.contains("begun"))
            })
            .await;
        stop.cancel.cancel();
    };
    let (one, two, ()) = tokio::join!(
        run_with(&pods, &cancelled, &stop),
        run(&pods, &timed_out),
        cancelling
    );
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(text(&one), ("begun\n".to_owned(), "late\n".to_owned()));
    assert_eq!(one.end, End::Cancelled(Some(9)));
    assert_eq!(text(&two), ("begun\n".to_owned(), "late\n".to_owned()));
    assert_eq!(two.end, End::TimedOut(Some(9)));
    bench
        .until("both pods are gone", |cluster| {
            cluster.kubectl(&["get", "pods", "-o", "name"]).is_empty()
        })
        .await;
}

#[tokio::test]
async fn another_runner_adopts_what_one_has_begun() {
    let Some(bench) = Bench::open("adopted") else {
        return;
    };
    let (one, two) = (bench.pods().await, bench.pods().await);
    let job = job("echo begun; sleep 6; echo ended; echo aside >&2");
    let stop = Stop::default();
    let releasing = async {
        bench
            .until("it has begun", |cluster| {
                cluster
                    .try_kubectl(&["logs", &job.name()])
                    .is_ok_and(|log| log.contains("begun"))
            })
            .await;
        stop.release.cancel();
    };
    let (released, ()) = tokio::join!(run_with(&one, &job, &stop), releasing);
    assert!(
        matches!(released, Err(ExecutorError::Released(None))),
        "{released:?}"
    );
    // A sweep leaves it: its attempt is not over.
    let swept = two.sweep(&Known(false)).await.unwrap();
    assert_eq!(swept.jobs, 0);
    let uid = bench.cluster.list(&["pods"])[0]["metadata"]["uid"].clone();
    let finished = run(&two, &job).await.unwrap();
    assert_eq!(
        (finished.end.clone(), text(&finished)),
        (
            End::Exited(0),
            ("begun\nended\n".to_owned(), "aside\n".to_owned())
        )
    );
    let listed = bench.cluster.list(&["pods"]);
    assert_eq!((listed.len(), &listed[0]["metadata"]["uid"]), (1, &uid));
}

// The door must be kept while kubectl is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_goes_away_changes_no_result() {
    let Some(bench) = Bench::open("away") else { return };
    let (host, port) = bench.cluster.server();
    let door = Door::open(host, port).await;
    bench.cluster.kubectl(&[
        "create",
        "rolebinding",
        "all",
        "--clusterrole=admin",
        &format!("--serviceaccount={}:cli", bench.cluster.namespace()),
    ]);
    let kubeconfig = bench.cluster.kubeconfig_of("cli", &door.address());
    let pods = bench.pods_with(bench.settings(), Some(kubeconfig)).await;
    let job = job(
        "i=0; while [ $i -lt 100 ]; do echo line $i; i=$((i+1)); sleep 0.1; done; echo aside >&2; exit 4",
    );
    let going = async {
        bench
            .until("it has begun", |cluster| {
                cluster
                    .try_kubectl(&["logs", &job.name()])
                    .is_ok_and(|log| log.contains("line 5"))
            })
            .await;
        // Twice: once it ends while it runs, once it is over meanwhile.
        door.shut().await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        door.open_again().await;
        bench
            .until("it is read again", |cluster| {
                cluster
                    .try_kubectl(&["logs", &job.name()])
                    .is_ok_and(|log| log.contains("line 60"))
            })
            .await;
        door.shut().await;
        bench
            .until("it is over", |cluster| {
                cluster
                    .list(&["pods"])
                    .iter()
                    .any(|pod| pod["status"]["phase"] == "Failed")
            })
            .await;
        door.open_again().await;
    };
    let (finished, ()) = tokio::join!(run(&pods, &job), going);
    let finished = finished.unwrap();
    let expected: String = (0..100).map(|number| format!("line {number}\n")).collect();
    assert_eq!(text(&finished), (expected, "aside\n".to_owned()));
    assert_eq!(finished.end, End::Exited(4));
}
