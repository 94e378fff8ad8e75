//! The fix gate: which commands may change the cluster.
//!
//! Invariants:
//! - What passes is an argv that was put together here, from parts that were each understood; no
//!   shell ever sees it, and nothing of the text that was not understood is in it.
//! - Verbs, kinds, flags and their values are positive lists: what is not listed is refused.
//! - The namespace is always written out, so that no kubeconfig decides it.

mod grammar;
mod provenance;
#[cfg(test)]
mod tests;
mod words;

use grammar::{ALL, Flag, Grammar};
use protocol::ids::Namespace;

pub use provenance::Provenance;
pub use words::parse;

/// So many objects may one command change.
pub const OBJECTS_MAX: usize = 10;
/// So many replicas may one command ask for.
pub const REPLICAS_MAX: u32 = 1000;

/// Why a command did not pass.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub(crate) String);

impl Refusal {
    pub(crate) fn new(reason: impl Into<String>) -> Refusal {
        Refusal(reason.into())
    }
}

/// A command that passed: run it as it is, without a shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argv(Vec<String>);

impl Argv {
    /// The words; the first is `kubectl`.
    #[must_use]
    pub fn words(&self) -> &[String] {
        &self.0
    }

    /// Whether kubectl can ask the server for it as a dry run; a few verbs have none.
    #[must_use]
    pub fn has_dry_run(&self) -> bool {
        let is_asked_for = self.0.iter().any(|word| word.starts_with("--dry-run"));
        let verb: Vec<&str> = self.0.iter().skip(1).take(2).map(String::as_str).collect();
        !is_asked_for && !grammar::WITHOUT_DRY_RUN.contains(&verb.as_slice())
    }

    /// The namespace that it names, if it does.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        let mut namespaces = self.0.iter().filter_map(|word| word.strip_prefix("--namespace="));
        namespaces.next()
    }

    /// The words, owned.
    #[must_use]
    pub fn into_words(self) -> Vec<String> {
        self.0
    }
}

/// The gate, as configured.
#[derive(Debug, Clone)]
pub struct Gate {
    grammars: Vec<&'static Grammar>,
    allowed_namespaces: Vec<String>,
}

impl Default for Gate {
    /// The default verbs, and no namespace beside the execution's own.
    fn default() -> Gate {
        let grammars = ALL.iter().filter(|grammar| grammar.is_default).collect();
        Gate {
            grammars,
            allowed_namespaces: Vec::new(),
        }
    }
}

/// What one command is checked against.
#[derive(Debug, Clone)]
pub struct GateContext<'a> {
    /// The alert's namespace, else the workflow's.
    pub namespace: &'a str,
    /// Of a suggested command, what is known of the investigation.
    pub provenance: Option<Provenance>,
}

impl Gate {
    /// A gate with these verbs (`rollout restart`, `delete pod`, …), and with namespaces that may be
    /// touched beside the execution's own; `*` allows all.
    ///
    /// # Errors
    /// Names a verb that the gate cannot check.
    pub fn new(verbs: &[String], allowed_namespaces: &[String]) -> Result<Gate, String> {
        let grammars = verbs
            .iter()
            .map(|verb| {
                let wanted = verb.split_whitespace().collect::<Vec<_>>().join(" ");
                ALL.iter()
                    .find(|grammar| grammar.name() == wanted)
                    .ok_or_else(|| {
                        let known: Vec<String> = ALL.iter().map(Grammar::name).collect();
                        format!(
                            "\"{verb}\" is no verb that the fix gate can check; these are: {}",
                            known.join(", ")
                        )
                    })
            })
            .collect::<Result<_, String>>()?;
        Ok(Gate {
            grammars,
            allowed_namespaces: allowed_namespaces.to_vec(),
        })
    }

