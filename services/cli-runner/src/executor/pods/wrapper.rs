//! Keeps a command's two outputs apart in a pod's one log, and tells its exit code there.
//!
//! A pod's log merges stdout and stderr, adds a newline to a last line that has none, and with containerd loses a
//! carriage return before a newline. So the command runs under a few lines of shell: its stdout goes straight to the
//! log, its stderr to a file in memory, and when it has ended the log goes on with a mark, the exit code, what the file
//! holds, and which lines of the two ended with a carriage return.
//!
//! Invariants:
//! - Nothing of the command is spliced into the shell's code: it comes as arguments.
//! - The mark is random, so no output can hold it by accident.
//! - The bytes of both streams come out exactly as they were printed, in whatever pieces the log comes.

use protocol::live::Stream;

use crate::returns::Returns;

/// Where the volume for stderr is mounted.
pub const VOLUME_PATH: &str = "/punching-fist";

/// What `/bin/sh -c` runs, with the mark as `$0` and the command's argv as `$@`; its files are in `directory`, a path of
/// plain characters.
pub fn script(directory: &str) -> String {
    SCRIPT.replacen("DIRECTORY", directory, 1)
}

/// It, but for the directory.
///
/// It needs no program but itself. Where `cat` or `dd` is there, stderr keeps its NUL bytes; where `mkfifo`, `tee`, `tr`
/// and `sed` are there, lines keep their carriage returns: stdout then passes through `tee`, whose copy is squeezed to
/// its line ends (so a line of any length takes no memory) and whose lines that end with `\r` are numbered.
///
/// As process 1 of its container it must pass SIGTERM on, also one that comes before it knows its child, and collect
/// its child by itself; and what the command left running is ended before anything is printed after it. Its own
/// variables have names that no workflow's have: one that came from outside would be changed for the command as well.
/// Pipes are opened for reading and writing first, since opening one end waits for the other.
const SCRIPT: &str = r#"fist_d=DIRECTORY
fist_p=
fist_t=
fist_h=
trap 'fist_t=1; [ -z "$fist_p" ] || kill -TERM "$fist_p" 2>/dev/null' TERM INT
fist_x=1
for fist_l in mkfifo tee tr sed; do command -v "$fist_l" >/dev/null 2>&1 || fist_x=; done
if [ -n "$fist_x" ] && mkfifo "$fist_d/out" "$fist_d/copy" "$fist_d/ends" 2>/dev/null; then
  exec 3<>"$fist_d/out" 4>"$fist_d/out" 5<"$fist_d/out" 3>&-
  (trap '' PIPE; exec tee "$fist_d/copy" 2>/dev/null) <&5 4>&- 5<&- &
  fist_h=$!
  (exec tr -cs '\r\n' .) <"$fist_d/copy" >"$fist_d/ends" 2>/dev/null 4>&- 5<&- &
  fist_h="$fist_h $!"
  (exec sed -n '/[^.]$/=') <"$fist_d/ends" >"$fist_d/stdout-returns" 2>/dev/null 4>&- 5<&- &
  fist_h="$fist_h $!"
else
  exec 4>&1
fi
"$@" 2>"$fist_d/stderr" >&4 4>&- 5<&- &
fist_p=$!
exec 5<&-
[ -z "$fist_t" ] || kill -TERM "$fist_p" 2>/dev/null
while :; do
  wait "$fist_p"
  fist_c=$?
  kill -0 "$fist_p" 2>/dev/null || break
done
trap '' TERM INT
if [ $$ -eq 1 ]; then
  for fist_l in first again; do
    for fist_x in /proc/[0-9]*; do
      fist_x=${fist_x#/proc/}
      case " 1 $fist_h " in *" $fist_x "*) ;; *) kill -KILL "$fist_x" 2>/dev/null ;; esac
    done
  done
fi
exec 4>&-
[ -z "$fist_h" ] || wait $fist_h
printf '\n%s %s\r\n' "$0" "$fist_c"
if command -v cat >/dev/null 2>&1; then cat "$fist_d/stderr"
elif command -v dd >/dev/null 2>&1; then dd if="$fist_d/stderr" bs=65536 2>/dev/null
else
  while IFS= read -r fist_l; do printf '%s\n' "$fist_l"; done <"$fist_d/stderr"
  printf '%s' "$fist_l"
fi
printf '\n%s \n' "$0"
[ -z "$fist_h" ] || tr -d . <"$fist_d/stdout-returns"
printf '\n%s \n' "$0"
[ -z "$fist_h" ] || tr -cs '\r\n' . <"$fist_d/stderr" | sed -n '/[^.]$/='
printf '\n%s .\n' "$0"
exit "$fist_c"
"#;

