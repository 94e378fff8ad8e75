//! Asking the server over HTTP.
//!
//! Invariants:
//! - Every request has a deadline; an event stream that stays silent beyond its keep-alives counts as broken.
//! - What the server refuses is told in its own words, with an exit code that says whose move it is.

use std::{error::Error, path::Path, time::Duration};

use reqwest::{Method, StatusCode, Url, header};
use serde_json::Value;

use crate::{
    args::Server,
    failure::{Code, Failure},
};

/// Where `fist up` listens unless told otherwise.
pub const DEFAULT_SERVER: &str = "http://127.0.0.1:8080";
/// For a connection to come about.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// For an answer; longer than the server's own limit, so that its words arrive.
const ANSWER_MAX: Duration = Duration::from_secs(45);
/// Silence of a stream; the server sends a comment every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(50);
/// Bytes of the largest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Attempts at a request that may be repeated.
const ATTEMPTS_MAX: u32 = 4;
/// Pause between these; times the number of the attempt.
const PAUSE: Duration = Duration::from_millis(300);

/// A server, and who asks it.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    shown: String,
    token: Option<header::HeaderValue>,
}

/// An answer that is no refusal.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its body as it came.
    pub text: String,
}

impl Answer {
    /// The body, where it is JSON.
    ///
    /// # Errors
    /// That it is not: whatever answers there is no Punching Fist.
    pub fn json(&self) -> Result<Value, Failure> {
        serde_json::from_str(&self.text).map_err(|error| {
            Failure::no_server(format!(
                "what the server answered is not JSON ({error}): is --server right?"
            ))
        })
    }
}

