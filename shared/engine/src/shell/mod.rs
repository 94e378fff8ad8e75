//! The security boundary of commands: values in a shell command, each escaped for its place.
//!
//! Values come from alerts and models, which an attacker can write. A command is therefore never
//! put together as text: the template's own text and the values go through a lexer of the POSIX
//! shell's grammar, which knows at every value where it stands, and writes it so that the shell
//! reads exactly that value and nothing else, or refuses with what to write instead.
//! - The template's text alone decides every context; values decide none.
//! - What the lexer does not follow with certainty is refused as soon as a value is concerned;
//!   a command without values is never refused.
//! - Compiling and rendering use the same lexer ([`machine::Machine`]).

mod command;
mod escape;
mod heredoc;
mod machine;
mod programs;
mod reading;
mod walk;

#[cfg(test)]
mod tests;

pub(crate) use walk::check;

/// A value as it is to be printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    pub text: String,
    /// It is a number or a boolean, so that a leading `-` is a sign and no option.
    pub is_number: bool,
}

/// Writes a command from text and values.
pub(crate) struct Writer {
    machine: machine::Machine,
    out: String,
    bytes_max: usize,
}

impl Writer {
    pub fn new(bytes_max: usize) -> Self {
        Self {
            machine: machine::Machine::new(),
            out: String::new(),
            bytes_max,
        }
    }

    /// Adds a part of the template's own text.
    pub fn text(&mut self, text: &str) -> Result<(), String> {
        for c in text.chars() {
            self.machine.text(c)?;
        }
        self.add(text)
    }

    /// Adds a value.
    pub fn value(&mut self, value: &Value) -> Result<(), String> {
        let written = self.machine.value(Some(value))?;
        self.add(&written)
    }

    fn add(&mut self, text: &str) -> Result<(), String> {
        if self.out.len() + text.len() > self.bytes_max {
            return Err(format!(
                "rendered, the command is more than {} bytes; pass less of the values, as in {{{{ value | truncate(length=1000) }}}}",
                self.bytes_max
            ));
        }
        self.out.push_str(text);
        Ok(())
    }

    /// The command, complete.
    pub fn finish(mut self) -> Result<String, String> {
        self.machine.finish()?;
        Ok(self.out)
    }
}
