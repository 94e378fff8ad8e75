//! The wire to a real PostgreSQL that has a certificate.
#![allow(clippy::unwrap_used)]

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use service::Config;
use store_writer::{open_store, testing::TestPostgres};

struct Authority {
    params: CertificateParams,
    key: KeyPair,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self {
            params,
            key: KeyPair::generate().unwrap(),
        }
    }

    fn pem(&self) -> String {
        self.params.self_signed(&self.key).unwrap().pem()
    }

    /// A certificate for this host, and its key.
    fn signs(&self, host: &str) -> (String, String) {
        let issuer = Issuer::from_params(&self.params, &self.key);
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        (
            params.signed_by(&key, &issuer).unwrap().pem(),
            key.serialize_pem(),
        )
    }
}

/// Whether the store can work with this address.
async fn works(url: &str) -> Result<(), String> {
    let env = [("FIST_DATABASE_URL".to_owned(), url.to_owned())];
    let config = Config::parse(None, env.into_iter()).unwrap();
    let store = open_store(&config).unwrap();
    store.migrate().await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn only_a_database_that_proves_itself_is_talked_to() {
    service::install_crypto();
    let Some(server) = TestPostgres::start() else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let (own, other) = (Authority::new(), Authority::new());
    let file = |name: &str, authority: &Authority| {
        let path = directory.path().join(name);
        std::fs::write(&path, authority.pem()).unwrap();
        path.display().to_string()
    };
    let (own_file, other_file) = (file("own.pem", &own), file("other.pem", &other));
    let plain = server.url("postgres");
    let verified = |authority: &str| format!("{plain}?sslmode=verify-full&sslrootcert={authority}");

    // Where the server cannot encrypt, nothing is sent to it.
    let refused = works(&verified(&own_file)).await.unwrap_err();
    assert!(refused.contains("TLS"), "{refused}");

    let (certificate, key) = own.signs("127.0.0.1");
    server.with_certificate(&certificate, &key);
    works(&verified(&own_file)).await.unwrap();
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(&verified(&own_file))
        .await
        .unwrap();
    let is_encrypted: bool = sqlx::query_scalar("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert!(is_encrypted);
    let refused = works(&verified(&other_file)).await.unwrap_err();
    assert!(refused.contains("invalid peer certificate"), "{refused}");

    // The right authority, and another server's certificate.
    let (certificate, key) = own.signs("db.example.com");
    server.with_certificate(&certificate, &key);
    let refused = works(&verified(&own_file)).await.unwrap_err();
    assert!(refused.contains("invalid peer certificate"), "{refused}");
}
