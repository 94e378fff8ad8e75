//! The shell lexer: a machine that is fed a command character by character, with values among it,
//! and knows at each value in which context of the shell's grammar it stands.
//!
//! - It is fed either a template's text and unknown values (when a template is compiled: every
//!   path is walked, and states are compared where they meet), or the text and the real values
//!   (when it is rendered). Both go through the same code, so what was admitted is what is run.
//! - What it does not follow with certainty makes it *lost*: then it refuses every further value,
//!   and nothing else. A command without values is never refused.
//! - It follows what dash, bash and busybox agree on; where they differ, it is lost or refuses.

mod code;
mod expansion;
mod placing;

use std::collections::{BTreeMap, BTreeSet};

use super::Value;
use super::command::{Command, Event, Mode, Taint, Word};
use super::escape;
use super::heredoc::{Heredoc, Pending};
use super::programs;

/// Nesting of quotes and expansions; deeper is not followed.
const FRAMES_MAX: usize = 32;
/// Walks through the code of `sh -c` until no further variable is found to hold a value.
const INNER_WALKS_MAX: usize = 8;

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
    /// A command that runs its input has none of its own, so that it reads a function's, or a loop's.
    runs_outer_input: bool,
    /// A `|` came behind a value, which may be what goes through it.
    pipes_value: bool,
    defines_functions: bool,
    /// The name in progress behind what is not followed, and whether a `|` stands in front of it.
    lost_name: String,
    lost_pipe: bool,
    /// This is code inside a command, of which only what it evaluates matters.
    is_inner: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Ahead {
    None,
    Backslash,
    Dollar,
    DollarBackslash,
    DollarParen,
    Variable(String),
    VariableBackslash(String),
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
    /// The name in progress, a `$` in front of it included.
    name: String,
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
            runs_outer_input: false,
            pipes_value: false,
            defines_functions: false,
            lost_name: String::new(),
            lost_pipe: false,
            is_inner: false,
        }
    }

    /// A machine that takes variables to hold values from the beginning: those of `given` just what came from outside,
    /// those of `made` something made of it.
    pub fn with_tainted(given: &BTreeSet<String>, made: &BTreeSet<String>) -> Self {
        let taint = |is_direct| Taint {
            is_direct,
            begins_option: false,
        };
        let made = made.iter().map(|name| (name.clone(), taint(false)));
        let given = given.iter().map(|name| (name.clone(), taint(true)));
        let tainted = made.chain(given).collect();
        Self {
            tainted,
            ..Self::new()
        }
    }

    /// Whether `code`, which a command of its own runs, evaluates a variable that holds a value.
    fn check_inner(&self, code: &str, with_arguments: bool) -> Result<(), String> {
        let mut tainted: BTreeMap<String, Taint> =
            self.tainted.keys().map(|name| (name.clone(), MADE)).collect();
        if with_arguments {
            tainted.extend(ARGUMENTS.map(|name| (name.to_owned(), MADE)));
        }
        for _ in 0..INNER_WALKS_MAX {
            let mut inner = Self {
                tainted: tainted.clone(),
                has_value: true,
                is_inner: true,
                ..Self::new()
            };
            if !inner.holds_in_variables() {
                return Ok(());
            }
            code.chars().chain(['\n']).try_for_each(|c| inner.text(c))?;
            let known = tainted.len();
            tainted.extend(inner.tainted.into_keys().map(|name| (name, MADE)));
            if tainted.len() == known {
                return Ok(());
            }
        }
        Err("it hands a value on from variable to variable, too often to follow".to_owned())
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
            return self.text_behind_lost(c);
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
                if c == '\\' {
                    self.ahead = Ahead::VariableBackslash(name);
                    return Ok(());
                }
                // The character counts even when the variable is refused: more errors may follow.
                let read = self.reads(&name);
                read.and(self.step(c))
            }
            Ahead::VariableBackslash(_) if c == '\n' => {
                self.lose("a variable's name that is continued on the next line")
            }
            Ahead::VariableBackslash(name) => {
                let read = self.reads(&name);
                self.ahead = Ahead::Backslash;
                read.and(self.text(c))
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
            Ahead::Backslash | Ahead::DollarBackslash | Ahead::VariableBackslash(_) => {
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
        if self.defines_functions && self.runs_outer_input {
            return Err(INPUT_IS_CODE.to_owned());
        }
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
            return self.text_behind_lost('\n');
        }
        if let Ahead::Variable(name) | Ahead::VariableBackslash(name) =
            std::mem::replace(&mut self.ahead, Ahead::None)
        {
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

    /// Stops following: every further value is refused, and here too where one is held already:
    /// in an expansion that is not over, or in a variable that may be read behind this.
    fn lose(&mut self, what: &'static str) -> Result<(), String> {
        self.lost = Some(what);
        if self.has_value && self.holds_in_variables() && !self.is_inner {
            return Err(format!(
                "{what} may not follow where a variable holds a value, since what becomes of that variable cannot be told; write it in a way that every shell reads alike"
            ));
        }
        let holds = |frame: &Frame| matches!(frame, Frame::Arithmetic(arithmetic) if arithmetic.has_value);
        if self.frames.iter().any(holds) {
            return Err(format!(
                "a value stands inside {what}, which shells read in more than one way"
            ));
        }
        Ok(())
    }

    /// Whether a variable of the template's own holds a value.
    fn holds_in_variables(&self) -> bool {
        self.tainted
            .keys()
            .any(|name| !SET_BY_THE_SHELL.contains(&name.as_str()))
    }

    /// Behind what is not followed, a value that stands in front of it may still be piped into a
    /// program that runs it: any such name is refused.
    fn text_behind_lost(&mut self, c: char) -> Result<(), String> {
        if !self.has_value || self.is_inner {
            return Ok(());
        }
        if self.lost_pipe && matches!(c, '$' | '`') {
            return Err(INPUT_IS_CODE.to_owned());
        }
        self.lost_pipe = c == '|' || self.lost_pipe && " \t\n\"'({".contains(c);
        if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') {
            if self.lost_name.len() < 32 {
                self.lost_name.push(c);
            }
            return Ok(());
        }
        let name = std::mem::take(&mut self.lost_name);
        match self.lost {
            Some(what) if programs::may_run_input(&name) => Err(format!(
                "`{name}` runs what it reads as code, and behind {what} it cannot be told whether that is a value"
            )),
            _ => Ok(()),
        }
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

    fn is_inside_heredoc(&self) -> bool {
        self.frames.iter().any(|frame| matches!(frame, Frame::Heredoc(_)))
    }
}

/// Notes which variables hold values once `word` has been read.
fn taint(tainted: &mut BTreeMap<String, Taint>, command: &Command, word: &Word) {
    if command.mode == Mode::ForIn && word.literal() == Some("do") {
        note_loop_over_arguments(tainted, command);
        return;
    }
    let mut note = |name: &str, taint: Taint| {
        let known = tainted.get(name).copied();
        tainted.insert(name.to_owned(), taint.join(known));
    };
    if let Some(taint) = word.taint {
        note("_", taint);
        note("PWD", MADE);
        note("OLDPWD", MADE);
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
    if let (None, Some(name), Some(text)) = (word.taint, &word.assigns, word.literal())
        && let Some((_, other)) = text.split_once('=')
        && tainted.contains_key(other)
    {
        // It names a variable that holds a value, and arithmetic would follow it there.
        tainted.entry(name.clone()).or_insert(MADE);
    }
    let mut note = |name: &str, taint: Taint| {
        let known = tainted.get(name).copied();
        tainted.insert(name.to_owned(), taint.join(known));
    };
    if command.fills_variables()
        && let Some(name) = word.literal().filter(|name| is_name(name))
    {
        note(name, MADE);
    }
}

/// `for x do` and `for x;` go through the arguments.
fn note_loop_over_arguments(tainted: &mut BTreeMap<String, Taint>, command: &Command) {
    if let (Some(name), Some(taint)) = (&command.loop_variable, tainted.get("@").copied()) {
        let known = tainted.get(name).copied();
        tainted.insert(name.clone(), taint.join(known));
    }
}

/// What `read`, `mapfile` and `getopts` fill without naming it.
const FILLED_UNNAMED: [&str; 3] = ["REPLY", "MAPFILE", "OPTARG"];

/// What a program made of a value.
const MADE: Taint = Taint {
    is_direct: false,
    begins_option: false,
};

/// A function's or a script's arguments.
const ARGUMENTS: [&str; 11] = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "@", "*"];

/// Variables that the shell itself fills with a value that stood in a command.
const SET_BY_THE_SHELL: [&str; 3] = ["_", "PWD", "OLDPWD"];

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
