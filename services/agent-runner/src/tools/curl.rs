//! HTTP GET and HEAD to hosts that the operator lists.
//!
//! Invariants:
//! - Every address is checked after resolution, and the connection goes to exactly the addresses that were checked.
//! - Every redirect is a new request, with all checks made again.
//! - A host that the configuration names may have a private address; a name that resolves to a link-local or metadata
//!   address is still refused unless that network is listed, since whoever serves the name decides what it says.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, future::BoxFuture};
use reqwest::{ClientBuilder, Method, Response, Url, header::HeaderMap};
use serde_json::{Value, json};

use super::{
    Surroundings, Tool, ToolError,
    network::{Network, is_link_local, plain, reserved},
};
use crate::web::{self, cause};

/// Redirects that are followed.
const REDIRECTS_MAX: usize = 5;
/// Headers of an answer that are shown.
const SHOWN_HEADERS: [&str; 8] = [
    "content-type",
    "content-length",
    "date",
    "last-modified",
    "location",
    "retry-after",
    "server",
    "www-authenticate",
];

type Resolve = Arc<dyn Fn(String, u16) -> BoxFuture<'static, std::io::Result<Vec<SocketAddr>>> + Send + Sync>;

struct Curl {
    hosts: Vec<String>,
    networks: Vec<Network>,
    bytes_max: usize,
    resolve: Resolve,
}

/// Makes the tool.
///
/// # Errors
/// When a configured network is none.
pub fn make(surroundings: &Surroundings<'_>) -> Result<Box<dyn Tool>, String> {
    let resolve: Resolve = Arc::new(|host, port| {
        Box::pin(async move { Ok(tokio::net::lookup_host((host.as_str(), port)).await?.collect()) })
    });
    Ok(Box::new(Curl::new(surroundings.tools, resolve)?))
}

impl Tool for Curl {
    fn description(&self) -> String {
        let hosts = match self.hosts.is_empty() {
            true => "The operator has listed no hosts, so every request is refused.".to_owned(),
            false => format!("Hosts that may be asked: {}.", self.hosts.join(", ")),
        };
        format!(
            "Makes an HTTP GET or HEAD request and shows status, some headers and the text of the answer. {hosts}"
        )
    }

    fn schema(&self) -> Value {
        json!({
            "type": "object",
            "required": ["url"],
            "additionalProperties": false,
            "properties": {
                "url": {"type": "string", "description": "http:// or https://", "minLength": 1, "maxLength": 4000},
                "method": {"type": ["string", "null"], "enum": ["GET", "HEAD", null]},
            },
        })
    }

    fn call<'a>(&'a self, arguments: &'a Value) -> BoxFuture<'a, Result<String, ToolError>> {
        Box::pin(async {
            let method = if arguments["method"] == "HEAD" {
                Method::HEAD
            } else {
                Method::GET
            };
            self.request(arguments["url"].as_str().unwrap_or_default(), method)
                .await
        })
    }
}

impl Curl {
    fn new(tools: &service::config::Tools, resolve: Resolve) -> Result<Self, String> {
        Ok(Self {
            hosts: tools.curl_allowed_hosts.iter().map(|host| listed(host)).collect(),
            networks: tools
                .curl_allowed_networks
                .iter()
                .map(|text| Network::parse(text))
                .collect::<Result<_, _>>()?,
            bytes_max: tools.curl_bytes_max,
            resolve,
        })
    }

    async fn request(&self, url: &str, method: Method) -> Result<String, ToolError> {
        let mut url = Url::parse(url.trim())
            .map_err(|error| ToolError::Refused(format!("that is no address: {error}")))?;
        let mut trail = Vec::new();
        for _ in 0..=REDIRECTS_MAX {
            let addresses = self.check(&url).await?;
            let response = send(&url, &addresses, method.clone()).await?;
            let status = response.status();
            let target = response
                .headers()
                .get("location")
                .and_then(|value| value.to_str().ok());
            let (true, Some(target)) = (status.is_redirection(), target) else {
                return self.show(response, method == Method::HEAD, &trail).await;
            };
            let next = url.join(target).map_err(|error| {
                ToolError::Failed(format!(
                    "answered {status} with a target that is no address: {error}"
                ))
            })?;
            trail.push(format!("{} redirected to {}", status.as_u16(), place(&next)));
            url = next;
        }
        Err(ToolError::Failed(format!(
            "more than {REDIRECTS_MAX} redirects: {}",
            trail.join("; ")
        )))
    }

