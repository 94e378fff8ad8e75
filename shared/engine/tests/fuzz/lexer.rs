//! A second reader of shell commands, as naive as can be: words, quotes, operators. What it does not know it says.
//!
//! It shares no code with the engine, so that a mistake would have to be made twice.

/// A piece of a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// A word with its quotes taken off.
    Word(String),
    /// One or two characters that end a word.
    Operator(String),
}

/// The tokens of `command`; `None` where it holds what this reader does not know.
pub fn read(command: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut word: Option<String> = None;
    let mut rest = command.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            ' ' | '\t' => tokens.extend(word.take().map(Token::Word)),
            '\n' | ';' | '&' | '|' => {
                tokens.extend(word.take().map(Token::Word));
                let mut operator = String::from(c);
                if c != '\n' && rest.peek() == Some(&c) {
                    operator.extend(rest.next());
                }
                tokens.push(Token::Operator(operator));
            }
            '\'' => {
                let text = word.get_or_insert_default();
                loop {
                    match rest.next()? {
                        '\'' => break,
                        inner => text.push(inner),
                    }
                }
            }
            '"' => {
                let text = word.get_or_insert_default();
                loop {
                    match rest.next()? {
                        '"' => break,
                        '`' | '$' => return None,
                        '\\' => match rest.next()? {
                            '\n' => {}
                            escaped @ ('"' | '\\' | '$' | '`') => text.push(escaped),
                            other => text.extend(['\\', other]),
                        },
                        inner => text.push(inner),
                    }
                }
            }
            '\\' => match rest.next()? {
                '\n' => {}
                escaped => word.get_or_insert_default().push(escaped),
            },
            '#' if word.is_none() => return None,
            '$' | '`' | '<' | '>' | '(' | ')' | '{' | '}' | '*' | '?' | '[' | ']' | '!' | '~' => return None,
            plain => word.get_or_insert_default().push(plain),
        }
    }
    tokens.extend(word.map(Token::Word));
    Some(tokens)
}

#[test]
fn it_reads_as_a_shell_does() {
    let word = |text: &str| Token::Word(text.to_owned());
    let operator = |text: &str| Token::Operator(text.to_owned());
    assert_eq!(
        read("a 'b c'\"d \\\" e\"\\ f; g&&h\n''"),
        Some(vec![
            word("a"),
            word("b cd \" e f"),
            operator(";"),
            word("g"),
            operator("&&"),
            word("h"),
            operator("\n"),
            word("")
        ])
    );
    for unknown in ["echo $x", "a `b`", "\"$x\"", "a > b", "(a)", "# x", "'", "\\"] {
        assert_eq!(read(unknown), None, "{unknown}");
    }
}
