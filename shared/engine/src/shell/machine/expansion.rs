//! Quotes and expansions: how far each reaches, and that it makes a word's content unknown.
//!
//! - An extent that shells see differently makes the machine lost.

use super::*;

impl Machine {
    /// An expansion begins or ends in the word in progress.
    pub(super) fn mark_dynamic(&mut self) {
        let is_bare = self.is_in_code();
        // In a heredoc or an arithmetic expansion there is no word to mark.
        let belongs_to_word = self.frames.iter().rev().find_map(|frame| match frame {
            Frame::Code(_) => Some(true),
            Frame::Double => None,
            _ => Some(false),
        });
        if belongs_to_word == Some(true)
            && let Some(word) = self.word()
        {
            word.starts_dynamic |= !word.is_begun && word.text.is_empty();
            word.is_dynamic = true;
            word.may_split |= is_bare;
        }
    }

    pub(super) fn in_single(&mut self, c: char) -> Result<(), String> {
        let Some(Frame::Single { is_ansi, is_escaped }) = self.frames.last_mut() else {
            return Ok(());
        };
        if c == '\'' {
            if *is_escaped {
                return self.lose("`\\'` inside `$'…'`");
            }
            self.frames.pop();
            return Ok(());
        }
        if *is_ansi {
            *is_escaped = c == '\\' && !*is_escaped;
            return Ok(());
        }
        self.push_literal(c);
        self.newline_in_word(c)
    }

    pub(super) fn in_double(&mut self, c: char) -> Result<(), String> {
        match c {
            '"' => {
                self.frames.pop();
            }
            '\\' => self.ahead = Ahead::Backslash,
            '$' => self.ahead = Ahead::Dollar,
            '`' => return self.open_backtick(),
            c => {
                self.push_literal(c);
                return self.newline_in_word(c);
            }
        }
        Ok(())
    }

    /// A newline inside a word: shells do not agree whether a heredoc's body begins behind it.
    pub(super) fn newline_in_word(&mut self, c: char) -> Result<(), String> {
        if c == '\n' && (!self.pending.is_empty() || self.is_inside_heredoc()) {
            return self.lose("a line break inside quotes on the line of a heredoc");
        }
        Ok(())
    }

    pub(super) fn open_backtick(&mut self) -> Result<(), String> {
        self.mark_dynamic();
        self.open(Frame::Backtick(Backtick::default()))
    }

    pub(super) fn in_backtick(&mut self, c: char) -> Result<(), String> {
        let is_in_double = matches!(
            self.frames.iter().rev().nth(1),
            Some(Frame::Double | Frame::Heredoc(_))
        );
        let named = self.name_in_backticks(c);
        let Some(Frame::Backtick(tick)) = self.frames.last_mut() else {
            return named;
        };
        named?;
        if std::mem::take(&mut tick.is_escaped) {
            // What an escaped quote or backtick means in here differs by what stands around it.
            tick.is_unclear |= matches!(c, '`' | '"' | '\'');
            return Ok(());
        }
        match c {
            '`' => {
                let is_unclear = tick.is_unclear || tick.singles_odd || tick.doubles_odd;
                self.frames.pop();
                if is_unclear {
                    return self.lose("these backticks");
                }
            }
            '\\' => tick.is_escaped = true,
            '\'' => tick.singles_odd = !tick.singles_odd,
            '"' => {
                tick.doubles_odd = !tick.doubles_odd;
                tick.is_unclear |= is_in_double;
            }
            '#' | '<' | '\n' => tick.is_unclear = true,
            _ => {}
        }
        Ok(())
    }

