//! One input made of others: pieces cut, doubled, moved, taken over; words and odd characters put in.
//!
//! Invariant: the result is text of at most the given bytes.

use crate::Rng;

/// Characters that parsers are known to trip over.
const ODD: [char; 34] = [
    '\0',
    '\t',
    '\n',
    '\r',
    ' ',
    '"',
    '\'',
    '\\',
    '`',
    '$',
    '{',
    '}',
    '(',
    ')',
    '[',
    ']',
    '<',
    '>',
    '|',
    '&',
    ';',
    '#',
    '*',
    '.',
    ',',
    ':',
    '=',
    '-',
    '~',
    '/',
    'é',
    '\u{2028}',
    '\u{feff}',
    '\u{10ffff}',
];

/// Changes that one mutation makes, at most.
const CHANGES_MAX: usize = 6;

pub(crate) fn mutated(base: &str, other: &str, words: &[String], bytes_max: usize, rng: &mut Rng) -> String {
    let mut text: Vec<char> = base.chars().collect();
    let other: Vec<char> = other.chars().collect();
    for _ in 0..1 + rng.below(CHANGES_MAX) {
        change(&mut text, &other, words, rng);
    }
    let mut result = String::with_capacity(text.len());
    for c in text {
        if result.len() + c.len_utf8() > bytes_max {
            break;
        }
        result.push(c);
    }
    result
}

fn change(text: &mut Vec<char>, other: &[char], words: &[String], rng: &mut Rng) {
    let at = rng.below(text.len() + 1);
    match rng.below(10) {
        // A piece is left out, long or short.
        0 => drop(text.drain(piece(at, text.len(), rng))),
        1 => {
            if at < text.len() {
                text[at] = odd(rng);
            }
        }
        2 => text.insert(at, odd(rng)),
        3 | 4 if !words.is_empty() => {
            let word = words[rng.below(words.len())].chars();
            text.splice(at..at, word);
        }
        // In place of what is there.
        5 if !words.is_empty() => {
            let word = words[rng.below(words.len())].chars();
            let replaced = piece(at, text.len(), rng);
            text.splice(replaced, word);
        }
        6 => {
            let doubled: Vec<char> = text[piece(at, text.len(), rng)].to_vec();
            text.splice(at..at, doubled);
        }
        7 => {
            let moved: Vec<char> = text.drain(piece(at, text.len(), rng)).collect();
            let to = rng.below(text.len() + 1);
            text.splice(to..to, moved);
        }
        8 => {
            let from = rng.below(other.len() + 1);
            let taken = other[piece(from, other.len(), rng)].to_vec();
            text.splice(at..at, taken);
        }
        _ => number(text, at, rng),
    }
}

/// From `at` on, mostly short; sometimes to the end of the word or of the line.
fn piece(at: usize, length: usize, rng: &mut Rng) -> std::ops::Range<usize> {
    let most = match rng.below(4) {
        0 => 1,
        1 => 8,
        2 => 40,
        _ => length,
    };
    let to = (at + 1 + rng.below(most.max(1))).min(length);
    at.min(to)..to
}

fn odd(rng: &mut Rng) -> char {
    match rng.below(4) {
        0 => char::from(33 + u8::try_from(rng.below(94)).unwrap_or(0)),
        _ => ODD[rng.below(ODD.len())],
    }
}

/// A number becomes another one, at or over some edge.
fn number(text: &mut Vec<char>, at: usize, rng: &mut Rng) {
    let edges = [
        "0",
        "-1",
        "1",
        "1e400",
        "9007199254740993",
        "18446744073709551616",
        "00",
        "0.1",
        "2147483648",
    ];
    let edge = edges[rng.below(edges.len())].chars();
    let from = (at..text.len())
        .find(|index| text[*index].is_ascii_digit())
        .unwrap_or(text.len());
    let to = (from..text.len())
        .find(|index| !text[*index].is_ascii_digit())
        .unwrap_or(text.len());
    text.splice(from..to, edge);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_stays_within_its_bound() {
        let mut rng = Rng::new(3);
        let words = vec!["word".to_owned()];
        let mut text = "seed é 17".to_owned();
        for _ in 0..5_000 {
            text = mutated(&text, "other", &words, 64, &mut rng);
            assert!(text.len() <= 64, "{text}");
        }
        assert_eq!(mutated("", "", &[], 0, &mut rng), "");
    }
}
