//! Intake: what sources sent becomes executions, and every alert gets exactly one disposition.
//!
//! Invariants:
//! - A message is acknowledged only once every alert in it has its disposition in the log.
//! - Handling a message again changes nothing: starts and dispositions are written once, and times are those of
//!   the messages.

use std::{sync::Arc, time::Duration};

use bus::{
    Failure, Handler, Log, LogError, LogMessage, NatsLog, Started, Stored, Written, consume, topology::INGEST,
};
use bytes::Bytes;
use engine::context::{ALERTS_CUT, GROUP_ALERTS_MAX, input_of_alert};
use protocol::{
    Alert, AlertStatus, Disposition, DispositionKind, ExecutionId, Input, Json, SourceName, SpanContext,
    Start, Subject, Timestamp, encode,
};
use service::{Config, Metrics};

use crate::{
    POISON_AFTER,
    admission::{Admission, Closed},
    definitions::{Known, Match, Registry, Snapshot},
    identity::{self, Sighting},
    sources::Sources,
    start::{Occasion, Outcome, Starter},
};

/// Attempts at noting when an alert was seen, against other processes that note it at the same time.
const SIGHTING_ATTEMPTS_MAX: u32 = 20;
/// Longest reason that is recorded.
const REASON_CHARS_MAX: usize = 2000;
/// Longest name and severity in the record of an alert that is too large to be recorded whole.
const TEXT_CHARS_MAX: usize = 200;
/// Attempts at recording every alert of a message that is set aside, before it is recorded unread.
const SET_ASIDE_ATTEMPTS_MAX: u64 = 2;
/// How long alerts wait before the log is measured again, once it is nearly full.
const FULL_RETRY_AFTER: Duration = Duration::from_secs(2);

/// Works on the messages of `FIST_ALERTS`.
pub struct Intake {
    log: NatsLog,
    started: Started,
    sources: Sources,
    registry: Registry,
    starter: Starter,
    admission: Admission,
    metrics: Metrics,
    /// After how long unseen an alert without a start time is new again.
    silence: Duration,
}

/// What came to be of one alert.
struct Finding {
    disposition: DispositionKind,
    reason: String,
    executions: Vec<ExecutionId>,
}

impl Finding {
    fn new(disposition: DispositionKind, reason: impl Into<String>) -> Self {
        Self {
            disposition,
            reason: reason.into(),
            executions: Vec::new(),
        }
    }
}

/// One alert's place in its message.
#[derive(Clone)]
struct Delivery {
    token: String,
    seq: u64,
    alerts: u32,
    source: SourceName,
    at: Timestamp,
    caller: Option<SpanContext>,
}

impl Intake {
    /// Over these parts.
    pub fn new(
        log: NatsLog,
        started: Started,
        registry: Registry,
        starter: Starter,
        admission: Admission,
        config: &Config,
        metrics: Metrics,
    ) -> Self {
        Self {
            sources: Sources::new(&config.sources),
            silence: Duration::from_secs(config.ingest.seen_hours * 3600),
            log,
            started,
            registry,
            starter,
            admission,
            metrics,
        }
    }

