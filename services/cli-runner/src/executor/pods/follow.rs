//! Reads a pod's log to its end, whatever breaks meanwhile.
//!
//! Invariants:
//! - Not a byte is lost or doubled by a connection that breaks: the log is read again from its beginning, and what was
//!   had already is left out.
//! - A log that lost its beginning (nodes keep 10 MiB by default) is not passed off as whole.

use std::time::Duration;

use futures_util::AsyncReadExt as _;
use kube::api::LogParams;
use protocol::live::Stream;
use service::backoff::Policy;
use tokio::time::{Instant, sleep};

use super::{
    position::{News, Position, Reading},
    requests::Requests,
    standing::{Standing, standing},
    watching::Watched,
    wrapper::Frames,
};
use crate::{
    capture::{Capture, Limits},
    live::{Lines, LiveSink},
};

/// Between two attempts to read on.
const AGAIN: Policy = Policy {
    longest: Duration::from_secs(3),
    ..Policy::PATIENT
};
/// Reads of an ended pod's log that miss its end, before it is taken for cut off: the node may lag behind.
const ENDED_READS_MAX: u32 = 5;
/// What stands in the output for a beginning that is gone.
const LOST_NOTE: &[u8] =
    b"\n... [a part of the log is missing here: the node rotated it before it was read] ...\n";

/// How following came to its end.
#[derive(Debug, PartialEq, Eq)]
pub enum Followed {
    /// The log is whole.
    Whole,
    /// The pod ended, and the log breaks off.
    CutOff,
    /// The pod is gone.
    Vanished,
}

/// Reads one pod's log.
pub struct Follower<'a> {
    requests: &'a Requests,
    watched: &'a Watched,
    name: &'a str,
    uid: &'a str,
    frames: Frames,
    stdout: Capture,
    stderr: Capture,
    live_stdout: Lines<'a>,
    live_stderr: Lines<'a>,
    position: Position,
    /// Whether a part of the log is missing before its end.
    has_gap: bool,
}

impl<'a> Follower<'a> {
    pub fn new(
        requests: &'a Requests,
        watched: &'a Watched,
        name: &'a str,
        uid: &'a str,
        mark: &str,
        limits: Limits,
        live: &'a LiveSink,
    ) -> Self {
        Self {
            requests,
            watched,
            name,
            uid,
            frames: Frames::new(mark),
            stdout: Capture::new(limits),
            stderr: Capture::new(limits),
            live_stdout: Lines::new(live, Stream::Stdout),
            live_stderr: Lines::new(live, Stream::Stderr),
            position: Position::default(),
            has_gap: false,
        }
    }

    /// The command's exit code, where the log tells it.
    pub fn code(&self) -> Option<i32> {
        self.frames.code()
    }

    /// What was printed.
    pub fn finish(mut self) -> (Capture, Capture) {
        let (stdout, stderr) = (&mut self.stdout, &mut self.stderr);
        self.frames.finish(&mut |stream, bytes| match stream {
            Stream::Stdout => stdout.push(bytes),
            Stream::Stderr => stderr.push(bytes),
        });
        self.live_stdout.finish();
        self.live_stderr.finish();
        if self.has_gap {
            return (self.stdout, self.stderr);
        }
        let (stdout_returns, stderr_returns) = self.frames.into_returns();
        (
            self.stdout.with_returns(&stdout_returns),
            self.stderr.with_returns(&stderr_returns),
        )
    }

    /// Reads until the log is whole or there is no more of it. Safe to drop and call again.
    pub async fn follow(&mut self) -> Followed {
        let mut waits = AGAIN.waits();
        let mut ended_reads = 0;
        let mut changes = self.watched.changes();
        loop {
            if self.frames.is_over() {
                return Followed::Whole;
            }
            match self.watched.pod(self.name, self.uid).map(|pod| standing(&pod)) {
                None => return Followed::Vanished,
                Some(Standing::Ended(_) | Standing::Lost(_)) => {
                    ended_reads += 1;
                    if ended_reads > ENDED_READS_MAX {
                        return Followed::CutOff;
                    }
                }
                Some(_) => {}
            }
            let before = (self.position.bytes(), Instant::now());
            if let Err(error) = self.read().await {
                tracing::debug!(pod = self.name, %error, "a pod's log cannot be read just now");
                // An API server that is away is no end of the log.
                ended_reads = ended_reads.saturating_sub(1);
            }
            if self.frames.is_over() {
                return Followed::Whole;
            }
            if self.position.bytes() > before.0 || before.1.elapsed() > AGAIN.longest {
                waits.reset();
            }
            tokio::select! {
                () = sleep(waits.next_wait()) => {}
                _ = changes.changed() => {}
            }
        }
    }

    /// Reads the log from its beginning to where it ends or breaks, leaving out what was had.
    async fn read(&mut self) -> Result<(), String> {
        let parameters = LogParams {
            follow: true,
            ..LogParams::default()
        };
        let log = self.requests.api.log_stream(self.name, &parameters).await;
        let mut log = std::pin::pin!(log.map_err(|error| error.to_string())?);
        let mut buffer = vec![0; 32 * 1024];
        let mut reading = Reading::default();
        loop {
            let count = log.read(&mut buffer).await.map_err(|error| error.to_string())?;
            if count == 0 {
                return Ok(());
            }
            match self.position.take(&mut reading, &buffer[..count]) {
                News::More(piece) => self.take(piece),
                News::Anew(all) => {
                    self.has_gap = true;
                    self.take(LOST_NOTE);
                    self.take(&all);
                }
            }
            if self.frames.is_over() {
                return Ok(());
            }
        }
    }

    fn take(&mut self, piece: &[u8]) {
        let (stdout, stderr) = (&mut self.stdout, &mut self.stderr);
        let (live_stdout, live_stderr) = (&mut self.live_stdout, &mut self.live_stderr);
        self.frames.push(piece, &mut |stream, bytes| match stream {
            Stream::Stdout => {
                stdout.push(bytes);
                live_stdout.push(bytes);
            }
            Stream::Stderr => {
                stderr.push(bytes);
                live_stderr.push(bytes);
            }
        });
    }
}
