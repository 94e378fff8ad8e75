//! Lists of commands: words, operators, redirections, and where heredocs begin.
//!
//! - A word is handed to [`Command`] when it ends; an operator is acted on once it cannot grow.
//! - Where a heredoc's body begins is followed only as far as all shells agree.

use super::*;

impl Machine {
    /// One character of a list of commands, outside quotes.
    pub(super) fn in_code(&mut self, c: char) -> Result<(), String> {
        let Some(Frame::Code(code)) = self.frames.last_mut() else {
            return Ok(());
        };
        if !code.operator.is_empty() {
            let grown = format!("{}{c}", code.operator);
            if OPERATORS.contains(&grown.as_str()) {
                code.operator = grown;
                return Ok(());
            }
            self.end_operator()?;
            if self.lost.is_some() {
                return Ok(());
            }
            return self.step(c);
        }
        match c {
            ' ' | '\t' => self.end_word(),
            '\n' | ';' | '&' | '|' | '<' | '>' | '(' | ')' => self.begin_operator(c),
            '#' if code.word.is_none() => self.open(Frame::Comment),
            '\'' | '"' => {
                if let Some(word) = self.word() {
                    word.is_quoted = true;
                }
                self.open(if c == '"' {
                    Frame::Double
                } else {
                    Frame::Single {
                        is_ansi: false,
                        is_escaped: false,
                    }
                })
            }
            '\\' => {
                self.ahead = Ahead::Backslash;
                Ok(())
            }
            '$' => {
                self.word();
                self.ahead = Ahead::Dollar;
                Ok(())
            }
            '`' => self.open_backtick(),
            c => self.bare(c),
        }
    }

    /// A character of a word outside quotes.
    pub(super) fn bare(&mut self, c: char) -> Result<(), String> {
        let Some(code) = self.code() else {
            return Ok(());
        };
        let may_assign = code.command.may_assign() && code.target.is_none();
        let word = code.word.get_or_insert_default();
        if c == '{' {
            word.has_brace = true;
            if word.has_value {
                return Err(BRACES.to_owned());
            }
        }
        if c == '='
            && may_assign
            && word.assigns.is_none()
            && !word.is_quoted
            && is_name(&word.text)
            && word.literal().is_some()
        {
            word.assigns = Some(word.text.clone());
            self.push_literal(c);
            // What follows begins what is assigned.
            if let Some(word) = self.word() {
                word.is_begun = false;
            }
            return Ok(());
        }
        self.push_literal(c);
        Ok(())
    }

