//! The wire to a real nats-server that has a certificate, and one that knows its users by their credentials files.
#![allow(clippy::unwrap_used)]

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bus::{
    ConnectError, Connection, Log as _, NatsLog, Settings, Sizes, StreamId, testing::TestNats, topology,
};
use data_encoding::BASE64URL_NOPAD;
use nkeys::KeyPair;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer};
use serde_json::{Value, json};

/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// An authority, what it signed, and another one that signed nothing, as files.
struct Certificates {
    directory: tempfile::TempDir,
}

impl Certificates {
    fn make() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| std::fs::write(directory.path().join(name), text).unwrap();
        for authority in ["own", "other"] {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let certificate = params.self_signed(&key).unwrap();
            write(&format!("{authority}-ca.pem"), certificate.pem());
            let issuer = Issuer::new(params, key);
            for (name, host) in [("here", "127.0.0.1"), ("elsewhere", "nats.example.com")] {
                let key = rcgen::KeyPair::generate().unwrap();
                let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
                let certificate = params.signed_by(&key, &issuer).unwrap();
                write(&format!("{authority}-{name}.pem"), certificate.pem());
                write(&format!("{authority}-{name}.key"), key.serialize_pem());
            }
        }
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A nats-server that takes encrypted connections only, with this certificate.
    async fn server(&self, name: &str) -> TestNats {
        let config = self.path(&format!("{name}.conf"));
        let text = format!(
            "jetstream {{ store_dir: $NATS_STORE_DIR }}\ntls {{ cert_file: {:?}, key_file: {:?} }}\n",
            self.path(&format!("{name}.pem")),
            self.path(&format!("{name}.key")),
        );
        std::fs::write(&config, text).unwrap();
        TestNats::start_with(Some(config), Vec::new()).await
    }
}

fn settings(url: String) -> Settings {
    service::install_crypto();
    Settings {
        url,
        client_name: "test".to_owned(),
        attempt_time: PATIENCE,
        deadline: PATIENCE,
        ..Settings::default()
    }
}

fn over_tls(server: &TestNats) -> String {
    server.url().replace("nats://", "tls://")
}

#[tokio::test]
async fn only_a_server_that_proves_itself_is_talked_to() {
    let certificates = Certificates::make();
    let server = certificates.server("own-here").await;
    let with = |authority: &str, url: String| Settings {
        tls_ca_file: Some(certificates.path(authority)),
        ..settings(url)
    };
    // By its scheme, and where the server asks for it.
    for url in [over_tls(&server), server.url()] {
        let connection = Connection::open(&with("own-ca.pem", url)).await.unwrap();
        topology::init(&connection, &Sizes::small()).await.unwrap();
        let log = NatsLog::open(&connection).await.unwrap();
        assert_eq!(log.stream_state(StreamId::Log).await.unwrap().messages, 0);
        connection.close().await;
    }
    // Another authority, none but the system's, and a server that is another one: at once, with the remedy.
    let elsewhere = certificates.server("own-elsewhere").await;
    for settings in [
        with("other-ca.pem", over_tls(&server)),
        with("other-ca.pem", server.url()),
        settings(over_tls(&server)),
        with("own-ca.pem", over_tls(&elsewhere)),
    ] {
        let error = Connection::open(&settings).await.unwrap_err();
        assert!(matches!(error, ConnectError::Untrusted { .. }), "{error:?}");
        let text = error.to_string();
        for part in ["invalid peer certificate", "nats.tls_ca_file", &settings.url] {
            assert!(text.contains(part), "{text}");
        }
    }
}

/// A token of NATS' own kind: claims, signed by who vouches for them.
fn signed(claims: &Value, issuer: &KeyPair) -> String {
    let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let text = format!(
        "{}.{}",
        part(&json!({ "typ": "JWT", "alg": "ed25519-nkey" })),
        part(claims)
    );
    let signature = issuer.sign(text.as_bytes()).unwrap();
    format!("{text}.{}", BASE64URL_NOPAD.encode(&signature))
}

