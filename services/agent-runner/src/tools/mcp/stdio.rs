//! Programs of servers that speak over stdin and stdout.
//!
//! Invariants:
//! - A program is a process group of its own, and none of it outlives its [`Program`] by more than the grace: it is asked
//!   to end, then killed; at once where this process stops.
//! - It gets PATH, HOME and what is configured of an environment, and nothing else.
//! - A line that is too long ends the connection, instead of being waited for.
//!
//! The SDK has a transport for programs of its own. It kills them in a task that it spawns on drop, which a runtime that
//! stops does not run, and leaves out long lines in silence, so that a call waits for its whole time.

use std::{
    io,
    path::Path,
    pin::Pin,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use service::config::{Secret, process_env};
use tokio::{
    io::{AsyncRead, AsyncReadExt, ReadBuf},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    sync::watch,
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Variables of our own environment that programs get.
const KEPT: [&str; 2] = ["PATH", "HOME"];
/// After its stdin was closed, and again after SIGTERM.
const GRACE: Duration = Duration::from_secs(1);
/// For the exit status, once the connection ended.
const STATUS_WAIT: Duration = Duration::from_secs(2);
/// Bytes of the end of stderr that explain why a program ended.
const STDERR_BYTES_MAX: usize = 1024;

/// A running program. Ends it when dropped.
pub(super) struct Program {
    /// Why it is gone, once it is.
    ended: watch::Receiver<Option<String>>,
    /// Set where we ended the connection.
    refused: Arc<Mutex<Option<String>>>,
    _end: DropGuard,
}

/// Starts a program. The environment's later entries win.
///
/// # Errors
/// When there is no such program, or it cannot be started.
pub(super) fn start<'a>(
    command: &str,
    args: &[String],
    env: impl Iterator<Item = (&'a String, &'a Secret)>,
    line_bytes_max: usize,
) -> Result<(Program, (Lines, ChildStdin)), String> {
    let mut child = Command::new(command)
        .args(args)
        .env_clear()
        .envs(process_env().filter(|(name, _)| KEPT.contains(&name.as_str())))
        .envs(env.map(|(name, value)| (name, value.expose())))
        .process_group(0)
        .kill_on_drop(true)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| {
            let program = Path::new(command)
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            format!("its program {program} cannot be started: {error}")
        })?;
    let (Some(stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err("its program has no stdin, stdout and stderr".to_owned());
    };
    let refused = Arc::new(Mutex::new(None));
    let lines = Lines {
        stdout,
        line_bytes: 0,
        line_bytes_max,
        refused: Arc::clone(&refused),
    };
    let (tell, ended) = watch::channel(None);
    let end = CancellationToken::new();
    tokio::spawn(watched(child, stderr, end.clone(), tell));
    let program = Program {
        ended,
        refused,
        _end: end.drop_guard(),
    };
    Ok((program, (lines, stdin)))
}

impl Program {
    /// Why the connection ended, in words for the model.
    pub(super) async fn why_ended(&self) -> String {
        let refused = self
            .refused
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(reason) = refused {
            return reason;
        }
        let mut ended = self.ended.clone();
        match timeout(STATUS_WAIT, ended.wait_for(Option::is_some)).await {
            Ok(Ok(reason)) => reason.clone().unwrap_or_default(),
            _ => "the server closed the connection".to_owned(),
        }
    }
}

/// Looks after a program until it is gone: until it ends by itself or is to end.
async fn watched(
    mut child: Child,
    stderr: ChildStderr,
    end: CancellationToken,
    tell: watch::Sender<Option<String>>,
) {
    let group = Group::of(&child);
    let mut reading = tokio::spawn(tail(stderr));
    let status = tokio::select! {
        status = child.wait() => status,
        // The connection's end closes stdin, which is how servers are told to go.
        () = end.cancelled() => match timeout(GRACE, child.wait()).await {
            Ok(status) => status,
            Err(_) => {
                group.signal(Signal::SIGTERM);
                match timeout(GRACE, child.wait()).await {
                    Ok(status) => status,
                    Err(_) => {
                        group.signal(Signal::SIGKILL);
                        child.wait().await
                    }
                }
            }
        },
    };
    // Whatever it left behind goes too, and holds stderr open no longer.
    drop(group);
    let said = timeout(GRACE, &mut reading).await;
    reading.abort();
    let said = said.ok().and_then(Result::ok).unwrap_or_default();
    let _ = tell.send(Some(ending(status, &said)));
}

fn ending(status: io::Result<ExitStatus>, said: &str) -> String {
    let how = match status {
        Ok(status) => format!("the server's program ended ({status})"),
        Err(error) => format!("the server's program ended ({error})"),
    };
    match said.trim() {
        "" => how,
        said => format!("{how} after it said: {said}"),
    }
}

/// The end of what is said on stderr, which is read to its end, so that nobody blocks on it.
async fn tail(mut stderr: ChildStderr) -> String {
    let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
    let mut is_cut = false;
    while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..read]);
        let excess = kept.len().saturating_sub(STDERR_BYTES_MAX);
        kept.drain(..excess);
        is_cut |= excess > 0;
    }
    // A line without its beginning may hold the end of a secret, which nobody would recognise.
    if is_cut {
        let line = kept.iter().position(|byte| *byte == b'\n');
        kept.drain(..line.map_or(kept.len(), |at| at + 1));
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// The process group of a program; killed when this is dropped, as when the runtime stops.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(
            child
                .id()
                .and_then(|id| i32::try_from(id).ok())
                .map(Pid::from_raw),
        )
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.0 {
            let _ = killpg(group, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

/// A program's stdout, which fails at a line that is too long.
pub(super) struct Lines {
    stdout: ChildStdout,
    line_bytes: usize,
    line_bytes_max: usize,
    refused: Arc<Mutex<Option<String>>>,
}

impl AsyncRead for Lines {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stdout).poll_read(context, buf);
        let read = &buf.filled()[before..];
        for piece in read.split_inclusive(|byte| *byte == b'\n') {
            self.line_bytes += piece.len();
            if self.line_bytes > self.line_bytes_max {
                let reason = format!(
                    "the server sent a message of more than {} bytes; ask for less",
                    self.line_bytes_max
                );
                *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.clone());
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, reason)));
            }
            if piece.ends_with(b"\n") {
                self.line_bytes = 0;
            }
        }
        polled
    }
}
