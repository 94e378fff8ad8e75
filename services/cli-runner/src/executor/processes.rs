//! The processes of one command: found and signalled as a group, and one by one where they left the group.
//!
//! A process belongs to a command when it is in its process group, or when it carries the command's own
//! directory as `HOME` or as working directory: that is what `setsid` and daemons cannot shake off without
//! meaning to. The directory is unique to the command, so nothing else in the environment needs to mark it.
//!
//! Invariants:
//! - A pid alone is never trusted: the time at which its process began goes with it, since pids are reused.
//! - Where there is no `/proc` (not Linux) only the process group is known, and nothing is guessed.

use std::{
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        signal::{self, Signal},
        wait::{self, WaitPidFlag},
    },
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// How often a group that was asked to end is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often what is killed without waiting is looked for; one look reads the whole of `/proc`, about a millisecond.
const KILL_ROUNDS_MAX: u32 = 10;
/// How long killed processes may take to vanish: only those stuck in the kernel (a dead NFS) take longer.
const KILLED_GONE_WITHIN: Duration = Duration::from_secs(2);

/// A process that cannot be taken for a later one with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub pid: i32,
    /// Clock ticks from boot to its beginning, from `/proc/<pid>/stat`; absent where there is no `/proc`.
    pub start_ticks: Option<u64>,
}

impl Identity {
    /// The identity of the process that has `pid` now.
    pub fn of(pid: i32) -> Self {
        let start_ticks = read(pid).map(|process| process.start_ticks);
        Self { pid, start_ticks }
    }

    /// This process.
    pub fn own() -> Self {
        Self::of(Pid::this().as_raw())
    }

    /// Whether that very process exists and has not ended.
    pub fn is_alive(&self) -> bool {
        match self.start_ticks {
            Some(ticks) => read(self.pid).is_some_and(|now| now.start_ticks == ticks && !now.is_zombie()),
            None => !matches!(signal::kill(Pid::from_raw(self.pid), None), Err(Errno::ESRCH)),
        }
    }
}

/// A line of `/proc/<pid>/stat`.
#[derive(Clone, Copy, Debug)]
struct Process {
    pid: i32,
    state: u8,
    parent: i32,
    group: i32,
    start_ticks: u64,
}

impl Process {
    fn is_zombie(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }
}

fn read(pid: i32) -> Option<Process> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything, parentheses and spaces too: fields count from the
    // last one.
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let fields: Vec<&str> = std::str::from_utf8(&stat[end + 1..])
        .ok()?
        .split_ascii_whitespace()
        .collect();
    Some(Process {
        pid,
        state: *fields.first()?.as_bytes().first()?,
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        start_ticks: fields.get(19)?.parse().ok()?,
    })
}

fn all() -> impl Iterator<Item = Process> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(read)
}

/// Whether the process carries `home` as its `HOME` or stands within it.
fn carries(pid: i32, home: &Path) -> bool {
    let home = home.as_os_str().as_bytes();
    if let Ok(cwd) = fs::read_link(format!("/proc/{pid}/cwd")) {
        // A directory that is gone is shown with ` (deleted)` behind it.
        let within = cwd.as_os_str().as_bytes().strip_prefix(home);
        if within.is_some_and(|rest| matches!(rest.first(), None | Some(b'/' | b' '))) {
            return true;
        }
    }
    fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| {
        environ
            .split(|byte| *byte == 0)
            .any(|variable| variable.strip_prefix(b"HOME=") == Some(home))
    })
}

/// All processes of one command.
#[derive(Clone, Debug)]
pub struct Family {
    /// The first process, which leads the group; absent where it is not known whether it was started.
    pub leader: Option<Identity>,
    /// The command's own directory.
    pub home: PathBuf,
}

impl Family {
    /// The command's processes that have not ended.
    fn members(&self) -> Vec<Process> {
        let group = self.group();
        let own = Pid::this().as_raw();
        let began = self.leader.and_then(|leader| leader.start_ticks).unwrap_or(0);
        all()
            // What is older than the command cannot be of it.
            .filter(|process| process.pid != own && process.start_ticks >= began)
            .filter(|process| Some(process.group) == group || carries(process.pid, &self.home))
            .filter(|process| {
                if process.is_zombie() {
                    self.reap(process, own);
                }
                !process.is_zombie()
            })
            .collect()
    }

