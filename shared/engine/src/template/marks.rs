//! Marks: how a printed value leaves Tera without being mixed up with the template's own text.
//!
//! A mark is three private-use characters around the value itself, in which those characters are
//! written otherwise. It carries all there is to know, so a render shares no state with another.
//! - A template that holds one of these characters is refused when it is compiled.
//! - What does not read back as a mark was changed on the way, and is an error.

const OPEN: char = '\u{10F1E0}';
const CLOSE: char = '\u{10F1E1}';
const AGAIN: char = '\u{10F1E2}';

/// A part of what Tera printed.
#[derive(Debug, PartialEq)]
pub(super) enum Part {
    Text(String),
    /// A value, with the number of the expression that printed it.
    Value(usize, crate::shell::Value),
}

/// Whether `text` could be mistaken for a mark.
pub(super) fn is_in(text: &str) -> bool {
    text.contains([OPEN, CLOSE, AGAIN])
}

pub(super) fn write(printed: usize, text: &str, is_number: bool) -> String {
    let mut out = String::with_capacity(text.len() + 10);
    out.push(OPEN);
    out.push_str(&printed.to_string());
    out.push(if is_number { 'n' } else { 's' });
    for c in text.chars() {
        match c {
            OPEN => out.extend([AGAIN, '0']),
            CLOSE => out.extend([AGAIN, '1']),
            AGAIN => out.extend([AGAIN, '2']),
            c => out.push(c),
        }
    }
    out.push(CLOSE);
    out
}

/// Takes the text apart again; `None` when a mark was cut or changed.
pub(super) fn read(printed: &str) -> Option<Vec<Part>> {
    let mut parts = Vec::new();
    let mut rest = printed;
    while let Some(at) = rest.find([OPEN, CLOSE, AGAIN]) {
        if at > 0 {
            parts.push(Part::Text(rest[..at].to_owned()));
        }
        let mut chars = rest[at..].chars();
        if chars.next() != Some(OPEN) {
            return None;
        }
        let mut number = 0_usize;
        let is_number = loop {
            match chars.next()? {
                'n' => break true,
                's' => break false,
                c => number = number.checked_mul(10)?.checked_add(c.to_digit(10)? as usize)?,
            }
        };
        let mut text = String::new();
        loop {
            match chars.next()? {
                CLOSE => break,
                OPEN => return None,
                AGAIN => text.push(match chars.next()? {
                    '0' => OPEN,
                    '1' => CLOSE,
                    '2' => AGAIN,
                    _ => return None,
                }),
                c => text.push(c),
            }
        }
        parts.push(Part::Value(number, crate::shell::Value { text, is_number }));
        rest = chars.as_str();
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest.to_owned()));
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_comes_back() {
        for text in ["", "x", "\u{10F1E0}s\u{10F1E1}", "\u{10F1E2}2", "a\nb"] {
            let printed = format!("a{}b", write(12, text, false));
            let value = crate::shell::Value {
                text: text.to_owned(),
                is_number: false,
            };
            let expected = vec![
                Part::Text("a".to_owned()),
                Part::Value(12, value),
                Part::Text("b".to_owned()),
            ];
            assert_eq!(read(&printed), Some(expected));
        }
    }

    #[test]
    fn a_changed_mark_is_noticed() {
        let mark = write(3, "value", false);
        assert_eq!(read(&mark.to_uppercase()), None);
        let cut: String = mark.chars().take(5).collect();
        assert_eq!(read(&cut), None);
        assert_eq!(read("x\u{10F1E1}"), None);
    }
}