/// A request to be sent.
#[derive(Clone, Debug)]
pub struct Request {
    method: Method,
    path: Vec<String>,
    query: Vec<(&'static str, String)>,
    headers: Vec<(&'static str, String)>,
    body: Option<String>,
    is_repeatable: bool,
}

impl Request {
    /// Reads the thing at this path.
    pub fn get(path: &[&str]) -> Self {
        Self {
            method: Method::GET,
            path: path.iter().map(|part| (*part).to_owned()).collect(),
            query: Vec::new(),
            headers: Vec::new(),
            body: None,
            is_repeatable: true,
        }
    }

    /// Posts a text of this media type.
    pub fn post(path: &[&str], media_type: &str, body: impl Into<String>) -> Self {
        Self {
            method: Method::POST,
            body: Some(body.into()),
            is_repeatable: false,
            ..Self::get(path)
        }
        .header("content-type", media_type)
    }

    /// Deletes the thing at this path.
    pub fn delete(path: &[&str]) -> Self {
        Self {
            method: Method::DELETE,
            is_repeatable: false,
            ..Self::get(path)
        }
    }

    /// With a parameter, where there is a value.
    pub fn query(mut self, name: &'static str, value: Option<impl ToString>) -> Self {
        self.query.extend(value.map(|value| (name, value.to_string())));
        self
    }

    /// With a header.
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    /// Sending it twice does no more than sending it once.
    pub fn repeatable(mut self) -> Self {
        self.is_repeatable = true;
        self
    }
}

impl Client {
    /// For this server.
    ///
    /// # Errors
    /// What is wrong with the address or the token.
    pub fn new(server: &Server, token: Option<String>) -> Result<Self, Failure> {
        // An empty variable says: not set.
        let url = if server.url.is_empty() {
            DEFAULT_SERVER
        } else {
            &server.url
        };
        let base = address(url)?;
        let token = match (&server.token_file, token) {
            (Some(file), _) => Some(token_of(file)?),
            (None, token) => token
                .map(|text| text.trim().to_owned())
                .filter(|text| !text.is_empty()),
        };
        let token = token.map(|token| bearer(&token)).transpose()?;
        let mut http = reqwest::Client::builder()
            .user_agent(concat!("fist/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_MAX)
            .redirect(reqwest::redirect::Policy::none());
        if is_loopback(&base) {
            // A proxy cannot reach this machine's own addresses.
            http = http.no_proxy();
        }
        let http = http
            .build()
            .map_err(|error| Failure::failed(format!("cannot make requests: {}", causes(&error))))?;
        let shown = base.as_str().trim_end_matches('/').to_owned();
        Ok(Self {
            http,
            base,
            shown,
            token,
        })
    }

    /// The same server, asked by a stranger: no token is sent.
    pub fn as_stranger(&self) -> Self {
        Self {
            token: None,
            ..self.clone()
        }
    }

    /// Whether the server is reached without leaving this machine. A forwarded port looks so too.
    pub fn is_on_this_machine(&self) -> bool {
        is_loopback(&self.base)
    }

    /// The server's address.
    pub fn address(&self) -> &str {
        &self.shown
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// That there is no server, or its refusal.
    pub async fn send(&self, request: &Request) -> Result<Answer, Failure> {
        let answered = tokio::time::timeout(ANSWER_MAX, self.attempts(request)).await;
        answered.unwrap_or_else(|_| {
            Err(Failure::no_server(format!(
                "the server at {} did not answer within {} s: `fist doctor` says what ails it",
                self.shown,
                ANSWER_MAX.as_secs()
            )))
        })
    }

    /// Sends a request once, and reads the answer whatever its status.
    ///
    /// # Errors
    /// That there is no server.
    pub async fn any_status(&self, request: &Request) -> Result<Answer, Failure> {
        let asked = async {
            let response = self
                .built(request)
                .send()
                .await
                .map_err(|error| self.unreachable(&error))?;
            let status = response.status();
            let text = bounded_text(response).await.map_err(Failure::no_server)?;
            Ok(Answer { status, text })
        };
        tokio::time::timeout(ANSWER_MAX, asked).await.unwrap_or_else(|_| {
            Err(Failure::no_server(format!(
                "the server at {} does not answer",
                self.shown
            )))
        })
    }

    /// Sends a request and gives the answer as it comes; silence breaks it.
    ///
    /// # Errors
    /// That there is no server, or its refusal.
    pub async fn stream(&self, request: &Request) -> Result<Streamed, Failure> {
        let sent = tokio::time::timeout(ANSWER_MAX, self.built(request).send()).await;
        let response = match sent {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(self.unreachable(&error)),
            Err(_) => {
                return Err(Failure::no_server(format!(
                    "the server at {} does not answer",
                    self.shown
                )));
            }
        };
        if !response.status().is_success() {
            let status = response.status();
            let text = bounded_text(response).await.unwrap_or_default();
            return Err(refusal(status, &text));
        }
        Ok(Streamed { response })
    }

    async fn attempts(&self, request: &Request) -> Result<Answer, Failure> {
        let mut attempt = 1;
        loop {
            let outcome = self.attempt(request).await;
            let is_last = attempt >= ATTEMPTS_MAX || !request.is_repeatable;
            match outcome {
                Err(Attempted::Passing(_)) if !is_last => {}
                Ok(answer) => return Ok(answer),
                Err(Attempted::Passing(failure) | Attempted::Final(failure)) => return Err(failure),
            }
            tokio::time::sleep(PAUSE * attempt).await;
            attempt += 1;
        }
    }

    async fn attempt(&self, request: &Request) -> Result<Answer, Attempted> {
        let response = match self.built(request).send().await {
            Ok(response) => response,
            // Nobody listens: that is the answer. A connection that broke is another matter.
            Err(error) if error.is_connect() => return Err(Attempted::Final(self.unreachable(&error))),
            Err(error) => return Err(Attempted::Passing(self.unreachable(&error))),
        };
        let status = response.status();
        let text = bounded_text(response).await.map_err(|reason| {
            Attempted::Passing(Failure::no_server(format!(
                "the answer of {} broke off: {reason}",
                self.shown
            )))
        })?;
        if status.is_success() {
            return Ok(Answer { status, text });
        }
        let failure = refusal(status, &text);
        Err(if status.is_server_error() {
            Attempted::Passing(failure)
        } else {
            Attempted::Final(failure)
        })
    }

    fn built(&self, request: &Request) -> reqwest::RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(&request.path);
        }
        let mut built = self.http.request(request.method.clone(), url);
        if !request.query.is_empty() {
            built = built.query(&request.query);
        }
        for (name, value) in &request.headers {
            built = built.header(*name, value);
        }
        if let Some(token) = &self.token {
            built = built.header(header::AUTHORIZATION, token.clone());
        }
        if let Some(body) = &request.body {
            built = built.body(body.clone());
        }
        built
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        Failure::no_server(format!(
            "no server at {}: start one with `fist up`, or name another with --server or FIST_SERVER ({})",
            self.shown,
            root(error)
        ))
    }
}

enum Attempted {
    /// Another try may go better.
    Passing(Failure),
    /// It would not.
    Final(Failure),
}

/// An answer on its way.
#[derive(Debug)]
pub struct Streamed {
    response: reqwest::Response,
}

impl Streamed {
    /// The answer's status.
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// In words, that the connection broke or went silent.
    pub async fn next(&mut self) -> Result<Option<bytes::Bytes>, String> {
        match tokio::time::timeout(SILENCE_MAX, self.response.chunk()).await {
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(error)) => Err(causes(&error)),
            Err(_) => Err(format!("silent for {} s", SILENCE_MAX.as_secs())),
        }
    }

    /// The next piece, however long it takes.
    ///
    /// # Errors
    /// In words, that the connection broke.
    pub async fn next_patiently(&mut self) -> Result<Option<bytes::Bytes>, String> {
        self.response.chunk().await.map_err(|error| causes(&error))
    }
}

fn address(text: &str) -> Result<Url, Failure> {
    let wrong = |why: String| {
        Failure::misuse(format!(
            "--server (FIST_SERVER) is `{text}`, {why}: use an address such as http://127.0.0.1:8080"
        ))
    };
    let url = Url::parse(text).map_err(|error| wrong(format!("which is no address ({error})")))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(wrong("which is neither http:// nor https://".to_owned()));
    }
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => host
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback()),
        None => false,
    }
}