    /// The process group, unless its number has gone to a stranger.
    fn group(&self) -> Option<i32> {
        let leader = self.leader?;
        match (read(leader.pid), leader.start_ticks) {
            (Some(now), Some(ticks)) if now.start_ticks != ticks => None,
            _ => Some(leader.pid),
        }
    }

    /// Takes leave of an ended process that was handed to us by the system (as process 1 of a container
    /// gets them). The leader is the executor's own child and is waited for there.
    fn reap(&self, process: &Process, own: i32) {
        if process.parent == own && self.leader.is_none_or(|leader| leader.pid != process.pid) {
            let _ = wait::waitpid(Pid::from_raw(process.pid), Some(WaitPidFlag::WNOHANG));
        }
    }

    /// Sends `signal` to every process of the command; how many there were. One that forked meanwhile may be
    /// missed outside the group, so callers look again.
    pub fn signal(&self, signal: Signal) -> usize {
        let (group, members) = (self.group(), self.members());
        if let Some(group) = group {
            let _ = signal::killpg(Pid::from_raw(group), signal);
        }
        // One that was seen in the group may have left it before the group was signalled. To be killed twice does no
        // harm; another signal might be handled twice.
        let is_repeatable = signal == Signal::SIGKILL;
        for member in members
            .iter()
            .filter(|member| is_repeatable || Some(member.group) != group)
        {
            let _ = signal::kill(Pid::from_raw(member.pid), signal);
        }
        members.len()
    }

    /// Kills everything without waiting for it to be gone: looks again for what forked meanwhile, a bounded number
    /// of times.
    pub fn kill_at_once(&self) {
        for _ in 0..KILL_ROUNDS_MAX {
            if self.signal(Signal::SIGKILL) == 0 {
                return;
            }
        }
    }

    /// Whether anything of the command still runs.
    pub fn is_alive(&self) -> bool {
        !self.members().is_empty() || self.is_group_alive_elsewhere()
    }

    /// For systems without `/proc`.
    fn is_group_alive_elsewhere(&self) -> bool {
        !Path::new("/proc/self/stat").exists()
            && self
                .leader
                .is_some_and(|leader| signal::killpg(Pid::from_raw(leader.pid), None).is_ok())
    }

    /// Asks everything to end, and kills what has not after `grace`. Returns whether all of it is gone; what
    /// is not is stuck in the kernel.
    pub async fn end(&self, grace: Duration) -> bool {
        if self.signal(Signal::SIGTERM) == 0 && !self.is_group_alive_elsewhere() {
            return true;
        }
        // A stopped process hears of nothing but SIGKILL until it goes on.
        self.signal(Signal::SIGCONT);
        if self.is_gone_within(grace).await {
            return true;
        }
        self.kill().await
    }

    /// Kills everything at once. Returns whether all of it is gone.
    pub async fn kill(&self) -> bool {
        let until = Instant::now() + KILLED_GONE_WITHIN;
        loop {
            // Again and again: a process may fork between the look and the blow.
            self.signal(Signal::SIGKILL);
            if !self.is_alive() {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn is_gone_within(&self, bound: Duration) -> bool {
        let until = Instant::now() + bound;
        while self.is_alive() {
            if Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        true
    }
}

/// What tells this machine (and this boot, and this container) from another that sees the same directory:
/// pids mean something only within it.
pub fn place() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{} {}", boot.trim(), namespace.display())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_pid() {
        let own = Identity::own();
        assert!(own.is_alive());
        let later = Identity {
            start_ticks: own.start_ticks.map(|ticks| ticks + 1),
            ..own
        };
        assert!(!later.is_alive());
        let family = Family {
            leader: Some(later),
            home: "/nonexistent".into(),
        };
        assert_eq!(
            family.group(),
            None,
            "a group whose number went to a stranger is not touched"
        );
    }

    #[test]
    fn the_own_process_is_never_a_member() {
        let home = std::env::current_dir().unwrap();
        let family = Family { leader: None, home };
        assert!(
            !family
                .members()
                .iter()
                .any(|member| member.pid == Pid::this().as_raw())
        );
    }
}
