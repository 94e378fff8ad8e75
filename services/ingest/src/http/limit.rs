//! How many requests a second one client may make.
//!
//! Each client has a bucket that `burst` requests fill, and that empties at its rate. A bucket is one number, the
//! moment at which it would be empty (the "generic cell rate algorithm"), so that a request costs one atomic exchange.
//!
//! Invariant: memory is fixed at the start. Each token has a bucket of its own, which no stranger can fill. Addresses
//! share [`ADDRESS_BUCKETS`], by a hash that nobody outside can compute: two of them may meet in one bucket, but no
//! number of them makes the table grow, or pushes out what is known of another.

use std::{
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv6Addr},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// 512 KiB; with a thousand clients at once, one in sixty shares its bucket.
const ADDRESS_BUCKETS: usize = 65_536;

/// Who makes a request, as far as the limit is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// The holder of a token, by its place in the list.
    Token(usize),
    /// Somebody at this address.
    Address(IpAddr),
}

/// The buckets of all clients.
#[derive(Debug)]
pub struct RateLimit {
    began: Instant,
    /// Nanoseconds that one request takes to leave its bucket.
    interval: u64,
    /// Nanoseconds that a full bucket takes to empty.
    full: u64,
    tokens: Vec<AtomicU64>,
    addresses: Vec<AtomicU64>,
    hasher: RandomState,
}

impl RateLimit {
    /// For `tokens` known tokens; none where there is no limit.
    pub fn new(per_second_max: u64, burst_max: u64, tokens: usize) -> Option<Self> {
        let interval = 1_000_000_000_u64.checked_div(per_second_max)?;
        let empty = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect();
        Some(Self {
            began: Instant::now(),
            interval,
            full: interval.saturating_mul(burst_max),
            tokens: empty(tokens),
            addresses: empty(ADDRESS_BUCKETS),
            hasher: RandomState::new(),
        })
    }

    /// Takes in one request now.
    ///
    /// # Errors
    /// How long until there is room for it.
    pub fn admit(&self, client: Client) -> Result<(), Duration> {
        self.admit_at(client, self.began.elapsed())
    }

    /// The same at a time since the start.
    fn admit_at(&self, client: Client, now: Duration) -> Result<(), Duration> {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let Some(bucket) = self.bucket(client) else {
            return Ok(());
        };
        let mut wait = 0;
        // Another thread's request in between makes it look again, once for each.
        let admitted = bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |empty_at| {
            let filled = empty_at.max(now).saturating_add(self.interval);
            wait = filled.saturating_sub(now).saturating_sub(self.full);
            (wait == 0).then_some(filled)
        });
        admitted.map(|_| ()).map_err(|_| Duration::from_nanos(wait))
    }

    fn bucket(&self, client: Client) -> Option<&AtomicU64> {
        match client {
            Client::Token(index) => self.tokens.get(index),
            Client::Address(address) => {
                let hash = self.hasher.hash_one(network(address));
                let index = usize::try_from(hash).unwrap_or_default() % self.addresses.len();
                self.addresses.get(index)
            }
        }
    }
}

/// An address as one client has it: of IPv6 the /64, since whoever has one address there has them all.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ONE: Client = Client::Token(0);

    fn millis(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn none_where_there_is_no_limit() {
        assert!(RateLimit::new(0, 10, 1).is_none());
    }

    #[test]
    fn a_burst_then_the_rate() {
        let limit = RateLimit::new(10, 3, 1).unwrap();
        let admitted = |at: u64| limit.admit_at(ONE, millis(at));
        for _ in 0..3 {
            admitted(5000).unwrap();
        }
        assert_eq!(admitted(5000), Err(millis(100)));
        assert_eq!(admitted(5040), Err(millis(60)), "a refused request costs nothing");
        admitted(5100).unwrap();
        assert_eq!(admitted(5100), Err(millis(100)));
        // After a pause the burst is whole again, and no larger.
        for _ in 0..3 {
            admitted(60_000).unwrap();
        }
        assert!(admitted(60_000).is_err());
    }

    #[test]
    fn clients_have_buckets_of_their_own() {
        let limit = RateLimit::new(1, 1, 2).unwrap();
        let admitted = |client| limit.admit_at(client, millis(0)).is_ok();
        assert!(admitted(ONE) && !admitted(ONE));
        assert!(admitted(Client::Token(1)));
        let address = |text: &str| Client::Address(text.parse().unwrap());
        let first = address("2001:db8::1");
        assert!(admitted(first) && !admitted(first));
        assert!(!admitted(address("2001:db8::ffff")), "of the same /64");
        let mapped = address("::ffff:10.0.0.1");
        assert!(admitted(mapped) && !admitted(address("10.0.0.1")));
    }

    #[test]
    fn as_many_addresses_as_there_may_be_share_the_table() {
        let limit = RateLimit::new(1, 1, 0).unwrap();
        let many = (0..200_000_u32).map(|bits| Client::Address(std::net::Ipv4Addr::from_bits(bits).into()));
        let admitted = many
            .filter(|client| limit.admit_at(*client, millis(0)).is_ok())
            .count();
        assert!(admitted > 60_000 && admitted <= ADDRESS_BUCKETS, "{admitted}");
    }

    #[test]
    fn threads_get_no_more_together() {
        let limit = RateLimit::new(1, 1000, 1).unwrap();
        let admitted: usize = std::thread::scope(|scope| {
            let ask = || {
                (0..1000)
                    .filter(|_| limit.admit_at(ONE, millis(0)).is_ok())
                    .count()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(admitted, 1000);
    }
}
