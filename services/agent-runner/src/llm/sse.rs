//! Server-sent events, as far as the providers use them: `event`, `data`, blank line.
//!
//! Invariant: memory is bounded; a line or event over the limit is an error, not a growing buffer.

/// Bytes of one event. A whole answer of the largest models has less.
const EVENT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// One event.
#[derive(Debug, PartialEq, Eq)]
pub struct Event {
    /// Its name; empty where it has none.
    pub name: String,
    /// Its lines of data, joined by newlines.
    pub data: String,
}

/// Makes events of bytes, however these were cut on the way.
#[derive(Default)]
pub struct Parser {
    pending: Vec<u8>,
    name: String,
    data: String,
    has_data: bool,
}

impl Parser {
    /// The events that `bytes` complete.
    ///
    /// # Errors
    /// When an event is too large, or is not UTF-8.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, String> {
        self.pending.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(at) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=at).collect();
            let line = line.strip_suffix(b"\n").unwrap_or(&line);
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let line = std::str::from_utf8(line).map_err(|_| "the stream is not UTF-8".to_owned())?;
            self.line(line, &mut events);
        }
        if self.pending.len() + self.data.len() > EVENT_BYTES_MAX {
            return Err(format!(
                "the stream holds an event of more than {EVENT_BYTES_MAX} bytes"
            ));
        }
        Ok(events)
    }

    fn line(&mut self, line: &str, events: &mut Vec<Event>) {
        if line.is_empty() {
            if std::mem::take(&mut self.has_data) {
                events.push(Event {
                    name: std::mem::take(&mut self.name),
                    data: std::mem::take(&mut self.data),
                });
            }
            self.name.clear();
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            // Comments keep the connection open; `id` and `retry` are for browsers.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn events_are_the_same_however_the_bytes_are_cut() {
        let text =
            ": hello\n\nevent: a\r\ndata: {\"x\":\r\ndata: \"ü\"}\r\n\r\ndata:y\n\nevent: lost\n\ndata: z";
        let whole = Parser::default().push(text.as_bytes()).unwrap();
        assert_eq!(
            whole,
            [
                Event {
                    name: "a".into(),
                    data: "{\"x\":\n\"ü\"}".into()
                },
                Event {
                    name: String::new(),
                    data: "y".into()
                },
            ]
        );
        for size in 1..7 {
            let mut parser = Parser::default();
            let mut events = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                events.extend(parser.push(piece).unwrap());
            }
            assert_eq!(events, whole, "pieces of {size}");
        }
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut parser = Parser::default();
        let mut failed = false;
        for _ in 0..10 {
            failed |= parser.push(&vec![b'x'; 1024 * 1024]).is_err();
        }
        assert!(failed);
    }
}