    /// Backticks are not followed, so no variable that holds a value may be read in them, and no
    /// program that could run a value from the command's input.
    fn name_in_backticks(&mut self, c: char) -> Result<(), String> {
        let Some(Frame::Backtick(tick)) = self.frames.last_mut() else {
            return Ok(());
        };
        let is_special = tick.name == "$" && matches!(c, '@' | '*');
        if is_name_character(c) || matches!(c, '.' | '-') || is_special {
            if tick.name.len() < 256 {
                tick.name.push(c);
            }
            if !is_special {
                return Ok(());
            }
        }
        if c == '{' && tick.name == "$" || matches!(c, '#' | '!') && tick.name.starts_with('$') {
            return Ok(());
        }
        let read = std::mem::take(&mut tick.name);
        if c == '$' {
            tick.name.push('$');
        }
        let name: &str = read.trim_start_matches('$');
        let variable = name.split(['.', '-']).next().unwrap_or(name);
        let is_argument = variable.starts_with(|c: char| c.is_ascii_digit() || c == '@' || c == '*');
        let holds = self.taint_of(variable).is_some() && (!is_argument || read.starts_with('$'));
        if holds || (self.has_value && programs::may_run_input(name)) {
            return Err(format!(
                "backticks read their content twice, and here `{name}` in them; write $( … )"
            ));
        }
        Ok(())
    }

    /// The character behind a backslash.
    pub(super) fn escaped(&mut self, c: char) -> Result<(), String> {
        match self.frames.last_mut() {
            Some(Frame::Code(code)) => {
                if c == '\n' {
                    if !code.operator.is_empty() {
                        return self.lose("a line that is continued within an operator");
                    }
                    return self.newline_in_word(c);
                }
                self.end_operator()?;
                if let Some(word) = self.word() {
                    word.is_quoted = true;
                }
                self.push_literal(c);
                Ok(())
            }
            Some(Frame::Double) => {
                if c == '\n' {
                    return self.newline_in_word(c);
                }
                if !matches!(c, '$' | '`' | '"' | '\\') {
                    self.push_literal('\\');
                }
                self.push_literal(c);
                Ok(())
            }
            Some(Frame::Heredoc(heredoc)) => {
                if c == '\n' {
                    if heredoc.may_be_delimiter() {
                        return self.lose("a line of a heredoc that is continued where its end could stand");
                    }
                    return Ok(());
                }
                heredoc.text('\\');
                heredoc.text(c);
                Ok(())
            }
            _ => self.lose("a backslash here"),
        }
    }

    /// The character behind `$`.
    pub(super) fn dollar(&mut self, c: char) -> Result<(), String> {
        if let Some(Frame::Heredoc(heredoc)) = self.frames.last_mut() {
            heredoc.text('$');
        }
        match c {
            '(' => {
                self.ahead = Ahead::DollarParen;
                Ok(())
            }
            '{' => {
                self.mark_dynamic();
                self.open(Frame::Parameter { text: String::new() })
            }
            c if is_name_character(c) => {
                self.mark_dynamic();
                self.ahead = Ahead::Variable(c.to_string());
                Ok(())
            }
            '@' | '*' | '#' | '?' | '$' | '!' | '-' => {
                self.mark_dynamic();
                if matches!(c, '@' | '*') {
                    self.reads(&c.to_string())
                } else {
                    Ok(())
                }
            }
            '[' => self.lose("`$[ ]`"),
            '\'' | '"' if self.is_in_code() => {
                if let Some(word) = self.word() {
                    word.has_dollar_quote = true;
                    word.is_quoted = true;
                    word.is_dynamic = true;
                    if word.has_value {
                        return Err(DOLLAR_QUOTE.to_owned());
                    }
                }
                let is_ansi = c == '\'';
                self.open(if is_ansi {
                    Frame::Single {
                        is_ansi,
                        is_escaped: false,
                    }
                } else {
                    Frame::Double
                })
            }
            '\\' if !matches!(self.frames.last(), Some(Frame::Arithmetic(_))) => {
                if !matches!(self.frames.last(), Some(Frame::Heredoc(_))) {
                    self.push_literal('$');
                }
                self.ahead = Ahead::DollarBackslash;
                Ok(())
            }
            c => {
                if !matches!(self.frames.last(), Some(Frame::Heredoc(_))) {
                    self.push_literal('$');
                }
                self.step(c)
            }
        }
    }

