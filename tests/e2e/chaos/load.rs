//! What is asked of the product all the while: executions and alerts of many kinds, each with what must come of it.
//!
//! Invariants:
//! - What was accepted is noted, and nothing else is; what was not answered is asked again under the same name.
//! - Commands append a line to the witness file when they begin and when they end: what really ran is seen from
//!   outside.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bus::{Log, NatsLog, sim::Rng};
use protocol::SourceName;
use serde_json::{Value, json};

/// How long anything may take while everything fails.
const PATIENCE: Duration = Duration::from_secs(600);
/// A worker goes on with the next execution when one is not seen at work for so long; the end waits for it.
const SEEN_WITHIN: Duration = Duration::from_secs(90);

/// What an execution is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    One,
    Three,
    Unmet,
    Fails,
    Cancelled,
    Agent,
    /// An alert over HTTP; every third one twice.
    Webhook,
    /// An alert published straight to NATS.
    Published,
    /// An alert that no workflow wants.
    Unwanted,
}

/// What a step must have come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A command that ran, and its step succeeded.
    Ran,
    /// A command that ran, and its step failed.
    RanAndFailed,
    /// A command that may have run, and was ended.
    Ended,
    /// No command may have run.
    Skipped,
    /// A step without a command of ours.
    Met,
}

impl Kind {
    /// The kind of the `n`th; the same in every campaign of this seed.
    fn of(seed: u64, n: u64) -> Self {
        match Rng::new(seed ^ n.wrapping_mul(0x5851_f42d_4c95_7f2d)).below(100) {
            0..40 => Self::One,
            40..50 => Self::Three,
            50..57 => Self::Unmet,
            57..65 => Self::Fails,
            65..68 => Self::Cancelled,
            68..70 => Self::Agent,
            70..86 => Self::Webhook,
            86..97 => Self::Published,
            _ => Self::Unwanted,
        }
    }

    pub fn is_alert(self) -> bool {
        matches!(self, Self::Webhook | Self::Published | Self::Unwanted)
    }

    /// Its workflow's name.
    pub fn workflow(self) -> &'static str {
        match self {
            Self::One => "chaos-one",
            Self::Three => "chaos-three",
            Self::Unmet => "chaos-unmet",
            Self::Fails => "chaos-fails",
            Self::Cancelled => "chaos-cancelled",
            Self::Agent => "chaos-agent",
            Self::Webhook | Self::Published | Self::Unwanted => "chaos-alert",
        }
    }

    /// How its execution ends.
    pub fn status(self) -> &'static str {
        match self {
            Self::Fails => "Failed",
            Self::Cancelled => "Cancelled",
            _ => "Succeeded",
        }
    }

    /// Its steps, and what each must have come to.
    pub fn steps(self) -> &'static [(&'static str, Expected)] {
        match self {
            Self::One | Self::Webhook | Self::Published => &[("first", Expected::Ran)],
            Self::Three => &[
                ("first", Expected::Ran),
                ("is-out", Expected::Met),
                ("second", Expected::Ran),
            ],
            Self::Unmet => &[
                ("first", Expected::Ran),
                ("is-other", Expected::Met),
                ("second", Expected::Skipped),
            ],
            Self::Fails => &[("first", Expected::RanAndFailed), ("second", Expected::Skipped)],
            Self::Cancelled => &[("first", Expected::Ended), ("second", Expected::Skipped)],
            Self::Agent => &[("look", Expected::Met), ("second", Expected::Ran)],
            Self::Unwanted => &[],
        }
    }

    /// The line by which it is seen to be at its end, or where it is to be cancelled.
    fn seen(self) -> (&'static str, bool) {
        match self {
            Self::Three | Self::Agent => ("second", true),
            Self::Cancelled => ("first", false),
            _ => ("first", true),
        }
    }
}

