//! Tables as kubectl prints them: upper-case heads, columns as wide as they must be, three spaces between.

use super::{Style, clean, tone_of};

/// Spaces between columns.
const GAP: usize = 3;

/// The table as text, one line a row. Cells are cleaned; states among them get their colours.
pub fn table(heads: &[&str], rows: &[Vec<String>], style: Style) -> String {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            row.iter()
                .map(|cell| {
                    if cell.is_empty() {
                        "-".to_owned()
                    } else {
                        super::one_line(cell, 200)
                    }
                })
                .collect()
        })
        .collect();
    let width_of = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        cells.chain([heads[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width_of).collect();
    let mut text = String::new();
    let mut push = |cells: &mut dyn Iterator<Item = (&str, String)>| {
        let mut padding = 0;
        for ((plain, painted), width) in cells.zip(&widths) {
            text.push_str(&" ".repeat(padding));
            text.push_str(&painted);
            padding = width - plain.chars().count() + GAP;
        }
        text.push('\n');
    };
    push(&mut heads.iter().map(|head| (*head, (*head).to_owned())));
    for row in &rows {
        push(&mut row.iter().map(|cell| {
            let painted = tone_of(cell).map_or_else(|| cell.clone(), |tone| style.paint(tone, cell));
            (cell.as_str(), painted)
        }));
    }
    text
}

/// Text in lines of at most `width` characters, each with `indent` before it; its own line ends stay.
pub fn wrapped(text: &str, indent: &str, width: usize) -> String {
    let mut out = String::new();
    for paragraph in clean(text).trim_end().lines() {
        let mut line = String::new();
        for word in paragraph.split(' ') {
            let room = width.saturating_sub(indent.chars().count());
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > room {
                out.push_str(&format!("{indent}{line}\n"));
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        out.push_str(format!("{indent}{line}").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let rows = vec![
            vec!["a".to_owned(), "Succeeded".to_owned(), "3s".to_owned()],
            vec!["longer".to_owned(), "Failed".to_owned(), String::new()],
        ];
        let expected = "NAME     STATUS      AGE\na        Succeeded   3s\nlonger   Failed      -\n";
        assert_eq!(
            table(&["NAME", "STATUS", "AGE"], &rows, Style::default()),
            expected
        );
    }

    #[test]
    fn colours_do_not_move_columns() {
        let rows = vec![vec!["Failed".to_owned(), "x".to_owned()]];
        let style = Style {
            colour: true,
            terminal: true,
        };
        let text = table(&["STATUS", "NAME"], &rows, style);
        assert_eq!(text, "STATUS   NAME\n\u{1b}[31mFailed\u{1b}[0m   x\n");
    }

    #[test]
    fn lines_are_wrapped_at_words() {
        assert_eq!(
            wrapped("one two three\nfour", "  ", 10),
            "  one two\n  three\n  four\n"
        );
        assert_eq!(wrapped("unbreakable-word", "", 4), "unbreakable-word\n");
    }
}
