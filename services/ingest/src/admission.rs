//! Whether new work is admitted: not once the log, or the store of large bodies, is nearly full, so that what runs
//! can always finish.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bus::{Log, LogError, NatsLog, StreamId, topology::BLOBS_BUCKET};
use service::Metrics;
use tokio::sync::Mutex;

use crate::stream_info;

/// How long a measurement holds; a log of gigabytes does not fill within it.
const FRESH_FOR: Duration = Duration::from_secs(1);

/// How often it is measured for the numbers alone.
const SHOW_EVERY: Duration = Duration::from_secs(15);

/// Measures the log, now and then. Cheap to clone.
#[derive(Clone)]
pub struct Admission {
    log: NatsLog,
    metrics: Metrics,
    stop_percent: u64,
    last: Arc<Mutex<Option<(Instant, bool)>>>,
}

/// Why nothing new is admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// The log, or the store of large bodies, is too full.
    #[error(
        "the log, or the store of large bodies, is {percent} % full, and the rest is kept for what runs (nats.admission_stop_percent); raise nats.log_bytes_max or nats.blobs_bytes_max and run `fist nats init`, or wait until the oldest leave (nats.log_max_age_hours, nats.blobs_max_age_hours)"
    )]
    Full {
        /// How full it may be.
        percent: u64,
    },
    /// It cannot be measured.
    #[error(transparent)]
    Unknown(#[from] LogError),
}

impl Admission {
    /// For this log.
    pub fn new(log: NatsLog, stop_percent: u64, metrics: Metrics) -> Self {
        Self {
            log,
            metrics,
            stop_percent,
            last: Arc::default(),
        }
    }

    /// Whether new work is admitted.
    ///
    /// # Errors
    /// Why not.
    pub async fn check(&self) -> Result<(), Closed> {
        let full = || Closed::Full {
            percent: self.stop_percent,
        };
        // Held while it measures, so that a burst of requests measures once.
        let mut last = self.last.lock().await;
        let is_full = match *last {
            Some((at, is_full)) if at.elapsed() < FRESH_FOR => is_full,
            _ => {
                let is_full = self.measure().await?;
                *last = Some((Instant::now(), is_full));
                is_full
            }
        };
        if is_full { Err(full()) } else { Ok(()) }
    }

    /// Shows how full they are, for ever: nothing may be admitted for long before somebody looks.
    pub async fn show(&self) -> std::convert::Infallible {
        loop {
            // What cannot be measured just now is shown as it was.
            let _ = self.measure().await;
            tokio::time::sleep(SHOW_EVERY).await;
        }
    }

    /// Whether either is too full.
    async fn measure(&self) -> Result<bool, LogError> {
        let log = self.log.stream_state(StreamId::Log).await?;
        let blobs = stream_info::of_blobs(self.log.connection()).await?;
        let alerts = self.log.stream_state(StreamId::Alerts).await?;
        let show = |stream: &str, ratio| self.metrics.stream_filled(stream, ratio);
        show(StreamId::Log.name(), log.filled_ratio());
        show(StreamId::Alerts.name(), alerts.filled_ratio());
        show(&format!("OBJ_{BLOBS_BUCKET}"), blobs.filled_ratio());
        Ok(log.is_filled_to(self.stop_percent) || blobs.is_filled_to(self.stop_percent))
    }
}
