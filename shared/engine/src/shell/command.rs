//! Where in a simple command a word stands, and whether a value may stand in it.
//!
//! - This sees words as they end, and values as they come; it keeps of a word only what it needs,
//!   so that a template's loop leads back to the same state.
//! - Every decision is about the words of the template; none is about a value.

use super::programs::{self, Listed};
use super::reading::{Reading, UNCERTAIN, check_assigned, has_code_letter, read_twice};

/// A word that is being read.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Word {
    /// What the shell will make of its literal parts.
    pub text: String,
    /// `text` was longer than what is kept.
    pub is_cut: bool,
    pub is_quoted: bool,
    /// It holds an expansion (`$x`, `$( )`), quoted or not.
    pub is_dynamic: bool,
    /// It begins with an expansion, and so with anything.
    pub starts_dynamic: bool,
    /// It holds an expansion outside quotes, which may become no word, or many.
    pub may_split: bool,
    pub has_value: bool,
    pub has_brace: bool,
    /// It holds `$'…'` or `$"…"`.
    pub has_dollar_quote: bool,
    /// The name in front of an unquoted `=`.
    pub assigns: Option<String>,
    /// Something of it (of what it assigns) is surely there, so that what follows does not begin it.
    pub is_begun: bool,
    /// What it holds of the template's values, itself or through variables.
    pub taint: Option<Taint>,
}

/// How much of a value a variable or a word holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Taint {
    /// The value itself, not only what some program made of it.
    pub is_direct: bool,
    /// It begins with `-`, as far as is known.
    pub begins_option: bool,
}

impl Taint {
    pub fn join(self, other: Option<Self>) -> Self {
        let other = other.unwrap_or(self);
        Self {
            is_direct: self.is_direct || other.is_direct,
            begins_option: self.begins_option || other.begins_option,
        }
    }
}

impl Word {
    /// The word itself, where the template alone decides it.
    pub fn literal(&self) -> Option<&str> {
        (!self.is_dynamic && !self.has_value && !self.is_cut).then_some(self.text.as_str())
    }

    /// Adds a literal character, of which the first `keep` bytes matter. Behind a value
    /// none does: the word is no name any more.
    pub fn push(&mut self, c: char, keep: usize) {
        if self.has_value {
            self.is_begun = true;
        } else if self.text.len() < keep {
            self.text.push(c);
        } else {
            self.is_cut = true;
        }
        self.is_begun = true;
    }
}

