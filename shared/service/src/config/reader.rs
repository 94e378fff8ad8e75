//! Reads one section's values, typed, out of the three layers, and collects
//! every problem instead of stopping at the first.
//!
//! Invariants: a key that is read has a default in `config.default.toml` (a
//! missing one is a bug that every test of this crate meets); the text of a
//! hidden key never enters a problem.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use toml::{Table, Value};

use super::layers::{Layers, join, table_of};
use super::{Problem, Secret, read_secret_file, variable};

/// The dearest million tokens that is taken for no slip of the keyboard.
const PRICE_USD_MAX: f64 = 100_000.0;

/// Where a value was given; says how an error names it.
#[derive(Clone)]
enum Origin {
    Default,
    /// `fist.toml:12`
    File(String),
    Variable(String),
}

struct Given {
    value: Value,
    origin: Origin,
}

/// One section while it is read.
pub(super) struct Section<'a> {
    /// As the operator names it: `sources.grafana`.
    path: String,
    /// As the defaults name it: `sources.<name>`.
    shape: String,
    defaults: Table,
    file: Table,
    by_variable: bool,
    layers: &'a mut Layers,
}

impl<'a> Section<'a> {
    /// One section of the defaults, such as `nats`.
    pub(super) fn top(layers: &'a mut Layers, name: &str) -> Self {
        let file = match layers.file.values.get(name) {
            None => Table::new(),
            Some(Value::Table(table)) => table.clone(),
            Some(other) => {
                let place = layers.file.place(name);
                layers.problems.push(
                    Problem::new(
                        name,
                        Some(&show(other)),
                        format!("must be a section, written [{name}]"),
                    )
                    .at(&place),
                );
                Table::new()
            }
        };
        let defaults = table_of(&layers.defaults, name);
        Section {
            path: name.to_owned(),
            shape: name.to_owned(),
            defaults,
            file,
            by_variable: true,
            layers,
        }
    }

    /// A section of `sources` or `llm.prices`, whose defaults stand under a shape
    /// of its own, and which has no variables. Its unknown keys are refused here.
    pub(super) fn nested(
        layers: &'a mut Layers,
        path: &str,
        shape: &str,
        defaults: Table,
        file: Table,
    ) -> Self {
        let known: Vec<String> = defaults.keys().map(|key| format!("{path}.{key}")).collect();
        for key in file.keys().filter(|key| !defaults.contains_key(*key)) {
            layers.unknown_in_file(&format!("{path}.{key}"), "key", &known);
        }
        Section {
            path: path.to_owned(),
            shape: shape.to_owned(),
            defaults,
            file,
            by_variable: false,
            layers,
        }
    }

    /// A text that must not be empty.
    pub(super) fn text(&mut self, key: &str) -> String {
        let given = self.given(key);
        match &given.value {
            Value::String(text) if !text.trim().is_empty() => text.clone(),
            _ => {
                self.refuse(key, &given, "must be a text that is not empty");
                String::new()
            }
        }
    }

    /// A text, where an empty one means "not set".
    pub(super) fn optional(&mut self, key: &str) -> Option<String> {
        let given = self.given(key);
        match &given.value {
            Value::String(text) if text.trim().is_empty() => None,
            Value::String(text) => Some(text.clone()),
            _ => {
                self.refuse(key, &given, "must be a text, or empty");
                None
            }
        }
    }

    /// A path, where an empty one means "not set".
    pub(super) fn path(&mut self, key: &str) -> Option<PathBuf> {
        self.optional(key).map(PathBuf::from)
    }

    /// A text that no error and no log shows.
    pub(super) fn secret(&mut self, key: &str) -> Option<Secret> {
        match self.given(key).value {
            Value::String(text) if text.trim().is_empty() => None,
            Value::String(text) => Some(Secret::new(text)),
            _ => {
                self.problem_hidden(key, "must be a text in quotes");
                None
            }
        }
    }

