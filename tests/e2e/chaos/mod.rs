//! The fault campaign: the real services as processes, several of each, on NATS servers and a PostgreSQL of their own,
//! under load, while processes are killed and stopped, connections cut and servers lost; and then everything is
//! checked from outside (`docs/chaos.md`).
//!
//! Invariants:
//! - The plan of faults follows from the seed; it is printed before it begins.
//! - Every wait has a deadline, and whatever was started is ended with the campaign.

mod checks;
mod fleet;
mod history;
mod load;
mod plan;
mod proxy;
mod report;
mod servers;

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex, atomic::Ordering},
    time::{Duration, Instant},
};

use bus::{Log as _, NatsLog, StreamId};
use store_writer::testing::TestPostgres;
use tempfile::TempDir;
use tokio::task::JoinSet;

use self::{
    fleet::Fleet,
    history::History,
    load::Load,
    plan::{At, Plan, ServerFault},
    report::Report,
    servers::{Admin, Servers},
};
use crate::product::{binary, root};

/// The services' database.
const DATABASE: &str = "chaos";
/// The one that is folded from the log for comparison.
const FOLDED: &str = "folded";
/// Faults of the short form, which runs with all other tests.
const SHORT: Duration = Duration::from_secs(18);
/// For how long a server fault waits for copies that are behind.
const WHOLE_WITHIN: Duration = Duration::from_secs(120);

/// How a campaign is asked for.
struct Asked {
    lasts: Duration,
    is_long: bool,
    seed: u64,
    servers: usize,
    in_flight: u64,
    executions_max: u64,
    report: PathBuf,
}

impl Asked {
    fn from_environment() -> Self {
        let number = |name: &str| -> Option<f64> {
            let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
            Some(
                text.parse()
                    .unwrap_or_else(|_| panic!("{name}={text} is not a number")),
            )
        };
        let minutes = number("CHAOS_MINUTES");
        let report = std::env::var_os("CHAOS_REPORT").map(PathBuf::from);
        Self {
            lasts: minutes.map_or(SHORT, |minutes| Duration::from_secs_f64(minutes * 60.0)),
            is_long: minutes.is_some(),
            seed: number("CHAOS_SEED").unwrap_or(1.0) as u64,
            servers: number("CHAOS_SERVERS").unwrap_or(1.0) as usize,
            in_flight: number("CHAOS_IN_FLIGHT").unwrap_or(if minutes.is_some() { 64.0 } else { 16.0 })
                as u64,
            executions_max: number("CHAOS_EXECUTIONS").unwrap_or(1e9) as u64,
            report: report.unwrap_or_else(|| root().join("target/chaos/report.md")),
        }
    }
}

