//! `fist nats init` and `fist nats users`: sets up NATS, and says who may use it.

use std::time::Duration;

use bus::Connection;
use service::config::{Config, process_env};

use super::Outcome;
use crate::{
    args::NatsInit,
    failure::{Code, Failure},
    show, up,
};

/// How long to look for the server.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Prints the users of a nats-server with their permissions.
pub fn users() -> Outcome {
    show::line(bus::permissions::rendered().trim_end());
    Ok(Code::Succeeded)
}

/// Makes what is not there.
pub async fn init(asked: NatsInit) -> Outcome {
    let mut config = Config::load(asked.config.as_deref(), process_env())?;
    if let Some(url) = asked.nats {
        config.nats.url = url;
    }
    let settings = up::bus_settings(&config, "nats init", CONNECT_MAX);
    let connection = Connection::open(&settings).await.map_err(|error| match error {
        bus::ConnectError::Settings { .. } => Failure::misuse(error.to_string()),
        error => Failure::no_server(error.to_string()),
    })?;
    let outcome = up::init(&connection, &config).await;
    connection.close().await;
    outcome.map_err(|error| Failure::failed(error.to_string()))?;
    show::line(&format!("NATS at {} is set up", config.nats.url));
    Ok(Code::Succeeded)
}