    /// Checks a rendered command.
    ///
    /// # Errors
    /// Why it is refused, and where it can be, what to write instead.
    pub fn check(&self, command: &str, context: &GateContext<'_>) -> Result<Argv, Refusal> {
        if let Some(provenance) = &context.provenance {
            // Whatever it says: an empty suggestion is explained best by being empty.
            if !command.trim().is_empty() {
                provenance.check()?;
            }
        }
        // It comes from an alert's label, and so from anybody.
        if let Err(error) = Namespace::new(context.namespace) {
            return Err(Refusal::new(format!(
                "the namespace it would run in cannot be one: {error}"
            )));
        }
        let words = parse(command)?;
        let read = self.read(&words)?;
        let mut argv = vec!["kubectl".to_owned()];
        argv.extend(read.grammar.words.iter().map(|word| (*word).to_owned()));
        argv.extend(read.objects);
        argv.extend(read.flags);
        match (&read.namespace, read.grammar.is_namespaced) {
            (Some(other), _) if !self.may_touch(other, context.namespace) => {
                return Err(Refusal::new(format!(
                    "it names the namespace {other}, and may touch only {}",
                    context.namespace
                )));
            }
            (Some(named), true) => argv.push(format!("--namespace={named}")),
            (None, true) => argv.push(format!("--namespace={}", context.namespace)),
            (_, false) => {}
        }
        Ok(Argv(argv))
    }

    /// Checks all of a command but its namespace, which depends on the alert.
    ///
    /// # Errors
    /// As [`Gate::check`].
    pub fn check_form(&self, command: &str) -> Result<(), Refusal> {
        self.read(&parse(command)?).map(|_| ())
    }

    fn may_touch(&self, namespace: &str, own: &str) -> bool {
        namespace == own
            || self
                .allowed_namespaces
                .iter()
                .any(|allowed| allowed == "*" || allowed == namespace)
    }

    fn read(&self, words: &[String]) -> Result<Read, Refusal> {
        let split = split_flags(words)?;
        // First, since what such a flag does explains best why the whole is refused.
        if let Some(reason) = split.flags.iter().find_map(|(name, _)| grammar::refusal(name)) {
            return Err(Refusal::new(reason));
        }
        let (grammar, rest) = self.grammar(&split.plain)?;
        let mut read = Read {
            grammar,
            objects: objects(grammar, rest)?,
            flags: Vec::new(),
            namespace: None,
        };
        let mut seen: Vec<String> = Vec::new();
        for (name, value) in split.flags {
            if seen.contains(&name) {
                return Err(Refusal::new(format!("it gives {name} twice")));
            }
            read.take_flag(&name, value)?;
            seen.push(name);
        }
        if let Some(required) = grammar.required_flag
            && !seen.iter().any(|name| name == required)
        {
            return Err(Refusal::new(format!("{} needs {required}", grammar.name())));
        }
        Ok(read)
    }

    /// The grammar of the command's verb, and the words after it.
    fn grammar<'w>(&self, plain: &'w [String]) -> Result<(&'static Grammar, &'w [String]), Refusal> {
        let allowed = || {
            let names: Vec<String> = self.grammars.iter().map(|grammar| grammar.name()).collect();
            names.join(", ")
        };
        for grammar in &self.grammars {
            if grammar.fits(plain) {
                return Ok((grammar, &plain[grammar.words.len()..]));
            }
        }
        match plain.first() {
            None => Err(Refusal::new(format!(
                "it names no verb; allowed are: {}",
                allowed()
            ))),
            Some(first) => {
                let shown = match plain.get(1) {
                    Some(second) if ["rollout", "delete", "set"].contains(&first.as_str()) => {
                        format!("{first} {second}")
                    }
                    _ => first.clone(),
                };
                Err(Refusal::new(format!(
                    "the verb \"{shown}\" is not allowed; allowed are: {}",
                    allowed()
                )))
            }
        }
    }
}

/// A command whose parts are understood.
struct Read {
    grammar: &'static Grammar,
    objects: Vec<String>,
    flags: Vec<String>,
    namespace: Option<String>,
}

impl Read {
    fn take_flag(&mut self, name: &str, value: Option<String>) -> Result<(), Refusal> {
        let flag = match grammar::flag(self.grammar, name) {
            Ok(flag) => flag,
            Err(reason) => return Err(Refusal::new(reason)),
        };
        let value = match (flag, value) {
            (Flag::Switch, None) => {
                self.flags.push(name.to_owned());
                return Ok(());
            }
            (_, None) => return Err(Refusal::new(format!("{name} is given without a value"))),
            (_, Some(value)) => value,
        };
        if !flag.accepts(&value) {
            return Err(Refusal::new(format!(
                "{name}={value} is not allowed; {}",
                flag.expects()
            )));
        }
        if name == "--namespace" {
            self.namespace = Some(value);
        } else {
            self.flags.push(format!("{name}={value}"));
        }
        Ok(())
    }
}

