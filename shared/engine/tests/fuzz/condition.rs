//! Conditions: nothing makes the parser or the evaluation panic, and the three-valued logic holds: `not` turns true
//! into false and leaves unknown, `and` and `or` of a condition with itself are itself.

use engine::condition::{Condition, Truth};
use fuzz::{Target, gist, shape};
use serde_json::{Value, json};

fn contexts() -> Vec<Value> {
    vec![
        json!({}),
        json!({
            "source": { "data": { "n": 5, "s": "web-1", "f": 1.5, "b": true, "empty": "", "nothing": null, "list": ["a", 1, null], "deep": { "x": { "y": "7" } } } },
            "alert": { "name": "PodCrashLooping", "severity": "critical", "labels": { "app": "web" } },
            "steps": { "check": { "status": "Succeeded", "output": { "exit_code": 0, "stdout": "17%", "can_auto_fix": true } } },
            "env": { "LIMIT": "90" },
            "execution": { "name": "w" },
        }),
    ]
}

#[test]
fn the_logic_of_conditions_holds() {
    let seeds = [
        "alert.severity == critical",
        "steps.check.output.can_auto_fix == true and alert.severity in [critical, warning]",
        "not (source.data.n > 5 or source.data.s contains \"web\")",
        "source.data.s matches 'web-[0-9]+'",
        "steps.check.output.exit_code != 0",
        "source.data.deep.x.y >= 7 and not source.data.nothing == null",
        "source.data.list contains 1",
        "env.LIMIT <= 90.5",
        "source.data.missing != x or source.data.f < 2",
    ];
    let target = Target {
        name: "condition",
        crate_dir: env!("CARGO_MANIFEST_DIR"),
        tmp_dir: env!("CARGO_TARGET_TMPDIR"),
        seeds: seeds.map(str::to_owned).to_vec(),
        words: &[
            " and ",
            " or ",
            "not ",
            "(",
            ")",
            " == ",
            " != ",
            " < ",
            " <= ",
            " > ",
            " >= ",
            " in ",
            " contains ",
            " matches ",
            "[",
            "]",
            ", ",
            "\"",
            "'",
            "\\",
            "true",
            "false",
            "null",
            "1e3",
            "-1",
            "source.data.n",
            "source.data.s",
            "steps.check.status",
            "alert.labels.app",
            ".*",
            "(a|b)+",
            "[^x]",
            "&&",
            "||",
            "!",
            "=",
            "~",
        ],
    };
    let contexts = contexts();
    fuzz::fuzz(&target, |text| {
        let condition = match Condition::parse(text) {
            Ok(condition) => condition,
            Err(error) => {
                let text = error.to_string();
                assert!(!text.is_empty(), "a refusal has a reason");
                return shape(gist(text));
            }
        };
        let again = Condition::parse(condition.source()).unwrap();
        assert_eq!(
            again.references(),
            condition.references(),
            "its own text is the same condition"
        );
        let source = condition.source();
        // Around it the length or the depth may be too much, which is an error and no wrong answer.
        let around = [
            format!("not ({source})"),
            format!("({source}) and ({source})"),
            format!("({source}) or ({source})"),
        ]
        .map(|text| Condition::parse(&text).ok());
        let mut truths = Vec::new();
        for context in &contexts {
            let found = condition.evaluate(context);
            assert_eq!(
                found.met,
                found.truth == Truth::True,
                "it is met only when it is true"
            );
            assert!(!found.message.is_empty(), "it says why");
            let turned = match found.truth {
                Truth::True => Truth::False,
                Truth::False => Truth::True,
                Truth::Unknown => Truth::Unknown,
            };
            for (wrapped, expected) in around.iter().zip([turned, found.truth, found.truth]) {
                if let Some(wrapped) = wrapped {
                    assert_eq!(wrapped.evaluate(context).truth, expected, "{}", wrapped.source());
                }
            }
            truths.push(format!("{:?}", found.truth));
        }
        shape((truths, condition.references().len(), condition.warnings().len()))
    });
}
