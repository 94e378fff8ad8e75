//! The nats-server of `fist up`: configured, started, watched, started again when it dies, stopped last.
//!
//! Invariants:
//! - At most one runs for a directory: one that a killed `fist up` left behind is ended before another begins.
//!   It is known by its command line, which names this directory's configuration: no file can be stale, no
//!   number of a process can be another's by now.
//! - It listens on this machine only, asks for a password that only this user can read, and keeps its port as
//!   long as this process lives.
//! - What it acknowledges is on the disk (`sync_interval: always`), so a power cut loses nothing either.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use bus::server::{Places, ServerBinary, find_server};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use service::config::{Config, Secret};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use super::directory::replace;
use crate::failure::Failure;

/// How long it may take to open its port; a store of many gigabytes is looked through first.
const START_MAX: Duration = Duration::from_secs(120);
/// How often to look meanwhile.
const START_PAUSE: Duration = Duration::from_millis(10);
/// How long it may take to end before it is killed.
const STOP_MAX: Duration = Duration::from_secs(15);
/// Pauses before it is started again grow from this …
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(100);
/// … to this.
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(10);
/// A server that lived so long was well: the pauses begin anew.
const WELL_AFTER: Duration = Duration::from_secs(60);
/// The largest message: what the HTTP door takes, and room around it.
const PAYLOAD_ROOM: usize = 1 << 20;
/// nats-server warns above this.
const PAYLOAD_MAX: usize = 8 << 20;
/// What the streams may take beside those with sizes of their own, as `bus::topology` has them.
const OTHER_STREAMS_BYTES: u64 = 2 << 30;
/// Its only user.
const USER: &str = "fist";
/// Its name, by which it is known among this machine's processes, too.
const SERVER_NAME: &str = "fist-up";
/// Levels of directories in its store; it has fewer.
const DEPTH_MAX: u32 = 12;
/// Lines of its log in an error.
const LOG_LINES: usize = 5;

/// A nats-server that runs.
#[derive(Debug)]
pub struct NatsServer {
    binary: ServerBinary,
    home: PathBuf,
    password: String,
    port: u16,
    child: Child,
    started: Instant,
}

impl NatsServer {
    /// Ends what was left behind, and starts a server in `directory`.
    ///
    /// # Errors
    /// What is missing, or the server's own last words.
    pub async fn start(directory: &Path, config: &Config) -> Result<Self, Failure> {
        let binary = find_server(&Places::from_environment()).map_err(Failure::failed)?;
        let home = directory.join("nats");
        let cannot = |error: io::Error| Failure::failed(format!("cannot use {}: {error}", home.display()));
        fs::create_dir_all(&home).map_err(cannot)?;
        end_left_behind(&config_file(&home)).await;
        let password = random_text().map_err(cannot)?;
        replace(
            &config_file(&home),
            &configuration(&home, &password, config),
            0o600,
        )?;
        warn_of_a_small_disk(&home, config);
        let (child, port) = spawn(&binary, &home, None).await.map_err(Failure::failed)?;
        Ok(Self {
            binary,
            home,
            password,
            port,
            child,
            started: Instant::now(),
        })
    }

    /// Its version.
    pub fn version(&self) -> &str {
        &self.binary.version
    }

    /// The configuration with this server in it.
    pub fn configured(&self, mut config: Config) -> Config {
        config.nats.url = format!("nats://127.0.0.1:{}", self.port);
        config.nats.user = Some(USER.to_owned());
        config.nats.password = Some(Secret::new(self.password.as_str()));
        config.nats.credentials_file = None;
        config.nats.tls_ca_file = None;
        config.nats.replicas = 1;
        config
    }

    /// Starts it again whenever it dies, until `stop`; then ends it.
    pub async fn supervise(mut self, stop: CancellationToken) {
        let mut pause = RESTART_PAUSE_MIN;
        loop {
            let died = tokio::select! {
                biased;
                () = stop.cancelled() => return self.stop().await,
                died = self.child.wait() => died,
            };
            if self.started.elapsed() > WELL_AFTER {
                pause = RESTART_PAUSE_MIN;
            }
            tracing::error!(
                how = how_it_ended(died),
                "the nats-server died; starting it again"
            );
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(RESTART_PAUSE_MAX);
                self.started = Instant::now();
                // The same port, since that is where everybody looks for it. What is dropped here half-way is
                // killed.
                let spawned = tokio::select! {
                    () = stop.cancelled() => return,
                    spawned = spawn(&self.binary, &self.home, Some(self.port)) => spawned,
                };
                match spawned {
                    Ok((child, _)) => {
                        self.child = child;
                        tracing::warn!(port = self.port, "the nats-server is back");
                        break;
                    }
                    Err(reason) => {
                        tracing::error!(reason, "the nats-server cannot be started; trying again");
                    }
                }
            }
        }
    }

    async fn stop(mut self) {
        if let Some(pid) = self.child.id() {
            signal(pid, Signal::SIGTERM);
        }
        if tokio::time::timeout(STOP_MAX, self.child.wait()).await.is_err() {
            tracing::warn!("the nats-server did not end in time; killing it");
            let _ = self.child.kill().await;
        }
        remove_ports_files(&self.home);
    }
}

