//! Splits a command into words as a shell would, and refuses whatever a shell would do beyond that.
//!
//! Invariant: for what is accepted, `/bin/sh` would run exactly these words; it holds no expansion,
//! no redirection, no second command.

use super::Refusal;

/// A gated command may be so long.
const COMMAND_BYTES_MAX: usize = 4096;
/// And have so many words.
const WORDS_MAX: usize = 64;

/// Splits a command into its words: quotes and backslashes are understood, everything else that a
/// shell gives a meaning is refused.
///
/// # Errors
/// What stands in it that is more than words.
pub fn parse(command: &str) -> Result<Vec<String>, Refusal> {
    if command.trim().is_empty() {
        return Err(Refusal::new("the command is empty"));
    }
    if command.len() > COMMAND_BYTES_MAX {
        return Err(Refusal::new(format!(
            "the command is longer than {COMMAND_BYTES_MAX} bytes"
        )));
    }
    let mut splitter = Splitter {
        chars: command.trim().chars().collect(),
        at: 0,
        words: Vec::new(),
        word: None,
    };
    splitter.run()?;
    Ok(splitter.words)
}

struct Splitter {
    chars: Vec<char>,
    at: usize,
    words: Vec<String>,
    /// The word under way; `Some` also for an empty one in quotes.
    word: Option<String>,
}

impl Splitter {
    fn run(&mut self) -> Result<(), Refusal> {
        while let Some(c) = self.next() {
            match c {
                ' ' | '\t' => self.end_word()?,
                '\'' => self.single_quoted()?,
                '"' => self.double_quoted()?,
                '\\' => match self.next() {
                    // A line that goes on; the shell drops both.
                    Some('\n') => {}
                    Some(escaped) => self.push(escaped)?,
                    None => return Err(Refusal::new("it ends with a backslash")),
                },
                '#' if self.word.is_none() => return Err(refused(c)),
                '|' | '&' | ';' | '<' | '>' | '(' | ')' | '$' | '`' | '*' | '?' | '[' | ']' | '{' | '}'
                | '~' | '!' | '\n' | '\r' => return Err(refused(c)),
                c => self.push(c)?,
            }
        }
        self.end_word()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.chars.get(self.at).copied();
        self.at += 1;
        c
    }

    fn push(&mut self, c: char) -> Result<(), Refusal> {
        if c.is_control() {
            return Err(refused(c));
        }
        self.word.get_or_insert_default().push(c);
        Ok(())
    }

    fn end_word(&mut self) -> Result<(), Refusal> {
        self.words.extend(self.word.take());
        if self.words.len() > WORDS_MAX {
            return Err(Refusal::new(format!("it has more than {WORDS_MAX} words")));
        }
        Ok(())
    }

    fn single_quoted(&mut self) -> Result<(), Refusal> {
        self.word.get_or_insert_default();
        loop {
            match self.next() {
                Some('\'') => return Ok(()),
                Some(c) => self.push(c)?,
                None => return Err(Refusal::new("it has an opening ' without a closing one")),
            }
        }
    }

    fn double_quoted(&mut self) -> Result<(), Refusal> {
        self.word.get_or_insert_default();
        loop {
            match self.next() {
                Some('"') => return Ok(()),
                Some(c @ ('$' | '`')) => return Err(refused(c)),
                Some('\\') => match self.next() {
                    Some(escaped @ ('$' | '`' | '"' | '\\')) => self.push(escaped)?,
                    Some('\n') => {}
                    Some(other) => {
                        self.push('\\')?;
                        self.push(other)?;
                    }
                    None => return Err(Refusal::new("it has an opening \" without a closing one")),
                },
                Some(c) => self.push(c)?,
                None => return Err(Refusal::new("it has an opening \" without a closing one")),
            }
        }
    }
}

fn refused(c: char) -> Refusal {
    let what = match c {
        '|' => "a pipe",
        '&' | ';' => "a second command",
        '<' | '>' => "a redirection",
        '(' | ')' => "a subshell",
        '$' | '`' => "a substitution",
        '*' | '?' | '[' | ']' | '{' | '}' | '~' => "a pattern that a shell expands",
        '\n' | '\r' => "a second line",
        '#' => "a comment",
        '!' => "a negation",
        c if c.is_control() => "a control character",
        _ => "shell syntax",
    };
    Refusal::new(format!(
        "it holds {what} ({c:?}); a fix is one kubectl command, without a shell"
    ))
}