fn claims(name: &str, subject: &KeyPair, issuer: &KeyPair, nats: Value) -> Value {
    json!({
        "jti": name, "iat": 1_767_225_600, "iss": issuer.public_key(), "name": name, "sub": subject.public_key(),
        "nats": nats,
    })
}

/// A user's credentials file.
fn write_credentials(path: &Path, token: &str, user: &KeyPair) {
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
        user.seed().unwrap()
    );
    std::fs::write(path, text).unwrap();
}

/// An operator, two accounts, and users of ours, as `nsc` makes them.
#[tokio::test]
async fn credentials_files_say_who_we_are() {
    let directory = tempfile::tempdir().unwrap();
    let (operator, system, account) = (
        KeyPair::new_operator(),
        KeyPair::new_account(),
        KeyPair::new_account(),
    );
    let unlimited = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
    });
    let mut with_streams = unlimited.clone();
    for limit in ["mem_storage", "disk_storage", "streams", "consumer"] {
        with_streams[limit] = json!(-1);
    }
    let of_account = |name: &str, pair: &KeyPair, limits: &Value| {
        let nats = json!({ "type": "account", "version": 2, "limits": limits });
        signed(&claims(name, pair, &operator, nats), &operator)
    };
    let nats = json!({ "type": "operator", "version": 2, "system_account": system.public_key() });
    let config = directory.path().join("server.conf");
    let text = format!(
        "server_name: test\njetstream {{ store_dir: $NATS_STORE_DIR }}\noperator: {}\nsystem_account: {}\n\
         resolver: MEMORY\nresolver_preload: {{\n  {}: {}\n  {}: {}\n}}\n",
        signed(&claims("operator", &operator, &operator, nats), &operator),
        system.public_key(),
        system.public_key(),
        of_account("SYS", &system, &unlimited),
        account.public_key(),
        of_account("FIST", &account, &with_streams),
    );
    std::fs::write(&config, text).unwrap();
    let server = TestNats::start_with(Some(config), Vec::new()).await;

    let credentials = |name: &str, issuer: &KeyPair, permissions: Value| {
        let user = KeyPair::new_user();
        let mut nats = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
        nats.as_object_mut()
            .unwrap()
            .extend(permissions.as_object().unwrap().clone());
        let path = directory.path().join(format!("{name}.creds"));
        write_credentials(&path, &signed(&claims(name, &user, issuer, nats), issuer), &user);
        Settings {
            credentials_file: Some(path),
            ..settings(server.url())
        }
    };
    let admin = Connection::open(&credentials("admin", &account, json!({})))
        .await
        .unwrap();
    topology::init(&admin, &Sizes::small()).await.unwrap();

    // With the permissions of the table, and inboxes of its own.
    let users = bus::permissions::users();
    let store = users.iter().find(|user| user.name == "store-writer").unwrap();
    let permissions = json!({
        "pub": { "allow": store.publish() }, "sub": { "allow": store.subscribe() }, "resp": { "max": 1, "ttl": 60_000_000_000_u64 },
    });
    let settings_of_store = Settings {
        inbox_prefix: Some(bus::permissions::inbox_prefix("store-writer")),
        ..credentials("store-writer", &account, permissions)
    };
    let connection = Connection::open(&settings_of_store).await.unwrap();
    topology::check(&connection).await.unwrap();
    let log = NatsLog::open(&connection).await.unwrap();
    assert_eq!(log.stream_state(StreamId::Log).await.unwrap().messages, 0);

    // One that another account signed, and none at all.
    let stranger = KeyPair::new_account();
    for settings in [
        credentials("stranger", &stranger, json!({})),
        settings(server.url()),
    ] {
        let error = Connection::open(&settings).await.unwrap_err();
        assert!(matches!(error, ConnectError::Unauthorized { .. }), "{error:?}");
        assert!(error.to_string().contains("nats.credentials_file"), "{error}");
    }
    let missing = Settings {
        credentials_file: Some(directory.path().join("missing.creds")),
        ..settings(server.url())
    };
    let error = Connection::open(&missing).await.unwrap_err().to_string();
    assert!(
        error.contains("missing.creds") && error.contains("cannot be read"),
        "{error}"
    );
}