fn config_file(home: &Path) -> PathBuf {
    home.join("server.conf")
}

fn log_file(home: &Path) -> PathBuf {
    home.join("server.log")
}

fn arguments(config_file: &Path) -> [std::ffi::OsString; 4] {
    [
        "--config".into(),
        config_file.into(),
        "--name".into(),
        SERVER_NAME.into(),
    ]
}

/// The server's configuration.
fn configuration(home: &Path, password: &str, config: &Config) -> String {
    let quoted = |path: &Path| {
        let text = path.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"");
        format!("\"{text}\"")
    };
    let payload = (config.http.body_bytes_max + PAYLOAD_ROOM).min(PAYLOAD_MAX);
    let store = store_bytes_max(config);
    format!(
        "# Written by `fist up` at each start: what is changed here is lost.\n\
         listen: \"127.0.0.1:-1\"\n\
         ports_file_dir: {home}\n\
         log_file: {log}\n\
         logfile_size_limit: 10485760\n\
         logfile_max_num: 3\n\
         max_payload: {payload}\n\
         authorization {{ user: \"{USER}\", password: \"{password}\", timeout: 10 }}\n\
         jetstream {{\n\
         \x20 store_dir: {store_dir}\n\
         \x20 max_memory_store: 268435456\n\
         \x20 max_file_store: {store}\n\
         \x20 sync_interval: always\n\
         }}\n",
        home = quoted(home),
        log = quoted(&log_file(home)),
        store_dir = quoted(&home.join("jetstream")),
    )
}

/// What its streams may take on disk.
fn store_bytes_max(config: &Config) -> u64 {
    let nats = &config.nats;
    nats.log_bytes_max + nats.alerts_bytes_max + nats.blobs_bytes_max + OTHER_STREAMS_BYTES
}

/// Admission stops before the streams are full, but cannot know of a disk that is full before.
fn warn_of_a_small_disk(home: &Path, config: &Config) {
    let Ok(disk) = nix::sys::statvfs::statvfs(home) else {
        return;
    };
    #[allow(clippy::unnecessary_cast, reason = "narrower on other systems")]
    let free = disk.blocks_available() as u64 * disk.fragment_size() as u64;
    let needed = store_bytes_max(config).saturating_sub(bytes_below(&home.join("jetstream"), DEPTH_MAX));
    if free < needed {
        tracing::warn!(
            free_mib = free >> 20,
            needed_mib = needed >> 20,
            "the disk may fill up before the streams do: lower nats.log_bytes_max, nats.alerts_bytes_max and nats.blobs_bytes_max, or choose another directory with --dir"
        );
    }
}

/// What the files below a directory take.
fn bytes_below(directory: &Path, depth: u32) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() && depth > 0 => bytes_below(&entry.path(), depth - 1),
        Ok(found) if found.is_file() => found.len(),
        _ => 0,
    });
    sizes.sum()
}

/// Starts it and waits for its port.
async fn spawn(binary: &ServerBinary, home: &Path, port: Option<u16>) -> Result<(Child, u16), String> {
    remove_ports_files(home);
    let mut command = Command::new(&binary.path);
    command.args(arguments(&config_file(home)));
    if let Some(port) = port {
        command.arg("--port").arg(port.to_string());
    }
    // A group of its own: Ctrl-C is for us, and it is to be the last to go.
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{} cannot be started: {error}", binary.path.display()))?;
    let ports = child
        .id()
        .map(|pid| home.join(format!("nats-server_{pid}.ports")));
    let deadline = Instant::now() + START_MAX;
    loop {
        if let Some(port) = ports.as_deref().and_then(read_port) {
            return Ok((child, port));
        }
        if let Ok(Some(status)) = child.try_wait() {
            return Err(format!(
                "the nats-server {}: {}",
                how_it_ended(Ok(status)),
                last_words(home)
            ));
        }
        if Instant::now() >= deadline {
            let _ = child.kill().await;
            return Err(format!(
                "the nats-server did not open its port within {} s: {}",
                START_MAX.as_secs(),
                last_words(home)
            ));
        }
        tokio::time::sleep(START_PAUSE).await;
    }
}

