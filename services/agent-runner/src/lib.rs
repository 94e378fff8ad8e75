//! agent-runner: performs agent tasks. It lets a model investigate with read-only tools, and gives back findings
//! that are checked against what the tools returned.
//!
//! Invariants:
//! - Nothing that a model says acts: tools only read, and a proposed command is data.
//! - What the log holds is what the model saw: redacted first, recorded second, used third.
//! - A task is acknowledged only after its fact is in the log.

pub mod agent;
pub mod artefacts;
pub mod budget;
pub mod evaluation;
pub mod kubernetes;
pub mod llm;
pub mod redact;
pub mod runner;
pub mod tools;
mod web;

use std::sync::Arc;

use bus::{
    Budgets, Consume, attach,
    attach::look_after,
    runner::{Tasks, perform},
    topology,
};
use engine::fixgate::Gate;
use kubernetes::{Investigator, Kubernetes};
use redact::Redactor;
use runner::Runner;
use service::{
    Fatal, Service, config,
    config::{Secret, Secrets},
};

/// Runs the service until its shutdown, with the keys of this process's environment.
///
/// # Errors
/// [`Fatal`] where it cannot begin (no NATS, no topology, a key file that cannot be read) or cannot go on.
pub async fn run(service: Service) -> Result<(), Fatal> {
    let secrets = Secrets::from_env(&service.config.llm).map_err(|error| Fatal::new(error.to_string()))?;
    Box::pin(serve(service, secrets)).await
}

/// Runs the service with these keys.
///
/// # Errors
/// As [`run`].
pub async fn serve(service: Service, secrets: Secrets) -> Result<(), Fatal> {
    let config = Arc::clone(&service.config);
    let marked: Vec<Secret> = config::process_env()
        .filter(|(name, value)| config.tools.redact_env.contains(name) && !value.is_empty())
        .map(|(_, value)| Secret::new(value))
        .collect();
    let own = [&secrets.anthropic_api_key, &secrets.openai_api_key];
    let own = own.into_iter().flatten().chain(&marked);
    let redactor = Redactor::new(&config.tools.redact, own).map_err(Fatal::new)?;
    let gate = Gate::new(&config.fix.verbs, &config.fix.allowed_namespaces)
        .map_err(|reason| Fatal::new(format!("fix.verbs: {reason}")))?;
    let attached = attach(&service).await?;
    let tasks = Tasks::new(&service, &attached, topology::AGENT);
    let options = Consume::from_config(&config, config.agent.concurrency);
    // Where nobody has a budget, an installation needs no bucket for them.
    let budgets = match config.agent.has_budgets() {
        true => Some(Budgets::open(&attached.connection).await?),
        false => None,
    };
    let kubernetes = Kubernetes::new(config.kubernetes.clone());
    let account = config.tools.kubectl_service_account.clone();
    let runner = Runner {
        tasks: tasks.clone(),
        config,
        secrets,
        redactor,
        gate,
        budgets,
        investigator: account.map(|account| Investigator::new(Arc::clone(&kubernetes), &account)),
        kubernetes,
    };
    let outcome = tokio::select! {
        outcome = perform(&tasks, options, Arc::new(runner)) => outcome,
        never = look_after(&service, &attached.log, &[topology::AGENT]) => match never {},
    };
    attached.connection.close().await;
    outcome
}