/// The definitions of all workflows.
pub fn definitions(witness: &Path) -> Vec<String> {
    let witness = witness.display();
    let command = |step: &str, last: &str| {
        format!(
            "    - name: {step}\n      type: cli\n      timeout_minutes: 60\n      command: |\n        n={{{{ source.data.n }}}}\n        echo \"$n {step} begin $$\" >> '{witness}'\n        sleep {{{{ source.data.pause }}}}\n        echo \"$n {step} end $$\" >> '{witness}'\n        echo \"out $n\"\n        {last}\n"
        )
    };
    let condition = |name: &str, text: &str| {
        format!(
            "    - name: {name}\n      type: conditional\n      condition: steps.first.output.stdout contains {text}\n"
        )
    };
    let (first, second) = (command("first", "true"), command("second", "true"));
    let agent = "    - name: look\n      type: agent\n      timeout_minutes: 60\n      tools: [kubectl]\n      goal: Look at the pods.\n";
    let runtime = "  runtime:\n    llm_config: {provider: scripted, model: look}\n";
    let trigger = "  trigger:\n    source: webhook\n    filters: {alertname: ~Chaos.*}\n";
    [
        (Kind::One, "", first.clone()),
        (Kind::Three, "", first.clone() + &condition("is-out", "out") + &second),
        (Kind::Unmet, "", first.clone() + &condition("is-other", "other") + &second),
        (Kind::Fails, "", command("first", "exit 3") + &second),
        (Kind::Cancelled, "", first.clone() + &second),
        (Kind::Agent, runtime, agent.to_owned() + &second),
        (Kind::Webhook, trigger, first.clone()),
    ]
    .into_iter()
    .map(|(kind, head, steps)| {
        format!(
            "apiVersion: punching-fist.io/v1alpha1\nkind: Workflow\nmetadata:\n  name: {}\nspec:\n{}{head}  steps:\n{steps}",
            kind.workflow(),
            if head.contains("trigger") { "" } else { "  trigger:\n    source: webhook\n    filters: {alertname: Never}\n" },
        )
    })
    .collect()
}

/// What was accepted.
#[derive(Clone, Debug)]
pub struct Accepted {
    pub n: u64,
    pub kind: Kind,
    /// The execution, where the answer named it.
    pub id: Option<String>,
    /// Acknowledged deliveries of an alert.
    pub deliveries: u64,
}

/// Lines of the witness file by number and step: begun, ended.
pub type Seen = HashMap<(u64, String), (u64, u64)>;

/// The load, and what it has seen.
pub struct Load {
    pub seed: u64,
    pub doors: Vec<String>,
    pub witness: PathBuf,
    pub client: reqwest::Client,
    pub log: NatsLog,
    /// No more than so many.
    pub executions_max: u64,
    /// Set when nothing new is to be asked for.
    pub over: AtomicBool,
    numbers: AtomicU64,
    pub retries: AtomicU64,
    accepted: Mutex<Vec<Accepted>>,
    seen: Mutex<Seen>,
}

impl Load {
    pub fn new(seed: u64, doors: Vec<String>, witness: PathBuf, log: NatsLog, executions_max: u64) -> Self {
        Self {
            seed,
            doors,
            witness,
            client: reqwest::Client::builder()
                .timeout(Duration::from_secs(20))
                .build()
                .unwrap(),
            log,
            executions_max,
            over: AtomicBool::new(false),
            numbers: AtomicU64::new(1),
            retries: AtomicU64::new(0),
            accepted: Mutex::default(),
            seen: Mutex::default(),
        }
    }

    /// What was accepted so far.
    pub fn accepted(&self) -> Vec<Accepted> {
        self.accepted.lock().unwrap().clone()
    }

