//! The tools of MCP servers, tried against real ones: programs, and streamable HTTP.
//!
//! This test has its own `main`: run as `serve HOW`, it is a server over stdin and stdout; otherwise it starts itself
//! so.
#![allow(clippy::unwrap_used)]

mod server;

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use agent_runner::{
    llm::ToolSpec,
    redact::{Redactor, untagged},
    tools::{Given, Surroundings, Toolbox, mcp},
};
use axum::{
    Router,
    extract::Request,
    http::{StatusCode, header},
    middleware::{Next, from_fn},
    response::IntoResponse,
};
use futures_util::future::BoxFuture;
use rmcp::transport::streamable_http_server::{
    StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
};
use serde_json::{Map, Value, json};
use server::Honest;
use service::{Config, Metrics};

/// Within which everything here comes to pass.
const DEADLINE: Duration = Duration::from_secs(60);

type Test = (&'static str, fn() -> BoxFuture<'static, ()>);

const TESTS: &[Test] = &[
    ("allowed_tools_are_offered_and_called", || {
        Box::pin(allowed_tools_are_offered_and_called())
    }),
    ("a_program_gets_no_environment_but_its_own", || {
        Box::pin(a_program_gets_no_environment_but_its_own())
    }),
    ("versions_old_and_new_are_spoken", || {
        Box::pin(versions_old_and_new_are_spoken())
    }),
    ("what_fails_is_told", || Box::pin(what_fails_is_told())),
    ("a_server_that_ends_is_started_again_a_few_times", || {
        Box::pin(a_server_that_ends_is_started_again_a_few_times())
    }),
    ("a_server_that_cannot_be_used_leaves_the_others", || {
        Box::pin(a_server_that_cannot_be_used_leaves_the_others())
    }),
    ("no_process_is_left", || Box::pin(no_process_is_left())),
    ("what_is_not_configured_fails_the_step", || {
        Box::pin(what_is_not_configured_fails_the_step())
    }),
    ("http_is_spoken_with_a_token", || {
        Box::pin(http_is_spoken_with_a_token())
    }),
    ("http_that_fails_is_told", || Box::pin(http_that_fails_is_told())),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    if let [serve, how] = arguments.as_slice()
        && serve == "serve"
    {
        runtime.block_on(server::serve(how));
        return ExitCode::SUCCESS;
    }
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    let wanted = TESTS
        .iter()
        .filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter)));
    let mut failed = 0;
    for (name, test) in wanted {
        // As a task of its own, so that a panic fails one test and not all.
        let ended = runtime.block_on(async { tokio::time::timeout(DEADLINE, tokio::spawn(test())).await });
        let is_ok = matches!(ended, Ok(Ok(())));
        println!("test {name} ... {}", if is_ok { "ok" } else { "FAILED" });
        failed += usize::from(!is_ok);
    }
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The tools of one step.
struct Step {
    toolbox: Toolbox,
    redactor: Redactor,
    metrics: Metrics,
}

impl Step {
    /// Of a step that names `tools`, with these servers in the configuration.
    async fn new(servers: &str, tools: &[&str]) -> Result<Self, String> {
        let config = Config::parse(Some(("fist.toml", servers)), std::iter::empty()).unwrap();
        let tools: Vec<String> = tools.iter().map(|tool| (*tool).to_owned()).collect();
        let servers = mcp::named(&tools, &config.tools.mcp)?;
        let redactor = servers
            .iter()
            .flat_map(mcp::Named::secrets)
            .fold(Redactor::new(&[], []).unwrap(), |redactor, secret| {
                redactor.and(secret)
            });
        let surroundings = Surroundings {
            tools: &config.tools,
            output_bytes_max: 1000,
            timeout_ms: 1000,
            env: &Map::new(),
            namespace: "prod",
            investigator: None,
            earlier: None,
            redactor: &redactor,
        };
        let mut toolbox = Toolbox::from_config(&tools, &surroundings)?;
        toolbox.add(mcp::connect(servers, &redactor, DEADLINE).await);
        Ok(Self {
            toolbox,
            redactor,
            metrics: Metrics::new(),
        })
    }

