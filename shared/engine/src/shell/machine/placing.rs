//! Values, and variables that hold values: whether they may stand here, and how they are written.
//!
//! - A value concerns every word around it: `sh -c "$(printf %s {{ v }})"` is code as well.

use super::*;

const TARGET_REFUSED: &str = "a value cannot be the target of a redirection; write the file's name out, or give the value to a program: tee -- {{ v }}";

impl Machine {
    /// A variable is expanded: refuse it where a value could not stand, if it holds one.
    pub(super) fn reads(&mut self, name: &str) -> Result<(), String> {
        let Some(taint) = self.taint_of(name) else {
            return Ok(());
        };
        if matches!(self.frames.last(), Some(Frame::Arithmetic(_))) {
            return Err(evaluated(name));
        }
        self.check_around()?;
        let is_bare = self.is_in_code();
        let innermost = self
            .frames
            .iter()
            .rposition(|frame| matches!(frame, Frame::Code(_)));
        if let Some(Frame::Code(Code {
            target: Some(Target::File),
            ..
        })) = innermost.and_then(|index| self.frames.get(index))
            && taint.is_direct
        {
            return Err(format!("`${name}` holds a value: {TARGET_REFUSED}"));
        }
        for (index, frame) in self.frames.iter_mut().enumerate() {
            match frame {
                Frame::Heredoc(heredoc) => heredoc.check_code()?,
                Frame::Code(Code {
                    command,
                    word: Some(word),
                    target: None,
                    ..
                }) if !matches!(command.mode, Mode::ForIn | Mode::CaseIn | Mode::Compound) => {
                    command
                        .check_value(word)
                        .map_err(|error| format!("`${name}` holds a value: {error}"))?;
                    if Some(index) != innermost {
                        word.taint = Some(MADE.join(word.taint));
                        continue;
                    }
                    if taint.is_direct && is_bare && command.splits() {
                        return Err(format!(
                            "`${name}` holds a value, which unquoted would become several words; write \"${name}\""
                        ));
                    }
                    if taint.begins_option
                        && !word.is_begun
                        && word.assigns.is_none()
                        && command.splits()
                        && command.reads_options()
                    {
                        return Err(format!("`${name}`: {OPTION}"));
                    }
                    let begins_option = taint.begins_option && !word.is_begun;
                    word.taint = Some(
                        Taint {
                            begins_option,
                            ..taint
                        }
                        .join(word.taint),
                    );
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What is held by a variable, or by an argument of any number.
    pub(super) fn taint_of(&self, name: &str) -> Option<Taint> {
        let is_argument = name.bytes().all(|c| c.is_ascii_digit()) && !name.is_empty() && name != "0";
        self.tainted.get(if is_argument { "1" } else { name }).copied()
    }

    /// Refuses what holds a value inside `${ }` and `$(( ))`, where the shell may evaluate it, or
    /// give it to a variable unseen.
    fn check_around(&self) -> Result<(), String> {
        for (index, frame) in self.frames.iter().enumerate() {
            match frame {
                Frame::Parameter { text } if !is_harmless_parameter(text) => {
                    return Err("inside such a `${ }` a value could be evaluated, or be given to a variable; keep it out: x={{ v }}".to_owned());
                }
                Frame::Arithmetic(_) if self.frames[index..].iter().any(is_substitution) => {
                    return Err("inside `$(( ))` the shell evaluates what a command prints of a value; only a whole number can stand there: $(( {{ v }} + 1 ))".to_owned());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Checks the innermost context and writes the value for it.
    pub(super) fn escape(&mut self, value: Option<&Value>) -> Result<String, String> {
        let text = value.map(|value| value.text.as_str());
        match self.frames.last_mut() {
            Some(Frame::Code(_)) => {
                self.enter_word(value)?;
                Ok(text.map(escape::quoted).unwrap_or_default())
            }
            Some(Frame::Single { is_ansi: true, .. }) => Err(DOLLAR_QUOTE.to_owned()),
            Some(Frame::Single { .. }) => {
                self.enter_word(value)?;
                Ok(text.map(escape::in_single_quotes).unwrap_or_default())
            }
            Some(Frame::Double) => {
                self.enter_word(value)?;
                Ok(text.map(escape::in_double_quotes).unwrap_or_default())
            }
            Some(Frame::Comment) => match text {
                Some(text) if text.contains('\n') => Err("the value holds a line break, which would end the comment; leave the value out of it".to_owned()),
                text => Ok(text.map(escape::in_comment).unwrap_or_default()),
            },
            Some(Frame::Parameter { .. }) => Err("a value cannot stand inside `${ }`, where no quoting is safe; give it to a variable first: v={{ v }}".to_owned()),
            Some(Frame::Backtick(_)) => Err("backticks read their content twice; write $( … {{ v }} … )".to_owned()),
            Some(Frame::Arithmetic(arithmetic)) => {
                arithmetic.has_value = true;
                if !arithmetic.name.is_empty() || arithmetic.closes {
                    return Err("inside `$(( ))` a value stands by itself; put a space or an operator in front of it".to_owned());
                }
                // What follows may not grow the number either.
                arithmetic.name = "0".to_owned();
                match text {
                    None => Ok(String::new()),
                    Some(text) => escape::in_arithmetic(text).ok_or_else(|| "inside `$(( ))` only a whole number can stand, and the value is none".to_owned()),
                }
            }
            Some(Frame::Heredoc(heredoc)) => heredoc.value(text),
            None => Err("a value behind the end of the command".to_owned()),
        }
    }

    /// A value becomes a part of the innermost list's word.
    pub(super) fn enter_word(&mut self, value: Option<&Value>) -> Result<(), String> {
        if let Some(text) = value.map(|value| value.text.as_str())
            && text.contains('\n')
            && (self.is_inside_heredoc() || !self.pending.is_empty())
        {
            return Err("the value holds a line break, which on the line of a heredoc shells read in more than one way".to_owned());
        }
        let Some(code) = self.code() else {
            return Ok(());
        };
        match code.target {
            None => {}
            Some(Target::File) => return Err(TARGET_REFUSED.to_owned()),
            Some(Target::HereString) => {
                return Err("`<<<` is not known to every shell; write printf '%s\\n' {{ v }} | …".to_owned());
            }
            Some(Target::Heredoc { .. }) => {
                return Err(
                    "a value cannot be the delimiter of a heredoc; write a word of your own".to_owned(),
                );
            }
        }
        let word = code.word.get_or_insert_default();
        if word.has_dollar_quote {
            return Err(DOLLAR_QUOTE.to_owned());
        }
        if word.has_brace {
            return Err(BRACES.to_owned());
        }
        code.command.check_value(word)?;
        word.has_value = true;
        let mut taint = Taint {
            is_direct: true,
            begins_option: false,
        };
        if let Some(value) = value {
            if value.text.starts_with('-') && !value.is_number && !word.is_begun {
                if word.assigns.is_none() && code.command.reads_options() {
                    return Err(OPTION.to_owned());
                }
                taint.begins_option = true;
            }
            word.is_begun |= !value.text.is_empty();
        }
        word.taint = Some(taint.join(word.taint));
        Ok(())
    }

    /// The lists around this one: their words hold the value too, by what becomes of it.
    pub(super) fn mark_enclosing(&mut self) -> Result<(), String> {
        let innermost = self
            .frames
            .iter()
            .rposition(|frame| matches!(frame, Frame::Code(_)));
        let is_own = self
            .frames
            .last()
            .is_some_and(|frame| matches!(frame, Frame::Code(_) | Frame::Single { .. } | Frame::Double));
        self.check_around()?;
        let made = self.made_of_it(innermost, is_own)?;
        for (index, frame) in self.frames.iter_mut().enumerate() {
            match frame {
                Frame::Arithmetic(arithmetic) => arithmetic.has_value = true,
                Frame::Code(Code {
                    command,
                    word: Some(word),
                    target,
                    ..
                }) if Some(index) != innermost || !is_own => {
                    if target.is_none()
                        && !matches!(command.mode, Mode::ForIn | Mode::CaseIn | Mode::Compound)
                    {
                        command.check_value(word)?;
                    }
                    word.taint = Some(made.join(word.taint));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What the lists around get of a value in the innermost one: what `echo` and `printf` print is
    /// the value itself, so that unquoted it would become several words.
    fn made_of_it(&self, innermost: Option<usize>, is_own: bool) -> Result<Taint, String> {
        let Some(index) = innermost.filter(|_| is_own) else {
            return Ok(MADE);
        };
        let Some(Frame::Code(code)) = self.frames.get(index) else {
            return Ok(MADE);
        };
        if !code.command.prints_words {
            return Ok(MADE);
        }
        let parent = index.checked_sub(1).and_then(|index| self.frames.get(index));
        if code.place == Place::Substitution
            && let Some(Frame::Code(parent)) = parent
            && parent.target.is_none()
            && parent.command.splits()
            && parent.word.as_ref().is_some_and(|word| word.assigns.is_none())
        {
            return Err("what is printed of the value here becomes several words; put double quotes around it: \"$( … )\"".to_owned());
        }
        Ok(Taint {
            is_direct: true,
            begins_option: false,
        })
    }
}

/// Whether `${text` only replaces or cuts what the variable holds, with no arithmetic in it.
fn is_harmless_parameter(text: &str) -> bool {
    let rest = text.trim_start_matches(|c: char| is_name_character(c) || matches!(c, '@' | '*' | '?'));
    let rest = rest.strip_prefix(':').unwrap_or(rest);
    rest.starts_with(['-', '+', '?']) || (rest.starts_with(['#', '%']) && !text.contains(':'))
}
