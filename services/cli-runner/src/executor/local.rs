//! Commands as process groups of this machine, each in a directory of its own with next to nothing in its
//! environment.
//!
//! Invariants:
//! - Of the runner's own environment a command gets nothing.
//! - A command has ended when its first process has: what it left in the background is ended with it, as
//!   in a pod.
//! - Every wait here has a bound: the deadline for the command, and seconds for everything after it.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    pin::pin,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use nix::sys::signal::Signal;
use protocol::live::Stream;
use service::clock;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    time::{Instant, sleep_until, timeout},
};

use super::{
    End, Executor, ExecutorError, Finished, Job, Over, Stop, Swept,
    directory::{Claim, Found, Record, WorkDir},
    processes::{self, Family, Identity},
};
use crate::{
    capture::{Capture, Limits},
    live::{Lines, LiveSink},
};

/// How long the pipes are read on after the first process has ended, for what is still in them and for
/// children about to end as well.
const DRAIN: Duration = Duration::from_secs(1);
/// How long a process that was killed may take to be reported.
const REAPED_WITHIN: Duration = Duration::from_secs(5);
/// How long a task waits for another living runner of this machine that is at the same attempt.
const BUSY_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// How long a record whose runner cannot be judged from here (another container, another boot) outlives its
/// deadline.
const FOREIGN_KEPT: Duration = Duration::from_secs(3600);
/// How long a half-written draft of a record is kept. Writing one takes a moment; whoever was suspended amid it for
/// longer finds it gone, and its task comes again.
const DRAFT_KEPT: Duration = Duration::from_secs(30);

/// What local commands are given.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where each command gets its directory.
    pub work_dir: PathBuf,
    /// Their `PATH`.
    pub path: String,
    /// Their `KUBECONFIG`, where they get one.
    pub kubeconfig: Option<PathBuf>,
    /// Limits of what is kept of their output.
    pub limits: Limits,
    /// Between asking a command to end and killing it.
    pub kill_grace: Duration,
}

/// Runs commands on this machine.
#[derive(Clone, Debug)]
pub struct Local {
    settings: Arc<Settings>,
    work_dir: WorkDir,
    place: String,
}

fn is_older_than(path: &Path, age: Duration) -> bool {
    let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|at| at.elapsed().is_ok_and(|elapsed| elapsed > age))
}

impl Local {
    /// Makes the working directory ready.
    ///
    /// # Errors
    /// Where the working directory cannot be made or is not ours.
    pub fn open(settings: Settings) -> io::Result<Self> {
        let work_dir = WorkDir::open(&settings.work_dir)?;
        Ok(Self {
            settings: Arc::new(settings),
            work_dir,
            place: processes::place(),
        })
    }

    /// Takes the attempt for this process, ending what a dead runner left of it.
    async fn claim(&self, name: &str, job: &Job) -> Result<Claimed, ExecutorError> {
        let record = Record::new(job, &self.place);
        // Twice: once it may be a dead runner's.
        for _ in 0..2 {
            let claim = self.work_dir.claim(name, &record).map_err(|error| {
                ExecutorError::Infrastructure(format!(
                    "the command's directory {} could not be made: {error}; free space there, or set cli.work_dir",
                    self.work_dir.home(name).display()
                ))
            })?;
            if let Claim::Ours(home) = claim {
                let local = self.clone();
                return Ok(Claimed {
                    local,
                    name: name.to_owned(),
                    home,
                    record,
                    is_over: false,
                });
            }
            if self.clear_if_left_over(name).await?.is_none() {
                break;
            }
        }
        Err(ExecutorError::Unavailable {
            after: BUSY_AGAIN_AFTER,
            reason: format!("another runner on this machine is at {name}"),
        })
    }

    /// Whether the runner that made the record is dead.
    fn is_left_over(&self, name: &str) -> bool {
        match self.work_dir.record(name) {
            Found::Nothing => false,
            Found::Torn => true,
            Found::Whole(record) => self.is_orphaned(&record),
        }
    }

    /// Whether the runner that wrote the record is dead; of one elsewhere, whether it must be by its deadline.
    fn is_orphaned(&self, record: &Record) -> bool {
        if record.place == self.place {
            !record.runner.is_alive()
        } else {
            clock::now() > record.deadline.after(FOREIGN_KEPT)
        }
    }

    /// Kills what a dead runner left of a command and removes its directory: how many processes were killed;
    /// `None` where its runner lives.
    async fn clear_if_left_over(&self, name: &str) -> Result<Option<usize>, ExecutorError> {
        let lock = self.work_dir.lock().map_err(|error| {
            ExecutorError::Infrastructure(format!("cli.work_dir cannot be locked: {error}"))
        })?;
        if lock.is_none() || !self.is_left_over(name) {
            return Ok(None);
        }
        let leader = match self.work_dir.record(name) {
            Found::Whole(record) if record.place == self.place => record.leader,
            Found::Whole(_) | Found::Torn | Found::Nothing => None,
        };
        let family = self.work_dir.family(name, leader);
        let killed = family.signal(Signal::SIGKILL);
        if !family.kill().await {
            return Err(ExecutorError::Infrastructure(format!(
                "processes that a dead runner left of {name} cannot be killed: they hang in the system (a file system that does not answer?)"
            )));
        }
        self.remove(name).await;
        Ok(Some(killed))
    }

