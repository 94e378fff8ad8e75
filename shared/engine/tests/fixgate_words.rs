//! What the fix gate's parser takes for words, a real shell takes for the same words.

#![allow(clippy::unwrap_used)]

use std::process::Command;

use engine::fixgate::parse;
use proptest::prelude::*;

/// The words that `/bin/sh` makes of a command line.
fn words_of_shell(command: &str) -> Vec<String> {
    let script = format!("set -f\nset -- {command}\nfor word do printf '%s\\0' \"$word\"; done");
    let output = Command::new("/bin/sh").args(["-c", &script]).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let mut words: Vec<String> = text.split('\0').map(str::to_owned).collect();
    words.pop();
    words
}

#[test]
fn corpus() {
    for command in [
        "kubectl delete pod web-1",
        "kubectl  delete\tpod 'web-1' \"web-2\"",
        r#"kubectl 'it'\''s' "a\"b" "a\\b" "a\$b" "a\`b" "a\nb" a\ b \' \" \\"#,
        "kubectl '' \"\" a''b \"\"c",
        "kubectl delete \\\n  pod we\\\nb \"x\\\ny\"",
        "kubectl a#b 'x;y' 'x|y' '$x' '`x`' '*' '~' '{a,b}' '!'",
        "kubectl --replicas=3 -n=x a=b %x ^y @z :q ,w +e",
        "kubectl -- -n 'a  b'",
        "é 'ü ö' \\€",
    ] {
        assert_eq!(parse(command).unwrap(), words_of_shell(command), "{command:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn whatever_is_accepted_means_the_same_to_a_shell(
        parts in prop::collection::vec(prop_oneof![
            Just("'"), Just("\""), Just("\\"), Just(" "), Just("\t"), Just("\\\n"), Just("a"), Just("-n"), Just("="),
            Just("#"), Just("$"), Just("''"), Just("\"\""), Just("é"), Just("%"), Just("\\'"), Just("\\\""), Just(";"),
            Just("~"), Just("!"), Just("\\\\"), Just("b c"),
        ], 1..14),
    ) {
        let command = format!("x{}", parts.concat());
        if let Ok(words) = parse(&command) {
            prop_assert_eq!(words, words_of_shell(command.trim()), "{:?}", command);
        }
    }
}
