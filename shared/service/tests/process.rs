//! A service as a process: exit codes, messages, signals, the health door.
//!
//! This test has its own `main`: run under the name [`PROBE`], it is a service;
//! otherwise it starts itself under that name and watches.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use service::{Fatal, Service};

const PROBE: &str = "probe-service";
const DEADLINE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    if std::env::args().next().as_deref() == Some(PROBE) {
        return service::main_with(PROBE, run);
    }
    let tests: &[(&str, fn())] = &[
        ("misuse_ends_with_2", misuse_ends_with_2),
        (
            "a_failure_ends_with_1_and_its_reason",
            a_failure_ends_with_1_and_its_reason,
        ),
        ("a_signal_ends_it_in_order", a_signal_ends_it_in_order),
        (
            "work_that_does_not_end_is_reported",
            work_that_does_not_end_is_reported,
        ),
        ("a_second_signal_ends_it_at_once", a_second_signal_ends_it_at_once),
    ];
    let filter = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    for (name, test) in tests
        .iter()
        .filter(|(name, _)| filter.as_ref().is_none_or(|word| name.contains(word)))
    {
        test();
        println!("test {name} ... ok");
    }
    ExitCode::SUCCESS
}

/// The service under test; `cli.work_dir` says how it is to behave.
async fn run(service: Service) -> Result<(), Fatal> {
    match service.config.cli.work_dir.as_deref().and_then(Path::to_str) {
        Some("fail") => return Err(Fatal::new("no server at nats://127.0.0.1:1; is it running?")),
        Some("hang") => {
            service.health.set("nats", Ok(()));
            tracing::info!("at work");
            return std::future::pending().await;
        }
        _ => {}
    }
    service.health.set("nats", Ok(()));
    tracing::info!("at work");
    service.shutdown.cancelled().await;
    Ok(())
}

struct Probe {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
    seen: String,
}

fn start(arguments: &[&str], env: &[(&str, &str)]) -> Probe {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg0(PROBE)
        .args(arguments)
        .env_clear()
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = BufReader::new(child.stderr.take().unwrap());
    Probe {
        child,
        stderr,
        seen: String::new(),
    }
}

impl Probe {
    /// Reads the log up to a line with this text.
    fn until(&mut self, text: &str) -> String {
        loop {
            let mut line = String::new();
            let bytes = self.stderr.read_line(&mut line).unwrap();
            assert!(bytes > 0, "{text:?} was never said:\n{}", self.seen);
            self.seen.push_str(&line);
            if line.contains(text) {
                return line;
            }
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// The exit code and everything said.
    fn end(mut self) -> (i32, String) {
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                self.child.kill().unwrap();
                panic!("it did not end:\n{}", self.seen);
            }
            std::thread::yield_now();
        };
        self.stderr.read_to_string(&mut self.seen).unwrap();
        (status.code().unwrap_or(-1), self.seen)
    }
}

/// What the health door answers about readiness.
fn ready(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .write_all(b"GET /readyz HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn misuse_ends_with_2() {
    let (code, said) = start(&["--confg", "x"], &[]).end();
    assert_eq!(
        (code, said.lines().next().unwrap()),
        (2, "probe-service: unknown argument \"--confg\"")
    );
    assert!(said.contains("Usage: probe-service [--config FILE]"));
    let (code, said) = start(&["--config", "/nonexistent.toml"], &[]).end();
    assert!(
        code == 2 && said.contains("/nonexistent.toml: cannot be opened"),
        "{code} {said}"
    );
    let (code, said) = start(
        &[],
        &[("FIST_NATS_REPLICAS", "0"), ("FIST_CLI_EXECUTER", "local")],
    )
    .end();
    assert_eq!(
        (code, said.as_str()),
        (
            2,
            "probe-service: the configuration has 2 errors:\n  \
             FIST_CLI_EXECUTER: unknown variable; did you mean FIST_CLI_EXECUTOR?\n  \
             FIST_NATS_REPLICAS = 0: must be a whole number from 1 to 5\n"
        )
    );
}

fn a_failure_ends_with_1_and_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("fist.toml");
    std::fs::write(&file, "[cli]\nwork_dir = \"fail\"\n[log]\nlevel = \"warn\"\n").unwrap();
    let file = file.to_str().unwrap();
    let expected = (
        1,
        "probe-service: no server at nats://127.0.0.1:1; is it running?\n".to_owned(),
    );
    assert_eq!(start(&["--config", file], &[]).end(), expected);
    assert_eq!(start(&[&format!("--config={file}")], &[]).end(), expected);
    assert_eq!(start(&[], &[("FIST_CONFIG", file)]).end(), expected);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, said) = start(
        &[],
        &[("FIST_HEALTH_LISTEN", &address), ("FIST_LOG_LEVEL", "warn")],
    )
    .end();
    let reason = format!("probe-service: cannot listen at {address} (health.listen): Address already in use");
    assert!(code == 1 && said.starts_with(&reason), "{code} {said}");
}

fn a_signal_ends_it_in_order() {
    // The port is free again once it is let go of; nothing else here takes it.
    let address = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    for name in ["TERM", "INT"] {
        let mut probe = start(&[], &[("FIST_HEALTH_LISTEN", &address.to_string())]);
        let line = probe.until("at work");
        assert!(line.starts_with('{'), "JSON where no terminal is: {line}");
        let answer = ready(&address.to_string());
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        probe.signal(name);
        let (code, said) = probe.end();
        assert_eq!(code, 0, "{said}");
        assert!(said.contains("asked to end"), "{said}");
    }
}

fn work_that_does_not_end_is_reported() {
    let mut probe = start(
        &[],
        &[("FIST_CLI_WORK_DIR", "hang"), ("FIST_SHUTDOWN_DRAIN_MS", "50")],
    );
    probe.until("at work");
    probe.signal("TERM");
    let (code, said) = probe.end();
    assert!(
        code == 1 && said.contains("did not end within 50 ms of being asked (shutdown.drain_ms)"),
        "{code} {said}"
    );
}

fn a_second_signal_ends_it_at_once() {
    let address = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let mut probe = start(
        &[],
        &[("FIST_CLI_WORK_DIR", "hang"), ("FIST_HEALTH_LISTEN", &address)],
    );
    probe.until("at work");
    probe.signal("INT");
    probe.until("asked to end");
    // While it drains, the health door is open and says so.
    let deadline = Instant::now() + DEADLINE;
    while !ready(&address).contains("the process is ending") {
        assert!(Instant::now() < deadline, "readiness never told of the end");
    }
    assert!(ready(&address).starts_with("HTTP/1.1 503"));
    probe.signal("INT");
    let (code, said) = probe.end();
    assert_eq!(code, 130, "{said}");
}
