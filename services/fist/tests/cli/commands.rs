//! Commands that ask and answer at once: exit codes, formats, texts.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{Said, Up, eventually, fist, workflow};

const BAD: &str = "\
apiVersion: punching-fist.io/v1alpha1
kind: Workflow
metadata:
  name: bad
spec:
  stepz: []
  steps:
    - name: a
      type: cli
      timeout_minutes: 0
      command: echo {{ steps.b.output.stdout }}
    - name: a
      type: agent
      goal: look
      tools: [nonsense]
";

const DEFINITION: &str = "\
apiVersion: punching-fist.io/v1alpha1
kind: Workflow
metadata: {name: greet}
spec:
  trigger: {source: alertmanager, filters: {alertname: Greet}}
  steps:
  - {name: hello, type: cli, command: 'echo hello {{ source.data.who }}'}
";

#[tokio::test]
async fn an_invalid_manifest_has_one_text_everywhere_and_leaves_nothing() {
    let up = Up::start().await;
    let bad = up.file("bad.yaml", BAD);
    let (status, body) = up
        .api("POST", "/api/v1/executions", Some(("application/yaml", BAD)))
        .await;
    assert_eq!(status, 422);
    let problem: Value = serde_json::from_str(&body).unwrap();
    let text = problem["detail"].as_str().unwrap();
    for part in [
        "line 6: spec.stepz",
        "line 10: ",
        "line 11: ",
        "line 12: ",
        "line 15: ",
    ] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    for arguments in [
        ["validate", "-f", &bad],
        ["run", "-f", &bad],
        ["apply", "-f", &bad],
    ] {
        let said = up.says(&arguments).await;
        assert_eq!(
            (said.code, said.err.trim_end(), said.out.as_str()),
            (2, text, ""),
            "{arguments:?}"
        );
    }
    // Among valid ones, too, all or nothing is stored.
    let both = up.file("both.yaml", &format!("{DEFINITION}---\n{BAD}"));
    let said = up.says(&["apply", "-f", &both]).await;
    assert_eq!(said.code, 2);
    assert!(said.err.contains("line 14: spec.stepz"), "{said:?}");
    assert_eq!(up.prints(&["get", "workflows", "-A", "-o", "name"]).await, "");
    assert_eq!(up.prints(&["get", "executions", "-A", "-o", "name"]).await, "");
    up.stop().await;
}

#[tokio::test]
async fn without_a_server_the_exit_code_is_three() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let server = format!("http://127.0.0.1:{port}");
    for arguments in [
        vec!["get", "executions"],
        vec!["watch", "0190"],
        vec!["run", "x"],
        vec!["doctor"],
        vec!["logs", "0190"],
        vec!["cancel", "0190"],
    ] {
        let said: Said = fist()
            .args(&arguments)
            .args(["--server", &server])
            .output()
            .await
            .unwrap()
            .into();
        assert_eq!(said.code, 3, "{arguments:?}: {said:?}");
        let text = format!("{}{}", said.out, said.err);
        assert!(
            text.contains(&server) && text.contains("`fist up`"),
            "{arguments:?}: {text}"
        );
    }
}

#[tokio::test]
async fn misuse_is_two_and_says_what_to_write() {
    for (arguments, part) in [
        (vec!["get", "pods"], "executions (exec)"),
        (vec!["get", "0190f5b4"], "`fist get execution 0190f5b4`"),
        (vec!["alert", "send"], "--name"),
        (
            vec!["get", "wf", "--status", "failed"],
            "--status is for executions only",
        ),
        (vec!["get", "exec", "--status", "odd"], "pending, running"),
        (vec!["run"], "-f"),
        (vec!["run", "x", "--data", "y"], "KEY=VALUE"),
        (vec!["run", "-f", "/nowhere.yaml"], "cannot read /nowhere.yaml"),
        (
            vec!["get", "exec", "--server", "nonsense"],
            "http://127.0.0.1:8080",
        ),
        (
            vec!["up", "--dir", "/tmp/x", "--kubeconfig", "/nowhere"],
            "--kubeconfig /nowhere: No such file",
        ),
        (vec!["delete", "execution", "x"], "fist cancel"),
    ] {
        let said: Said = fist().args(&arguments).output().await.unwrap().into();
        assert_eq!((said.code, said.out.as_str()), (2, ""), "{arguments:?}: {said:?}");
        assert!(said.err.contains(part), "{arguments:?}: {}", said.err);
    }
}

