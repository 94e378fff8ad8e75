//! mcp:<server>: tools of the MCP servers that the operator lists, by the official SDK.
//!
//! Invariants:
//! - What a server may be asked is the operator's list of its tools. What it says about itself decides nothing.
//! - Every allowed tool is offered, one that cannot be had with the reason: a model is told, and a step goes on.
//! - A server lives as long as its tools. Messages, lists, starts and waits are bounded; redaction comes before the
//!   model for what a server says about its tools too.

mod content;
mod listing;
mod stdio;

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::future::{BoxFuture, join_all};
use reqwest::Url;
use rmcp::{
    RoleClient,
    model::{CallToolRequestParams, ClientCapabilities, ClientConfig, Implementation, ProtocolVersion},
    service::{
        ClientCacheConfig, ClientInitializeError, ClientLifecycleMode, Peer, RunningService, ServiceError,
        serve_client_with_lifecycle,
    },
    transport::{
        IntoTransport, StreamableHttpClientTransport,
        common::client_side_sse::FixedInterval,
        streamable_http_client::{StreamableHttpClientTransportConfig, StreamableHttpError},
    },
};
use serde_json::Value;
use service::config::{McpSecrets, McpServer, McpTransport, Secret};
use tokio::{sync::Mutex, time::timeout};

use super::{CallLimits, Tool, ToolError, cut::cut};
use crate::{redact::Redactor, web};
use listing::Listed;

/// What a server's name follows in a step's tools.
pub const PREFIX: &str = "mcp:";

/// Bytes of one message of a server. The largest real ones are pictures, which no model gets to see.
const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Times that a server is started, or connected to, for one step.
const STARTS_MAX: u32 = 3;
/// Bytes of the reason why a server cannot be used: each of its tools' descriptions has it.
const REASON_BYTES_MAX: usize = 1024;
/// HTTP requests to one server at one time. A step makes one call at a time; the others are streams and the end.
const REQUESTS_MAX: usize = 4;
/// How often, and after what time, a stream that broke is asked for again.
const STREAM_AGAIN: (Option<usize>, Duration) = (Some(3), Duration::from_millis(500));

/// A server that a step names, with what it takes to connect to it.
pub struct Named {
    name: String,
    config: McpServer,
    secrets: McpSecrets,
}

impl Named {
    /// What it is given that must be seen nowhere, for the step's redactor.
    pub fn secrets(&self) -> impl Iterator<Item = &Secret> {
        self.secrets.iter()
    }
}

/// The servers among a step's tools.
///
/// # Errors
/// A server that is not configured, or whose secrets cannot be read.
pub fn named(tools: &[String], configured: &BTreeMap<String, McpServer>) -> Result<Vec<Named>, String> {
    let names: BTreeSet<&str> = tools
        .iter()
        .filter_map(|tool| tool.strip_prefix(PREFIX))
        .collect();
    let named = |name: &str| {
        let config = configured.get(name).ok_or_else(|| {
            let known: Vec<String> = configured.keys().map(|name| format!("{PREFIX}{name}")).collect();
            let known = match known.is_empty() {
                true => "it has none".to_owned(),
                false => format!("it has {}", known.join(", ")),
            };
            format!("the configuration of agent-runner has no section [tools.mcp.{name}] for the tool `{PREFIX}{name}`; {known}")
        })?;
        let secrets = config.secrets().map_err(|reason| {
            format!("the tool `{PREFIX}{name}` cannot be used: tools.mcp.{name}.{reason}")
        })?;
        Ok(Named {
            name: name.to_owned(),
            config: config.clone(),
            secrets,
        })
    };
    names.into_iter().map(named).collect()
}

/// The tools of these servers, by the names that models call them by. Takes as long as the slowest may, and
/// `time_max` at most.
pub async fn connect(
    servers: Vec<Named>,
    redactor: &Redactor,
    time_max: Duration,
) -> Vec<(String, Box<dyn Tool>)> {
    let each = servers
        .into_iter()
        .map(|named| offered(named, redactor, time_max));
    join_all(each).await.into_iter().flatten().collect()
}

