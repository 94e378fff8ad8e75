//! Three servers with three replicas of everything: what one server cannot show, such as replicas that lag.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use bus::{
    Appended, Connection, Inbox, Log, NatsLog, Settings, Sizes, Written,
    server::{Places, find_server},
    testing::free_ports,
    topology,
};
use protocol::{ExecutionId, Namespace, Subject, TaskType};

const PATIENCE: Duration = Duration::from_secs(60);

struct Cluster {
    servers: Vec<Option<Child>>,
    directory: tempfile::TempDir,
    ports: Vec<u16>,
    routes: Vec<u16>,
    binary: PathBuf,
}

impl Cluster {
    fn start() -> Self {
        let mut cluster = Self {
            servers: vec![None, None, None],
            directory: tempfile::tempdir().unwrap(),
            ports: free_ports(3),
            routes: free_ports(3),
            binary: find_server(&Places::from_environment()).unwrap().path,
        };
        for server in 0..3 {
            cluster.spawn(server);
        }
        cluster
    }

    fn spawn(&mut self, server: usize) {
        let routes: Vec<_> = self
            .routes
            .iter()
            .map(|port| format!("nats://127.0.0.1:{port}"))
            .collect();
        let log = self.directory.path().join(format!("server-{server}.log"));
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        let child = Command::new(&self.binary)
            .args([
                "--addr",
                "127.0.0.1",
                "--port",
                &self.ports[server].to_string(),
                "--jetstream",
            ])
            .args(["--server_name", &format!("n{server}"), "--cluster_name", "test"])
            .args(["--cluster", &format!("nats://127.0.0.1:{}", self.routes[server])])
            .args(["--routes", &routes.join(",")])
            .arg("--store_dir")
            .arg(self.directory.path().join(format!("store-{server}")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.servers[server] = Some(child);
    }

    fn kill9(&mut self, server: usize) {
        if let Some(mut child) = self.servers[server].take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    async fn connect(&self) -> Connection {
        let urls: Vec<_> = self
            .ports
            .iter()
            .map(|port| format!("nats://127.0.0.1:{port}"))
            .collect();
        let settings = Settings {
            url: urls.join(","),
            client_name: "test".to_owned(),
            attempt_time: Duration::from_secs(2),
            deadline: PATIENCE,
            ..Settings::default()
        };
        Connection::open(&settings).await.unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for server in 0..3 {
            self.kill9(server);
        }
    }
}

/// Appends facts and commands, reading after each as a scheduler does, and ends when all are in.
async fn scheduler_like(log: NatsLog, n: u32, rounds: u32) {
    let (namespace, id) = (
        Namespace::default(),
        ExecutionId::derive(&["cluster", &n.to_string()]),
    );
    let command = Subject::Command(TaskType::cli(), namespace.clone(), id);
    let note = Subject::Note(namespace.clone(), id);
    for round in 0..rounds {
        let fact = Subject::CancelRequest(namespace.clone(), id, round);
        loop {
            match log.write_fact(&fact, b"{}".to_vec()).await {
                Ok(Written::New(_) | Written::Already) => break,
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
        }
        // Two writers race for each place of the lane, each from what it read.
        let place = |subject: Subject| {
            let (log, namespace) = (log.clone(), namespace.clone());
            async move {
                loop {
                    let messages = match log.read_execution(&namespace, id).await {
                        Ok(messages) => messages,
                        Err(error) => {
                            assert!(error.is_transient(), "{error}");
                            continue;
                        }
                    };
                    let facts = messages
                        .iter()
                        .filter(|message| message.subject.starts_with("fist.fact."))
                        .count();
                    assert_eq!(facts as u32, round + 1, "an acknowledged fact is not read");
                    let lane: Vec<_> = messages
                        .iter()
                        .filter(|message| message.subject.starts_with("fist.cmd."))
                        .collect();
                    if lane.len() as u32 > round {
                        return;
                    }
                    let last = lane.last().map_or(0, |message| message.seq);
                    match log.append(&subject, round.to_string().into_bytes(), last).await {
                        Ok(Appended::At(_) | Appended::Conflict) => {}
                        Err(error) => assert!(error.is_transient(), "{error}"),
                    }
                }
            }
        };
        tokio::join!(place(command.clone()), place(note.clone()));
    }
    let messages = log.read_execution(&namespace, id).await.unwrap();
    assert_eq!(messages.len() as u32, 2 * rounds, "one command for each fact");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_command_for_each_fact_while_a_server_dies() {
    let mut cluster = Cluster::start();
    let connection = cluster.connect().await;
    let sizes = Sizes {
        replicas: 3,
        ..Sizes::small()
    };
    let setting_up = async {
        // A cluster that has just met answers with "no leader" for a moment.
        while topology::init(&connection, &sizes).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, setting_up)
        .await
        .expect("a leader");
    topology::check(&connection).await.unwrap();
    let log = NatsLog::open(&connection).await.unwrap();
    let other = NatsLog::open(&cluster.connect().await).await.unwrap();

    let rounds = 15;
    let running: Vec<_> = (0..6)
        .map(|n| {
            tokio::spawn(scheduler_like(
                if n % 2 == 0 { log.clone() } else { other.clone() },
                n,
                rounds,
            ))
        })
        .collect();
    cluster.kill9(1);
    let writing = async {
        for task in running {
            task.await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, writing)
        .await
        .expect("two of three are enough");
    cluster.spawn(1);

    // Behind the log's end there is nothing, and that is an answer.
    let mut next = 1;
    let walking = async {
        loop {
            let page = log.read_from(next, 100).await.unwrap();
            match page.last() {
                Some(last) => next = last.seq + 1,
                None => return,
            }
        }
    };
    tokio::time::timeout(PATIENCE, walking).await.expect("an end");
    assert_eq!(u64::from(6 * rounds * 2) + 1, next);

    // Every fact reaches the consumer.
    let opening = async {
        // Its leader may have been the server that died, and another is not elected yet.
        loop {
            match log.inbox(&topology::SCHEDULER).await {
                Ok(inbox) => return inbox,
                Err(error) => assert!(error.is_transient(), "{error}"),
            }
        }
    };
    let mut inbox = tokio::time::timeout(PATIENCE, opening)
        .await
        .expect("a leader for the consumer");
    let mut seqs = std::collections::BTreeSet::new();
    let reading = async {
        while seqs.len() < 6 * rounds as usize {
            for delivery in inbox.next_batch(50, Duration::from_secs(5)).await.unwrap() {
                seqs.insert(delivery.message.seq);
                delivery.ack().await;
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("all facts");
}
