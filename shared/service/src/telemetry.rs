//! Logs: `tracing` to stderr, as JSON for machines or pretty for a person.
//!
//! Invariants: stdout is never written to; dependencies are heard at `info` at
//! most, unless the operator names them, since some print headers and
//! statements below that.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Format, Log};
use crate::fatal::Fatal;

/// The crates that `debug` and `trace` are meant for.
const OURS: &[&str] = &[
    "agent_runner",
    "bus",
    "cli_runner",
    "engine",
    "fist",
    "ingest",
    "protocol",
    "scheduler",
    "service",
    "store_writer",
];

/// Dependencies that say too much at `info` (each NATS event, each notice of
/// the database).
const QUIET: &[&str] = &["async_nats=warn", "sqlx=warn"];

/// Prints what MCP servers send, at every level, where no redaction reaches it.
/// What matters of it is in the results of tools.
const SILENT: &str = "rmcp=off";

/// Sends this process's logs to stderr from now on.
///
/// # Errors
/// If logs are already going somewhere, or the level is none.
pub fn init(log: &Log) -> Result<(), Fatal> {
    let terminal = stderr().is_terminal();
    subscriber(log, terminal, stderr)?
        .try_init()
        .map_err(|error| Fatal::because("cannot set up logs", error))
}

fn subscriber<W>(
    log: &Log,
    terminal: bool,
    writer: W,
) -> Result<Box<dyn tracing::Subscriber + Send + Sync>, Fatal>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(directives(&log.level))
        .map_err(|error| Fatal::because("log.level cannot be read", error))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer);
    let pretty = match log.format {
        Format::Auto => terminal,
        Format::Json => false,
        Format::Pretty => true,
    };
    Ok(match (pretty, terminal) {
        (false, _) => Box::new(builder.with_ansi(false).json().flatten_event(true).finish()),
        // The builder's own default is colour unless NO_COLOR is set.
        (true, true) => Box::new(builder.finish()),
        (true, false) => Box::new(builder.with_ansi(false).finish()),
    })
}

/// A bare level concerns our own crates; a list is taken as it stands.
fn directives(level: &str) -> String {
    let level = level.trim().to_ascii_lowercase();
    match level.as_str() {
        "debug" | "trace" => {
            let ours: Vec<String> = OURS.iter().map(|name| format!("{name}={level}")).collect();
            format!("info,{},{SILENT},{}", QUIET.join(","), ours.join(","))
        }
        "info" => format!("info,{},{SILENT}", QUIET.join(",")),
        "warn" | "error" => format!("{level},{SILENT}"),
        _ => level,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::Secret;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn written(level: &str, format: Format, terminal: bool, say: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let inner = buffer.clone();
        let log = Log {
            level: level.to_owned(),
            format,
        };
        let subscriber = subscriber(&log, terminal, move || inner.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, say);
        String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn auto_is_json_where_no_person_reads() {
        let text = written("info", Format::Auto, false, || {
            tracing::info!(executions = 3, "started")
        });
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["message"], "started");
        assert_eq!(line["executions"], 3);
        assert_eq!(line["level"], "INFO");
    }

    #[test]
    fn pretty_has_colour_on_a_terminal_only() {
        let plain = written("info", Format::Pretty, false, || tracing::info!("started"));
        assert!(plain.contains("INFO") && !plain.contains('\u{1b}'), "{plain:?}");
        let coloured = written("info", Format::Auto, true, || tracing::info!("started"));
        assert!(coloured.contains('\u{1b}'), "{coloured:?}");
    }

    #[test]
    fn debug_is_for_our_own_crates() {
        let text = written("debug", Format::Json, false, || {
            tracing::debug!(target: "scheduler::decide", "ours");
            tracing::debug!(target: "hyper::proto", "theirs");
            tracing::info!(target: "async_nats", "chatter");
            tracing::warn!(target: "async_nats", "trouble");
        });
        let kept: Vec<bool> = ["ours", "theirs", "chatter", "trouble"]
            .map(|word| text.contains(word))
            .to_vec();
        assert_eq!(kept, [true, false, false, true]);
    }

    #[test]
    fn what_mcp_servers_send_is_heard_where_an_operator_asks_for_it() {
        for (level, is_heard) in [
            ("error", false),
            ("warn", false),
            ("debug", false),
            ("info,rmcp=warn", true),
        ] {
            let text = written(
                level,
                Format::Json,
                false,
                || tracing::error!(target: "rmcp::service", "a server's secret"),
            );
            assert_eq!(!text.is_empty(), is_heard, "{level}: {text}");
        }
    }

    #[test]
    fn the_level_holds() {
        let text = written("warn", Format::Json, false, || tracing::info!("not said"));
        assert_eq!(text, "");
    }

    #[test]
    fn a_secret_in_a_field_is_hidden() {
        let secret = Secret::new("sk-ant-123");
        let text = written(
            "info",
            Format::Json,
            false,
            || tracing::info!(?secret, shown = %secret, "set"),
        );
        assert!(!text.contains("sk-ant") && text.contains("(hidden)"), "{text}");
    }
}