async fn offered(named: Named, redactor: &Redactor, time_max: Duration) -> Vec<(String, Box<dyn Tool>)> {
    let server = Arc::new(Server {
        name: named.name,
        config: named.config,
        secrets: named.secrets,
        connection: Mutex::new(None),
        starts: AtomicU32::new(0),
    });
    let time = server.connect_timeout().min(time_max);
    let listed = match timeout(time, server.listed(redactor)).await {
        Ok(Ok(listed)) => listed,
        Ok(Err(reason)) => server.absent(&redactor.text(&reason)).await,
        Err(_) => {
            let reason = format!("it did not list its tools within {:.1} s", time.as_secs_f64());
            server.absent(&reason).await
        }
    };
    let offer = |(tool, listed): (String, Listed)| -> (String, Box<dyn Tool>) {
        let offered = McpServer::offered_name(&server.name, &tool);
        let description = match &listed {
            Listed::Ready { description, .. } => description.clone(),
            Listed::Absent(reason) => format!("Cannot be used in this investigation: {reason}"),
        };
        let server = Arc::clone(&server);
        (
            offered,
            Box::new(McpTool {
                server,
                tool,
                description,
                listed,
            }),
        )
    };
    listed.into_iter().map(offer).collect()
}

/// One tool of a server.
struct McpTool {
    server: Arc<Server>,
    /// As the server names it.
    tool: String,
    description: String,
    listed: Listed,
}

impl Tool for McpTool {
    fn description(&self) -> String {
        self.description.clone()
    }

    fn schema(&self) -> Value {
        match &self.listed {
            Listed::Ready { schema, .. } => schema.clone(),
            Listed::Absent(_) => serde_json::json!({"type": "object"}),
        }
    }

    fn limits(&self) -> Option<CallLimits> {
        Some(CallLimits {
            timeout: Duration::from_millis(self.server.config.timeout_ms),
            output_bytes_max: self.server.config.output_bytes_max,
        })
    }

    fn call<'a>(&'a self, arguments: &'a Value) -> BoxFuture<'a, Result<String, ToolError>> {
        Box::pin(async {
            if let Listed::Absent(reason) = &self.listed {
                return Err(ToolError::Failed(reason.clone()));
            }
            let mut request = CallToolRequestParams::new(self.tool.clone());
            request.arguments = arguments.as_object().cloned();
            let peer = self.server.peer().await.map_err(ToolError::Failed)?;
            match peer.call_tool(request).await {
                Ok(result) => content::shown(&result),
                Err(error) => Err(ToolError::Failed(self.server.explained(&error).await)),
            }
        })
    }
}

/// A server of one step.
struct Server {
    name: String,
    config: McpServer,
    secrets: McpSecrets,
    connection: Mutex<Option<Connection>>,
    starts: AtomicU32,
}

struct Connection {
    service: RunningService<RoleClient, ClientConfig>,
    /// Ended when this is dropped.
    program: Option<stdio::Program>,
}

