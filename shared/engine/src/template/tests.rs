//! What templates read, refuse and print.

#![allow(clippy::unwrap_used)]

use super::*;
use expect_test::{Expect, expect};
use serde_json::json;

const STEPS: [&str; 5] = ["investigate", "check", "check-api-gateway", "check-api", "1st"];

fn context() -> Json {
    json!({
        "source": {"data": {"pod": "web-1", "null": null}},
        "alert": {"name": "PodDown", "severity": "critical", "labels": {"app": "web", "runbook-url": "http://x"}},
        "steps": {
            "check-api-gateway": {"status": "Succeeded", "output": {"summary": "all's well", "list": [1, null, "a\"b"], "nothing": null}},
            "check": {"output": {"n": 5}},
            "1st": {"output": "one"},
            "investigate": {"output": {"findings": [{"title": "a"}, {"title": "b"}], "z": 1, "a": 2}},
        },
        "env": {"A": "b"},
        "execution": {"id": "x"},
    })
}

fn errors(source: &str, kind: Kind) -> String {
    match Template::compile(source, kind, &STEPS) {
        Ok(_) => "fine".to_owned(),
        Err(errors) => errors
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n"),
    }
}

fn text(source: &str) -> String {
    let template = match Template::compile(source, Kind::Text, &STEPS) {
        Ok(template) => template,
        Err(errors) => return format!("invalid: {}", errors[0]),
    };
    template
        .render(&context(), &RenderLimits::default())
        .unwrap_or_else(|error| format!("error: {error}"))
}

fn check(source: &str, expected: Expect) {
    expected.assert_eq(&text(source));
}

fn refused(source: &str, expected: Expect) {
    expected.assert_eq(&errors(source, Kind::Text));
}

#[test]
fn hyphenated_step_names_are_read_as_written() {
    check(
        "{{ steps.check-api-gateway.output.summary }}",
        expect!["all's well"],
    );
    check(
        "{{steps.check-api-gateway.output.summary|upper}}",
        expect!["ALL'S WELL"],
    );
    check("{{- steps.1st.output -}} ", expect!["one"]);
    check(
        "{{ steps.check.output.n - 1 }} {{ steps.check.output.n-1 }}",
        expect!["4 4"],
    );
    check(
        "{{ \"steps.check-api.output\" }}{% raw %}{{ steps.check-api }}{% endraw %}",
        expect!["steps.check-api.output{{ steps.check-api }}"],
    );
    check(
        "{% if steps.check-api-gateway.status == 'Succeeded' %}yes{% endif %}",
        expect!["yes"],
    );
    check(
        "{{ steps['check-api-gateway'].output.summary }}",
        expect!["all's well"],
    );
    check(
        "{{ steps.check-api-gateway?.output.summary }}",
        expect!["all's well"],
    );
}

