//! The connection to NATS: made from plain settings, checked once, kept for ever.
//!
//! Invariants:
//! - The first connection has a deadline and an error text with the remedy; later ones are tried for ever,
//!   with a bounded delay.
//! - A server that cannot do what the protocol needs is refused before anything is written.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use async_nats::{ConnectOptions, Event, jetstream};
use service::http::is_this_machine;
use tokio::{sync::watch, time::Instant};

use crate::permissions::inbox_prefix;

/// The oldest server that has message schedules.
pub const SERVER_VERSION_MIN: (u64, u64) = (2, 12);

/// How to reach NATS.
#[derive(Clone, Default)]
pub struct Settings {
    /// Addresses, separated by commas: `nats://host:4222`, `tls://host:4222`.
    pub url: String,
    /// File with a user's credentials; takes the place of user and password.
    pub credentials_file: Option<PathBuf>,
    /// User name and password.
    pub user_and_password: Option<(String, String)>,
    /// What the subjects of answers begin with; absent: `_INBOX.<user>`, and without a user `_INBOX`.
    pub inbox_prefix: Option<String>,
    /// PEM file with certificate authorities to trust beside the system's.
    pub tls_ca_file: Option<PathBuf>,
    /// How the server's own lists show this client: `fist scheduler on web-1`.
    pub client_name: String,
    /// How long one attempt may take.
    pub attempt_time: Duration,
    /// How long to go on trying for the first connection.
    pub deadline: Duration,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the password.
        f.debug_struct("Settings")
            .field("url", &self.url)
            .field("client_name", &self.client_name)
            .finish_non_exhaustive()
    }
}

/// A connection. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connection {
    pub(crate) client: async_nats::Client,
    pub(crate) context: jetstream::Context,
    url: String,
    connected: watch::Receiver<Connected>,
}

/// Since when there is a connection; `None` while there is none. Readers are told of each new one.
pub(crate) type Connected = Option<Instant>;

/// Why there is no connection. The text is one sentence with the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The settings cannot be right.
    #[error("{reason}")]
    Settings {
        /// What is wrong, and the remedy.
        reason: String,
    },
    /// No server answered within the deadline.
    #[error(
        "no NATS server answers at {url} ({reason}): start one, or set `nats.url` (FIST_NATS_URL) to where it is"
    )]
    Unreachable {
        /// Where it was looked for.
        url: String,
        /// The last attempt's error.
        reason: String,
    },
    /// It cannot prove that it is the server that was meant.
    #[error(
        "the certificate of the NATS server at {url} is refused ({reason}): set `nats.tls_ca_file` to the authority that signed it, and `nats.url` to a name that stands in it"
    )]
    Untrusted {
        /// Where.
        url: String,
        /// What is wrong with the certificate.
        reason: String,
    },
    /// It refuses this user.
    #[error(
        "the NATS server at {url} refuses these credentials ({reason}): set `nats.user` and `nats.password`, or `nats.credentials_file`"
    )]
    Unauthorized {
        /// Where.
        url: String,
        /// The server's words.
        reason: String,
    },
    /// It is too old.
    #[error(
        "nats-server ≥ {}.{} is needed, found {found} at {url}: upgrade it (2.15 or newer is recommended)",
        SERVER_VERSION_MIN.0,
        SERVER_VERSION_MIN.1
    )]
    TooOld {
        /// Where.
        url: String,
        /// Its version.
        found: String,
    },
    /// It has no JetStream.
    #[error(
        "the NATS server at {url} has no JetStream ({reason}): start it with `-js`, or enable `jetstream` in its configuration and for this account"
    )]
    NoJetStream {
        /// Where.
        url: String,
        /// The server's words.
        reason: String,
    },
}

/// One JetStream request may take this long.
pub(crate) const REQUEST_TIME: Duration = Duration::from_secs(5);

/// Pauses between attempts to reconnect grow to this.
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(2);

/// Pause between attempts at the first connection.
const FIRST_CONNECT_PAUSE: Duration = Duration::from_millis(200);

impl Connection {
    /// Connects, and checks that the server can do what is needed.
    ///
    /// # Errors
    /// [`ConnectError`], after [`Settings::deadline`] at the latest.
    pub async fn open(settings: &Settings) -> Result<Self, ConnectError> {
        let deadline = Instant::now() + settings.deadline;
        let url = settings.url.clone();
        let (tell, connected) = watch::channel(None);
        let tell = Arc::new(tell);
        let client = loop {
            let error = match options(settings, Arc::clone(&tell))
                .await?
                .connect(addresses(&url)?)
                .await
            {
                Ok(client) => break client,
                Err(error) => error,
            };
            let reason = error.to_string();
            // It will not get better, unlike a handshake with a server that is just starting or ending.
            if let Some(reason) = refused_certificate(&error) {
                return Err(ConnectError::Untrusted { url, reason });
            }
            if matches!(
                error.kind(),
                async_nats::ConnectErrorKind::Authentication
                    | async_nats::ConnectErrorKind::AuthorizationViolation
            ) {
                return Err(ConnectError::Unauthorized { url, reason });
            }
            if Instant::now() + FIRST_CONNECT_PAUSE >= deadline {
                return Err(ConnectError::Unreachable { url, reason });
            }
            tracing::debug!(url, reason, "no NATS server yet");
            tokio::time::sleep(FIRST_CONNECT_PAUSE).await;
        };
        let context = jetstream::context::ContextBuilder::new()
            .timeout(REQUEST_TIME)
            .ack_timeout(REQUEST_TIME)
            .build(client.clone());
        let connection = Self {
            client,
            context,
            url,
            connected,
        };
        connection.check_server(deadline).await?;
        Ok(connection)
    }