    /// Gives every alert of a message its disposition. `set_aside`: the reason why nothing is started for them.
    async fn message(&self, message: &LogMessage, set_aside: Option<&str>) -> Result<(), LogError> {
        let (source, read) = match Subject::parse(&message.subject) {
            Ok(Subject::Intake(source)) => {
                let read = self.sources.reader(&source).read(&source, &message.payload);
                (source, read)
            }
            _ => (
                named_after(&message.subject),
                Err(format!(
                    "{} is not fist.alerts.<source>: a source's name is letters, digits, - and _",
                    message.subject
                )),
            ),
        };
        let alerts = match read {
            Ok(alerts) => alerts,
            Err(reason) => return self.unreadable(message, source, reason).await,
        };
        let group: Vec<Alert> = alerts.iter().filter_map(|alert| alert.clone().ok()).collect();
        let definitions = self.registry.current().await?;
        let count = u32::try_from(alerts.len()).unwrap_or(u32::MAX);
        for (index, alert) in alerts.into_iter().enumerate() {
            let delivery = Delivery {
                token: match index {
                    0 => message.seq.to_string(),
                    index => format!("{}-{index}", message.seq),
                },
                seq: message.seq,
                alerts: count,
                source: source.clone(),
                at: message.at,
                caller: message.caller,
            };
            match alert {
                Ok(alert) => {
                    self.alert(&delivery, alert, &group, &definitions, set_aside)
                        .await?
                }
                Err(reason) => {
                    let id = identity::unread_id(&delivery.source, &delivery.token);
                    let finding = Finding::new(DispositionKind::Rejected, reason);
                    self.record(&delivery, id, None, finding).await?;
                }
            }
        }
        Ok(())
    }

    /// Records a message of which nothing could be read as one rejected alert.
    async fn unreadable(
        &self,
        message: &LogMessage,
        source: SourceName,
        reason: String,
    ) -> Result<(), LogError> {
        let delivery = Delivery {
            token: message.seq.to_string(),
            seq: message.seq,
            alerts: 1,
            source,
            at: message.at,
            caller: message.caller,
        };
        let id = identity::unread_id(&delivery.source, &delivery.token);
        self.record(
            &delivery,
            id,
            None,
            Finding::new(DispositionKind::Rejected, reason),
        )
        .await
    }

    async fn alert(
        &self,
        delivery: &Delivery,
        alert: Alert,
        group: &[Alert],
        definitions: &Snapshot,
        set_aside: Option<&str>,
    ) -> Result<(), LogError> {
        let starts_at = match alert.starts_at {
            Some(starts_at) => starts_at,
            None => self.sighted(&alert, delivery.at).await?,
        };
        let id = identity::alert_id(&alert, starts_at);
        let finding = match alert.status {
            _ if set_aside.is_some() => {
                Finding::new(DispositionKind::Rejected, set_aside.unwrap_or_default())
            }
            AlertStatus::Resolved => Finding::new(
                DispositionKind::Resolved,
                "it is over; resolved alerts start nothing",
            ),
            AlertStatus::Firing => match definitions.matching(&alert) {
                Match::Filtered(reason) => Finding::new(DispositionKind::Filtered, reason),
                Match::Wanted(wanted) => {
                    let alert = Alert {
                        starts_at: Some(starts_at),
                        ..alert.clone()
                    };
                    self.started(delivery, &alert, starts_at, group, &wanted).await?
                }
            },
        };
        self.record(delivery, id, Some(alert), finding).await
    }

    /// Since when an alert without a start time counts as firing.
    async fn sighted(&self, alert: &Alert, at: Timestamp) -> Result<Timestamp, LogError> {
        let key = identity::sighting_key(&alert.source, &alert.fingerprint, alert.status);
        for _ in 0..SIGHTING_ATTEMPTS_MAX {
            let entry = self.started.get(&key).await?;
            let before = entry
                .as_ref()
                .and_then(|entry| serde_json::from_slice(&entry.value).ok());
            let now = Sighting::seen(before, at, self.silence);
            if Some(now) == before {
                return Ok(now.first);
            }
            let value: Bytes = serde_json::to_vec(&now).unwrap_or_default().into();
            let stored = match entry {
                None => self.started.create(&key, value).await?,
                Some(entry) => self.started.refresh(&key, value, entry.revision).await?,
            };
            if matches!(stored, Stored::At(_)) {
                return Ok(now.first);
            }
        }
        Err(LogError::Unavailable {
            action: "note when the alert was seen".to_owned(),
            reason: "other processes kept noting it at the same time".to_owned(),
        })
    }

