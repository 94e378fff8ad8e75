//! Questions to store-writer, the only door to the database.
//!
//! Invariant: every question is answered or refused within [`ANSWER_MAX`]; that nobody answers is said in words
//! that name the service.

use std::time::Duration;

use bus::Connection;
use protocol::{
    ExecutionId,
    query::{AlertCounts, AlertFilter, Answer, ExecutionFilter, Query, QueryError},
    subjects,
    views::{AlertView, ExecutionSummary, ExecutionView, Page},
};

/// How long to wait for an answer; store-writer itself gives up sooner on a database that is away.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Asks store-writer. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Queries {
    connection: Connection,
}

impl Queries {
    /// Over this connection.
    pub fn new(connection: Connection) -> Self {
        Self { connection }
    }

    /// Executions, newest first.
    pub async fn executions(&self, filter: ExecutionFilter) -> Result<Page<ExecutionSummary>, QueryError> {
        match self.ask(&Query::Executions(filter)).await? {
            Answer::Executions(page) => Ok(page),
            other => Err(unexpected(&other)),
        }
    }

    /// One execution.
    pub async fn execution(&self, id: ExecutionId) -> Result<Option<ExecutionView>, QueryError> {
        match self.ask(&Query::Execution { id }).await? {
            Answer::Execution(found) => Ok(found.map(|view| *view)),
            other => Err(unexpected(&other)),
        }
    }

    /// At most two executions whose ids begin so.
    pub async fn by_prefix(&self, prefix: &str) -> Result<Vec<ExecutionSummary>, QueryError> {
        let query = Query::ExecutionPrefix {
            prefix: prefix.to_owned(),
        };
        match self.ask(&query).await? {
            Answer::Executions(page) => Ok(page.items),
            other => Err(unexpected(&other)),
        }
    }

    /// Deliveries of alerts, newest first.
    pub async fn alerts(&self, filter: AlertFilter) -> Result<Page<AlertView>, QueryError> {
        match self.ask(&Query::Alerts(filter)).await? {
            Answer::Alerts(page) => Ok(page),
            other => Err(unexpected(&other)),
        }
    }

    /// Counts of alerts.
    pub async fn alert_counts(&self) -> Result<AlertCounts, QueryError> {
        match self.ask(&Query::AlertCounts).await? {
            Answer::AlertCounts(counts) => Ok(counts),
            other => Err(unexpected(&other)),
        }
    }

    async fn ask(&self, query: &Query) -> Result<Answer, QueryError> {
        let unavailable = |message: String| QueryError::Unavailable { message };
        let question = serde_json::to_vec(query)
            .map_err(|error| unavailable(format!("the question cannot be written: {error}")))?;
        let request = self.connection.client().request(subjects::QUERY, question.into());
        let reply = match tokio::time::timeout(ANSWER_MAX, request).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) => {
                return Err(unavailable(format!(
                    "the records cannot be read: store-writer does not answer ({error})"
                )));
            }
            Err(_) => {
                return Err(unavailable(format!(
                    "the records cannot be read: store-writer did not answer within {} s",
                    ANSWER_MAX.as_secs()
                )));
            }
        };
        match serde_json::from_slice(&reply.payload) {
            Ok(Answer::Error(error)) => Err(error),
            Ok(answer) => Ok(answer),
            Err(error) => Err(unavailable(format!(
                "store-writer's answer cannot be read: {error}"
            ))),
        }
    }
}

fn unexpected(answer: &Answer) -> QueryError {
    let kind = match answer {
        Answer::Executions(_) => "executions",
        Answer::Execution(_) => "an execution",
        Answer::Alerts(_) => "alerts",
        Answer::AlertCounts(_) => "counts",
        Answer::Error(_) => "an error",
    };
    QueryError::Unavailable {
        message: format!(
            "store-writer answered another question than was asked, with {kind}: are all services of one version?"
        ),
    }
}