fn token_of(file: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::misuse(format!("--token-file {}: {error}", file.display())))?;
    match text.trim() {
        "" => Err(Failure::misuse(format!(
            "--token-file {} is empty",
            file.display()
        ))),
        token => Ok(token.to_owned()),
    }
}

fn bearer(token: &str) -> Result<header::HeaderValue, Failure> {
    let mut value = header::HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| {
        Failure::misuse("the token (FIST_TOKEN, --token-file) holds characters that no header may".to_owned())
    })?;
    value.set_sensitive(true);
    Ok(value)
}

async fn bounded_text(mut response: reqwest::Response) -> Result<String, String> {
    let mut bytes = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| causes(&error))? {
        bytes.extend_from_slice(&piece);
        if bytes.len() > ANSWER_BYTES_MAX {
            return Err(format!("it is larger than {ANSWER_BYTES_MAX} bytes"));
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A body that is none of ours, in a few words: pages are not for terminals.
fn described(text: &str) -> String {
    let start = text.trim_start();
    if start.is_empty() {
        "with nothing more".to_owned()
    } else if start.starts_with('<') {
        "with a web page".to_owned()
    } else {
        format!("saying `{}`", crate::show::one_line(start, 120))
    }
}

/// The server's own words, and whose move it is.
fn refusal(status: StatusCode, text: &str) -> Failure {
    let problem: Option<Value> = serde_json::from_str(text).ok();
    let detail = problem.as_ref().and_then(|problem| problem["detail"].as_str());
    // Without one it is a gateway before the server, or something else at that address.
    let message = detail.map_or_else(
        || {
            format!(
                "what answers there is not Punching Fist itself: {status}, {}; check --server (FIST_SERVER)",
                described(text)
            )
        },
        str::to_owned,
    );
    let (code, message) = match status.as_u16() {
        401 | 403 => (
            Code::Misuse,
            format!("{message} (set FIST_TOKEN, or --token-file, to a token of this server)"),
        ),
        _ if detail.is_none() => (Code::NoServer, message),
        404 => (Code::Failed, message),
        409 => (Code::Failed, message),
        // Asked too often; just now there is no answer to be had.
        429 => (Code::NoServer, message),
        400..=499 => (Code::Misuse, message),
        // A server that cannot work just now is none for the moment.
        _ => (Code::NoServer, message),
    };
    Failure { code, message }
}

/// What lies at the bottom of an error: `Connection refused`.
fn root(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(cause) = error.source() {
        error = cause;
    }
    error.to_string()
}

/// An error with all that caused it.
pub fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_are_checked_with_the_remedy() {
        for good in ["http://127.0.0.1:8080", "https://fist.example.com/base/"] {
            assert!(address(good).is_ok(), "{good}");
        }
        for bad in ["127.0.0.1:8080", "ftp://x", "", "http://"] {
            let failure = address(bad).unwrap_err();
            assert_eq!(failure.code, Code::Misuse);
            assert!(failure.message.contains("http://127.0.0.1:8080"), "{failure}");
        }
    }

    #[test]
    fn this_machine_is_asked_without_a_proxy() {
        for own in [
            "http://127.0.0.1:1",
            "http://localhost:1",
            "http://[::1]:1",
            "http://127.9.9.9",
        ] {
            assert!(is_loopback(&Url::parse(own).unwrap()), "{own}");
        }
        for other in [
            "http://10.0.0.1",
            "http://localhost.example.com",
            "http://[2001:db8::1]",
        ] {
            assert!(!is_loopback(&Url::parse(other).unwrap()), "{other}");
        }
    }

    #[test]
    fn refusals_keep_the_servers_words() {
        let failure = refusal(
            StatusCode::UNPROCESSABLE_ENTITY,
            r#"{"detail": "error: line 3: spec.steps: empty"}"#,
        );
        assert_eq!(failure, Failure::misuse("error: line 3: spec.steps: empty"));
        for (text, words) in [
            ("<html>\n<p>Bad", "with a web page"),
            ("", "with nothing more"),
            ("upstream\ngone", "saying `upstream gone`"),
        ] {
            assert_eq!(
                refusal(StatusCode::NOT_FOUND, text),
                Failure::no_server(format!(
                    "what answers there is not Punching Fist itself: 404 Not Found, {words}; check --server (FIST_SERVER)"
                ))
            );
        }
        let failure = refusal(StatusCode::UNAUTHORIZED, r#"{"detail": "a token is needed"}"#);
        assert!(failure.message.contains("FIST_TOKEN"), "{failure}");
    }
}