    async fn remove(&self, name: &str) {
        let (work_dir, owned) = (self.work_dir.clone(), name.to_owned());
        let removed = tokio::task::spawn_blocking(move || work_dir.remove(&owned)).await;
        match removed.map_err(io::Error::other).flatten() {
            Ok(()) => {}
            // The next sweep tries again, for as long as the record is there.
            Err(error) => tracing::warn!(name, %error, "a command's directory could not be removed"),
        }
    }

    fn command(&self, job: &Job, home: &Path) -> Result<Command, ExecutorError> {
        let argv = job.program.argv();
        let Some((program, arguments)) = argv.split_first() else {
            return Err(ExecutorError::CannotStart("the command has no words".to_owned()));
        };
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(self.environment(&job.env, home))
            .current_dir(home)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        Ok(command)
    }

    fn environment(&self, own: &BTreeMap<String, String>, home: &Path) -> BTreeMap<OsString, OsString> {
        let mut environment = BTreeMap::from([
            ("PATH".into(), self.settings.path.clone().into()),
            ("LANG".into(), "C.UTF-8".into()),
        ]);
        if let Some(kubeconfig) = &self.settings.kubeconfig {
            environment.insert("KUBECONFIG".into(), kubeconfig.clone().into());
        }
        environment.extend(own.iter().map(|(name, value)| (name.into(), value.into())));
        // Last, since HOME is also how a command's processes are found again.
        environment.insert("HOME".into(), home.into());
        environment
    }

    fn spawn(&self, job: &Job, claimed: &Claimed) -> Result<Child, ExecutorError> {
        let mut command = self.command(job, &claimed.home)?;
        command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory => ExecutorError::Unavailable {
                after: BUSY_AGAIN_AFTER,
                reason: format!("the system has no room for another process: {error}"),
            },
            io::ErrorKind::NotFound => ExecutorError::CannotStart(format!(
                "{} was not found in {}: install it on the machine of the cli-runner, or set cli.path",
                job.program.argv()[0],
                self.settings.path
            )),
            _ => {
                ExecutorError::CannotStart(format!("{} could not be started: {error}", job.program.argv()[0]))
            }
        })
    }
}

impl Executor for Local {
    async fn run(&self, job: &Job, stop: &Stop, live: &LiveSink) -> Result<Finished, ExecutorError> {
        let mut claimed = self.claim(&job.name(), job).await?;
        let result = match self.spawn(job, &claimed) {
            Ok(child) => self.attend(job, child, &mut claimed, stop, live).await,
            Err(error) => Err(error),
        };
        claimed.release().await;
        result
    }

    /// A process dies with its runner, so there is never one to adopt.
    async fn adopt(&self, _: &Job, _: &Stop, _: &LiveSink) -> Option<Result<Finished, ExecutorError>> {
        None
    }

    async fn forget(&self, _: &Job) {}

    async fn sweep(&self, _: &impl Over) -> Result<Swept, ExecutorError> {
        let names = self.work_dir.names().map_err(|error| {
            ExecutorError::Infrastructure(format!("cli.work_dir cannot be read: {error}"))
        })?;
        self.remove_left_drafts();
        let mut swept = Swept::default();
        for name in names.iter().filter(|name| self.is_left_over(name)) {
            match self.clear_if_left_over(name).await {
                Ok(None) => {}
                Ok(Some(killed)) => {
                    swept.jobs += 1;
                    swept.killed += killed;
                }
                Err(error) => tracing::warn!(name, %error, "a leftover command could not be cleared away"),
            }
        }
        Ok(swept)
    }
}

impl Local {
    /// A draft lasts a moment while its writer lives; whose writer is dead belongs to nobody.
    fn remove_left_drafts(&self) {
        for (path, found) in self.work_dir.drafts().unwrap_or_default() {
            let is_left_over = match found {
                Found::Nothing => false,
                // Perhaps being written just now, or by a dead writer: the age tells.
                Found::Torn => is_older_than(&path, DRAFT_KEPT),
                Found::Whole(record) => self.is_orphaned(&record),
            };
            if is_left_over && let Err(error) = std::fs::remove_file(&path) {
                tracing::debug!(path = %path.display(), %error, "a draft could not be removed");
            }
        }
    }

