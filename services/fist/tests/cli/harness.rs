//! A `fist up` in a temporary directory, and the command asked beside it.
//!
//! Invariant: nothing waits for a time, only for a condition with a deadline; what was started is ended.

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
};

/// Longest wait for anything; a step that lost its runner is handed out anew after 15 s.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The command, with nothing of the tester's own settings.
pub fn fist() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fist"));
    for (name, _) in std::env::vars_os() {
        let own = name.to_string_lossy();
        if own.starts_with("FIST_") || own.ends_with("_API_KEY") || own.ends_with("_BASE_URL") {
            command.env_remove(&name);
        }
    }
    command
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Waits until it gives something.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// A running `fist up`.
pub struct Up {
    pub dir: PathBuf,
    pub url: String,
    pub child: Child,
    /// The configuration of its nats-server, by which that one is known; also once the directory is gone.
    nats_config: PathBuf,
    _home: Option<tempfile::TempDir>,
}

impl Up {
    /// In a directory of its own.
    pub async fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut up = Self::start_in(&home.path().join("up"), &[], &[]).await;
        up._home = Some(home);
        up
    }

    /// In this directory, with more arguments and variables.
    pub async fn start_in(dir: &Path, arguments: &[&str], env: &[(&str, &str)]) -> Self {
        // What a killed one said there does not hold.
        let _ = std::fs::remove_file(dir.join("http"));
        std::fs::create_dir_all(dir).unwrap();
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(dir.with_extension("log"))
            .unwrap();
        let child = fist()
            .args(["up", "--dir"])
            .arg(dir)
            .args(if arguments.contains(&"--http") {
                &[][..]
            } else {
                &["--http", "127.0.0.1:0"]
            })
            .args(arguments)
            .env("FIST_NATS_LOG_BYTES_MAX", "536870912")
            .env("FIST_NATS_BLOBS_BYTES_MAX", "268435456")
            .env("FIST_NATS_ALERTS_BYTES_MAX", "67108864")
            .envs(env.iter().copied())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        // Made before the wait: one that does not become ready is ended as well.
        let mut up = Self {
            dir: dir.to_owned(),
            url: String::new(),
            child,
            nats_config: dir.canonicalize().unwrap().join("nats/server.conf"),
            _home: None,
        };
        let url = eventually("fist up is ready", async || {
            if let Ok(Some(status)) = up.child.try_wait() {
                panic!("fist up ended with {status}: {}", up.log());
            }
            std::fs::read_to_string(dir.join("http")).ok()
        })
        .await;
        up.url = url.trim().to_owned();
        up
    }

    /// The command, asking this server.
    pub fn fist(&self, arguments: &[&str]) -> Command {
        let mut command = fist();
        command.args(arguments).env("FIST_SERVER", &self.url);
        command
    }

    /// What the command says.
    pub async fn says(&self, arguments: &[&str]) -> Said {
        self.fist(arguments).output().await.unwrap().into()
    }

    /// What the command prints, which must succeed.
    pub async fn prints(&self, arguments: &[&str]) -> String {
        let said = self.says(arguments).await;
        assert_eq!(said.code, 0, "{arguments:?}: {said:?}");
        said.out
    }

    /// Writes a file beside the directory.
    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.parent().unwrap().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Submits this workflow, and gives the execution's id.
    pub async fn submits(&self, name: &str, text: &str) -> String {
        let file = self.file(name, text);
        self.prints(&["run", "-f", &file, "--detach"])
            .await
            .trim()
            .to_owned()
    }

    /// Waits until this execution is over, and gives it.
    pub async fn ended(&self, id: &str) -> serde_json::Value {
        eventually(&format!("{id} ends"), async || {
            let said = self.says(&["get", "execution", id, "-o", "json"]).await;
            let view: serde_json::Value = serde_json::from_str(&said.out).ok()?;
            let is_over = matches!(view["status"].as_str()?, "Succeeded" | "Failed" | "Cancelled");
            is_over.then_some(view)
        })
        .await
    }

    /// Ends it as an operator does.
    pub async fn stop(mut self) {
        signal(self.child.id().unwrap(), nix::sys::signal::Signal::SIGTERM);
        let status = self.child.wait().await.unwrap();
        assert!(status.success(), "{status}: {}", self.log());
    }

    /// Ends it as the kernel does, and what it runs with it as far as `also` says.
    pub async fn kill9(&mut self, also: &[u32]) {
        signal(self.child.id().unwrap(), nix::sys::signal::Signal::SIGKILL);
        for pid in also {
            signal(*pid, nix::sys::signal::Signal::SIGKILL);
        }
        self.child.wait().await.unwrap();
    }

    /// The nats-server that runs for this directory.
    pub fn nats_servers(&self) -> Vec<u32> {
        processes(|line| line.contains(self.nats_config.to_str().unwrap()))
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.with_extension("log")).unwrap_or_default()
    }

    /// An answer of the API as it came: the status, and the body.
    pub async fn api(&self, method: &str, path: &str, body: Option<(&str, &str)>) -> (u16, String) {
        let host = self.url.strip_prefix("http://").unwrap();
        let mut stream = tokio::net::TcpStream::connect(host).await.unwrap();
        let (media_type, body) = body.unwrap_or(("text/plain", ""));
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-type: {media_type}\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, body.to_owned())
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // A test that failed: the nats-server would outlive the command.
        if let Some(pid) = self.child.id() {
            signal(pid, nix::sys::signal::Signal::SIGKILL);
        }
        // Its directory may be gone already: a test drops what it declared last first.
        for pid in self.nats_servers() {
            signal(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// Sends a signal.
pub fn signal(pid: u32, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    let _ = nix::sys::signal::kill(pid, signal);
}

/// Running processes by their command lines.
pub fn processes(wanted: impl Fn(&str) -> bool) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            wanted(&String::from_utf8_lossy(&line).replace('\0', " "))
        })
        .collect()
}

/// A workflow of one cli step.
pub fn workflow(name: &str, command: &str) -> String {
    let command = serde_json::Value::from(command);
    format!(
        "apiVersion: punching-fist.io/v1alpha1\nkind: Workflow\nmetadata: {{name: {name}}}\nspec:\n  steps:\n  - {{name: only, type: cli, command: {command}}}\n"
    )
}

/// The lines of a file that commands append to; none where it is not there yet.
pub fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}
