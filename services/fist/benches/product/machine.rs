//! What it was measured on: the machine, and the versions of all that took part.

use std::{fmt, fs, process::Command};

use bus::server::{Places, find_server};
use serde_json::{Value, json};

/// The machine and the versions.
pub struct Machine {
    cores: usize,
    memory_gib: f64,
    cpu: String,
    kernel: String,
    versions: [(&'static str, String); 4],
}

impl Machine {
    pub fn look() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':'))
                .map(|(_, value)| value.trim().to_owned())
        };
        let kib: f64 = field(&read("/proc/meminfo"), "MemTotal")
            .and_then(|value| value.split(' ').next()?.parse().ok())
            .unwrap_or_default();
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: kib / 1024.0 / 1024.0,
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned()),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            versions: [
                ("fist", env!("CARGO_PKG_VERSION").to_owned()),
                ("rustc", said("rustc", "--version")),
                (
                    "nats-server",
                    find_server(&Places::from_environment())
                        .map_or_else(|_| "none".to_owned(), |found| found.version),
                ),
                ("PostgreSQL", said("initdb", "--version")),
            ],
        }
    }

    pub fn json(&self) -> Value {
        let versions: serde_json::Map<String, Value> = self
            .versions
            .iter()
            .map(|(name, version)| ((*name).to_owned(), json!(version)))
            .collect();
        json!({
            "cores": self.cores, "memory_gib": self.memory_gib, "cpu": self.cpu, "kernel": self.kernel,
            "versions": versions, "optimised": !cfg!(debug_assertions),
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} cores ({}), {:.0} GiB, Linux {}",
            self.cores, self.cpu, self.memory_gib, self.kernel
        )?;
        for (name, version) in &self.versions {
            write!(f, ", {name} {version}")?;
        }
        if cfg!(debug_assertions) {
            write!(f, ", NOT OPTIMISED: a debug build")?;
        }
        Ok(())
    }
}

/// The version number in what a program says of itself.
fn said(program: &str, argument: &str) -> String {
    let output = Command::new(program).arg(argument).output();
    let text = output.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    );
    let number = |word: &&str| word.starts_with(|first: char| first.is_ascii_digit());
    text.split_whitespace()
        .find(number)
        .unwrap_or("unknown")
        .to_owned()
}