    /// Follows a started command to its end, and ends what it leaves.
    async fn attend(
        &self,
        job: &Job,
        mut child: Child,
        claimed: &mut Claimed,
        stop: &Stop,
        live: &LiveSink,
    ) -> Result<Finished, ExecutorError> {
        let (started_at, started) = (clock::now(), Instant::now());
        claimed.started(&child);
        let mut stdout = Capture::new(self.settings.limits);
        let mut stderr = Capture::new(self.settings.limits);
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let why;
        let mut status: Option<ExitStatus> = None;
        let mut ended = started;
        {
            let mut reading = pin!(async {
                tokio::join!(
                    read(out, &mut stdout, Lines::new(live, Stream::Stdout)),
                    read(err, &mut stderr, Lines::new(live, Stream::Stderr)),
                );
            });
            let mut is_read = false;
            let deadline = started + job.deadline.since(started_at);
            why = loop {
                tokio::select! {
                    biased;
                    result = child.wait() => {
                        status = result.ok();
                        ended = Instant::now();
                        break Why::Ended;
                    }
                    () = stop.cancel.cancelled() => break Why::Cancelled,
                    () = stop.release.cancelled() => break Why::Released,
                    () = sleep_until(deadline) => break Why::TimedOut,
                    () = &mut reading, if !is_read => is_read = true,
                }
            };
            if why == Why::Ended && !is_read {
                is_read = timeout(DRAIN, &mut reading).await.is_ok();
            }
            // Reading goes on meanwhile: a process that is asked to end may have to write before it can.
            let family = claimed.family();
            let mut ending = pin!(family.end(self.settings.kill_grace));
            claimed.is_over = loop {
                tokio::select! {
                    is_gone = &mut ending => break is_gone,
                    result = child.wait(), if status.is_none() => {
                        status = result.ok();
                        ended = Instant::now();
                    }
                    () = &mut reading, if !is_read => is_read = true,
                }
            };
            if !is_read {
                let _ = timeout(DRAIN, &mut reading).await;
            }
        }
        if status.is_none() {
            status = timeout(REAPED_WITHIN, child.wait())
                .await
                .ok()
                .and_then(Result::ok);
            ended = Instant::now();
        }
        finished(
            why,
            status,
            Finished {
                end: End::Exited(0),
                stdout,
                stderr,
                started_at,
                duration: ended.duration_since(started),
            },
        )
    }
}

/// Why a command is attended no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Ended,
    TimedOut,
    Cancelled,
    Released,
}

fn finished(why: Why, status: Option<ExitStatus>, finished: Finished) -> Result<Finished, ExecutorError> {
    let code = status.and_then(|status| status.code().or(status.signal().map(|signal| 128 + signal)));
    let end = match (why, status) {
        (Why::Released, _) => return Err(ExecutorError::Released(Some(Box::new(finished)))),
        (Why::TimedOut, _) => End::TimedOut(code),
        (Why::Cancelled, _) => End::Cancelled(code),
        (Why::Ended, Some(status)) => match (status.code(), status.signal()) {
            (Some(code), _) => End::Exited(code),
            (None, signal) => End::Signalled(signal.unwrap_or_default()),
        },
        (Why::Ended, None) => {
            return Err(ExecutorError::Infrastructure(
                "the system did not report how the command ended".to_owned(),
            ));
        }
    };
    Ok(Finished { end, ..finished })
}

/// Reads a pipe to its end. A pipe that fails is as good as closed: its other end is a process we ended.
async fn read(pipe: Option<impl AsyncRead + Unpin>, capture: &mut Capture, mut lines: Lines<'_>) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = vec![0; 32 * 1024];
    while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
        capture.push(&buffer[..count]);
        lines.push(&buffer[..count]);
    }
    lines.finish();
}

/// An attempt that is this process's, with its directory; cleared away however `run` ends.
struct Claimed {
    local: Local,
    name: String,
    home: PathBuf,
    record: Record,
    /// Whether none of its processes is left.
    is_over: bool,
}

impl Claimed {
    /// Notes the first process, so that it is found if this process is killed.
    fn started(&mut self, child: &Child) {
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        self.record.leader = pid.map(Identity::of);
        if let Err(error) = self.local.work_dir.update(&self.name, &self.record) {
            // Not worth the command's life: its processes are found by their HOME as well.
            tracing::warn!(name = self.name, %error, "the record of a command could not be written");
        }
    }

    fn family(&self) -> Family {
        self.local.work_dir.family(&self.name, self.record.leader)
    }

    async fn release(mut self) {
        if self.record.leader.is_none() || self.is_over {
            self.is_over = true;
            self.local.remove(&self.name).await;
        } else {
            // The record stays: once this process is gone the next sweep tries again.
            tracing::warn!(
                name = self.name,
                "processes of a command cannot be killed: they hang in the system"
            );
            self.is_over = true;
        }
    }
}

impl Drop for Claimed {
    /// The future was dropped: nothing may run on, and there is no more waiting.
    fn drop(&mut self) {
        if !self.is_over {
            self.family().kill_at_once();
            let _ = self.local.work_dir.remove(&self.name);
        }
    }
}
