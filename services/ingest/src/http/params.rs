//! Parameters of a request's query, checked against what the route's entry in the table says of them.
//!
//! Invariant: a handler never sees a parameter that its route does not document, nor a value it does not allow.

use std::collections::BTreeMap;

use protocol::{Namespace, SourceName, StepName, WorkflowName, query::LIMIT_MAX};
use serde_json::{Value, json};

use super::problem::Problem;

/// Longest value of a parameter; the longest real one is a cursor.
const VALUE_BYTES_MAX: usize = 1024;

/// One parameter of a route.
#[derive(Clone, Copy, Debug)]
pub struct Param {
    /// Its name.
    pub name: &'static str,
    /// What it may be.
    pub allowed: Allowed,
    /// What it does.
    pub doc: &'static str,
}

/// What a parameter's value may be.
#[derive(Clone, Copy, Debug)]
pub enum Allowed {
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// 1 to the longest page.
    Limit,
    /// Any text.
    Text,
    /// A namespace.
    Namespace,
    /// A workflow's name.
    Workflow,
    /// A source's name.
    Source,
    /// A step's name.
    Step,
}

impl Allowed {
    fn check(self, value: &str) -> Result<(), String> {
        let id = |error: Option<protocol::IdError>| error.map_or(Ok(()), |error| Err(error.to_string()));
        match self {
            Self::OneOf(words) if words.contains(&value) => Ok(()),
            Self::OneOf(words) => Err(format!("`{value}` is none of {}", words.join(", "))),
            Self::Limit => match value.parse::<u32>() {
                Ok(1..=LIMIT_MAX) => Ok(()),
                _ => Err(format!("`{value}` is not a number from 1 to {LIMIT_MAX}")),
            },
            Self::Text => Ok(()),
            Self::Namespace => id(Namespace::new(value).err()),
            Self::Workflow => id(WorkflowName::new(value).err()),
            Self::Source => id(SourceName::new(value).err()),
            Self::Step => id(StepName::new(value).err()),
        }
    }

    /// The schema in the OpenAPI document.
    pub fn schema(self) -> Value {
        match self {
            Self::OneOf(words) => json!({ "type": "string", "enum": words }),
            Self::Limit => json!({
                "type": "integer", "minimum": 1, "maximum": LIMIT_MAX,
                "default": protocol::query::LIMIT_DEFAULT,
            }),
            Self::Text | Self::Namespace | Self::Workflow | Self::Source | Self::Step => {
                json!({ "type": "string" })
            }
        }
    }
}

/// The parameters that were given.
#[derive(Clone, Debug, Default)]
pub struct Params(BTreeMap<&'static str, String>);

impl Params {
    /// Reads the query of an address.
    ///
    /// # Errors
    /// 400 that names the parameter, and what is allowed.
    pub fn read(query: Option<&str>, known: &[Param]) -> Result<Self, Problem> {
        let mut given = BTreeMap::new();
        for pair in query
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
        {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decoded(name)?, decoded(value)?);
            let Some(param) = known.iter().find(|param| param.name == name) else {
                let allowed: Vec<_> = known.iter().map(|param| param.name).collect();
                let remedy = match allowed.as_slice() {
                    [] => "there are none here".to_owned(),
                    names => format!("use {}", names.join(", ")),
                };
                return Err(
                    Problem::bad_request(format!("unknown parameter `{name}`; {remedy}"))
                        .with("parameter", name)
                        .with("allowed", allowed),
                );
            };
            let refused = |reason: String| {
                Problem::bad_request(format!("parameter {}: {reason}", param.name))
                    .with("parameter", param.name)
            };
            if value.len() > VALUE_BYTES_MAX {
                return Err(refused(format!("is longer than {VALUE_BYTES_MAX} bytes")));
            }
            param
                .allowed
                .check(&value)
                .map_err(|reason| match param.allowed {
                    Allowed::OneOf(words) => refused(reason).with("allowed", words.to_vec()),
                    _ => refused(reason),
                })?;
            if given.insert(param.name, value).is_some() {
                return Err(refused("was given twice".to_owned()));
            }
        }
        Ok(Self(given))
    }

    /// The text of a parameter.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A parameter as what it was checked to be.
    pub fn parsed<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.text(name).and_then(|text| text.parse().ok())
    }

    /// Whether a parameter of `true` and `false` is true.
    pub fn is_true(&self, name: &str) -> bool {
        self.text(name) == Some("true")
    }
}

/// A part of a query without its percent signs.
fn decoded(part: &str) -> Result<String, Problem> {
    let bytes = part.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while let Some(&byte) = bytes.get(index) {
        let digits = part.get(index + 1..index + 3).filter(|_| byte == b'%');
        match (
            byte,
            digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()),
        ) {
            (b'%', Some(byte)) => {
                plain.push(byte);
                index += 2;
            }
            (b'%', None) => {
                return Err(Problem::bad_request(format!(
                    "the query of the address has a `%` without two hexadecimal digits: {part}"
                )));
            }
            (b'+', _) => plain.push(b' '),
            (byte, _) => plain.push(byte),
        }
        index += 1;
    }
    String::from_utf8(plain).map_err(|_| Problem::bad_request("the query of the address is not UTF-8"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const KNOWN: &[Param] = &[
        Param {
            name: "status",
            allowed: Allowed::OneOf(&["Running", "Failed"]),
            doc: "",
        },
        Param {
            name: "limit",
            allowed: Allowed::Limit,
            doc: "",
        },
        Param {
            name: "cursor",
            allowed: Allowed::Text,
            doc: "",
        },
        Param {
            name: "namespace",
            allowed: Allowed::Namespace,
            doc: "",
        },
    ];

    #[test]
    fn good_ones_are_read() {
        let params = Params::read(Some("status=Failed&limit=7&cursor=a%2Bb+c%C3%A4"), KNOWN).unwrap();
        assert_eq!(params.text("status"), Some("Failed"));
        assert_eq!(params.parsed::<u32>("limit"), Some(7));
        assert_eq!(params.text("cursor"), Some("a+b cä"));
        assert_eq!(params.text("namespace"), None);
        assert!(Params::read(None, &[]).is_ok());
    }

    #[test]
    fn bad_ones_are_named() {
        for (query, expected) in [
            (
                "state=Failed",
                "unknown parameter `state`; use status, limit, cursor, namespace",
            ),
            (
                "status=failed",
                "parameter status: `failed` is none of Running, Failed",
            ),
            ("limit=0", "parameter limit: `0` is not a number from 1 to 500"),
            ("limit=x", "parameter limit: `x` is not a number from 1 to 500"),
            ("limit=1&limit=2", "parameter limit: was given twice"),
            (
                "cursor=%zz",
                "the query of the address has a `%` without two hexadecimal digits: %zz",
            ),
            ("cursor=%ff", "the query of the address is not UTF-8"),
            (
                "namespace=A",
                "parameter namespace: `A` is not a valid namespace: use 1 to 63 lower-case letters, digits and `-`, beginning and ending with a letter or digit",
            ),
        ] {
            let problem = Params::read(Some(query), KNOWN).unwrap_err();
            assert_eq!(problem.detail(), expected);
        }
        let problem = Params::read(Some("a=b"), &[]).unwrap_err();
        assert_eq!(problem.detail(), "unknown parameter `a`; there are none here");
    }
}
