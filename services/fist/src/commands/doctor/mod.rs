//! `fist doctor`: what works, what does not, and what to do about it.
//!
//! Invariant: keys and passwords are never shown, only whether they are there.

mod in_cluster;

use std::{path::PathBuf, time::Duration};

use bus::{
    Connection,
    server::{Places, find_server},
    topology,
};
use serde_json::Value;
use service::config::{Config, Secret, Secrets, process_env};

use super::Outcome;
use crate::{
    args::Doctor,
    client::{Client, Request, causes},
    failure::{Code, Failure},
    show::{self, Style},
    up,
};

/// How long to look for a NATS server.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// How long a server that tools need may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Grade {
    Ok,
    Warn,
    Fail,
}

/// One line of the answer.
#[derive(Debug)]
struct Check {
    grade: Grade,
    about: &'static str,
    text: String,
}

#[derive(Debug, Default)]
struct Checks(Vec<Check>);

impl Checks {
    fn add(&mut self, grade: Grade, about: &'static str, text: impl Into<String>) {
        self.0.push(Check {
            grade,
            about,
            text: text.into(),
        });
    }
}

/// Does it. The exit code is 1 where a check failed, 3 where only the server is missing.
pub async fn run(client: Result<Client, Failure>, asked: &Doctor) -> Outcome {
    let client = client?;
    let mut checks = Checks::default();
    let has_server = server(&client, &mut checks).await;
    match Config::load(asked.config.as_deref(), process_env()) {
        Ok(mut config) => {
            checks.add(Grade::Ok, "configuration", "is valid");
            let is_named = names_nats(&mut config, asked);
            nats(&config, is_named, &mut checks).await;
            door(&config, &mut checks);
            models(&config, &mut checks);
            tools(&config, &mut checks);
            let is_in_cluster = in_cluster::is_meant(&config, asked);
            if is_in_cluster {
                in_cluster::ask(&config, asked, &mut checks).await;
            }
            if is_in_cluster || config.tools.prometheus_url != Config::default().tools.prometheus_url {
                prometheus(&config, &mut checks).await;
            }
            if config.tools.loki_url != Config::default().tools.loki_url {
                loki(&config, &mut checks).await;
            }
        }
        Err(errors) => checks.add(Grade::Fail, "configuration", errors.to_string()),
    }
    let style = Style::stdout();
    for check in &checks.0 {
        let word = match check.grade {
            Grade::Ok => "ok",
            Grade::Warn => "warn",
            Grade::Fail => "fail",
        };
        let text = show::clean(&check.text).replace('\n', "\n                       ");
        let gap = " ".repeat(4 - word.len());
        show::line(&format!("{}{gap}  {:15}  {text}", style.state(word), check.about));
    }
    let failed = |about: &str| {
        checks
            .0
            .iter()
            .any(|check| check.grade == Grade::Fail && (check.about == "server") == (about == "server"))
    };
    Ok(match (failed("others"), failed("server") && !has_server) {
        (true, _) => Code::Failed,
        (false, true) => Code::NoServer,
        (false, false) if failed("server") => Code::Failed,
        (false, false) => Code::Succeeded,
    })
}

/// What the server says of itself, the database included; whether there is one.
async fn server(client: &Client, checks: &mut Checks) -> bool {
    let alive = client.send(&Request::get(&["healthz"])).await;
    if let Err(failure) = alive {
        checks.add(Grade::Fail, "server", failure.message);
        return false;
    }
    checks.add(Grade::Ok, "server", format!("answers at {}", client.address()));
    match ready(client).await {
        Ok(()) => checks.add(Grade::Ok, "services", "all report that they can work"),
        Err(failing) => {
            for (name, reason) in failing {
                checks.add(Grade::Fail, "services", format!("{name}: {reason}"));
            }
        }
    }
    let query = client
        .send(&Request::get(&["api", "v1", "executions"]).query("limit", Some(1)))
        .await;
    match query {
        Ok(_) => checks.add(Grade::Ok, "database", "answers questions"),
        Err(failure) if failure.code == Code::Misuse => checks.add(Grade::Fail, "token", failure.message),
        Err(failure) => checks.add(Grade::Fail, "database", failure.message),
    }
    match client
        .send(&Request::get(&["api", "v1", "deadletters"]).query("limit", Some(1)))
        .await
    {
        Ok(answer) => {
            let any = answer
                .json()
                .is_ok_and(|page| page["items"].as_array().is_some_and(|items| !items.is_empty()));
            match any {
                false => checks.add(Grade::Ok, "dead letters", "none"),
                true => checks.add(
                    Grade::Warn,
                    "dead letters",
                    "there are messages that nobody could process: `fist get deadletters` has the reasons",
                ),
            }
        }
        Err(failure) if failure.code == Code::Misuse => {}
        Err(failure) => checks.add(Grade::Fail, "NATS", failure.message),
    }
    if !client.is_on_this_machine() {
        open_doors(client, checks).await;
    }
    true
}

