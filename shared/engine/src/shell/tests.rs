//! What is refused in commands, and what is written for a value.

#![allow(clippy::unwrap_used)]

use crate::template::{Kind, RenderLimits, Template};
use expect_test::{Expect, expect};
use serde_json::json;

const STEPS: [&str; 0] = [];

/// Compiles, and renders with `v` in `source.data.v`.
fn run(source: &str, v: serde_json::Value) -> String {
    // `{{v}}` is short for a value in these tests.
    let source = source.replace("{{v}}", "{{ source.data.v }}");
    match Template::compile(&source, Kind::Command, &STEPS) {
        Err(errors) => errors
            .iter()
            .map(|error| format!("invalid: {error}"))
            .collect::<Vec<_>>()
            .join("\n"),
        Ok(template) => {
            let context = json!({"source": {"data": {"v": v, "e": "", "list": ["a", "b c"]}}, "alert": {}});
            template
                .render(&context, &RenderLimits::default())
                .unwrap_or_else(|error| format!("refused: {error}"))
        }
    }
}

fn check(source: &str, v: &str, expected: Expect) {
    expected.assert_eq(&run(source, v.into()));
}

#[test]
fn smoke() {
    check("echo {{v}}", "a'b", expect![[r#"echo 'a'\''b'"#]]);
    check(
        "echo \"x{{v}}y\" 'z{{v}}'",
        "a'b",
        expect![[r#"echo "x"'a'\''b'"y" 'za'\''b'"#]],
    );
    check(
        "cat <<EOF\na{{v}}\nEOF\necho {{v}}",
        "a$b`c\\",
        expect![[r#"
        cat <<EOF
        aa\$b\`c\\
        EOF
        echo 'a$b`c\'"#]],
    );
    check(
        "sh -c 'echo {{v}}'",
        "x",
        expect![[
            r#"invalid: line 1 of the template: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}"#
        ]],
    );
}
