//! A durable consumer of the simulated broker.

use std::{fmt, time::Duration};

use super::{Cut, FaultKind, Found, SimBroker, client::Pass, log::SimLog};
use crate::{
    inbox::{Delivery, Inbox, Receipt, Settlement},
    log::LogError,
    topology::Durable,
};

/// One end of a durable consumer.
pub struct SimInbox {
    log: SimLog,
    durable: Durable,
}

impl SimInbox {
    pub(super) fn new(log: SimLog, durable: Durable) -> Self {
        Self { log, durable }
    }
}

impl Inbox for SimInbox {
    fn ack_wait(&self) -> Duration {
        self.durable.ack_wait
    }

    async fn next_batch(&mut self, max: usize, wait_max: Duration) -> Result<Vec<Delivery>, LogError> {
        let broker = &self.log.broker;
        let deadline = broker.moment().instant + wait_max;
        // Which of several clients is first is drawn, not a matter of their order.
        self.log.lag().await;
        let name = self.durable.name;
        let client = self.log.id;
        let given = broker.wait_for(Some(deadline), |state, now| {
            if state.client(client).is_crashed {
                return Found::Nothing { until: None };
            }
            if let until @ Some(_) = state.client(client).deaf_until(now.instant) {
                return Found::Nothing { until };
            }
            // Not always all: another client may take the rest.
            let share = if max > 1 && state.faults.delivery_delay_max > Duration::ZERO {
                1 + state.rng.below(max as u64) as usize
            } else {
                max
            };
            let given = state.take(name, share, now);
            if given.is_empty() {
                let until = state.next_due(name, now);
                Found::Nothing { until }
            } else {
                Found::This(given)
            }
        });
        let given = given.await.unwrap_or_default();
        let deliver = |given: super::state::Given| Delivery {
            receipt: Receipt::Sim(SimReceipt {
                broker: broker.clone(),
                client,
                consumer: name,
                seq: given.message.seq,
            }),
            message: given.message,
            deliveries: given.deliveries,
        };
        Ok(given.into_iter().map(deliver).collect())
    }

    async fn close(self) {}
}

/// Where the simulated broker hears about a delivery.
#[derive(Clone)]
pub(crate) struct SimReceipt {
    broker: SimBroker,
    client: u64,
    consumer: &'static str,
    seq: u64,
}

impl fmt::Debug for SimReceipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimReceipt({} #{})", self.consumer, self.seq)
    }
}

impl SimReceipt {
    pub(crate) fn settle(&self, settlement: Settlement) {
        let now = self.broker.moment();
        let mut state = self.broker.state();
        let (consumer, seq, client) = (self.consumer, self.seq, self.client);
        // A kill between a handler's end and its ack.
        if matches!(state.client(client).pass(now.instant, Duration::ZERO), Pass::Dead) {
            drop(state);
            self.broker.wake_all();
            return;
        }
        let fares = state.client(client);
        let is_frozen = fares.frozen_until.is_some_and(|until| now.instant < until);
        let is_cut = is_frozen || fares.cut_at(now.instant) == Some(Cut::Requests);
        let is_lost = state.strikes(FaultKind::SettleLost, now.at, || {
            format!("{settlement:?} of {consumer} #{seq} by client {client}")
        });
        if is_cut || is_lost {
            return;
        }
        state.settle(self.consumer, self.seq, settlement, now);
        drop(state);
        self.broker.wake_all();
    }

    pub(crate) fn trial_begins(&self, seq: u64) -> u64 {
        self.broker.state().trial_begins(self.consumer, seq)
    }

    pub(crate) fn trial_ends(&self, seq: u64) {
        let mut state = self.broker.state();
        if !state.client(self.client).is_crashed {
            state.trial_ends(self.consumer, seq);
        }
    }
}
