//! The words of a listed program, one by one: options, their arguments, operands, and so where code
//! stands or another command begins.
//!
//! - Once an option is not known, the words behind it cannot be told apart, and no value may follow.

use super::command::{NAME_REFUSED, Word};
use super::programs::{self, Listed, Operand, Program};

pub(super) const UNCERTAIN: &str = "with these options it cannot be told which words are read as code; write them so that each stands by itself, and the value behind them";

/// A listed program, while its words are read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Reading {
    pub name: &'static str,
    pub program: &'static Program,
    pub operands: u8,
    /// The code (or its file) came with an option.
    given: bool,
    code_due: bool,
    args_due: u8,
    pub ended: bool,
    /// The words cannot be told apart any more.
    pub uncertain: bool,
    /// It was told to run what it reads.
    runs_input: bool,
    /// The word in front holds a value.
    follows_value: bool,
    /// Its code names a program that may run what it reads.
    pub may_run_input: bool,
}

impl Reading {
    pub fn new(listed: Listed) -> Self {
        Self {
            name: listed.name,
            program: listed.program,
            operands: 0,
            given: false,
            code_due: false,
            args_due: 0,
            ended: false,
            uncertain: false,
            runs_input: false,
            follows_value: false,
            may_run_input: false,
        }
    }

    pub fn listed(&self) -> Listed {
        Listed {
            program: self.program,
            name: self.name,
        }
    }

    /// Whether the code of `-c` is the first operand, as in a shell, and not the next word.
    pub fn is_shell(&self) -> bool {
        self.program.names[0] == "sh"
    }

    fn operand(&self) -> Operand {
        let skipped = usize::from(self.given && self.program.code_replaces);
        let list = self.program.operands;
        list[(usize::from(self.operands) + skipped).min(list.len() - 1)]
    }

    fn expects_options(&self) -> bool {
        !self.ended && (self.operands == 0 || self.program.permutes)
    }

    /// Whether the place of a word changes what it means.
    fn is_positional(&self) -> bool {
        self.operand() != Operand::Plain
            || usize::from(self.operands) + 1 < self.program.operands.len()
            || (self.expects_options() && !self.program.code.is_empty())
    }

    pub fn check_value(&self, word: &Word) -> Result<(), String> {
        let program = self.program;
        if self.is_test() && self.follows_value {
            return Err("a value next to another one could become an operator of `test`; write the operator between them".to_owned());
        }
        if self.reads_hosts() && word.text.contains(':') {
            return Err(read_twice(self.listed()));
        }
        if self.uncertain {
            return Err(UNCERTAIN.to_owned());
        }
        if self.code_due {
            return Err(read_twice(self.listed()));
        }
        if self.args_due > 0 {
            return Ok(());
        }
        if self.expects_options() && word.text.starts_with('-') {
            return self.check_glued(word);
        }
        if program.assigns
            && let Some(name) = &word.assigns
        {
            return check_assigned(name);
        }
        match self.operand() {
            Operand::Plain => Ok(()),
            _ if self.ended && program.names == ["set"] => Ok(()),
            Operand::Code => Err(read_twice(self.listed())),
            Operand::File if self.name == "set" => Err(program.remedy.to_owned()),
            Operand::File => Err(format!(
                "`{}` would run the file that the value names; {}",
                self.name, program.remedy
            )),
            Operand::Command => Err(NAME_REFUSED.to_owned()),
        }
    }

    /// A value behind the beginning of an option, in the same word.
    fn check_glued(&self, word: &Word) -> Result<(), String> {
        let program = self.program;
        if let Some(long) = word.text.strip_prefix("--") {
            return match long.split_once('=') {
                Some((name, _)) if program.code_long.iter().any(|code| code[2..] == *name) => {
                    Err(read_twice(self.listed()))
                }
                Some(_) if !word.is_cut => Ok(()),
                _ => Err("a value cannot be an option's name; write the option out".to_owned()),
            };
        }
        for letter in word.text.chars().skip(1) {
            if program.code.contains(letter) {
                return Err(read_twice(self.listed()));
            }
            if program.args.contains(letter) {
                return Ok(());
            }
        }
        Err("a value cannot be an option's name; write the option out".to_owned())
    }

    /// Whether this word is code of the shell's: all of it, not one of the words of `eval echo x`.
    pub fn takes_shell_code(&self, word: &Word) -> bool {
        let is_option = self.expects_options() && word.text.starts_with(['-', '+']);
        let is_first = self.operands == 0 && matches!(self.name, "eval" | "trap");
        !is_option && (is_first || self.is_shell() && self.code_due && self.args_due == 0)
    }

    fn is_test(&self) -> bool {
        self.program.names[0] == "test"
    }

    /// What stands behind the host's name is read by a shell there.
    fn reads_hosts(&self) -> bool {
        self.program.names[0] == "rsync"
    }