    fn spec(&self, name: &str) -> ToolSpec {
        self.toolbox
            .specs()
            .into_iter()
            .find(|spec| spec.name == name)
            .unwrap()
    }

    async fn call(&self, name: &str, arguments: Value) -> Given {
        self.toolbox
            .call(name, &arguments, DEADLINE, &self.redactor, &self.metrics)
            .await
    }

    /// What a call without arguments gave, as `outcome: text`.
    async fn said(&self, name: &str) -> String {
        let given = self.call(name, json!({})).await;
        assert_eq!(given.is_error, given.outcome != "ok");
        format!("{}: {}", given.outcome, given.text)
    }
}

/// The configuration of a server that is this program, run as `serve HOW`.
fn program(name: &str, how: &str, tools: &[&str], more: &str) -> String {
    let own = std::env::current_exe().unwrap();
    format!("[tools.mcp.{name}]\ncommand = {own:?}\nargs = [\"serve\", {how:?}]\ntools = {tools:?}\n{more}\n")
}

/// Whether a process runs, and is not merely waiting to be taken leave of.
fn is_running(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
}

async fn until_gone(pid: &str) {
    let begun = Instant::now();
    while is_running(pid) {
        assert!(begun.elapsed() < DEADLINE, "{pid} is still there");
        tokio::task::yield_now().await;
    }
}

async fn allowed_tools_are_offered_and_called() {
    let allowed = ["say", "show.picture", "fail", "large.schema", "unknown"];
    let step = Step::new(&program("talk", "honest", &allowed, ""), &["curl", "mcp:talk"])
        .await
        .unwrap();
    let names: Vec<String> = step.toolbox.specs().into_iter().map(|spec| spec.name).collect();
    assert_eq!(
        names,
        [
            "curl",
            "mcp_talk_say",
            "mcp_talk_show_picture",
            "mcp_talk_fail",
            "mcp_talk_large_schema",
            "mcp_talk_unknown"
        ]
    );
    let say = step.spec("mcp_talk_say");
    assert_eq!(
        untagged(&say.description),
        "The tool `say` of the MCP server `talk`. Says what it is told. password=[REDACTED:value]"
    );
    assert_eq!(say.schema["properties"]["text"]["maxLength"], 1000);

    let given = step
        .call(
            "mcp_talk_say",
            json!({"text": "hello, token=abcdef123", "mood": "odd"}),
        )
        .await;
    assert_eq!(
        (untagged(&given.text).as_str(), given.outcome),
        ("hello, token=[REDACTED:value]", "ok")
    );
    assert_eq!(
        step.said("mcp_talk_say").await,
        "refused: refused: `text` is missing; nothing was run"
    );
    let given = step
        .call("mcp_talk_say", json!({"text": "a", "loud": true}))
        .await;
    assert_eq!(given.text, "refused: there is no `loud`; nothing was run");

    assert_eq!(
        step.said("mcp_talk_show_picture").await,
        "ok: Here it is:\n[not shown: image, image/png, 6 bytes]"
    );
    assert_eq!(
        step.said("mcp_talk_fail").await,
        "failed: failed: there is no such ticket"
    );
    assert!(
        step.spec("mcp_talk_unknown")
            .description
            .starts_with("Cannot be used in this investigation: ")
    );
    assert_eq!(
        step.said("mcp_talk_unknown").await,
        "failed: failed: the MCP server `talk` has no tool `unknown` among the 12 that it lists"
    );
    let large = step.said("mcp_talk_large_schema").await;
    assert!(large.contains("and 16384 are allowed"), "{large}");
    // The server has it, and says nothing against it; the operator does not.
    let refused = step.said("mcp_talk_write_file").await;
    assert!(
        refused.starts_with("refused: refused: there is no such tool"),
        "{refused}"
    );
    let metrics = step.metrics.encode();
    assert!(
        metrics.contains("fist_tool_calls_total{tool=\"mcp_talk_say\",outcome=\"ok\"} 1"),
        "{metrics}"
    );
}

