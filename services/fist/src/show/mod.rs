//! Writing for people: colours, what must not reach a terminal, notes on stderr.
//!
//! Invariants:
//! - Text from outside (alerts, commands, models) never controls a terminal.
//! - A reader that went away (`fist get … | head`) is no error.

pub mod age;
pub mod lists;
pub mod report;
pub mod table;
pub mod transcript;

use std::io::{self, IsTerminal, Write};

/// How to write to one stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Whether colours may be used.
    pub colour: bool,
    /// Whether a terminal reads.
    pub terminal: bool,
}

/// What a colour says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    Good,
    Bad,
    Busy,
    Faint,
    Strong,
}

impl Style {
    /// For stdout.
    pub fn stdout() -> Self {
        Self::of(io::stdout().is_terminal())
    }

    /// For stderr.
    pub fn stderr() -> Self {
        Self::of(io::stderr().is_terminal())
    }

    fn of(terminal: bool) -> Self {
        let refused = service::config::process_env().any(|(name, value)| {
            (name == "NO_COLOR" && !value.is_empty()) || (name == "TERM" && value == "dumb")
        });
        Self {
            colour: terminal && !refused,
            terminal,
        }
    }

    /// The text in a colour, where colours may be used.
    pub fn paint(self, tone: Tone, text: &str) -> String {
        if !self.colour || text.is_empty() {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Bad => "31",
            Tone::Busy => "33",
            Tone::Faint => "2",
            Tone::Strong => "1",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }

    /// A state, in its colour.
    pub fn state(self, state: &str) -> String {
        match tone_of(state) {
            Some(tone) => self.paint(tone, state),
            None => state.to_owned(),
        }
    }
}

/// The colour of a state of executions, steps and alerts.
pub fn tone_of(state: &str) -> Option<Tone> {
    match state {
        "Succeeded" | "started" | "ok" => Some(Tone::Good),
        "Failed" | "Cancelled" | "rejected" | "fail" => Some(Tone::Bad),
        "Running" | "warn" => Some(Tone::Busy),
        "Pending" | "Skipped" | "Not run" | "merged" | "filtered" | "resolved" => Some(Tone::Faint),
        _ => None,
    }
}

/// The text without what would control a terminal; lines and tabs stay.
pub fn clean(text: &str) -> String {
    text.chars()
        .map(|c| {
            if (c.is_control() && c != '\n' && c != '\t') || is_bidi_control(c) {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

/// Characters that turn the order of what is shown.
fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text on one line, of at most `chars_max` characters.
pub fn one_line(text: &str, chars_max: usize) -> String {
    let text = clean(text);
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() > chars_max {
        line = line.chars().take(chars_max.saturating_sub(1)).collect();
        line.push('…');
    }
    line
}

/// Writes data to stdout; whether somebody still reads.
pub fn data(text: &str) -> bool {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// Writes a line of data to stdout; whether somebody still reads.
pub fn line(text: &str) -> bool {
    data(&format!("{text}\n"))
}

/// Says something beside the data.
pub fn aside(text: &str) {
    let mut err = io::stderr().lock();
    let _ = writeln!(err, "{text}");
}

/// Says what went wrong. Problems of manifests name their severity themselves.
pub fn note(message: &str) {
    let message = clean(message);
    if message.starts_with("error: ") || message.starts_with("warning: ") {
        aside(&message);
    } else {
        aside(&format!(
            "{} {message}",
            Style::stderr().paint(Tone::Bad, "error:")
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_controls_nothing() {
        assert_eq!(
            clean("a\u{1b}[2Jb\u{7}\u{202e}c\n\td\r"),
            "a\u{fffd}[2Jb\u{fffd}\u{fffd}c\n\td\u{fffd}"
        );
        assert_eq!(one_line("  a\n b\tc ", 10), "a b c");
        assert_eq!(one_line("abcdefgh", 5), "abcd…");
    }

    #[test]
    fn colours_only_where_they_may_be() {
        let plain = Style::default();
        assert_eq!(plain.state("Failed"), "Failed");
        let coloured = Style {
            colour: true,
            terminal: true,
        };
        assert_eq!(coloured.state("Failed"), "\u{1b}[31mFailed\u{1b}[0m");
        assert_eq!(coloured.state("whatever"), "whatever");
    }
}
