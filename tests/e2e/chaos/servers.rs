//! The NATS servers of a campaign: one, or a cluster of three with copies of everything.
//!
//! Invariant: no fault begins while a server that came back is still behind, since two copies lost at once are lost
//! (that is the operator's promise to the product: storage survives).

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bus::{
    Connection, Settings, Sizes, StreamId,
    server::{Places, find_server},
    testing::free_ports,
    topology,
};
use serde_json::{Value, json};

/// The servers' processes.
pub struct Servers {
    children: Vec<Option<Child>>,
    binary: PathBuf,
    directory: PathBuf,
    ports: Vec<u16>,
    routes: Vec<u16>,
}

impl Servers {
    /// Starts `count` servers with their stores under `directory`.
    pub fn start(count: usize, directory: &Path) -> Self {
        let mut servers = Self {
            children: (0..count).map(|_| None).collect(),
            binary: find_server(&Places::from_environment()).unwrap().path,
            directory: directory.to_owned(),
            ports: free_ports(count),
            routes: free_ports(count),
        };
        for server in 0..count {
            servers.spawn(server);
        }
        servers
    }

    pub fn count(&self) -> usize {
        self.ports.len()
    }

    /// Where clients of each server connect.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let address = |port: &u16| SocketAddr::from(([127, 0, 0, 1], *port));
        self.ports.iter().map(address).collect()
    }

    /// All of them, for a client.
    pub fn url(&self) -> String {
        url(&self.ports)
    }

    /// Starts a server that does not run.
    pub fn spawn(&mut self, server: usize) {
        if self.children[server].is_some() {
            return;
        }
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.directory.join(format!("nats-{server}.log")))
            .unwrap();
        let mut command = Command::new(&self.binary);
        command.args([
            "--addr",
            "127.0.0.1",
            "--port",
            &self.ports[server].to_string(),
            "--jetstream",
        ]);
        command.arg("--store_dir").arg(self.store(server));
        if self.count() > 1 {
            command
                .args(["--server_name", &format!("n{server}"), "--cluster_name", "chaos"])
                .args(["--cluster", &format!("nats://127.0.0.1:{}", self.routes[server])])
                .args(["--routes", &url(&self.routes)])
                // Clients are to know their proxies only.
                .arg("--no_advertise");
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.children[server] = Some(child);
    }

    /// `kill -9`.
    pub fn kill9(&mut self, server: usize) {
        if let Some(mut child) = self.children[server].take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Removes what a killed server stored.
    pub fn wipe(&mut self, server: usize) {
        self.kill9(server);
        fs::remove_dir_all(self.store(server)).unwrap();
    }

    /// Starts those that ended by themselves, and says which.
    pub fn restart_ended(&mut self) -> Vec<String> {
        let mut ended = Vec::new();
        for server in 0..self.count() {
            let status = self.children[server]
                .as_mut()
                .and_then(|child| child.try_wait().unwrap());
            if let Some(status) = status {
                ended.push(format!("nats-server {server}: {status}"));
                self.children[server] = None;
                self.spawn(server);
            }
        }
        ended
    }

    fn store(&self, server: usize) -> PathBuf {
        self.directory.join(format!("nats-store-{server}"))
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for server in 0..self.count() {
            self.kill9(server);
        }
    }
}

fn url(ports: &[u16]) -> String {
    let each: Vec<_> = ports
        .iter()
        .map(|port| format!("nats://127.0.0.1:{port}"))
        .collect();
    each.join(",")
}

/// What an operator sees of the servers.
#[derive(Clone)]
pub struct Admin {
    pub connection: Connection,
    pub servers: usize,
}

