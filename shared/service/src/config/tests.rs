#![allow(clippy::unwrap_used)]

use expect_test::{Expect, expect};

use super::*;

/// Reads a file's text and variables, and compares the errors' text.
fn check(file: &str, env: &[(&str, &str)], expected: Expect) {
    let errors = read(file, env).expect_err("this configuration must be refused");
    expected.assert_eq(&format!("{errors}\n"));
}

fn read(file: &str, env: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    let env = env
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::parse(Some(("fist.toml", file)), env)
}

/// The tokens of the API with what they let do.
fn roles(config: &Config) -> Vec<(&str, Role)> {
    let tokens = config.http.tokens.iter();
    tokens.map(|token| (token.secret.expose(), token.role)).collect()
}

#[test]
fn tokens_have_the_role_of_their_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("readers");
    std::fs::write(&path, "three\n\n  four  \n").unwrap();
    let file = format!("[http]\ntokens = [\"one\"]\nrun_tokens = [\"two\"]\nread_tokens_file = {path:?}\n");
    assert_eq!(
        roles(&read(&file, &[]).unwrap()),
        [
            ("one", Role::Admin),
            ("two", Role::Run),
            ("three", Role::Read),
            ("four", Role::Read)
        ]
    );
    let config = read("", &[("FIST_HTTP_READ_TOKENS", "a,b")]).unwrap();
    assert_eq!(roles(&config), [("a", Role::Read), ("b", Role::Read)]);
    // Two files that this process cannot read are no token of two roles.
    let file = "[http]\ntokens_file = \"/nonexistent/a\"\nread_tokens_file = \"/nonexistent/b\"";
    assert_eq!(read(file, &[]).unwrap().http.tokens.len(), 2);
    check(
        "[http]\ntokens = [\"hunter2\"]\nrun_tokens = [\"hunter2\"]\nread_tokens = [\" \"]\n",
        &[],
        expect![[r#"
            the configuration has 2 errors:
              fist.toml:3: http.run_tokens = (hidden): has a token that http.tokens has too: give each role tokens of its own (`openssl rand -hex 24` makes one)
              fist.toml:4: http.read_tokens = (hidden): must be a list of texts that are not empty
        "#]],
    );
    let file = format!("[http]\nrun_tokens = [\"four\"]\nread_tokens_file = {path:?}\n");
    let text = read(&file, &[]).unwrap_err().to_string();
    assert!(
        text.contains("http.read_tokens_file = (hidden): has a token that http.run_tokens has too"),
        "{text}"
    );
}

#[test]
fn a_database_that_strangers_could_play_is_told() {
    let is_exposed = |url: &str| {
        let config = read("", &[("FIST_DATABASE_URL", url)]).unwrap();
        config.database.exposure().is_some()
    };
    for url in [
        "sqlite://fist.db",
        "postgres://a:b@127.0.0.1:5432/c",
        "postgres://a:b@localhost/c",
        "postgres:///c?host=/run/postgresql",
        "postgres://a:b@db/c?sslmode=verify-full",
        "postgresql://a:b@db/c?x=y&sslmode=verify-ca&sslrootcert=/ca.pem",
    ] {
        assert!(!is_exposed(url), "{url}");
    }
    for url in [
        "postgres://a:b@db/c",
        "postgresql://a:b@db:5432/c?sslmode=prefer",
        "postgres://a:127.0.0.1@10.0.0.1/c?sslmode=require",
    ] {
        assert!(is_exposed(url), "{url}");
    }
}

#[test]
fn an_inbox_is_the_beginning_of_a_subject() {
    let prefix =
        |text: &str| read("", &[("FIST_NATS_INBOX_PREFIX", text)]).map(|config| config.nats.inbox_prefix);
    assert_eq!(prefix("").unwrap(), None);
    assert_eq!(prefix("_INBOX.a-b").unwrap().as_deref(), Some("_INBOX.a-b"));
    for bad in ["_INBOX.", ".a", "a b", "_INBOX.>", "*"] {
        let text = prefix(bad).unwrap_err().to_string();
        assert!(
            text.contains("FIST_NATS_INBOX_PREFIX") && text.contains("_INBOX.ingest"),
            "{text}"
        );
    }
}

#[test]
fn a_signed_time_needs_a_secret_and_open_has_none() {
    let file =
        "[sources.a]\nhmac_secret = \"s\"\nhmac_timestamp_header = \"X-Time\"\n[sources.b]\nopen = true\n";
    let config = read(file, &[]).unwrap();
    assert_eq!(
        config.sources["a"].hmac_timestamp,
        Some(SignedTime {
            header: "X-Time".to_owned(),
            separator: ".".to_owned(),
            tolerance_seconds: 300
        })
    );
    assert!(config.sources["b"].is_open && !config.sources["a"].is_open);
    check(
        "[sources.a]\nhmac_timestamp_header = \"X Time\"\nhmac_tolerance_seconds = 0\n[sources.b]\nopen = true\nbearer_token = \"s\"\n",
        &[],
        expect![[r#"
            the configuration has 4 errors:
              fist.toml:3: sources.a.hmac_tolerance_seconds = 0: must be a whole number from 1 to 86400
              fist.toml:2: sources.a.hmac_timestamp_header = "X Time": must be a header's name: letters, digits, - and _
              fist.toml:2: sources.a.hmac_timestamp_header = "X Time": needs hmac_secret or hmac_secret_file, with which the time is signed
              fist.toml:5: sources.b.open = true: contradicts the token or secret that this source has: keep one of the two
        "#]],
    );
}

#[test]
fn the_defaults_are_the_documented_ones() {
    let config = Config::default();
    assert_eq!(config.nats.url, "nats://127.0.0.1:4222");
    assert_eq!(config.nats.log_bytes_max, 8 * 1024 * 1024 * 1024);
    assert_eq!(config.http.listen, "127.0.0.1:8080");
    assert_eq!(config.health.listen, None);
    assert!(config.http.tokens.is_empty() && config.sources.is_empty());
    assert_eq!(
        (
            config.cli.output_inline_bytes_max,
            config.cli.output_spill_bytes_max
        ),
        (65_536, 16 * 1024 * 1024)
    );
    assert_eq!(config.tools.prometheus_url, "http://prometheus:9090");
    assert_eq!(
        config.llm.model_aliases["claude-3-5-sonnet"],
        config.llm.default_model_anthropic
    );
    assert_eq!(config.fix.mode, FixMode::Auto);
}

#[test]
fn every_key_is_documented_and_read_and_no_other() {
    let text = "[sources.any.mapping]\n[llm.prices.any]\ninput = 1\noutput = 1\n\
                [tools.mcp.any]\ncommand = \"any\"\ntools = [\"any\"]";
    let file = FileLayer::parse("fist.toml", text).unwrap();
    let (_, layers) = Config::read(file, std::iter::empty());
    assert_eq!(layers.problems, []);
    let (sections, keys) = keys();
    let documented: Vec<String> = keys
        .iter()
        .map(|key| format!("{}.{}", key.section, key.name))
        .collect();
    let mut sorted = documented.clone();
    sorted.sort();
    assert_eq!(
        sorted,
        layers.asked.into_iter().collect::<Vec<_>>(),
        "config.default.toml against the code"
    );
    for key in &keys {
        assert!(
            key.comment.ends_with('.'),
            "{}.{} needs a comment that is a sentence",
            key.section,
            key.name
        );
    }
    for (section, comment) in &sections {
        assert!(
            comment.ends_with('.'),
            "[{section}] needs a comment that is a sentence"
        );
    }
}

#[test]
fn the_keys_listed_are_those_that_toml_sees() {
    fn count(table: &toml::Table, prefix: &str, found: &mut Vec<String>) {
        for (key, value) in table {
            let path = format!("{prefix}{key}");
            let is_section =
                DEFAULTS.contains(&format!("\n[{}]\n", path.replace('<', "\"<").replace('>', ">\"")));
            match value {
                toml::Value::Table(inner)
                    if is_section || ["sources", "llm.prices", "tools.mcp"].contains(&path.as_str()) =>
                {
                    count(inner, &format!("{path}."), found);
                }
                _ => found.push(path),
            }
        }
    }
    let mut found = Vec::new();
    count(&DEFAULTS.parse().unwrap(), "", &mut found);
    let mut listed: Vec<String> = keys()
        .1
        .iter()
        .map(|key| format!("{}.{}", key.section, key.name))
        .collect();
    found.sort();
    listed.sort();
    assert_eq!(listed, found);
}

#[test]
fn no_two_keys_share_a_variable() {
    let mut by_variable = BTreeMap::new();
    for key in keys().1 {
        let Some(variable) = key.variable else { continue };
        let full = format!("{}.{}", key.section, key.name);
        assert!(
            !is_foreign(&variable, ""),
            "{variable} would be ignored as somebody else's"
        );
        if let Some(other) = by_variable.insert(variable.clone(), full.clone()) {
            panic!("{full} and {other} are both {variable}");
        }
    }
    assert_eq!(
        by_variable["FIST_NATS_LOG_MAX_AGE_HOURS"],
        "nats.log_max_age_hours"
    );
}

#[test]
fn the_file_wins_over_defaults_and_variables_over_both() {
    let file = "[nats]\nreplicas = 3\nlog_max_age_hours = 200\n";
    let config = read(file, &[("FIST_NATS_REPLICAS", "5"), ("PATH", "/bin")]).unwrap();
    assert_eq!((config.nats.replicas, config.nats.log_max_age_hours), (5, 200));
    assert_eq!(config.nats.connect_timeout_ms, 5000);
}

#[test]
fn variables_of_each_type() {
    let config = read(
        "[llm]\nmodel_aliases = { fast = \"claude-haiku-4-5\" }\n[tools]\nkubeconfig = \"/etc/kube\"",
        &[
            ("FIST_NATS_URL", "nats://a:4222,nats://b:4222"),
            ("FIST_AGENT_CONCURRENCY", " 7 "),
            ("FIST_CLI_EXECUTOR", "kubernetes"),
            ("FIST_TOOLS_CURL_ALLOWED_HOSTS", "a.example.com, *.b.example.com,"),
            ("FIST_TOOLS_REDACT", r#"["a,b", "c"]"#),
            ("FIST_TOOLS_KUBECONFIG", ""),
            ("FIST_HTTP_TOKENS", "one,two"),
            (
                "FIST_DATABASE_URL",
                "postgres://fist:pw@db:5432/fist?sslmode=require",
            ),
            ("FIST_HEALTH_LISTEN", "0.0.0.0:9100"),
        ],
    )
    .unwrap();
    assert_eq!(config.nats.url, "nats://a:4222,nats://b:4222");
    assert_eq!(config.agent.concurrency, 7);
    assert_eq!(config.cli.executor, Executor::Kubernetes);
    assert_eq!(
        config.tools.curl_allowed_hosts,
        ["a.example.com", "*.b.example.com"]
    );
    assert_eq!(config.tools.redact, ["a,b", "c"]);
    assert_eq!(
        config.tools.kubeconfig, None,
        "an empty variable unsets what the file set"
    );
    assert_eq!(roles(&config), [("one", Role::Admin), ("two", Role::Admin)]);
    assert_eq!(config.database.url_shown(), "postgres://db:5432/fist");
    assert_eq!(config.health.listen.as_deref(), Some("0.0.0.0:9100"));
    assert_eq!(config.llm.model_aliases["fast"], "claude-haiku-4-5");
    assert!(
        config.llm.model_aliases.contains_key("claude-3-5-sonnet"),
        "the defaults stay"
    );
    let config = read(
        "",
        &[
            ("FIST_LLM_MODEL_ALIASES", "fast=x, slow=y"),
            ("FIST_HTTP_TOKENS", ""),
        ],
    )
    .unwrap();
    assert_eq!(
        (
            &*config.llm.model_aliases["fast"],
            &*config.llm.model_aliases["slow"]
        ),
        ("x", "y")
    );
    assert!(config.http.tokens.is_empty());
}

#[test]
fn large_bodies_outlive_whatever_may_name_them() {
    let hours = |file: &str| read(file, &[]).map(|config| config.nats.blobs_max_age_hours());
    assert_eq!(hours("").unwrap(), 528);
    assert_eq!(hours("[nats]\nlog_max_age_hours = 720\n").unwrap(), 1632);
    assert_eq!(hours("[nats]\nblobs_max_age_hours = 2160\n").unwrap(), 2160);
    let refused = hours("[nats]\nlog_max_age_hours = 720\nblobs_max_age_hours = 1631\n");
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("fist.toml:3: nats.blobs_max_age_hours") && refused.contains("at least 1632"),
        "{refused}"
    );
}

#[test]
fn all_errors_come_at_once_each_with_its_place() {
    check(
        r#"
[nats]
replica = 3
replicas = 9
log_max_age_hours = 24

[cli]
executor = "docker"
default_image = ""

[nat]
url = "x"
"#,
        &[
            ("FIST_AGENT_CONCURENCY", "4"),
            ("FIST_HTTP_BODY_BYTES_MAX", "4MB"),
            ("FIST_LLM_MODEL_ALIASES", "fast"),
            ("FIST_WHATEVER_THIS_IS", "1"),
        ],
        expect![[r#"
            the configuration has 10 errors:
              fist.toml:11: nat: unknown section; did you mean nats?
              fist.toml:3: nats.replica: unknown key; did you mean nats.replicas?
              FIST_AGENT_CONCURENCY: unknown variable; did you mean FIST_AGENT_CONCURRENCY?
              FIST_WHATEVER_THIS_IS: unknown variable; docs/configuration.md lists all
              fist.toml:4: nats.replicas = 9: must be a whole number from 1 to 5
              fist.toml:5: nats.log_max_age_hours = 24: must be a whole number from 96 to 87600
              FIST_HTTP_BODY_BYTES_MAX = "4MB": must be a whole number from 1024 to 67108864
              fist.toml:8: cli.executor = "docker": must be local or kubernetes
              fist.toml:9: cli.default_image = "": must be a text that is not empty
              FIST_LLM_MODEL_ALIASES = "fast": must be a table of texts, such as { a = "b" }
        "#]],
    );
}

#[test]
fn wrong_types_name_what_is_wanted() {
    check(
        r#"
top = 1
nats = 5
[http]
listen = 8080
tokens = "abc"
in_flight_max = "many"
[cli]
concurrency = 1.5
work_dir = true
[tools]
redact = ["(", ""]
curl_allowed_networks = ["10.0.0.0"]
prometheus_url = "prometheus:9090"
loki_url = "loki"
loki_tenant = "team a"
"#,
        &[],
        expect![[r#"
            the configuration has 12 errors:
              fist.toml:2: top: unknown key outside any section; docs/configuration.md lists all
              fist.toml:3: nats = 5: must be a section, written [nats]
              fist.toml:6: http.tokens = (hidden): must be a list of texts that are not empty
              fist.toml:5: http.listen = 8080: must be HOST:PORT, such as 0.0.0.0:8080
              fist.toml:7: http.in_flight_max = "many": must be a whole number from 1 to 100000
              fist.toml:9: cli.concurrency = 1.5: must be a whole number from 1 to 1024
              fist.toml:10: cli.work_dir = true: must be a text, or empty
              fist.toml:12: tools.redact = ["(", ""]: must be a list of texts that are not empty, such as ["a", "b"]
              fist.toml:14: tools.prometheus_url = "prometheus:9090": must be an address that begins with http:// or https://
              fist.toml:15: tools.loki_url = "loki": must be an address that begins with http:// or https://
              fist.toml:16: tools.loki_tenant = "team a": must be a tenant's name, or several joined by `|`: letters, digits and !-_.*'() without blanks
              fist.toml:13: tools.curl_allowed_networks = ["10.0.0.0"]: must be networks in CIDR notation, such as 10.0.0.0/8 or fd00::/8
        "#]],
    );
    check(
        "[tools]\nredact = [\"(\"]\ncurl_allowed_networks = [\"10.0.0.0/40\"]\n",
        &[("FIST_HTTP_LISTEN", "8080"), ("FIST_HEALTH_LISTEN", ":70000")],
        expect![[r#"
            the configuration has 4 errors:
              FIST_HTTP_LISTEN = "8080": must be HOST:PORT, such as 0.0.0.0:8080
              FIST_HEALTH_LISTEN = ":70000": must be HOST:PORT, such as 0.0.0.0:8080
              fist.toml:3: tools.curl_allowed_networks = ["10.0.0.0/40"]: must be networks in CIDR notation, such as 10.0.0.0/8 or fd00::/8
              fist.toml:2: tools.redact = ["("]: "(" is not a regular expression: unclosed group
        "#]],
    );
}

#[test]
fn what_contradicts_itself_is_refused() {
    check(
        r#"
[nats]
url = "nats://me:hunter2@nats:4222"
user = "me"
[cli]
output_inline_bytes_max = 65536
output_spill_bytes_max = 2048
[llm]
default_provider = "scripted"
allowed_endpoints = ["llm.internal"]
[database]
url = "mysql://root:hunter2@db/fist"
[log]
level = "loud"
[tools]
kubeconfig = "/k"
kubectl_service_account = "investigator"
"#,
        &[("FIST_NATS_CREDENTIALS_FILE", "/etc/nats.creds")],
        expect![[r#"
            the configuration has 9 errors:
              fist.toml:3: nats.url = (hidden): must not hold a password, since addresses are logged; use nats.user and nats.password
              fist.toml:4: nats.user = "me": needs nats.password, and the password a user: set both or neither
              FIST_NATS_CREDENTIALS_FILE = "/etc/nats.creds": takes the place of nats.user and nats.password: set one of the two
              fist.toml:7: cli.output_spill_bytes_max = 2048: must not be less than cli.output_inline_bytes_max
              fist.toml:9: llm.default_provider = "scripted": needs llm.scripted_dir, the directory of its files
              fist.toml:10: llm.allowed_endpoints = ["llm.internal"]: must be addresses that begin with https:// or http://
              fist.toml:17: tools.kubectl_service_account = "investigator": excludes tools.kubeconfig: kubectl runs as this account, or by that file
              fist.toml:12: database.url = (hidden): must begin with sqlite:// or postgres://
              fist.toml:14: log.level = "loud": must be error, warn, info, debug or trace, or a list such as info,scheduler=debug
        "#]],
    );
}

#[test]
fn secrets_are_in_no_error_and_no_debug_print() {
    let file = "[http]\ntokens = [\"hunter2\", \"\"]\n[nats]\npassword = 5\n[sources.a]\nbearer_token = \"hunter2\"\nbearer_token_file = \"/x\"";
    let text = read(file, &[("FIST_DATABASE_URL", "mysql://hunter2")])
        .unwrap_err()
        .to_string();
    assert!(
        !text.contains("hunter2") && text.matches("(hidden)").count() == 4,
        "{text}"
    );
    let file = "[http]\ntokens = [\"hunter2\"]\n[nats]\nuser = \"me\"\npassword = \"hunter2\"\n[sources.a]\nhmac_secret = \"hunter2\"\n[database]\nurl = \"postgres://a:hunter2@b/c\"";
    let config = read(file, &[]).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
    assert_eq!(
        serde_json::to_string(&config.http.tokens[0].secret).unwrap(),
        "\"(hidden)\""
    );
}

#[test]
fn sources_have_defaults_secrets_from_files_and_paths() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "abc\n").unwrap();
    let file = format!(
        "[sources.grafana]\nbearer_token_file = {token:?}\n[sources.grafana.mapping]\nalerts = \"data.alerts\"\nseverity = \"\"\n\
         [sources.alertmanager]\nkind = \"alertmanager\"\nhmac_secret = \"s\"\nhmac_header = \"X-Sig\"\n"
    );
    let config = read(&file, &[]).unwrap();
    let grafana = &config.sources["grafana"];
    assert_eq!(grafana.kind, SourceKind::Generic);
    assert_eq!(grafana.bearer_token, Some(Secret::new("abc")));
    assert_eq!(grafana.mapping.alerts.as_deref(), Some("data.alerts"));
    assert_eq!(grafana.mapping.severity, None);
    assert_eq!(grafana.mapping.starts_at.as_deref(), Some("starts_at"));
    assert_eq!(config.sources["alertmanager"].kind, SourceKind::Alertmanager);
}

#[test]
fn a_secret_whose_file_is_missing_locks_the_door() {
    let file =
        "[http]\ntokens_file = \"/nonexistent/tokens\"\n[sources.a]\nbearer_token_file = \"/nonexistent/a\"";
    let config = read(file, &[]).unwrap();
    // Not open, and not opened by an empty or a guessed token.
    let unreadable = Secret::unreadable();
    assert!(unreadable.expose().len() == 32 && unreadable.expose() != "0".repeat(32));
    let token = Token {
        secret: unreadable.clone(),
        role: Role::Admin,
    };
    assert_eq!(config.http.tokens, [token]);
    assert_eq!(config.sources["a"].bearer_token, Some(unreadable));
    expect![[r#"
        the configuration has 2 errors:
          fist.toml:2: http.tokens_file = "/nonexistent/tokens": cannot be opened: No such file or directory (os error 2)
          fist.toml:4: sources.a.bearer_token_file = "/nonexistent/a": cannot be opened: No such file or directory (os error 2)
    "#]].assert_eq(&format!("{}\n", config.require_secrets().unwrap_err()));
    Config::default().require_secrets().unwrap();
}

#[test]
fn mistakes_in_sources_are_named() {
    check(
        r#"
[sources.grafana]
kind = "graphana"
bearer_token = "a"
bearer_token_file = "b"
hmac_header = "X Sig"
hmac_secrets = "x"
[sources.grafana.mapping]
alert = "data"
name = "labels..name"
[sources."a b"]
kind = "generic"
[sources]
flat = 1
"#,
        &[("FIST_SOURCES_GRAFANA_KIND", "generic")],
        expect![[r#"
            the configuration has 9 errors:
              FIST_SOURCES_GRAFANA_KIND: sources are configured in the file; put their secrets in files that bearer_token_file and hmac_secret_file name
              fist.toml:11: sources.a b: a source's name is letters, digits, - and _, since it stands in addresses and subjects
              fist.toml:14: sources.flat: must be a section, written [sources.flat]
              fist.toml:9: sources.grafana.mapping.alert: unknown key; did you mean sources.grafana.mapping.alerts?
              fist.toml:10: sources.grafana.mapping.name = "labels..name": must be names separated by single dots, such as data.alerts
              fist.toml:7: sources.grafana.hmac_secrets: unknown key; did you mean sources.grafana.hmac_secret?
              fist.toml:3: sources.grafana.kind = "graphana": must be generic or alertmanager
              fist.toml:4: sources.grafana.bearer_token = (hidden): is set together with bearer_token_file; keep one of the two
              fist.toml:6: sources.grafana.hmac_header = "X Sig": must be a header's name: letters, digits, - and _
        "#]],
    );
}

#[test]
fn a_file_that_is_no_toml_or_is_not_there() {
    check(
        "[nats\nurl = 1",
        &[],
        expect![[r#"
            the configuration has an error:
              fist.toml:1: not valid TOML: unclosed table, expected `]`
        "#]],
    );
    let missing = Config::load(Some(Path::new("/nonexistent/fist.toml")), std::iter::empty());
    expect![[r#"
        the configuration has an error:
          --config = /nonexistent/fist.toml: cannot be opened: No such file or directory (os error 2)
    "#]]
    .assert_eq(&format!("{}\n", missing.unwrap_err()));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fist.toml");
    std::fs::write(&path, "[nats]\nreplicas = 3").unwrap();
    assert_eq!(
        Config::load(Some(&path), std::iter::empty())
            .unwrap()
            .nats
            .replicas,
        3
    );
    std::fs::write(&path, vec![b'#'; FILE_BYTES_MAX as usize + 1]).unwrap();
    let text = Config::load(Some(&path), std::iter::empty())
        .unwrap_err()
        .to_string();
    assert!(text.contains("is larger than 1048576 bytes"), "{text}");
}

#[test]
fn a_syntax_error_does_not_quote_the_line() {
    let text = read("[nats]\npassword = \"hunter2\n", &[])
        .unwrap_err()
        .to_string();
    assert!(
        !text.contains("hunter2") && text.contains("fist.toml:2"),
        "{text}"
    );
}

#[test]
fn variables_of_others_are_left_alone() {
    read(
        "",
        &[
            ("FIST_SERVER", "http://elsewhere"),
            ("FIST_CONFIG", "/etc/fist.toml"),
            ("FIST_SIM_SEEDS", "1000"),
            ("FIST_INGEST_SERVICE_HOST", "10.0.0.1"),
            ("FIST_INGEST_SERVICE_PORT_HTTP", "8080"),
            ("FIST_INGEST_PORT", "tcp://10.0.0.1:8080"),
            ("FIST_INGEST_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ],
    )
    .unwrap();
}

#[test]
fn the_shipped_file_is_itself_a_valid_configuration() {
    // As an operator would begin: copy it, and give the source a name.
    // And as an MCP server must: say what it runs and which tools may be used.
    let copied = DEFAULTS
        .replace("\"<name>\"", "grafana")
        .replace("\ncommand = \"\"\n", "\ncommand = \"mcp-grafana\"\n")
        .replace("\ntools = []\n", "\ntools = [\"query\"]\n");
    let config = read(&copied, &[]).unwrap();
    assert!(config.sources.contains_key("grafana") && config.tools.mcp.contains_key("grafana"));
    assert_eq!(
        Config {
            sources: BTreeMap::new(),
            tools: Tools {
                mcp: BTreeMap::new(),
                ..config.tools
            },
            ..config
        },
        Config::default()
    );
}

#[test]
fn mcp_servers_have_defaults_and_secrets_that_are_read_when_they_are_needed() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    let file = format!(
        "[tools.mcp.tickets]\nurl = \"https://mcp.example.com/mcp\"\nbearer_token_file = {token:?}\n\
         tools = [\"search.issues\"]\ntimeout_ms = 5000\n\
         [tools.mcp.git]\ncommand = \"git-mcp\"\nargs = [\"--ro\"]\nenv = {{ LEVEL = \"hunter2\" }}\n\
         env_files = {{ TOKEN = {token:?} }}\ntools = [\"log\"]\n"
    );
    // Not there yet, which is no mistake: this process may be another service.
    let config = read(&file, &[]).unwrap();
    config.require_secrets().unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
    let (tickets, git) = (&config.tools.mcp["tickets"], &config.tools.mcp["git"]);
    assert_eq!(
        (
            tickets.connect_timeout_ms,
            tickets.timeout_ms,
            tickets.output_bytes_max
        ),
        (20_000, 5000, 32_768)
    );
    assert_eq!(
        McpServer::offered_name("tickets", &tickets.tools[0]),
        "mcp_tickets_search_issues"
    );
    let error = git.secrets().unwrap_err();
    assert!(
        error.starts_with("env_files.TOKEN = ") && error.contains("cannot be opened"),
        "{error}"
    );
    std::fs::write(&token, "one\n").unwrap();
    assert_eq!(tickets.secrets().unwrap().bearer_token, Some(Secret::new("one")));
    std::fs::write(&token, "two\n").unwrap();
    assert_eq!(git.secrets().unwrap().env["TOKEN"], Secret::new("two"));
}

#[test]
fn mistakes_in_mcp_servers_are_named() {
    check(
        r#"
[tools.mcp.both]
command = "server"
url = "https://me:hunter2@example.com"
tools = ["a"]
[tools.mcp.neither]
bearer_token = "hunter2"
bearer_token_file = "/token"
[tools.mcp.a]
command = "server"
bearer_token = "hunter2"
env = { "A B" = "hunter2", C = "hunter2" }
env_files = { C = "/c" }
tools = ["b_c", "b.c", "a_name_that_nobody_would_ever_think_of_giving_to_a_tool_of_his_own"]
[tools.mcp.a_b]
url = "mcp.example.com"
args = ["--x"]
tools = ["c"]
tool = ["c"]
[tools.mcp."a b"]
[tools.mcp]
flat = 1
"#,
        &[("FIST_TOOLS_MCP_A_URL", "x")],
        expect![[r#"
            the configuration has 17 errors:
              FIST_TOOLS_MCP_A_URL: MCP servers are configured in the file; put their secrets in files that bearer_token_file and env_files name
              fist.toml:20: tools.mcp.a b: a server's name is 1 to 32 letters, digits, - and _, since it is part of its tools' names
              fist.toml:22: tools.mcp.flat: must be a section, written [tools.mcp.flat]
              fist.toml:11: tools.mcp.a.bearer_token = (hidden): belongs to url, which is not set; remove it
              fist.toml:12: tools.mcp.a.env = (hidden): must, as env_files, name variables by letters, digits and _, with no digit first
              fist.toml:12: tools.mcp.a.env = (hidden): has C, as env_files has; keep one of the two
              fist.toml:14: tools.mcp.a.tools = ["b_c", "b.c", "a_name_that_nobody_would_ever_think_of_giving_to_a_tool_of_his_o…: "b.c" and "b_c" of tools.mcp.a would have the same name for models, mcp_a_b_c; leave one out, or name a server otherwise
              fist.toml:14: tools.mcp.a.tools = ["b_c", "b.c", "a_name_that_nobody_would_ever_think_of_giving_to_a_tool_of_his_o…: "a_name_that_nobody_would_ever_think_of_giving_to_a_tool_of_his_own" is too long: models would call it mcp_a_a_name_that_nobody_would_ever_think_of_giving_to_a_tool_of_his_own, and the vendors accept 64 characters, which leaves 58 for it; give the server a shorter name
              fist.toml:19: tools.mcp.a_b.tool: unknown key; did you mean tools.mcp.a_b.tools?
              fist.toml:17: tools.mcp.a_b.args = (hidden): belongs to command, which is not set; remove it
              fist.toml:16: tools.mcp.a_b.url = (hidden): must be an address that begins with http:// or https://
              fist.toml:18: tools.mcp.a_b.tools = ["c"]: "c" and "b.c" of tools.mcp.a would have the same name for models, mcp_a_b_c; leave one out, or name a server otherwise
              fist.toml:4: tools.mcp.both.url = (hidden): is set together with command; keep one of the two
              fist.toml:4: tools.mcp.both.url = (hidden): must not hold a password; use bearer_token_file
              tools.mcp.neither.command = "": is not set, nor is url; set the one by which the server is reached
              fist.toml:7: tools.mcp.neither.bearer_token = (hidden): is set together with bearer_token_file; keep one of the two
              tools.mcp.neither.tools = []: must name 1 to 64 tools of the server that only read
        "#]],
    );
}

#[test]
fn keys_of_providers_come_from_the_environment_or_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let (key, empty) = (dir.path().join("key"), dir.path().join("empty"));
    std::fs::write(&key, "from-file\n").unwrap();
    std::fs::write(&empty, "\n").unwrap();
    let mut llm = Config::default().llm;
    (llm.anthropic_api_key_file, llm.openai_api_key_file) = (Some(key.clone()), Some(key));
    let env = [
        ("OPENAI_API_KEY", "from-env"),
        ("OPENAI_BASE_URL", "http://ollama"),
        ("ANTHROPIC_API_KEY", ""),
    ];
    let env = || {
        env.iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
    };
    let secrets = Secrets::read(&llm, env()).unwrap();
    assert_eq!(secrets.anthropic_api_key, Some(Secret::new("from-file")));
    assert_eq!(secrets.openai_api_key, Some(Secret::new("from-env")));
    assert_eq!(secrets.openai_base_url.as_deref(), Some("http://ollama"));
    assert!(!format!("{secrets:?}").contains("from-"));
    llm.anthropic_api_key_file = Some(empty.clone());
    assert_eq!(
        Secrets::read(&llm, env()).unwrap_err().problems[0].to_string(),
        format!("llm.anthropic_api_key_file = {empty:?}: is empty")
    );
}

#[test]
fn budgets_and_prices_are_read() {
    let file = r#"
[agent]
budget_tokens_per_day = 2_000_000
namespace_budget_tokens_per_day = { sandbox = 50_000, free = 0 }
budget_exhausted = "wait"
[llm.prices."claude-sonnet-4-5"]
input = 3
output = 15.0
cached = 0.3
[llm.prices.own]
input = 0
output = 0.25
"#;
    let config = read(file, &[]).unwrap();
    let budgets = ["any", "sandbox", "free"].map(|namespace| config.agent.budget_of(namespace));
    assert_eq!(budgets, [Some(2_000_000), Some(50_000), None]);
    assert_eq!(config.agent.budget_exhausted, BudgetExhausted::Wait);
    assert!(config.agent.has_budgets() && !Config::default().agent.has_budgets());
    // 800 read anew, 200 from the cache, 100 written: 2400 + 60 + 1500 millionths of a dollar.
    let cost = |model: &str| config.prices[model].cost_nano_usd(1000, 200, 100);
    assert_eq!((cost("claude-sonnet-4-5"), cost("own")), (3_960_000, 25_000));
    let file = "[agent]\nnamespace_budget_tokens_per_day = { a = 20_000 }";
    let variable = ("FIST_AGENT_NAMESPACE_BUDGET_TOKENS_PER_DAY", "b=30000,c=0");
    let config = read(file, &[variable]).unwrap();
    let budgets = ["a", "b", "c"].map(|namespace| config.agent.budget_of(namespace));
    assert_eq!(budgets, [None, Some(30_000), None]);
}

#[test]
fn mistakes_in_budgets_and_prices_are_named() {
    check(
        r#"
[agent]
budget_tokens_per_day = 100
namespace_budget_tokens_per_day = { Prod = 50_000, b = 8192 }
budget_exhausted = "stop"
[llm.prices]
c = 3
[llm.prices.a]
input = "3"
output = -1
write = 5
[llm.prices.b]
input = 3
"#,
        &[("FIST_LLM_PRICES_A", "1")],
        expect![[r#"
            the configuration has 10 errors:
              FIST_LLM_PRICES_A: prices are configured in the file
              fist.toml:5: agent.budget_exhausted = "stop": must be inconclusive or wait
              fist.toml:3: agent.budget_tokens_per_day = 100: must be more than agent.turn_output_tokens_max, or 0 for no budget
              fist.toml:4: agent.namespace_budget_tokens_per_day = { Prod = 50000, b = 8192 }: must be more than agent.turn_output_tokens_max, or 0 for no budget
              fist.toml:4: agent.namespace_budget_tokens_per_day = { Prod = 50000, b = 8192 }: must name namespaces: `Prod` is not a valid namespace: use 1 to 63 lower-case letters, digits and `-`, beginning and ending with a letter or digit
              fist.toml:11: llm.prices.a.write: unknown key; docs/configuration.md lists all
              fist.toml:9: llm.prices.a.input = "3": must be US dollars for a million tokens, from 0 to 100000, such as 3 or 0.25
              fist.toml:10: llm.prices.a.output = -1: must be US dollars for a million tokens, from 0 to 100000, such as 3 or 0.25
              llm.prices.b.output = "": must be set too: US dollars for a million tokens
              fist.toml:7: llm.prices.c: must be a section, written [llm.prices."c"]
        "#]],
    );
}