async fn a_program_gets_no_environment_but_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "very-secret-token\n").unwrap();
    let more = format!("env = {{ LEVEL = \"loud\" }}\nenv_files = {{ CREDENTIAL = {token:?} }}");
    let step = Step::new(&program("talk", "honest", &["environment"], &more), &["mcp:talk"])
        .await
        .unwrap();
    let said = step.said("mcp_talk_environment").await;
    let lines: Vec<&str> = said.trim_start_matches("ok: ").lines().collect();
    let names: Vec<&str> = lines.iter().filter_map(|line| line.split('=').next()).collect();
    let own: Vec<String> = service::config::process_env().map(|(name, _)| name).collect();
    assert!(own.len() > 4, "there is something to keep from it: {own:?}");
    let expected = ["CREDENTIAL", "HOME", "LEVEL", "PATH"];
    let has_home = own.iter().any(|name| name == "HOME");
    assert_eq!(
        names,
        expected
            .into_iter()
            .filter(|name| *name != "HOME" || has_home)
            .collect::<Vec<_>>()
    );
    assert!(lines.contains(&"LEVEL=loud"), "{said}");
    // What the redactor makes of it is its own affair; the value is gone.
    assert!(
        !said.contains("very-secret-token") && said.contains("CREDENTIAL=[REDACTED:"),
        "{said}"
    );
}

async fn versions_old_and_new_are_spoken() {
    for how in ["discovery-only", "handshake-only"] {
        let step = Step::new(&program("talk", how, &["say"], ""), &["mcp:talk"])
            .await
            .unwrap();
        assert_eq!(step.said("mcp_talk_say").await, format!("ok: by {how}"));
    }
}

async fn what_fails_is_told() {
    let limits = "timeout_ms = 1000\noutput_bytes_max = 1024";
    let allowed = ["say", "hang", "forget", "huge"];
    let step = Step::new(&program("talk", "honest", &allowed, limits), &["mcp:talk"])
        .await
        .unwrap();
    let said = step.said("mcp_talk_hang").await;
    assert!(
        said.starts_with("timeout: stopped: the call took longer than 1.0 s"),
        "{said}"
    );
    // A call that was given up does not stand in the way of the next; its result is cut by this server's limit.
    let given = step.call("mcp_talk_say", json!({"text": "x".repeat(1000)})).await;
    assert_eq!((given.text.len(), given.outcome), (1000, "ok"));
    assert_eq!(step.said("mcp_talk_forget").await, "ok: done");
    let given = step.call("mcp_talk_say", json!({"text": "still there?"})).await;
    assert_eq!(given.text, "failed: the server answers: no tool say (-32602)");
    let said = step.said("mcp_talk_huge").await;
    assert!(
        said.starts_with("failed: failed: the server sent a message of more than 4194304 bytes"),
        "{said}"
    );
    for (how, reason) in [
        ("asks-back", "something that is no result of a call"),
        ("nonsense", "something that is no result of a call"),
    ] {
        let step = Step::new(&program("liar", how, &["say"], ""), &["mcp:liar"])
            .await
            .unwrap();
        let said = step.said("mcp_liar_say").await;
        assert!(
            said.starts_with("failed: ") && said.contains(reason),
            "{how}: {said}"
        );
    }
}

async fn a_server_that_ends_is_started_again_a_few_times() {
    let step = Step::new(&program("talk", "honest", &["say", "exit"], ""), &["mcp:talk"])
        .await
        .unwrap();
    for _ in 0..3 {
        let given = step.call("mcp_talk_say", json!({"text": "here"})).await;
        assert_eq!(given.text, "here");
        assert_eq!(
            untagged(&step.said("mcp_talk_exit").await),
            "failed: failed: the server's program ended (exit status: 3) after it said: out of luck, \
             password=[REDACTED:value]"
        );
    }
    let given = step.call("mcp_talk_say", json!({"text": "here"})).await;
    assert_eq!(
        given.text,
        "failed: the server ended 3 times, and is not started again in this step"
    );
}