/// What a stranger gets of this server, found out by asking as one: nothing, or a warning.
async fn open_doors(client: &Client, checks: &mut Checks) {
    let stranger = client.as_stranger();
    let mut found = Vec::new();
    // It stores nothing, and needs no neighbour that could be away.
    let api = Request::post(&["api", "v1", "validate"], "application/yaml", String::new());
    let status = match stranger.any_status(&api).await {
        Ok(answer) => answer.status.as_u16(),
        Err(failure) => return checks.add(Grade::Fail, "strangers", failure.message),
    };
    if status == 200 {
        found.push(ingest::http::open_api(client.address()));
    }
    for source in [ingest::sources::ALERTMANAGER, ingest::sources::WEBHOOK] {
        // Without a body nothing can come of it, but what a sender must prove is looked at before.
        let post = Request::post(&["webhooks", source], "application/json", String::new());
        if stranger
            .any_status(&post)
            .await
            .is_ok_and(|answer| answer.status.as_u16() == 400)
        {
            found.push(ingest::http::open_source(client.address(), source));
        }
    }
    // An overload, for one, says nothing about who is let in.
    if found.is_empty() && status == 401 {
        checks.add(Grade::Ok, "strangers", "are let in nowhere");
    }
    for text in found {
        checks.add(Grade::Warn, "strangers", text);
    }
}

/// The failing checks of `/readyz`.
async fn ready(client: &Client) -> Result<(), Vec<(String, String)>> {
    let answer = match client.any_status(&Request::get(&["readyz"])).await {
        Ok(answer) if answer.status.is_success() => return Ok(()),
        Ok(answer) => answer,
        Err(failure) => return Err(vec![("readyz".to_owned(), failure.message)]),
    };
    let body: Value = serde_json::from_str(&answer.text).unwrap_or_default();
    let failing = body["failing"].as_object().cloned().unwrap_or_default();
    let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Err(failing
        .into_iter()
        .map(|(name, reason)| (name, text(reason)))
        .collect())
}

/// Puts the NATS server that is meant into the configuration: the one that is named, else that of a `fist up`
/// which runs on this machine. Whether there is one.
fn names_nats(config: &mut Config, asked: &Doctor) -> bool {
    if let Some(url) = &asked.nats {
        config.nats.url.clone_from(url);
        return true;
    }
    let dir = asked
        .dir
        .clone()
        .or_else(|| up::default_dir(&process_env().collect::<Vec<_>>()).ok());
    if let Some(running) = dir.and_then(|dir| up::running(&dir)) {
        config.nats.url = running.url;
        config.nats.user = running.user;
        config.nats.password = running.password.map(Secret::new);
        return true;
    }
    config.nats.url != Config::default().nats.url
}

/// A server to connect to where one is meant, else one to start.
async fn nats(config: &Config, is_named: bool, checks: &mut Checks) {
    if !is_named {
        match find_server(&Places::from_environment()) {
            Ok(server) => checks.add(
                Grade::Ok,
                "nats-server",
                format!("{} is version {}", server.path.display(), server.version),
            ),
            Err(reason) => checks.add(
                Grade::Warn,
                "nats-server",
                format!("{reason} (`fist up` needs it, unless --nats names a server)"),
            ),
        }
        return;
    }
    match Connection::open(&up::bus_settings(config, "doctor", CONNECT_MAX)).await {
        Ok(connection) => {
            let version = connection.server_version();
            checks.add(
                Grade::Ok,
                "NATS",
                format!("{} is version {version}, with JetStream", config.nats.url),
            );
            for exposure in connection.exposures() {
                checks.add(Grade::Warn, "NATS", format!("{}: {exposure}", config.nats.url));
            }
            match topology::check(&connection).await {
                Ok(()) => checks.add(Grade::Ok, "streams", "all are there"),
                Err(error) => checks.add(Grade::Fail, "streams", error.to_string()),
            }
            connection.close().await;
        }
        Err(error) => checks.add(Grade::Fail, "NATS", error.to_string()),
    }
}

/// Whether a server of this configuration would let anybody in.
fn door(config: &Config, checks: &mut Checks) {
    for exposure in ingest::http::exposures(config, &config.http.listen) {
        checks.add(Grade::Warn, "strangers", exposure);
    }
    if let Some(exposure) = config.database.exposure() {
        checks.add(Grade::Warn, "database", exposure);
    }
}