    /// The addresses that a request to `url` may connect to.
    async fn check(&self, url: &Url) -> Result<Vec<SocketAddr>, ToolError> {
        let refused = |text: String| Err(ToolError::Refused(text));
        if !matches!(url.scheme(), "http" | "https") {
            return refused(format!(
                "only http:// and https:// are allowed, not {}:",
                url.scheme()
            ));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return refused("an address with credentials in it is not allowed".to_owned());
        }
        let (Some(host), Some(port)) = (host(url), url.port_or_known_default()) else {
            return refused("the address names no host".to_owned());
        };
        let literal: Option<IpAddr> = host.parse().ok();
        let is_in_network = |address: IpAddr| self.networks.iter().any(|network| network.contains(address));
        let is_named = self.hosts.contains(&host);
        if !is_named && !self.matches_wildcard(&host) && !literal.is_some_and(is_in_network) {
            return refused(format!(
                "the host {host} is not allowed; allowed are: {} (the operator's tools.curl_allowed_hosts)",
                if self.hosts.is_empty() {
                    "none".to_owned()
                } else {
                    self.hosts.join(", ")
                }
            ));
        }
        let addresses = match literal {
            Some(address) => vec![SocketAddr::new(address, port)],
            None => (self.resolve)(host.clone(), port)
                .await
                .map_err(|error| ToolError::Failed(format!("{host} cannot be resolved: {error}")))?,
        };
        if addresses.is_empty() {
            return Err(ToolError::Failed(format!("{host} has no address")));
        }
        for address in addresses.iter().map(|address| plain(address.ip())) {
            let Some(kind) = reserved(address) else { continue };
            let is_excused = is_named && (literal.is_some() || !is_link_local(address));
            if !is_excused && !is_in_network(address) {
                return refused(format!(
                    "{host} is at {kind}; the operator must name the host in tools.curl_allowed_hosts, or its network in \
                     tools.curl_allowed_networks, to permit it"
                ));
            }
        }
        Ok(addresses)
    }

    /// Whether `*.example.com` of the list covers the host. Such an entry permits public addresses only: it does not
    /// name the host.
    fn matches_wildcard(&self, host: &str) -> bool {
        self.hosts.iter().any(|listed| {
            let suffix = listed
                .strip_prefix('*')
                .filter(|suffix| suffix.starts_with('.') && suffix.len() > 1);
            suffix.is_some_and(|suffix| host.len() > suffix.len() && host.ends_with(suffix))
        })
    }

    async fn show(&self, response: Response, is_head: bool, trail: &[String]) -> Result<String, ToolError> {
        let mut text = trail.iter().map(|line| format!("{line}\n")).collect::<String>();
        text.push_str(&format!("HTTP {}\n", response.status()));
        for name in SHOWN_HEADERS {
            if let Some(value) = response.headers().get(name) {
                text.push_str(&format!(
                    "{name}: {}\n",
                    String::from_utf8_lossy(value.as_bytes())
                ));
            }
        }
        if is_head {
            return Ok(text);
        }
        if !is_text(response.headers()) {
            text.push_str("(the body is not text, and is not shown)");
            return Ok(text);
        }
        let mut body = Vec::new();
        let mut stream = response.bytes_stream();
        let mut is_cut = false;
        while let Some(piece) = stream.next().await {
            let piece = piece
                .map_err(|error| ToolError::Failed(format!("the answer broke off: {}", cause(&error))))?;
            let room = self.bytes_max - body.len();
            body.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.len() > room {
                is_cut = true;
                break;
            }
        }
        if body.contains(&0) {
            text.push_str("(the body is not text, and is not shown)");
            return Ok(text);
        }
        text.push('\n');
        text.push_str(&String::from_utf8_lossy(&body));
        if is_cut {
            text.push_str(&format!("\n[… cut after {} bytes]", self.bytes_max));
        }
        Ok(text)
    }
}

/// An entry of the list in the form in which hosts are compared; as it is where it is no host.
fn listed(entry: &str) -> String {
    let entry = entry.trim().to_lowercase();
    let (wildcard, name) = match entry.strip_prefix("*.") {
        Some(name) => ("*.", name),
        None => ("", entry.as_str()),
    };
    // An IPv6 address may stand in the list as in an address, or without brackets.
    let name = match name.parse::<std::net::Ipv6Addr>() {
        Ok(address) => format!("[{address}]"),
        Err(_) => name.to_owned(),
    };
    let parsed = Url::parse(&format!("http://{name}/")).ok();
    match parsed
        .filter(|url| url.path() == "/" && url.port().is_none())
        .as_ref()
        .and_then(host)
    {
        Some(host) => format!("{wildcard}{host}"),
        None => entry,
    }
}

/// The host in the form in which it is compared: lower case, no final dot, no brackets.
fn host(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    let host = host
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
        .unwrap_or(host);
    Some(host.trim_end_matches('.').to_ascii_lowercase())
}

/// Scheme, host and port of an address: its path and query may hold what nobody should see.
fn place(url: &Url) -> String {
    url.origin().ascii_serialization()
}

async fn send(url: &Url, addresses: &[SocketAddr], method: Method) -> Result<Response, ToolError> {
    let pinned = |builder: ClientBuilder| {
        // A proxy would resolve the name again, and connect to what it finds.
        let builder = builder.no_proxy();
        match url.domain() {
            Some(name) => builder.resolve_to_addrs(name, addresses),
            None => builder,
        }
    };
    let client = web::client(url, Duration::from_secs(5), pinned).map_err(ToolError::Failed)?;
    client
        .request(method, url.clone())
        .send()
        .await
        .map_err(|error| ToolError::Failed(format!("no answer from {}: {}", place(url), cause(&error))))
}

fn is_text(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get("content-type") else {
        return true;
    };
    let value = String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
    let kind = value.split(';').next().unwrap_or_default().trim();
    kind.starts_with("text/")
        || ["json", "xml", "yaml", "javascript", "x-www-form-urlencoded"]
            .iter()
            .any(|part| kind.ends_with(part))
}

#[cfg(test)]
mod tests;
