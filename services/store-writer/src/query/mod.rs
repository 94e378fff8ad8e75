//! Answers to `fist.query.read`, by any one of the replicas.
//!
//! Invariants:
//! - Every question is answered, with an error where need be; no answer is larger than
//!   [`REPLY_BYTES_MAX`].
//! - Who was told that an execution was accepted, or has ended, reads no less here: where the database lags
//!   or is away, one execution is folded from the log by the same code.

use std::{sync::Arc, time::Duration};

use bus::{Blobs, Connection, Log, LogError};
use futures_util::StreamExt;
use protocol::{
    ExecutionId, Namespace, Subject,
    query::{
        AlertFilter, Answer, ExecutionFilter, LIMIT_DEFAULT, LIMIT_MAX, Query, QueryError, REPLY_BYTES_MAX,
    },
    subjects,
    views::{AlertView, ExecutionSummary, Page},
};
use service::{Fatal, Service};
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};

use crate::{
    reading::{Message, Reading, read},
    record::{Record, Touched},
    store::{AlertScan, ExecutionScan, LISTED_CHARS_MAX, Store, StoreError},
};

mod cursor;
mod fit;
#[cfg(test)]
mod tests;

/// Replicas share the questions under this name.
const QUEUE_GROUP: &str = "store-writer";

/// Questions answered at one time.
const CONCURRENT_MAX: usize = 64;

/// The database has this long to answer a question; askers wait five seconds.
const DATABASE_TIME: Duration = Duration::from_secs(2);

/// The object store has this long to take a body.
const PUT_TIME: Duration = Duration::from_secs(1);

/// Characters of an error text in a list; the whole is in the execution itself.
const LISTED_TEXT_CHARS: usize = LISTED_CHARS_MAX - 1;

/// Digits of a shortened id, at least.
const PREFIX_CHARS_MIN: usize = 4;

/// Pause before subscribing again after the subscription ended.
const SUBSCRIBE_RETRY_AFTER: Duration = Duration::from_millis(500);

/// What answers questions.
#[derive(Clone)]
pub struct Answerer<L: Log> {
    /// Where executions are read that the database does not have yet.
    pub log: L,
    /// Where records are.
    pub store: Arc<dyn Store>,
    /// Where large bodies go.
    pub blobs: Blobs,
}

/// Answers questions on `connection` until shutdown, and then finishes those in hand.
///
/// # Errors
/// None at present; the connection comes back by itself.
pub async fn serve<L: Log>(
    connection: Connection,
    answerer: Answerer<L>,
    service: Service,
) -> Result<(), Fatal> {
    let permits = Arc::new(Semaphore::new(CONCURRENT_MAX));
    let client = connection.client().clone();
    while !service.shutdown.is_cancelled() {
        let mut questions = match client
            .queue_subscribe(subjects::QUERY, QUEUE_GROUP.to_owned())
            .await
        {
            Ok(questions) => questions,
            Err(error) => {
                tracing::warn!(%error, "cannot take questions yet");
                sleep(SUBSCRIBE_RETRY_AFTER).await;
                continue;
            }
        };
        // Known to the server before anything is reported.
        let flushed = client.flush().await.map_err(|error| error.to_string());
        service.health.set("queries", flushed);
        loop {
            let question = tokio::select! {
                biased;
                () = service.shutdown.cancelled() => break,
                question = questions.next() => question,
            };
            let Some(question) = question else { break };
            let Some(reply) = question.reply.clone() else {
                continue;
            };
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                break;
            };
            let (answerer, client) = (answerer.clone(), client.clone());
            tokio::spawn(async move {
                let answer = answerer.answer_bytes(&question.payload).await;
                if let Err(error) = client.publish(reply, answer.into()).await {
                    tracing::warn!(%error, "an answer could not be sent");
                }
                drop(permit);
            });
        }
        let _ = questions.unsubscribe().await;
    }
    // All permits are back when all questions are answered; the drain time bounds the wait.
    let _ = permits.acquire_many(CONCURRENT_MAX as u32).await;
    Ok(())
}

impl<L: Log> Answerer<L> {
    /// Answers a question as it came over the wire.
    pub async fn answer_bytes(&self, question: &[u8]) -> Vec<u8> {
        let answer = match serde_json::from_slice::<Query>(question) {
            Ok(query) => self.answer(query).await,
            Err(error) => Answer::Error(QueryError::Invalid {
                message: format!("the question cannot be read: {error}"),
            }),
        };
        let bytes = to_bytes(&answer);
        if bytes.len() <= REPLY_BYTES_MAX {
            return bytes;
        }
        tracing::error!(bytes = bytes.len(), "an answer is larger than answers may be");
        to_bytes(&Answer::Error(QueryError::Unavailable {
            message: format!(
                "the answer has {} bytes, and at most {REPLY_BYTES_MAX} can be sent",
                bytes.len()
            ),
        }))
    }

