//! What is going to fail, and when: drawn from a seed before anything starts, so that it can be printed and replayed.
//!
//! Invariants:
//! - The same seed, length and number of servers give the same plan.
//! - Each kind of fault comes at least once, however short the campaign is.

use std::{fmt, time::Duration};

use bus::sim::Rng;

/// Services, and how many processes of each run.
pub const REPLICAS: [(&str, usize); 5] = [
    ("store-writer", 2),
    ("scheduler", 2),
    ("cli-runner", 3),
    ("agent-runner", 2),
    ("ingest", 2),
];

/// Longer than the 15 s after which a message that nobody says anything about goes to another.
const STOPPED_MS: u64 = 16_500;
/// The same for store-writer's batches, which wait 60 s.
const STOPPED_WITH_BATCH_MS: u64 = 61_500;
/// Campaigns of this length stop a store-writer for as long as that.
const LONG: Duration = Duration::from_secs(180);

/// What happens to one process, or to its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// `kill -9`, and started again.
    Kill,
    /// SIGSTOP, and SIGCONT after this many milliseconds.
    Stop(u64),
    /// All its connections are closed.
    Cut,
    /// Every piece of its traffic is held back for so many milliseconds, for so many milliseconds.
    Delay(u64, u64),
    /// Its connections stay open, and nothing gets through, for so many milliseconds.
    Hole(u64),
}

impl Fault {
    /// How the report calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill -9",
            Self::Stop(_) => "SIGSTOP for longer than the ack wait",
            Self::Cut => "connections cut",
            Self::Delay(..) => "connections slowed down",
            Self::Hole(_) => "connections black-holed",
        }
    }

    /// How long it lasts.
    pub fn lasts(self) -> Duration {
        match self {
            Self::Kill | Self::Cut => Duration::ZERO,
            Self::Stop(ms) | Self::Delay(_, ms) | Self::Hole(ms) => Duration::from_millis(ms),
        }
    }
}

/// What happens to the NATS servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerFault {
    /// This server is killed and comes back after so many milliseconds.
    Kill(usize, u64),
    /// The one that leads the log.
    KillLeader(u64),
    /// All at once.
    KillAll(u64),
    /// This server is killed, loses its disk, and comes back empty.
    Wipe(usize),
}

/// Something at a time.
#[derive(Clone, Debug)]
pub struct At<T> {
    /// From the campaign's beginning.
    pub at: Duration,
    /// What.
    pub what: T,
}