struct Split {
    plain: Vec<String>,
    /// Long names, with the value where one is given.
    flags: Vec<(String, Option<String>)>,
}

/// Tells flags from other words, as kubectl's own flag parser does.
fn split_flags(words: &[String]) -> Result<Split, Refusal> {
    let mut split = Split {
        plain: Vec::new(),
        flags: Vec::new(),
    };
    match words.first().map(String::as_str) {
        Some("kubectl") => {}
        Some(other) => {
            return Err(Refusal::new(format!(
                "only kubectl commands pass, and this one begins with \"{other}\""
            )));
        }
        None => return Err(Refusal::new("the command is empty")),
    }
    let mut rest = words[1..].iter();
    while let Some(word) = rest.next() {
        if word == "--" {
            split.plain.extend(rest.cloned());
            break;
        }
        if let Some(long) = word.strip_prefix("--") {
            let (name, joined) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (long, None),
            };
            let name = format!("--{name}");
            let value = match joined {
                Some(value) => Some(value),
                None if grammar::takes_next_word(&name) => rest.next().cloned(),
                None => None,
            };
            split.flags.push((name, value));
        } else if let Some(short) = word.strip_prefix('-') {
            let mut letters = short.chars();
            let name = match letters.next() {
                Some('n') => "--namespace".to_owned(),
                Some('o') => "--output".to_owned(),
                Some(other) => format!("-{other}"),
                None => {
                    return Err(Refusal::new(
                        "a bare - reads from standard input, and there is none",
                    ));
                }
            };
            let joined = letters.as_str();
            let value = match joined.strip_prefix('=').unwrap_or(joined) {
                "" if joined.is_empty() => rest.next().cloned(),
                joined => Some(joined.to_owned()),
            };
            split.flags.push((name, value));
        } else {
            split.plain.push(word.clone());
        }
    }
    Ok(split)
}

/// The objects, each as `kind/name` (nodes as their names), of the forms that kubectl reads.
fn objects(grammar: &Grammar, rest: &[String]) -> Result<Vec<String>, Refusal> {
    let verb = grammar.name();
    let mut found = Vec::new();
    let mut names = rest;
    let mut kind = grammar.implied_kind;
    if grammar.implied_kind.is_none() || rest.first().is_some_and(|word| word.contains('/')) {
        let Some(first) = rest.first() else {
            return Err(Refusal::new(format!(
                "{verb} names no object; write as in `{}`",
                grammar.example
            )));
        };
        if !first.contains('/') {
            kind = Some(grammar.kind(first)?);
            names = &rest[1..];
        }
    }
    for word in names {
        let (kind, name) = match (word.split_once('/'), kind) {
            (None, Some(kind)) => (kind, word.as_str()),
            (Some((written, name)), None) => (grammar.kind(written)?, name),
            (Some((written, name)), Some(_)) if grammar.implied_kind.is_some() => {
                (grammar.kind(written)?, name)
            }
            _ => {
                return Err(Refusal::new(format!(
                    "\"{word}\" mixes `kind name` and `kind/name`; write as in `{}`",
                    grammar.example
                )));
            }
        };
        if !is_object_name(name) {
            return Err(Refusal::new(format!("\"{name}\" is not an object's name")));
        }
        let object = if grammar.is_namespaced {
            format!("{kind}/{name}")
        } else {
            name.to_owned()
        };
        if !found.contains(&object) {
            found.push(object);
        }
    }
    match found.len() {
        0 => Err(Refusal::new(format!(
            "{verb} names no object, which would mean all of them; write as in `{}`",
            grammar.example
        ))),
        count if count > OBJECTS_MAX => Err(Refusal::new(format!(
            "it changes {count} objects; at most {OBJECTS_MAX} are allowed"
        ))),
        _ => Ok(found),
    }
}

fn is_object_name(name: &str) -> bool {
    let is_edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= 253
        && name.starts_with(is_edge)
        && name.ends_with(is_edge)
        && name.chars().all(|c| is_edge(c) || c == '-' || c == '.')
}