    /// How often the command of a step began and ended.
    pub fn runs(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    /// Stores the definitions.
    pub async fn define(&self) {
        for definition in definitions(&self.witness) {
            self.post(0, "/api/v1/workflows", "application/yaml", "", &definition)
                .await;
        }
    }

    /// Asks, one after the other, until it is over; several of these run side by side.
    pub async fn work(self: Arc<Self>) {
        while !self.over.load(Ordering::Relaxed) {
            let n = self.numbers.fetch_add(1, Ordering::Relaxed);
            if n > self.executions_max {
                return;
            }
            let kind = Kind::of(self.seed, n);
            let accepted = match kind.is_alert() {
                true => self.alert(n, kind).await,
                false => self.execution(n, kind).await,
            };
            let id = accepted.id.clone();
            self.accepted.lock().unwrap().push(accepted);
            if kind != Kind::Unwanted {
                self.seen_at_work(n, kind).await;
            }
            if kind == Kind::Cancelled {
                let path = format!("/api/v1/executions/{}/cancel", id.unwrap());
                self.post(n, &path, "application/json", "", "{}").await;
            }
        }
    }

    /// Takes in what commands wrote, for as long as it is polled.
    pub async fn watch(self: Arc<Self>) {
        let mut file = BufReader::new(File::open(&self.witness).unwrap());
        let mut looks = tokio::time::interval(Duration::from_millis(100));
        let mut line = String::new();
        loop {
            looks.tick().await;
            // A line is written at once, but may be read before it is whole.
            while file.read_line(&mut line).unwrap() > 0 && line.ends_with('\n') {
                let words: Vec<_> = line.split_whitespace().collect();
                let [n, step, what, _pid] = words[..] else {
                    panic!("not a witness: {line:?}")
                };
                let mut seen = self.seen.lock().unwrap();
                let counts = seen.entry((n.parse().unwrap(), step.to_owned())).or_default();
                match what {
                    "begin" => counts.0 += 1,
                    _ => counts.1 += 1,
                }
                line.clear();
            }
        }
    }

    fn pause(&self, n: u64, kind: Kind) -> String {
        let mut rng = Rng::new(self.seed.wrapping_add(n));
        match (kind, rng.below(150)) {
            (Kind::Cancelled, _) => "900".to_owned(),
            // Longer than the ack wait: its runner has to say that it lives.
            (_, 0) => "18".to_owned(),
            (_, 1..15) => "2".to_owned(),
            _ => format!("0.{:02}", rng.below(40)),
        }
    }

    async fn execution(&self, n: u64, kind: Kind) -> Accepted {
        let body = json!({
            "workflow": kind.workflow(),
            "input": { "source": { "data": { "n": n.to_string(), "pause": self.pause(n, kind) } } },
        });
        let key = format!("chaos-{n}");
        let answer = self
            .post(
                n,
                "/api/v1/executions",
                "application/json",
                &key,
                &body.to_string(),
            )
            .await;
        let id = answer["id"].as_str().map(str::to_owned);
        assert!(id.is_some(), "{answer}");
        Accepted {
            n,
            kind,
            id,
            deliveries: 0,
        }
    }

    async fn alert(&self, n: u64, kind: Kind) -> Accepted {
        let name = if kind == Kind::Unwanted {
            "Other"
        } else {
            "ChaosAlert"
        };
        let body = json!({
            "name": name, "status": "firing", "fingerprint": format!("chaos-{n}"), "starts_at": "2026-01-01T00:00:00Z",
            "labels": { "alertname": name, "n": n.to_string(), "pause": self.pause(n, kind) },
        })
        .to_string();
        let mut deliveries = 0;
        let twice = if kind == Kind::Webhook && n.is_multiple_of(3) {
            2
        } else {
            1
        };
        for delivery in 0..twice {
            deliveries += match kind {
                Kind::Published => self.publish(&body).await,
                _ => {
                    self.post(n + delivery, "/webhooks/webhook", "application/json", "", &body)
                        .await;
                    1
                }
            };
        }
        Accepted {
            n,
            kind,
            id: None,
            deliveries,
        }
    }

    async fn publish(&self, body: &str) -> u64 {
        let source = SourceName::new("webhook").unwrap();
        self.until("an alert is published", || async {
            let published = self.log.publish_intake(&source, body.as_bytes().to_vec()).await;
            published.ok().map(|_| 1)
        })
        .await
    }

    /// Posts until it is taken, to another door each time: what every client does on 503 or a broken connection.
    async fn post(&self, door: u64, path: &str, content_type: &str, key: &str, body: &str) -> Value {
        let tries = AtomicU64::new(door);
        self.until(path, || async {
            let door = tries.fetch_add(1, Ordering::Relaxed) as usize % self.doors.len();
            let mut request = self
                .client
                .post(format!("{}{path}", self.doors[door]))
                .header("content-type", content_type)
                .body(body.to_owned());
            if !key.is_empty() {
                request = request.header("idempotency-key", key);
            }
            let answer = request.send().await.ok()?;
            let status = answer.status();
            let text = answer.text().await.ok()?;
            // An execution whose cancellation was taken, and whose answer was lost, is over already.
            let is_over = path.ends_with("/cancel") && status.as_u16() == 409;
            assert!(
                status.is_success() || status.is_server_error() || is_over,
                "{path}: {status}: {text}"
            );
            (status.is_success() || is_over).then(|| serde_json::from_str(&text).unwrap_or(Value::Null))
        })
        .await
    }

    async fn until<T, F: Future<Output = Option<T>>>(&self, what: &str, attempt: impl Fn() -> F) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut interval = tokio::time::interval(Duration::from_millis(250));
        loop {
            interval.tick().await;
            if let Some(found) = attempt().await {
                return found;
            }
            self.retries.fetch_add(1, Ordering::Relaxed);
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        }
    }

    /// Waits until a command shows that the execution is about done. One that is to be cancelled is waited for longer.
    async fn seen_at_work(&self, n: u64, kind: Kind) {
        let (step, is_ended) = kind.seen();
        let key = (n, step.to_owned());
        let patience = if kind == Kind::Cancelled {
            PATIENCE
        } else {
            SEEN_WITHIN
        };
        let deadline = Instant::now() + patience;
        let mut looks = tokio::time::interval(Duration::from_millis(100));
        while Instant::now() < deadline {
            looks.tick().await;
            let seen = self.seen.lock().unwrap().get(&key).copied().unwrap_or_default();
            let count = if is_ended { seen.1 } else { seen.0 };
            if count > 0 || (self.over.load(Ordering::Relaxed) && kind != Kind::Cancelled) {
                return;
            }
        }
    }
}