    /// Starts what wants the alert.
    async fn started(
        &self,
        delivery: &Delivery,
        alert: &Alert,
        starts_at: Timestamp,
        group: &[Alert],
        wanted: &[Arc<Known>],
    ) -> Result<Finding, LogError> {
        let (mut begun, mut merged, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        let mut reasons = Vec::new();
        for known in wanted {
            let id = identity::execution_of_alert(&known.namespace, &known.name, alert, starts_at);
            let workflow = format!("{}/{}", known.namespace, known.name);
            match self.start(delivery, alert, id, group, known).await {
                // A redelivery of this very message finds what it started itself before it was cut off.
                Ok(Outcome::New) => begun.push(id),
                Ok(Outcome::Already(first)) if first.delivery.as_deref() == Some(&delivery.token) => {
                    begun.push(id)
                }
                Ok(Outcome::Already(first)) => {
                    let by = first
                        .delivery
                        .map(|first| format!(" by delivery {first}"))
                        .unwrap_or_default();
                    reasons.push(format!("execution {id} of {workflow} was started before{by}"));
                    merged.push(id);
                }
                Err(error) if error.is_transient() => return Err(error),
                Err(error @ LogError::Missing { .. }) => return Err(error),
                Err(error) => {
                    reasons.push(format!("{workflow} could not be started: {error}"));
                    refused.push(id);
                }
            }
        }
        if !begun.is_empty() && group.len() > GROUP_ALERTS_MAX {
            let alerts = group.len();
            reasons.push(format!(
                "its group has {alerts} alerts, of which `source.data.alerts` holds {GROUP_ALERTS_MAX}"
            ));
        }
        let disposition = match (begun.is_empty(), merged.is_empty()) {
            (false, _) => DispositionKind::Started,
            (true, false) => DispositionKind::Merged,
            (true, true) => DispositionKind::Rejected,
        };
        begun.extend(merged);
        Ok(Finding {
            disposition,
            reason: reasons.join("; "),
            executions: begun,
        })
    }

    async fn start(
        &self,
        delivery: &Delivery,
        alert: &Alert,
        id: ExecutionId,
        group: &[Alert],
        known: &Known,
    ) -> Result<Outcome, LogError> {
        let unreadable = |what: &str, error: serde_json::Error| LogError::Damaged {
            what: what.to_owned(),
            reason: error.to_string(),
        };
        let spec = known
            .workflow
            .spec
            .carried()
            .map_err(|error| unreadable("its spec", error))?;
        let with = |input: &Input| -> Result<Start, LogError> {
            Ok(Start {
                namespace: known.namespace.clone(),
                execution: id,
                workflow: known.name.clone(),
                trigger_source: alert.source.to_string(),
                spec: spec.clone(),
                input: Json::of(input).map_err(|error| unreadable("its input", error))?,
                delivery: Some(delivery.token.clone()),
                uid: None,
            })
        };
        let occasion = Occasion {
            since: delivery.at,
            caller: delivery.caller,
        };
        let started = match with(&input_of_alert(alert, group)) {
            Ok(start) => self.starter.start_execution(&start, &occasion).await,
            Err(error) => Err(error),
        };
        match started {
            // The alert itself matters; those that came with it are company.
            Err(error @ (LogError::TooLarge { .. } | LogError::Damaged { .. })) if group.len() > 1 => {
                let mut alone = input_of_alert(alert, std::slice::from_ref(alert));
                let cut = group.len() - 1;
                alone.data.insert(ALERTS_CUT.to_owned(), cut.into());
                tracing::warn!(execution = %id, cut, %error, "the alerts that came with it are left out of its input");
                self.starter.start_execution(&with(&alone)?, &occasion).await
            }
            outcome => outcome,
        }
    }

    async fn record(
        &self,
        delivery: &Delivery,
        id: protocol::AlertId,
        alert: Option<Alert>,
        finding: Finding,
    ) -> Result<(), LogError> {
        let subject = Subject::Disposition(delivery.source.clone(), id.clone(), delivery.token.clone());
        let mut disposition = Disposition {
            id,
            delivery: delivery.token.clone(),
            delivery_seq: delivery.seq,
            delivery_alerts: delivery.alerts,
            source: delivery.source.clone(),
            alert,
            disposition: finding.disposition,
            reason: finding.reason.chars().take(REASON_CHARS_MAX).collect(),
            executions: finding.executions,
            received_at: delivery.at,
        };
        let body = encode(self.log.now(), &disposition);
        let written = match self.log.write_fact(&subject, body).await {
            Err(LogError::TooLarge { .. }) => {
                shorten(&mut disposition);
                self.log
                    .write_fact(&subject, encode(self.log.now(), &disposition))
                    .await?
            }
            other => other?,
        };
        if matches!(written, Written::New(_)) {
            self.metrics
                .alert(delivery.source.as_str(), disposition.disposition.as_str());
            tracing::info!(
                source = %delivery.source,
                delivery = delivery.token,
                disposition = disposition.disposition.as_str(),
                executions = disposition.executions.len(),
                "alert recorded"
            );
        }
        Ok(())
    }
}

impl Handler for Intake {
    async fn handle(&self, message: LogMessage, deliveries: u64) -> Result<(), Failure> {
        self.metrics.delivery(INGEST.name, deliveries);
        // What came straight over NATS has passed no door: it waits here until there is room.
        match self.admission.check().await {
            Ok(()) => {}
            Err(Closed::Full { percent }) => {
                return Err(Failure::Retry {
                    after: FULL_RETRY_AFTER,
                    reason: Closed::Full { percent }.to_string(),
                });
            }
            Err(Closed::Unknown(error)) => return Err(error.into()),
        }
        let outcome = self.message(&message, None).await.map_err(Failure::from);
        if let Err(Failure::Reject { .. }) = &outcome {
            self.metrics.dead_letter(INGEST.name);
        }
        outcome
    }

