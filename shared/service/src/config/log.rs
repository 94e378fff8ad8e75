//! `[log]`: what a process says on stderr.

use super::reader::Section;

/// What a process says on stderr.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A level, or directives such as `info,scheduler=debug`.
    pub level: String,
    /// How a line is written.
    pub format: Format,
}

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Pretty on a terminal, else JSON.
    Auto,
    /// One JSON object a line, for machines.
    Json,
    /// For a person; with colour only on a terminal.
    Pretty,
}

impl Log {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let formats = [
            ("auto", Format::Auto),
            ("json", Format::Json),
            ("pretty", Format::Pretty),
        ];
        let log = Self {
            level: section.text("level"),
            format: section.one_of("format", &formats),
        };
        if !log.level.split(',').all(is_directive)
            || tracing_subscriber::EnvFilter::try_new(&log.level).is_err()
        {
            section.problem(
                "level",
                "must be error, warn, info, debug or trace, or a list such as info,scheduler=debug",
            );
        }
        log
    }
}

/// A level, or a target's. The filter itself would take a misspelt level for
/// a target's name and go on without a word.
fn is_directive(text: &str) -> bool {
    let level = text.split_once('=').map_or(text, |(_, level)| level);
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    levels.contains(&level.trim().to_ascii_lowercase().as_str())
}