#[tokio::test]
async fn definitions_come_and_go_in_kubectls_words() {
    let up = Up::start().await;
    let file = up.file("greet.yaml", DEFINITION);
    assert_eq!(
        up.prints(&["apply", "-f", &file]).await,
        "workflow/greet created\n"
    );
    assert_eq!(
        up.prints(&["apply", "-f", &file]).await,
        "workflow/greet unchanged\n"
    );
    let other = up.file("greet2.yaml", &DEFINITION.replace("echo hello", "echo good day"));
    assert_eq!(
        up.prints(&["apply", "-f", &other]).await,
        "workflow/greet configured\n"
    );
    let prod = up.prints(&["apply", "-n", "prod", "-f", &file]).await;
    assert_eq!(prod, "workflow/greet created\n");
    let listed = up.prints(&["get", "wf", "-A"]).await;
    assert!(listed.starts_with("NAMESPACE   NAME"), "{listed}");
    assert!(
        listed.contains("\ndefault     greet") && listed.contains("\nprod        greet"),
        "{listed}"
    );
    assert!(!up.prints(&["get", "wf"]).await.contains("NAMESPACE"));

    let said = up.says(&["run", "greet", "--data", "who=you; echo no"]).await;
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.out.contains("good day you; echo no"), "{said:?}");
    let said = up.says(&["run", "nobody"]).await;
    assert_eq!(said.code, 2);
    assert!(said.err.contains("fist get workflows"), "{said:?}");

    assert_eq!(
        up.prints(&["delete", "workflow", "greet"]).await,
        "workflow/greet deleted\n"
    );
    assert_eq!(
        up.prints(&["delete", "wf/greet", "-n", "prod"]).await,
        "workflow/greet deleted\n"
    );
    let said = up.says(&["delete", "wf", "greet"]).await;
    assert_eq!(said.code, 1, "{said:?}");
    assert_eq!(
        up.says(&["get", "wf"]).await.err,
        "No resources found in default namespace.\n"
    );
    up.stop().await;
}

#[tokio::test]
async fn alerts_are_sent_recorded_and_counted() {
    let up = Up::start().await;
    let file = up.file("greet.yaml", DEFINITION);
    up.prints(&["apply", "-f", &file]).await;
    let send = [
        "alert",
        "send",
        "--name",
        "Greet",
        "--label",
        "who=you",
        "--starts-at",
        "2026-01-02T03:04:05Z",
    ];
    let followed = up.says(&[&send[..], &["--follow"]].concat()).await;
    assert_eq!(followed.code, 0, "{followed:?}");
    assert!(
        followed.out.contains("Greet started") && followed.out.contains("hello you"),
        "{followed:?}"
    );
    let again = up.prints(&[&send[..], &["--wait"]].concat()).await;
    assert!(again.contains("Greet merged"), "{again}");
    let resolved = up.prints(&[&send[..], &["--resolved", "--wait"]].concat()).await;
    assert!(resolved.contains("Greet resolved"), "{resolved}");
    let audit = up.prints(&["get", "alerts", "--audit"]).await;
    assert!(
        audit.contains("messages received   3") && audit.contains("balanced"),
        "{audit}"
    );
    let merged = up.prints(&["get", "alerts", "--disposition", "merged"]).await;
    assert_eq!(merged.lines().count(), 2, "{merged}");
    let id = up.prints(&["get", "alerts", "-o", "name", "--limit", "1"]).await;
    let one = up.prints(&["get", id.trim(), "-o", "json"]).await;
    let one: Value = serde_json::from_str(&one).unwrap();
    assert_eq!(one["disposition"], "resolved");
    assert_eq!(
        up.prints(&["get", "executions", "-o", "name"])
            .await
            .lines()
            .count(),
        1
    );
    let said = up.says(&["purge", "7", "deadletter/8"]).await;
    assert_eq!((said.code, said.out.as_str()), (1, ""), "{said:?}");
    assert!(
        said.err.contains("there is no dead letter 7") && said.err.contains("there is no dead letter 8"),
        "{said:?}"
    );
    for which in [["purge", "--all"].as_slice(), &["purge", "--before", "1d"]] {
        let said = up.says(which).await;
        assert_eq!(
            (said.code, said.out.as_str(), said.err.as_str()),
            (0, "", "No resources found.\n"),
            "{said:?}"
        );
    }
    assert_eq!(up.says(&["purge", "--all", "7"]).await.code, 2);
    assert_eq!(up.says(&["purge", "--before", "soon"]).await.code, 2);
    // Each is tried, and each refusal told.
    let said = up.says(&["replay", "7", "deadletter/8"]).await;
    assert_eq!((said.code, said.out.as_str()), (1, ""), "{said:?}");
    assert!(
        said.err.contains("there is no dead letter 7") && said.err.contains("there is no dead letter 8"),
        "{said:?}"
    );
    up.stop().await;
}

