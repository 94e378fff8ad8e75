//! The body of a heredoc: which line ends it, and which values would.
//!
//! - Of a line only what decides is kept: how much of the delimiter it has matched.
//! - A line that holds a value never ends the heredoc: it is refused instead.

use super::escape;

/// A heredoc that is announced, and whose body has not begun.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pending {
    pub delimiter: String,
    /// Nothing is expanded in the body.
    pub is_quoted: bool,
    /// `<<-`: tabs in front of lines are dropped.
    pub strips_tabs: bool,
    /// The program that reads it runs it.
    pub is_code: bool,
    /// How many frames there were when it was announced.
    pub depth: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Heredoc {
    document: Pending,
    /// It stands inside `$( )`, where some shells accept more as its end.
    is_nested: bool,
    /// Characters of the delimiter that the line consists of, `None` once it differs.
    matched: Option<usize>,
    /// The line began with the delimiter.
    begins_like_end: bool,
    has_value: bool,
    /// The line left the delimiter with a character that dash then loses.
    loses_bytes: bool,
    /// Only tabs came on this line.
    is_indent: bool,
    is_unclear: bool,
}

impl Heredoc {
    pub fn new(document: Pending, is_nested: bool) -> Self {
        let mut this = Self {
            document,
            is_nested,
            matched: None,
            begins_like_end: false,
            loses_bytes: false,
            has_value: false,
            is_indent: true,
            is_unclear: false,
        };
        this.begin_line();
        this
    }

    pub fn is_quoted(&self) -> bool {
        self.document.is_quoted
    }

    /// Whether the line so far could still become the delimiter.
    pub fn may_be_delimiter(&self) -> bool {
        self.matched.is_some()
    }

    /// Whether the line that ended is the end to some shells and not to others.
    pub fn is_unclear(&self) -> bool {
        self.is_unclear
    }

    fn begin_line(&mut self) {
        self.matched = Some(0);
        self.begins_like_end = self.document.delimiter.is_empty();
        self.is_indent = true;
        self.loses_bytes = false;
    }

    /// One character of a line, of the template's or of a value's.
    pub fn text(&mut self, c: char) {
        if self.document.strips_tabs && self.is_indent && c == '\t' {
            return;
        }
        self.is_indent = false;
        let before = self.matched.unwrap_or(0);
        self.matched = self
            .matched
            .filter(|matched| self.document.delimiter[*matched..].starts_with(c))
            .map(|matched| matched + c.len_utf8());
        // dash takes back what it compared with the delimiter, and a byte beyond ASCII is lost in that.
        self.loses_bytes |= before > 0 && self.matched.is_none() && !c.is_ascii();
        self.begins_like_end |= self.matched == Some(self.document.delimiter.len());
    }

    /// The line ends; true when it ends the heredoc too.
    pub fn end_line(&mut self) -> Result<bool, String> {
        let is_end = self.matched == Some(self.document.delimiter.len());
        if self.has_value {
            self.check_line()?;
        }
        self.is_unclear = self.is_nested && self.begins_like_end && !is_end;
        let is_end = is_end && !self.has_value;
        self.has_value = false;
        self.begin_line();
        Ok(is_end)
    }

    /// Refuses a line with a value in it that could end the heredoc.
    fn check_line(&self) -> Result<(), String> {
        if self.loses_bytes {
            return Err(format!(
                "the value makes a line that begins like the heredoc's end (`{}`) and goes on with a letter that some shells lose; choose another delimiter",
                self.document.delimiter
            ));
        }
        let is_end = self.matched == Some(self.document.delimiter.len());
        if is_end || (self.is_nested && self.begins_like_end) {
            return Err(format!(
                "the value would make a line that ends the heredoc (`{}`); choose a delimiter that no value holds",
                self.document.delimiter
            ));
        }
        Ok(())
    }

    /// Refuses values where the program that reads the heredoc runs it.
    pub fn check_code(&self) -> Result<(), String> {
        if self.document.is_code {
            return Err("the program that reads this heredoc runs it as code; give the value as an argument: sh -s -- {{ v }}, and \"$1\" in the heredoc".to_owned());
        }
        Ok(())
    }

    /// A value in the body; `None` for any there can be.
    pub fn value(&mut self, text: Option<&str>) -> Result<String, String> {
        self.check_code()?;
        self.has_value = true;
        let Some(text) = text else {
            // Whatever follows, the line may or may not be the delimiter; it is decided at run time.
            self.matched = None;
            self.is_indent = false;
            return Ok(String::new());
        };
        if self.is_nested && text.contains(['\u{1}', '\u{7f}']) {
            return Err(
                "the value holds a control character that bash loses in a heredoc inside `$( )`".to_owned(),
            );
        }
        for c in text.chars() {
            if c == '\t' && self.document.strips_tabs && self.is_indent {
                return Err(
                    "the value has a tab at the start of a line, which `<<-` would drop; write `<<`"
                        .to_owned(),
                );
            }
            if c == '\n' {
                self.check_line()?;
                self.begin_line();
            } else {
                self.text(c);
            }
        }
        Ok(if self.document.is_quoted {
            text.to_owned()
        } else {
            escape::in_heredoc(text)
        })
    }
}
