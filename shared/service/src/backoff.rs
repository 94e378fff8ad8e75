//! Trying again: exponential waits with jitter, bounded by attempts or by the
//! end of the process.
//!
//! The waits come from the `backoff` crate, which this project was asked to
//! use and which is no longer maintained (RUSTSEC-2025-0012, and its `instant`
//! RUSTSEC-2024-0384): it is confined to this file, so that it can be replaced
//! here. Only its arithmetic is used, never its timers or its retry loop.

use std::fmt;
use std::time::Duration;

use ::backoff::ExponentialBackoff;
use ::backoff::backoff::Backoff as _;
use tokio_util::sync::CancellationToken;

/// How waits grow, and how many attempts there are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    /// Wait after the first failure, before jitter.
    pub first: Duration,
    /// Longest wait, before jitter.
    pub longest: Duration,
    /// Each wait is this many times the one before.
    pub factor: f64,
    /// Share by which a wait is varied to both sides, 0 to 1, so that clients
    /// that failed together do not come back together.
    pub jitter: f64,
    /// Attempts in all; absent: until shutdown.
    pub attempts_max: Option<u32>,
}

impl Policy {
    /// For a neighbour that may be away for hours: from 100 ms to 30 s, for ever.
    pub const PATIENT: Self = Self {
        first: Duration::from_millis(100),
        longest: Duration::from_secs(30),
        factor: 2.0,
        jitter: 0.5,
        attempts_max: None,
    };

    /// The same waits with a bound on the attempts.
    pub const fn attempts(self, attempts_max: u32) -> Self {
        Self {
            attempts_max: Some(attempts_max),
            ..self
        }
    }

    /// The waits alone, for a loop of the caller's own.
    pub fn waits(&self) -> Waits {
        let mut inner = ExponentialBackoff {
            initial_interval: self.first,
            max_interval: self.longest.max(self.first),
            multiplier: self.factor.max(1.0),
            randomization_factor: self.jitter.clamp(0.0, 1.0),
            max_elapsed_time: None,
            ..ExponentialBackoff::default()
        };
        inner.reset();
        Waits { inner }
    }
}

/// The waits of one series of failures.
#[derive(Debug)]
pub struct Waits {
    inner: ExponentialBackoff,
}

impl Waits {
    /// The next wait; longer than the one before, jitter aside.
    pub fn next_wait(&mut self) -> Duration {
        self.inner.next_backoff().unwrap_or(self.inner.max_interval)
    }

    /// After a success: the next series begins with the shortest wait.
    pub fn reset(&mut self) {
        self.inner.reset();
    }
}

/// What one failed attempt says about the next.
#[derive(Debug)]
pub enum Failed<E> {
    /// Worth another attempt after the policy's wait.
    Transient(E),
    /// Worth another attempt, but not before the neighbour's own wait
    /// (`Retry-After`) is over.
    NotBefore(Duration, E),
    /// Another attempt would fail in the same way.
    Permanent(E),
}

/// Why [`retry`] gave up.
#[derive(Debug)]
pub enum GaveUp<E> {
    /// The process is ending; nothing is said about the next attempt.
    Shutdown,
    /// An attempt failed for good.
    Permanent(E),
    /// The last of the allowed attempts failed.
    Exhausted {
        /// How many there were.
        attempts: u32,
        /// The last one's error.
        last: E,
    },
}

impl<E: fmt::Display> fmt::Display for GaveUp<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shutdown => f.write_str("stopped because the process is ending"),
            Self::Permanent(error) => error.fmt(f),
            Self::Exhausted { attempts, last } => write!(f, "gave up after {attempts} attempts: {last}"),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> std::error::Error for GaveUp<E> {}

/// One failed attempt that will be followed by another, for the log.
#[derive(Debug)]
pub struct Again<'a, E> {
    /// Attempts so far, from 1.
    pub attempt: u32,
    /// Time until the next.
    pub wait: Duration,
    /// What went wrong.
    pub error: &'a E,
}