#[test]
fn what_is_no_step_or_root_is_an_error() {
    refused(
        "{{ steps.check-api-gatewy.output }}",
        expect![
            "line 1 of the template: there is no step `check-api-gatewy`; did you mean `check-api-gateway`?; for a subtraction, put spaces around the `-`"
        ],
    );
    refused(
        "a\n{{ stepz.check }}",
        expect![
            "line 2 of the template: `stepz` is nothing a template can read; there are source, alert, steps, env, execution"
        ],
    );
    refused(
        "{{ __tera_context }}",
        expect![
            "line 1 of the template: `__tera_context` is internal to the template engine; a template reads source, alert, steps, env, execution"
        ],
    );
    refused(
        "{{ alert.labels.runbook-url }}",
        expect![[
            r#"line 1 of the template: `runbook-url` reads as a subtraction; write ["runbook-url"], or spaces around the `-`"#
        ]],
    );
    refused(
        "{{ steps[alert.name].output }}",
        expect![
            "line 1 of the template: a step is named in the template itself, as in steps.<name>, so that it can be checked beforehand"
        ],
    );
    refused(
        "{{ get_env(name='HOME') }} {{ now() }}",
        expect![[r#"
        line 1 of the template: there is no function `get_env`; there are range, throw
        line 1 of the template: there is no function `now`; there are range, throw"#]],
    );
    refused(
        "{% include 'x' %}",
        expect![
            "line 1 of the template: `{% include %}` reaches beyond this template; write its text out here"
        ],
    );
    refused(
        "{% extends 'x' %}",
        expect![
            "line 1 of the template: `{% extends %}` reaches beyond this template; write its text out here"
        ],
    );
    refused(
        "{{ <x.y /> }}",
        expect![[r#"
        line 1 of the template: components reach beyond this template; write their text out here
        line 1 of the template: `x` is nothing a template can read; there are source, alert, steps, env, execution"#]],
    );
    refused(
        "{{ alert.name | fist_print }}",
        expect!["line 1 of the template: there is no filter `fist_print`; did you mean `first`?"],
    );
    refused(
        "{% set alert = 1 %}",
        expect!["line 1 of the template: `alert` cannot be the name of a variable here: it is taken"],
    );
    refused(
        "{{ item }}{% for item in env %}{{ item }}{% endfor %}{{ item }}",
        expect![[r#"
        line 1 of the template: `item` is nothing a template can read; there are source, alert, steps, env, execution
        line 1 of the template: `item` is nothing a template can read; there are source, alert, steps, env, execution"#]],
    );
    refused(
        "{{ [y for y in range(end=3)] }}{{ y }}",
        expect![
            "line 1 of the template: `y` is nothing a template can read; there are source, alert, steps, env, execution"
        ],
    );
}

#[test]
fn broken_syntax_names_the_line() {
    refused(
        "a\n{{ alert.name",
        expect!["line 2 of the template: `{{` is never closed: write `}}`"],
    );
    refused(
        "a\n\n{{ alert.name + }}",
        expect!["line 3 of the template: `}}` stands where a value is expected"],
    );
    refused(
        "{{ source.data.list.1 }}",
        expect![
            "line 1 of the template: `1` stands where a name is expected; an item of a list is written in brackets, as in `list[0]`"
        ],
    );
    refused(
        "{{ alert.name | default(\"x\") }}",
        expect![[
            r#"line 1 of the template: `"x"` stands where a name is expected; arguments have names, as in `default(value="none")`"#
        ]],
    );
    refused(
        "{{ source.data. }}",
        expect!["line 1 of the template: `}}` stands where a name is expected"],
    );
    refused(
        "{{ alert.name = 1 }}",
        expect!["line 1 of the template: `=` stands where the end of the expression is expected"],
    );
    refused(
        "{{ (alert.name }}",
        expect!["line 1 of the template: `}}` stands where `)` is expected"],
    );
    refused(
        "{{ .alert.name }}",
        expect!["line 1 of the template: `.alert.name` stands where a value is expected"],
    );
    refused(
        "{% if alert.name %}x",
        expect!["line 1 of the template: this tag is never closed: write `{% endif %}`"],
    );
    refused(
        "{{ }}",
        expect!["line 1 of the template: `{{ }}` holds nothing: name what is to be printed"],
    );
    refused(
        "{# x",
        expect![
            "line 1 of the template: a comment is opened with `{#` and never closed: write `#}`, or for the shell's own `${#x}` write `{% raw %}${#x}{% endraw %}`"
        ],
    );
}

#[test]
fn what_is_missing_names_the_path_and_the_keys() {
    check(
        "{{ steps.investigate.output.findngs }}",
        expect![
            "error: line 1 of the template: `steps.investigate.output.findngs` does not exist: `steps.investigate.output` has findings, z, a; did you mean `findings`?"
        ],
    );
    check(
        "{{ steps.investigate.outputs.deep.er }}",
        expect![
            "error: line 1 of the template: `steps.investigate.outputs.deep.er` does not exist: `steps.investigate` has output; did you mean `output`?"
        ],
    );
    check(
        "\n{{ steps.investigate.output.findings[5].title }}",
        expect![
            "error: line 2 of the template: `steps.investigate.output.findings.5.title` does not exist: `steps.investigate.output.findings` is a list of 2"
        ],
    );
    check(
        "{{ steps.check-api-gateway.output.sumary | upper }}",
        expect![
            "error: line 1 of the template: `steps.check-api-gateway.output.sumary` does not exist: `steps.check-api-gateway.output` has summary, list, nothing; did you mean `summary`?"
        ],
    );
    check(
        "{{ 'a' ~ alert.nme }}",
        expect![
            "error: line 1 of the template: `alert.nme` does not exist: `alert` has name, severity, labels; did you mean `name`?"
        ],
    );
    check(
        "{% for f in steps.investigate.output.findings %}{{ f.titel }}{% endfor %}",
        expect!["error: line 1 of the template: `f.titel` has no value"],
    );
    check(
        "{% for f in alert.lables %}{% endfor %}",
        expect![
            "error: line 1 of the template: `alert.lables` does not exist: `alert` has name, severity, labels; did you mean `labels`?"
        ],
    );
    check(
        "{{ alert.nme | default(value='none') }}{{ alert?.x?.y | default(value=1) }}",
        expect!["none1"],
    );
    check(
        "{{ alert.name.x }}",
        expect![
            "error: line 1 of the template: `alert.name.x` does not exist: `alert.name` is a text, which has no keys"
        ],
    );
}

#[test]
fn objects_print_as_json() {
    check(
        "{{ steps.investigate.output }}",
        expect![[r#"{"findings":[{"title":"a"},{"title":"b"}],"z":1,"a":2}"#]],
    );
    check(
        "{{ steps.check-api-gateway.output.list }}",
        expect![[r#"[1,null,"a\"b"]"#]],
    );
    check(
        "{{ source.data.null }} {{ 'x' ~ source.data.null ~ steps.check-api-gateway.output.list }}",
        expect![[r#"null xnull[1,null,"a\"b"]"#]],
    );
    check(
        "{{ steps.check-api-gateway.output.list | join(sep=', ') }}",
        expect![[r#"1, null, a"b"#]],
    );
    check(
        "{{ 1.0 }} {{ true }} {{ 1 if alert.name else 2 }}",
        expect!["1.0 true 1"],
    );
    check(
        "{% for k, v in alert.labels %}{{ loop.index }}{{ k }}={{ v }};{% endfor %}",
        expect!["1app=web;2runbook-url=http://x;"],
    );
    check(
        "{% set x %}a{{ alert.name }}{% endset %}{{ x | upper }}",
        expect!["APODDOWN"],
    );
}

#[test]
fn rendering_is_bounded() {
    check(
        "{{ range(end=1001) | length }}",
        expect!["error: line 1 of the template: `range` gives at most 1000 items"],
    );
    refused(
        "{% for a in env %}{% for b in env %}{% for c in env %}{% endfor %}{% endfor %}{% endfor %}",
        expect!["line 1 of the template: loops nest at most 2 deep, since a render cannot be interrupted"],
    );
    refused(
        "{% for a in env %}{{ [[1 for c in env] for b in env] }}{% endfor %}",
        expect!["line 1 of the template: loops nest at most 2 deep, since a render cannot be interrupted"],
    );
    let template = Template::compile("{% for a in range(end=1000) %}{% for a in range(end=1000) %}xxxxxxxxxx{{ a }}{% endfor %}{% endfor %}", Kind::Text, &[]).unwrap();
    let error = template
        .render(
            &context(),
            &RenderLimits {
                output_bytes_max: 1000,
            },
        )
        .unwrap_err();
    expect!["rendered, this is more than 1000 bytes; print a part of the values, as in `{{ value | truncate(length=1000) }}`"].assert_eq(&error.to_string());
    let doubling = format!(
        "{{% set x = 'aaaaaaaaaaaaaaaa' %}}{}{{{{ x }}}}",
        "{% set x = x ~ x %}".repeat(40)
    );
    check(
        &doubling,
        expect!["error: line 1 of the template: `set` keeps at most 1048576 bytes"],
    );
    check(
        "{{ 'aaaaaaaaaa' | replace(from='', to=alert.name) | length }}",
        expect!["87"],
    );
}

#[test]
fn references_are_listed() {
    let template = Template::compile("{{ alert.name }}\n{% for f in steps.check-api.output.x[0] %}{{ f.y ~ steps['1st'].status }}{{ source.data[f] }}{% endfor %}", Kind::Text, &STEPS).unwrap();
    let listed: Vec<String> = template
        .references()
        .iter()
        .map(|r| {
            format!(
                "{r} line {} step {:?}{}{}",
                r.line,
                r.step(),
                if r.is_bound { " bound" } else { "" },
                if r.is_dynamic { " dynamic" } else { "" }
            )
        })
        .collect();
    expect![[r#"
        alert.name line 1 step None
        steps.check-api.output.x.0 line 2 step Some("check-api")
        f.y line 2 step None bound
        steps.1st.status line 2 step Some("1st")
        source.data line 2 step None dynamic
        f line 2 step None bound"#]]
    .assert_eq(&listed.join("\n"));
}

#[test]
fn a_sole_expression_is_told() {
    let sole = |source: &str| {
        Template::compile(source, Kind::Command, &STEPS).map(|t| t.sole_expression().map(ToString::to_string))
    };
    assert_eq!(
        sole(" {{ steps.investigate.output.fix_command }}\n")
            .unwrap()
            .unwrap(),
        "steps.investigate.output.fix_command"
    );
    assert_eq!(
        sole("{# why #}{{ steps['check-api'].output }}").unwrap().unwrap(),
        "steps.check-api.output"
    );
    assert_eq!(
        sole("echo {{ steps.investigate.output.fix_command }}").unwrap(),
        None
    );
    assert!(sole("{{ steps.investigate.output.fix_command | trim }}").is_err());
    assert!(sole("{{ alert.name ~ 'x' }}").is_err());
    assert!(sole("{{ steps.check.output.n -1 }}").is_err());
    assert!(sole("{{ 'rm -rf /' }}").is_err());
    let template = Template::compile("{{ steps.1st.output }}", Kind::Command, &STEPS).unwrap();
    assert_eq!(
        template
            .render_plain(&context(), &RenderLimits::default())
            .unwrap(),
        "one"
    );
    assert!(template.render(&context(), &RenderLimits::default()).is_err());
}

#[test]
fn a_template_is_shared_between_threads() {
    fn assert_shared<T: Send + Sync + Clone>() {}
    assert_shared::<Template>();
}
