//! The grammar of conditions, by recursive descent.
//!
//! Invariant: `or` binds weaker than `and`, `and` weaker than `not`; nesting is bounded, so that no
//! text can exhaust the stack.

use serde_json::{Number, Value};

use super::lexer::{Token, TokenKind, is_path_char, tokens};
use super::{CONDITION_DEPTH_MAX, Comparison, ConditionError, Expr, OPERATORS, Path, ROOTS, Test, anchored};
use crate::nearest::{did_you_mean, nearest};

pub(super) fn parse(source: &str) -> Result<Expr, ConditionError> {
    let tokens = tokens(source)?;
    let mut parser = Parser {
        chars: source.chars().collect(),
        tokens: &tokens,
        at: 0,
        end: source.chars().count(),
    };
    if tokens.is_empty() {
        return parser.fail(
            "the condition is empty; write `<path> <operator> <literal>`, as in `alert.severity == critical`",
        );
    }
    let expr = parser.or(0)?;
    match parser.peek() {
        None => Ok(expr),
        Some(TokenKind::Close) => parser.fail("this `)` closes nothing"),
        Some(TokenKind::Word(word)) if ["and", "or"].iter().any(|known| word.eq_ignore_ascii_case(known)) => {
            let message = format!("`{word}` is written in lower case: `{}`", word.to_lowercase());
            parser.fail(&message)
        }
        Some(TokenKind::Word(_) | TokenKind::Quoted(_)) => {
            parser.fail("only `and` or `or` may follow here; a string with spaces in it stands in quotes")
        }
        Some(_) => parser.fail("only `and` or `or` may follow here"),
    }
}

struct Parser<'s> {
    chars: Vec<char>,
    tokens: &'s [Token],
    at: usize,
    end: usize,
}

