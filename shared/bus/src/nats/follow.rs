//! Following a stream: history, then what comes, without a gap.
//!
//! An ephemeral consumer of several filters, in memory, without acks. The place is kept here: when the
//! consumer is gone, or skips a number, another one begins behind the last message that was passed on.

use std::{collections::VecDeque, time::Duration};

use futures_util::stream;
use serde::Deserialize;
use serde_json::json;

use super::{
    api::{Api, RequestFailure},
    pull::{Pulled, Puller},
};
use crate::log::{Follow, LogError, LogMessage, Position};

/// Messages on the way to one follower.
const BATCH: usize = 256;

/// How long the server keeps a consumer whose follower is silent.
const INACTIVE: Duration = Duration::from_secs(120);

const ROUND: Duration = Duration::from_secs(10);
const RETRY_PAUSE: Duration = Duration::from_millis(300);

struct Follower {
    api: Api,
    stream: String,
    filters: Vec<String>,
    next_seq: u64,
    puller: Option<Puller>,
    consumer_seq: u64,
    ready: VecDeque<LogMessage>,
}

/// Follows `filters` of `stream` from `position` on.
pub(crate) async fn follow(
    api: Api,
    stream: &str,
    filters: Vec<String>,
    position: Position,
) -> Result<Follow, LogError> {
    let next_seq = match position {
        Position::All => 1,
        Position::Seq(seq) => seq.max(1),
        // A number at once, so that a consumer made anew later leaves nothing out.
        Position::New => last_seq(&api, stream).await? + 1,
    };
    let mut follower = Follower {
        api,
        stream: stream.to_owned(),
        filters,
        next_seq,
        puller: None,
        consumer_seq: 0,
        ready: VecDeque::new(),
    };
    follower.begin().await?;
    Ok(Follow::new(stream::unfold(Some(follower), |follower| async {
        let mut follower = follower?;
        match follower.next().await {
            Ok(message) => Some((Ok(message), Some(follower))),
            Err(error) => Some((Err(error), None)),
        }
    })))
}

async fn last_seq(api: &Api, stream: &str) -> Result<u64, LogError> {
    #[derive(Deserialize)]
    struct Info {
        state: State,
    }
    #[derive(Deserialize)]
    struct State {
        last_seq: u64,
    }
    let info: Info = api
        .request(&format!("STREAM.INFO.{stream}"), None)
        .await
        .map_err(|failure| failure.about(|| format!("the stream {stream}")))?;
    Ok(info.state.last_seq)
}

impl Follower {
    async fn next(&mut self) -> Result<LogMessage, LogError> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                self.next_seq = message.seq + 1;
                return Ok(message);
            }
            let Some(puller) = &mut self.puller else {
                match self.begin().await {
                    Ok(()) => {}
                    Err(error) if error.is_transient() => {
                        tracing::debug!(%error, "the follower begins again");
                        tokio::time::sleep(RETRY_PAUSE).await;
                    }
                    Err(error) => return Err(error),
                }
                continue;
            };
            match puller.next_batch(BATCH, ROUND).await {
                Ok(batch) => self.take(batch),
                Err(error) => {
                    tracing::debug!(%error, "the follower's consumer is gone");
                    self.puller = None;
                }
            }
        }
    }

    /// Passes on what follows without a gap.
    fn take(&mut self, batch: Vec<Pulled>) {
        for pulled in batch {
            if pulled.consumer_seq != self.consumer_seq + 1 {
                tracing::debug!(
                    expected = self.consumer_seq + 1,
                    found = pulled.consumer_seq,
                    "a gap; reading it again"
                );
                self.puller = None;
                return;
            }
            self.consumer_seq = pulled.consumer_seq;
            self.ready.push_back(pulled.message);
        }
    }

    /// Makes a consumer that begins behind the last message passed on.
    async fn begin(&mut self) -> Result<(), LogError> {
        #[derive(Deserialize)]
        struct Created {
            name: String,
        }
        let body = json!({
            "stream_name": self.stream,
            "config": {
                "deliver_policy": "by_start_sequence",
                "opt_start_seq": self.next_seq,
                "ack_policy": "none",
                "replay_policy": "instant",
                "max_deliver": 1,
                "mem_storage": true,
                "num_replicas": 1,
                "inactive_threshold": INACTIVE.as_nanos() as u64,
                "filter_subjects": self.filters,
            },
        });
        let created: Created = self
            .api
            .request(&format!("CONSUMER.CREATE.{}", self.stream), Some(&body))
            .await
            .map_err(|failure: RequestFailure| failure.about(|| format!("the stream {}", self.stream)))?;
        self.consumer_seq = 0;
        self.puller = Some(Puller::new(
            self.api.clone(),
            &self.stream,
            &created.name,
            Duration::ZERO,
        ));
        Ok(())
    }
}
