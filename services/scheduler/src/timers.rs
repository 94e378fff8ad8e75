//! Timers that fired become facts of their execution.
//!
//! Invariant: a fired timer is acknowledged after its fact is written; written twice is written once.

use bus::{Failure, Handler, Log, LogMessage};
use protocol::{Fact, Subject, TimerFired};

/// Republishes fired timers.
#[derive(Debug)]
pub(crate) struct Timers<L> {
    pub(crate) log: L,
}

impl<L: Log> Handler for Timers<L> {
    async fn handle(&self, message: LogMessage, _deliveries: u64) -> Result<(), Failure> {
        match Subject::parse(&message.subject) {
            Ok(Subject::TimerFire(namespace, execution, timer)) => {
                let fact = Fact::Timer(TimerFired { timer: timer.clone() });
                let subject = Subject::Timer(namespace, execution, timer);
                self.log
                    .write_fact(&subject, protocol::encode(self.log.now(), &fact))
                    .await?;
                Ok(())
            }
            Ok(_) => Err(Failure::reject(format!("{} is no fired timer", message.subject))),
            Err(error) => Err(Failure::reject(error.to_string())),
        }
    }
}
