//! Cuts a condition into tokens: words, quoted strings, symbols.
//!
//! Invariant: every character is in exactly one token or is white space; what is no token is an
//! error with a remedy.

use super::{CONDITION_BYTES_MAX, ConditionError};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub kind: TokenKind,
    /// In characters from the start.
    pub offset: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// Bare text: a path, an operator in letters, a bare literal.
    Word(String),
    /// A quoted string, its quotes and escapes removed.
    Quoted(String),
    /// `==`, `!=`, `<`, `<=`, `>`, `>=`.
    Operator(&'static str),
    Open,
    Close,
    ListOpen,
    ListClose,
    Comma,
}

/// What a part of a path may be made of without brackets and quotes.
pub(super) fn is_path_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

fn ends_word(c: char) -> bool {
    c.is_whitespace()
        || matches!(
            c,
            '(' | ')' | '[' | ']' | ',' | '"' | '\'' | '=' | '<' | '>' | '!'
        )
}

pub(super) fn tokens(source: &str) -> Result<Vec<Token>, ConditionError> {
    if source.len() > CONDITION_BYTES_MAX {
        return Err(ConditionError {
            offset: 0,
            message: format!("a condition may have {CONDITION_BYTES_MAX} bytes, not more"),
        });
    }
    let chars: Vec<char> = source.chars().collect();
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        if c.is_whitespace() {
            at += 1;
            continue;
        }
        let (kind, next) = token(&chars, at)?;
        found.push(Token { kind, offset: at });
        at = next;
    }
    Ok(found)
}

fn token(chars: &[char], at: usize) -> Result<(TokenKind, usize), ConditionError> {
    let fail = |message: &str| {
        Err(ConditionError {
            offset: at,
            message: message.to_owned(),
        })
    };
    let next = chars.get(at + 1).copied();
    match (chars[at], next) {
        ('{', Some('{' | '%')) => fail(
            "a condition is not a template: write the path without braces, \
             as in `alert.severity == critical`",
        ),
        ('(', _) => Ok((TokenKind::Open, at + 1)),
        (')', _) => Ok((TokenKind::Close, at + 1)),
        ('[', _) => Ok((TokenKind::ListOpen, at + 1)),
        (']', _) => Ok((TokenKind::ListClose, at + 1)),
        (',', _) => Ok((TokenKind::Comma, at + 1)),
        ('=', Some('=')) if chars.get(at + 2) == Some(&'=') => fail("unknown operator `===`; write `==`"),
        ('=', Some('=')) => Ok((TokenKind::Operator("=="), at + 2)),
        ('=', Some('~')) => fail("unknown operator `=~`; write `matches`"),
        ('=', _) => fail("unknown operator `=`; write `==`"),
        ('!', Some('=')) => Ok((TokenKind::Operator("!="), at + 2)),
        ('!', Some('~')) => fail("unknown operator `!~`; write `not` before a `matches`"),
        ('!', _) => fail("unknown operator `!`; write `not`"),
        ('<', Some('=')) => Ok((TokenKind::Operator("<="), at + 2)),
        ('<', Some('>')) => fail("unknown operator `<>`; write `!=`"),
        ('<', _) => Ok((TokenKind::Operator("<"), at + 1)),
        ('>', Some('=')) => Ok((TokenKind::Operator(">="), at + 2)),
        ('>', _) => Ok((TokenKind::Operator(">"), at + 1)),
        ('&', Some('&')) => fail("unknown operator `&&`; write `and`"),
        ('|', Some('|')) => fail("unknown operator `||`; write `or`"),
        (quote @ ('"' | '\''), _) => quoted(chars, at, quote),
        _ => word(chars, at),
    }
}

fn word(chars: &[char], start: usize) -> Result<(TokenKind, usize), ConditionError> {
    let length = chars[start..]
        .iter()
        .position(|c| ends_word(*c))
        .unwrap_or(chars.len() - start);
    let text: String = chars[start..start + length].iter().collect();
    if text.contains("{{") || text.contains("}}") {
        return Err(ConditionError {
            offset: start,
            message: "a condition is not a template: write the path without braces".to_owned(),
        });
    }
    Ok((TokenKind::Word(text), start + length))
}

fn quoted(chars: &[char], start: usize, quote: char) -> Result<(TokenKind, usize), ConditionError> {
    let mut text = String::new();
    let mut at = start + 1;
    while let Some(&c) = chars.get(at) {
        match (c, chars.get(at + 1)) {
            (c, _) if c == quote => return Ok((TokenKind::Quoted(text), at + 1)),
            // Only what must be escaped is an escape: a regular expression's `\d` stays as it is.
            ('\\', Some(&escaped)) if escaped == quote || escaped == '\\' => {
                text.push(escaped);
                at += 2;
            }
            (c, _) => {
                text.push(c);
                at += 1;
            }
        }
    }
    Err(ConditionError {
        offset: start,
        message: format!("this string has no closing {quote}"),
    })
}