    /// A secret given by itself or as the file that holds it.
    pub(super) fn secret_or_file(&mut self, key: &str, file_key: &str) -> Option<Secret> {
        let direct = self.secret(key);
        let from_file = self.secret_file(file_key, |text| Secret::new(text));
        if direct.is_some() && from_file.is_some() {
            let text = format!("is set together with {file_key}; keep one of the two");
            self.problem_hidden(key, &text);
        }
        direct.or(from_file.map(|read| read.unwrap_or_else(Secret::unreadable)))
    }

    /// What stands in a secret's file; `Some(None)` where it cannot be read,
    /// which is no problem yet: each process gets only its own secrets mounted.
    pub(super) fn secret_file<T>(&mut self, key: &str, read: impl FnOnce(&str) -> T) -> Option<Option<T>> {
        let path = self.path(key)?;
        match read_secret_file(&path) {
            Ok(text) => Some(Some(read(&text))),
            Err(reason) => {
                let given = self.given(key);
                let problem = self.named(key, &given.origin, &show(&given.value), &reason);
                self.layers.unreadable.push(problem);
                Some(None)
            }
        }
    }

    /// A whole number within bounds.
    pub(super) fn number(&mut self, key: &str, allowed: RangeInclusive<u64>) -> u64 {
        let given = self.given(key);
        match given.value.as_integer().and_then(|n| u64::try_from(n).ok()) {
            Some(number) if allowed.contains(&number) => number,
            _ => {
                let text = format!(
                    "must be a whole number from {} to {}",
                    allowed.start(),
                    allowed.end()
                );
                self.refuse(key, &given, &text);
                *allowed.start()
            }
        }
    }