async fn a_server_that_cannot_be_used_leaves_the_others() {
    let mut servers = program("talk", "honest", &["say"], "");
    let cases = [
        (
            "gone",
            "",
            "the server's program ended (exit status: 4) after it said: there is no licence",
        ),
        ("stubborn", "connect_timeout_ms = 500", "it did not"),
        (
            "endless-line",
            "",
            "the server sent a message of more than 4194304 bytes",
        ),
        (
            "old-version",
            "",
            "it speaks version `1999-01-01` of the protocol; known are 2024-11-05",
        ),
        (
            "endless-list",
            "",
            "has no tool `say` among the first 16 that it lists",
        ),
        ("no-list", "", "something that is no result of a call"),
    ];
    let mut names = vec!["mcp:talk".to_owned(), "mcp:nowhere".to_owned()];
    for (how, more, _) in cases {
        servers += &program(how, how, &["say"], more);
        names.push(format!("mcp:{how}"));
    }
    servers += "[tools.mcp.nowhere]\ncommand = \"/nonexistent/mcp-server\"\ntools = [\"say\"]\n";
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let step = Step::new(&servers, &names).await.unwrap();
    for (how, _, reason) in cases {
        let name = format!("mcp_{how}_say");
        let said = step.said(&name).await;
        assert!(
            said.starts_with("failed: failed: the MCP server `") && said.contains(reason),
            "{how}: {said}"
        );
        let spec = step.spec(&name);
        assert!(spec.description.contains(reason), "{how}: {}", spec.description);
        assert_eq!(spec.schema["type"], "object");
    }
    let said = step.said("mcp_nowhere_say").await;
    assert!(
        said.contains("its program mcp-server cannot be started: No such file or directory"),
        "{said}"
    );
    let given = step.call("mcp_talk_say", json!({"text": "as ever"})).await;
    assert_eq!(given.text, "as ever");
}

async fn no_process_is_left() {
    let servers = program("talk", "honest", &["pid", "child"], "")
        + &program("stubborn", "stubborn", &["say"], "connect_timeout_ms = 2000");
    let step = Step::new(&servers, &["mcp:talk"]).await.unwrap();
    let pids: Vec<String> = [step.said("mcp_talk_pid").await, step.said("mcp_talk_child").await]
        .iter()
        .map(|said| said.trim_start_matches("ok: ").to_owned())
        .collect();
    assert!(pids.iter().all(|pid| is_running(pid)), "{pids:?}");
    drop(step);
    for pid in &pids {
        until_gone(pid).await;
    }
    // One that hears of nothing but SIGKILL, and was never connected to.
    let (step, ()) = tokio::join!(
        Step::new(&servers, &["mcp:stubborn"]),
        until_running_as("stubborn", true)
    );
    drop(step.unwrap());
    until_running_as("stubborn", false).await;
}

async fn until_running_as(how: &str, wanted: bool) {
    let begun = Instant::now();
    while running_as(how) != wanted {
        assert!(
            begun.elapsed() < DEADLINE,
            "server `{how}`: it never came to {wanted} that it runs"
        );
        tokio::task::yield_now().await;
    }
}

/// Whether a child of this process is a server of this way.
fn running_as(how: &str) -> bool {
    let own = std::process::id().to_string();
    let wanted = format!("serve\0{how}\0");
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let stat = read("stat");
        let is_ours = stat
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.split(' ').nth(1) == Some(own.as_str()));
        is_ours && read("cmdline").ends_with(&wanted)
    })
}

async fn what_is_not_configured_fails_the_step() {
    let told = async |servers: &str| Step::new(servers, &["mcp:talk"]).await.err().unwrap();
    assert_eq!(
        told("").await,
        "the configuration of agent-runner has no section [tools.mcp.talk] for the tool `mcp:talk`; it has none"
    );
    let other = program("git", "honest", &["say"], "");
    assert!(told(&other).await.ends_with("it has mcp:git"));
    let unreadable = program(
        "talk",
        "honest",
        &["say"],
        "env_files = { A = \"/nonexistent/token\" }",
    );
    assert_eq!(
        told(&unreadable).await,
        "the tool `mcp:talk` cannot be used: tools.mcp.talk.env_files.A = \"/nonexistent/token\": cannot be opened: \
         No such file or directory (os error 2)"
    );
}

