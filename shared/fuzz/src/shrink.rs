//! From a failing input to a small one that fails as well.

/// Inputs that one shrinking may try.
const TRIES_MAX: u32 = 4_000;

/// Leaves out lines, then ever smaller pieces, then single characters, and writes `a` for what can be anything.
pub(crate) fn shrink(input: &str, fails: impl Fn(&str) -> bool) -> String {
    let mut tries = 0;
    let mut still_fails = |text: &[char]| {
        tries += 1;
        tries <= TRIES_MAX && fails(&text.iter().collect::<String>())
    };
    let mut text: Vec<char> = input.chars().collect();
    loop {
        let before = text.clone();
        let mut part = text.len().div_ceil(2).max(1);
        loop {
            let mut from = 0;
            while from < text.len() {
                let to = (from + part).min(text.len());
                let kept = [&text[..from], &text[to..]].concat();
                if still_fails(&kept) {
                    text = kept;
                } else {
                    from = to;
                }
            }
            if part == 1 {
                break;
            }
            part = part.div_ceil(2);
        }
        for index in 0..text.len() {
            if text[index] != 'a' && !text[index].is_ascii_alphanumeric() {
                let mut plainer = text.clone();
                plainer[index] = 'a';
                if still_fails(&plainer) {
                    text = plainer;
                }
            }
        }
        if text == before {
            return text.into_iter().collect();
        }
    }
}