    /// Answers a question.
    pub async fn answer(&self, query: Query) -> Answer {
        let answer = match query {
            Query::Executions(filter) => self.executions(filter).await.map(Answer::Executions),
            Query::Execution { id } => self.execution(id).await,
            Query::ExecutionPrefix { prefix } => self.prefix(&prefix).await.map(Answer::Executions),
            Query::Alerts(filter) => self.alerts(filter).await.map(Answer::Alerts),
            Query::AlertCounts => database(self.store.alert_counts()).await.map(Answer::AlertCounts),
        };
        answer.unwrap_or_else(Answer::Error)
    }

    async fn executions(&self, filter: ExecutionFilter) -> Result<Page<ExecutionSummary>, QueryError> {
        let limit = limit(filter.limit)?;
        let scan = ExecutionScan {
            status: filter.status,
            workflow: filter.workflow,
            namespace: filter.namespace,
            after: filter.cursor.as_deref().map(cursor::execution).transpose()?,
            // One more tells whether there is a next page.
            rows_max: limit + 1,
        };
        let mut items = database(self.store.executions(&scan)).await?;
        let is_last = items.len() <= limit as usize;
        items.truncate(limit as usize);
        let (items, is_all) = fit::page(items.into_iter().map(listed).collect());
        let next = items.last().filter(|_| !(is_last && is_all));
        let next = next.map(|last| cursor::after_execution(last.created_at, last.id));
        Ok(Page { items, next })
    }

    async fn prefix(&self, prefix: &str) -> Result<Page<ExecutionSummary>, QueryError> {
        let (low, high) = prefix_range(prefix)?;
        let items = database(self.store.executions_between(low, high, 2)).await?;
        Ok(Page {
            items: items.into_iter().map(listed).collect(),
            next: None,
        })
    }

    async fn alerts(&self, filter: AlertFilter) -> Result<Page<AlertView>, QueryError> {
        let limit = limit(filter.limit)?;
        for (name, text) in [("source", &filter.source), ("id", &filter.id)] {
            if text.as_deref().is_some_and(|text| text.contains('\0')) {
                return Err(invalid(format!("{name} holds a NUL character; no {name} does")));
            }
        }
        let scan = AlertScan {
            disposition: filter.disposition,
            source: filter.source,
            id: filter.id,
            after: filter.cursor.as_deref().map(cursor::alert).transpose()?,
            rows_max: limit + 1,
        };
        let mut items = database(self.store.alerts(&scan)).await?;
        let is_last = items.len() <= limit as usize;
        items.truncate(limit as usize);
        let (items, is_all) = fit::page(items.into_iter().map(listed_alert).collect());
        let next = items.last().filter(|_| !(is_last && is_all));
        let next = next.map(|last| cursor::after_alert(last.received_at, &last.id));
        Ok(Page { items, next })
    }

    async fn execution(&self, id: ExecutionId) -> Result<Answer, QueryError> {
        let stored = database(self.store.record(id)).await;
        let is_enough = matches!(&stored, Ok(Some(record)) if record.is_settled());
        let record = if is_enough {
            stored?
        } else {
            match self.newest(id, stored.as_ref().ok().cloned().flatten()).await {
                // Neither place has it: that it does not exist is known only if both could be asked.
                Ok(None) => stored?,
                Ok(record) => record,
                Err(error) => match stored {
                    Ok(Some(record)) if record.start.is_some() => Some(record),
                    Ok(_) => {
                        return Err(QueryError::Unavailable {
                            message: error.to_string(),
                        });
                    }
                    Err(database) => {
                        let message = format!("{database}; and {error}");
                        return Err(QueryError::Unavailable { message });
                    }
                },
            }
        };
        let Some(record) = record else {
            return Ok(Answer::Execution(None));
        };
        let put = |body| async {
            let put = timeout(PUT_TIME, self.blobs.put(body)).await;
            put.ok()?
                .inspect_err(|error| tracing::warn!(%error, "a large body could not be stored"))
                .ok()
        };
        let view = fit::view(id, record, put).await;
        Ok(Answer::Execution(view.map(Box::new)))
    }