    /// The alerts of a message that kills its handlers still get their dispositions, so that the balance holds;
    /// those that have one keep it. Then it is set aside.
    async fn poisoned(&self, message: LogMessage, trials: u64) -> Result<(), Failure> {
        let failure = consume::poison(&message, trials);
        let source = match Subject::parse(&message.subject) {
            Ok(Subject::Intake(source)) => source,
            _ => named_after(&message.subject),
        };
        let reason = format!("it was set aside: {failure}");
        if trials < POISON_AFTER + SET_ASIDE_ATTEMPTS_MAX {
            self.message(&message, Some(&reason)).await?;
        } else {
            // Reading it is what kills.
            self.unreadable(&message, source, reason).await?;
        }
        self.metrics.dead_letter(INGEST.name);
        Err(failure)
    }
}

/// Leaves of an alert what its record cannot do without: what became of it matters more than its labels.
fn shorten(disposition: &mut Disposition) {
    if let Some(alert) = &mut disposition.alert {
        let cut = |text: &str| text.chars().take(TEXT_CHARS_MAX).collect::<String>();
        alert.name = cut(&alert.name);
        alert.severity = cut(&alert.severity);
        alert.annotations.clear();
        alert.labels = [("alertname", &alert.name), ("severity", &alert.severity)]
            .map(|(name, value)| (name.to_owned(), value.as_str().into()))
            .into_iter()
            .collect();
    }
}

/// The nearest thing to a source's name in a subject that holds none.
fn named_after(subject: &str) -> SourceName {
    let rest = subject.strip_prefix("fist.alerts.").unwrap_or(subject);
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || c == '-' || c == '_' {
            c
        } else {
            '_'
        }
    };
    let name: String = rest.chars().take(100).map(plain).collect();
    SourceName::new(name)
        .or_else(|_| SourceName::new("unknown"))
        .expect("`unknown` is a source's name")
}