/// A simple command so far, or the head of a compound one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Command {
    pub mode: Mode,
    /// No word, assignment or redirection came yet, so that reserved words are reserved.
    pub is_first: bool,
    /// It follows a `|`.
    pub is_piped: bool,
    /// Inside `find -exec`: `;` or `+` leads back.
    in_find: bool,
    in_xargs: bool,
    /// `<` gives it a file to read.
    pub reads_file: bool,
    /// A heredoc is its input.
    pub reads_heredoc: bool,
    /// Its name alone has been read, so that `(` would define a function.
    pub is_just_named: bool,
    /// The variable of `for`.
    pub loop_variable: Option<String>,
    /// Its name is an expansion, and could be a shell's.
    is_put_together: bool,
    /// A word that is no option came behind such a name, so that a shell would run that file.
    has_operand: bool,
    /// The code it was given evaluates its arguments.
    pub evaluates_arguments: bool,
    /// It prints the words it is given.
    pub prints_words: bool,
    /// It is a program that only reads and prints text.
    is_text_tool: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Mode {
    /// The next word is a command's name, a reserved word or an assignment.
    Name,
    /// The same behind a program such as `env`, where nothing is reserved.
    NameBehind {
        assigns: bool,
    },
    Plain {
        ended: bool,
        runner: Option<Listed>,
        code_due: bool,
        remote: Remote,
    },
    Program(Reading),
    Declaration,
    Find,
    /// No value may follow in this command.
    Refused(&'static str),
    ForName,
    ForIn,
    ForWords,
    CaseWord,
    CaseIn,
    Pattern {
        at_start: bool,
    },
    /// Behind `fi`, `done`, `esac`, `}` or `)`: only redirections may follow.
    Compound,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remote {
    No,
    /// `kubectl` and its like.
    Client,
    /// `docker` and its like.
    Containers,
    /// `docker exec` and its like: somewhere among the words a command begins.
    RunsSomewhere,
    /// `kubectl exec` and its like: a command follows `--`.
    Runs,
}

/// What a reserved word or a resolved name means beyond this command.
#[derive(Debug, PartialEq)]
pub(super) enum Event {
    None,
    /// `case … in`: patterns follow.
    CaseOpens,
    CaseCloses,
    /// The lexer does not follow this any further.
    Lost(&'static str),
    /// What stands here evaluates variables as code, wherever they come from.
    Evaluates(&'static str),
}

pub(super) const NAME_REFUSED: &str =
    "a value cannot be the name of a command; write the name out, and pass the value as an argument";

/// Words that begin a compound command where they are reserved.
const COMPOUND: [&str; 8] = ["{", "if", "while", "until", "for", "case", "!", "[["];

impl Command {
    pub fn new() -> Self {
        Self {
            mode: Mode::Name,
            is_first: true,
            is_piped: false,
            in_find: false,
            in_xargs: false,
            reads_file: false,
            reads_heredoc: false,
            is_just_named: false,
            loop_variable: None,
            is_put_together: false,
            has_operand: false,
            is_text_tool: false,
            prints_words: false,
            evaluates_arguments: false,
        }
    }

    pub fn with_mode(mode: Mode) -> Self {
        Self { mode, ..Self::new() }
    }

    /// How many bytes of a word's text matter here.
    pub fn keeps(&self) -> usize {
        match &self.mode {
            Mode::Plain { .. } | Mode::Find => 24,
            Mode::Refused(_) | Mode::ForWords | Mode::CaseWord => 0,
            Mode::Pattern { .. } | Mode::Compound => 8,
            Mode::Program(_) => 1024,
            _ => 256,
        }
    }

    /// Whether a word in progress may be an assignment, judged by its `=`.
    pub fn may_assign(&self) -> bool {
        match &self.mode {
            Mode::Name | Mode::Declaration => true,
            Mode::NameBehind { assigns } => *assigns,
            Mode::Program(reading) => reading.program.assigns && reading.operands == 0,
            _ => false,
        }
    }

    /// Whether a string that begins this word with `-` would be an option.
    pub fn reads_options(&self) -> bool {
        match &self.mode {
            Mode::Plain { ended, .. } => !ended,
            // Behind `--` its expressions still begin with `-`.
            Mode::Find => true,
            Mode::Program(reading) => !reading.ended,
            Mode::CaseWord | Mode::Pattern { .. } => false,
            _ => true,
        }
    }

    /// Refuses a value where it stands, itself or as an expansion makes it.
    pub fn check_value(&self, word: &Word) -> Result<(), String> {
        match &self.mode {
            Mode::Name | Mode::NameBehind { .. } => match &word.assigns {
                Some(name) => check_assigned(name),
                None => Err(NAME_REFUSED.to_owned()),
            },
            Mode::Declaration => match &word.assigns {
                Some(name) => check_assigned(name),
                None => Err(
                    "a value cannot be the name of a variable; write the name out: `export NAME={{ v }}`"
                        .to_owned(),
                ),
            },
            Mode::Plain { runner, code_due, .. } => match runner {
                Some(listed) if *code_due => Err(read_twice(*listed)),
                Some(listed) if word.text.starts_with('-') && has_code_letter(listed.program, &word.text) => {
                    Err(read_twice(*listed))
                }
                _ if *code_due || is_command_option(word.text.split('=').next().unwrap_or_default()) => {
                    Err(COMMAND_OPTION.to_owned())
                }
                _ => Ok(()),
            },
            Mode::Program(reading) if self.evaluates_arguments => Err(read_twice(reading.listed())),
            Mode::Program(reading) => reading.check_value(word),
            Mode::Refused(reason) => Err((*reason).to_owned()),
            Mode::ForName => {
                Err("a value cannot be the name of a loop's variable; write the name out".to_owned())
            }
            Mode::ForIn | Mode::CaseIn | Mode::Compound => {
                Err("a value cannot stand here, where the shell expects a word of its own".to_owned())
            }
            Mode::ForWords => self.loop_variable.as_deref().map_or(Ok(()), check_assigned),
            Mode::Find | Mode::CaseWord | Mode::Pattern { .. } => Ok(()),
        }
    }

    /// Takes a word that has ended.
    pub fn word(&mut self, word: &Word) -> Event {
        self.is_just_named = false;
        let is_first = std::mem::replace(&mut self.is_first, false);
        if self.in_find && matches!(word.literal(), Some(";" | "+")) {
            self.mode = Mode::Find;
            return Event::None;
        }
        match &mut self.mode {
            Mode::Name => {
                if is_first
                    && !word.is_quoted
                    && let Some(reserved) = word.literal()
                    && let Some(event) = self.reserved(reserved)
                {
                    return event;
                }
                self.named(word)
            }
            Mode::NameBehind { .. } => self.named(word),
            Mode::Plain { .. } => {
                self.plain(word);
                Event::None
            }
            Mode::Program(reading) => {
                if reading.name == "set" && !reading.ended && !is_known_set_option(word) {
                    return Event::Lost("an option of `set` that may change how the shell reads");
                }
                if reading.word(word) {
                    self.in_xargs |= reading.name == "xargs";
                    if reading.uncertain {
                        self.mode = Mode::Refused(UNCERTAIN);
                        return Event::None;
                    }
                    self.mode = Mode::NameBehind { assigns: false };
                    return self.named(word);
                }
                Event::None
            }
            Mode::Declaration => {
                let is_plain_option =
                    |text: &str| text.starts_with('-') && text.chars().skip(1).all(|c| "xrgp-".contains(c));
                let is_clear = word.assigns.is_some() || word.literal().is_some();
                if !is_clear
                    || word.text.starts_with(['-', '+']) && !word.literal().is_some_and(is_plain_option)
                {
                    return Event::Evaluates(
                        "an option with which the shell evaluates what is assigned (`declare -i` and the like)",
                    );
                }
                Event::None
            }
            Mode::Find => {
                // The expansions of a word may be empty, and leave `-exec`.
                if !word.has_value && programs::FIND_COMMANDS.contains(&word.text.as_str()) {
                    self.in_find = true;
                    self.mode = Mode::NameBehind { assigns: false };
                }
                Event::None
            }
            Mode::ForName => {
                self.loop_variable = word.literal().map(str::to_owned);
                self.mode = Mode::ForIn;
                Event::None
            }
            Mode::ForIn => {
                match word.literal() {
                    Some("in") => self.mode = Mode::ForWords,
                    Some("do") => *self = Self::new(),
                    _ => return Event::Lost("`for` without `in`"),
                }
                Event::None
            }
            Mode::CaseWord => {
                self.mode = Mode::CaseIn;
                Event::None
            }
            Mode::CaseIn if word.literal() == Some("in") => {
                self.mode = Mode::Pattern { at_start: true };
                Event::CaseOpens
            }
            Mode::CaseIn => Event::Lost("`case` without `in`"),
            Mode::Pattern { at_start } => {
                if *at_start && !word.is_quoted && word.literal() == Some("esac") {
                    self.mode = Mode::Compound;
                    return Event::CaseCloses;
                }
                *at_start = false;
                Event::None
            }
            Mode::Compound => match word.literal().and_then(|text| self.reserved(text)) {
                Some(event) => event,
                None => Event::Lost("a word behind a compound command"),
            },
            Mode::Refused(_) | Mode::ForWords => Event::None,
        }
    }

    /// A reserved word's effect; `None` for any other word.
    fn reserved(&mut self, word: &str) -> Option<Event> {
        let piped = self.is_piped;
        match word {
            "if" | "then" | "else" | "elif" | "while" | "until" | "do" | "!" | "{" => {
                *self = Self {
                    is_piped: piped,
                    ..Self::new()
                }
            }
            "fi" | "done" | "}" => self.mode = Mode::Compound,
            "esac" => {
                self.mode = Mode::Compound;
                return Some(Event::CaseCloses);
            }
            "for" => self.mode = Mode::ForName,
            "case" => self.mode = Mode::CaseWord,
            "[[" => {
                self.mode = Mode::Refused("not every shell has `[[`; write `[ … ]`");
                return Some(Event::Evaluates("`[[`, which not every shell has; write `[ … ]`"));
            }
            "select" | "function" | "coproc" => {
                return Some(Event::Lost(
                    "a word that not every shell knows (select, function, coproc)",
                ));
            }
            _ => return None,
        }
        Some(Event::None)
    }

    /// Takes the name of a command, or an assignment in front of it.
    fn named(&mut self, word: &Word) -> Event {
        if word.assigns.is_some() && self.may_assign() {
            return Event::None;
        }
        // `"$dir"/program` names its program; a name put together otherwise could become any.
        let in_directory = word.is_dynamic && !word.has_value && !word.is_cut && word.text.contains('/');
        if word.is_dynamic && !word.text.is_empty() && !in_directory {
            self.is_put_together = true;
            self.mode = Mode::Refused(
                "the name of this command is put together, and could become one that reads code; write it out",
            );
            return Event::None;
        }
        if !word.is_quoted && word.text != "[" && word.text.contains(['*', '?', '[']) {
            self.is_put_together = true;
            self.mode =
                Mode::Refused("the name of this command is a pattern, and could become any; write it out");
            return Event::None;
        }
        if self.in_xargs && !word.literal().is_some_and(is_plain_name) {
            self.mode =
                Mode::Refused("`xargs` could put what it reads into this command's name; write the name out");
            return Event::None;
        }
        let literal = if in_directory {
            Some(word.text.as_str())
        } else {
            word.literal()
        };
        let Some(name) = literal else {
            self.is_put_together = true;
            if word.may_split {
                // It may expand to nothing, and then the next word is the name.
                self.mode = Mode::NameBehind { assigns: false };
            } else {
                self.mode = Mode::Plain {
                    ended: false,
                    runner: programs::find("sh"),
                    code_due: false,
                    remote: Remote::No,
                };
            }
            return Event::None;
        };
        if name.starts_with('-') && name.len() > 1 {
            // An option of the program that an unquoted expansion in front of it named.
            self.mode = Mode::Plain {
                ended: false,
                runner: programs::find("sh"),
                code_due: false,
                remote: Remote::No,
            };
            self.plain(word);
            return Event::None;
        }
        self.has_operand = self.is_put_together;
        let is_behind = matches!(self.mode, Mode::NameBehind { .. });
        if is_behind && COMPOUND.contains(&name) {
            self.mode = Mode::Refused(
                "to some shells a compound command begins here, to others a program of that name",
            );
            return Event::None;
        }
        self.is_just_named = true;
        let base = name.rsplit('/').next().unwrap_or(name);
        self.prints_words = matches!(base, "echo" | "printf");
        if programs::DECLARATIONS.contains(&base) {
            self.mode = Mode::Declaration;
        } else if base == "alias" {
            return Event::Lost("`alias`, behind which words mean something else");
        } else if base == "shopt" {
            return Event::Lost("`shopt`, which not every shell has");
        } else if base == "find" {
            self.mode = Mode::Find;
        } else if let Some(listed) = programs::find(name) {
            self.mode = Mode::Program(Reading::new(listed));
            if base == "let" {
                return Event::Evaluates("`let`, which evaluates variables; write `$(( … ))`");
            }
        } else {
            self.is_text_tool = programs::TEXT_TOOLS.contains(&base);
            let remote = if programs::REMOTE.contains(&base) {
                Remote::Client
            } else if programs::CONTAINERS.contains(&base) {
                Remote::Containers
            } else {
                Remote::No
            };
            self.mode = Mode::Plain {
                ended: false,
                runner: None,
                code_due: false,
                remote,
            };
        }
        Event::None
    }

    fn plain(&mut self, word: &Word) {
        let Mode::Plain {
            ended,
            runner,
            code_due,
            remote,
        } = &mut self.mode
        else {
            return;
        };
        // The expansions of a word may be empty, and leave `sh` or `-c`.
        let text = match word.literal() {
            Some(text) => text,
            None if !word.has_value && !word.text.is_empty() && word.text != "--" => word.text.as_str(),
            None => {
                *code_due = false;
                self.has_operand = true;
                return;
            }
        };
        if text == "--" && *remote == Remote::Runs {
            self.mode = Mode::NameBehind { assigns: false };
            return;
        }
        if text == "--" {
            *ended = true;
        } else if text.starts_with('-') {
            *code_due |= runner.is_some_and(|listed| has_code_letter(listed.program, text))
                || (*remote == Remote::No && is_command_option(text));
            // `--entrypoint=sh`
            let named = text.split_once('=').and_then(|(_, named)| programs::find(named));
            *runner = named.filter(|listed| listed.program.runs_input).or(*runner);
            return;
        }
        let is_argument = std::mem::take(code_due);
        self.has_operand = true;
        if matches!(text, "eval" | "source") {
            self.mode = Mode::Refused(
                "`eval` and `source` read what follows as code once more; call the command directly",
            );
            return;
        }
        // Once named it stays: `sh -o pipefail -c …` has words in between. To `kubectl get node` it is none.
        let is_runner = |listed: &Listed| listed.program.runs_input && !listed.program.code.is_empty();
        if *remote != Remote::Client && !self.is_text_tool {
            *runner = programs::find(text).filter(is_runner).or(*runner);
        }
        if *remote == Remote::RunsSomewhere
            && !is_argument
            && programs::find(text).is_some_and(|listed| listed.reads_code())
        {
            self.named(word);
            return;
        }
        if programs::REMOTE_VERBS.contains(&text) {
            match *remote {
                Remote::Client => *remote = Remote::Runs,
                Remote::Containers => *remote = Remote::RunsSomewhere,
                _ => {}
            }
        }
    }

    /// Whether an unquoted expansion here becomes several words.
    pub fn splits(&self) -> bool {
        matches!(
            self.mode,
            Mode::Plain { .. } | Mode::Program(_) | Mode::Find | Mode::Declaration | Mode::ForWords
        )
    }

    /// Whether a word names a variable that is filled from the input.
    pub fn fills_variables(&self) -> bool {
        matches!(&self.mode, Mode::Program(reading) if matches!(reading.name, "read" | "mapfile" | "readarray" | "getopts"))
    }

    /// What of this word is a shell's code, and the template's own.
    pub fn code<'w>(&self, word: &'w Word) -> Option<&'w str> {
        match &self.mode {
            Mode::Program(reading) if reading.takes_shell_code(word) => word.literal(),
            _ => None,
        }
    }

    /// Whether words behind the code are its arguments.
    pub fn passes_arguments(&self) -> bool {
        matches!(&self.mode, Mode::Program(reading) if reading.is_shell())
    }

    /// Whether what this command reads is run as code.
    pub fn runs_input(&self) -> bool {
        match &self.mode {
            Mode::Program(reading) => {
                reading.runs_input(self.reads_file) || (self.in_xargs && reading.listed().reads_code())
            }
            // What `xargs` adds or puts in can be another `-exec`, or code among the words.
            Mode::Find => self.in_xargs,
            Mode::Plain { runner, .. } => self.in_xargs && (runner.is_some() || self.is_put_together),
            Mode::NameBehind { .. } | Mode::Refused(_) => self.in_xargs,
            _ => false,
        }
    }

    /// Whether this command's name could become a shell's that reads its input. In a heredoc of its
    /// own that is so as long as no word names a file; behind a pipe an expansion may hold all.
    pub fn may_run_input(&self, is_piped: bool) -> bool {
        let may = match &self.mode {
            Mode::Program(reading) => reading.may_run_input,
            // `retry 3 sh`, but not `grep node`.
            Mode::Plain { runner, .. } => runner.is_some() && !self.is_text_tool,
            _ => false,
        };
        !self.reads_file && (may || self.is_put_together && (is_piped || !self.has_operand))
    }

    /// Whether the values of this command's words become a shell's `$1`, `$2`, …
    pub fn sets_arguments(&self) -> bool {
        matches!(&self.mode, Mode::Program(reading) if reading.program.names == ["set"])
    }
}

const COMMAND_OPTION: &str = "an option such as `--command` takes text that is read as code once more, so that escaping it for the shell is not enough; pass the value as an argument of its own";

/// Options that take a command, whatever the program.
fn is_command_option(option: &str) -> bool {
    matches!(
        option,
        "--command" | "--eval" | "--exec" | "--ssh-command" | "--remote-command" | "--post-renderer"
    )
}

/// Options of `set` that leave alone how the shell reads, and the words that belong to them.
fn is_known_set_option(word: &Word) -> bool {
    let Some(text) = word.literal() else {
        return false;
    };
    if matches!(text, "keyword" | "posix" | "histexpand" | "history" | "noexec") {
        return false;
    }
    !text.starts_with(['-', '+']) || text.chars().skip(1).all(|c| "-abCefhmouvxET".contains(c))
}

fn is_plain_name(name: &str) -> bool {
    name.chars()
        .all(|c| c.is_ascii_alphanumeric() || "_-./+".contains(c))
}