/// Reads such a log.
#[derive(Debug)]
pub struct Frames {
    /// A newline, the mark and a space.
    mark: Vec<u8>,
    part: Part,
    pending: Vec<u8>,
    code: Option<i32>,
    /// Whether the log kept the carriage return that stands after the code.
    keeps_returns: bool,
    stdout_returns: Returns,
    stderr_returns: Returns,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Stdout,
    Code,
    Stderr,
    StdoutReturns,
    StderrReturns,
    Over,
}

/// Bytes that an exit code may have in the log.
const CODE_BYTES_MAX: usize = 8;

impl Frames {
    /// For a log with this mark.
    pub fn new(mark: &str) -> Self {
        Self {
            mark: format!("\n{mark} ").into_bytes(),
            part: Part::Stdout,
            pending: Vec::new(),
            code: None,
            keeps_returns: false,
            stdout_returns: Returns::default(),
            stderr_returns: Returns::default(),
        }
    }

    /// The command's exit code, once its stdout is over.
    pub fn code(&self) -> Option<i32> {
        self.code
    }

    /// Whether both outputs are whole.
    pub fn is_over(&self) -> bool {
        self.part == Part::Over
    }

    /// What stdout and stderr lost on their way into the log; nothing where the log loses nothing.
    pub fn into_returns(self) -> (Returns, Returns) {
        if self.keeps_returns {
            return Default::default();
        }
        (self.stdout_returns, self.stderr_returns)
    }

    /// Takes the next piece of the log, and gives out what each stream gets of it.
    pub fn push(&mut self, piece: &[u8], out: &mut impl FnMut(Stream, &[u8])) {
        self.pending.extend_from_slice(piece);
        loop {
            match self.part {
                Part::Code => {
                    let Some(at) = self.pending.iter().position(|byte| *byte == b'\n') else {
                        if self.pending.len() > CODE_BYTES_MAX {
                            self.part = self.part.next();
                        }
                        return;
                    };
                    let text = String::from_utf8_lossy(&self.pending[..at]);
                    self.code = text.trim().parse().ok();
                    self.keeps_returns = text.ends_with('\r');
                    self.pending.drain(..=at);
                    self.part = self.part.next();
                }
                Part::Over => {
                    self.pending.clear();
                    return;
                }
                _ => {
                    let marked = position(&self.pending, &self.mark);
                    // Where there is no mark, one may have begun at the very end.
                    let given =
                        marked.unwrap_or_else(|| self.pending.len() - held_back(&self.pending, &self.mark));
                    self.give(given, out);
                    if marked.is_none() {
                        return;
                    }
                    self.pending.drain(..self.mark.len());
                    self.part = self.part.next();
                }
            }
        }
    }

    /// The log ended before its time: what was held back belongs to the stream that was being read.
    pub fn finish(&mut self, out: &mut impl FnMut(Stream, &[u8])) {
        if matches!(self.part, Part::Stdout | Part::Stderr) {
            self.give(self.pending.len(), out);
        }
        self.pending.clear();
    }

    /// Hands on the first `count` bytes of what is pending.
    fn give(&mut self, count: usize, out: &mut impl FnMut(Stream, &[u8])) {
        let given = &self.pending[..count];
        match self.part {
            _ if given.is_empty() => {}
            Part::Stdout => out(Stream::Stdout, given),
            Part::Stderr => out(Stream::Stderr, given),
            Part::StdoutReturns => self.stdout_returns.push(given),
            Part::StderrReturns => self.stderr_returns.push(given),
            Part::Code | Part::Over => {}
        }
        self.pending.drain(..count);
    }
}

impl Part {
    /// What comes after the next mark, or after the code.
    fn next(self) -> Self {
        match self {
            Self::Stdout => Self::Code,
            Self::Code => Self::Stderr,
            Self::Stderr => Self::StdoutReturns,
            Self::StdoutReturns => Self::StderrReturns,
            Self::StderrReturns | Self::Over => Self::Over,
        }
    }
}

