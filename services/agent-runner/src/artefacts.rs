//! What the steps before an agent's step left: read from the facts of the same execution, and from the object store.
//!
//! Invariant: nothing is read but what the step's own task names.

use bus::{Blobs, Log};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use protocol::{
    BlobRef, Body, ExecutionId, Fact, Namespace, Subject, decode,
    lane::{EarlierStep, Left},
};
use serde_json::Value;

/// The output of an ended step.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// The value; `None` where there is none.
    pub value: Option<Value>,
    /// What a reader has to know about it, where it is not the whole.
    pub note: Option<String>,
}

/// What earlier steps of the same execution left.
pub trait Earlier: Send + Sync {
    /// The steps, in the workflow's order.
    fn steps(&self) -> &[EarlierStep];
    /// The output of one of [`Earlier::steps`]. Errors say why it cannot be read now.
    fn output<'a>(&'a self, step: &'a EarlierStep) -> BoxFuture<'a, Result<Output, String>>;
    /// The bytes that an output refers to; `None` where the store has them no more.
    fn whole<'a>(&'a self, blob: &'a BlobRef) -> BoxFuture<'a, Result<Option<Bytes>, String>>;
}

/// The steps that a task names, in the log.
pub struct InLog<L> {
    /// The log.
    pub log: L,
    /// Large bodies.
    pub blobs: Blobs,
    /// Where the execution belongs.
    pub namespace: Namespace,
    /// Which execution.
    pub execution: ExecutionId,
    /// The steps that its task names.
    pub steps: Vec<EarlierStep>,
}

impl<L: Log> Earlier for InLog<L> {
    fn steps(&self) -> &[EarlierStep] {
        &self.steps
    }

    fn output<'a>(&'a self, step: &'a EarlierStep) -> BoxFuture<'a, Result<Output, String>> {
        Box::pin(async move {
            let (value, note) = match &step.left {
                Left::Fact(attempt) => {
                    let name = step.step.clone();
                    let subject = Subject::Done(self.namespace.clone(), self.execution, name, *attempt);
                    return self.of_fact(&subject.to_string()).await;
                }
                Left::Output(value) => (Some(value.clone()), None),
                Left::TooLarge(bytes) => {
                    let note = format!("its output of {bytes} bytes is only in the execution's record");
                    (None, Some(note))
                }
                Left::Nothing => (None, None),
            };
            Ok(Output { value, note })
        })
    }

    fn whole<'a>(&'a self, blob: &'a BlobRef) -> BoxFuture<'a, Result<Option<Bytes>, String>> {
        Box::pin(async move { self.blobs.get(blob).await.map_err(|error| error.to_string()) })
    }
}

impl<L: Log> InLog<L> {
    async fn of_fact(&self, subject: &str) -> Result<Output, String> {
        let message = self.log.last(subject).await.map_err(|error| error.to_string())?;
        let message = message.ok_or("its result is in the log no more")?;
        let fact = decode::<Fact>(&message.payload).map_err(|error| error.to_string())?;
        let Fact::Done(done) = fact.body else {
            return Err(format!("{subject} holds no result"));
        };
        let (value, note) = match done.output {
            None => (None, None),
            Some(Body::Inline(value)) => (Some(value), None),
            Some(Body::Blob { blob, preview }) => match self.whole(&blob).await? {
                Some(bytes) => {
                    let value = serde_json::from_slice(&bytes)
                        .map_err(|error| format!("the object {} is no JSON: {error}", blob.sha256))?;
                    (Some(value), None)
                }
                None => {
                    let note = "shortened: the object store has the whole no more".to_owned();
                    (Some(preview), Some(note))
                }
            },
        };
        Ok(Output { value, note })
    }
}