impl Admin {
    /// Connects without any proxy, and makes the streams.
    pub async fn open(servers: &Servers) -> Self {
        let settings = Settings {
            url: servers.url(),
            client_name: "chaos".to_owned(),
            attempt_time: Duration::from_secs(5),
            deadline: Duration::from_secs(60),
            ..Settings::default()
        };
        let connection = Connection::open(&settings).await.unwrap();
        let sizes = Sizes {
            replicas: if servers.count() > 1 { 3 } else { 1 },
            ..Sizes::small()
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        // A cluster that has just met answers with "no leader" for a moment.
        while let Err(error) = topology::init(&connection, &sizes).await {
            assert!(Instant::now() < deadline, "{error}");
            tokio::task::yield_now().await;
        }
        Self {
            connection,
            servers: servers.count(),
        }
    }

    /// Asks JetStream's API; `None` where it does not answer, or with an error.
    pub async fn ask(&self, endpoint: &str, body: &Value) -> Option<Value> {
        let body = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        let asking = self
            .connection
            .client()
            .request(format!("$JS.API.{endpoint}"), body.into());
        let answer = tokio::time::timeout(Duration::from_secs(6), asking)
            .await
            .ok()?
            .ok()?;
        let answer: Value = serde_json::from_slice(&answer.payload).ok()?;
        answer.get("error").is_none().then_some(answer)
    }

    /// The consumers of a stream, as JetStream tells them.
    pub async fn consumers(&self, stream: &str) -> Option<Vec<Value>> {
        let mut consumers = Vec::new();
        loop {
            let page = self
                .ask(
                    &format!("CONSUMER.LIST.{stream}"),
                    &json!({ "offset": consumers.len() }),
                )
                .await?;
            let found = page["consumers"].as_array()?;
            consumers.extend(found.iter().cloned());
            if found.is_empty() || consumers.len() as u64 >= page["total"].as_u64()? {
                return Some(consumers);
            }
        }
    }

    /// The server that leads the log.
    pub async fn leader(&self) -> Option<usize> {
        let info = self.ask("STREAM.INFO.FIST_LOG", &Value::Null).await?;
        info["cluster"]["leader"]
            .as_str()?
            .strip_prefix('n')?
            .parse()
            .ok()
    }

    /// Why a fault must not begin yet: a copy is behind. Empty where all are whole.
    pub async fn behind(&self) -> Option<String> {
        let Some(list) = self.ask("STREAM.LIST", &json!({})).await else {
            return Some("the streams cannot be listed".to_owned());
        };
        if self.servers == 1 {
            return None;
        }
        let streams = list["streams"].as_array().cloned().unwrap_or_default();
        if streams.len() < StreamId::ALL.len() + 5 || !list["missing"].is_null() {
            return Some("streams are missing from the list".to_owned());
        }
        for stream in &streams {
            let name = stream["config"]["name"].as_str().unwrap_or_default();
            if let Some(why) = group_behind(stream, name) {
                return Some(why);
            }
            let Some(consumers) = self.consumers(name).await else {
                return Some(format!("the consumers of {name} cannot be listed"));
            };
            for consumer in &consumers {
                let who = format!("{name}/{}", consumer["name"].as_str().unwrap_or_default());
                let is_durable = !consumer["config"]["durable_name"].is_null();
                if let Some(why) = group_behind(consumer, &who).filter(|_| is_durable) {
                    return Some(why);
                }
            }
        }
        None
    }

    /// Waits until every copy is whole; why not, where that takes too long.
    pub async fn whole_within(&self, patience: Duration) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        let mut looks = tokio::time::interval(Duration::from_millis(300));
        loop {
            looks.tick().await;
            match self.behind().await {
                None => return Ok(()),
                Some(why) if Instant::now() >= deadline => return Err(why),
                Some(_) => {}
            }
        }
    }

    /// Has messages of store-writer that nobody says anything about go to another sooner: for a campaign that has
    /// not the minute that they wait otherwise.
    pub async fn hurry_store_writer(&self, ack_wait: Duration) {
        let info = self
            .ask("CONSUMER.INFO.FIST_LOG.store-writer", &Value::Null)
            .await
            .unwrap();
        let mut config = info["config"].clone();
        config["ack_wait"] = json!(ack_wait.as_nanos() as u64);
        let wanted = json!({ "stream_name": "FIST_LOG", "config": config, "action": "update" });
        let updated = self
            .ask("CONSUMER.DURABLE.CREATE.FIST_LOG.store-writer", &wanted)
            .await;
        assert_eq!(updated.unwrap()["config"]["ack_wait"], config["ack_wait"]);
    }
}

fn group_behind(info: &Value, name: &str) -> Option<String> {
    let cluster = &info["cluster"];
    if cluster["leader"].as_str().unwrap_or_default().is_empty() {
        return Some(format!("{name} has no leader"));
    }
    let copies = cluster["replicas"].as_array().cloned().unwrap_or_default();
    let wanted = info["config"]["num_replicas"].as_u64().unwrap_or(1).max(1) - 1;
    let is_whole = |copy: &Value| {
        copy["current"] == true && copy["offline"] != true && copy["lag"].as_u64().unwrap_or(0) < 50
    };
    if (copies.len() as u64) < wanted || !copies.iter().all(is_whole) {
        return Some(format!("a copy of {name} is behind: {cluster}"));
    }
    None
}
