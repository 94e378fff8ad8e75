//! The HTTP door: the table of routes, what happens to every request before and after its handler, and the
//! handlers, one file per kind of thing.
//!
//! Invariants:
//! - A path is served if and only if it stands in [`routes::table`], from which the OpenAPI document is made.
//! - Every request is bounded: the size of its body, the time for its answer, the number worked on at once, and how
//!   many one client may make.

mod alerts;
mod auth;
mod budget;
mod deadletters;
mod door;
mod events;
mod executions;
mod limit;
mod logs;
mod openapi;
mod params;
pub mod problem;
pub mod routes;
mod schemas;
mod submit;
mod transcript;
mod webhooks;
mod workflows;

use std::{collections::BTreeMap, future::Future, pin::Pin, sync::Arc};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
};
use bus::{Blobs, Connection, NatsLog};
use protocol::{SpanContext, trace::TRACEPARENT};
use serde::Serialize;
use service::{Config, Health, Metrics, http::is_this_machine};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    admission::Admission, definitions::Registry, queries::Queries, sources::Sources, start::Starter,
};
use params::Params;
use problem::Problem;

pub use door::router;
pub use events::end_status;

/// Event streams and followed logs open at one time; each holds two subscriptions.
const STREAMS_MAX: usize = 256;

/// What handlers work with.
pub struct App {
    /// The configuration.
    pub config: Arc<Config>,
    /// Whether the process can work.
    pub health: Health,
    /// Where it counts.
    pub metrics: Metrics,
    /// The connection, for the server's limits.
    pub connection: Connection,
    /// The log.
    pub log: NatsLog,
    /// Large bodies.
    pub blobs: Blobs,
    /// Who may post alerts, and how they are read.
    pub sources: Sources,
    /// Definitions.
    pub registry: Registry,
    /// Starts executions.
    pub starter: Starter,
    /// Whether new work is admitted.
    pub admission: Admission,
    /// Asks store-writer.
    pub queries: Queries,
    /// Ends streams when the process does.
    pub shutdown: CancellationToken,
    tokens: auth::Tokens,
    rate_limit: Option<limit::RateLimit>,
    in_flight: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

/// The parts that a service brings to its door.
pub struct Parts {
    /// The service that this is the door of.
    pub service: service::Service,
    /// The connection.
    pub connection: Connection,
    /// The log.
    pub log: NatsLog,
    /// Large bodies.
    pub blobs: Blobs,
    /// Who may post alerts.
    pub sources: Sources,
    /// Definitions.
    pub registry: Registry,
    /// Starts executions.
    pub starter: Starter,
    /// Whether new work is admitted.
    pub admission: Admission,
}

impl App {
    /// A door for these parts.
    pub fn new(parts: Parts) -> Self {
        let config = parts.service.config.clone();
        Self {
            health: parts.service.health.clone(),
            metrics: parts.service.metrics.clone(),
            shutdown: parts.service.shutdown.clone(),
            admission: parts.admission,
            queries: Queries::new(parts.connection.clone()),
            tokens: auth::Tokens::new(&config.http.tokens),
            rate_limit: limit::RateLimit::new(
                config.http.requests_per_second_max,
                config.http.requests_burst_max,
                config.http.tokens.len(),
            ),
            in_flight: Arc::new(Semaphore::new(config.http.in_flight_max)),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            connection: parts.connection,
            log: parts.log,
            blobs: parts.blobs,
            sources: parts.sources,
            registry: parts.registry,
            starter: parts.starter,
            config,
        }
    }
}

/// A request, read and checked.
#[derive(Debug, Default)]
pub struct Call {
    path: BTreeMap<String, String>,
    /// The parameters of the query.
    pub query: Params,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, within its limit.
    pub body: Bytes,
}

impl Call {
    /// A part of the path by its name in the route.
    pub fn path(&self, name: &str) -> &str {
        self.path.get(name).map_or("", String::as_str)
    }

    /// A header as text; absent where it is none.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The span of who calls, where they name one. What is no `traceparent` is ignored, as W3C has it.
    pub fn caller(&self) -> Option<SpanContext> {
        self.header(TRACEPARENT)?.parse().ok()
    }
}

/// What a handler gives.
pub type Answer = Result<Response<Body>, Problem>;
/// A handler at work.
pub type Answering = Pin<Box<dyn Future<Output = Answer> + Send>>;
/// A handler.
pub type Handler = fn(Arc<App>, Call) -> Answering;

/// What strangers could do at a door that listens at this address, each with the remedy; nothing where only this
/// machine reaches it.
pub fn exposures(config: &Config, listen: &str) -> Vec<String> {
    if is_this_machine(listen) {
        return Vec::new();
    }
    let place = format!("http.listen {listen}");
    let has_tokens = !config.http.tokens.is_empty();
    let api = (!has_tokens).then(|| open_api(&place));
    let sources = Sources::new(&config.sources);
    let open = sources.open_to_everybody(has_tokens);
    api.into_iter()
        .chain(open.into_iter().map(|source| open_source(&place, source)))
        .collect()
}

/// What is wrong with an API that asks for no token.
pub fn open_api(place: &str) -> String {
    format!(
        "{place} is open to everybody who reaches it, and who does can run commands: set http.tokens or http.tokens_file (`openssl rand -hex 24` makes one)"
    )
}

/// What is wrong with a source that asks its senders for nothing.
pub fn open_source(place: &str, source: &str) -> String {
    format!(
        "{place} takes alerts of the source {source} from everybody who reaches it, and alerts start workflows: set sources.{source}.bearer_token_file or hmac_secret_file, or http.tokens, which then opens it too"
    )
}

/// An answer in JSON.
fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    let text = serde_json::to_vec(body)
        .map_err(|error| Problem::internal(format!("the answer cannot be written: {error}")))?;
    Ok(with_type(status, "application/json", text))
}

/// An answer of some media type.
fn with_type(status: StatusCode, media_type: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_strangers_could_do_is_said_where_they_could_come_from() {
        let said = |listen: &str, file: &str| {
            let config = Config::parse(Some(("test.toml", file)), std::iter::empty()).unwrap();
            exposures(&config, listen).join("\n")
        };
        let tokens = "[http]\nread_tokens = [\"t\"]\n";
        let sources = "[sources.alertmanager]\nbearer_token = \"t\"\n[sources.webhook]\nhmac_secret = \"t\"\n[sources.own]\n";
        assert_eq!(said("127.0.0.1:8080", ""), "");
        let all = said("0.0.0.0:8080", "");
        for part in [
            "http.listen 0.0.0.0:8080 is open",
            "the source alertmanager",
            "the source webhook",
        ] {
            assert!(all.contains(part), "{all}");
        }
        assert_eq!(said("0.0.0.0:8080", tokens), "", "which lock the sources, too");
        let some = said("0.0.0.0:8080", sources);
        assert!(
            some.contains("the source own") && some.lines().count() == 2,
            "{some}"
        );
        assert_eq!(said("0.0.0.0:8080", &format!("{tokens}{sources}")), "");
        let open = said("0.0.0.0:8080", &format!("{tokens}{sources}open = true\n"));
        assert!(
            open.contains("the source own") && open.lines().count() == 1,
            "{open}"
        );
    }
}