    /// Whether the server is reachable at this moment.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }

    /// The server's version, as it was told at the last connect.
    pub fn server_version(&self) -> String {
        self.client.server_info().version
    }

    /// Where it was configured to connect to.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What strangers could do with this server, each with the remedy. Nothing is said of a server on this machine.
    pub fn exposures(&self) -> Vec<&'static str> {
        let info = self.client.server_info();
        exposures(&self.url, info.auth_required, info.tls_required)
    }

    /// The client, for requests and services on core NATS (`fist.query.*`).
    pub fn client(&self) -> &async_nats::Client {
        &self.client
    }

    /// Sends what is buffered (acks among it) and closes. Bounded in time.
    pub async fn close(self) {
        let _ = tokio::time::timeout(REQUEST_TIME, self.client.flush()).await;
        let _ = self.client.drain().await;
    }

    /// Tells of each new connection, to notice what a broken one has lost.
    pub(crate) fn connected(&self) -> watch::Receiver<Connected> {
        self.connected.clone()
    }

    /// For how long the connection has not broken.
    pub(crate) fn unbroken(&self) -> Duration {
        let since = *self.connected.borrow();
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    async fn check_server(&self, deadline: Instant) -> Result<(), ConnectError> {
        let info = self.client.server_info();
        let url = self.url.clone();
        if !is_new_enough(&info.version) {
            return Err(ConnectError::TooOld {
                url,
                found: info.version,
            });
        }
        // A cluster that elects its leader answers a little later.
        loop {
            let reason = match self.context.query_account().await {
                Ok(_) => return Ok(()),
                Err(error) => error.to_string(),
            };
            if !info.jetstream || Instant::now() + FIRST_CONNECT_PAUSE >= deadline {
                return Err(ConnectError::NoJetStream { url, reason });
            }
            tokio::time::sleep(FIRST_CONNECT_PAUSE).await;
        }
    }
}

/// What is wrong with the server's certificate, where that is why there is no connection.
fn refused_certificate(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        // The reason is inside of an I/O error, which does not give it as its source.
        let inner = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::InvalidCertificate(_)) = inner.or_else(|| error.downcast_ref()) {
            return inner.map(ToString::to_string).or_else(|| Some(error.to_string()));
        }
        cause = error.source();
    }
    None
}

fn exposures(url: &str, asks_who: bool, is_encrypted: bool) -> Vec<&'static str> {
    let parts = || url.split(',').map(str::trim);
    let place = |part: &str| part.split_once("://").map_or(part, |(_, place)| place).to_owned();
    if parts().all(|part| is_this_machine(&place(part))) {
        return Vec::new();
    }
    let by_address = parts().all(|part| part.starts_with("tls://") || part.starts_with("wss://"));
    let mut found = Vec::new();
    if !asks_who {
        found.push(
            "the NATS server asks nobody for credentials, and whoever can publish to it can run commands: give it users (`fist nats users` prints them), and set nats.user and nats.password, or nats.credentials_file",
        );
    }
    if !is_encrypted && !by_address {
        found.push(
            "the connection to NATS is not encrypted, and it is not on this machine alone: give the server a certificate, and set nats.url to tls://… (and nats.tls_ca_file where its authority is your own)",
        );
    }
    found
}

/// Whether a version such as `2.15.2` or `2.12.0-RC.1` has what is needed.
pub(crate) fn is_new_enough(version: &str) -> bool {
    let mut numbers = version
        .trim_start_matches('v')
        .split(['.', '-', '+'])
        .map(|part| part.parse::<u64>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) >= SERVER_VERSION_MIN,
        _ => false,
    }
}

fn addresses(url: &str) -> Result<Vec<async_nats::ServerAddr>, ConnectError> {
    let addresses: Result<Vec<_>, _> = url
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| {
            part.parse::<async_nats::ServerAddr>()
                .map_err(|error| ConnectError::Settings {
                    reason: format!(
                        "`nats.url`: `{part}` is not an address such as nats://127.0.0.1:4222: {error}"
                    ),
                })
        })
        .collect();
    match addresses? {
        list if list.is_empty() => Err(ConnectError::Settings {
            reason: "`nats.url` is empty: set it to an address such as nats://127.0.0.1:4222".to_owned(),
        }),
        list => Ok(list),
    }
}