#[tokio::test]
async fn json_is_what_the_api_answers() {
    let up = Up::start().await;
    let id = up
        .submits("ok.yaml", &workflow("ok", "echo out; echo err >&2"))
        .await;
    // Lists come from the database, which is a moment behind the log.
    eventually("the list shows the end", async || {
        let (_, body) = up.api("GET", "/api/v1/executions", None).await;
        body.contains("Succeeded").then_some(())
    })
    .await;
    for (arguments, path) in [
        (vec!["get", "executions", "-A"], "/api/v1/executions".to_owned()),
        (vec!["get", "execution", &id], format!("/api/v1/executions/{id}")),
        (
            vec!["get", "ex", "--status", "failed"],
            "/api/v1/executions?namespace=default&status=Failed".to_owned(),
        ),
        (vec!["get", "workflows", "-A"], "/api/v1/workflows".to_owned()),
        (vec!["get", "alerts"], "/api/v1/alerts".to_owned()),
        (
            vec!["get", "alerts", "--audit"],
            "/api/v1/alerts/audit".to_owned(),
        ),
        (vec!["get", "deadletters"], "/api/v1/deadletters".to_owned()),
        (vec!["get", "budget"], "/api/v1/budget".to_owned()),
        (
            vec!["get", "budget", "-n", "prod"],
            "/api/v1/budget?namespace=prod".to_owned(),
        ),
    ] {
        let (status, body) = up.api("GET", &path, None).await;
        assert_eq!(status, 200, "{path}: {body}");
        let printed = up.prints(&[&arguments[..], &["-o", "json"]].concat()).await;
        assert_eq!(printed.trim_end_matches('\n'), body, "{arguments:?}");
        let yaml = up.prints(&[&arguments[..], &["-o", "yaml"]].concat()).await;
        let from_yaml: Value = serde_saphyr::from_str(&yaml).unwrap();
        assert_eq!(
            from_yaml,
            serde_json::from_str::<Value>(&body).unwrap(),
            "{arguments:?}: {yaml}"
        );
    }
    // Nothing of a terminal's in a pipe, and a shortened id does.
    let table = up.prints(&["get", "execution", &id[..13], "-o", "wide"]).await;
    assert!(!table.contains('\u{1b}') && table.contains("DURATION"), "{table}");
    assert_eq!(up.prints(&["logs", &id[..13]]).await, "out\nerr\n");
    let said = up.says(&["get", "execution", "ffffffff"]).await;
    assert_eq!(said.code, 1, "{said:?}");
    up.stop().await;
}

#[tokio::test]
async fn budgets_are_shown_by_namespace() {
    let home = tempfile::tempdir().unwrap();
    let variable = (
        "FIST_AGENT_NAMESPACE_BUDGET_TOKENS_PER_DAY",
        "prod=50000,dev=20000",
    );
    let up = Up::start_in(&home.path().join("up"), &[], &[variable]).await;
    let words = |text: String| -> Vec<Vec<String>> {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
        text.lines().map(words).collect()
    };
    let all = words(up.prints(&["get", "budget"]).await);
    assert_eq!(
        all[0][..6],
        ["NAMESPACE", "LIMIT", "USED", "RESERVED", "LEFT", "COST"]
    );
    assert_eq!(all[1][..6], ["dev", "20000", "0", "0", "20000", "-"]);
    assert_eq!(all[2][..6], ["prod", "50000", "0", "0", "50000", "-"]);
    let one = words(up.prints(&["get", "budgets", "-n", "prod"]).await);
    assert_eq!((one.len(), &one[1][0]), (2, &all[2][0]));
    assert_eq!(
        up.prints(&["get", "budget", "-o", "name"]).await,
        "budget/dev\nbudget/prod\n"
    );
    let said = up.says(&["get", "budget/prod"]).await;
    assert!(said.code != 0 && said.err.contains("-n NAMESPACE"), "{said:?}");
    up.stop().await;
}

