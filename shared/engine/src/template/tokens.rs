//! Cuts a template into the pieces Tera will see: text, raw text, comments, `{{ … }}` and `{% … %}`.
//!
//! Tera keeps its own parser to itself, and three things need one: step names with hyphens
//! (which Tera reads as subtraction), the list of paths a template reads, and the walk through a
//! command's branches. So this follows Tera 2's lexer rule by rule, whitespace control included.
//! - Every byte of the source belongs to exactly one piece, in order.
//! - Text is what Tera will print of it: already trimmed where a `-` says so.
//! - What this lexer does not know is an error here, before Tera sees it.

use super::TemplateError;

/// One piece of a template, with the bytes of the source it came from.
pub(super) enum Piece<'a> {
    /// Text that is printed as it stands, trimmed as Tera will trim it.
    Text(&'a str),
    /// `{{ … }}`.
    Value(Inside<'a>),
    /// `{% … %}`, except `raw`, which is text.
    Tag(Inside<'a>),
}

/// What stands between the delimiters.
pub(super) struct Inside<'a> {
    /// Where the piece begins, delimiter included.
    pub start: usize,
    pub tokens: Vec<Token<'a>>,
}

impl Inside<'_> {
    /// Where the first token begins and the last ends; `None` when there is nothing inside.
    pub fn range(&self) -> Option<(usize, usize)> {
        Some((self.tokens.first()?.start, self.tokens.last()?.end))
    }
}

#[derive(Clone, Debug)]
pub(super) struct Token<'a> {
    pub kind: Kind<'a>,
    pub start: usize,
    pub end: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind<'a> {
    Name(&'a str),
    /// The name behind `steps.`, hyphens and all.
    Step(&'a str),
    Text(String),
    Integer(&'a str),
    Float,
    Sign(&'static str),
}

impl Token<'_> {
    pub fn is(&self, sign: &str) -> bool {
        matches!(self.kind, Kind::Sign(s) if s == sign)
    }

    pub fn is_name(&self, name: &str) -> bool {
        matches!(self.kind, Kind::Name(n) if n == name)
    }
}

/// Longer signs first: the first that fits is taken, as in Tera.
const SIGNS: [&str; 31] = [
    "...", "//", "**", "==", "!=", ">=", "<=", "</", "?.", "?[", "+", "-", "*", "/", "%", "!", ".", ",", ":",
    "~", "|", "=", ">", "<", "(", ")", "[", "]", "{", "}", "@",
];

/// Cuts `source` into pieces, or says at which byte it cannot.
pub(super) fn pieces(source: &str) -> Result<Vec<Piece<'_>>, TemplateError> {
    let mut out = Vec::new();
    let mut at = 0;
    let mut trims_next = false;
    while at < source.len() {
        let rest = &source[at..];
        if rest.starts_with("{{") {
            let (inside, end, trims) = inside(source, at, "}}")?;
            out.push(Piece::Value(inside));
            at = end;
            trims_next = trims;
        } else if rest.starts_with("{%") {
            let body = at + opening(rest);
            if let Some(raw) = raw_block(source, body)? {
                let mut text = raw.text;
                if trims_next {
                    text = text.trim_start();
                }
                if opens_with_trim(&source[raw.end..]) {
                    text = text.trim_end();
                }
                out.push(Piece::Text(text));
                at = raw.end;
                trims_next = raw.trims;
            } else {
                let (inside, end, trims) = inside(source, at, "%}")?;
                out.push(Piece::Tag(inside));
                at = end;
                trims_next = trims;
            }
        } else if rest.starts_with("{#") {
            let body = at + opening(rest);
            let Some(length) = source[body..].find("#}") else {
                return Err(TemplateError::at(
                    source,
                    at,
                    "a comment is opened with `{#` and never closed: write `#}`, or for the shell's own `${#x}` write `{% raw %}${#x}{% endraw %}`",
                ));
            };
            trims_next |= source[body..body + length].ends_with('-');
            at = body + length + 2;
        } else {
            let length = ["{{", "{%", "{#"]
                .iter()
                .filter_map(|mark| rest.find(mark))
                .min()
                .unwrap_or(rest.len());
            let mut text = &rest[..length];
            if trims_next {
                text = text.trim_start();
            }
            if opens_with_trim(&rest[length..]) {
                text = text.trim_end();
            }
            out.push(Piece::Text(text));
            at += length;
            trims_next = false;
        }
    }
    Ok(out)
}

/// The length of an opening delimiter, its `-` included.
fn opening(rest: &str) -> usize {
    if rest.as_bytes().get(2) == Some(&b'-') {
        3
    } else {
        2
    }
}

fn opens_with_trim(rest: &str) -> bool {
    rest.starts_with("{{-") || rest.starts_with("{%-") || rest.starts_with("{#-")
}

struct Raw<'a> {
    text: &'a str,
    end: usize,
    trims: bool,
}

/// `{% raw %} … {% endraw %}`, where `body` stands behind the `{%`.
fn raw_block(source: &str, body: usize) -> Result<Option<Raw<'_>>, TemplateError> {
    let Some((length, trims_start)) = tag_named(&source[body..], "raw") else {
        return Ok(None);
    };
    let text_start = body + length;
    let mut from = text_start;
    while let Some(found) = source[from..].find("{%") {
        let text_end = from + found;
        from = text_end + 2;
        let trims_end = source[from..].starts_with('-');
        if let Some((length, trims)) = tag_named(&source[from..], "endraw") {
            let mut text = &source[text_start..text_end];
            if trims_start {
                text = text.trim_start();
            }
            if trims_end {
                text = text.trim_end();
            }
            return Ok(Some(Raw {
                text,
                end: from + length,
                trims,
            }));
        }
    }
    Err(TemplateError::at(
        source,
        body,
        "`{% raw %}` is never closed: write `{% endraw %}`",
    ))
}

