//! The few ways in which a value is written into a command.
//!
//! Wherever a word can stand, single quotes carry every character but themselves and NUL, in
//! every shell; so inside double quotes these are closed and opened again around it. This also
//! keeps a value from joining a variable's name in front of it (`"$x{{ v }}"`).

/// The value as a single-quoted string.
pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", in_single_quotes(text))
}

/// The value within single quotes that are open already.
pub(super) fn in_single_quotes(text: &str) -> String {
    text.replace('\'', "'\\''")
}

/// The value within double quotes that are open already.
pub(super) fn in_double_quotes(text: &str) -> String {
    format!("\"{}\"", quoted(text))
}

/// The value in a heredoc whose delimiter is not quoted.
pub(super) fn in_heredoc(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '\\' | '$' | '`') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// The value in a comment, where only its letters are of any use to a reader.
pub(super) fn in_comment(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_alphanumeric() || " ._/:=-".contains(c) {
                c
            } else {
                '?'
            }
        })
        .collect()
}

/// The value in `$(( ))`, where only a whole number in its plain form may stand.
pub(super) fn in_arithmetic(text: &str) -> Option<String> {
    let number: i64 = text.parse().ok()?;
    // `+5`, `05` (octal to the shell) and the like are refused by comparing with the plain form.
    (number.to_string() == text).then(|| format!("({number})"))
}