/// Everything that runs.
struct Campaign {
    asked: Asked,
    plan: Plan,
    began: Instant,
    fleet: Fleet,
    servers: Mutex<Servers>,
    admin: Admin,
    postgres: TestPostgres,
    report: Mutex<Report>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_fails_nothing_is_lost_and_nothing_is_done_twice() {
    let asked = Asked::from_environment();
    let Some(postgres) = TestPostgres::start() else {
        return;
    };
    service::install_crypto();
    let directory = TempDir::new().unwrap();
    let plan = Plan::new(asked.seed, asked.lasts, asked.servers);
    println!("{plan}");
    if asked.is_long {
        fs::create_dir_all(asked.report.parent().unwrap()).unwrap();
        fs::write(asked.report.with_extension("plan.txt"), plan.to_string()).unwrap();
    }
    postgres.create_database(DATABASE);
    let servers = Servers::start(asked.servers, directory.path());
    let admin = Admin::open(&servers).await;
    let log = NatsLog::open(&admin.connection).await.unwrap();
    if !asked.is_long {
        admin.hurry_store_writer(Duration::from_secs(8)).await;
    }
    let url = postgres.url(DATABASE);
    let port: u16 = url.rsplit([':', '/']).nth(1).unwrap().parse().unwrap();
    let fleet = Fleet::start(
        directory.path(),
        &servers.addresses(),
        SocketAddr::from(([127, 0, 0, 1], port)),
    )
    .await;
    let witness = directory.path().join("witness");
    fs::write(&witness, "").unwrap();
    let load = Load::new(
        asked.seed,
        fleet.doors(),
        witness,
        log.clone(),
        asked.executions_max,
    );
    let load = Arc::new(load);
    load.define().await;
    let campaign = Arc::new(Campaign {
        report: Mutex::new(Report {
            seed: asked.seed,
            servers: asked.servers,
            in_flight: asked.in_flight,
            minutes: asked.lasts.as_secs_f64() / 60.0,
            ..Report::default()
        }),
        asked,
        plan,
        began: Instant::now(),
        fleet,
        servers: Mutex::new(servers),
        admin,
        postgres,
    });
    let watching = tokio::spawn(Arc::clone(&load).watch());
    let mut workers = JoinSet::new();
    for _ in 0..campaign.asked.in_flight {
        workers.spawn(Arc::clone(&load).work());
    }
    let mut faults = JoinSet::new();
    faults.spawn(Arc::clone(&campaign).fail_processes());
    faults.spawn(Arc::clone(&campaign).fail_servers());
    faults.spawn(Arc::clone(&campaign).fail_database());
    let restarting = tokio::spawn(Arc::clone(&campaign).restart_ended());
    let progress = tokio::spawn(tell(Arc::clone(&campaign), Arc::clone(&load)));
    while let Some(ended) = faults.join_next().await {
        ended.unwrap();
    }
    campaign.fleet.end_all();
    load.over.store(true, Ordering::Relaxed);
    let quiet_since = Instant::now();
    while let Some(ended) = workers.join_next().await {
        if let Err(error) = ended {
            campaign
                .report
                .lock()
                .unwrap()
                .problems_of_load
                .push(format!("a client gave up: {error}"));
        }
    }
    let patience = Duration::from_secs(if campaign.asked.is_long { 900 } else { 150 });
    let mut problems = Vec::new();
    let is_whole = campaign.admin.whole_within(patience).await;
    problems.extend(
        is_whole
            .err()
            .map(|why| format!("the servers are not whole: {why}")),
    );
    let is_quiet = checks::quiet(&log, patience).await;
    problems.extend(
        is_quiet
            .err()
            .map(|why| format!("not everything is done after {patience:?}: {why}")),
    );
    progress.abort();
    campaign.report.lock().unwrap().quiet_seconds = quiet_since.elapsed().as_secs_f64();
    // Whoever ends from here on was asked to.
    restarting.abort();
    check(&campaign, &load, &log, problems).await;
    watching.abort();
}

/// Everything is checked, and reported.
async fn check(campaign: &Campaign, load: &Load, log: &NatsLog, problems: Vec<String>) {
    campaign.report.lock().unwrap().problems_of_load.extend(problems);
    let history = History::read(log).await;
    let mut counts = checks::Counts::default();
    let mut found = checks::executions(&load.accepted(), &load.runs(), &history, &mut counts);
    found.extend(checks::alerts(load, &history, log).await);
    found.push(checks::api(load, &history).await);
    campaign.fold_again();
    found.push(checks::databases(&campaign.postgres, DATABASE, FOLDED));
    found.extend(campaign.processes_left().await);
    let waits = campaign.asked.is_long.then_some(Duration::from_secs(240));
    found.push(checks::left_in_nats(&campaign.admin, log, waits).await);
    let state = log.stream_state(StreamId::Log).await.unwrap();
    let mut report = campaign.report.lock().unwrap();
    let mut whole = checks::Check {
        what: "the log was read whole",
        counted: state.messages,
        problems: Vec::new(),
    };
    if history.messages != state.messages {
        whole.problems.push(format!(
            "{} of {} messages were read",
            history.messages, state.messages
        ));
    }
    found.push(whole);
    report.checks = found;
    report.counts = counts;
    report.retries = load.retries.load(Ordering::Relaxed);
    println!("{}", report.markdown());
    if campaign.asked.is_long {
        report.write(&campaign.asked.report);
    }
    let problems = report.problems();
    if !problems.is_empty() {
        for (name, log) in campaign.fleet.logs() {
            let kept = campaign.asked.report.with_file_name(format!("{name}.log"));
            fs::create_dir_all(kept.parent().unwrap()).unwrap();
            fs::write(kept, log).unwrap();
        }
    }
    assert!(
        problems.is_empty(),
        "seed {}: {} problems, the services' logs are in {}: {:#?}",
        campaign.asked.seed,
        problems.len(),
        campaign.asked.report.parent().unwrap().display(),
        &problems[..problems.len().min(20)]
    );
}

impl Campaign {
    /// Waits until a time of the plan.
    async fn reach(&self, at: Duration) {
        tokio::time::sleep_until((self.began + at).into()).await;
    }

    fn note(&self, fault: impl Into<String>) {
        self.report.lock().unwrap().add(fault);
    }

    async fn fail_processes(self: Arc<Self>) {
        let mut lasting = JoinSet::new();
        for At {
            at,
            what: (service, replica, fault),
        } in self.plan.processes.iter().cloned()
        {
            self.reach(at).await;
            self.fleet.begin(service, replica, fault);
            self.note(format!("{service}: {}", fault.name()));
            if fault.lasts() > Duration::ZERO {
                let campaign = Arc::clone(&self);
                lasting.spawn(async move {
                    campaign.reach(at + fault.lasts()).await;
                    campaign.fleet.end(service, replica, fault);
                });
            }
        }
        while let Some(ended) = lasting.join_next().await {
            ended.unwrap();
        }
    }