    /// US dollars for a million tokens, as millionths of a dollar; `None` where an empty text means "not set".
    pub(super) fn price(&mut self, key: &str) -> Option<u64> {
        let given = self.given(key);
        let usd = match &given.value {
            Value::String(text) if text.trim().is_empty() => return None,
            Value::Integer(usd) => i32::try_from(*usd).ok().map(f64::from),
            Value::Float(usd) => Some(*usd),
            _ => None,
        };
        match usd.filter(|usd| (0.0..=PRICE_USD_MAX).contains(usd)) {
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "within bounds by the line above"
            )]
            Some(usd) => Some((usd * 1e6).round() as u64),
            None => {
                let text = "must be US dollars for a million tokens, from 0 to 100000, such as 3 or 0.25";
                self.refuse(key, &given, text);
                Some(0)
            }
        }
    }

    /// A share from 0 to 1, as millionths.
    pub(super) fn share(&mut self, key: &str) -> u32 {
        let given = self.given(key);
        let share = match &given.value {
            Value::Integer(share) => i32::try_from(*share).ok().map(f64::from),
            Value::Float(share) => Some(*share),
            // From a variable that is no number.
            _ => None,
        };
        match share.filter(|share| (0.0..=1.0).contains(share)) {
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "within bounds by the line above"
            )]
            Some(share) => (share * 1e6).round() as u32,
            None => {
                self.refuse(key, &given, "must be a share from 0 to 1, such as 1.0 or 0.05");
                0
            }
        }
    }

    /// A table of whole numbers within bounds.
    pub(super) fn numbers(&mut self, key: &str, allowed: RangeInclusive<u64>) -> BTreeMap<String, u64> {
        let given = self.given(key);
        // From a variable they come as texts.
        let number = |value: &Value| match value {
            Value::Integer(number) => u64::try_from(*number).ok(),
            Value::String(text) => text.parse().ok(),
            _ => None,
        };
        let numbers = given.value.as_table().and_then(|table| {
            let entries = table.iter().map(|(name, value)| {
                let number = number(value).filter(|number| allowed.contains(number))?;
                Some((name.clone(), number))
            });
            entries.collect::<Option<BTreeMap<_, _>>>()
        });
        numbers.unwrap_or_else(|| {
            let text = format!(
                "must be a table of whole numbers from {} to {}, such as {{ a = 1000000 }}",
                allowed.start(),
                allowed.end()
            );
            self.refuse(key, &given, &text);
            BTreeMap::new()
        })
    }

    /// A count of things that are held in memory or run at one time.
    pub(super) fn count(&mut self, key: &str, allowed: RangeInclusive<usize>) -> usize {
        let number = self.number(key, *allowed.start() as u64..=*allowed.end() as u64);
        usize::try_from(number).unwrap_or(*allowed.end())
    }

    /// Yes or no.
    pub(super) fn flag(&mut self, key: &str) -> bool {
        let given = self.given(key);
        given.value.as_bool().unwrap_or_else(|| {
            self.refuse(key, &given, "must be true or false");
            false
        })
    }

    /// One of a closed set of words.
    pub(super) fn one_of<T: Copy>(&mut self, key: &str, words: &[(&str, T)]) -> T {
        let given = self.given(key);
        let found = given
            .value
            .as_str()
            .and_then(|text| words.iter().find(|(word, _)| *word == text.trim()));
        match found {
            Some((_, value)) => *value,
            None => {
                let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                let (last, rest) = names.split_last().expect("a closed set has a word");
                let text = format!("must be {} or {last}", rest.join(", "));
                self.refuse(key, &given, &text);
                words[0].1
            }
        }
    }

    /// A list of texts.
    pub(super) fn list(&mut self, key: &str) -> Vec<String> {
        let given = self.given(key);
        let texts = given.value.as_array().and_then(|items| {
            items
                .iter()
                .map(|item| item.as_str().map(str::to_owned))
                .collect::<Option<Vec<_>>>()
        });
        match texts {
            Some(texts) if texts.iter().all(|text| !text.trim().is_empty()) => texts,
            _ => {
                self.refuse(
                    key,
                    &given,
                    "must be a list of texts that are not empty, such as [\"a\", \"b\"]",
                );
                Vec::new()
            }
        }
    }

    /// A list of secrets.
    pub(super) fn secrets(&mut self, key: &str) -> Vec<Secret> {
        let given = self.given(key);
        let texts = given.value.as_array().and_then(|items| {
            items
                .iter()
                .map(|item| {
                    item.as_str()
                        .filter(|text| !text.trim().is_empty())
                        .map(Secret::new)
                })
                .collect::<Option<Vec<_>>>()
        });
        texts.unwrap_or_else(|| {
            self.problem_hidden(key, "must be a list of texts that are not empty");
            Vec::new()
        })
    }

    /// A table of texts; the file's entries are added to the defaults.
    pub(super) fn table(&mut self, key: &str) -> BTreeMap<String, String> {
        let given = self.given(key);
        let mut merged = table_of(&self.defaults, key);
        if let Some(table) = given.value.as_table() {
            merged.extend(table.clone());
        }
        let texts = merged
            .into_iter()
            .map(|(name, value)| value.as_str().map(|text| (name, text.to_owned())))
            .collect::<Option<BTreeMap<_, _>>>();
        match texts {
            Some(texts) if given.value.is_table() => texts,
            _ => {
                self.refuse(key, &given, "must be a table of texts, such as { a = \"b\" }");
                BTreeMap::new()
            }
        }
    }

    /// The same, whose values no error and no log shows.
    pub(super) fn table_hidden(&mut self, key: &str) -> BTreeMap<String, Secret> {
        let given = self.given(key);
        let texts = given.value.as_table().and_then(|table| {
            let secret =
                |(name, value): (&String, &Value)| Some((name.clone(), Secret::new(value.as_str()?)));
            table.iter().map(secret).collect::<Option<_>>()
        });
        texts.unwrap_or_else(|| {
            self.problem_hidden(key, "must be a table of texts, such as { a = \"b\" }");
            BTreeMap::new()
        })
    }

    /// An address to listen at: `HOST:PORT`, port 0 for a free one.
    pub(super) fn listen(&mut self, key: &str) -> String {
        let given = self.given(key);
        match given.value.as_str().filter(|text| is_address(text)) {
            Some(text) => text.to_owned(),
            None => {
                self.refuse(key, &given, "must be HOST:PORT, such as 0.0.0.0:8080");
                String::new()
            }
        }
    }

    /// The same, where an empty text means "not at all".
    pub(super) fn optional_listen(&mut self, key: &str) -> Option<String> {
        let is_empty = self
            .given(key)
            .value
            .as_str()
            .is_some_and(|text| text.trim().is_empty());
        if is_empty { None } else { Some(self.listen(key)) }
    }

    /// Records what is wrong with a key's value, however it was given.
    pub(super) fn problem(&mut self, key: &str, text: &str) {
        let given = self.given(key);
        self.refuse(key, &given, text);
    }

    /// The same for a value that must not be shown.
    pub(super) fn problem_hidden(&mut self, key: &str, text: &str) {
        let given = self.given(key);
        self.push(key, &given.origin, super::REDACTED, text);
    }

    fn refuse(&mut self, key: &str, given: &Given, text: &str) {
        self.push(key, &given.origin, &show(&given.value), text);
    }

    fn push(&mut self, key: &str, origin: &Origin, shown: &str, text: &str) {
        let problem = self.named(key, origin, shown, text);
        self.layers.problems.push(problem);
    }

    fn named(&self, key: &str, origin: &Origin, shown: &str, text: &str) -> Problem {
        let full = join(&self.path, key);
        match origin {
            Origin::Variable(name) => Problem::new(name, Some(shown), text),
            Origin::File(place) => Problem::new(&full, Some(shown), text).at(place),
            Origin::Default => Problem::new(&full, Some(shown), text),
        }
    }

    /// The value that wins. One from a variable is read as what the default is;
    /// where it cannot be, it stays a text, which the caller's own check then
    /// refuses with its own words.
    fn given(&mut self, key: &str) -> Given {
        self.layers.asked.insert(join(&self.shape, key));
        let default = self
            .defaults
            .get(key)
            .unwrap_or_else(|| panic!("{}.{key} is missing in config.default.toml", self.shape));
        if self.by_variable {
            let name = variable(&self.path, key);
            if let Some(text) = self.layers.variables.get(&name) {
                return Given {
                    value: parse_like(default, text),
                    origin: Origin::Variable(name),
                };
            }
        }
        match self.file.get(key) {
            Some(value) => {
                let place = self.layers.file.place(&join(&self.path, key));
                Given {
                    value: value.clone(),
                    origin: Origin::File(place),
                }
            }
            None => Given {
                value: default.clone(),
                origin: Origin::Default,
            },
        }
    }
}

