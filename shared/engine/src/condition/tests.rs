#![allow(clippy::unwrap_used)]

use expect_test::{Expect, expect};
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn context() -> Value {
    json!({
        "alert": {"name": "PodCrash", "severity": "critical", "labels": {"app.kubernetes.io/name": "web", "pod": "web-1"}},
        "source": {"data": {"count": "10", "flag": true, "none": null, "list": [1, "two"], "map": {"k": 1}}},
        "steps": {
            "check-api": {"status": "Succeeded", "output": {"stdout": "ready\n", "exit_code": 0, "load": 1.5}},
            "probe": {"output": {"stdout": " 42\n"}},
        },
        "env": {}, "execution": {"id": "e"},
    })
}

fn check(conditions: &[&str], expect: &Expect) {
    let context = context();
    let lines: Vec<String> = conditions
        .iter()
        .map(|text| match Condition::parse(text) {
            Ok(condition) => {
                let found = condition.evaluate(&context);
                format!(
                    "{text}  =>  {:?}  {}  {}",
                    found.truth, found.actual, found.message
                )
            }
            Err(error) => format!("{text}  =>  {error}"),
        })
        .collect();
    expect.assert_eq(&lines.join("\n"));
}

#[test]
fn comparisons() {
    check(
        &[
            "alert.severity == critical",
            "alert.severity != critical",
            "alert.severity in [critical, warning]",
            "alert.severity not in [critical, warning]",
            "not alert.severity in ['a b', \"c\"]",
            "steps.check-api.output.stdout == ready",
            "steps.check-api.output.stdout contains ead",
            "steps.probe.output.stdout > 41",
            "steps.check-api.output.load >= 1.5",
            "steps.check-api.output.exit_code == \"0\"",
            "source.data.count > 9",
            "source.data.count > \"9\"",
            "source.data.count == 10.0",
            "source.data.flag == true",
            "source.data.flag == \"true\"",
            "source.data.flag > 1",
            "source.data.none == null",
            "source.data.none != null",
            "source.data.list contains two",
            "source.data.list contains 1",
            "source.data.list[1] == two",
            "source.data.list.0 == 1",
            "source.data.map contains k",
            "source.data.map == x",
            "alert.name matches Pod",
            "alert.name matches Pod.*",
            "alert.name matches \"(?i)pod.+\"",
            "alert.labels[\"app.kubernetes.io/name\"] == web",
            "alert.name < zebra",
        ],
        &expect![[r#"
            alert.severity == critical  =>  True  "critical"  met: alert.severity is "critical"
            alert.severity != critical  =>  False  "critical"  not met: alert.severity is "critical", so `alert.severity != critical` is false
            alert.severity in [critical, warning]  =>  True  "critical"  met: alert.severity is "critical"
            alert.severity not in [critical, warning]  =>  False  "critical"  not met: alert.severity is "critical"
            not alert.severity in ['a b', "c"]  =>  True  "critical"  met: alert.severity is "critical", so `alert.severity in ['a b', "c"]` is false
            steps.check-api.output.stdout == ready  =>  True  "ready\n"  met: steps.check-api.output.stdout is "ready\n"
            steps.check-api.output.stdout contains ead  =>  True  "ready\n"  met: steps.check-api.output.stdout is "ready\n"
            steps.probe.output.stdout > 41  =>  True  " 42\n"  met: steps.probe.output.stdout is " 42\n"
            steps.check-api.output.load >= 1.5  =>  True  1.5  met: steps.check-api.output.load is 1.5
            steps.check-api.output.exit_code == "0"  =>  True  0  met: steps.check-api.output.exit_code is 0
            source.data.count > 9  =>  True  "10"  met: source.data.count is "10"
            source.data.count > "9"  =>  True  "10"  met: source.data.count is "10"
            source.data.count == 10.0  =>  True  "10"  met: source.data.count is "10"
            source.data.flag == true  =>  True  true  met: source.data.flag is true
            source.data.flag == "true"  =>  True  true  met: source.data.flag is true
            source.data.flag > 1  =>  Unknown  true  unknown, and so not met: source.data.flag is true, for which `source.data.flag > 1` has no answer
            source.data.none == null  =>  True  null  met: source.data.none is null
            source.data.none != null  =>  False  null  not met: source.data.none is null, so `source.data.none != null` is false
            source.data.list contains two  =>  True  [1,"two"]  met: source.data.list is [1,"two"]
            source.data.list contains 1  =>  True  [1,"two"]  met: source.data.list is [1,"two"]
            source.data.list[1] == two  =>  True  "two"  met: source.data.list.1 is "two"
            source.data.list.0 == 1  =>  True  1  met: source.data.list.0 is 1
            source.data.map contains k  =>  True  {"k":1}  met: source.data.map is {"k":1}
            source.data.map == x  =>  False  {"k":1}  not met: source.data.map is {"k":1}, so `source.data.map == x` is false
            alert.name matches Pod  =>  False  "PodCrash"  not met: alert.name is "PodCrash", so `alert.name matches Pod` is false
            alert.name matches Pod.*  =>  True  "PodCrash"  met: alert.name is "PodCrash"
            alert.name matches "(?i)pod.+"  =>  True  "PodCrash"  met: alert.name is "PodCrash"
            alert.labels["app.kubernetes.io/name"] == web  =>  True  "web"  met: alert.labels["app.kubernetes.io/name"] is "web"
            alert.name < zebra  =>  True  "PodCrash"  met: alert.name is "PodCrash""#]],
    );
}

#[test]
fn three_values() {
    check(
        &[
            "alert.labels.team == a",
            "alert.labels.team != a",
            "not alert.labels.team == a",
            "alert.labels.team == a or alert.severity == critical",
            "alert.labels.team == a and alert.severity == critical",
            "alert.labels.team == a and alert.severity == warning",
            "not (alert.labels.team == a and (alert.severity == warning or env.X == 1))",
            "steps.check-api.output.stdout.deep == 1",
            "source.data.list[7] == 1",
            "env.X == 1",
        ],
        &expect![[r#"
            alert.labels.team == a  =>  Unknown  null  unknown, and so not met: there is no alert.labels.team; alert.labels has app.kubernetes.io/name, pod
            alert.labels.team != a  =>  Unknown  null  unknown, and so not met: there is no alert.labels.team; alert.labels has app.kubernetes.io/name, pod
            not alert.labels.team == a  =>  Unknown  null  unknown, and so not met: there is no alert.labels.team; alert.labels has app.kubernetes.io/name, pod
            alert.labels.team == a or alert.severity == critical  =>  True  {"alert.labels.team":null,"alert.severity":"critical"}  met: there is no alert.labels.team; alert.labels has app.kubernetes.io/name, pod; alert.severity is "critical"
            alert.labels.team == a and alert.severity == critical  =>  Unknown  {"alert.labels.team":null,"alert.severity":"critical"}  unknown, and so not met: there is no alert.labels.team; alert.labels has app.kubernetes.io/name, pod
            alert.labels.team == a and alert.severity == warning  =>  False  {"alert.labels.team":null,"alert.severity":"critical"}  not met: there is no alert.labels.team; alert.labels has app.kubernetes.io/name, pod; alert.severity is "critical", so `alert.severity == warning` is false
            not (alert.labels.team == a and (alert.severity == warning or env.X == 1))  =>  Unknown  {"alert.labels.team":null,"alert.severity":"critical","env.X":null}  unknown, and so not met: there is no alert.labels.team; alert.labels has app.kubernetes.io/name, pod; there is no env.X; env is empty
            steps.check-api.output.stdout.deep == 1  =>  Unknown  null  unknown, and so not met: there is no steps.check-api.output.stdout.deep; steps.check-api.output.stdout is "ready\n"
            source.data.list[7] == 1  =>  Unknown  null  unknown, and so not met: there is no source.data.list.7; source.data.list is a list of 2
            env.X == 1  =>  Unknown  null  unknown, and so not met: there is no env.X; env is empty"#]],
    );
}

#[test]
fn errors_name_the_place_and_the_remedy() {
    check(
        &[
            "",
            "   ",
            "alert.severity",
            "alert.severity and alert.name == x",
            "alert.severity = critical",
            "alert.severity === critical",
            "alert.severity =~ crit",
            "alert.severity equals critical",
            "alert.severity conatins critical",
            "alert.severity frobs critical",
            "alert.severity == critical && alert.name == x",
            "alert.severity == critical extra",
            "alert.severity == critical AND alert.name == x",
            "NOT alert.severity == critical",
            "alert.severity ==",
            "alert.severity == and",
            "alert.severity == alert.name",
            "alert.severity == [a]",
            "alert.severity in critical",
            "alert.severity in []",
            "alert.severity in [a",
            "alert.severity in [a b]",
            "\"critical\" == alert.severity",
            "alrt.severity == critical",
            "status == critical",
            "alert == critical",
            "alert..severity == critical",
            "alert.labels.a/b == c",
            "alert.name matches \"(\"",
            "alert.name matches \"a)|(b\"",
            "alert.name == \"open",
            "(alert.name == x",
            "alert.name == x)",
            "{{ alert.severity }} == critical",
            "alert.severity == {{ env.X }}",
            "! alert.severity == x",
        ],
        &expect![[r#"
              =>  the condition is empty; write `<path> <operator> <literal>`, as in `alert.severity == critical` (at character 1)
                 =>  the condition is empty; write `<path> <operator> <literal>`, as in `alert.severity == critical` (at character 4)
            alert.severity  =>  `alert.severity` is compared with nothing; write `alert.severity == true` (at character 15)
            alert.severity and alert.name == x  =>  `alert.severity` is compared with nothing; write `alert.severity == true` (at character 16)
            alert.severity = critical  =>  unknown operator `=`; write `==` (at character 16)
            alert.severity === critical  =>  unknown operator `===`; write `==` (at character 16)
            alert.severity =~ crit  =>  unknown operator `=~`; write `matches` (at character 16)
            alert.severity equals critical  =>  unknown operator "equals"; did you mean `==`? (at character 16)
            alert.severity conatins critical  =>  unknown operator "conatins"; did you mean `contains`? (at character 16)
            alert.severity frobs critical  =>  unknown operator "frobs"; the operators are == != < <= > >= in contains matches (at character 16)
            alert.severity == critical && alert.name == x  =>  unknown operator `&&`; write `and` (at character 28)
            alert.severity == critical extra  =>  only `and` or `or` may follow here; a string with spaces in it stands in quotes (at character 28)
            alert.severity == critical AND alert.name == x  =>  `AND` is written in lower case: `and` (at character 28)
            NOT alert.severity == critical  =>  `NOT` is written in lower case: `not` (at character 1)
            alert.severity ==  =>  a literal is missing after `==` (at character 18)
            alert.severity == and  =>  a literal is missing after `==`; the word "and" itself stands in quotes (at character 19)
            alert.severity == alert.name  =>  the right side of a comparison is a literal, and `alert.name` is a path; put it in quotes if the text itself is meant (at character 19)
            alert.severity == [a]  =>  a list stands only after `in`, not after `==` (at character 19)
            alert.severity in critical  =>  after `in` stands a list, as in `in [critical, warning]` (at character 19)
            alert.severity in []  =>  this list is empty, so that nothing is ever in it (at character 20)
            alert.severity in [a  =>  a `,` or a `]` is missing here (at character 21)
            alert.severity in [a b]  =>  a `,` or a `]` is missing here (at character 22)
            "critical" == alert.severity  =>  a comparison starts with a path, not with a literal: write `alert.name == "x"` (at character 1)
            alrt.severity == critical  =>  "alrt.severity" is not a path to compare; did you mean "alert"? (at character 1)
            status == critical  =>  "status" is not a path to compare; paths start with: source, alert, steps, env, execution (at character 1)
            alert == critical  =>  "alert" is not a value to compare; name what is in it, as in `alert.severity` (at character 1)
            alert..severity == critical  =>  "alert..severity" has an empty part between its dots (at character 1)
            alert.labels.a/b == c  =>  "alert.labels.a/b" is not a path; a part with other characters than letters, digits, `_` and `-` stands in brackets, as in `alert.labels["app.kubernetes.io/name"]` (at character 1)
            alert.name matches "("  =>  "(" is not a regular expression: unclosed group (at character 20)
            alert.name matches "a)|(b"  =>  "a)|(b" is not a regular expression: unopened group (at character 20)
            alert.name == "open  =>  this string has no closing " (at character 15)
            (alert.name == x  =>  a `)` is missing here (at character 17)
            alert.name == x)  =>  this `)` closes nothing (at character 16)
            {{ alert.severity }} == critical  =>  a condition is not a template: write the path without braces, as in `alert.severity == critical` (at character 1)
            alert.severity == {{ env.X }}  =>  a condition is not a template: write the path without braces, as in `alert.severity == critical` (at character 19)
            ! alert.severity == x  =>  unknown operator `!`; write `not` (at character 1)"#]],
    );
}

#[test]
fn long_values_are_cut() {
    let context = json!({"alert": {"name": "x".repeat(100_000)}});
    let found = Condition::parse("alert.name == y").unwrap().evaluate(&context);
    assert!(found.actual.to_string().len() < 2_100);
    assert!(found.message.len() < 300);
    assert!(found.message.contains("100002 bytes in all"), "{}", found.message);
}

#[test]
fn references_in_order() {
    let condition =
        Condition::parse("steps.check-api.output.a == 1 and not (alert.labels[\"x y\"] == steps)").unwrap();
    let found: Vec<String> = condition.references().iter().map(|p| p.to_string()).collect();
    assert_eq!(found, ["steps.check-api.output.a", "alert.labels[\"x y\"]"]);
    assert_eq!(condition.references()[0].step(), Some("check-api"));
}

#[test]
fn nesting_is_bounded() {
    let deep = format!("{}alert.name == x{}", "(".repeat(3000), ")".repeat(3000));
    assert!(
        Condition::parse(&deep)
            .unwrap_err()
            .message
            .contains("nest at most")
    );
    let nots = format!("{}alert.name == x", "not ".repeat(2000));
    assert!(
        Condition::parse(&nots)
            .unwrap_err()
            .message
            .contains("nest at most")
    );
}

/// A comparison of one of three known truths.
fn atom() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("alert.severity == critical".to_owned()),
        Just("alert.severity == warning".to_owned()),
        Just("alert.labels.absent == x".to_owned()),
    ]
}

fn compound() -> impl Strategy<Value = String> {
    atom().prop_recursive(4, 24, 2, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} and {b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a} or {b})")),
            inner.prop_map(|a| format!("not {a}")),
        ]
    })
}

fn truth(text: &str) -> Truth {
    Condition::parse(text).unwrap().evaluate(&context()).truth
}

proptest! {
    #[test]
    fn never_panics(text in ".{0,200}") {
        if let Ok(condition) = Condition::parse(&text) {
            let _ = condition.evaluate(&context());
        }
    }

    #[test]
    fn never_panics_on_what_looks_like_a_condition(
        parts in prop::collection::vec(prop_oneof![
            Just("alert.severity"), Just("=="), Just("in"), Just("["), Just("]"), Just(","),
            Just("("), Just(")"), Just("not"), Just("and"), Just("or"), Just("\""), Just("'"),
            Just("matches"), Just("1e5"), Just("-"), Just("."), Just("{{"), Just("\\"), Just("é"),
        ], 0..20),
        gap in prop_oneof![Just(""), Just(" ")],
    ) {
        if let Ok(condition) = Condition::parse(&parts.join(gap)) {
            let _ = condition.evaluate(&context());
        }
    }

    #[test]
    fn not_not_is_the_same(a in compound()) {
        prop_assert_eq!(truth(&format!("not not {a}")), truth(&a));
    }

    #[test]
    fn de_morgan(a in compound(), b in compound()) {
        prop_assert_eq!(
            truth(&format!("not ({a} and {b})")),
            truth(&format!("not {a} or not {b}"))
        );
        prop_assert_eq!(
            truth(&format!("not ({a} or {b})")),
            truth(&format!("not {a} and not {b}"))
        );
    }

    #[test]
    fn numeric_strings_compare_as_numbers(a in -1000i64..1000, b in -1000i64..1000) {
        let context = json!({"source": {"data": {"n": a.to_string()}}});
        let met = |op: &str| {
            let text = format!("source.data.n {op} {b}");
            Condition::parse(&text).unwrap().evaluate(&context).met
        };
        prop_assert_eq!(met("<"), a < b);
        prop_assert_eq!(met("=="), a == b);
        prop_assert_eq!(met(">="), a >= b);
    }

    #[test]
    fn matches_is_anchored(text in "[a-z]{1,8}", extra in "[a-z\n ]{1,3}") {
        let regex = anchored(&text).unwrap();
        prop_assert!(regex.is_match(&text));
        let (after, before) = (format!("{text}{extra}"), format!("{extra}{text}"));
        prop_assert!(!regex.is_match(&after));
        prop_assert!(!regex.is_match(&before));
    }
}
