//! The shell lexer: a machine that is fed a command character by character, with values among it,
//! and knows at each value in which context of the shell's grammar it stands.
//!
//! - It is fed either a template's text and unknown values (when a template is compiled: every
//!   path is walked, and states are compared where they meet), or the text and the real values
//!   (when it is rendered). Both go through the same code, so what was admitted is what is run.
//! - What it does not follow with certainty makes it *lost*: then it refuses every further value,
//!   and nothing else. A command without values is never refused.
//! - It follows what dash, bash and busybox agree on; where they differ, it is lost or refuses.

use std::collections::BTreeMap;

use super::Value;
use super::command::{Command, Event, Mode, Taint, Word};
use super::escape;
use super::heredoc::{Heredoc, Pending};

/// Nesting of quotes and expansions; deeper is not followed.
const FRAMES_MAX: usize = 32;

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Machine {
    frames: Vec<Frame>,
    /// A character whose meaning depends on the next one.
    ahead: Ahead,
    /// Heredocs whose bodies come behind the next newline.
    pending: Vec<Pending>,
    lost: Option<&'static str>,
    /// Variables that were given a value of the template's.
    tainted: BTreeMap<String, Taint>,
    has_value: bool,
    /// Some command runs what it reads: on this line, and anywhere.
    line_runs_input: bool,
    runs_input: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Ahead {
    None,
    Backslash,
    Dollar,
    DollarBackslash,
    DollarParen,
    Variable(String),
}

#[derive(Clone, Debug, PartialEq)]
enum Frame {
    Code(Code),
    Single { is_ansi: bool, is_escaped: bool },
    Double,
    Comment,
    Parameter { text: String },
    Arithmetic(Arithmetic),
    Backtick(Backtick),
    Heredoc(Heredoc),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Top,
    /// `$( … )`.
    Substitution,
    /// `( … )`.
    Subshell,
}

/// A list of commands.
#[derive(Clone, Debug, PartialEq)]
struct Code {
    place: Place,
    command: Command,
    word: Option<Word>,
    /// An operator that may still grow.
    operator: String,
    target: Option<Target>,
    open_cases: u8,
}

/// What the next word is, behind a redirection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    File,
    HereString,
    Heredoc { strips_tabs: bool },
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Arithmetic {
    depth: u8,
    closes: bool,
    has_value: bool,
    /// The name or number in progress.
    name: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Backtick {
    is_escaped: bool,
    singles_odd: bool,
    doubles_odd: bool,
    is_unclear: bool,
}

impl Machine {
    pub fn new() -> Self {
        Self {
            frames: vec![Frame::Code(Code::new(Place::Top))],
            ahead: Ahead::None,
            pending: Vec::new(),
            lost: None,
            tainted: BTreeMap::new(),
            has_value: false,
            line_runs_input: false,
            runs_input: false,
        }
    }

    /// A machine that takes `variables` to hold values from the beginning.
    pub fn with_tainted<'n>(variables: impl IntoIterator<Item = &'n String>) -> Self {
        let taint = Taint {
            is_direct: false,
            begins_option: false,
        };
        let tainted = variables.into_iter().map(|name| (name.clone(), taint)).collect();
        Self {
            tainted,
            ..Self::new()
        }
    }

    /// The variables that hold values.
    pub fn tainted(&self) -> impl Iterator<Item = &String> {
        self.tainted.keys()
    }

    pub fn is_lost(&self) -> bool {
        self.lost.is_some()
    }

    /// Whether two machines stand within the same quotes, expansions and heredocs.
    pub fn agrees_with(&self, other: &Self) -> bool {
        if self.lost.is_some() || other.lost.is_some() {
            return true;
        }
        let place = |frame: &Frame| match frame {
            Frame::Code(code) => (0, code.open_cases),
            Frame::Single { .. } => (1, 0),
            Frame::Double => (2, 0),
            // A comment ends with its line, and so do the two ways in which a branch may end.
            Frame::Comment => (3, 0),
            Frame::Parameter { .. } => (4, 0),
            Frame::Arithmetic(_) => (5, 0),
            Frame::Backtick(_) => (6, 0),
            Frame::Heredoc(_) => (7, 0),
        };
        self.frames.iter().map(place).eq(other.frames.iter().map(place))
    }

    /// Feeds one character of the template's own text.
    pub fn text(&mut self, c: char) -> Result<(), String> {
        if self.lost.is_some() {
            return Ok(());
        }
        match std::mem::replace(&mut self.ahead, Ahead::None) {
            Ahead::None => self.step(c),
            Ahead::Backslash => self.escaped(c),
            Ahead::Dollar => self.dollar(c),
            Ahead::DollarBackslash if c == '\n' => self.lose("a line that is continued behind `$`"),
            Ahead::DollarBackslash => self.escaped(c),
            Ahead::DollarParen => self.dollar_paren(c),
            Ahead::Variable(mut name) => {
                if is_name_character(c) && !name.starts_with(|c: char| c.is_ascii_digit()) {
                    name.push(c);
                    self.ahead = Ahead::Variable(name);
                    return Ok(());
                }
                // The character counts even when the variable is refused: more errors may follow.
                let read = self.reads(&name);
                read.and(self.step(c))
            }
        }
    }

    /// Feeds a value; `None` stands for any value there can be. Gives the text to write for it.
    pub fn value(&mut self, value: Option<&Value>) -> Result<String, String> {
        self.check_followed()?;
        if value.is_some_and(|value| value.text.contains('\0')) {
            return Err("the value holds a NUL, which no command can carry".to_owned());
        }
        let in_heredoc = matches!(self.frames.last(), Some(Frame::Heredoc(_)));
        match std::mem::replace(&mut self.ahead, Ahead::None) {
            Ahead::None => {}
            Ahead::Backslash | Ahead::DollarBackslash => {
                return Err(
                    "a backslash in front of a value would undo its quotes; leave the backslash out"
                        .to_owned(),
                );
            }
            Ahead::DollarParen => return Err(super::command::NAME_REFUSED.to_owned()),
            Ahead::Dollar => {
                return Err("`$` in front of a value would make an expansion of it; leave the `$` out: {{ v }}, not ${{ v }}".to_owned());
            }
            Ahead::Variable(name) if in_heredoc => {
                return Err(format!(
                    "the value would become a part of the variable's name; write ${{{name}}} in front of it"
                ));
            }
            Ahead::Variable(name) => self.reads(&name)?,
        }
        self.end_operator()?;
        self.check_followed()?;
        self.has_value = true;
        let written = self.escape(value)?;
        self.mark_enclosing()?;
        Ok(written)
    }

    fn check_followed(&self) -> Result<(), String> {
        match self.lost {
            None => Ok(()),
            Some(what) if what.contains("not every shell") => Err(format!("no value may follow {what}")),
            Some(what) => Err(format!(
                "no value may follow {what}: shells read it in more than one way"
            )),
        }
    }

    /// The end of the command.
    pub fn finish(&mut self) -> Result<(), String> {
        if self.lost.is_some() {
            return Ok(());
        }
        if let Ahead::Variable(name) = std::mem::replace(&mut self.ahead, Ahead::None) {
            self.reads(&name)?;
        }
        self.end_operator()?;
        if let Some(Frame::Heredoc(heredoc)) = self.frames.last_mut() {
            heredoc.end_line()?;
        }
        if matches!(self.frames.last(), Some(Frame::Comment | Frame::Heredoc(_))) {
            self.frames.pop();
        }
        self.end_word()?;
        if let [Frame::Code(code)] = self.frames.as_slice()
            && code.open_cases == 0
        {
            return self.end_command("\n");
        }
        if self.lost.is_some() || !self.has_value {
            return Ok(());
        }
        Err("a quote, an expansion or a heredoc is opened and never closed".to_owned())
    }

    /// Stops following: every further value is refused, and here too where one is held already.
    fn lose(&mut self, what: &'static str) -> Result<(), String> {
        self.lost = Some(what);
        let holds = |frame: &Frame| matches!(frame, Frame::Arithmetic(arithmetic) if arithmetic.has_value);
        if self.frames.iter().any(holds) {
            return Err(format!(
                "a value stands inside {what}, which shells read in more than one way"
            ));
        }
        Ok(())
    }

    fn code(&mut self) -> Option<&mut Code> {
        self.frames.iter_mut().rev().find_map(|frame| match frame {
            Frame::Code(code) => Some(code),
            _ => None,
        })
    }

    /// The word in progress of the innermost list; begins one.
    fn word(&mut self) -> Option<&mut Word> {
        self.code().map(|code| code.word.get_or_insert_default())
    }

    fn is_in_code(&self) -> bool {
        matches!(self.frames.last(), Some(Frame::Code(_)))
    }

    fn push_literal(&mut self, c: char) {
        if let Some(code) = self.code() {
            let keep = if code.target.is_some() {
                256
            } else {
                code.command.keeps()
            };
            code.word.get_or_insert_default().push(c, keep);
        }
    }

    fn open(&mut self, frame: Frame) -> Result<(), String> {
        if self.frames.len() >= FRAMES_MAX {
            return self.lose("so many nested quotes and expansions");
        }
        self.frames.push(frame);
        Ok(())
    }

    /// An expansion begins or ends in the word in progress.
    fn mark_dynamic(&mut self) {
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

    /// One character with nothing pending.
    fn step(&mut self, c: char) -> Result<(), String> {
        match self.frames.last_mut() {
            Some(Frame::Code(_)) => self.in_code(c),
            Some(Frame::Single { .. }) => self.in_single(c),
            Some(Frame::Double) => self.in_double(c),
            Some(Frame::Comment) => {
                if c == '\n' {
                    self.frames.pop();
                    return self.in_code(c);
                }
                Ok(())
            }
            Some(Frame::Parameter { .. }) => self.in_parameter(c),
            Some(Frame::Arithmetic(_)) => self.in_arithmetic(c),
            Some(Frame::Backtick(_)) => self.in_backtick(c),
            Some(Frame::Heredoc(_)) => self.in_heredoc(c),
            None => self.lose("the end of the command"),
        }
    }

    fn in_single(&mut self, c: char) -> Result<(), String> {
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

    fn in_double(&mut self, c: char) -> Result<(), String> {
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
    fn newline_in_word(&mut self, c: char) -> Result<(), String> {
        if c == '\n' && (!self.pending.is_empty() || self.is_inside_heredoc()) {
            return self.lose("a line break inside quotes on the line of a heredoc");
        }
        Ok(())
    }

    fn is_inside_heredoc(&self) -> bool {
        self.frames.iter().any(|frame| matches!(frame, Frame::Heredoc(_)))
    }

    fn open_backtick(&mut self) -> Result<(), String> {
        self.mark_dynamic();
        self.open(Frame::Backtick(Backtick::default()))
    }

    fn in_backtick(&mut self, c: char) -> Result<(), String> {
        let is_in_double = matches!(
            self.frames.iter().rev().nth(1),
            Some(Frame::Double | Frame::Heredoc(_))
        );
        let Some(Frame::Backtick(tick)) = self.frames.last_mut() else {
            return Ok(());
        };
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

    /// The character behind a backslash.
    fn escaped(&mut self, c: char) -> Result<(), String> {
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
    fn dollar(&mut self, c: char) -> Result<(), String> {
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

    fn dollar_paren(&mut self, c: char) -> Result<(), String> {
        self.mark_dynamic();
        if c == '(' {
            return self.open(Frame::Arithmetic(Arithmetic::default()));
        }
        self.open(Frame::Code(Code::new(Place::Substitution)))?;
        if self.lost.is_some() { Ok(()) } else { self.step(c) }
    }

    fn in_parameter(&mut self, c: char) -> Result<(), String> {
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
    fn expands(&mut self, text: &str) -> Result<(), String> {
        let name_start = text.trim_start_matches(['#', '!']);
        let length = name_start
            .bytes()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == b'_')
            .count();
        let (name, rest) = name_start.split_at(length);
        let evaluates = text.starts_with('!')
            || rest.starts_with(['[', '@'])
            || (rest.starts_with(':')
                && !rest.starts_with(":-")
                && !rest.starts_with(":=")
                && !rest.starts_with(":?")
                && !rest.starts_with(":+"));
        if evaluates && self.has_value && !self.tainted.is_empty() {
            return Err(format!(
                "`${{{text}}}` evaluates variables as code or arithmetic in some shells; write the value itself where it is needed"
            ));
        }
        self.reads(name)
    }

    fn in_arithmetic(&mut self, c: char) -> Result<(), String> {
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

    fn in_heredoc(&mut self, c: char) -> Result<(), String> {
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

    /// One character of a list of commands, outside quotes.
    fn in_code(&mut self, c: char) -> Result<(), String> {
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
    fn bare(&mut self, c: char) -> Result<(), String> {
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

    fn begin_operator(&mut self, c: char) -> Result<(), String> {
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
    fn end_operator(&mut self) -> Result<(), String> {
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
                if self.has_value && !self.tainted.is_empty() {
                    return Err(evaluated("(("));
                }
                self.lose("`((`, which not every shell has; write `$(( ))`")
            }
            ")" => self.close_paren(),
            _ => self.end_command(&operator),
        }
    }

    fn open_paren(&mut self) -> Result<(), String> {
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

    fn define_function(&mut self) -> Result<(), String> {
        match self.code() {
            Some(code) if code.command.is_just_named => {
                code.command = Command::new();
                for name in ARGUMENTS {
                    self.tainted.entry(name.to_owned()).or_insert(MADE);
                }
                Ok(())
            }
            _ => self.lose("`()` here"),
        }
    }

    fn close_paren(&mut self) -> Result<(), String> {
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
    fn end_word(&mut self) -> Result<(), String> {
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
        match code.command.word(&word) {
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
            Event::Evaluates(what) if self.has_value && !self.tainted.is_empty() => Err(format!(
                "a variable that holds a value cannot be used with {what}"
            )),
            Event::Evaluates(what) => self.lose(what),
        }
    }

    fn add_heredoc(&mut self, word: Word, strips_tabs: bool) -> Result<(), String> {
        if self.is_inside_heredoc() {
            return self.lose("a heredoc inside a heredoc");
        }
        if word.literal().is_none() || word.text.contains('\n') || self.pending.len() >= 8 {
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
    fn end_command(&mut self, operator: &str) -> Result<(), String> {
        self.end_word()?;
        let has_value = self.has_value;
        let Some(code) = self.code() else {
            return Ok(());
        };
        if code.target.is_some() {
            return self.lose("a redirection without a target");
        }
        if code.command.runs_input() {
            if has_value && !code.command.reads_heredoc {
                return Err(INPUT_IS_CODE.to_owned());
            }
            self.line_runs_input = true;
            self.runs_input = true;
        }
        let Some(code) = self.code() else {
            return Ok(());
        };
        match (&mut code.command.mode, operator) {
            (Mode::Pattern { at_start }, "|") => *at_start = false,
            (Mode::Pattern { .. }, "\n") => {}
            (Mode::Pattern { .. }, _) => return self.lose("such a pattern of `case`"),
            (Mode::CaseIn, "\n") => {}
            (Mode::CaseWord | Mode::CaseIn | Mode::ForName, _) => {
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

    fn newline(&mut self) -> Result<(), String> {
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

    fn substitutions(&self) -> usize {
        self.frames.iter().filter(|frame| is_substitution(frame)).count()
    }

    fn begin_heredoc(&mut self) -> Result<(), String> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let pending = self.pending.remove(0);
        let is_nested = self.substitutions() > 0;
        self.open(Frame::Heredoc(Heredoc::new(pending, is_nested)))
    }

    /// A variable is expanded: refuse it where a value could not stand, if it holds one.
    fn reads(&mut self, name: &str) -> Result<(), String> {
        let Some(taint) = self.tainted.get(name).copied() else {
            return Ok(());
        };
        if matches!(self.frames.last(), Some(Frame::Arithmetic(_))) {
            return Err(evaluated(name));
        }
        let is_bare = self.is_in_code();
        let innermost = self
            .frames
            .iter()
            .rposition(|frame| matches!(frame, Frame::Code(_)));
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
                        .check_value(word, true)
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

    /// Checks the innermost context and writes the value for it.
    fn escape(&mut self, value: Option<&Value>) -> Result<String, String> {
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
    fn enter_word(&mut self, value: Option<&Value>) -> Result<(), String> {
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
            Some(Target::File) => return Err("a value cannot be the target of a redirection; write the file's name out, or give the value to a program: tee -- {{ v }}".to_owned()),
            Some(Target::HereString) => return Err("`<<<` is not known to every shell; write printf '%s\\n' {{ v }} | …".to_owned()),
            Some(Target::Heredoc { .. }) => return Err("a value cannot be the delimiter of a heredoc; write a word of your own".to_owned()),
        }
        let word = code.word.get_or_insert_default();
        if word.has_dollar_quote {
            return Err(DOLLAR_QUOTE.to_owned());
        }
        if word.has_brace {
            return Err(BRACES.to_owned());
        }
        code.command.check_value(word, false)?;
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
    fn mark_enclosing(&mut self) -> Result<(), String> {
        let innermost = self
            .frames
            .iter()
            .rposition(|frame| matches!(frame, Frame::Code(_)));
        let is_own = self
            .frames
            .last()
            .is_some_and(|frame| matches!(frame, Frame::Code(_) | Frame::Single { .. } | Frame::Double));
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
                        command.check_value(word, true)?;
                    }
                    word.taint = Some(MADE.join(word.taint));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Notes which variables hold values once `word` has been read.
fn taint(tainted: &mut BTreeMap<String, Taint>, command: &Command, word: &Word) {
    let mut note = |name: &str, taint: Taint| {
        let known = tainted.get(name).copied();
        tainted.insert(name.to_owned(), taint.join(known));
    };
    if let Some(taint) = word.taint {
        let name = if command.mode == Mode::ForWords {
            &command.loop_variable
        } else {
            &word.assigns
        };
        if let Some(name) = name {
            note(name, taint);
        }
        if command.sets_arguments() {
            ARGUMENTS.iter().for_each(|name| note(name, taint));
        }
    }
    if command.fills_variables() {
        note("REPLY", MADE);
        if let Some(name) = word.literal().filter(|name| is_name(name)) {
            note(name, MADE);
        }
    }
}

/// What a program made of a value.
const MADE: Taint = Taint {
    is_direct: false,
    begins_option: false,
};

/// A function's or a script's arguments.
const ARGUMENTS: [&str; 11] = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "@", "*"];

impl Code {
    fn new(place: Place) -> Self {
        Self {
            place,
            command: Command::new(),
            word: None,
            operator: String::new(),
            target: None,
            open_cases: 0,
        }
    }
}

const OPERATORS: [&str; 20] = [
    "()", "&&", "&>", "&>>", "||", "|&", ";;", ";&", ";;&", "<<", "<<-", "<<<", "<&", "<>", "<(", ">>", ">&",
    ">|", ">(", "((",
];

const DOLLAR_QUOTE: &str = "a value beside `$'…'` or `$\"…\"` is read in more than one way; write the text in plain quotes, or use printf";
const BRACES: &str =
    "a value in a word with an unquoted `{` is read in more than one way; put the braces in quotes";
const OPTION: &str = "the value begins with `-` and would be read as an option; put it behind a bare `--`, or behind `--option=`";
const INPUT_IS_CODE: &str = "this program runs what it reads, and a value could be among that; give it the code with `-c`, and the value as an argument: sh -c '… \"$1\"' sh {{ v }}";

fn evaluated(name: &str) -> String {
    format!(
        "`{name}` would evaluate, as arithmetic or code, a variable that holds a value; write the value itself there: $(( {{{{ v }}}} + 1 ))"
    )
}

fn is_substitution(frame: &Frame) -> bool {
    matches!(
        frame,
        Frame::Code(Code {
            place: Place::Substitution,
            ..
        })
    )
}

fn is_name_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(is_name_character) && !text.starts_with(|c: char| c.is_ascii_digit())
}