/// An honest server on a free port, which wants a token; its address.
async fn over_http(config: StreamableHttpServerConfig) -> String {
    let service = StreamableHttpService::new(
        || Ok(Honest::default()),
        Arc::new(LocalSessionManager::default()),
        config,
    );
    let guarded =
        from_fn(
            async |request: Request, next: Next| match request.headers().get(header::AUTHORIZATION) {
                Some(token) if token == "Bearer very-secret-token" => next.run(request).await,
                _ => (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")]).into_response(),
            },
        );
    let router = Router::new().route_service("/mcp", service).layer(guarded);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}/mcp")
}

fn address(name: &str, url: &str, tools: &[&str], more: &str) -> String {
    format!("[tools.mcp.{name}]\nurl = {url:?}\ntools = {tools:?}\n{more}\n")
}

async fn http_is_spoken_with_a_token() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "very-secret-token\n").unwrap();
    let more = format!("bearer_token_file = {token:?}");
    let stateless = {
        let mut config = StreamableHttpServerConfig::default();
        (config.legacy_session_mode, config.json_response) = (false, true);
        config
    };
    for config in [StreamableHttpServerConfig::default(), stateless] {
        let url = over_http(config).await;
        let servers = address("talk", &url, &["say", "show.picture", "fail", "huge"], &more);
        let step = Step::new(&servers, &["mcp:talk"]).await.unwrap();
        let given = step
            .call("mcp_talk_say", json!({"text": "hello, very-secret-token"}))
            .await;
        assert_eq!(given.outcome, "ok", "{}", given.text);
        assert!(given.text.starts_with("hello, [REDACTED:"), "{}", given.text);
        let picture = step.said("mcp_talk_show_picture").await;
        assert!(
            picture.ends_with("[not shown: image, image/png, 6 bytes]"),
            "{picture}"
        );
        assert_eq!(
            step.said("mcp_talk_fail").await,
            "failed: failed: there is no such ticket"
        );
        let huge = step.said("mcp_talk_huge").await;
        assert!(
            huge.starts_with("failed: ") && huge.contains("4194304 bytes"),
            "{huge}"
        );
    }
}

async fn http_that_fails_is_told() {
    let url = over_http(StreamableHttpServerConfig::default()).await;
    let token = "bearer_token = \"very-secret-token\"\ntimeout_ms = 3000";
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    // Accepts connections, and answers nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let tools = ["say", "huge", "hang"];
    let servers = address("talk", &url, &tools, token)
        + &address("tokenless", &url, &tools, "")
        + &address("nobody", &format!("http://{free}/mcp"), &tools, token)
        + &address("wrong", &url.replace("/mcp", "/elsewhere"), &tools, token)
        + &address(
            "silent",
            &format!("http://{}/mcp", silent.local_addr().unwrap()),
            &tools,
            "connect_timeout_ms = 500",
        );
    let all = [
        "mcp:talk",
        "mcp:tokenless",
        "mcp:nobody",
        "mcp:wrong",
        "mcp:silent",
    ];
    let step = Step::new(&servers, &all).await.unwrap();
    for (name, reason) in [
        ("tokenless", "does not accept the bearer token, or wants one"),
        ("nobody", "refused"),
        ("wrong", "404"),
        ("silent", "it did not"),
    ] {
        let said = step.said(&format!("mcp_{name}_say")).await;
        assert!(
            said.starts_with("failed: failed: the MCP server `") && said.contains(reason),
            "{name}: {said}"
        );
    }
    let huge = step.said("mcp_talk_huge").await;
    assert!(
        huge.starts_with("failed: ") && huge.contains("more than 4194304 bytes"),
        "{huge}"
    );
    let said = step.said("mcp_talk_hang").await;
    assert!(
        said.starts_with("timeout: stopped: the call took longer than 3.0 s"),
        "{said}"
    );
    let given = step.call("mcp_talk_say", json!({"text": "as ever"})).await;
    assert_eq!(given.text, "as ever");
}
