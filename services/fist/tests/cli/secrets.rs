//! What must be seen nowhere: passwords, tokens and signatures, whatever is logged and whatever goes wrong.

use std::path::PathBuf;

use bus::{Sizes, testing::TestNats, topology};
use reqwest::{Client, RequestBuilder};
use store_writer::testing::TestPostgres;

use crate::harness::{Up, eventually, workflow};

/// Every secret of a configuration, each easy to find.
const SECRETS: [&str; 9] = [
    "secret-of-nats",
    "secret-of-postgres",
    "secret-admin-token",
    "secret-run-token",
    "secret-read-token",
    "secret-bearer-of-source",
    "secret-hmac-of-source",
    "secret-that-was-guessed",
    "secret-model-key",
];

const CONFIG: &str = r#"
[http]
tokens = ["secret-admin-token"]
run_tokens = ["secret-run-token"]
read_tokens_file = "READERS"
[sources.tokened]
bearer_token = "secret-bearer-of-source"
[sources.signed]
hmac_secret = "secret-hmac-of-source"
hmac_timestamp_header = "X-Time"
[nats]
user = "fist"
password = "secret-of-nats"
"#;

#[tokio::test]
async fn secrets_are_in_no_log_answer_or_message() {
    let Some(postgres) = TestPostgres::start() else {
        return;
    };
    service::install_crypto();
    let home = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| -> PathBuf {
        let path = home.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let server = file(
        "nats.conf",
        "jetstream { store_dir: $NATS_STORE_DIR }\nauthorization { users: [{ user: fist, password: \"secret-of-nats\" }] }\n",
    );
    let mut nats = TestNats::start_with(Some(server), Vec::new()).await;
    let credentials = ("fist".to_owned(), "secret-of-nats".to_owned());
    let connection = nats.connect_as(Some(credentials)).await;
    topology::init(&connection, &Sizes::small()).await.unwrap();
    let readers = file("readers", "secret-read-token\n");
    let config = file("fist.toml", &CONFIG.replace("READERS", readers.to_str().unwrap()));
    // The server trusts everybody, so that any password will do.
    let database = postgres
        .url("postgres")
        .replace("postgres://postgres@", "postgres://postgres:secret-of-postgres@");
    let mut up = Up::start_in(
        &home.path().join("up"),
        &[
            "--config",
            config.to_str().unwrap(),
            "--nats",
            &nats.url(),
            "--database",
            &database,
        ],
        &[
            ("FIST_LOG_LEVEL", "trace"),
            ("ANTHROPIC_API_KEY", "secret-model-key"),
        ],
    )
    .await;
    let mut seen = String::new();
    let client = Client::new();
    let url = |path: &str| format!("{}{path}", up.url);
    let post = |path: &str, body: &str| client.post(url(path)).body(body.to_owned());
    let said = async |request: RequestBuilder| -> (u16, String) {
        let answer = request.send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), format!("{:?}", answer.headers()));
        (status, headers + &answer.text().await.unwrap())
    };
    // Everybody at every door, with the right secret and with a wrong one.
    let once = workflow("once", "echo done");
    for (request, status) in [
        (
            client
                .get(url("/api/v1/executions"))
                .bearer_auth("secret-read-token"),
            200,
        ),
        (
            client
                .get(url("/api/v1/executions"))
                .bearer_auth("secret-that-was-guessed"),
            401,
        ),
        (
            post("/api/v1/executions", &once).bearer_auth("secret-run-token"),
            202,
        ),
        (
            post("/api/v1/executions", &once).bearer_auth("secret-read-token"),
            403,
        ),
        (
            post("/api/v1/workflows", &once).bearer_auth("secret-admin-token"),
            200,
        ),
        (
            post("/webhooks/tokened", r#"{"name": "A"}"#).bearer_auth("secret-bearer-of-source"),
            202,
        ),
        (
            post("/webhooks/tokened", r#"{"name": "A"}"#).bearer_auth("secret-that-was-guessed"),
            401,
        ),
        (
            post("/webhooks/signed", r#"{"name": "A"}"#)
                .header("X-Time", "1767225600")
                .header("X-Hub-Signature-256", "secret-that-was-guessed"),
            401,
        ),
        (client.get(url("/metrics")), 200),
        (client.get(url("/openapi.json")), 200),
    ] {
        let (found, text) = said(request).await;
        assert_eq!(found, status, "{text}");
        seen += &text;
    }
    let doctor = up
        .fist(&[
            "doctor",
            "--nats",
            &nats.url(),
            "--config",
            config.to_str().unwrap(),
        ])
        .env("FIST_TOKEN", "secret-admin-token")
        .env("FIST_DATABASE_URL", &database)
        .env("ANTHROPIC_API_KEY", "secret-model-key")
        .output()
        .await
        .unwrap();
    seen += &format!(
        "{}{}",
        String::from_utf8_lossy(&doctor.stdout),
        String::from_utf8_lossy(&doctor.stderr)
    );
    // And what is said of neighbours that are away.
    let ready = async || said(client.get(url("/readyz"))).await;
    postgres.stop();
    let read = || client.get(url("/api/v1/alerts")).bearer_auth("secret-read-token");
    seen += &eventually("the database is missed", async || {
        let (status, text) = said(read()).await;
        (status == 503).then_some(text)
    })
    .await;
    nats.kill9();
    seen += &eventually("the server is missed", async || {
        let (status, text) = ready().await;
        (status == 503 && text.contains("not connected to NATS")).then_some(text)
    })
    .await;
    seen += &up.log();
    assert!(
        seen.contains("\"level\":\"DEBUG\"") || seen.contains("\"level\":\"TRACE\""),
        "{seen}"
    );
    for secret in SECRETS {
        let at = seen.find(secret);
        assert_eq!(
            at,
            None,
            "{secret} stands in {}",
            &seen[at.unwrap().saturating_sub(300)..]
        );
    }
    // It cannot end in order, with nothing to hand back to.
    up.kill9(&[]).await;
}