fn is_address(text: &str) -> bool {
    text.rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

fn parse_like(default: &Value, text: &str) -> Value {
    let trimmed = text.trim();
    let parsed = match default {
        Value::Integer(_) => trimmed.parse().ok().map(Value::Integer),
        Value::Float(_) => trimmed.parse().ok().map(Value::Float),
        Value::Boolean(_) => trimmed.parse().ok().map(Value::Boolean),
        Value::Array(_) if trimmed.starts_with('[') => toml_value(trimmed),
        Value::Array(_) => Some(Value::Array(
            pieces(trimmed)
                .map(|piece| Value::String(piece.to_owned()))
                .collect(),
        )),
        Value::Table(_) if trimmed.starts_with('{') => toml_value(trimmed),
        Value::Table(_) => pieces(trimmed)
            .map(|piece| {
                let (name, value) = piece.split_once('=')?;
                Some((name.trim().to_owned(), Value::String(value.trim().to_owned())))
            })
            .collect::<Option<Table>>()
            .map(Value::Table),
        _ => None,
    };
    parsed.unwrap_or_else(|| Value::String(text.to_owned()))
}

fn pieces(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|piece| !piece.is_empty())
}

fn toml_value(text: &str) -> Option<Value> {
    format!("value = {text}").parse::<Table>().ok()?.remove("value")
}

/// A value as an error shows it: as written in TOML, cut where it is long.
fn show(value: &Value) -> String {
    const CHARS_MAX: usize = 80;
    let text = value.to_string();
    match text.char_indices().nth(CHARS_MAX) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}