/// Where `needle`, which begins with a newline, stands in `haystack`.
fn position(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(offset) = haystack[from..].iter().position(|byte| *byte == needle[0]) {
        let at = from + offset;
        if haystack[at..].starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

/// How many bytes at the end of `haystack` are a beginning of `needle`.
fn held_back(haystack: &[u8], needle: &[u8]) -> usize {
    let longest = haystack.len().min(needle.len() - 1);
    (1..=longest)
        .rev()
        .find(|length| needle.starts_with(&haystack[haystack.len() - length..]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    const MARK: &str = "0193-mark";

    /// What comes out of a log that comes in pieces of `size` bytes.
    fn read(log: &[u8], size: usize) -> (Vec<u8>, Vec<u8>, Option<i32>, bool) {
        let mut frames = Frames::new(MARK);
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut out = |stream: Stream, bytes: &[u8]| match stream {
            Stream::Stdout => stdout.extend_from_slice(bytes),
            Stream::Stderr => stderr.extend_from_slice(bytes),
        };
        for piece in log.chunks(size.max(1)) {
            frames.push(piece, &mut out);
        }
        frames.finish(&mut out);
        let (code, is_over) = (frames.code(), frames.is_over());
        let (stdout_returns, stderr_returns) = frames.into_returns();
        (
            stdout_returns.restored(&stdout, true),
            stderr_returns.restored(&stderr, true),
            code,
            is_over,
        )
    }

    fn log(stdout: &[u8], code: i32, stderr: &[u8]) -> Vec<u8> {
        [
            stdout,
            format!("\n{MARK} {code}\r\n").as_bytes(),
            stderr,
            format!("\n{MARK} \n\n{MARK} \n\n{MARK} .\n").as_bytes(),
        ]
        .concat()
    }

    #[test]
    fn a_log_that_breaks_off_gives_what_there_is() {
        for (text, stdout, stderr, code) in [
            ("", "", "", None),
            ("one\n", "one\n", "", None),
            ("one\n0193-ma", "one\n0193-ma", "", None),
            ("one\n\n0193-mark 3\nwarn", "one\n", "warn", Some(3)),
            ("one\n0193-mark 3\n\n0193-m", "one", "\n0193-m", Some(3)),
        ] {
            let (out, err, found, is_over) = read(text.as_bytes(), 3);
            assert_eq!(
                (out.as_slice(), err.as_slice(), found, is_over),
                (stdout.as_bytes(), stderr.as_bytes(), code, false),
                "{text:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_come_out_exactly(
            stdout in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'0'), any::<u8>()], 0..300),
            stderr in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'0'), any::<u8>()], 0..300),
            code in 0..256i32,
            size in 1..50usize,
        ) {
            prop_assert_eq!(read(&log(&stdout, code, &stderr), size), (stdout, stderr, Some(code), true));
        }
    }

    /// The shells of this machine in which the script must do the same.
    fn shells() -> Vec<Vec<&'static str>> {
        let all = [
            vec!["/bin/dash"],
            vec!["/bin/bash"],
            vec!["/bin/bash", "--posix"],
            vec!["busybox", "ash"],
        ];
        let there = |shell: &Vec<&str>| {
            Command::new(shell[0])
                .args(&shell[1..])
                .args(["-c", ":"])
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
        };
        let found: Vec<_> = all.into_iter().filter(there).collect();
        assert!(!found.is_empty(), "there is no shell at all");
        found
    }

    /// An empty directory, as every pod has one.
    fn volume(directory: &std::path::Path) -> std::path::PathBuf {
        tempfile::Builder::new()
            .disable_cleanup(true)
            .tempdir_in(directory)
            .unwrap()
            .keep()
    }

    /// What containerd makes of a log.
    fn as_containerd_writes(log: &[u8]) -> Vec<u8> {
        let lines = log.split_inclusive(|byte| *byte == b'\n');
        lines
            .flat_map(|line| match line.strip_suffix(b"\r\n") {
                Some(start) => [start, b"\n"].concat(),
                None => line.to_vec(),
            })
            .collect()
    }

    fn wrapped(shell: &[&str], directory: &std::path::Path, path: &str, argv: &[&str]) -> Command {
        let mut command = Command::new(shell[0]);
        command
            .args(&shell[1..])
            .args(["-c", &script(volume(directory).to_str().unwrap()), MARK])
            .args(argv)
            .env("PATH", path)
            .stdin(Stdio::null());
        command
    }

    #[test]
    fn every_shell_keeps_the_streams_and_the_code() {
        let directory = tempfile::tempdir().unwrap();
        let path = std::env::var("PATH").unwrap();
        for shell in shells() {
            for (argv, stdout, stderr, code) in [
                (vec!["/bin/sh", "-c", "true"], &b""[..], &b""[..], 0),
                (
                    vec!["/bin/sh", "-c", "echo out; echo err >&2; exit 7"],
                    b"out\n",
                    b"err\n",
                    7,
                ),
                (
                    vec!["/bin/sh", "-c", "printf out; printf 'e\\000\\377' >&2"],
                    b"out",
                    b"e\0\xff",
                    0,
                ),
                (
                    vec!["printf", "%s", "a  b; $(id) `id` $0"],
                    b"a  b; $(id) `id` $0",
                    b"",
                    0,
                ),
                (vec!["/bin/sh", "-c", "kill -9 $$"], b"", b"", 137),
            ] {
                let output = wrapped(&shell, directory.path(), &path, &argv).output().unwrap();
                assert_eq!(output.status.code(), Some(code), "{shell:?} {argv:?}: {output:?}");
                let (out, err, found, is_over) = read(&output.stdout, 7);
                // A shell may say on stderr that a child was killed; only the command's own counts here.
                assert_eq!(
                    (out.as_slice(), found, is_over),
                    (stdout, Some(code), true),
                    "{shell:?} {argv:?}"
                );
                assert_eq!(err, stderr, "{shell:?} {argv:?}");
            }
        }
    }

    #[test]
    fn a_carriage_return_before_a_newline_survives_a_log_that_drops_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = std::env::var("PATH").unwrap();
        let printed = b"one\r\n\r\nt\0wo\n\r\r\n\rthree\r\n\xff\r\r";
        let argv = [
            "/bin/sh",
            "-c",
            r"p='one\r\n\r\nt\000wo\n\r\r\n\rthree\r\n\377\r\r'; printf $p; printf $p >&2",
        ];
        for shell in shells() {
            let log = wrapped(&shell, directory.path(), &path, &argv)
                .output()
                .unwrap()
                .stdout;
            for log in [as_containerd_writes(&log), log] {
                let (out, err, code, is_over) = read(&log, 3);
                assert_eq!(
                    (out.as_slice(), err.as_slice(), code, is_over),
                    (&printed[..], &printed[..], Some(0), true),
                    "{shell:?}: {:?}",
                    String::from_utf8_lossy(&log)
                );
            }
        }
    }

    #[test]
    fn the_workflow_s_variables_reach_the_command_as_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let path = std::env::var("PATH").unwrap();
        let names = [
            "a",
            "c",
            "e",
            "l",
            "p",
            "t",
            "q",
            "status",
            "FIST_VOLUME",
            "DIRECTORY",
        ];
        for shell in shells() {
            let mut command = wrapped(&shell, directory.path(), &path, &["env"]);
            let output = command.envs(names.map(|name| (name, "own"))).output().unwrap();
            let (out, _, _, _) = read(&output.stdout, 1000);
            let said = String::from_utf8(out).unwrap();
            for name in names {
                let line = format!("{name}=own");
                assert!(
                    said.lines().any(|found| found == line),
                    "{shell:?}: {line}: {said}"
                );
            }
        }
    }

    #[test]
    fn without_any_tool_the_shell_prints_by_itself() {
        let directory = tempfile::tempdir().unwrap();
        for shell in shells().into_iter().filter(|shell| shell[0].starts_with('/')) {
            let argv = [
                "/bin/sh",
                "-c",
                "printf 'one\\n  two \\\\ \\377\\nlast' >&2; exit 3",
            ];
            let output = wrapped(&shell, directory.path(), "/nonexistent", &argv)
                .output()
                .unwrap();
            let (_, err, code, is_over) = read(&output.stdout, 1000);
            assert_eq!(
                (err.as_slice(), code, is_over),
                (&b"one\n  two \\ \xff\nlast"[..], Some(3), true),
                "{shell:?}"
            );
        }
    }

    #[test]
    fn a_request_to_end_that_comes_before_the_shell_knows_its_child_is_passed_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = std::env::var("PATH").unwrap();
        // A shell that was held up at the worst moment, and a command that asks at once.
        let held_up = SCRIPT.replacen("\nfist_p=$!\n", "\nq=$!; sleep 0.3; fist_p=$q\n", 1);
        assert_ne!(held_up, SCRIPT);
        let command = "trap 'exit 9' TERM; kill -TERM $PPID; i=0; \
                       while [ $i -lt 100 ]; do sleep 0.05; i=$((i+1)); done; exit 1";
        for shell in shells() {
            let held_up = held_up.replacen("DIRECTORY", volume(directory.path()).to_str().unwrap(), 1);
            let output = Command::new(shell[0])
                .args(&shell[1..])
                .args(["-c", &held_up, MARK, "/bin/sh", "-c", command])
                .env("PATH", &path)
                .stdin(Stdio::null())
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(9), "{shell:?}");
        }
    }

    #[test]
    fn a_command_that_is_asked_to_end_still_tells() {
        use std::io::Read as _;
        let directory = tempfile::tempdir().unwrap();
        let path = std::env::var("PATH").unwrap();
        for shell in shells() {
            let argv = [
                "/bin/sh",
                "-c",
                "trap 'echo late >&2; exit 9' TERM; echo ready; while :; do read -r line </proc/uptime; done",
            ];
            let mut child = wrapped(&shell, directory.path(), &path, &argv)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut stdout = child.stdout.take().unwrap();
            let mut said = vec![0; 6];
            stdout.read_exact(&mut said).unwrap();
            let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
            stdout.read_to_end(&mut said).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(9), "{shell:?}");
            let (out, err, code, is_over) = read(&said, 5);
            assert_eq!(
                (out.as_slice(), err.as_slice()),
                (&b"ready\n"[..], &b"late\n"[..]),
                "{shell:?}"
            );
            assert_eq!((code, is_over), (Some(9), true), "{shell:?}");
        }
    }
}
