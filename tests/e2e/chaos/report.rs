//! The campaign's report, as Markdown.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, process::Command, time::Duration};

use super::checks::{Check, Counts};

/// What a campaign was and did.
#[derive(Default)]
pub struct Report {
    pub seed: u64,
    pub minutes: f64,
    pub servers: usize,
    pub in_flight: u64,
    pub quiet_seconds: f64,
    pub retries: u64,
    /// How often each fault was done, by target and kind.
    pub faults: BTreeMap<String, u64>,
    /// Milliseconds for which the database, or all NATS servers, were away.
    pub database_away: Duration,
    pub nats_away: Duration,
    /// Processes that ended by themselves, and were started again.
    pub ended: Vec<String>,
    /// Faults that were left out, and why.
    pub left_out: Vec<String>,
    pub counts: Counts,
    pub checks: Vec<Check>,
    pub problems_of_load: Vec<String>,
}

impl Report {
    pub fn add(&mut self, fault: impl Into<String>) {
        *self.faults.entry(fault.into()).or_default() += 1;
    }

    /// How many processes were killed.
    pub fn kills(&self) -> u64 {
        self.faults
            .iter()
            .filter(|(name, _)| name.contains("kill -9"))
            .map(|(_, count)| count)
            .sum()
    }

    pub fn problems(&self) -> Vec<String> {
        let of = |check: &Check| -> Vec<String> {
            check
                .problems
                .iter()
                .map(|problem| format!("{}: {problem}", check.what))
                .collect()
        };
        self.checks
            .iter()
            .flat_map(of)
            .chain(self.problems_of_load.iter().cloned())
            .collect()
    }

    /// The report.
    pub fn markdown(&self) -> String {
        let mut text = String::from(
            "# The last long fault campaign\n\nWritten by the campaign itself (`make chaos`).\n\n",
        );
        let verdict = if self.problems().is_empty() {
            "nothing was lost, and nothing done twice unrecorded"
        } else {
            "FAILED"
        };
        let servers = match self.servers {
            1 => "one nats-server with its storage".to_owned(),
            n => format!("{n} nats-servers, {n} copies of every stream"),
        };
        let rows = [
            ("verdict", format!("**{verdict}**")),
            ("machine", machine()),
            ("versions", versions()),
            (
                "command",
                format!(
                    "`make chaos CHAOS_MINUTES={:.0} CHAOS_SERVERS={} CHAOS_IN_FLIGHT={} CHAOS_SEED={}`",
                    self.minutes.ceil(),
                    self.servers,
                    self.in_flight,
                    self.seed
                ),
            ),
            ("NATS", servers),
            (
                "faults for",
                format!(
                    "{:.1} minutes; quiet {:.0} s after them",
                    self.minutes, self.quiet_seconds
                ),
            ),
            ("executions", self.counts.executions.to_string()),
            ("steps", self.counts.steps.to_string()),
            ("deliveries of alerts", self.counts.alerts.to_string()),
            ("messages of the log", self.counts.messages.to_string()),
            ("turns of agents", self.counts.turns.to_string()),
            ("processes killed", self.kills().to_string()),
            ("requests asked again", self.retries.to_string()),
            (
                "all NATS servers away",
                format!("{:.0} s", self.nats_away.as_secs_f64()),
            ),
            (
                "PostgreSQL away",
                format!("{:.0} s", self.database_away.as_secs_f64()),
            ),
            (
                "commands that ran a second time, on record",
                self.counts.second_runs.to_string(),
            ),
            (
                "on record as perhaps run again, and ran once",
                self.counts.spared.to_string(),
            ),
            ("services that ended by themselves", self.ended.len().to_string()),
        ];
        text += "| | |\n|---|---|\n";
        for (name, value) in rows {
            let _ = writeln!(text, "| {name} | {value} |");
        }
        text += "\n## Faults\n\n| fault | times |\n|---|---|\n";
        for (fault, times) in &self.faults {
            let _ = writeln!(text, "| {fault} | {times} |");
        }
        text += "\n## Checks\n\n| what must be true | of | where it is not |\n|---|---|---|\n";
        for check in &self.checks {
            let _ = writeln!(
                text,
                "| {} | {} | {} |",
                check.what,
                check.counted,
                check.problems.len()
            );
        }
        for (title, lines) in [
            ("Ended by themselves", &self.ended),
            ("Left out", &self.left_out),
            ("Problems", &self.problems()),
        ] {
            if !lines.is_empty() {
                let _ = writeln!(text, "\n## {title}\n");
                for line in lines.iter().take(50) {
                    let line: String = line.chars().take(600).collect();
                    let _ = writeln!(text, "- {line}");
                }
            }
        }
        text
    }

    /// Writes it to where it was asked for.
    pub fn write(&self, path: &Path) {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).unwrap();
        }
        fs::write(path, self.markdown()).unwrap();
    }
}

fn machine() -> String {
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 = memory
        .split_whitespace()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    format!(
        "{cpus} processors, {} GiB of memory, load at the end {load}; debug builds",
        kib >> 20
    )
}

fn versions() -> String {
    let server = bus::server::find_server(&bus::server::Places::from_environment())
        .unwrap()
        .path;
    let said = |program: &Path, argument: &str| {
        let output = Command::new(program).arg(argument).output();
        output
            .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
            .unwrap_or_default()
    };
    format!(
        "punching-fist {}, {}, {}",
        env!("CARGO_PKG_VERSION"),
        said(&server, "--version"),
        said(Path::new("psql"), "--version")
    )
}