/// Runs `attempt` until it succeeds, fails for good, the policy's attempts are
/// used up, or the process ends, which drops an attempt that is under way.
/// `on_again` is called before each wait.
///
/// # Errors
/// Why there will be no further attempt.
pub async fn retry<T, E, Attempting>(
    policy: Policy,
    shutdown: &CancellationToken,
    mut attempt: impl FnMut() -> Attempting,
    mut on_again: impl FnMut(Again<'_, E>),
) -> Result<T, GaveUp<E>>
where
    Attempting: Future<Output = Result<T, Failed<E>>>,
{
    let mut waits = policy.waits();
    let mut attempts = 0;
    loop {
        let outcome = tokio::select! {
            () = shutdown.cancelled() => return Err(GaveUp::Shutdown),
            outcome = attempt() => outcome,
        };
        attempts += 1;
        let (error, at_least) = match outcome {
            Ok(value) => return Ok(value),
            Err(Failed::Permanent(error)) => return Err(GaveUp::Permanent(error)),
            Err(Failed::Transient(error)) => (error, Duration::ZERO),
            Err(Failed::NotBefore(wait, error)) => (error, wait),
        };
        if policy.attempts_max.is_some_and(|max| attempts >= max) {
            return Err(GaveUp::Exhausted {
                attempts,
                last: error,
            });
        }
        let wait = waits.next_wait().max(at_least);
        on_again(Again {
            attempt: attempts,
            wait,
            error: &error,
        });
        tokio::select! {
            () = shutdown.cancelled() => return Err(GaveUp::Shutdown),
            () = tokio::time::sleep(wait) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const EVEN: Policy = Policy {
        first: Duration::from_millis(100),
        longest: Duration::from_millis(700),
        factor: 2.0,
        jitter: 0.0,
        attempts_max: None,
    };

    /// The same, short enough to be waited for.
    const QUICK: Policy = Policy {
        first: Duration::from_millis(1),
        longest: Duration::from_millis(7),
        ..EVEN
    };

    #[test]
    fn waits_grow_to_the_longest_and_start_over_after_a_reset() {
        let mut waits = EVEN.waits();
        let seen: Vec<u128> = (0..5).map(|_| waits.next_wait().as_millis()).collect();
        assert_eq!(seen, [100, 200, 400, 700, 700]);
        waits.reset();
        assert_eq!(waits.next_wait().as_millis(), 100);
    }

    #[test]
    fn jitter_stays_within_its_share_and_varies() {
        let policy = Policy { jitter: 0.5, ..EVEN };
        let firsts: Vec<Duration> = (0..200).map(|_| policy.waits().next_wait()).collect();
        let bounds = Duration::from_millis(50)..=Duration::from_millis(151);
        assert!(firsts.iter().all(|wait| bounds.contains(wait)), "{firsts:?}");
        assert!(firsts.iter().any(|wait| *wait != firsts[0]));
    }

    #[tokio::test]
    async fn it_succeeds_after_transient_failures_and_tells_of_each() {
        let mut left = 3;
        let mut told = Vec::new();
        let outcome = retry(
            QUICK,
            &CancellationToken::new(),
            || {
                left -= 1;
                let now = left;
                async move {
                    if now == 0 {
                        Ok("done")
                    } else {
                        Err(Failed::Transient(now))
                    }
                }
            },
            |again| told.push((again.attempt, again.wait.as_millis(), *again.error)),
        )
        .await;
        assert_eq!(outcome.unwrap(), "done");
        assert_eq!(told, [(1, 1, 2), (2, 2, 1)]);
    }

    #[tokio::test]
    async fn it_waits_at_least_as_long_as_the_neighbour_says() {
        let before = std::time::Instant::now();
        let mut first = true;
        let outcome: Result<(), GaveUp<&str>> = retry(
            QUICK,
            &CancellationToken::new(),
            || {
                let failed = std::mem::take(&mut first);
                async move {
                    if failed {
                        Err(Failed::NotBefore(Duration::from_millis(40), "busy"))
                    } else {
                        Ok(())
                    }
                }
            },
            |_| {},
        )
        .await;
        outcome.unwrap();
        assert!(before.elapsed() >= Duration::from_millis(40));
    }

    #[tokio::test]
    async fn it_gives_up_when_the_attempts_are_used_up_or_the_failure_is_permanent() {
        let token = CancellationToken::new();
        let outcome: Result<(), _> = retry(
            QUICK.attempts(3),
            &token,
            || async { Err(Failed::Transient("away")) },
            |_| {},
        )
        .await;
        assert_eq!(outcome.unwrap_err().to_string(), "gave up after 3 attempts: away");
        let outcome: Result<(), _> = retry(
            QUICK,
            &token,
            || async { Err(Failed::Permanent("wrong password")) },
            |_| {},
        )
        .await;
        assert_eq!(outcome.unwrap_err().to_string(), "wrong password");
    }

    #[tokio::test]
    async fn the_end_of_the_process_ends_a_wait_and_an_attempt() {
        let token = CancellationToken::new();
        let inner = token.clone();
        let outcome: Result<(), GaveUp<&str>> = retry(
            QUICK,
            &token,
            || async { Err(Failed::Transient("away")) },
            move |_| inner.cancel(),
        )
        .await;
        assert!(matches!(outcome, Err(GaveUp::Shutdown)));
        let token = CancellationToken::new();
        token.cancel();
        let outcome: Result<(), GaveUp<&str>> = retry(QUICK, &token, std::future::pending, |_| {}).await;
        assert!(matches!(outcome, Err(GaveUp::Shutdown)));
    }
}
