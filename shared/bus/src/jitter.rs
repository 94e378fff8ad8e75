//! Small random pauses, so that writers that collided do not collide again in step.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// A random duration below `limit`.
pub(crate) fn up_to(limit: Duration) -> Duration {
    let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
    if nanos == 0 {
        return Duration::ZERO;
    }
    // Each `RandomState` has keys of its own, which is all the randomness a pause needs.
    Duration::from_nanos(RandomState::new().hash_one(nanos) % nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_below_the_limit_and_varies() {
        let limit = Duration::from_millis(50);
        let pauses: std::collections::BTreeSet<_> = (0..50).map(|_| up_to(limit)).collect();
        assert!(pauses.iter().all(|pause| *pause < limit));
        assert!(pauses.len() > 10);
        assert_eq!(up_to(Duration::ZERO), Duration::ZERO);
    }
}