/// The Prometheus that agents ask, where the workflow names none.
async fn prometheus(config: &Config, checks: &mut Checks) {
    let url = &config.tools.prometheus_url;
    let question = |http: reqwest::Client, url: &str| http.get(format!("{url}/api/v1/query?query=1"));
    let Some(wrong) = asked("prometheus", url, question, checks).await else {
        return;
    };
    let remedy = "the promql tool of agents needs it: set tools.prometheus_url, or PROMETHEUS_URL in a workflow's environment";
    checks.add(Grade::Warn, "prometheus", format!("{wrong}; {remedy}"));
}

/// The Loki that agents ask, where the workflow names none.
async fn loki(config: &Config, checks: &mut Checks) {
    let tenant = config.tools.loki_tenant.as_deref();
    let question = |http: reqwest::Client, url: &str| {
        let question = http.get(format!("{url}/loki/api/v1/labels"));
        match tenant {
            Some(tenant) => question.header("x-scope-orgid", tenant),
            None => question,
        }
    };
    let Some(wrong) = asked("loki", &config.tools.loki_url, question, checks).await else {
        return;
    };
    let remedy =
        "the logs tool of agents needs it: set tools.loki_url and, where it has tenants, tools.loki_tenant";
    checks.add(Grade::Warn, "loki", format!("{wrong}; {remedy}"));
}

/// Asks a server that tools need: a good answer becomes a check, and what is wrong otherwise is given.
async fn asked(
    about: &'static str,
    url: &str,
    question: impl FnOnce(reqwest::Client, &str) -> reqwest::RequestBuilder,
    checks: &mut Checks,
) -> Option<String> {
    service::install_crypto();
    let url = url.trim_end_matches('/');
    let http = reqwest::Client::builder().timeout(ANSWER_MAX).build();
    let answer = match http {
        Ok(http) => question(http, url).send().await,
        Err(error) => Err(error),
    };
    match answer.map_err(|error| causes(&error.without_url())) {
        Ok(answer) if answer.status().is_success() => {
            checks.add(Grade::Ok, about, format!("{url} answers"));
            None
        }
        Ok(answer) => Some(format!("{url} answers {}", answer.status())),
        Err(reason) => Some(format!("{url} cannot be asked from here: {reason}")),
    }
}

fn models(config: &Config, checks: &mut Checks) {
    let secrets = match Secrets::from_env(&config.llm) {
        Ok(secrets) => secrets,
        Err(errors) => return checks.add(Grade::Fail, "models", errors.to_string()),
    };
    let mut present = Vec::new();
    for (name, key) in [
        ("ANTHROPIC_API_KEY", &secrets.anthropic_api_key),
        ("OPENAI_API_KEY", &secrets.openai_api_key),
    ] {
        if key.is_some() {
            present.push(format!("{name} is there"));
        }
    }
    if let Some(dir) = &config.llm.scripted_dir {
        match dir.is_dir() {
            true => present.push(format!("scripted turns in {}", dir.display())),
            false => checks.add(
                Grade::Fail,
                "models",
                format!("llm.scripted_dir {} is no directory", dir.display()),
            ),
        }
    }
    match present.is_empty() {
        false => checks.add(Grade::Ok, "models", format!("{} (in this shell; the server has its own environment)", present.join(", "))),
        true => checks.add(
            Grade::Warn,
            "models",
            "no key in this shell: agents need ANTHROPIC_API_KEY or OPENAI_API_KEY in the environment of `fist up`",
        ),
    }
}

fn tools(config: &Config, checks: &mut Checks) {
    for (name, why) in [
        (
            config.tools.kubectl_bin.as_str(),
            "the kubectl tool of agents, and commands that call it, fail without it",
        ),
        ("sh", "commands of cli steps run in it"),
    ] {
        match on_path(name, &config.cli.path) {
            Some(path) => checks.add(Grade::Ok, "tools", format!("{name} is {}", path.display())),
            None => checks.add(
                Grade::Warn,
                "tools",
                format!(
                    "{name} is not in {}: {why}; install it, or set cli.path and tools.kubectl_bin",
                    config.cli.path
                ),
            ),
        }
    }
}

/// Where a program is; a path stands for itself.
fn on_path(name: &str, path: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let is_program = |file: &PathBuf| {
        std::fs::metadata(file).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(is_program);
    }
    std::env::split_paths(path)
        .map(|dir| dir.join(name))
        .find(is_program)
}
