//! What the tools that ask a query API share: where it is, and one bounded GET.
//!
//! Invariants: a workflow's own address goes before the operator's; nothing but GET is sent; an answer is read up to
//! [`ANSWER_BYTES_MAX`].

use std::time::Duration;

use futures_util::StreamExt as _;
use reqwest::{
    Client, StatusCode, Url,
    header::{HeaderMap, HeaderValue},
};
use serde_json::Value;

use super::Surroundings;
use crate::web::{self, cause};

/// Bytes of an answer that are read.
pub const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Which API it is, and where its address comes from.
pub struct Api<'a> {
    /// Its name for people.
    pub name: &'static str,
    /// The variable of a workflow that holds its address.
    pub variable: &'static str,
    /// The configuration's key for its address.
    pub key: &'static str,
    /// What the configuration has there.
    pub configured: &'a str,
    /// An address as it should look.
    pub example: &'static str,
    /// What to ask for instead of an answer that is too large.
    pub smaller: &'static str,
}

/// A server that answers queries.
pub struct Server {
    client: Client,
    base: Url,
    name: &'static str,
    remedy: String,
    smaller: &'static str,
    headers: HeaderMap,
}

impl Server {
    /// The server of the workflow, else of the configuration.
    ///
    /// # Errors
    /// When the address is none, with the place where it stands.
    pub fn new(surroundings: &Surroundings<'_>, api: &Api<'_>) -> Result<Self, String> {
        let of_workflow = surroundings
            .env
            .get(api.variable)
            .and_then(Value::as_str)
            .filter(|url| !url.trim().is_empty());
        let (text, source) = match of_workflow {
            Some(url) => (url, format!("the workflow's {}", api.variable)),
            None => (api.configured, api.key.to_owned()),
        };
        let base = Url::parse(text.trim())
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| format!("{source} is no address; use one such as {}", api.example))?;
        Ok(Self {
            client: web::client(&base, Duration::from_secs(5), |builder| builder)?,
            base,
            name: api.name,
            remedy: format!("Its address is the workflow's {}, else {}", api.variable, api.key),
            smaller: api.smaller,
            headers: HeaderMap::new(),
        })
    }

    /// The same, with this header in every request.
    ///
    /// # Errors
    /// When the value can be no header's.
    pub fn with_header(mut self, name: &'static str, value: &str) -> Result<Self, String> {
        let value =
            HeaderValue::from_str(value).map_err(|_| format!("the value of {name} can be no header's"))?;
        self.headers.insert(name, value);
        Ok(self)
    }

    /// Scheme, host and port: path and user may hold what nobody should see.
    pub fn place(&self) -> String {
        self.base.origin().ascii_serialization()
    }

    /// Status and body of `path` below the server's address.
    ///
    /// # Errors
    /// When it cannot be reached, breaks off, or answers too much; with the remedy.
    pub async fn get(
        &self,
        path: &str,
        parameters: &[(&'static str, String)],
    ) -> Result<(StatusCode, Vec<u8>), String> {
        let mut url = self.base.clone();
        url.set_path(&format!("{}/{path}", self.base.path().trim_end_matches('/')));
        let request = self
            .client
            .get(url)
            .headers(self.headers.clone())
            .query(parameters);
        let response = request.send().await.map_err(|error| {
            format!(
                "{} cannot be reached at {}: {}. {}",
                self.name,
                self.place(),
                cause(&error),
                self.remedy
            )
        })?;
        let status = response.status();
        let mut body = Vec::new();
        let mut stream = response.bytes_stream();
        while let Some(piece) = stream.next().await {
            let piece = piece
                .map_err(|error| format!("the answer of {} broke off: {}", self.place(), cause(&error)))?;
            if body.len() + piece.len() > ANSWER_BYTES_MAX {
                return Err(format!(
                    "the answer has more than {ANSWER_BYTES_MAX} bytes; {}",
                    self.smaller
                ));
            }
            body.extend_from_slice(&piece);
        }
        Ok((status, body))
    }

    /// That it answered `status` and something else than its API does.
    pub fn is_another(&self, status: StatusCode) -> String {
        format!(
            "{} answered {status} and no JSON: it is perhaps no {}",
            self.place(),
            self.name
        )
    }
}
