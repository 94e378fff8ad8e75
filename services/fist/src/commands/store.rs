//! `fist store rebuild`: makes the records anew from the log. `fist store verify`: compares them with it.

use service::{
    Service,
    config::{Config, Secret, process_env},
    shutdown, telemetry,
};

use super::Outcome;
use crate::{
    args::StorePlace,
    failure::{Code, Failure},
    show, up,
};

/// Makes them anew.
pub async fn rebuild(asked: StorePlace) -> Outcome {
    let (service, shown) = service_of(asked)?;
    store_writer::run_rebuild(service).await?;
    show::line(&format!("{shown} is built anew from the log"));
    Ok(Code::Succeeded)
}

/// Compares them.
pub async fn verify(asked: StorePlace) -> Outcome {
    let (service, shown) = service_of(asked)?;
    let found = store_writer::run_verify(service).await?;
    for difference in &found.told {
        show::line(&show::clean(difference));
    }
    let compared = format!("{} executions and {} alerts", found.executions, found.alerts);
    if found.is_equal() {
        show::line(&format!(
            "{shown} says what the log says: {compared} of {} messages compared, {} executions expired",
            found.messages, found.expired
        ));
        return Ok(Code::Succeeded);
    }
    let told = found.told.len() as u64;
    if found.differences > told {
        show::line(&format!("… and {} more", found.differences - told));
    }
    show::aside(&format!(
        "error: {shown} differs from the log {} times in {compared}: `fist store rebuild` makes it anew",
        found.differences
    ));
    Ok(Code::Failed)
}

fn service_of(asked: StorePlace) -> Result<(Service, String), Failure> {
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
        if let Some(consumer) = running.consumer {
            config.database.consumer = consumer;
        }
    }
    if let Some(url) = asked.database {
        config.database.url = Secret::new(url);
    }
    telemetry::init(&config.log)?;
    let shown = config.database.url_shown();
    let service = Service::new("fist", config.into(), shutdown::on_signals()?);
    Ok((service, shown))
}
