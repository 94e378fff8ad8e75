//! The product as an operator runs it: each service a process of its own, beside a nats-server and a database
//! that the test starts.
//!
//! Invariants:
//! - Every process is ended and every directory removed when [`Product`] is dropped, also when a test panics.
//! - Nothing waits without a deadline; when one passes, the services' last words are printed.

use std::{
    fs,
    future::Future,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bus::testing::TestNats;
use serde_json::Value;
use store_writer::testing::TestPostgres;
use tempfile::TempDir;

use crate::examples::stand_ins;

/// What anything may take on a machine that has much else to do.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A service's process.
struct Process {
    service: &'static str,
    number: usize,
    child: Child,
}

/// The running product.
pub struct Product {
    pub nats: TestNats,
    pub postgres: TestPostgres,
    /// Its address.
    pub database: String,
    directory: TempDir,
    /// Programs that stand for those whose other end is not here.
    stand_ins: String,
    processes: Vec<Process>,
    http_ports: Vec<u16>,
    client: reqwest::Client,
    /// More of each service's environment.
    environment: Environment,
}

/// Variables of a service, by its name.
pub type Environment = Box<dyn Fn(&str) -> Vec<(String, String)>>;

impl Product {
    /// Starts `replicas` of each service; `None`, after one loud line, where there is no PostgreSQL.
    pub async fn start(replicas: usize) -> Option<Self> {
        Self::start_with(replicas, Box::new(|_| Vec::new())).await
    }

    /// The same, with more variables for each service.
    pub async fn start_with(replicas: usize, environment: Environment) -> Option<Self> {
        let postgres = TestPostgres::start()?;
        service::install_crypto();
        let (nats, connection) = TestNats::ready().await;
        connection.close().await;
        let directory = TempDir::new().unwrap();
        let mut product = Self {
            nats,
            stand_ins: stand_ins(directory.path()),
            database: postgres.create_database("fist"),
            postgres,
            directory,
            processes: Vec::new(),
            http_ports: Vec::new(),
            client: reqwest::Client::builder()
                .timeout(Duration::from_secs(20))
                .build()
                .unwrap(),
            environment,
        };
        for number in 0..replicas {
            for service in [
                "store-writer",
                "scheduler",
                "cli-runner",
                "agent-runner",
                "ingest",
            ] {
                product.spawn(service, number);
            }
        }
        product.wait_until_ready().await;
        Some(product)
    }

    /// Where the test may put files.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn log_of(&self, service: &str, number: usize) -> PathBuf {
        self.directory.path().join(format!("{service}-{number}.log"))
    }

    fn spawn(&mut self, service: &'static str, number: usize) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_of(service, number))
            .unwrap();
        let mut command = Command::new(binary(service));
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("FIST_NATS_URL", self.nats.url())
            .env("FIST_DATABASE_URL", &self.database)
            .env("FIST_LOG_LEVEL", "info")
            .env(
                "FIST_CLI_WORK_DIR",
                self.directory.path().join(format!("work-{number}")),
            )
            .env(
                "FIST_CLI_PATH",
                format!("{}:{}", self.stand_ins, std::env::var("PATH").unwrap()),
            )
            .env("FIST_LLM_SCRIPTED_DIR", root().join("examples/scripted"))
            .env(
                "FIST_TOOLS_KUBECTL_BIN",
                Path::new(&self.stand_ins).join("kubectl"),
            )
            .env("FIST_TOOLS_PROMETHEUS_URL", "http://127.0.0.1:9")
            .env("FIST_TOOLS_CURL_ALLOWED_HOSTS", "127.0.0.1")
            .envs((self.environment)(service))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if service == "ingest" {
            if self.http_ports.len() <= number {
                self.http_ports.push(free_port());
            }
            command.env(
                "FIST_HTTP_LISTEN",
                format!("127.0.0.1:{}", self.http_ports[number]),
            );
        }
        let child = command.spawn().unwrap();
        self.processes.push(Process {
            service,
            number,
            child,
        });
    }

    /// `kill -9` of any process of one of `services`, and the same again.
    pub fn kill_and_restart_one_of(&mut self, services: &[&str], choice: usize) -> String {
        let indexes: Vec<usize> = (0..self.processes.len())
            .filter(|index| services.contains(&self.processes[*index].service))
            .collect();
        self.kill_and_restart(indexes[choice % indexes.len()])
    }

    /// `kill -9`, and the same again as an orchestrator would start it.
    pub fn kill_and_restart(&mut self, index: usize) -> String {
        let mut process = self.processes.swap_remove(index % self.processes.len());
        process.child.kill().unwrap();
        process.child.wait().unwrap();
        self.spawn(process.service, process.number);
        format!("{}-{}", process.service, process.number)
    }

    /// How many processes there are.
    pub fn processes(&self) -> usize {
        self.processes.len()
    }

    async fn wait_until_ready(&self) {
        for replica in 0..self.http_ports.len() {
            self.until("ingest is ready", || async move {
                let answer = self.client.get(self.url(replica, "/readyz")).send().await;
                answer
                    .is_ok_and(|answer| answer.status().is_success())
                    .then_some(())
            })
            .await;
        }
    }

    /// An address of the API, at one of the replicas.
    pub fn url(&self, replica: usize, path: &str) -> String {
        format!(
            "http://127.0.0.1:{}{path}",
            self.http_ports[replica % self.http_ports.len()]
        )
    }

    /// Posts until it is taken: what Alertmanager and every client does on 503 or a broken connection.
    pub async fn post(&self, replica: usize, path: &str, content_type: &str, key: &str, body: &str) -> Value {
        self.until(&format!("POST {path} is taken"), || async {
            let answer = self
                .client
                .post(self.url(replica, path))
                .header("content-type", content_type)
                .header("idempotency-key", key)
                .body(body.to_owned())
                .send()
                .await
                .ok()?;
            let status = answer.status();
            let text = answer.text().await.ok()?;
            assert!(
                status.is_success() || status.is_server_error(),
                "{status}: {text}"
            );
            status
                .is_success()
                .then(|| serde_json::from_str(&text).unwrap_or(Value::Null))
        })
        .await
    }

    /// Posts once, without a key; `None` where nobody answers.
    pub async fn try_post(&self, path: &str, content_type: &str, body: &str) -> Option<reqwest::Response> {
        let request = self.client.post(self.url(0, path));
        let request = request.header("content-type", content_type);
        request.body(body.to_owned()).send().await.ok()
    }

    /// What the API answers, whatever its status.
    pub async fn answer(&self, path: &str) -> (u16, String) {
        let answer = self.client.get(self.url(0, path)).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// What the API answers, where it answers.
    pub async fn get(&self, replica: usize, path: &str) -> Option<Value> {
        let answer = self.client.get(self.url(replica, path)).send().await.ok()?;
        if !answer.status().is_success() {
            return None;
        }
        answer.json().await.ok()
    }

    /// Waits for an execution to end, and gives it whole.
    pub async fn ended(&self, id: &str) -> Value {
        self.until(&format!("execution {id} has ended"), || async {
            let execution = self.get(0, &format!("/api/v1/executions/{id}")).await?;
            let status = execution["status"].as_str()?;
            ["Succeeded", "Failed", "Cancelled"]
                .contains(&status)
                .then_some(execution)
        })
        .await
    }

    /// Waits for something to be there.
    pub async fn until<T, F: Future<Output = Option<T>>>(&self, what: &str, look: impl Fn() -> F) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut interval = tokio::time::interval(Duration::from_millis(50));
        loop {
            interval.tick().await;
            if let Some(found) = look().await {
                return found;
            }
            assert!(
                Instant::now() < deadline,
                "not within {PATIENCE:?}: {what}\n{}",
                self.last_words()
            );
        }
    }

    fn last_words(&self) -> String {
        let mut words = String::new();
        for process in &self.processes {
            let log = fs::read_to_string(self.log_of(process.service, process.number)).unwrap_or_default();
            let from = log.char_indices().rev().nth(2_000).map_or(0, |(index, _)| index);
            words += &format!("--- {}-{}\n{}\n", process.service, process.number, &log[from..]);
        }
        words
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }
}

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A service's binary, beside this test's own.
pub fn binary(service: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().parent().unwrap().join(service);
    assert!(
        path.exists(),
        "{} is missing: run `cargo build --workspace --bins`",
        path.display()
    );
    path
}

/// A port that is free just now. Another may take it before the service does; the service then says so, ends,
/// and the test fails at its deadline with these words.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}