    pub(super) fn begin_operator(&mut self, c: char) -> Result<(), String> {
        let Some(Frame::Code(code)) = self.frames.last_mut() else {
            return Ok(());
        };
        let is_number = |word: &Word| {
            !word.is_quoted
                && word
                    .literal()
                    .is_some_and(|text| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit()))
        };
        if matches!(c, '<' | '>') && code.word.as_ref().is_some_and(is_number) {
            // The number of a file descriptor.
            code.word = None;
        }
        if c == '(' && code.word.is_some() {
            let is_name = matches!(code.command.mode, Mode::Name) && code.target.is_none();
            if !is_name {
                return self.lose("`(` inside a word");
            }
        }
        self.end_word()?;
        if let Some(Frame::Code(code)) = self.frames.last_mut()
            && self.lost.is_none()
        {
            code.operator = c.to_string();
            if matches!(c, '\n' | ')') {
                return self.end_operator();
            }
        }
        Ok(())
    }

    /// Acts on the operator that was collected.
    pub(super) fn end_operator(&mut self) -> Result<(), String> {
        let Some(Frame::Code(code)) = self.frames.last_mut() else {
            return Ok(());
        };
        let operator = std::mem::take(&mut code.operator);
        if operator.is_empty() || self.lost.is_some() {
            return Ok(());
        }
        if code.target.is_some() {
            return self.lose("a redirection without a target");
        }
        match operator.as_str() {
            "<" | ">" | ">>" | "<&" | ">&" | "<>" | ">|" => {
                code.target = Some(Target::File);
                code.command.is_first = false;
                code.command.reads_file |= operator == "<";
                Ok(())
            }
            "&>" | "&>>" => {
                // To some shells this is `&` and then `>`: what follows the target is a command's name.
                self.end_command("&")?;
                if let Some(code) = self.code() {
                    code.target = Some(Target::File);
                }
                Ok(())
            }
            "<<" | "<<-" => {
                code.target = Some(Target::Heredoc {
                    strips_tabs: operator == "<<-",
                });
                Ok(())
            }
            "<<<" => {
                code.target = Some(Target::HereString);
                Ok(())
            }
            "<(" | ">(" => self.lose("`<( )`, which not every shell has"),
            "(" => self.open_paren(),
            "()" => self.define_function(),
            "((" => {
                if self.has_value && self.holds_in_variables() {
                    return Err(evaluated("(("));
                }
                self.lose("`((`, which not every shell has; write `$(( ))`")
            }
            ")" => self.close_paren(),
            _ => self.end_command(&operator),
        }
    }

    pub(super) fn open_paren(&mut self) -> Result<(), String> {
        let Some(code) = self.code() else {
            return Ok(());
        };
        match &mut code.command.mode {
            Mode::Pattern {
                at_start: at_start @ true,
            } => {
                // The pattern behind it can no longer be `esac`.
                *at_start = false;
                Ok(())
            }
            Mode::Name if code.command.is_first => {
                code.command.mode = Mode::Compound;
                code.command.is_first = false;
                self.open(Frame::Code(Code::new(Place::Subshell)))
            }
            _ => self.lose("`(` behind a word"),
        }
    }

    pub(super) fn define_function(&mut self) -> Result<(), String> {
        match self.code() {
            Some(code) if code.command.is_just_named => {
                code.command = Command::new();
                self.defines_functions = true;
                for name in ARGUMENTS {
                    self.tainted.entry(name.to_owned()).or_insert(MADE);
                }
                Ok(())
            }
            _ => self.lose("`()` here"),
        }
    }

    pub(super) fn close_paren(&mut self) -> Result<(), String> {
        let Some(code) = self.code() else {
            return Ok(());
        };
        if matches!(code.command.mode, Mode::Pattern { .. }) {
            code.command = Command::new();
            return Ok(());
        }
        let (place, is_open) = (code.place, code.open_cases > 0);
        self.end_command(")")?;
        if place == Place::Top || is_open {
            return self.lose("a `)` that closes nothing");
        }
        if place == Place::Substitution
            && self
                .pending
                .iter()
                .any(|pending| pending.depth >= self.frames.len())
        {
            return self.lose("a heredoc whose body comes behind its `$( )`");
        }
        self.frames.pop();
        Ok(())
    }

    /// A word ends, where there is one.
    pub(super) fn end_word(&mut self) -> Result<(), String> {
        let Some(Frame::Code(code)) = self.frames.last_mut() else {
            return Ok(());
        };
        let Some(word) = code.word.take() else {
            return Ok(());
        };
        match code.target.take() {
            None => {}
            Some(Target::File | Target::HereString) => return Ok(()),
            Some(Target::Heredoc { strips_tabs }) => return self.add_heredoc(word, strips_tabs),
        }
        taint(&mut self.tainted, &code.command, &word);
        if code.command.fills_variables() && word.literal().is_some_and(programs::is_read_by_the_shell) {
            return self.lose("a variable of the shell's own that is filled from the input");
        }
        if code.command.fills_variables() && word.is_dynamic {
            return self.lose("a variable whose name is put together");
        }
        if let Some(inner) = code.command.code(&word) {
            let (inner, arguments) = (inner.to_owned(), code.command.passes_arguments());
            let checked = self.check_inner(&inner, false);
            let evaluates = arguments && self.check_inner(&inner, true).is_err();
            if let Some(code) = self.code() {
                code.command.evaluates_arguments = evaluates;
            }
            checked.map_err(|error| format!("the code in this command: {error}"))?;
        }
        let Some(Frame::Code(code)) = self.frames.last_mut() else {
            return Ok(());
        };
        let event = code.command.word(&word);
        if code.command.fills_variables() {
            for name in FILLED_UNNAMED {
                self.tainted.entry(name.to_owned()).or_insert(MADE);
            }
        }
        match event {
            Event::None => Ok(()),
            Event::CaseOpens => {
                code.open_cases = code.open_cases.saturating_add(1);
                Ok(())
            }
            Event::CaseCloses if code.open_cases == 0 => self.lose("`esac` without `case`"),
            Event::CaseCloses => {
                code.open_cases -= 1;
                Ok(())
            }
            Event::Lost(what) => self.lose(what),
            Event::Evaluates(what) if self.has_value && self.holds_in_variables() => Err(format!(
                "a variable that holds a value cannot be used with {what}"
            )),
            Event::Evaluates(what) => self.lose(what),
        }
    }

    pub(super) fn add_heredoc(&mut self, word: Word, strips_tabs: bool) -> Result<(), String> {
        if self.is_inside_heredoc() {
            return self.lose("a heredoc inside a heredoc");
        }
        let is_plain = word.literal().is_some_and(is_plain_delimiter);
        if !is_plain || self.pending.len() >= 8 {
            return self.lose("a heredoc with such a delimiter");
        }
        let depth = self.frames.len();
        let Some(code) = self.code() else {
            return Ok(());
        };
        code.command.reads_heredoc = true;
        let behind_compound = code.command.mode == Mode::Compound;
        let is_code = behind_compound && self.runs_input;
        self.pending.push(Pending {
            delimiter: word.text,
            is_quoted: word.is_quoted,
            strips_tabs,
            is_code,
            depth,
        });
        Ok(())
    }

    /// A command ends at `operator`.
    pub(super) fn end_command(&mut self, operator: &str) -> Result<(), String> {
        self.end_word()?;
        let (has_value, pipes_value, is_inner) = (self.has_value, self.pipes_value, self.is_inner);
        let Some(code) = self.code() else {
            return Ok(());
        };
        if code.target.is_some() {
            return self.lose("a redirection without a target");
        }
        let may_run_input = code.command.may_run_input(pipes_value);
        // Of code inside a command the input is another matter: see `Reading::may_run_input`.
        if !is_inner && (code.command.runs_input() || may_run_input) {
            let (reads_heredoc, is_certain) = (code.command.reads_heredoc, code.command.runs_input());
            if !reads_heredoc && (has_value && is_certain || pipes_value) {
                return Err(INPUT_IS_CODE.to_owned());
            }
            self.line_runs_input = true;
            self.runs_input = true;
            self.runs_outer_input |= !reads_heredoc;
            if has_value && self.defines_functions && !reads_heredoc {
                return Err(INPUT_IS_CODE.to_owned());
            }
        }
        if matches!(operator, "|" | "|&") {
            self.pipes_value |= has_value;
        }
        if let Some(Frame::Code(code)) = self.frames.last()
            && code.command.mode == Mode::ForIn
        {
            note_loop_over_arguments(&mut self.tainted, &code.command);
        }
        let Some(code) = self.code() else {
            return Ok(());
        };
        match (&mut code.command.mode, operator) {
            (Mode::Pattern { at_start }, "|") => *at_start = false,
            (Mode::Pattern { .. }, "\n") => {}
            (Mode::Pattern { .. }, _) => return self.lose("such a pattern of `case`"),
            (Mode::CaseIn | Mode::ForIn, "\n") => {}
            (Mode::ForIn, ";") => code.command = Command::new(),
            (Mode::CaseWord | Mode::CaseIn | Mode::ForName | Mode::ForIn, _) => {
                return self.lose("an unfinished `for` or `case`");
            }
            (_, ";;" | ";&" | ";;&") if code.open_cases > 0 => {
                code.command = Command::with_mode(Mode::Pattern { at_start: true })
            }
            (_, ";;" | ";&" | ";;&") => return self.lose("`;;` outside `case`"),
            (Mode::Name, "\n") if code.command.is_first && code.command.is_piped => {}
            (_, "|" | "|&") => {
                code.command = Command::new();
                code.command.is_piped = true;
            }
            _ => code.command = Command::new(),
        }
        if operator == "\n" { self.newline() } else { Ok(()) }
    }

    pub(super) fn newline(&mut self) -> Result<(), String> {
        if self.is_inside_heredoc() {
            return self.lose("a line break in a `$( )` inside a heredoc");
        }
        let depth = self.substitutions();
        if self.pending.iter().any(|pending| {
            self.frames[..pending.depth.min(self.frames.len())]
                .iter()
                .filter(|frame| is_substitution(frame))
                .count()
                != depth
        }) {
            return self.lose("a heredoc on whose line a `$( )` goes on");
        }
        let line_runs_input = std::mem::take(&mut self.line_runs_input);
        for pending in &mut self.pending {
            pending.is_code |= line_runs_input;
        }
        self.begin_heredoc()
    }

    pub(super) fn substitutions(&self) -> usize {
        self.frames.iter().filter(|frame| is_substitution(frame)).count()
    }

    pub(super) fn begin_heredoc(&mut self) -> Result<(), String> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let pending = self.pending.remove(0);
        let is_nested = self.substitutions() > 0;
        self.open(Frame::Heredoc(Heredoc::new(pending, is_nested)))
    }
}

/// Quoting, and letters that shells compare differently, have no place in a delimiter.
fn is_plain_delimiter(text: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '!'))
}