impl Server {
    fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.config.connect_timeout_ms)
    }

    /// None of its tools can be had, for this reason, which is redacted. The connection ends, if there is one.
    async fn absent(&self, reason: &str) -> Vec<(String, Listed)> {
        self.connection.lock().await.take();
        let reason = cut(reason.to_owned(), REASON_BYTES_MAX);
        tracing::warn!(server = self.name, reason, "an MCP server cannot be used");
        let reason = format!("the MCP server `{}` is not available: {reason}", self.name);
        let absent = |tool: &String| (tool.clone(), Listed::Absent(reason.clone()));
        self.config.tools.iter().map(absent).collect()
    }

    async fn listed(&self, redactor: &Redactor) -> Result<Vec<(String, Listed)>, String> {
        let peer = self.peer().await?;
        match listing::list(&peer, &self.name, &self.config.tools, redactor).await {
            Ok(listed) => Ok(listed),
            Err(error) => Err(self.explained(&error).await),
        }
    }

    /// The connection, made anew where it was lost.
    async fn peer(&self) -> Result<Peer<RoleClient>, String> {
        let mut connection = self.connection.lock().await;
        if let Some(current) = connection
            .as_ref()
            .filter(|current| !current.service.is_transport_closed())
        {
            return Ok(current.service.peer().clone());
        }
        *connection = None;
        if self.starts.fetch_add(1, Ordering::Relaxed) >= STARTS_MAX {
            return Err(format!(
                "the server ended {STARTS_MAX} times, and is not started again in this step"
            ));
        }
        let time = self.connect_timeout();
        let made = match timeout(time, self.connection()).await {
            Ok(made) => made?,
            Err(_) => return Err(format!("it did not answer within {:.1} s", time.as_secs_f64())),
        };
        let peer = made.service.peer().clone();
        *connection = Some(made);
        Ok(peer)
    }

    async fn connection(&self) -> Result<Connection, String> {
        // Nearly all servers know the handshake, and many that do know nothing of discovery end at a first message
        // that is none. The few that have left the handshake behind say so.
        let (service, program) = match self.handshake(ClientLifecycleMode::Initialize).await {
            Ok(made) => made,
            Err(Unconnected::Told(refusal)) => {
                let preferred_versions = vec![ProtocolVersion::LATEST];
                let discover = ClientLifecycleMode::Discover { preferred_versions };
                let discovered = self.handshake(discover).await;
                discovered
                    .map_err(|error| format!("{refusal}; asked by discovery, {}", error.into_reason()))?
            }
            Err(error) => return Err(error.into_reason()),
        };
        let version = service.peer_info().map(|info| info.protocol_version.clone());
        if let Some(version) = version.filter(|version| !ProtocolVersion::KNOWN_VERSIONS.contains(version)) {
            let version = cut(version.as_str().to_owned(), 40);
            return Err(format!(
                "it speaks version `{version}` of the protocol; {}",
                known_versions()
            ));
        }
        service
            .set_response_cache_config(ClientCacheConfig::disabled())
            .await;
        Ok(Connection { service, program })
    }

    async fn handshake(
        &self,
        lifecycle: ClientLifecycleMode,
    ) -> Result<(RunningService<RoleClient, ClientConfig>, Option<stdio::Program>), Unconnected> {
        match &self.config.transport {
            McpTransport::Stdio {
                command, args, env, ..
            } => {
                let env = env.iter().chain(&self.secrets.env);
                let (program, pipes) =
                    stdio::start(command, args, env, MESSAGE_BYTES_MAX).map_err(Unconnected::Lost)?;
                match handshake(pipes, lifecycle).await {
                    Ok(service) => Ok((service, Some(program))),
                    Err(
                        ClientInitializeError::ConnectionClosed(_)
                        | ClientInitializeError::TransportError { .. },
                    ) => Err(Unconnected::Lost(program.why_ended().await)),
                    Err(error) => Err(Unconnected::of(&error)),
                }
            }
            McpTransport::Http { url, .. } => {
                let transport = self.http(url).map_err(Unconnected::Lost)?;
                match handshake(transport, lifecycle).await {
                    Ok(service) => Ok((service, None)),
                    Err(error) => Err(Unconnected::of(&error)),
                }
            }
        }
    }

    fn http(&self, url: &str) -> Result<StreamableHttpClientTransport<reqwest::Client>, String> {
        let parsed = Url::parse(url).map_err(|error| format!("tools.mcp.{}.url: {error}", self.name))?;
        let client = web::client(&parsed, self.connect_timeout(), |builder| builder)?;
        let mut config = StreamableHttpClientTransportConfig::with_uri(url)
            .max_concurrent_requests(REQUESTS_MAX)
            .max_sse_event_size(MESSAGE_BYTES_MAX)
            .max_json_response_size(MESSAGE_BYTES_MAX);
        let mut again = FixedInterval::default();
        (again.max_times, again.duration) = STREAM_AGAIN;
        config.retry_config = Arc::new(again);
        if let Some(token) = &self.secrets.bearer_token {
            config = config.auth_header(token.expose());
        }
        Ok(StreamableHttpClientTransport::with_client(client, config))
    }

    /// Why a request failed, in words for the model.
    async fn explained(&self, error: &ServiceError) -> String {
        match error {
            ServiceError::McpError(error) => {
                format!("the server answers: {} ({})", error.message, error.code.0)
            }
            ServiceError::TransportClosed | ServiceError::TransportSend(_) => {
                let connection = self.connection.lock().await;
                let program = connection
                    .as_ref()
                    .and_then(|connection| connection.program.as_ref());
                match (program, error) {
                    (Some(program), _) => program.why_ended().await,
                    (None, ServiceError::TransportSend(error)) => innermost(error),
                    // The transport does not tell these from each other.
                    (None, _) => format!(
                        "the connection to the server was lost, or it sent a message of more than {MESSAGE_BYTES_MAX} bytes"
                    ),
                }
            }
            ServiceError::UnexpectedResponse => {
                "the server answered with something that is no result of a call, such as a question"
                    .to_owned()
            }
            other => other.to_string(),
        }
    }
}

