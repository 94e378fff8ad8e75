//! The promql tool against a real Prometheus that scrapes itself.
#![allow(clippy::unwrap_used)]

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use agent_runner::{
    redact::Redactor,
    tools::{Given, Surroundings, Toolbox},
};
use serde_json::{Map, Value, json};
use service::Metrics;

const START_WITHIN: Duration = Duration::from_secs(60);

struct Prometheus {
    child: Child,
    _dir: tempfile::TempDir,
    toolbox: Toolbox,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    /// `None`, loudly, where none is installed; in CI that is a failure.
    fn start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let config = format!(
            "global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\nscrape_configs: [{{job_name: self, static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}]\n"
        );
        let file = dir.path().join("prometheus.yml");
        std::fs::write(&file, config).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.path().join("data").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) => {
                assert!(
                    std::env::var_os("CI").is_none(),
                    "no prometheus: {error}; install Debian's package"
                );
                eprintln!("SKIPPED: the promql tool was not tried, since there is no prometheus: {error}");
                return None;
            }
        };
        let env: Map<String, Value> = json!({"PROMETHEUS_URL": format!("http://127.0.0.1:{port}/")})
            .as_object()
            .unwrap()
            .clone();
        let toolbox = Toolbox::from_config(
            &["promql".to_owned()],
            &Surroundings {
                tools: &service::Config::default().tools,
                output_bytes_max: 32 * 1024,
                timeout_ms: 10_000,
                env: &env,
                namespace: "",
                investigator: None,
                earlier: None,
                redactor: &Redactor::new(&[], []).unwrap(),
            },
        );
        Some(Self {
            child,
            _dir: dir,
            toolbox: toolbox.unwrap(),
        })
    }

    async fn ask(&self, arguments: Value) -> Given {
        let redactor = Redactor::new(&[], []).unwrap();
        self.toolbox
            .call(
                "promql",
                &arguments,
                Duration::from_secs(60),
                &redactor,
                &Metrics::new(),
            )
            .await
    }

    /// Asks until the answer holds `part`.
    async fn ask_until(&self, arguments: Value, part: &str) -> String {
        let begun = Instant::now();
        loop {
            let given = self.ask(arguments.clone()).await;
            if given.text.contains(part) {
                return given.text;
            }
            assert!(begun.elapsed() < START_WITHIN, "{arguments}: {}", given.text);
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn queries_are_answered_summarised_and_refused_in_the_servers_words() {
    let Some(prometheus) = Prometheus::start() else {
        return;
    };
    let up = prometheus.ask_until(json!({"query": "up"}), "up{").await;
    assert!(
        up.starts_with("1 series (value)\nup{instance=\"127.0.0.1:") && up.ends_with("job=\"self\"} 1"),
        "{up}"
    );
    let rising =
        json!({"query": "prometheus_tsdb_head_samples_appended_total", "range": "10s", "step": "1s"});
    let rising = prometheus.ask_until(rising, "trend=rising").await;
    assert!(
        rising.contains(" one point every 1 s\n") && rising.contains("count="),
        "{rising}"
    );
    let flat = prometheus.ask(json!({"query": "vector(3)", "range": "1h"})).await;
    assert!(
        flat.text
            .contains("{} count=121 min=3 mean=3 max=3 last=3 trend=flat (3 -> 3)"),
        "{}",
        flat.text
    );
    let many = prometheus
        .ask_until(
            json!({"query": "{__name__=~\"prometheus_.*\"}"}),
            "more series left out",
        )
        .await;
    assert_eq!(many.lines().count(), 62);
    assert_eq!(
        prometheus.ask(json!({"query": "scalar(vector(2))"})).await.text,
        "2"
    );
    assert_eq!(
        prometheus
            .ask(json!({"query": "nothing_of_this_name"}))
            .await
            .text,
        "no series match"
    );
    let wrong = prometheus.ask(json!({"query": "sum(("})).await;
    assert!(
        wrong.is_error && wrong.text.contains("answered 400: bad_data: "),
        "{}",
        wrong.text
    );
    let past = prometheus
        .ask(json!({"query": "up", "time": "2020-01-01T00:00:00Z"}))
        .await;
    assert_eq!(past.text, "no series match");
}

#[tokio::test]
async fn a_server_that_is_away_is_explained() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut tools = service::Config::default().tools;
    tools.prometheus_url = format!("http://127.0.0.1:{port}");
    let surroundings = Surroundings {
        tools: &tools,
        output_bytes_max: 1000,
        timeout_ms: 5000,
        env: &Map::new(),
        namespace: "",
        investigator: None,
        earlier: None,
        redactor: &Redactor::new(&[], []).unwrap(),
    };
    let toolbox = Toolbox::from_config(&["promql".to_owned()], &surroundings).unwrap();
    let redactor = Redactor::new(&[], []).unwrap();
    let given = toolbox
        .call(
            "promql",
            &json!({"query": "up"}),
            Duration::from_secs(5),
            &redactor,
            &Metrics::new(),
        )
        .await;
    assert!(
        given.is_error && given.text.contains("tools.prometheus_url"),
        "{}",
        given.text
    );
}
