//! The services' processes, each behind proxies of its own, started again when they end, as an orchestrator does.
//!
//! Invariant: nothing that was started runs on when a [`Fleet`] is dropped: neither services nor their commands.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use bus::testing::free_ports;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    plan::{Fault, REPLICAS},
    proxy::{Mode, Proxy},
};
use crate::{
    examples::stand_ins,
    product::{binary, root},
};

/// One process of a service, whichever runs at the moment.
pub struct Slot {
    pub service: &'static str,
    pub replica: usize,
    pub http_port: Option<u16>,
    nats: Vec<Proxy>,
    database: Option<Proxy>,
    child: Mutex<Option<Child>>,
}

/// All of them.
pub struct Fleet {
    pub slots: Vec<Slot>,
    directory: PathBuf,
    stand_ins: String,
}

impl Fleet {
    /// Starts all services under `directory`, on these servers and this database.
    pub async fn start(directory: &Path, nats: &[SocketAddr], database: SocketAddr) -> Self {
        let mut slots = Vec::new();
        for (service, replicas) in REPLICAS {
            let ports = free_ports(replicas);
            for (replica, port) in ports.into_iter().enumerate() {
                let mut proxies = Vec::new();
                for server in nats {
                    proxies.push(Proxy::start(*server).await);
                }
                slots.push(Slot {
                    service,
                    replica,
                    http_port: (service == "ingest").then_some(port),
                    nats: proxies,
                    database: match service {
                        "store-writer" => Some(Proxy::start(database).await),
                        _ => None,
                    },
                    child: Mutex::new(None),
                });
            }
        }
        let fleet = Self {
            slots,
            stand_ins: stand_ins(directory),
            directory: directory.to_owned(),
        };
        fleet.slots.iter().for_each(|slot| fleet.spawn(slot));
        fleet
    }

    /// Does a fault, or begins it.
    pub fn begin(&self, service: &str, replica: usize, fault: Fault) {
        let slot = self.slot(service, replica);
        match fault {
            Fault::Kill => {
                let killed = slot.child.lock().unwrap().take();
                if let Some(mut child) = killed {
                    child.kill().unwrap();
                    child.wait().unwrap();
                }
                self.spawn(slot);
            }
            Fault::Stop(_) => slot.signal(Signal::SIGSTOP),
            Fault::Cut => slot.proxies().for_each(Proxy::cut),
            Fault::Delay(delay_ms, _) => slot.set(Mode::Delay(Duration::from_millis(delay_ms))),
            Fault::Hole(_) => slot.set(Mode::Hole),
        }
    }

    /// Ends a fault that lasts. A hole ends in one of two ways: what was held arrives late, or never.
    pub fn end(&self, service: &str, replica: usize, fault: Fault) {
        let slot = self.slot(service, replica);
        match fault {
            Fault::Kill | Fault::Cut => {}
            Fault::Stop(_) => slot.signal(Signal::SIGCONT),
            Fault::Delay(..) => slot.set(Mode::Pass),
            Fault::Hole(ms) => {
                if ms % 2 == 0 {
                    slot.proxies().for_each(Proxy::cut);
                }
                slot.set(Mode::Pass);
            }
        }
    }

    /// Nothing of what a fault changed stays.
    pub fn end_all(&self) {
        for slot in &self.slots {
            slot.set(Mode::Pass);
            slot.signal(Signal::SIGCONT);
        }
    }

    /// Starts those that ended by themselves, and says which, and with what words.
    pub fn restart_ended(&self) -> Vec<String> {
        let mut ended = Vec::new();
        for slot in &self.slots {
            let status = slot
                .child
                .lock()
                .unwrap()
                .as_mut()
                .and_then(|child| child.try_wait().unwrap());
            if let Some(status) = status {
                let log = fs::read_to_string(self.log_of(slot)).unwrap_or_default();
                let last = log.lines().last().unwrap_or_default();
                ended.push(format!("{}-{}: {status}: {last}", slot.service, slot.replica));
                self.spawn(slot);
            }
        }
        ended
    }

