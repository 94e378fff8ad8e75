//! What becomes of an execution when one of its facts can never be answered: it ends, and says why.
//!
//! Invariants:
//! - The reason is a fact of its own (`dead`), so that it is answered, and replayed, like any other.
//! - Where that one cannot be answered either, because the execution itself cannot be read, the end is appended
//!   without knowing any state; the compare-and-set guards it as it does every append.

use bus::{Appended, Failure, Log, LogMessage};
use protocol::{Append, Cause, Dead, End, EndStatus, Fact, LaneAction, Subject, decode, encode};

use crate::facts::owner;

/// Sees to it that nobody waits for an answer to `message`, which is going to be set aside.
pub(crate) async fn tell<L: Log>(log: &L, message: &LogMessage, reason: &str) -> Result<(), Failure> {
    let (namespace, execution) = owner(message)?;
    let task = match Subject::parse(&message.subject) {
        // A dead letter about a dead letter would go on for ever.
        Ok(Subject::Dead(..)) => return end(log, message, reason).await,
        // Runners read it; the scheduler has nothing to say to it.
        Ok(Subject::Begun(..)) => return Ok(()),
        Ok(Subject::Done(_, _, step, attempt)) => Some((step, attempt)),
        Ok(_) | Err(_) => None,
    };
    let dead = Fact::Dead(Dead {
        subject: message.subject.clone(),
        seq: message.seq,
        reason: reason.to_owned(),
        task,
    });
    let subject = Subject::Dead(namespace, execution, message.seq);
    log.write_fact(&subject, encode(log.now(), &dead)).await?;
    Ok(())
}

/// Ends the execution of `message` without knowing how it stands.
async fn end<L: Log>(log: &L, message: &LogMessage, reason: &str) -> Result<(), Failure> {
    let (namespace, execution) = owner(message)?;
    let messages = log.read_execution(&namespace, execution).await?;
    let mut lane_seq = 0;
    for message in messages
        .iter()
        .filter(|message| message.subject.starts_with("fist.cmd."))
    {
        lane_seq = message.seq;
        let append = decode::<Append>(&message.payload);
        if append.is_ok_and(|envelope| matches!(envelope.body.action, LaneAction::End(_))) {
            return Ok(());
        }
    }
    // Why the dead letter before this one came to be says more than why this one cannot be answered.
    let first_reason = match decode::<Fact>(&message.payload).map(|envelope| envelope.body) {
        Ok(Fact::Dead(dead)) => format!("{} (message {} is among the dead letters)", dead.reason, dead.seq),
        Ok(_) | Err(_) => reason.to_owned(),
    };
    let append = Append {
        cause: Cause {
            subject: message.subject.clone(),
            seq: message.seq,
        },
        records: Vec::new(),
        action: LaneAction::End(End {
            status: EndStatus::Failed,
            error: Some(format!("it cannot go on: {first_reason}")),
            failed_step: None,
            at: log.now(),
        }),
    };
    // A runner may be at work: it is told.
    let subject = Subject::Cancel(namespace, execution);
    match log.append(&subject, encode(log.now(), &append), lane_seq).await? {
        Appended::At(_) => Ok(()),
        Appended::Conflict => Err(Failure::retry("the lane has moved on")),
    }
}