fn how_it_ended(status: io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => format!("ended with {status}"),
        Err(error) => format!("cannot be waited for: {error}"),
    }
}

/// The port of `{"nats":["nats://127.0.0.1:4222"], …}`; `None` while the file is not whole.
fn read_port(file: &Path) -> Option<u16> {
    let ports: serde_json::Value = serde_json::from_str(&fs::read_to_string(file).ok()?).ok()?;
    ports["nats"][0].as_str()?.rsplit_once(':')?.1.parse().ok()
}

fn remove_ports_files(home: &Path) {
    for entry in fs::read_dir(home).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("nats-server_") && name.ends_with(".ports") {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The end of its log.
fn last_words(home: &Path) -> String {
    let file = log_file(home);
    let text = fs::read_to_string(&file).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(LOG_LINES).collect();
    let words: Vec<&str> = lines.into_iter().rev().collect();
    format!("{} ({} has all)", words.join(" / "), file.display())
}

/// 32 random bytes in hexadecimal.
fn random_text() -> io::Result<String> {
    let mut bytes = [0; 32];
    io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn signal(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Ends servers of this configuration that nobody waits for any more.
async fn end_left_behind(config_file: &Path) {
    for (order, patience) in [(Signal::SIGTERM, STOP_MAX), (Signal::SIGKILL, STOP_MAX)] {
        let found = left_behind(config_file);
        if found.is_empty() {
            return;
        }
        for pid in &found {
            tracing::warn!(
                pid,
                signal = order.as_str(),
                "ending a nats-server that an earlier `fist up` left behind"
            );
            signal(*pid, order);
        }
        let deadline = Instant::now() + patience;
        while !left_behind(config_file).is_empty() && Instant::now() < deadline {
            tokio::time::sleep(START_PAUSE).await;
        }
    }
}

/// Processes whose command line begins as [`spawn`] begins it.
fn left_behind(config_file: &Path) -> Vec<u32> {
    let wanted: Vec<Vec<u8>> = arguments(config_file)
        .into_iter()
        .map(std::os::unix::ffi::OsStringExt::into_vec)
        .collect();
    let is_ours = |pid: u32| {
        // Of a process that has ended nothing is left here, even where it is not waited for.
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.len() > wanted.len()
            && words[1..]
                .iter()
                .zip(&wanted)
                .all(|(word, wanted)| word == wanted)
    };
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| is_ours(*pid))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !holds() {
            assert!(Instant::now() < deadline, "{what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn it_is_started_again_on_the_same_port_and_stopped_at_last() {
        let dir = tempfile::tempdir().unwrap();
        let server = NatsServer::start(dir.path(), &Config::default()).await.unwrap();
        let config = server.configured(Config::default());
        let file = config_file(&server.home);
        let first = left_behind(&file);
        assert_eq!(first.len(), 1);
        let stop = CancellationToken::new();
        let supervised = tokio::spawn(server.supervise(stop.clone()));
        signal(first[0], Signal::SIGKILL);
        eventually(
            "another one runs",
            || matches!(left_behind(&file)[..], [pid] if pid != first[0]),
        )
        .await;
        let settings = crate::up::bus_settings(&config, "test", Duration::from_secs(20));
        let connection = bus::Connection::open(&settings).await.unwrap();
        connection.close().await;
        let strangers = bus::Settings {
            user_and_password: None,
            ..settings
        };
        assert!(
            bus::Connection::open(&strangers).await.is_err(),
            "nobody comes in without the password"
        );
        stop.cancel();
        supervised.await.unwrap();
        assert_eq!(left_behind(&file), [0; 0]);
    }

    #[tokio::test]
    async fn what_was_left_behind_is_ended_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = NatsServer::start(dir.path(), &Config::default()).await.unwrap();
        let pid = first.child.id().unwrap();
        let second = NatsServer::start(dir.path(), &Config::default()).await.unwrap();
        assert_ne!(second.child.id(), Some(pid));
        assert_eq!(
            left_behind(&config_file(&second.home)),
            [second.child.id().unwrap()]
        );
        second.stop().await;
    }

    #[tokio::test]
    async fn its_last_words_are_passed_on() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("nats")).unwrap();
        fs::write(dir.path().join("nats/jetstream"), "in the way").unwrap();
        let failure = NatsServer::start(dir.path(), &Config::default())
            .await
            .unwrap_err();
        assert!(failure.message.contains("server.log"), "{failure}");
        assert!(failure.message.contains("storage directory"), "{failure}");
    }
}