/// Matches `-? name -?%}` and gives its length and whether it trims what follows.
fn tag_named(rest: &str, name: &str) -> Option<(usize, bool)> {
    let inner = rest.strip_prefix('-').unwrap_or(rest);
    let inner = inner.trim_start_matches(|c: char| c.is_ascii_whitespace());
    let inner = inner.strip_prefix(name)?;
    let inner = inner.trim_start_matches(|c: char| c.is_ascii_whitespace());
    let (inner, trims) = match inner.strip_prefix('-') {
        Some(inner) => (inner, true),
        None => (inner, false),
    };
    let inner = inner.strip_prefix("%}")?;
    Some((rest.len() - inner.len(), trims))
}

/// Reads the tokens from the delimiter at `start` to the one that closes it.
fn inside<'a>(
    source: &'a str,
    start: usize,
    close: &str,
) -> Result<(Inside<'a>, usize, bool), TemplateError> {
    let mut at = start + opening(&source[start..]);
    let mut tokens: Vec<Token<'a>> = Vec::new();
    loop {
        let rest = &source[at..];
        let blank = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_whitespace()).len();
        at += blank;
        let rest = &source[at..];
        if rest.is_empty() {
            let message = format!("`{}` is never closed: write `{close}`", &source[start..start + 2]);
            return Err(TemplateError::at(source, start, message));
        }
        if let Some(closed) = rest.strip_prefix('-')
            && closed.starts_with(close)
        {
            return Ok((Inside { start, tokens }, at + 3, true));
        }
        if rest.starts_with(close) {
            return Ok((Inside { start, tokens }, at + 2, false));
        }
        let step = if follows_steps(&tokens) {
            step_name(source, at, close)
        } else {
            None
        };
        let next = match step {
            Some(step) => step,
            None => token(source, at)?,
        };
        at = next.end;
        tokens.push(next);
    }
}

/// Whether the tokens end in `steps.` with `steps` as a root.
fn follows_steps(tokens: &[Token<'_>]) -> bool {
    let [before @ .., name, dot] = tokens else {
        return false;
    };
    name.is_name("steps")
        && (dot.is(".") || dot.is("?."))
        && !before.last().is_some_and(|token| token.is(".") || token.is("?."))
}

/// A step's name may hold hyphens and begin with a digit; a `-` that closes the tag is not its.
fn step_name<'a>(source: &'a str, at: usize, close: &str) -> Option<Token<'a>> {
    let rest = &source[at..];
    let mut length = rest
        .bytes()
        .take_while(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-'))
        .count();
    if rest[..length].ends_with('-') && rest[length..].starts_with(close) {
        length -= 1;
    }
    (length > 0).then(|| Token {
        kind: Kind::Step(&rest[..length]),
        start: at,
        end: at + length,
    })
}

fn token(source: &str, at: usize) -> Result<Token<'_>, TemplateError> {
    let rest = &source[at..];
    let bytes = rest.as_bytes();
    let (kind, length) = match bytes[0] {
        quote @ (b'"' | b'\'' | b'`') => text(source, at, quote)?,
        b'0'..=b'9' => number(rest),
        b'a'..=b'z' | b'A'..=b'Z' | b'_' => {
            let length = bytes
                .iter()
                .take_while(|c| c.is_ascii_alphanumeric() || **c == b'_')
                .count();
            (Kind::Name(&rest[..length]), length)
        }
        _ => match SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            Some(sign) => (Kind::Sign(sign), sign.len()),
            None => {
                let found = rest.chars().next().unwrap_or_default();
                return Err(TemplateError::at(
                    source,
                    at,
                    format!("`{found}` means nothing in a template's expression"),
                ));
            }
        },
    };
    Ok(Token {
        kind,
        start: at,
        end: at + length,
    })
}

fn number(rest: &str) -> (Kind<'_>, usize) {
    let mut is_float = false;
    let length = rest
        .bytes()
        .take_while(|c| {
            if *c == b'.' && !is_float {
                is_float = true;
                return true;
            }
            c.is_ascii_digit()
        })
        .count();
    (
        if is_float {
            Kind::Float
        } else {
            Kind::Integer(&rest[..length])
        },
        length,
    )
}

fn text(source: &str, at: usize, quote: u8) -> Result<(Kind<'_>, usize), TemplateError> {
    let mut out = String::new();
    let mut chars = source[at + 1..].char_indices();
    while let Some((offset, c)) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some((_, c @ ('"' | '\'' | '/' | '\\'))) => out.push(c),
                Some((_, 'n')) => out.push('\n'),
                Some((_, 't')) => out.push('\t'),
                Some((_, 'r')) => out.push('\r'),
                _ => {
                    return Err(TemplateError::at(
                        source,
                        at + 1 + offset,
                        "only \\\", \\', \\/, \\\\, \\n, \\t and \\r are known after a backslash",
                    ));
                }
            },
            c if c == char::from(quote) => return Ok((Kind::Text(out), offset + 2)),
            c => out.push(c),
        }
    }
    let message = format!("a string is opened with `{}` and never closed", char::from(quote));
    Err(TemplateError::at(source, at, message))
}