impl Parser<'_> {
    fn or(&mut self, depth: usize) -> Result<Expr, ConditionError> {
        let mut parts = vec![self.and(depth)?];
        while self.takes_word("or") {
            parts.push(self.and(depth)?);
        }
        Ok(single_or(parts, Expr::Or))
    }

    fn and(&mut self, depth: usize) -> Result<Expr, ConditionError> {
        let mut parts = vec![self.not(depth)?];
        while self.takes_word("and") {
            parts.push(self.not(depth)?);
        }
        Ok(single_or(parts, Expr::And))
    }

    fn not(&mut self, depth: usize) -> Result<Expr, ConditionError> {
        if depth > CONDITION_DEPTH_MAX {
            return self.fail(&format!(
                "parentheses and `not` nest at most {CONDITION_DEPTH_MAX} deep"
            ));
        }
        if self.takes_word("not") {
            return Ok(Expr::Not(Box::new(self.not(depth + 1)?)));
        }
        if self.peek() == Some(&TokenKind::Open) {
            self.at += 1;
            let inner = self.or(depth + 1)?;
            return match self.peek() {
                Some(TokenKind::Close) => {
                    self.at += 1;
                    Ok(inner)
                }
                _ => self.fail("a `)` is missing here"),
            };
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Expr, ConditionError> {
        let start = self.offset();
        let path = self.path()?;
        let is_negated = self.is_word("not") && self.is_word_at(1, "in");
        if is_negated {
            self.at += 1;
        }
        let operator = self.operator(&path)?;
        let test = self.test(operator)?;
        let stop = self.tokens.get(self.at).map_or(self.end, |token| token.offset);
        let text: String = self.chars[start..stop].iter().collect();
        let comparison = Expr::Compare(Comparison {
            path,
            test,
            text: text.trim().to_owned(),
        });
        Ok(if is_negated {
            Expr::Not(Box::new(comparison))
        } else {
            comparison
        })
    }

    fn path(&mut self) -> Result<Path, ConditionError> {
        let word = match self.peek() {
            Some(TokenKind::Word(word)) => word.clone(),
            Some(TokenKind::Quoted(_)) => {
                return self.fail(
                    "a comparison starts with a path, not with a literal: write `alert.name == \"x\"`",
                );
            }
            Some(_) => return self.fail("a path is missing here, such as `alert.severity`"),
            None => return self.fail("a comparison is missing here"),
        };
        if word.chars().any(|c| !is_path_char(c) && c != '.') {
            return self.fail(&format!(
                "\"{word}\" is not a path; a part with other characters than letters, digits, `_` \
                 and `-` stands in brackets, as in `alert.labels[\"app.kubernetes.io/name\"]`"
            ));
        }
        let mut segments: Vec<String> = word.split('.').map(str::to_owned).collect();
        let root = segments[0].clone();
        if root.eq_ignore_ascii_case("not") {
            return self.fail(&format!("`{word}` is written in lower case: `not`"));
        }
        if !ROOTS.contains(&root.as_str()) {
            let hint = did_you_mean(&root, "paths start with", &ROOTS);
            return self.fail(&format!("\"{word}\" is not a path to compare; {hint}"));
        }
        self.at += 1;
        self.path_brackets(&mut segments)?;
        if segments.iter().any(String::is_empty) {
            self.at -= 1;
            return self.fail(&format!("\"{word}\" has an empty part between its dots"));
        }
        if segments.len() < 2 {
            self.at -= 1;
            return self.fail(&format!(
                "\"{word}\" is not a value to compare; name what is in it, as in `alert.severity`"
            ));
        }
        Ok(Path { segments })
    }

    /// `["key"]` and `[0]`, and what may follow them after a dot.
    fn path_brackets(&mut self, segments: &mut Vec<String>) -> Result<(), ConditionError> {
        while self.peek() == Some(&TokenKind::ListOpen) {
            self.at += 1;
            let key = match self.peek() {
                Some(TokenKind::Quoted(key)) => key.clone(),
                Some(TokenKind::Word(index)) if index.bytes().all(|b| b.is_ascii_digit()) => index.clone(),
                _ => return self.fail("in brackets stands a quoted key or a whole number"),
            };
            self.at += 1;
            if self.peek() != Some(&TokenKind::ListClose) {
                return self.fail("a `]` is missing here");
            }
            let adjoins = self.offset() + 1;
            self.at += 1;
            segments.push(key);
            if let Some(TokenKind::Word(rest)) = self.peek()
                && self.offset() == adjoins
                && let Some(rest) = rest.strip_prefix('.')
                && rest.chars().all(|c| is_path_char(c) || c == '.')
            {
                segments.extend(rest.split('.').map(str::to_owned));
                self.at += 1;
            }
        }
        Ok(())
    }

    fn operator(&mut self, path: &Path) -> Result<&'static str, ConditionError> {
        let found = match self.peek() {
            Some(TokenKind::Operator(operator)) => *operator,
            Some(TokenKind::Word(word)) => match OPERATORS.iter().find(|known| *known == word) {
                Some(known) => *known,
                None if word == "and" || word == "or" => return self.bare_path(path),
                None => return self.unknown_operator(&word.clone()),
            },
            None | Some(TokenKind::Close) => return self.bare_path(path),
            Some(_) => return self.fail("an operator is missing here, such as `==`"),
        };
        self.at += 1;
        Ok(found)
    }

    fn bare_path<T>(&self, path: &Path) -> Result<T, ConditionError> {
        self.fail(&format!(
            "`{path}` is compared with nothing; write `{path} == true`"
        ))
    }

    fn unknown_operator<T>(&self, word: &str) -> Result<T, ConditionError> {
        let meant = match word.to_lowercase().as_str() {
            "is" | "eq" | "equals" | "equal" => Some("=="),
            "isnt" | "ne" | "neq" => Some("!="),
            "lt" => Some("<"),
            "le" | "lte" => Some("<="),
            "gt" => Some(">"),
            "ge" | "gte" => Some(">="),
            "has" | "includes" | "include" => Some("contains"),
            "like" | "regex" | "~" | "startswith" | "endswith" | "starts_with" | "ends_with" => {
                Some("matches")
            }
            lower => nearest(lower, OPERATORS),
        };
        let hint = match meant {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("the operators are {}", OPERATORS.join(" ")),
        };
        self.fail(&format!("unknown operator \"{word}\"; {hint}"))
    }

    fn test(&mut self, operator: &'static str) -> Result<Test, ConditionError> {
        if operator == "in" {
            return self.list().map(Test::In);
        }
        let start = self.at;
        let value = self.literal(operator)?;
        Ok(match operator {
            "==" => Test::Equal(value),
            "!=" => Test::NotEqual(value),
            "<" => Test::Less(value),
            "<=" => Test::LessOrEqual(value),
            ">" => Test::Greater(value),
            ">=" => Test::GreaterOrEqual(value),
            "contains" => Test::Contains(value),
            _ => {
                let pattern = match &value {
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                match anchored(&pattern) {
                    Ok(regex) => Test::Matches(regex),
                    Err(reason) => {
                        self.at = start;
                        return self.fail(&format!("\"{pattern}\" is not a regular expression: {reason}"));
                    }
                }
            }
        })
    }

    fn list(&mut self) -> Result<Vec<Value>, ConditionError> {
        if self.peek() != Some(&TokenKind::ListOpen) {
            return self.fail("after `in` stands a list, as in `in [critical, warning]`");
        }
        self.at += 1;
        let mut values = Vec::new();
        loop {
            if self.peek() == Some(&TokenKind::ListClose) && values.is_empty() {
                return self.fail("this list is empty, so that nothing is ever in it");
            }
            values.push(self.literal("in")?);
            match self.peek() {
                Some(TokenKind::Comma) => self.at += 1,
                Some(TokenKind::ListClose) => {
                    self.at += 1;
                    return Ok(values);
                }
                _ => return self.fail("a `,` or a `]` is missing here"),
            }
        }
    }

    fn literal(&mut self, operator: &str) -> Result<Value, ConditionError> {
        let value = match self.peek() {
            Some(TokenKind::Quoted(text)) => Value::from(text.as_str()),
            Some(TokenKind::Word(word)) if matches!(word.as_str(), "and" | "or" | "not") => {
                return self.fail(&format!(
                    "a literal is missing after `{operator}`; the word \"{word}\" itself stands in quotes"
                ));
            }
            Some(TokenKind::Word(word)) if is_path(word) => {
                return self.fail(&format!(
                    "the right side of a comparison is a literal, and `{word}` is a path; \
                     put it in quotes if the text itself is meant"
                ));
            }
            Some(TokenKind::Word(word)) => bare(word),
            Some(TokenKind::ListOpen) => {
                return self.fail(&format!("a list stands only after `in`, not after `{operator}`"));
            }
            _ => return self.fail(&format!("a literal is missing after `{operator}`")),
        };
        self.at += 1;
        Ok(value)
    }

    fn takes_word(&mut self, word: &str) -> bool {
        let is_next = self.is_word(word);
        self.at += usize::from(is_next);
        is_next
    }

    fn is_word(&self, word: &str) -> bool {
        self.is_word_at(0, word)
    }

    fn is_word_at(&self, ahead: usize, word: &str) -> bool {
        matches!(self.tokens.get(self.at + ahead), Some(Token { kind: TokenKind::Word(found), .. }) if found == word)
    }

    fn peek(&self) -> Option<&TokenKind> {
        self.tokens.get(self.at).map(|token| &token.kind)
    }

    fn offset(&self) -> usize {
        self.tokens.get(self.at).map_or(self.end, |token| token.offset)
    }

    fn fail<T>(&self, message: &str) -> Result<T, ConditionError> {
        Err(ConditionError {
            offset: self.offset(),
            message: message.to_owned(),
        })
    }
}

fn single_or(mut parts: Vec<Expr>, many: fn(Vec<Expr>) -> Expr) -> Expr {
    match (parts.len(), parts.pop()) {
        (1, Some(only)) => only,
        (_, Some(last)) => {
            parts.push(last);
            many(parts)
        }
        (_, None) => many(parts),
    }
}

/// Whether a bare word is a path by its looks: `alert.name` is, `web-1.example.com` is not.
fn is_path(word: &str) -> bool {
    word.split_once('.')
        .is_some_and(|(root, rest)| ROOTS.contains(&root) && !rest.is_empty())
}

fn bare(word: &str) -> Value {
    match word {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        "null" => Value::Null,
        _ => number(word).map_or_else(|| Value::from(word), Value::Number),
    }
}

/// A decimal number as JSON has it, with an optional `+`; anything else (`0x1f`, `1_000`, `inf`)
/// is text.
pub(super) fn number(text: &str) -> Option<Number> {
    let plain = text.strip_prefix('+').unwrap_or(text);
    if !plain.starts_with(|c: char| c.is_ascii_digit() || c == '-') || plain.len() > 64 {
        return None;
    }
    serde_json::from_str::<Number>(plain).ok()
}
