//! `fist store rebuild`: makes the records anew from the log.

use service::{
    Service,
    config::{Config, Secret, process_env},
    shutdown, telemetry,
};

use super::Outcome;
use crate::{
    args::StoreRebuild,
    failure::{Code, Failure},
    show, up,
};

/// Does it.
pub async fn rebuild(asked: StoreRebuild) -> Outcome {
    let mut config = Config::load(asked.config.as_deref(), process_env())?;
    if let Some(url) = asked.nats {
        config.nats.url = url;
    } else {
        let dir = match asked.dir {
            Some(dir) => dir,
            None => up::default_dir(&process_env().collect::<Vec<_>>())?,
        };
        let Some(running) = up::running(&dir) else {
            return Err(Failure::no_server(format!(
                "no `fist up` runs in {}: start it, name its directory with --dir, or a NATS server with --nats",
                dir.display()
            )));
        };
        config.nats.url = running.url;
        config.nats.user = running.user;
        config.nats.password = running.password.map(Secret::new);
        config.database.url = Secret::new(running.database);
    }
    if let Some(url) = asked.database {
        config.database.url = Secret::new(url);
    }
    telemetry::init(&config.log)?;
    let shown = config.database.url_shown();
    let service = Service::new("fist", config.into(), shutdown::on_signals()?);
    store_writer::run_rebuild(service).await?;
    show::line(&format!("{shown} is built anew from the log"));
    Ok(Code::Succeeded)
}
