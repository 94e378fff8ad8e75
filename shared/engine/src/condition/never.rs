//! Finds conditions that can never be met, for a warning at admission.
//!
//! Invariant: it errs towards silence. Only what every possible value contradicts counts.

use serde_json::Value;

use super::evaluate::{Truth, holds};
use super::{Comparison, Expr, Path, Test};

/// What is known of the value at a path before anything ran.
pub(crate) enum Possible {
    /// It may be anything.
    Anything,
    /// It is one of these, if it is there at all.
    OneOf(Vec<Value>),
    /// It is text without upper-case letters, if it is there at all.
    LowerCase,
}

/// What is known of a condition before anything ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    NeverTrue,
    NeverFalse,
    Open,
}

pub(super) fn reading(expr: &Expr, possible: &dyn Fn(&Path) -> Possible) -> Reading {
    let of_all = |parts: &[Expr], one: Reading, all: Reading| {
        let readings: Vec<Reading> = parts.iter().map(|part| reading(part, possible)).collect();
        if readings.contains(&one) {
            one
        } else if readings.iter().all(|r| *r == all) {
            all
        } else {
            Reading::Open
        }
    };
    match expr {
        Expr::And(parts) => of_all(parts, Reading::NeverTrue, Reading::NeverFalse),
        Expr::Or(parts) => of_all(parts, Reading::NeverFalse, Reading::NeverTrue),
        Expr::Not(inner) => match reading(inner, possible) {
            Reading::NeverTrue => Reading::NeverFalse,
            Reading::NeverFalse => Reading::NeverTrue,
            Reading::Open => Reading::Open,
        },
        Expr::Compare(comparison) => of_comparison(comparison, &possible(&comparison.path)),
    }
}

/// Which value a condition that can never be met expects in vain, in words.
pub(super) fn why(expr: &Expr, possible: &dyn Fn(&Path) -> Possible) -> Option<String> {
    match expr {
        Expr::And(parts) | Expr::Or(parts) => parts.iter().find_map(|part| why(part, possible)),
        Expr::Not(inner) => why(inner, possible),
        Expr::Compare(comparison) => {
            let known = possible(&comparison.path);
            let is_settled = of_comparison(comparison, &known) != Reading::Open;
            match known {
                Possible::LowerCase if is_settled => {
                    Some(format!("{} is always in lower case", comparison.path))
                }
                Possible::OneOf(values) if is_settled => {
                    let words: Vec<String> = values.iter().map(plain).collect();
                    Some(format!("{} can only be {}", comparison.path, words.join(" or ")))
                }
                _ => None,
            }
        }
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn of_comparison(comparison: &Comparison, possible: &Possible) -> Reading {
    match possible {
        Possible::Anything => Reading::Open,
        Possible::OneOf(values) => {
            let truths: Vec<Truth> = values.iter().map(|v| holds(&comparison.test, v)).collect();
            if !truths.contains(&Truth::True) {
                Reading::NeverTrue
            } else if !truths.contains(&Truth::False) {
                Reading::NeverFalse
            } else {
                Reading::Open
            }
        }
        Possible::LowerCase => {
            let has_upper = |v: &Value| {
                v.as_str()
                    .is_some_and(|text| text.chars().any(char::is_uppercase))
            };
            let can_hold = match &comparison.test {
                Test::Equal(literal) | Test::Contains(literal) => !has_upper(literal),
                Test::In(literals) => !literals.iter().all(has_upper),
                _ => true,
            };
            if can_hold {
                Reading::Open
            } else {
                Reading::NeverTrue
            }
        }
    }
}