    /// What the database has, with what the log has beyond it.
    async fn newest(&self, id: ExecutionId, stored: Option<Record>) -> Result<Option<Record>, LogError> {
        let known = stored
            .as_ref()
            .and_then(|record| record.start.as_ref())
            .map(|start| start.namespace.clone());
        let namespace = match known {
            Some(namespace) => namespace,
            None => match self.namespace(id).await? {
                Some(namespace) => namespace,
                None => return Ok(stored),
            },
        };
        if let Some(record) = stored.as_ref().filter(|record| record.start.is_some())
            && record.end.is_none()
            && self.last_seq(&namespace, id).await? <= record.last_seq
        {
            // Nothing newer is in the log.
            return Ok(stored);
        }
        let mut record = stored.unwrap_or_default();
        for message in self.log.read_execution(&namespace, id).await? {
            let reading = read(Message {
                subject: &message.subject,
                seq: message.seq,
                at: message.at,
                payload: &message.payload,
            });
            // What cannot be read is a dead letter of the projector's, and no reason to hide the rest.
            if let Ok(Reading::Change(change)) = reading {
                record.apply(change, &mut Touched::default());
            }
        }
        Ok(Some(record))
    }

    async fn namespace(&self, id: ExecutionId) -> Result<Option<Namespace>, LogError> {
        let start = self.log.last(&subjects::start_anywhere(id)).await?;
        let subject = start.and_then(|start| Subject::parse(&start.subject).ok());
        Ok(subject.and_then(|subject| subject.execution().map(|(namespace, _)| namespace.clone())))
    }

    async fn last_seq(&self, namespace: &Namespace, id: ExecutionId) -> Result<u64, LogError> {
        let lane = subjects::lane_filter(namespace, id);
        let facts = subjects::facts_filter(namespace, id);
        let (lane, fact) = tokio::join!(self.log.last(&lane), self.log.last(&facts));
        let seq = |message: Option<bus::LogMessage>| message.map_or(0, |message| message.seq);
        Ok(seq(lane?).max(seq(fact?)))
    }
}

/// Waits for the database, for as long as an asker does.
async fn database<T>(answer: impl Future<Output = Result<T, StoreError>>) -> Result<T, QueryError> {
    let message = match timeout(DATABASE_TIME, answer).await {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!(
            "the database is not available: it did not answer within {} s",
            DATABASE_TIME.as_secs()
        ),
    };
    Err(QueryError::Unavailable { message })
}

fn limit(asked: Option<u32>) -> Result<u32, QueryError> {
    match asked.unwrap_or(LIMIT_DEFAULT) {
        limit @ 1..=LIMIT_MAX => Ok(limit),
        other => Err(invalid(format!("limit is {other}: use 1 to {LIMIT_MAX}"))),
    }
}

fn invalid(message: String) -> QueryError {
    QueryError::Invalid { message }
}

fn listed(mut summary: ExecutionSummary) -> ExecutionSummary {
    summary.error = summary
        .error
        .map(|error| fit::cut_text(&error, LISTED_TEXT_CHARS));
    summary
}

fn listed_alert(mut alert: AlertView) -> AlertView {
    for text in [&mut alert.name, &mut alert.fingerprint, &mut alert.reason] {
        *text = fit::cut_text(text, LISTED_TEXT_CHARS);
    }
    alert
}

/// All ids that begin with `prefix`.
fn prefix_range(prefix: &str) -> Result<(ExecutionId, ExecutionId), QueryError> {
    const FORM: &str = "00000000-0000-0000-0000-000000000000";
    let prefix = prefix.to_ascii_lowercase();
    let wrong = || {
        let shown = fit::cut_text(&prefix, FORM.len());
        invalid(format!(
            "`{shown}` is not the beginning of an execution's id: give {PREFIX_CHARS_MIN} to {} characters of one, such as 01932f4e",
            FORM.len()
        ))
    };
    if !(PREFIX_CHARS_MIN..=FORM.len()).contains(&prefix.len()) || !prefix.is_ascii() {
        return Err(wrong());
    }
    let padded = |digit: &str| format!("{prefix}{}", FORM[prefix.len()..].replace('0', digit)).parse();
    match (padded("0"), padded("f")) {
        (Ok(low), Ok(high)) => Ok((low, high)),
        _ => Err(wrong()),
    }
}

fn to_bytes(answer: &Answer) -> Vec<u8> {
    // Our own types with string keys: serialising them cannot fail.
    serde_json::to_vec(answer).expect("answers always serialise")
}