#[tokio::test]
async fn a_token_is_asked_for_and_brought() {
    let home = tempfile::tempdir().unwrap();
    let up = Up::start_in(
        &home.path().join("up"),
        &[],
        &[("FIST_HTTP_TOKENS", "secret-one")],
    )
    .await;
    let said = up.says(&["get", "executions"]).await;
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.err.contains("FIST_TOKEN"), "{said:?}");
    let with: Said = up
        .fist(&["get", "executions"])
        .env("FIST_TOKEN", "secret-one")
        .output()
        .await
        .unwrap()
        .into();
    assert_eq!(with.code, 0, "{with:?}");
    let file = up.file("token", "secret-one\n");
    assert_eq!(
        up.says(&["get", "executions", "--token-file", &file]).await.code,
        0
    );
    up.stop().await;
}

#[tokio::test]
async fn health_is_silent_where_it_is_well_and_says_why_where_it_is_not() {
    // The door that every service has.
    let health = service::Health::new();
    let listener = service::http::bind("health.listen", "127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let shutdown = tokio_util::sync::CancellationToken::new();
    let serving = tokio::spawn(service::http::serve(
        listener,
        service::health::router(health.clone(), service::Metrics::new()),
        service::health_limits(),
        shutdown.clone(),
    ));
    let says = async || -> Said {
        let mut command = fist();
        command.args(["health", "--server", &url]);
        command.output().await.unwrap().into()
    };

    health.set("nats", Err("connection refused".to_owned()));
    let ill = says().await;
    assert_eq!((ill.code, ill.out.as_str()), (1, ""));
    assert!(
        ill.err.contains("is not ready") && ill.err.contains("connection refused"),
        "{}",
        ill.err
    );
    health.set("nats", Ok(()));
    let well = says().await;
    assert_eq!((well.code, well.out.as_str(), well.err.as_str()), (0, "", ""));
    shutdown.cancel();
    serving.await.unwrap();
    assert_eq!(says().await.code, 3);
}

#[tokio::test]
async fn the_doctor_says_what_is_well() {
    let up = Up::start().await;
    // Until the first look, a check may not have reported.
    let said = eventually("all is well", async || {
        let said = up
            .fist(&["doctor", "--dir", up.dir.to_str().unwrap()])
            .env("ANTHROPIC_API_KEY", "sk-not-to-be-seen")
            .output()
            .await
            .unwrap();
        Some(Said::from(said)).filter(|said| said.code == 0)
    })
    .await;
    for part in [
        "ok    server",
        "ok    services",
        "ok    database",
        "ANTHROPIC_API_KEY is there",
        "with JetStream",
        "ok    streams",
    ] {
        assert!(said.out.contains(part), "{said:?}");
    }
    assert!(!said.out.contains("sk-not-to-be-seen"), "{said:?}");
    up.stop().await;
}

/// `0.0.0.0` is reached as this machine and is no loopback address, so the doctor takes it for another one.
#[tokio::test]
async fn the_doctor_warns_of_what_strangers_could_do() {
    let nats = bus::testing::TestNats::ready().await.0;
    let far = |url: &str| url.replace("127.0.0.1", "0.0.0.0");
    let home = tempfile::tempdir().unwrap();
    let config = |name: &str, text: &str| {
        let path = home.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let says = async |up: &Up, config: &str| {
        let said = fist()
            .args([
                "doctor",
                "--server",
                &far(&up.url),
                "--nats",
                &far(&nats.url()),
                "--config",
                config,
            ])
            .env("FIST_TOKEN", "t")
            .env("FIST_HTTP_LISTEN", "0.0.0.0:8080")
            .env("FIST_DATABASE_URL", "postgres://a:hidden@db.example/fist")
            .output()
            .await
            .unwrap();
        Said::from(said).out
    };
    let open = config("open.toml", "");
    let arguments = ["--nats", &nats.url(), "--http", "0.0.0.0:0", "--config", &open];
    let up = Up::start_in(&home.path().join("open"), &arguments, &[]).await;
    let said = says(&up, &open).await;
    for part in [
        &format!("warn  strangers        {} is open to everybody", far(&up.url)),
        &format!(
            "warn  strangers        {} takes alerts of the source alertmanager",
            far(&up.url)
        ),
        &format!(
            "warn  strangers        {} takes alerts of the source webhook",
            far(&up.url)
        ),
        "warn  strangers        http.listen 0.0.0.0:8080 is open",
        &format!(
            "warn  NATS             {}: the NATS server asks nobody for credentials",
            far(&nats.url())
        ),
        &format!(
            "warn  NATS             {}: the connection to NATS is not encrypted",
            far(&nats.url())
        ),
        "warn  database         the connection to PostgreSQL",
    ] {
        assert!(said.contains(part), "{part} is not in\n{said}");
    }
    assert!(
        up.log().contains("is open to everybody who reaches it"),
        "{}",
        up.log()
    );
    up.stop().await;

    let locked = config("locked.toml", "[http]\ntokens = [\"t\"]\n");
    let arguments = ["--nats", &nats.url(), "--http", "0.0.0.0:0", "--config", &locked];
    let up = Up::start_in(&home.path().join("locked"), &arguments, &[]).await;
    let said = says(&up, &locked).await;
    assert!(
        said.contains("ok    strangers        are let in nowhere"),
        "{said}"
    );
    assert!(!said.contains("warn  strangers"), "{said}");
    assert!(!up.log().contains("is open to everybody"), "{}", up.log());
    up.stop().await;
}

#[tokio::test]
async fn the_doctor_asks_the_loki_that_is_configured() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answering = tokio::spawn(async move {
        let mut requests = Vec::new();
        for status in ["200 OK", "401 Unauthorized"] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            requests.push(String::from_utf8(request).unwrap());
        }
        requests
    });
    let says = async |url: &str, tenant: &str| {
        let said = fist()
            .args(["doctor", "--server", "http://127.0.0.1:1"])
            .env("FIST_TOOLS_LOKI_URL", url)
            .env("FIST_TOOLS_LOKI_TENANT", tenant)
            .output()
            .await
            .unwrap();
        Said::from(said).out
    };
    let good = says(&url, "team-a").await;
    assert!(
        good.contains(&format!("ok    loki             {url} answers")),
        "{good}"
    );
    let refused = says(&url, "").await;
    assert!(
        refused.contains(&format!(
            "warn  loki             {url} answers 401 Unauthorized; the logs tool"
        )) && refused.contains("tools.loki_tenant"),
        "{refused}"
    );
    let away = says("http://127.0.0.1:1", "").await;
    assert!(
        away.contains("http://127.0.0.1:1 cannot be asked from here: "),
        "{away}"
    );
    let requests = answering.await.unwrap();
    assert!(
        requests[0].starts_with("GET /loki/api/v1/labels HTTP/1.1\r\n"),
        "{}",
        requests[0]
    );
    assert!(
        requests[0].contains("\r\nx-scope-orgid: team-a\r\n"),
        "{}",
        requests[0]
    );
    assert!(!requests[1].contains("x-scope-orgid"), "{}", requests[1]);
}

#[tokio::test]
async fn the_records_are_built_anew_from_the_log() {
    let up = Up::start().await;
    let id = up.submits("ok.yaml", &workflow("ok", "echo fine")).await;
    let before = up.ended(&id).await;
    let said = up
        .says(&["store", "rebuild", "--dir", up.dir.to_str().unwrap()])
        .await;
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(up.ended(&id).await, before);
    assert_ne!(before["outputs"], json!(null));
    // What is built anew is equal to the log, and what somebody changes by hand is not.
    let verify = ["store", "verify", "--dir", up.dir.to_str().unwrap()];
    let said = up.prints(&verify).await;
    assert!(said.contains("says what the log says: 1 executions"), "{said}");
    up.stop().await;
}