/// Why there is no connection.
enum Unconnected {
    /// The server answered, and refuses.
    Told(String),
    /// It did not answer, or not by the protocol.
    Lost(String),
}

impl Unconnected {
    fn of(error: &ClientInitializeError) -> Self {
        match error {
            ClientInitializeError::JsonRpcError(error) => {
                Self::Told(format!("it answers: {} ({})", error.message, error.code.0))
            }
            ClientInitializeError::NoCompatibleProtocolVersion { .. } => Self::Told(format!(
                "it speaks no version of the protocol that is known here; {}",
                known_versions()
            )),
            ClientInitializeError::ConnectionClosed(_) => Self::Lost("it closed the connection".to_owned()),
            ClientInitializeError::TransportError { error, .. } => Self::Lost(innermost(error)),
            // The others print what the server sent, which can be anything.
            _ => Self::Lost("its answer to the handshake is none that the protocol allows".to_owned()),
        }
    }

    fn into_reason(self) -> String {
        match self {
            Self::Told(reason) | Self::Lost(reason) => reason,
        }
    }
}

async fn handshake<T, E, A>(
    transport: T,
    lifecycle: ClientLifecycleMode,
) -> Result<RunningService<RoleClient, ClientConfig>, ClientInitializeError>
where
    T: IntoTransport<RoleClient, E, A>,
    E: Error + Send + Sync + 'static,
{
    let client = Implementation::new("punching-fist", env!("CARGO_PKG_VERSION"));
    // Nothing is offered to servers: no model to ask, no files to see, no person to question.
    let config = ClientConfig::new(ClientCapabilities::default(), client)
        .with_protocol_version(ProtocolVersion::LATEST_WITH_INITIALIZE);
    Box::pin(serve_client_with_lifecycle(config, transport, lifecycle)).await
}

fn known_versions() -> String {
    let known: Vec<&str> = ProtocolVersion::KNOWN_VERSIONS
        .iter()
        .map(ProtocolVersion::as_str)
        .collect();
    format!("known are {}", known.join(", "))
}

/// The reason at the bottom of an error. An HTTP client's own text would name the address.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut current = error;
    loop {
        if let Some(error) = current.downcast_ref::<reqwest::Error>() {
            return web::cause(error);
        }
        match current.downcast_ref::<StreamableHttpError<reqwest::Error>>() {
            Some(StreamableHttpError::Client(error)) => return web::cause(error),
            Some(StreamableHttpError::AuthRequired(_) | StreamableHttpError::InsufficientScope(_)) => {
                return "the server does not accept the bearer token, or wants one (bearer_token_file)"
                    .to_owned();
            }
            _ => {}
        }
        match current.source() {
            Some(inner) => current = inner,
            None => return current.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use engine::manifest::Tool;
    use service::Config;

    #[test]
    fn manifests_and_configuration_agree_on_names() {
        let (longest, too_long) = ("a".repeat(32), "a".repeat(33));
        for name in [
            "git", "Git_2-eu", &longest, &too_long, "", "a b", "a.b", "a:b", "gît",
        ] {
            let file = format!("[tools.mcp.{name:?}]\ncommand = \"x\"\ntools = [\"y\"]\n");
            let is_configured = Config::parse(Some(("fist.toml", &file)), std::iter::empty()).is_ok();
            assert_eq!(
                format!("mcp:{name}").parse::<Tool>().is_ok(),
                is_configured,
                "{name:?}"
            );
        }
    }
}