    async fn fail_servers(self: Arc<Self>) {
        for At { at, what } in self.plan.servers.iter().cloned() {
            self.reach(at).await;
            if self.began.elapsed() > self.asked.lasts {
                self.report
                    .lock()
                    .unwrap()
                    .left_out
                    .push(format!("{what:?}: the time was over"));
                continue;
            }
            if self.asked.servers > 1
                && let Err(why) = self.admin.whole_within(WHOLE_WITHIN).await
            {
                self.report
                    .lock()
                    .unwrap()
                    .left_out
                    .push(format!("{what:?}: {why}"));
                continue;
            }
            let all: Vec<usize> = (0..self.asked.servers).collect();
            let (down, down_ms, is_wiped, name) = match what {
                ServerFault::Kill(server, ms) => {
                    (vec![server], ms, false, "nats-server: kill -9 and restart")
                }
                ServerFault::KillLeader(ms) => {
                    let leader = self.admin.leader().await.unwrap_or(0);
                    (
                        vec![leader],
                        ms,
                        false,
                        "nats-server: kill -9 of the log's leader",
                    )
                }
                ServerFault::KillAll(ms) => (all.clone(), ms, false, "nats-server: kill -9 of all at once"),
                ServerFault::Wipe(server) => (
                    vec![server],
                    1_000,
                    true,
                    "nats-server: kill -9 and loss of its disk",
                ),
            };
            let since = Instant::now();
            for server in &down {
                self.servers.lock().unwrap().kill9(*server);
                self.note(name);
            }
            self.reach(self.began.elapsed() + Duration::from_millis(down_ms))
                .await;
            for server in &down {
                let mut servers = self.servers.lock().unwrap();
                if is_wiped {
                    servers.wipe(*server);
                }
                servers.spawn(*server);
            }
            if down.len() == all.len() {
                let _ = self.admin.whole_within(WHOLE_WITHIN).await;
                self.report.lock().unwrap().nats_away += since.elapsed();
            }
        }
    }

    async fn fail_database(self: Arc<Self>) {
        for At { at, what: down_ms } in self.plan.database.iter().cloned() {
            self.reach(at).await;
            let since = Instant::now();
            // The programs that stop and start it wait until it is so.
            tokio::task::block_in_place(|| self.postgres.stop());
            self.reach(self.began.elapsed() + Duration::from_millis(down_ms))
                .await;
            tokio::task::block_in_place(|| self.postgres.start_again());
            self.report.lock().unwrap().database_away += since.elapsed();
            self.note("PostgreSQL: stopped at once, and started again");
        }
    }

    /// What an orchestrator does with processes that end by themselves.
    async fn restart_ended(self: Arc<Self>) {
        let mut looks = tokio::time::interval(Duration::from_millis(500));
        loop {
            looks.tick().await;
            let mut ended = self.fleet.restart_ended();
            ended.extend(self.servers.lock().unwrap().restart_ended());
            self.report.lock().unwrap().ended.extend(ended);
        }
    }

    /// Builds a second database from the log.
    fn fold_again(&self) {
        let url = self.postgres.create_database(FOLDED);
        let output = Command::new(binary("store-writer"))
            .arg("--rebuild")
            .env_clear()
            .env("FIST_NATS_URL", self.servers.lock().unwrap().url())
            .env("FIST_DATABASE_URL", url)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// The services end when asked, and nothing of them stays.
    async fn processes_left(&self) -> Vec<checks::Check> {
        let mut ends = checks::Check {
            what: "each service ends when asked",
            counted: 0,
            problems: Vec::new(),
        };
        for (name, status) in self.fleet.stop_all(Duration::from_secs(60)).await {
            ends.counted += 1;
            if !status.is_some_and(|status| status.success()) {
                ends.problems.push(format!("{name}: {status:?}"));
            }
        }
        let mut left = checks::Check {
            what: "no process, file or panic is left",
            counted: 0,
            problems: Vec::new(),
        };
        left.problems.extend(
            self.fleet
                .commands_left()
                .iter()
                .map(|found| format!("a process: {found:?}")),
        );
        for directory in self.fleet.work_dirs() {
            let files = fs::read_dir(&directory).into_iter().flatten().flatten();
            let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
            left.problems.extend(
                names
                    .filter(|name| name != ".lock")
                    .map(|name| format!("{}/{name}", directory.display())),
            );
            left.counted += 1;
        }
        for (name, log) in self.fleet.logs() {
            left.counted += 1;
            let panics = log.lines().filter(|line| line.contains("panicked"));
            left.problems.extend(panics.map(|line| format!("{name}: {line}")));
        }
        vec![ends, left]
    }
}

/// Says now and then how far the campaign is.
async fn tell(campaign: Arc<Campaign>, load: Arc<Load>) {
    let mut every = tokio::time::interval(Duration::from_secs(20));
    loop {
        every.tick().await;
        let (accepted, kills) = (load.accepted().len(), campaign.report.lock().unwrap().kills());
        println!(
            "{:>6} s  {accepted} accepted, {kills} killed",
            campaign.began.elapsed().as_secs()
        );
    }
}
