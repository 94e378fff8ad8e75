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
            hosts: tools
                .curl_allowed_hosts
                .iter()
                .map(|host| host.trim().to_ascii_lowercase())
                .collect(),
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
mod tests {
    #![allow(clippy::unwrap_used)]

    use axum::{Router, http::StatusCode, response::IntoResponse, routing::get};

    use super::*;

    fn curl(hosts: &[&str], networks: &[&str], resolved: &[(&'static str, &'static str)]) -> Curl {
        let mut tools = service::Config::default().tools;
        tools.curl_allowed_hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        tools.curl_allowed_networks = networks.iter().map(|network| (*network).to_owned()).collect();
        tools.curl_bytes_max = 1024;
        let table: Vec<(&str, IpAddr)> = resolved
            .iter()
            .map(|(name, ip)| (*name, ip.parse().unwrap()))
            .collect();
        let resolve: Resolve = Arc::new(move |host, port| {
            let found = table.iter().filter(|(name, _)| *name == host);
            let found: Vec<SocketAddr> = found.map(|(_, ip)| SocketAddr::new(*ip, port)).collect();
            Box::pin(async move { Ok(found) })
        });
        Curl::new(&tools, resolve).unwrap()
    }

    async fn refused(curl: &Curl, url: &str) -> String {
        match curl.request(url, Method::GET).await {
            Err(ToolError::Refused(text)) => text,
            other => panic!("{url}: {other:?}"),
        }
    }

    #[tokio::test]
    async fn addresses_of_the_inside_are_refused_however_they_are_written() {
        let names = [
            ("inside.example.com", "10.0.0.5"),
            ("loop.example.com", "127.0.0.1"),
            ("mapped.example.com", "::ffff:127.0.0.1"),
            ("six.example.com", "::1"),
            ("meta.example.com", "169.254.169.254"),
            ("mixed.example.com", "93.184.216.34"),
            ("mixed.example.com", "192.168.1.1"),
            ("named.example.org", "169.254.169.254"),
        ];
        let curl = curl(&["*.example.com", "named.example.org"], &[], &names);
        for url in [
            // Covered by the wildcard, and at home.
            "http://inside.example.com/",
            "http://loop.example.com/",
            "http://mapped.example.com/",
            "http://six.example.com/",
            "https://meta.example.com/latest",
            "http://mixed.example.com/",
            "http://LOOP.EXAMPLE.COM/",
            "http://loop.example.com./",
            "http://named.example.org/",
            // Loopback and metadata in all spellings.
            "http://127.0.0.1/",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f000001/",
            "http://0x7f.1/",
            "http://017700000001/",
            "http://0177.0.0.1/",
            "http://127.0.0.1.:80/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[::ffff:7f00:1]/",
            "http://[0:0:0:0:0:0:0:1]/",
            "http://[::]/",
            "http://0.0.0.0/",
            "http://0/",
            "http://169.254.169.254/latest/meta-data/",
            "http://0xa9fea9fe/",
            "http://2852039166/",
            "http://[::ffff:a9fe:a9fe]/",
            "http://[fe80::1]/",
            "http://[fd00:ec2::254]/",
            "http://[64:ff9b::7f00:1]/",
            "http://192.168.0.1/",
            "http://10.0.0.1/",
            "http://172.16.0.1/",
            "http://１２７.0.0.1/",
            "http://localhost/",
            "http://localhost:8080/",
            "http://LocalHost/",
            // Not listed, and tricks with what is.
            "http://evil.test/",
            "http://example.com/",
            "http://example.com.evil.test/",
            "http://xexample.com/",
            "http://a.example.com@127.0.0.1/",
            "http://a.example.com:x@evil.test/",
            "http://user@a.example.com/",
            "http://127.0.0.1#a.example.com",
            "http://127.0.0.1?a.example.com",
            "http://127.0.0.1\\a.example.com",
            "http://a.example.com%2eevil.test/",
            "http://8.8.8.8/",
            // Other schemes.
            "file:///etc/passwd",
            "ftp://a.example.com/",
            "gopher://127.0.0.1:6379/_x",
            "data:text/plain,x",
            "/etc/passwd",
            "javascript:1",
            "",
        ] {
            refused(&curl, url).await;
        }
        assert!(
            refused(&curl, "http://inside.example.com/")
                .await
                .contains("at a private address")
        );
        assert!(
            refused(&curl, "http://meta.example.com/")
                .await
                .contains("link-local")
        );
    }

