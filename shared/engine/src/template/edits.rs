//! Changes to a template's source, and the way back from the changed text to the written one.
//!
//! - Edits never overlap, except that several insertions may stand at one byte.
//! - At one byte the later insertion goes outside when it opens and when it closes, so that
//!   brackets nest: this is the caller's order, kept.

/// A set of changes by byte of the original.
#[derive(Clone, Debug, Default)]
pub(super) struct Edits {
    changes: Vec<Change>,
}

#[derive(Clone, Debug)]
struct Change {
    start: usize,
    end: usize,
    text: String,
}

impl Edits {
    pub fn insert(&mut self, at: usize, text: impl Into<String>) {
        self.replace(at, at, text);
    }

    /// Inserts unless the very same was inserted there already.
    pub fn insert_once(&mut self, at: usize, text: String) {
        if !self
            .changes
            .iter()
            .any(|change| change.start == at && change.end == at && change.text == text)
        {
            self.insert(at, text);
        }
    }

    pub fn replace(&mut self, start: usize, end: usize, text: impl Into<String>) {
        self.changes.push(Change {
            start,
            end,
            text: text.into(),
        });
    }

    /// The source with every change made.
    pub fn apply(&mut self, source: &str) -> String {
        // A replacement that ends where an insertion stands comes first by its start.
        self.changes.sort_by_key(|change| change.start);
        let mut out = String::with_capacity(source.len() + 32 * self.changes.len());
        let mut at = 0;
        for change in &self.changes {
            out.push_str(&source[at..change.start]);
            out.push_str(&change.text);
            at = change.end;
        }
        out.push_str(&source[at..]);
        out
    }

    /// The byte of the original that `offset` in the changed text came from; after `apply`.
    pub fn original(&self, offset: usize) -> usize {
        let mut grown = 0_isize;
        for change in &self.changes {
            let start = change.start.saturating_add_signed(grown);
            if offset < start + change.text.len() {
                if offset >= start {
                    return change.start;
                }
                break;
            }
            grown += change.text.len() as isize - (change.end - change.start) as isize;
        }
        offset.saturating_add_signed(-grown)
    }
}