    pub(super) fn dollar_paren(&mut self, c: char) -> Result<(), String> {
        self.mark_dynamic();
        if c == '\\' {
            return self.lose("a backslash right behind `$(`");
        }
        if c == '(' {
            return self.open(Frame::Arithmetic(Arithmetic::default()));
        }
        self.open(Frame::Code(Code::new(Place::Substitution)))?;
        if self.lost.is_some() { Ok(()) } else { self.step(c) }
    }

    pub(super) fn in_parameter(&mut self, c: char) -> Result<(), String> {
        let Some(Frame::Parameter { text }) = self.frames.last_mut() else {
            return Ok(());
        };
        match c {
            '}' => {
                let text = std::mem::take(text);
                self.frames.pop();
                return self.expands(&text);
            }
            '$' => self.ahead = Ahead::Dollar,
            '\'' | '"' | '\\' | '`' | '(' | ')' | '{' | '\n' => {
                return self.lose("quotes or brackets inside `${ }`");
            }
            c if text.len() < 256 => text.push(c),
            _ => return self.lose("so long a `${ }`"),
        }
        Ok(())
    }

    /// `${text}` is complete.
    pub(super) fn expands(&mut self, text: &str) -> Result<(), String> {
        let name_start = text.trim_start_matches(['#', '!']);
        let length = name_start
            .bytes()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == b'_')
            .count();
        let length = if name_start.starts_with(['@', '*']) {
            1
        } else {
            length
        };
        let (name, rest) = name_start.split_at(length);
        let evaluates = text.starts_with('!')
            || rest.starts_with(['[', '@'])
            || (rest.starts_with(':')
                && !rest.starts_with(":-")
                && !rest.starts_with(":=")
                && !rest.starts_with(":?")
                && !rest.starts_with(":+"));
        if evaluates && self.holds_in_variables() {
            return Err(format!(
                "`${{{text}}}` evaluates variables as code or arithmetic in some shells; write the value itself where it is needed"
            ));
        }
        self.reads(name)
    }

    pub(super) fn in_arithmetic(&mut self, c: char) -> Result<(), String> {
        let tainted = &self.tainted;
        let Some(Frame::Arithmetic(arithmetic)) = self.frames.last_mut() else {
            return Ok(());
        };
        if arithmetic.closes {
            if c == ')' {
                self.frames.pop();
                return Ok(());
            }
            return self.lose("`$((` that does not end in `))`");
        }
        if is_name_character(c) && arithmetic.name.len() < 256 {
            arithmetic.name.push(c);
            return Ok(());
        }
        let name = std::mem::take(&mut arithmetic.name);
        let read = if tainted.contains_key(&name) {
            Err(evaluated(&name))
        } else {
            Ok(())
        };
        match c {
            '(' => arithmetic.depth = arithmetic.depth.saturating_add(1),
            ')' if arithmetic.depth == 0 => arithmetic.closes = true,
            ')' => arithmetic.depth -= 1,
            '$' => self.ahead = Ahead::Dollar,
            ' ' | '\t' | '+' | '-' | '*' | '/' | '%' | '<' | '>' | '=' | '!' | '&' | '|' | '^' | '~'
            | '?' | ':' | ',' | '[' | ']' => {}
            _ => return self.lose("this inside `$(( ))`"),
        }
        read
    }

    pub(super) fn in_heredoc(&mut self, c: char) -> Result<(), String> {
        let Some(Frame::Heredoc(heredoc)) = self.frames.last_mut() else {
            return Ok(());
        };
        if c == '\n' {
            if heredoc.end_line()? {
                self.frames.pop();
                return self.begin_heredoc();
            }
            if heredoc.is_unclear() {
                return self.lose("a heredoc inside `$( )` with a line that begins like its end");
            }
            return Ok(());
        }
        if !heredoc.is_quoted() {
            match c {
                '\\' => {
                    self.ahead = Ahead::Backslash;
                    return Ok(());
                }
                '$' => {
                    self.ahead = Ahead::Dollar;
                    return Ok(());
                }
                '`' => {
                    heredoc.text(c);
                    return self.open_backtick();
                }
                _ => {}
            }
        }
        heredoc.text(c);
        Ok(())
    }
}