    /// Takes a word; true when it is the name of another command.
    pub fn word(&mut self, word: &Word) -> bool {
        self.follows_value = word.taint.is_some();
        if self.code_due || self.operand() == Operand::Code {
            self.may_run_input |= word.is_cut || word.is_dynamic || names_reader(&word.text);
        }
        if self.args_due > 0 {
            self.args_due -= 1;
            self.uncertain |= word.may_split;
            return false;
        }
        if self.code_due && !self.is_shell() {
            self.code_due = false;
            self.given = true;
            return false;
        }
        // An expansion may become nothing, `-` or a shell's name: then the input is what runs.
        let may_run_input = word.is_dynamic && !word.text.contains('/') && !self.given;
        self.runs_input |= self.program.runs_input && may_run_input;
        let may_be_option = word.starts_dynamic && self.expects_options() && !word.text.contains('/');
        if (word.may_split || may_be_option) && self.is_positional() {
            self.uncertain = true;
        }
        if self.expects_options() {
            if word.literal() == Some("--") {
                self.ended = !self.is_test();
                return false;
            }
            if word.text.starts_with('-') && word.text.len() > 1 {
                self.option(&word.text);
                return false;
            }
            if self.is_shell() && word.text.starts_with('+') {
                return false;
            }
            if self.program.names[0] == "env" && word.literal() == Some("-") {
                return false;
            }
        }
        if self.program.assigns && self.operands == 0 && word.assigns.is_some() {
            return false;
        }
        if self.code_due {
            self.code_due = false;
            self.given = true;
            return false;
        }
        let operand = self.operand();
        if operand == Operand::Command {
            return true;
        }
        let names_input = matches!(
            word.literal(),
            Some("-" | "/dev/stdin" | "/dev/fd/0" | "/proc/self/fd/0")
        );
        let is_remote_shell = self.program.names[0] == "ssh"
            && word
                .literal()
                .and_then(programs::find)
                .is_some_and(|listed| listed.program.runs_input);
        self.ended |= operand == Operand::Plain && word.literal() == Some("--") && !self.is_test();
        self.runs_input |= operand == Operand::File && names_input || is_remote_shell;
        self.operands = self.operands.saturating_add(1).min(8);
        false
    }

    fn option(&mut self, text: &str) {
        let program = self.program;
        if let Some(long) = text.strip_prefix("--") {
            let (name, has_value) = long
                .split_once('=')
                .map_or((long, false), |(name, _)| (name, true));
            let is = |option: &str| option.strip_prefix("--") == Some(name);
            if program.code_long.iter().any(|option| is(option)) {
                self.given = true;
                self.code_due = !has_value;
            } else if let Some((_, count)) = program.args_long.iter().find(|(option, _)| is(option)) {
                self.args_due = if has_value { 0 } else { *count };
                self.given |= matches!(name, "file" | "from-file");
            } else {
                self.uncertain |= !has_value
                    && !program
                        .flags_long
                        .iter()
                        .any(|option| is(option) || *option == "*");
            }
            return;
        }
        let mut letters = text.chars().skip(1).peekable();
        while let Some(letter) = letters.next() {
            if self.name == "printf" && letter == 'v' {
                // What is printed goes into a variable, which not every shell can do.
                self.uncertain = true;
            } else if program.code.contains(letter) {
                self.given |= !self.is_shell();
                self.code_due = letters.peek().is_none() || self.is_shell();
                if !self.is_shell() {
                    return;
                }
            } else if program.args.contains(letter) {
                self.args_due = u8::from(letters.peek().is_none());
                self.given |= letter == 'f';
                return;
            } else if self.is_shell() && letter == 's' {
                self.runs_input = true;
                self.given = true;
            } else if program.names[0] == "sed" && letter == 'i' {
                // What is glued to it is a suffix.
                return;
            } else {
                self.uncertain |= program.flags != "*" && !program.flags.contains(letter);
            }
        }
    }

    pub fn runs_input(&self, reads_file: bool) -> bool {
        let program = self.program;
        let operands_max = match program.names[0] {
            "ssh" | "sqlite3" => 1,
            _ if program.operands[0] == Operand::File => 0,
            _ => u8::MAX,
        };
        (self.runs_input && !reads_file)
            || (program.runs_input
                && !self.given
                && !self.code_due
                && !reads_file
                && self.operands <= operands_max)
    }
}

pub(super) fn has_code_letter(program: &Program, option: &str) -> bool {
    if option.starts_with("--") {
        return program
            .code_long
            .contains(&option.split('=').next().unwrap_or(option));
    }
    option.chars().skip(1).any(|letter| program.code.contains(letter))
}

pub(super) fn read_twice(listed: Listed) -> String {
    let Listed { program, name } = listed;
    if program.remedy == programs::NAME_REMEDY {
        return format!("`{name}`: {}", program.remedy);
    }
    format!(
        "`{name}` reads this as code once more, so that escaping it for the shell is not enough; {}",
        program.remedy
    )
}

pub(super) fn check_assigned(name: &str) -> Result<(), String> {
    if programs::is_read_by_the_shell(name) {
        return Err(format!(
            "the shell itself reads `{name}`, and a value could make it run something; use another variable"
        ));
    }
    Ok(())
}

/// Whether code names a program that runs what it reads.
fn names_reader(code: &str) -> bool {
    code.split(|c: char| !c.is_ascii_alphanumeric() && !"_.-".contains(c))
        .any(programs::may_run_input)
}
