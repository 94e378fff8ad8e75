//! Lines on their way to whoever follows: bounded in length, rate and number, lossy, and never in the way
//! of the command.
//!
//! Invariant: nothing here waits; a full queue or an exhausted rate drops lines and later says how many.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use protocol::live::{Live, Stream};
use tokio::sync::mpsc;

/// Bytes of one live line, as `protocol::live` promises.
const LINE_BYTES_MAX: usize = 8 * 1024;
/// Lines that may come at once.
const BURST_LINES: f64 = 200.0;
/// Lines per second after that; more than anyone reads, and little for the server.
const LINES_PER_SECOND: f64 = 50.0;

/// Where a command's lines go while it runs.
#[derive(Debug)]
pub struct LiveSink {
    queue: mpsc::Sender<Live>,
    rate: Mutex<Rate>,
}

#[derive(Debug)]
struct Rate {
    lines: f64,
    refilled_at: Instant,
    dropped: u64,
}

impl LiveSink {
    /// A sink and the end at which its lines come out; at most `lines_max` wait between.
    pub fn new(lines_max: usize) -> (Self, mpsc::Receiver<Live>) {
        let (queue, lines) = mpsc::channel(lines_max);
        let rate = Rate {
            lines: BURST_LINES,
            refilled_at: Instant::now(),
            dropped: 0,
        };
        (
            Self {
                queue,
                rate: Mutex::new(rate),
            },
            lines,
        )
    }

    /// Sends a line, or drops it.
    fn line(&self, stream: Stream, text: String) {
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let refill = now.duration_since(rate.refilled_at).as_secs_f64() * LINES_PER_SECOND;
        rate.lines = (rate.lines + refill).min(BURST_LINES);
        rate.refilled_at = now;
        if rate.lines < 1.0 {
            rate.dropped += 1;
            return;
        }
        rate.lines -= 1.0;
        let text = match rate.dropped {
            0 => text,
            dropped => format!("… [{dropped} lines not shown here; all are in the step's output] …\n{text}"),
        };
        match self.queue.try_send(Live::Line { stream, text }) {
            Ok(()) => rate.dropped = 0,
            Err(_) => rate.dropped += 1,
        }
    }
}

/// Cuts one stream into lines for a [`LiveSink`].
#[derive(Debug)]
pub struct Lines<'a> {
    sink: &'a LiveSink,
    stream: Stream,
    /// The line that has not ended yet, as far as it will be shown.
    pending: Vec<u8>,
}

impl<'a> Lines<'a> {
    /// For what `stream` prints.
    pub fn new(sink: &'a LiveSink, stream: Stream) -> Self {
        Self {
            sink,
            stream,
            pending: Vec::new(),
        }
    }

    /// Takes the next piece of the stream.
    pub fn push(&mut self, piece: &[u8]) {
        let mut rest = piece;
        while let Some(newline) = rest.iter().position(|byte| *byte == b'\n') {
            self.extend(&rest[..newline]);
            self.flush();
            rest = &rest[newline + 1..];
        }
        self.extend(rest);
    }

    /// The stream is over: what has no newline is a line too.
    pub fn finish(&mut self) {
        if !self.pending.is_empty() {
            self.flush();
        }
    }

    fn extend(&mut self, piece: &[u8]) {
        // A quarter of the limit, since a byte that is not UTF-8 becomes three, and a note may precede it.
        let room = (LINE_BYTES_MAX / 4).saturating_sub(self.pending.len());
        self.pending.extend_from_slice(&piece[..room.min(piece.len())]);
    }

    fn flush(&mut self) {
        let text = String::from_utf8_lossy(&self.pending);
        self.sink
            .line(self.stream, text.trim_end_matches('\r').to_owned());
        self.pending.clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn texts(lines: &mut mpsc::Receiver<Live>) -> Vec<String> {
        let mut texts = Vec::new();
        while let Ok(live) = lines.try_recv() {
            match live {
                Live::Line { text, .. } => texts.push(text),
                other => panic!("{other:?}"),
            }
        }
        texts
    }

    #[test]
    fn pieces_become_lines() {
        let (sink, mut out) = LiveSink::new(10);
        let mut lines = Lines::new(&sink, Stream::Stdout);
        lines.push(b"one\ntw");
        lines.push(b"o\r\n\nthr\xffee");
        lines.finish();
        assert_eq!(texts(&mut out), ["one", "two", "", "thr\u{FFFD}ee"]);
    }

    #[test]
    fn a_flood_is_dropped_and_counted() {
        let (sink, mut out) = LiveSink::new(10_000);
        let mut lines = Lines::new(&sink, Stream::Stderr);
        lines.push("x\n".repeat(5_000).as_bytes());
        let shown = texts(&mut out).len();
        assert!((200..1000).contains(&shown), "{shown}");
        sink.rate.lock().unwrap().lines = 5.0;
        lines.push(b"last\n");
        let last = texts(&mut out).pop().unwrap();
        assert!(last.starts_with("… [") && last.ends_with("\nlast"), "{last}");
    }

    #[test]
    fn long_lines_are_cut_to_the_limit() {
        let (sink, mut out) = LiveSink::new(10);
        let mut lines = Lines::new(&sink, Stream::Stdout);
        lines.push(&vec![0xff; 100_000]);
        lines.push(b"\nnext\n");
        let texts = texts(&mut out);
        assert!(texts[0].len() <= LINE_BYTES_MAX, "{}", texts[0].len());
        assert_eq!(texts[1], "next");
    }

    #[test]
    fn nobody_listening_is_no_error() {
        let (sink, out) = LiveSink::new(1);
        drop(out);
        Lines::new(&sink, Stream::Stdout).push(b"a\nb\n");
    }
}
