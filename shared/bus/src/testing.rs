//! A private nats-server for tests: a free port, a temporary directory, JetStream, and `kill -9`.
//!
//! Invariant: the server and its directory are gone when [`TestNats`] is dropped.

use std::{
    fs,
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::{
    connect::{Connection, Settings},
    server::{Places, find_server},
    topology::{self, Sizes},
};

/// A running nats-server. Panics where it cannot do what is asked, with the remedy: it is for tests.
pub struct TestNats {
    binary: PathBuf,
    directory: PathBuf,
    port: u16,
    child: Option<Child>,
    config: Option<PathBuf>,
    environment: Vec<(String, String)>,
}

/// How long a server may take to start.
const START_TIME: Duration = Duration::from_secs(20);

static STARTED: AtomicU64 = AtomicU64::new(0);

impl TestNats {
    /// Starts a server with nothing in it.
    pub async fn start() -> Self {
        Self::start_with(None, Vec::new()).await
    }

    /// Starts a server by a configuration file, with more variables in its environment: `NATS_STORE_DIR`,
    /// which the file uses for its store, and these. Address and port are the test's own.
    pub async fn start_with(config: Option<PathBuf>, environment: Vec<(String, String)>) -> Self {
        let binary = find_server(&Places::from_environment())
            .unwrap_or_else(|error| panic!("this test needs a nats-server: {error}"))
            .path;
        let name = format!(
            "fist-nats-{}-{}",
            std::process::id(),
            STARTED.fetch_add(1, Ordering::Relaxed)
        );
        let directory = std::env::temp_dir().join(name);
        // A former process of the same number may have been killed.
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        let mut server = Self {
            binary,
            directory,
            port: 0,
            child: None,
            config,
            environment,
        };
        server.spawn().await;
        server
    }

    /// Starts a server and sets up all streams, small.
    pub async fn ready() -> (Self, Connection) {
        let server = Self::start().await;
        let connection = server.connect().await;
        topology::init(&connection, &Sizes::small())
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        (server, connection)
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Where its streams are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The server's process.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// A new connection.
    pub async fn connect(&self) -> Connection {
        self.connect_as(None).await
    }

    /// A new connection of a user with a password.
    pub async fn connect_as(&self, user_and_password: Option<(String, String)>) -> Connection {
        let settings = Settings {
            user_and_password,
            url: self.url(),
            client_name: "test".to_owned(),
            attempt_time: Duration::from_secs(5),
            deadline: START_TIME,
            ..Settings::default()
        };
        Connection::open(&settings)
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Kills it as the kernel would.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again, on the same port and directory.
    pub async fn restart(&mut self) {
        self.kill9();
        self.spawn().await;
    }

    async fn spawn(&mut self) {
        let port_argument = if self.port == 0 {
            "-1".to_owned()
        } else {
            self.port.to_string()
        };
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.directory.join("server.log"))
            .unwrap_or_else(|error| panic!("the server's log: {error}"));
        let store = self.directory.join("jetstream");
        let mut command = Command::new(&self.binary);
        command.args([
            "--addr",
            "127.0.0.1",
            "--port",
            &port_argument,
            "--ports_file_dir",
        ]);
        command.arg(&self.directory);
        match &self.config {
            // The server takes a store from one place only.
            Some(config) => command.arg("--config").arg(config).env("NATS_STORE_DIR", &store),
            None => command.arg("--jetstream").arg("--store_dir").arg(&store),
        };
        let child = command
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", self.binary.display()));
        let ports = self.directory.join(format!("nats-server_{}.ports", child.id()));
        self.child = Some(child);
        let deadline = Instant::now() + START_TIME;
        loop {
            if let Some(port) = read_port(&ports) {
                self.port = port;
                if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                    return;
                }
            }
            assert!(
                Instant::now() < deadline,
                "nats-server did not start: {}",
                fs::read_to_string(self.directory.join("server.log")).unwrap_or_default()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// The port of `{"nats":["nats://127.0.0.1:4222"], …}`.
fn read_port(file: &Path) -> Option<u16> {
    let ports: serde_json::Value = serde_json::from_str(&fs::read_to_string(file).ok()?).ok()?;
    ports["nats"][0].as_str()?.rsplit_once(':')?.1.parse().ok()
}

impl Drop for TestNats {
    fn drop(&mut self) {
        self.kill9();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Writes a script that can be run at once. Another process writes it: while this one has it open to write, a
/// child that another thread starts meanwhile has it open too, and running it fails with "Text file busy".
pub fn write_program(path: &Path, text: &str) {
    let mut shell = Command::new("/bin/sh")
        .args(["-c", "cat > \"$1\" && chmod 755 \"$1\"", "sh"])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("/bin/sh: {error}"));
    let mut stdin = shell.stdin.take().unwrap_or_else(|| panic!("stdin was piped"));
    stdin
        .write_all(text.as_bytes())
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    drop(stdin);
    let status = shell.wait().unwrap_or_else(|error| panic!("/bin/sh: {error}"));
    assert!(
        status.success(),
        "{} could not be written: {status}",
        path.display()
    );
}

/// Free ports; all are held until the last is found, so that they differ.
pub fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<_> = (0..count)
        .map(|_| TcpListener::bind(("127.0.0.1", 0)).unwrap_or_else(|error| panic!("a free port: {error}")))
        .collect();
    listeners
        .iter()
        .map(|listener| match listener.local_addr() {
            Ok(address) => address.port(),
            Err(error) => panic!("a free port: {error}"),
        })
        .collect()
}
