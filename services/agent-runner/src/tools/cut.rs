//! Long output, cut: head and tail are kept, what is missing is said.

/// Collects bytes, keeping no more than head and tail of them.
pub struct HeadTail {
    head: Vec<u8>,
    tail: std::collections::VecDeque<u8>,
    head_max: usize,
    tail_max: usize,
    total: u64,
}

impl HeadTail {
    /// Keeps `bytes_max` bytes: two thirds from the beginning, one from the end.
    pub fn new(bytes_max: usize) -> Self {
        let tail_max = bytes_max / 3;
        Self {
            head: Vec::new(),
            tail: std::collections::VecDeque::new(),
            head_max: bytes_max - tail_max,
            tail_max,
            total: 0,
        }
    }

    /// Takes a piece.
    pub fn push(&mut self, mut piece: &[u8]) {
        self.total += piece.len() as u64;
        let room = self.head_max.saturating_sub(self.head.len()).min(piece.len());
        self.head.extend_from_slice(&piece[..room]);
        piece = &piece[room..];
        if piece.len() > self.tail_max {
            self.tail.clear();
            piece = &piece[piece.len() - self.tail_max..];
        }
        let surplus = (self.tail.len() + piece.len()).saturating_sub(self.tail_max);
        self.tail.drain(..surplus);
        self.tail.extend(piece);
    }

    /// The text; what is not UTF-8 is replaced.
    pub fn finish(self) -> String {
        let kept = (self.head.len() + self.tail.len()) as u64;
        let tail: Vec<u8> = self.tail.into();
        if kept == self.total {
            let mut whole = self.head;
            whole.extend_from_slice(&tail);
            return String::from_utf8_lossy(&whole).into_owned();
        }
        // Half a character at either edge of the cut is not worth a replacement character.
        let head = String::from_utf8_lossy(&self.head);
        let tail = String::from_utf8_lossy(&tail);
        format!(
            "{}\n[… {} bytes left out here …]\n{}",
            head.trim_end_matches('\u{fffd}'),
            self.total - kept,
            tail.trim_start_matches('\u{fffd}')
        )
    }
}

/// `text` where it has at most `bytes_max` bytes, else its head and tail.
pub fn cut(text: String, bytes_max: usize) -> String {
    if text.len() <= bytes_max {
        return text;
    }
    let mut kept = HeadTail::new(bytes_max);
    kept.push(text.as_bytes());
    kept.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_and_tail_are_kept_however_the_pieces_come() {
        let text: String = (0..100).map(|n| format!("{n:02}")).collect();
        for size in [1, 3, 7, 50, 200] {
            let mut kept = HeadTail::new(30);
            for piece in text.as_bytes().chunks(size) {
                kept.push(piece);
            }
            assert_eq!(
                kept.finish(),
                "00010203040506070809\n[… 170 bytes left out here …]\n9596979899",
                "pieces of {size}"
            );
        }
        assert_eq!(cut("short".to_owned(), 5), "short");
        assert_eq!(cut("üüüü".to_owned(), 5), "üü\n[… 3 bytes left out here …]\n");
    }
}
