//! The scheduler: takes facts from the log, and appends what follows from them to their execution's lane.
//!
//! Invariants:
//! - It holds no truth: everything it has in mind can be read from the log again.
//! - Any number of schedulers may run; the compare-and-set on each lane makes one of them the one that answers.

mod counted;
mod definitions;
mod executions;
mod facts;
mod lost;
mod read;
mod timers;
mod traces;

use std::{sync::Arc, time::Duration};

use bus::{Attached, Blobs, Consume, Failure, Log, attach, attach::look_after, topology};
use engine::{Rules, fixgate::Gate};
use service::{Config, Fatal, Metrics, Service, config::FixMode};
use tokio_util::sync::CancellationToken;

use crate::{
    counted::Counted, definitions::Definitions, executions::Executions, facts::Facts, timers::Timers,
};

/// Runs the service until its shutdown.
///
/// # Errors
/// [`Fatal`] where it cannot begin (no NATS, no topology, a fix gate that cannot be) or cannot go on.
pub async fn run(service: Service) -> Result<(), Fatal> {
    let rules = rules(&service.config)?;
    let Attached {
        connection,
        log,
        blobs,
    } = attach(&service).await?;
    let options = Consume::from_config(&service.config, service.config.scheduler.concurrency);
    let states_max = service.config.scheduler.cache_executions_max;
    let metrics = service.metrics.clone();
    let deciding = decide_facts(
        log.clone(),
        blobs,
        rules,
        states_max,
        metrics,
        options,
        service.shutdown.clone(),
    );
    let durables = [topology::SCHEDULER, topology::TIMERS];
    let outcome = tokio::select! {
        outcome = deciding => outcome,
        never = look_after(&service, &log, &durables) => match never {},
    };
    connection.close().await;
    Ok(outcome?)
}

/// Answers facts and fired timers until `shutdown`; generic over the log, so that the simulation runs the very
/// loop that production does.
///
/// # Errors
/// The failure that stopped one of the two consumers.
pub async fn decide_facts<L: Log>(
    log: L,
    blobs: Blobs,
    rules: Rules,
    states_max: usize,
    metrics: Metrics,
    options: Consume,
    shutdown: CancellationToken,
) -> Result<(), Failure> {
    let facts = Facts {
        log: log.clone(),
        blobs,
        rules,
        executions: Executions::new(states_max),
        definitions: Definitions::default(),
        metrics: metrics.clone(),
        spans: log.spans(),
    };
    let facts = Counted {
        handler: facts,
        consumer: topology::SCHEDULER.name,
        metrics: metrics.clone(),
    };
    let timers = Counted {
        handler: Timers { log: log.clone() },
        consumer: topology::TIMERS.name,
        metrics,
    };
    // Either ends the other: half a scheduler would look alive and let executions wait.
    let both = shutdown.child_token();
    let answering = async {
        let outcome = bus::consume(
            log.clone(),
            &topology::SCHEDULER,
            options.clone(),
            Arc::new(facts),
            both.clone(),
        )
        .await;
        both.cancel();
        outcome
    };
    let firing = async {
        let outcome = bus::consume(
            log.clone(),
            &topology::TIMERS,
            options.clone(),
            Arc::new(timers),
            both.clone(),
        )
        .await;
        both.cancel();
        outcome
    };
    let (answered, fired) = tokio::join!(biased; answering, firing);
    answered.and(fired)
}

/// What the configuration decides.
///
/// # Errors
/// [`Fatal`] names the verb that the fix gate cannot check.
pub fn rules(config: &Config) -> Result<Rules, Fatal> {
    let gate = Gate::new(&config.fix.verbs, &config.fix.allowed_namespaces)
        .map_err(|error| Fatal::new(format!("fix.verbs: {error}")))?;
    let everywhere = (config.fix.mode == FixMode::Propose).then(|| "*".to_owned());
    Ok(Rules {
        timer_grace: Duration::from_millis(config.scheduler.timer_grace_ms),
        gate,
        propose_namespaces: config
            .fix
            .propose_namespaces
            .iter()
            .cloned()
            .chain(everywhere)
            .collect(),
    })
}