    /// A server on loopback.
    async fn server() -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let to = |target: String| get(move || async move { (StatusCode::FOUND, [("location", target)]) });
        let app = Router::new()
            .route(
                "/text",
                get(|| async { ([("content-type", "text/plain"), ("x-other", "no")], "hello") }),
            )
            .route("/long", get(|| async { "x".repeat(5000) }))
            .route(
                "/binary",
                get(|| async { ([("content-type", "image/png")], vec![0_u8, 1, 2]) }),
            )
            .route(
                "/nul",
                get(|| async { ([("content-type", "text/plain")], vec![0_u8, 1, 2]) }),
            )
            .route(
                "/broken",
                get(|| async { (StatusCode::INTERNAL_SERVER_ERROR, "oh").into_response() }),
            )
            .route("/relative", to("/text".to_owned()))
            .route("/to-loopback", to(format!("http://127.0.0.1:{port}/text")))
            .route("/to-decimal", to(format!("http://2130706433:{port}/text")))
            .route("/to-file", to("file:///etc/passwd".to_owned()))
            .route("/to-user", to(format!("http://x@named.test:{port}/text")))
            .route("/for-ever", to("/for-ever".to_owned()));
        tokio::spawn(async move { axum::serve(listener, app).await });
        port
    }

    #[tokio::test]
    async fn a_named_host_may_be_at_home_and_its_redirects_are_checked_again() {
        let port = server().await;
        let curl = curl(&["named.test"], &[], &[("named.test", "127.0.0.1")]);
        let at = |path: &str| format!("http://named.test:{port}{path}");
        let text = curl.request(&at("/text"), Method::GET).await.unwrap();
        assert!(
            text.starts_with("HTTP 200 OK\ncontent-type: text/plain\n") && text.ends_with("\nhello"),
            "{text}"
        );
        assert!(!text.contains("x-other"), "{text}");
        let head = curl.request(&at("/text"), Method::HEAD).await.unwrap();
        assert!(
            head.contains("content-length: 5") && !head.contains("hello"),
            "{head}"
        );
        let relative = curl.request(&at("/relative"), Method::GET).await.unwrap();
        assert!(
            relative.starts_with("302 redirected to ") && relative.ends_with("hello"),
            "{relative}"
        );
        let long = curl.request(&at("/long"), Method::GET).await.unwrap();
        assert!(
            long.ends_with("x\n[… cut after 1024 bytes]"),
            "{}",
            &long[long.len() - 60..]
        );
        for path in ["/binary", "/nul"] {
            let shown = curl.request(&at(path), Method::GET).await.unwrap();
            assert!(
                shown.ends_with("(the body is not text, and is not shown)"),
                "{shown}"
            );
        }
        let broken = curl.request(&at("/broken"), Method::GET).await.unwrap();
        assert!(broken.starts_with("HTTP 500"), "{broken}");
        for path in ["/to-loopback", "/to-decimal", "/to-file", "/to-user"] {
            refused(&curl, &at(path)).await;
        }
        let forever = curl.request(&at("/for-ever"), Method::GET).await.unwrap_err();
        assert!(matches!(forever, ToolError::Failed(text) if text.contains("more than 5 redirects")));
    }

    #[tokio::test]
    async fn a_listed_network_permits_its_addresses() {
        let port = server().await;
        let curl = curl(
            &["*.example.com"],
            &["127.0.0.0/8"],
            &[("a.example.com", "127.0.0.1"), ("b.example.com", "10.0.0.1")],
        );
        for url in [
            format!("http://a.example.com:{port}/text"),
            format!("http://127.0.0.1:{port}/text"),
        ] {
            assert!(curl.request(&url, Method::GET).await.is_ok(), "{url}");
        }
        refused(&curl, "http://b.example.com/").await;
    }

    #[tokio::test]
    async fn without_a_list_nothing_is_asked() {
        let text = refused(&curl(&[], &[], &[("a.test", "93.184.216.34")]), "https://a.test/").await;
        assert!(text.contains("allowed are: none"), "{text}");
    }
}
