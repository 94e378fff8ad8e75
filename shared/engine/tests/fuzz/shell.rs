//! Commands with a value in them: whatever the template and whatever the value, a second reader of shell commands
//! finds the same words and operators as with a harmless value, and in the value's place exactly the value.

use engine::template::{Kind, RenderLimits, Template};
use fuzz::{Target, gist, shape};
use serde_json::json;

use crate::{
    lexer::{Token, read},
    texts,
};

/// Between the value and the template of an input.
const BORDER: &str = "\n====\n";
/// Stands for the value in the template.
const PLACE: &str = "{{ source.data.v }}";
/// Letters that no template holds, and that need no escape.
const HARMLESS: &str = "HARMLESSvalueHARMLESS";

fn render(template: &Template, value: &str) -> Result<String, String> {
    let context = json!({
        "source": { "data": { "v": value, "pod": "web-1", "namespace": "default" } },
        "alert": { "name": "A", "labels": { "pod": "web-1" } },
        "env": {}, "steps": {}, "execution": {},
    });
    template
        .render(&context, &RenderLimits::default())
        .map_err(|error| error.to_string())
}

#[test]
fn a_value_is_a_part_of_its_word_and_nothing_else() {
    let values = [
        "x",
        "",
        "x; touch canary #",
        "$(touch canary)",
        "`touch canary`",
        "\"; touch canary; \"",
        "'; touch canary; '",
        "\\",
        "x\\\n",
        "\n",
        "-rf",
        "--",
        "a=b",
        "*",
        "~",
        "!x",
        "{a,b}",
        "\t",
        "é",
        "'\"'\"'",
    ];
    let templates = [
        "kubectl get pod § -n default",
        "printf '%s' \"§\"",
        "printf '%s' '§'",
        "echo a§b \"c§d\"'e§f'",
        "echo § && echo \"§\" | cat; true",
        "printf -- '%s' §",
        "echo \\\n  §",
        "X=§ printf a",
        "echo \"a\\\"§\" \\'§",
        "echo a;echo §&echo b",
    ];
    let mut seeds: Vec<String> = templates
        .iter()
        .zip(values.iter().cycle())
        .map(|(template, value)| format!("{value}{BORDER}{}", template.replace('§', PLACE)))
        .collect();
    seeds.extend(
        values
            .iter()
            .map(|value| format!("{value}{BORDER}echo {PLACE} \"{PLACE}\" '{PLACE}'")),
    );
    // The commands of the examples, with the value in every place of theirs.
    for manifest in texts("examples", "yaml") {
        let commands = manifest
            .lines()
            .filter_map(|line| line.trim().strip_prefix("command: "));
        seeds.extend(commands.map(|command| format!("x y{BORDER}{command}")));
    }
    let target = Target {
        name: "shell",
        crate_dir: env!("CARGO_MANIFEST_DIR"),
        tmp_dir: env!("CARGO_TARGET_TMPDIR"),
        seeds,
        words: &[
            PLACE,
            "{{ source.data.v | upper }}",
            "{% if source.data.v %}",
            "{% else %}",
            "{% endif %}",
            "{% for x in range(end=2) %}",
            "{% endfor %}",
            "'",
            "\"",
            "\\",
            "\\\n",
            "; ",
            " && ",
            " | ",
            " & ",
            "\n",
            "$(",
            ")",
            "`",
            "${x}",
            "$x",
            "$((",
            "))",
            "<<EOF\n",
            "\nEOF\n",
            "<<'E'\n",
            "\nE\n",
            "sh -c ",
            "eval ",
            "xargs ",
            "if true; then ",
            "; fi",
            "case x in ",
            "esac",
            "for i in ",
            "; do ",
            "; done",
            "{ ",
            "; }",
            "f() { ",
            "> ",
            "2>&1",
            "# ",
            "-- ",
            "env ",
            "sudo ",
            "timeout 1 ",
            "touch canary",
            "[[ ",
            " ]]",
            "~",
            "*",
            "!",
            "export ",
            "$'",
            "<<<",
        ],
    };
    fuzz::fuzz(&target, |input| {
        let (value, source) = input.split_once(BORDER).unwrap_or(("x y", input));
        let template = match Template::compile(source, Kind::Command, &[]) {
            Ok(template) => template,
            Err(errors) => {
                assert!(!errors.is_empty(), "a refusal has a reason");
                return shape(gist(&errors[0]));
            }
        };
        let (hostile, harmless) = (render(&template, value), render(&template, HARMLESS));
        let command = match &hostile {
            Ok(command) => command,
            Err(error) => return shape(("refused", gist(error))),
        };
        // Where the value's own text decides (a filter, a branch), or where it is printed as a part of something,
        // there is nothing to compare with.
        let is_plain = |expression: &str| {
            expression == "source.data.v" || !expression.contains("source") && !expression.contains('|')
        };
        let mut expressions = source
            .split("{{")
            .skip(1)
            .filter_map(|rest| rest.split("}}").next());
        let decides = source.contains("{%") || !expressions.all(|expression| is_plain(expression.trim()));
        let Ok(harmless) = harmless else {
            assert!(decides, "a harmless value is refused where {value:?} is not");
            return shape("only hostile");
        };
        if decides {
            return shape(("decides", source.matches("{%").count()));
        }
        let Some(expected) = read(&harmless) else {
            return shape((
                "unknown",
                source
                    .chars()
                    .filter(|c| c.is_ascii_punctuation())
                    .count()
                    .min(12),
            ));
        };
        let expected: Vec<Token> = expected
            .into_iter()
            .map(|token| match token {
                Token::Word(word) => Token::Word(word.replace(HARMLESS, value)),
                operator @ Token::Operator(_) => operator,
            })
            .collect();
        assert_eq!(
            read(command).as_ref(),
            Some(&expected),
            "{value:?} in {source:?} becomes {command:?}"
        );
        shape((
            "same",
            expected.len().min(12),
            value.chars().filter(|c| !c.is_alphanumeric()).count().min(6),
        ))
    });
}