    /// Asks all to end, and waits for it: how each ended.
    pub async fn stop_all(&self, patience: Duration) -> Vec<(String, Option<ExitStatus>)> {
        for slot in &self.slots {
            slot.signal(Signal::SIGTERM);
        }
        let deadline = Instant::now() + patience;
        let mut looks = tokio::time::interval(Duration::from_millis(100));
        loop {
            looks.tick().await;
            let stood: Vec<_> = self
                .slots
                .iter()
                .map(|slot| (slot.to_string(), slot.ended()))
                .collect();
            if Instant::now() >= deadline || stood.iter().all(|(_, status)| status.is_some()) {
                return stood;
            }
        }
    }

    /// Addresses of the API.
    pub fn doors(&self) -> Vec<String> {
        let ports = self.slots.iter().filter_map(|slot| slot.http_port);
        ports.map(|port| format!("http://127.0.0.1:{port}")).collect()
    }

    /// Where commands of the runners live.
    pub fn work_dirs(&self) -> Vec<PathBuf> {
        let runners = self.slots.iter().filter(|slot| slot.service == "cli-runner");
        runners
            .map(|slot| self.directory.join(format!("work-{}", slot.replica)))
            .collect()
    }

    /// Processes that run in, or for, the campaign's directory: commands, and what they left.
    pub fn commands_left(&self) -> Vec<(i32, String)> {
        let home = format!("HOME={}", self.directory.display());
        let found = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
            let is_ours = environment
                .split(|byte| *byte == 0)
                .any(|one| one.starts_with(home.as_bytes()));
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            is_ours.then_some((pid, line))
        });
        found.collect()
    }

    /// What the services wrote, by process.
    pub fn logs(&self) -> Vec<(String, String)> {
        let read = |slot: &Slot| fs::read_to_string(self.log_of(slot)).unwrap_or_default();
        self.slots
            .iter()
            .map(|slot| (slot.to_string(), read(slot)))
            .collect()
    }

    fn slot(&self, service: &str, replica: usize) -> &Slot {
        let mut slots = self.slots.iter();
        slots
            .find(|slot| slot.service == service && slot.replica == replica)
            .unwrap()
    }

    fn log_of(&self, slot: &Slot) -> PathBuf {
        self.directory.join(format!("{slot}.log"))
    }

    fn spawn(&self, slot: &Slot) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_of(slot))
            .unwrap();
        let nats: Vec<_> = slot
            .nats
            .iter()
            .map(|proxy| format!("nats://127.0.0.1:{}", proxy.port))
            .collect();
        let path = std::env::var("PATH").unwrap();
        let mut command = Command::new(binary(slot.service));
        command
            .env_clear()
            .env("PATH", &path)
            .env("FIST_NATS_URL", nats.join(","))
            .env("FIST_LOG_LEVEL", "info")
            // Each runner stands for a machine of its own.
            .env(
                "FIST_CLI_WORK_DIR",
                self.directory.join(format!("work-{}", slot.replica)),
            )
            .env("FIST_CLI_PATH", format!("{}:{path}", self.stand_ins))
            .env("FIST_LLM_SCRIPTED_DIR", root().join("tests/e2e/chaos"))
            .env(
                "FIST_TOOLS_KUBECTL_BIN",
                Path::new(&self.stand_ins).join("kubectl"),
            );
        if let Some(database) = &slot.database {
            let url = format!(
                "postgres://postgres@127.0.0.1:{}/{}",
                database.port,
                super::DATABASE
            );
            command.env("FIST_DATABASE_URL", url);
        }
        if let Some(port) = slot.http_port {
            command.env("FIST_HTTP_LISTEN", format!("127.0.0.1:{port}"));
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        *slot.child.lock().unwrap() = Some(child);
    }
}

impl Slot {
    fn proxies(&self) -> impl Iterator<Item = &Proxy> {
        self.nats.iter().chain(&self.database)
    }

    fn set(&self, mode: Mode) {
        self.proxies().for_each(|proxy| proxy.set(mode));
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = self.child.lock().unwrap().as_ref() {
            // It may have ended by itself.
            let _ = kill(Pid::from_raw(child.id().try_into().unwrap()), signal);
        }
    }

    fn ended(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap().as_mut()?.try_wait().unwrap()
    }
}

impl std::fmt::Display for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.service, self.replica)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for slot in &self.slots {
            if let Some(child) = slot
                .child
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .as_mut()
            {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        for (pid, _) in self.commands_left() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}