async fn options(
    settings: &Settings,
    tell: Arc<watch::Sender<Connected>>,
) -> Result<ConnectOptions, ConnectError> {
    let mut options = ConnectOptions::new()
        .name(&settings.client_name)
        .connection_timeout(settings.attempt_time)
        .request_timeout(Some(REQUEST_TIME))
        .max_reconnects(None)
        .reconnect_delay_callback(reconnect_delay)
        .event_callback(move |event| {
            match event {
                Event::Connected => {
                    tell.send_replace(Some(Instant::now()));
                }
                // Nobody is told: what is lost is asked for again once there is somebody to ask.
                Event::Disconnected => {
                    tell.send_if_modified(|since| {
                        *since = None;
                        false
                    });
                }
                _ => {}
            }
            async move { log_event(&event) }
        });
    if let Some(file) = &settings.credentials_file {
        options = options
            .credentials_file(file)
            .await
            .map_err(|error| ConnectError::Settings {
                reason: format!(
                    "`nats.credentials_file` {} cannot be read: {error}",
                    file.display()
                ),
            })?;
    } else if let Some((user, password)) = &settings.user_and_password {
        options = options.user_and_password(user.clone(), password.clone());
    }
    // Else whoever may listen at `_INBOX.>` reads what is delivered to all others.
    let own = settings.user_and_password.as_ref().map(|(user, _)| user);
    let own = own.filter(|user| is_token(user)).map(|user| inbox_prefix(user));
    if let Some(prefix) = settings.inbox_prefix.clone().or(own) {
        options = options.custom_inbox_prefix(prefix);
    }
    if let Some(file) = &settings.tls_ca_file {
        if !file.is_file() {
            return Err(ConnectError::Settings {
                reason: format!("`nats.tls_ca_file` {} is not a file", file.display()),
            });
        }
        options = options.add_root_certificates(file.clone());
    }
    Ok(options)
}

/// Whether a name can be one part of a subject.
fn is_token(name: &str) -> bool {
    !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

/// 0, 50, 100, 200 … 2,000 ms, with the process's own jitter so that replicas do not come back in step.
fn reconnect_delay(attempts: usize) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1))
        .unwrap_or(u32::MAX)
        .min(6);
    if attempts <= 1 {
        return Duration::ZERO;
    }
    let base = Duration::from_millis(25 << doublings).min(RECONNECT_DELAY_MAX);
    base + crate::jitter::up_to(base / 4)
}

fn log_event(event: &Event) {
    match event {
        Event::Connected => tracing::info!("connected to NATS"),
        Event::Disconnected => tracing::warn!("disconnected from NATS; reconnecting"),
        Event::LameDuckMode => tracing::info!("the NATS server is shutting down; moving to another"),
        Event::Draining | Event::Closed => tracing::debug!(%event, "NATS connection"),
        Event::SlowConsumer(subscription) => {
            tracing::warn!(
                subscription,
                "a subscription is slow; messages of it were dropped"
            );
        }
        Event::ServerError(error) => tracing::warn!(%error, "the NATS server reports an error"),
        Event::ClientError(error) => tracing::warn!(%error, "the NATS client reports an error"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for good in ["2.12.0", "2.15.2", "v2.12.1", "3.0.0", "2.12.0-RC.2"] {
            assert!(is_new_enough(good), "{good}");
        }
        for bad in ["2.9.25", "2.11.99", "1.99.0", "", "two"] {
            assert!(!is_new_enough(bad), "{bad}");
        }
    }

    #[test]
    fn what_strangers_could_do_is_said_where_they_could_come_from() {
        for near in [
            "nats://127.0.0.1:4222",
            "localhost",
            "nats://[::1]:4222, nats://127.0.0.2:4222",
        ] {
            assert_eq!(exposures(near, false, false).len(), 0, "{near}");
        }
        for (url, asks_who, is_encrypted, count) in [
            ("nats://nats:4222", false, false, 2),
            ("nats://nats:4222", true, false, 1),
            ("nats://nats:4222", true, true, 0),
            ("tls://nats:4222", true, false, 0),
            ("tls://nats:4222", false, false, 1),
            ("tls://a:4222,nats://b:4222", true, false, 1),
            ("nats://127.0.0.1:4222,nats://b:4222", false, true, 1),
        ] {
            assert_eq!(exposures(url, asks_who, is_encrypted).len(), count, "{url}");
        }
    }

    #[test]
    fn reconnect_delays_are_bounded() {
        assert_eq!(reconnect_delay(0), Duration::ZERO);
        assert_eq!(reconnect_delay(1), Duration::ZERO);
        for attempt in 2..200 {
            assert!(reconnect_delay(attempt) <= RECONNECT_DELAY_MAX * 5 / 4);
        }
    }
}
