//! A gated command is asked of the server as a dry run first, and run only if the server would take it.
//!
//! Both happen in one process group or pod, since a second pod would cost a second. What the dry run answered stands
//! before the command's own output, between two lines that hold the job's name, and is taken out of it again.
//!
//! Invariant: nothing of the command is spliced into the shell's code: it comes as arguments.

use serde_json::{Value, json};

use crate::capture::{Capture, Limits};

/// What runs: `$0` is the job's name, `$@` the argv.
const SCRIPT: &str = r#"fist_d=$("$@" --dry-run=server 2>&1)
fist_c=$?
printf -- '--- dry run %s: exit code %s ---\n%s\n--- end of dry run %s ---\n' "$0" "$fist_c" "$fist_d" "$0"
[ "$fist_c" -eq 0 ] || exit "$fist_c"
exec "$@""#;
/// Bytes of its answer that the step's output keeps.
const ANSWER_BYTES_MAX: usize = 8 * 1024;

/// The argv that does both.
pub fn before(argv: &[String], job: &str) -> Vec<String> {
    let head = ["/bin/sh", "-c", SCRIPT, job].map(str::to_owned);
    head.into_iter().chain(argv.iter().cloned()).collect()
}

/// What the server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DryRun {
    /// kubectl's exit code.
    pub exit_code: i32,
    /// What it said.
    pub said: String,
}

impl DryRun {
    /// As it stands in the step's output.
    pub fn value(&self) -> Value {
        json!({"exit_code": self.exit_code, "said": self.said})
    }
}

/// The dry run's answer, and the command's own stdout. Where the answer is not there, or longer than what is kept,
/// stdout stays as it is.
pub fn split(stdout: Capture, job: &str, limits: Limits) -> (Option<DryRun>, Capture) {
    let Some((answer, rest_at)) = answer(stdout.kept(), job) else {
        return (None, stdout);
    };
    if !stdout.is_whole() {
        // A command that prints megabytes after its dry run: better all of it than a part.
        return (Some(answer), stdout);
    }
    let mut own = Capture::new(limits);
    own.push(&stdout.kept()[rest_at..]);
    (Some(answer), own)
}

fn answer(text: &[u8], job: &str) -> Option<(DryRun, usize)> {
    let begin = format!("--- dry run {job}: exit code ");
    let end = format!("\n--- end of dry run {job} ---\n");
    let rest = text.strip_prefix(begin.as_bytes())?;
    let line_end = rest.iter().position(|byte| *byte == b'\n')?;
    let code = std::str::from_utf8(&rest[..line_end])
        .ok()?
        .strip_suffix(" ---")?;
    // The newline before the end may be the one of the first line.
    let said = &rest[line_end..];
    let end_at = said
        .windows(end.len())
        .position(|window| window == end.as_bytes())?;
    let mut shown = String::from_utf8_lossy(said.get(1..end_at).unwrap_or_default()).into_owned();
    if shown.len() > ANSWER_BYTES_MAX {
        shown.truncate(shown.floor_char_boundary(ANSWER_BYTES_MAX));
        shown.push('…');
    }
    let dry_run = DryRun {
        exit_code: code.parse().ok()?,
        said: shown,
    };
    Some((dry_run, begin.len() + line_end + end_at + end.len()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::process::Command;

    use super::*;

    const LIMITS: Limits = Limits {
        inline_bytes_max: 64,
        spill_bytes_max: 4096,
    };

    /// What comes of a kubectl that is this script: the exit code, the dry run's, and the command's own stdout.
    fn run(kubectl: &str, arguments: &[&str]) -> (i32, Option<DryRun>, String) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kubectl");
        bus::testing::write_program(&path, &format!("#!/bin/sh\n{kubectl}\n"));
        let argv: Vec<String> = [path.to_str().unwrap()]
            .iter()
            .chain(arguments)
            .map(|word| (*word).to_owned())
            .collect();
        let wrapped = before(&argv, "workflow-cli-x");
        let output = Command::new(&wrapped[0]).args(&wrapped[1..]).output().unwrap();
        let mut stdout = Capture::new(LIMITS);
        stdout.push(&output.stdout);
        let (dry_run, own) = split(stdout, "workflow-cli-x", LIMITS);
        let own = String::from_utf8(own.kept().to_vec()).unwrap();
        (output.status.code().unwrap(), dry_run, own)
    }

    #[test]
    fn the_command_runs_only_after_the_server_took_it_in_a_dry_run() {
        let said = |exit_code: i32, said: &str| {
            Some(DryRun {
                exit_code,
                said: said.into(),
            })
        };
        let tells = r#"printf '%s,' "$@"; case "$*" in *--dry-run=server) echo asked;; *) echo done;; esac"#;
        assert_eq!(
            run(tells, &["delete", "pod", "a b;$(id)"]),
            (
                0,
                said(0, "delete,pod,a b;$(id),--dry-run=server,asked"),
                "delete,pod,a b;$(id),done\n".to_owned()
            )
        );
        assert_eq!(
            run("echo Error: forbidden >&2; exit 3", &["delete", "pod", "a"]),
            (3, said(3, "Error: forbidden"), String::new())
        );
        let silent = r#"case "$*" in *--dry-run=server) ;; *) exit 5;; esac"#;
        assert_eq!(run(silent, &["cordon", "n"]), (5, said(0, ""), String::new()));
        let (code, dry_run, own) = run("printf '\\n\\n--- end of dry run y ---\\n'", &["cordon", "n"]);
        assert_eq!(
            (code, dry_run, own.as_str()),
            (
                0,
                said(0, "\n\n--- end of dry run y ---"),
                "\n\n--- end of dry run y ---\n"
            )
        );
    }

    #[test]
    fn a_stdout_without_it_stays() {
        for text in ["", "hello\n", "--- dry run workflow-cli-x: exit code 0 ---\nhalf"] {
            let mut stdout = Capture::new(LIMITS);
            stdout.push(text.as_bytes());
            let (dry_run, own) = split(stdout, "workflow-cli-x", LIMITS);
            assert_eq!((dry_run, own.kept()), (None, text.as_bytes()), "{text}");
        }
    }
}
