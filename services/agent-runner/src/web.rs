//! HTTP clients, for models and for tools.
//!
//! Invariants: no redirect is followed by itself; an error's text holds no address, which can hold credentials; what
//! is asked without TLS needs no certificates on the machine.

use std::{error::Error, time::Duration};

use reqwest::{Client, ClientBuilder, Url, redirect::Policy};

/// A client for requests to `url`, changed by `configure`.
///
/// # Errors
/// When TLS cannot be set up, with the remedy.
pub fn client(
    url: &Url,
    connect_timeout: Duration,
    configure: impl FnOnce(ClientBuilder) -> ClientBuilder,
) -> Result<Client, String> {
    service::install_crypto();
    let mut builder = Client::builder()
        .connect_timeout(connect_timeout)
        .redirect(Policy::none())
        .user_agent(concat!("punching-fist/", env!("CARGO_PKG_VERSION")));
    if url.scheme() == "http" {
        builder = builder.tls_certs_only(std::iter::empty());
    }
    configure(builder).build().map_err(|error| {
        format!(
            "TLS cannot be set up: {}; the machine needs its CA certificates (package ca-certificates)",
            cause(&error)
        )
    })
}

/// The innermost reason of an error: the outer ones repeat that something went wrong, and where.
pub fn cause(error: &reqwest::Error) -> String {
    let mut innermost = None;
    let mut source = error.source();
    while let Some(inner) = source {
        innermost = Some(inner.to_string());
        source = inner.source();
    }
    innermost.unwrap_or_else(|| "no reason given".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn an_errors_text_is_its_reason_without_the_address() {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let url = Url::parse(&format!("http://user:hunter2@127.0.0.1:{port}/?token=x")).unwrap();
        let client = client(&url, Duration::from_secs(5), |builder| builder).unwrap();
        let text = cause(&client.get(url).send().await.unwrap_err());
        assert!(
            text.to_lowercase().contains("refused") && !text.contains("hunter2"),
            "{text}"
        );
    }
}