/// A fault of a process: which service, which of its processes.
pub type OfProcess = (&'static str, usize, Fault);

/// The plan: three lists that run side by side.
#[derive(Debug)]
pub struct Plan {
    pub seed: u64,
    pub lasts: Duration,
    pub processes: Vec<At<OfProcess>>,
    pub servers: Vec<At<ServerFault>>,
    /// When the database is stopped, and for how many milliseconds.
    pub database: Vec<At<u64>>,
}

impl Plan {
    /// Draws a plan.
    pub fn new(seed: u64, lasts: Duration, servers: usize) -> Self {
        let mut rng = Rng::new(seed);
        let is_long = lasts >= LONG;
        let processes = processes(&mut rng, lasts, is_long);
        let servers = server_faults(&mut rng, lasts, servers);
        let mut database = Vec::new();
        let mut at = lasts / 4;
        while at < lasts * 3 / 4 {
            database.push(At {
                at,
                what: 2_000 + rng.below(if is_long { 13_000 } else { 2_000 }),
            });
            at += Duration::from_millis(60_000 + rng.below(60_000));
        }
        Self {
            seed,
            lasts,
            processes,
            servers,
            database,
        }
    }
}

fn processes(rng: &mut Rng, lasts: Duration, is_long: bool) -> Vec<At<OfProcess>> {
    let mut faults = Vec::new();
    let mut at = Duration::from_millis(500);
    // One of each first, the longest before all others.
    let mut first = vec![
        Fault::Cut,
        Fault::Delay(80, 4_000),
        Fault::Hole(5_000),
        Fault::Stop(STOPPED_MS),
    ];
    let mut everyone: Vec<_> = REPLICAS.iter().map(|(service, _)| *service).collect();
    while at < lasts {
        let fault = first.pop().unwrap_or_else(|| draw(rng));
        let (mut service, mut replicas) = REPLICAS[rng.below(REPLICAS.len() as u64) as usize];
        if faults.is_empty() {
            // A runner that is stopped with a command in hand finds it taken over.
            (service, replicas) = ("cli-runner", 3);
        }
        if fault == Fault::Kill
            && let Some(next) = everyone.pop()
        {
            (service, replicas) = (next, 2);
        }
        let fault = match fault {
            Fault::Stop(_) if service == "store-writer" && is_long => Fault::Stop(STOPPED_WITH_BATCH_MS),
            other => other,
        };
        faults.push(At {
            at,
            what: (service, rng.below(replicas as u64) as usize, fault),
        });
        at += Duration::from_millis(400 + rng.below(1_800));
    }
    faults
}

fn draw(rng: &mut Rng) -> Fault {
    match rng.below(20) {
        0..13 => Fault::Kill,
        13 => Fault::Stop(STOPPED_MS + rng.below(4_000)),
        14 | 15 => Fault::Cut,
        16 | 17 => Fault::Delay(20 + rng.below(300), 1_000 + rng.below(9_000)),
        _ => Fault::Hole(500 + rng.below(20_000)),
    }
}

fn server_faults(rng: &mut Rng, lasts: Duration, servers: usize) -> Vec<At<ServerFault>> {
    let mut faults = Vec::new();
    let mut at = lasts / 5;
    let mut first = match servers {
        1 => Vec::new(),
        // Last things first.
        _ => vec![
            ServerFault::KillAll(1_000),
            ServerFault::Wipe(rng.below(servers as u64) as usize),
            ServerFault::KillLeader(3_000),
        ],
    };
    while at < lasts * 9 / 10 {
        let down = rng.below(4_000);
        let one = rng.below(servers as u64) as usize;
        let fault = first.pop().unwrap_or_else(|| match (servers, rng.below(8)) {
            (1, _) => ServerFault::Kill(0, down),
            (_, 0) => ServerFault::KillAll(down),
            (_, 1) => ServerFault::Wipe(one),
            (_, 2..5) => ServerFault::KillLeader(down),
            _ => ServerFault::Kill(one, down),
        });
        faults.push(At { at, what: fault });
        at += Duration::from_millis(10_000 + rng.below(40_000));
    }
    faults
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines: Vec<(Duration, String)> = Vec::new();
        for At {
            at,
            what: (service, replica, fault),
        } in &self.processes
        {
            lines.push((*at, format!("{service}-{replica} {fault:?}")));
        }
        for At { at, what } in &self.servers {
            lines.push((*at, format!("nats-server {what:?}")));
        }
        for At { at, what } in &self.database {
            lines.push((*at, format!("postgresql Stop({what})")));
        }
        lines.sort();
        writeln!(
            f,
            "seed {}, {} s, {} faults",
            self.seed,
            self.lasts.as_secs(),
            lines.len()
        )?;
        for (at, line) in lines {
            writeln!(f, "{:>9} ms  {line}", at.as_millis())?;
        }
        Ok(())
    }
}

#[test]
fn a_seed_gives_one_plan_with_every_kind_of_fault() {
    for (seconds, servers) in [(20, 1), (20, 3), (2_400, 1), (2_400, 3)] {
        let lasts = Duration::from_secs(seconds);
        let plan = Plan::new(7, lasts, servers);
        assert_eq!(plan.to_string(), Plan::new(7, lasts, servers).to_string());
        assert_ne!(plan.to_string(), Plan::new(8, lasts, servers).to_string());
        let kinds: std::collections::BTreeSet<_> =
            plan.processes.iter().map(|fault| fault.what.2.name()).collect();
        assert_eq!(kinds.len(), 5, "{plan}");
        assert!(!plan.servers.is_empty() && !plan.database.is_empty(), "{plan}");
        let kills = plan
            .processes
            .iter()
            .filter(|fault| fault.what.2 == Fault::Kill)
            .count() as u64;
        assert!(kills >= seconds / 4, "{kills} kills in {seconds} s");
        for (service, replicas) in REPLICAS {
            let killed = |fault: &At<OfProcess>| fault.what.0 == service && fault.what.2 == Fault::Kill;
            assert!(
                seconds < 100 || plan.processes.iter().any(killed),
                "{service}: {plan}"
            );
            assert!(
                plan.processes
                    .iter()
                    .filter(|f| f.what.0 == service)
                    .all(|f| f.what.1 < replicas)
            );
        }
    }
}
