//! Whether a process lives and whether it can work: `/healthz`, `/readyz`, and
//! `/metrics` beside them.
//!
//! Invariants: a process is not ready before something has reported, nor once
//! it is ending; liveness fails only where a restart would help, so a
//! neighbour that is away makes a process unready, never dead.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;

use crate::metrics::Metrics;

/// The named checks of one process; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Health {
    shared: Arc<Mutex<Shared>>,
    /// Before every name, so that services in one process keep apart.
    part: Option<&'static str>,
}

#[derive(Debug, Default)]
struct Shared {
    checks: BTreeMap<String, Result<(), String>>,
    loops: BTreeMap<String, Loop>,
    stopping: bool,
}

#[derive(Debug)]
struct Loop {
    last: Instant,
    silence_max: Duration,
}

impl Health {
    /// No checks yet, and so not ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same health, where names begin with a service's own: with several
    /// services in one process, each has its own `nats`.
    pub fn part(&self, name: &'static str) -> Self {
        Self {
            shared: self.shared.clone(),
            part: Some(name),
        }
    }

    /// Announces a check that has not reported yet, so that readiness waits for it.
    pub fn expect(&self, check: &'static str) {
        let name = self.name(check);
        self.lock()
            .checks
            .entry(name)
            .or_insert_with(|| Err("has not reported yet".to_owned()));
    }

    /// Reports a check: works, or the reason why not.
    pub fn set(&self, check: &'static str, state: Result<(), String>) {
        let name = self.name(check);
        self.lock().checks.insert(name, state);
    }

    /// The process is ending: from now on it is not ready.
    pub fn stopping(&self) {
        self.lock().stopping = true;
    }

    /// A loop that must show itself at least every `silence_max`; silent for
    /// longer, the process counts as dead. Ends with the value.
    pub fn watch_loop(&self, name: &'static str, silence_max: Duration) -> Heartbeat {
        let name = self.name(name);
        self.lock().loops.insert(
            name.clone(),
            Loop {
                last: Instant::now(),
                silence_max,
            },
        );
        Heartbeat {
            health: self.clone(),
            name,
        }
    }

    /// Whether everything that has been announced works, and why not.
    ///
    /// # Errors
    /// The failing checks by name, with their reasons.
    pub fn readiness(&self) -> Result<(), BTreeMap<String, String>> {
        let shared = self.lock();
        let mut failing: BTreeMap<String, String> = shared
            .checks
            .iter()
            .filter_map(|(name, state)| state.as_ref().err().map(|reason| (name.clone(), reason.clone())))
            .collect();
        if shared.checks.is_empty() {
            failing.insert("start".to_owned(), "nothing has reported yet".to_owned());
        }
        if shared.stopping {
            failing.insert("shutdown".to_owned(), "the process is ending".to_owned());
        }
        if failing.is_empty() { Ok(()) } else { Err(failing) }
    }

    /// Whether every watched loop has shown itself in time.
    ///
    /// # Errors
    /// The silent ones by name, with the time they have been silent.
    pub fn liveness(&self) -> Result<(), BTreeMap<String, String>> {
        let silent: BTreeMap<String, String> = self
            .lock()
            .loops
            .iter()
            .filter(|(_, watched)| watched.last.elapsed() > watched.silence_max)
            .map(|(name, watched)| {
                (
                    name.clone(),
                    format!("has been silent for {} s", watched.last.elapsed().as_secs()),
                )
            })
            .collect();
        if silent.is_empty() { Ok(()) } else { Err(silent) }
    }

    fn name(&self, name: &str) -> String {
        match self.part {
            Some(part) => format!("{part}/{name}"),
            None => name.to_owned(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // Whole values are put in at once, so what a panic left is sound.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sign of life of one loop; see [`Health::watch_loop`].
#[derive(Debug)]
pub struct Heartbeat {
    health: Health,
    name: String,
}

impl Heartbeat {
    /// The loop has come round.
    pub fn beat(&self) {
        if let Some(watched) = self.health.lock().loops.get_mut(&self.name) {
            watched.last = Instant::now();
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.health.lock().loops.remove(&self.name);
    }
}

/// `/healthz`, `/readyz` and `/metrics`, to be served alone or merged into
/// another router.
pub fn router(health: Health, metrics: Metrics) -> Router {
    let live = |State(health): State<Health>| async move { answer("alive", "silent", health.liveness()) };
    let ready = |State(health): State<Health>| async move { answer("ready", "failing", health.readiness()) };
    let exposition =
        move || async move { ([(header::CONTENT_TYPE, Metrics::CONTENT_TYPE)], metrics.encode()) };
    Router::new()
        .route("/healthz", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(exposition))
        .with_state(health)
}

fn answer(good: &str, list: &str, state: Result<(), BTreeMap<String, String>>) -> Response {
    let (code, body) = match state {
        Ok(()) => (StatusCode::OK, json!({ "status": good })),
        Err(failing) => (
            StatusCode::SERVICE_UNAVAILABLE,
            json!({ "status": format!("not {good}"), list: failing }),
        ),
    };
    ([(header::CACHE_CONTROL, "no-store")], (code, axum::Json(body))).into_response()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn ready_only_when_something_has_reported_and_nothing_fails() {
        let health = Health::new();
        assert_eq!(
            health.readiness().unwrap_err()["start"],
            "nothing has reported yet"
        );
        health.expect("nats");
        assert_eq!(health.readiness().unwrap_err()["nats"], "has not reported yet");
        health.set("nats", Ok(()));
        health.expect("nats");
        health.readiness().unwrap();
        health
            .part("store-writer")
            .set("database", Err("connection refused".into()));
        health.part("scheduler").set("database", Ok(()));
        assert_eq!(
            health.readiness().unwrap_err().into_iter().collect::<Vec<_>>(),
            [(
                "store-writer/database".to_owned(),
                "connection refused".to_owned()
            )]
        );
        health.part("store-writer").set("database", Ok(()));
        health.readiness().unwrap();
        health.stopping();
        assert_eq!(
            health.readiness().unwrap_err()["shutdown"],
            "the process is ending"
        );
    }

    #[test]
    fn dead_only_while_a_watched_loop_is_silent() {
        let health = Health::new();
        health.set("nats", Err("away".into()));
        let long = Duration::from_secs(3600);
        let quiet = health.watch_loop("decide", long);
        health.liveness().unwrap();
        let silent = health.watch_loop("project", Duration::ZERO);
        let deadline = Instant::now() + Duration::from_secs(10);
        while health.liveness().is_ok() {
            assert!(Instant::now() < deadline, "a silent loop was never noticed");
        }
        assert_eq!(
            health.liveness().unwrap_err()["project"],
            "has been silent for 0 s"
        );
        health.lock().loops.get_mut("project").unwrap().silence_max = long;
        silent.beat();
        health.liveness().unwrap();
        drop((quiet, silent));
        assert!(health.lock().loops.is_empty());
    }
}
