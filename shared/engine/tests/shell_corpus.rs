//! Commands with hostile values in them, run by real shells.
//!
//! For every context and value the engine either refuses, for a reason the context knows, or each
//! shell's program receives exactly the value, and nothing else ran (a canary file stays away).
//! All values of a context go through one process of each shell.

#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use engine::template::{Kind, RenderLimits, Template};
use proptest::prelude::*;
use serde_json::json;

/// What an attacker would write, and what an honest alert might.
fn values() -> Vec<String> {
    let mut values: Vec<String> = [
        "",
        "x",
        "web-1",
        "x; touch canary #",
        "x && touch canary",
        "x | touch canary",
        "x\ntouch canary\n",
        "$(touch canary)",
        "`touch canary`",
        "\"; touch canary; \"",
        "'; touch canary; '",
        "'\"'; touch canary; '\"'",
        "\\'; touch canary; \\'",
        "\\\"; touch canary; \\\"",
        "\\",
        "\\\\",
        "x\\",
        "\\\ntouch canary",
        "'",
        "''",
        "'''",
        "\"",
        "\"\"",
        "\"'\"'\"",
        "$",
        "$$",
        "${HOME}",
        "$HOME",
        "$((1+1))",
        "${x:-$(touch canary)}",
        "$'\\n'; touch canary",
        "$\"x\"",
        "-rf",
        "--help",
        "-",
        "--",
        "-c touch canary",
        "-e",
        "+e",
        "=",
        "a=b",
        "x=$(touch canary)",
        "~",
        "~root",
        "~/x",
        "*",
        "?",
        "[a-z]*",
        "[!a]",
        "{a,b}",
        "{1..3}",
        "!",
        "!!",
        "!x",
        "#",
        "# x",
        "x#y",
        " ",
        "  two  blanks  ",
        "\t",
        "\ttab",
        "a\tb",
        "\n",
        "\n\n",
        "a\n",
        "\na",
        "a\nb",
        "a\r\nb",
        "\r",
        "\u{1}",
        "\u{7f}",
        "\u{1}\u{1}x",
        "a\u{7f}b",
        "\u{8}\u{1b}[31m",
        "EOF",
        "EOF\ntouch canary",
        "a\nEOF\ntouch canary\n",
        "EOF)",
        "a\nEOF)\ntouch canary",
        "\tEOF",
        "\n\tEOF\ntouch canary",
        "E",
        "B\ntouch canary",
        "A\nB\ntouch canary",
        "END; touch canary",
        ") touch canary",
        ");touch canary;(",
        "x) touch canary;;",
        "esac; touch canary",
        ";;",
        "done; touch canary",
        "fi; touch canary",
        "do",
        "}",
        "}; touch canary",
        "{ touch canary; }",
        "( touch canary )",
        "))",
        "$((",
        "a[$(touch canary)]",
        "a[`touch canary`]=1",
        "<canary",
        ">canary",
        "2>canary",
        ">>canary",
        "1>&2 >canary",
        "<(touch canary)",
        "& touch canary &",
        "&>canary",
        "|& touch canary",
        "<<EOF",
        "<<<x",
        "*/ touch canary",
        "%s%n%d",
        "\\n\\t\\x41\\101",
        "\\c",
        "%",
        "é",
        "日本語",
        "🦀",
        "\u{c1}",
        "\u{81}\u{82}\u{88}",
        "\u{a0}",
        "\u{2028}",
        "\u{10F1E0}s\u{10F1E1}",
        "\u{10F1E2}",
        "\u{feff}x",
        "\u{202e}x",
        "ﬀ",
        "\u{e9}'",
        "5",
        "-5",
        "05",
        "0x1F",
        "1+1",
        "a'b\"c`d$e\\f\ng",
        "x' -o ProxyCommand='touch canary",
        "{{ alert.name }}",
        "{% raw %}",
        "}}",
        "/etc/passwd",
        "../../x",
        "a b c",
        "x y\"z",
        "'$(touch canary)'",
        "\"$(touch canary)\"",
        "\\$(touch canary)",
        "\\`touch canary\\`",
    ]
    .map(str::to_owned)
    .to_vec();
    values.push("long ".repeat(2000));
    values.push("'".repeat(500));
    values
}

type Expected = fn(&str) -> Vec<String>;

struct Context {
    template: &'static str,
    /// The records (each ended by NUL) that the command prints.
    prints: Expected,
    /// Whether a value may be refused here.
    refuses: fn(&str) -> bool,
}

fn once(v: &str) -> Vec<String> {
    vec![v.to_owned()]
}

fn twice(v: &str) -> Vec<String> {
    vec![v.to_owned(), v.to_owned()]
}

fn never(_: &str) -> bool {
    false
}

fn option(v: &str) -> bool {
    v.starts_with('-')
}

fn has_line_break(v: &str) -> bool {
    v.contains('\n')
}

fn no_integer(v: &str) -> bool {
    v.parse::<i64>().is_err() || v.starts_with('0') && v.len() > 1
}

/// `§` stands for the value.
fn contexts() -> Vec<Context> {
    let context = |template, prints: Expected, refuses| Context {
        template,
        prints,
        refuses,
    };
    vec![
        context("printf '%s\\0' §", once, option),
        context("printf '%s\\0' \"§\"", once, option),
        context("printf '%s\\0' '§'", once, option),
        context("printf -- '%s\\0' §", once, never),
        context(
            "./argv -- § \"§\"",
            |v| vec!["--".into(), v.into(), v.into()],
            never,
        ),
        context(
            "./argv --name=§ --other=\"§\" -n'§'",
            |v| vec![format!("--name={v}"), format!("--other={v}"), format!("-n{v}")],
            never,
        ),
        context("printf '%s\\0' pre§post", |v| vec![format!("pre{v}post")], never),
        context(
            "printf '%s\\0' \"pre§post\" 'pre§post'",
            |v| vec![format!("pre{v}post"); 2],
            never,
        ),
        context(
            "printf '%s\\0' a\"b§c\"'d§e'f§g",
            |v| vec![format!("ab{v}cd{v}ef{v}g")],
            never,
        ),
        context(
            "printf '%s\\0' x§§\"§§\"'§§'",
            |v| vec![format!("x{}", v.repeat(6))],
            never,
        ),
        context(
            "printf '%s\\0' \"\\\"§\\\\\" \\'§",
            |v| vec![format!("\"{v}\\"), format!("'{v}")],
            never,
        ),
        context(
            "x=1; printf '%s\\0' \"$x\"§ \"${x}§\" \"$x§\" p$x§",
            |v| {
                vec![
                    format!("1{v}"),
                    format!("1{v}"),
                    format!("1{v}"),
                    format!("p1{v}"),
                ]
            },
            option,
        ),
        context(
            "printf '%s\\0' ~§ x~§ zz*§ zz?[a]§",
            |v| {
                vec![
                    format!("~{v}"),
                    format!("x~{v}"),
                    format!("zz*{v}"),
                    format!("zz?[a]{v}"),
                ]
            },
            never,
        ),
        context("x=~§; printf '%s\\0' \"$x\"", |v| vec![format!("~{v}")], never),
        // Substitutions.
        context("x=\"$(printf '%s.' §)\"; printf '%s\\0' \"${x%.}\"", once, option),
        context("x=$(printf '%s.' \"§\"); printf '%s\\0' \"${x%.}\"", once, option),
        context(
            "x=$(printf '%s.' \"$(printf '%s,' '§')\"); x=\"${x%.}\"; printf '%s\\0' \"${x%,}\"",
            once,
            option,
        ),
        context(
            "printf '%s\\0' \"a$(printf '%s' \"b§c\" | cat)d §\"",
            |v| vec![format!("ab{v}cd {v}")],
            never,
        ),
        context(
            "printf '%s\\0' \"$(case § in zzz) echo no;; *) printf '%s.' §;; esac)\"",
            |v| vec![format!("{v}.")],
            option,
        ),
        context(
            "printf '%s\\0' \"$( (printf '%s.' §) )\"",
            |v| vec![format!("{v}.")],
            option,
        ),
        context(
            "printf '%s\\0' \"$(# it's a comment\nprintf '%s.' §)\"",
            |v| vec![format!("{v}.")],
            option,
        ),
        context("x=`echo a`; printf '%s\\0' §", once, option),
        context("x=${y:-a}${HOME##*/}; printf '%s\\0' §", once, option),
        // Assignments.
        context("x=§; printf '%s\\0' \"$x\"", once, option),
        context(
            "x=a§\"§\"; printf '%s\\0' \"$x\"",
            |v| vec![format!("a{v}{v}")],
            never,
        ),
        context("x=§ sh -c 'printf \"%s\\0\" \"$x\"'", once, never),
        context(
            "env x=§ y=\"§\" sh -c 'printf \"%s\\0\" \"$x\" \"$y\"'",
            twice,
            never,
        ),
        context("export x=§; sh -c 'printf \"%s\\0\" \"$x\"'", once, never),
        context("f() { local x=§; printf '%s\\0' \"$x\"; }; f", once, option),
        context("f() { printf '%s\\0' \"$1\"; }; f §", once, option),
        context("set -- §; printf '%s\\0' \"$1\"", once, option),
        context(
            "v=§ awk 'BEGIN { printf \"%s%c\", ENVIRON[\"v\"], 0 }'",
            once,
            never,
        ),
        context("sh -c 'printf \"%s\\0\" \"$1\"' sh §", once, option),
        context("sh -c 'printf \"%s\\0\" \"$2\"' sh -- §", once, never),
        context(
            "timeout 20 env -u NOTHING nice ./argv -- §",
            |v| vec!["--".into(), v.into()],
            never,
        ),
        context(
            "echo x | xargs ./argv a:§",
            |v| vec![format!("a:{v}"), "x".into()],
            never,
        ),
        context(
            "find . -name argv -exec ./argv a:§ {} \\;",
            |v| vec![format!("a:{v}"), "./argv".into()],
            never,
        ),
        // Heredocs.
        context(
            "cat <<EOF\n[§]\nEOF\nprintf '\\0'",
            |v| vec![format!("[{v}]\n")],
            |v| v.contains("\nEOF\n"),
        ),
        context(
            "cat <<EOF\n§\nEOF\nprintf '\\0'",
            |v| vec![format!("{v}\n")],
            |v| v.contains("EOF"),
        ),
        context(
            "cat <<EOF\nE§\nEOF\nprintf '\\0'",
            |v| vec![format!("E{v}\n")],
            |v| v.contains("EOF") || v.starts_with(|c: char| !c.is_ascii()),
        ),
        context(
            "cat <<'EOF'\n[§]$x`\\\nEOF\nprintf '\\0'",
            |v| vec![format!("[{v}]$x`\\\n")],
            |v| v.contains("\nEOF\n"),
        ),
        context(
            "cat <<\\EOF\n§\nEOF\nprintf '\\0'",
            |v| vec![format!("{v}\n")],
            |v| v.contains("EOF"),
        ),
        context(
            "cat <<-EOF\n\t[§]\n\tEOF\nprintf '\\0'",
            |v| vec![format!("[{v}]\n")],
            |v| v.contains("\nEOF\n") || v.contains("\n\t"),
        ),
        context(
            "cat <<-'EOF'\n\t§\n\tEOF\nprintf '\\0'",
            |v| vec![format!("{v}\n")],
            |v| v.contains("EOF") || v.starts_with('\t') || v.contains("\n\t"),
        ),
        context(
            "x=1; cat <<EOF\n${x}§ \"§\" '§' \\$§\nEOF\nprintf '\\0'",
            |v| vec![format!("1{v} \"{v}\" '{v}' ${v}\n")],
            |v| v.contains("\nEOF\n"),
        ),
        context(
            "cat <<A; cat <<'B'\n<§>\nA\n<§>\nB\nprintf '\\0'",
            |v| vec![format!("<{v}>\n<{v}>\n")],
            |v| v.contains("\nA\n") || v.contains("\nB\n"),
        ),
        context(
            "cat <<EOF | cat\n(§)\nEOF\nprintf '\\0'",
            |v| vec![format!("({v})\n")],
            |v| v.contains("\nEOF\n"),
        ),
        context(
            "x=\"$(cat <<EOF\n[§]\nEOF\n)\"; printf '%s\\0' \"$x\"",
            |v| vec![format!("[{v}]")],
            |v| v.contains("\nEOF") || v.contains(['\u{1}', '\u{7f}']),
        ),
        context(
            "x=$(cat <<'EOF'\n[§]\nEOF\n); printf '%s\\0' \"$x\" §",
            |v| vec![format!("[{v}]"), v.into()],
            |v| option(v) || v.contains("\nEOF") || v.contains(['\u{1}', '\u{7f}']),
        ),
        context(
            "cat <<EOF\n[$(printf '%s' \"x§\")]\nEOF\nprintf '\\0'",
            |v| vec![format!("[x{v}]\n")],
            has_line_break,
        ),
        context("./argv <<EOF a§\nEOF", |v| vec![format!("a{v}")], has_line_break),
        context(
            "while read -r l; do printf '%s\\0' \"$l\" §; done <<EOF\nline\nEOF",
            |v| vec!["line".into(), v.into()],
            option,
        ),
        context(
            "printf '%s\\0' x§ <<EOF\n§\nEOF",
            |v| vec![format!("x{v}")],
            |v| has_line_break(v) || v == "EOF",
        ),
        // Compound commands.
        context("for x in § \"§\"; do printf '%s\\0' \"$x\"; done", twice, option),
        context("for x in a\ndo printf '%s\\0' §\ndone", once, option),
        context(
            "if true; then printf '%s\\0' §; elif false; then :; else :; fi",
            once,
            option,
        ),
        context(
            "if [ x§ = x\"§\" ]; then printf 'same\\0'; fi",
            |_| vec!["same".into()],
            never,
        ),
        context(
            "if test -n x§ && ! test x§ = y; then printf '%s\\0' x§; fi",
            |v| vec![format!("x{v}")],
            never,
        ),
        context(
            "case § in zzz) ;; *) printf '%s\\0' x§ ;; esac",
            |v| vec![format!("x{v}")],
            never,
        ),
        context(
            "x=§; case $x in §) printf 'yes\\0';; *) printf 'no\\0';; esac",
            |_| vec!["yes".into()],
            never,
        ),
        context(
            "x=§; case \"a${x}b\" in zzz|(a§b) printf 'yes\\0';; *) printf 'no\\0';; esac",
            |_| vec!["yes".into()],
            |_| true,
        ),
        context(
            "x=§; case \"a${x}b\" in zzz | a\"§\"b) printf 'yes\\0';; *) printf 'no\\0'; esac",
            |_| vec!["yes".into()],
            never,
        ),
        context("while true; do printf '%s\\0' §; break; done", once, option),
        context("{ printf '%s\\0' §; } | cat", once, option),
        context("( printf '%s\\0' §; ) && (printf '%s\\0' §)", twice, option),
        context("false || printf '%s\\0' § & wait", once, option),
        context("f() {\n  printf '%s\\0' §\n}\nf", once, option),
        context("f () ( printf '%s\\0' \"§\" ); f", once, option),
        context("! printf '%s\\0' §", once, option),
        // Around words.
        context("printf '%s\\0' \\\n  § \\\n  §", twice, option),
        context("printf '%s\\0' ab\\\n§", |v| vec![format!("ab{v}")], never),
        context("printf '%s\\0' 2§>&1", |v| vec![format!("2{v}")], never),
        context("printf '%s\\0' §>&1 2>/dev/null", once, option),
        context("</dev/null 2>&1 printf '%s\\0' §", once, option),
        context("printf '%s\\0' §;printf '%s\\0' §|cat", twice, option),
        context("# it's \"not $(closed\nprintf '%s\\0' §", once, option),
        context("printf '%s\\0' § # it's §", once, |v| {
            option(v) || has_line_break(v)
        }),
        context(
            "printf 'a\\0' # §\nprintf 'b\\0'",
            |_| vec!["a".into(), "b".into()],
            has_line_break,
        ),
        context("printf '%s\\0' a#§", |v| vec![format!("a#{v}")], never),
        context("IFS=$'\\n'; printf '%s\\0' §", once, option),
        context("IFS=a; printf '%s\\0' §", once, option),
        context("command printf '%s\\0' §", once, option),
        // Numbers.
        context(
            "printf '%s\\0' \"$((§))\" $((§ + 1)) $(( 5 -§*2 ))",
            |v| {
                let number: i64 = v.parse().unwrap();
                vec![
                    number.to_string(),
                    (number + 1).to_string(),
                    (5 - number * 2).to_string(),
                ]
            },
            no_integer,
        ),
        // Tera's own branches.
        context(
            "{% for x in source.data.list %}printf '%s\\0' {{ x }}\n{% endfor %}",
            twice,
            option,
        ),
        context(
            "printf '%s\\0'{% for x in source.data.list %} a{{ x }}{% endfor %}",
            |v| vec![format!("a{v}"); 2],
            never,
        ),
        context(
            "printf '%s\\0' \"{% for x in source.data.list %}<{{ x }}>{% endfor %}\"",
            |v| vec![format!("<{v}><{v}>")],
            never,
        ),
        context(
            "printf '%s\\0' {% if source.data.list %}\"a{{ source.data.v }}\"{% else %}§{% endif %}",
            |v| vec![format!("a{v}")],
            option,
        ),
        context(
            "printf '%s\\0' {{ 'a' ~ source.data.v ~ 'b' }} {{ source.data.list | first }}",
            |v| vec![format!("a{v}b"), v.into()],
            option,
        ),
        context(
            "{% set x = source.data.v %}{% filter lower %}PRINTF '%S\\0' {% endfilter %}x{{ x }}",
            |v| vec![format!("x{v}")],
            never,
        ),
        context(
            "printf '%s\\0' {{ source.data.list }}",
            |v| vec![serde_json::to_string(&[v, v]).unwrap()],
            never,
        ),
        context(
            "{# § #}printf '%s\\0' x {{- \" \" -}} §",
            |v| vec![format!("x {v}")],
            never,
        ),
    ]
}

fn shells() -> Vec<(&'static str, Vec<&'static str>)> {
    let all = vec![
        ("dash", vec!["dash"]),
        ("bash", vec!["bash"]),
        ("bash", vec!["bash", "--posix"]),
        ("busybox", vec!["busybox", "sh"]),
    ];
    let exists = |name: &str| {
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .any(|dir| dir.join(name).is_file())
    };
    all.into_iter()
        .filter(|(name, _)| {
            let found = exists(name);
            if !found {
                eprintln!("SKIPPED: `{name}` is not on PATH; the commands were not tried in it");
                assert!(std::env::var_os("CI").is_none(), "`{name}` is not on PATH");
            }
            found
        })
        .collect()
}

/// Writes a script by another process: while this one has it open to write, so has a child that another thread
/// starts meanwhile, and running it fails with "Text file busy".
fn write_program(path: &Path, text: &str) {
    let mut shell = Command::new("/bin/sh")
        .args(["-c", "cat > \"$1\" && chmod 755 \"$1\"", "sh"])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    shell.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(shell.wait().unwrap().success());
}

/// A directory with `argv`, which prints its arguments, each ended by NUL.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let argv = directory.path().join("argv");
    write_program(&argv, "#!/bin/sh\nfor a do printf '%s\\0' \"$a\"; done\n");
    directory
}

fn run(shell: &[&str], directory: &Path, script: &str) -> Vec<u8> {
    let path = directory.join("script");
    std::fs::write(&path, script).unwrap();
    let output = Command::new(shell[0])
        .args(&shell[1..])
        .arg(&path)
        .current_dir(directory)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", directory)
        .env("LANG", "C.UTF-8")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    output.stdout
}

fn compile(template: &str) -> Result<Template, String> {
    Template::compile(&template.replace('§', "{{ source.data.v }}"), Kind::Command, &[]).map_err(|errors| {
        errors
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("; ")
    })
}

fn render(template: &Template, value: &str) -> Result<String, String> {
    let context = json!({"source": {"data": {"v": value, "list": [value, value]}}});
    template
        .render(&context, &RenderLimits::default())
        .map_err(|error| error.to_string())
}

const BETWEEN: &str = "\nprintf '<next>\\0'\n";

/// Runs one template with many values in one shell; each must print what it should.
fn try_values(
    template: &Template,
    values: &[(String, String)],
    expected: Expected,
    shell: &[&str],
    directory: &Path,
) -> Vec<String> {
    let mut script = String::new();
    let mut wanted = Vec::new();
    for (value, command) in values {
        script.push_str(command);
        script.push_str(BETWEEN);
        for record in expected(value).into_iter().chain(["<next>".to_owned()]) {
            wanted.extend_from_slice(record.as_bytes());
            wanted.push(0);
        }
    }
    let printed = run(shell, directory, &script);
    let mut failures = Vec::new();
    if directory.join("canary").exists() {
        failures.push(format!("{shell:?}: the canary ran: {}", template.source()));
    }
    if printed == wanted {
        return failures;
    }
    if let [(value, command)] = values {
        let printed = String::from_utf8_lossy(&printed).into_owned();
        failures.push(format!(
            "{shell:?}: {:?} with {value:?}\n  command {command:?}\n  wanted {:?}\n  printed {printed:?}",
            template.source(),
            String::from_utf8_lossy(&wanted)
        ));
        return failures;
    }
    // Find the culprits one by one.
    for one in values {
        let _ = std::fs::remove_file(directory.join("canary"));
        failures.extend(try_values(
            template,
            std::slice::from_ref(one),
            expected,
            shell,
            directory,
        ));
    }
    assert!(
        !failures.is_empty(),
        "{shell:?}: fails only together: {}",
        template.source()
    );
    failures
}

#[test]
fn each_shell_receives_exactly_the_value() {
    let values = values();
    assert!(values.len() >= 60);
    let shells = shells();
    let contexts = contexts();
    let mut failures: Vec<String> = Vec::new();
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..4)
            .map(|lane| {
                let (values, shells, contexts) = (&values, &shells, &contexts);
                scope.spawn(move || {
                    let directory = directory();
                    let mut failures = Vec::new();
                    for context in contexts.iter().skip(lane).step_by(4) {
                        failures.extend(try_context(context, values, shells, directory.path()));
                    }
                    failures
                })
            })
            .collect();
        for lane in lanes {
            failures.extend(lane.join().unwrap());
        }
    });
    assert!(
        failures.is_empty(),
        "{} failures:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

fn try_context(
    context: &Context,
    values: &[String],
    shells: &[(&str, Vec<&str>)],
    directory: &Path,
) -> Vec<String> {
    let template = match compile(context.template) {
        Ok(template) => template,
        Err(_) if (context.refuses)("plain") => return Vec::new(),
        Err(error) => return vec![format!("{:?} is refused: {error}", context.template)],
    };
    let mut failures = Vec::new();
    let mut rendered = Vec::new();
    for value in values {
        match render(&template, value) {
            Ok(command) => rendered.push((value.clone(), command)),
            Err(_) if (context.refuses)(value) => {}
            Err(error) => failures.push(format!("{:?} refuses {value:?}: {error}", context.template)),
        }
    }
    for (_, shell) in shells {
        failures.extend(try_values(&template, &rendered, context.prints, shell, directory));
        let _ = std::fs::remove_file(directory.join("canary"));
    }
    failures
}

#[test]
fn nul_is_refused_everywhere() {
    // A list prints as JSON, which escapes it.
    for context in contexts()
        .iter()
        .filter(|context| !context.template.contains("{{ source.data.list }}"))
    {
        if let Ok(template) = compile(context.template) {
            assert!(render(&template, "a\0b").is_err(), "{}", context.template);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Many values of one run share a process of each shell.
    #[test]
    fn arbitrary_values_arrive_or_are_refused(
        values in prop::collection::vec("([ \\t\\n'\"`$\\\\(){}<>;&|#*?~!=%,-]|[A-Za-z]|EOF|touch canary|[\\x01-\\x1f\\x7f]|\\PC){0,12}", 40),
        index in any::<prop::sample::Index>(),
    ) {
        let contexts = contexts();
        let context = &contexts[index.index(contexts.len())];
        let directory = directory();
        let failures: Vec<String> = match compile(context.template) {
            Err(_) => Vec::new(),
            Ok(template) => {
                let rendered: Vec<(String, String)> = values.iter().filter_map(|value| Some((value.clone(), render(&template, value).ok()?))).collect();
                shells().iter().flat_map(|(_, shell)| try_values(&template, &rendered, context.prints, shell, directory.path())).collect()
            }
        };
        prop_assert!(failures.is_empty(), "{}", failures.join("\n"));
    }
}

/// Pieces of shell that authors put together, in any order, with values among them. The function
/// is never called: it could call itself.
const PIECES: [&str; 151] = [
    "§",
    "§",
    "§",
    "§",
    "§",
    "§",
    " § ",
    " § ",
    "\"§\"",
    "'§'",
    " ",
    " ",
    "\n",
    "\n",
    ";",
    "; ",
    " && ",
    " || ",
    " | ",
    " & ",
    "(",
    ")",
    "$(",
    "\"$(",
    ")\"",
    "`",
    "\"",
    "\"",
    "'",
    "'",
    "\\",
    "\\\n",
    "#",
    " # ",
    "$",
    "$x",
    "\"$x\"",
    "${x}",
    "${x:-a}",
    "${x:-",
    "}",
    "{",
    "{ ",
    " }",
    "{a,",
    "}",
    "$((",
    "))",
    "$(( 1 + ",
    " ))",
    "((",
    "[[ ",
    " ]]",
    "[ ",
    " ]",
    "=",
    "x=",
    " x=",
    "y=\"$x\" ",
    "export x=",
    "local ",
    "$'",
    "$\"",
    "a",
    "a b",
    "~",
    "*",
    "?",
    "!",
    " ! ",
    "-",
    " -c ",
    " -- ",
    "<",
    ">",
    " >f ",
    " 2>&1 ",
    "2>",
    "&>",
    "<<<",
    "<(",
    ">|",
    "<<EOF",
    "<<'EOF'",
    "<<-EOF",
    "<<EOF\n",
    "\nEOF\n",
    "EOF",
    "\n\tEOF\n",
    " <<E\n§\nE\n",
    "if true; then ",
    "; fi",
    "\nfi\n",
    "for x in ",
    "; do ",
    "; done",
    "while false; do ",
    "case § in ",
    "case x in ",
    ") ",
    ";; ",
    " *) ",
    " esac",
    "f() { ",
    "echo ",
    "printf %s ",
    "./argv ",
    "cat ",
    "eval ",
    "sh -c ",
    "sh ",
    "bash -s ",
    "env ",
    "exec ",
    "xargs ",
    "set -- ",
    "$1",
    "\"$@\"",
    "$*",
    "$_",
    "eval \"$x\" ",
    "sh -c \"$x\" ",
    " | sh ",
    " | xargs ",
    "read x ",
    "`eval $x`",
    "${x:=",
    "$((x))",
    ";& ",
    ";;& ",
    "\t",
    "\r",
    " time ",
    "{fd}>f ",
    " |& ",
    "<>f ",
    " command ",
    "busybox ",
    "timeout 1 ",
    "x+=",
    "x[0]=",
    "x=(",
    "@(",
    "$(\\\n",
    "$x\\\n",
    "<<\\\nEOF\n",
    "<<E\\OF\n",
    "$(<f)",
    " in ",
    "\u{a0}",
    " do ",
];

/// Values that run something wherever they are read as code.
const BOMBS: [&str; 16] = [
    "$(touch canary)",
    "`touch canary`",
    "'; touch canary; '",
    "\"; touch canary; \"",
    "; touch canary;",
    "\ntouch canary\n",
    "touch canary",
    "a[$(touch canary)]",
    "EOF\ntouch canary\n",
    "') touch canary ;('",
    ")\ntouch canary\n(",
    "\\\ntouch canary\n",
    "'\"'\"'; touch canary #",
    "}; touch canary; {",
    "x) touch canary;;",
    "' \" $(touch canary) \" '",
];

/// Whole statements, for templates that get further than pieces do. No loop here is endless, and no
/// function calls itself, even with a piece put somewhere among them.
const STATEMENTS: &[&str] = &[
    "echo §",
    "printf '%s\\n' \"§\"",
    "x=§",
    "x='§'",
    "y=\"$x\"",
    "y=$x",
    "x=$(echo §)",
    "x=\"$(cat f)\"",
    "echo \"$x\"",
    "echo $y",
    "export x=§",
    "export y=\"$x\"",
    "eval \"$x\"",
    "eval \"$y\"",
    "eval 'echo \"$x\"'",
    "sh -c \"$y\"",
    "sh -c 'echo \"$1\"' sh §",
    "sh -c \"echo \\$1\" sh \"$x\"",
    "cat | sh",
    "sh",
    "cat",
    "cat >f",
    "xargs echo",
    "xargs -I{} sh -c {}",
    "xargs sh -c",
    "read x",
    "read -r y",
    "eval \"$REPLY\"",
    "while read -r x; do echo \"$x\"; done",
    "while read -r x; do eval \"$x\"; done",
    "for i in 1 2; do echo §; done",
    "for i in 1 2; do eval \"$x\"; x=§; done",
    "for i in § 2; do echo \"$i\"; done",
    "for i in § 2; do eval \"$i\"; done",
    "for i in \"$@\"; do sh -c \"$i\"; done",
    "for i do eval \"$i\"; done",
    "set -- §",
    "set -- a \"$x\"",
    "shift",
    "eval \"$1\"",
    "eval \"$2\"",
    "eval \"$*\"",
    "eval \"$_\"",
    "g() { eval \"$1\"; }",
    "g() { echo \"$1\"; }",
    "g() { x=\"$1\"; }",
    "g() { sh; }",
    "g() ( cat )",
    "g §",
    "g a \"$x\"",
    "if [ -n \"$x\" ]; then echo §; else eval \"$y\"; fi",
    "if echo §; then :; fi",
    "[ x§ = x ]",
    "[ \"$x\" = § ]",
    "[ \"$x\" -eq 1 ]",
    "test -n §",
    "case § in a) echo §;; *) echo \"$x\";; esac",
    "case a in a) x=§;; esac",
    "case $x in *) eval \"$y\";; esac",
    "case a in\nesac",
    "case a in (a) echo § ;; esac",
    "{ echo §; cat; }",
    "( x=§; echo \"$x\" )",
    "( echo § )",
    "! echo §",
    "time echo §",
    "command echo §",
    "env x=§ sh -c 'echo \"$x\"'",
    "env sh -c \"$x\"",
    "x=§ sh -c 'echo \"$x\"'",
    "timeout 5 echo §",
    "timeout 5 sh -c \"$y\"",
    "awk 'BEGIN { print ARGV[1] }' §",
    "awk -v x=§ 'BEGIN { print x }'",
    "cat <<EOF\n§\nEOF",
    "cat <<'EOF'\n§ $x\nEOF",
    "cat <<-EOF\n\t§\n\tEOF",
    "cat <<EOF\n$x $(echo §)\nEOF",
    "cat <<EOF | sh\n$y\nEOF",
    "sh <<EOF\n$x\nEOF",
    "read y <<EOF\n§\nEOF",
    "x=$(cat <<EOF\n§\nEOF\n)",
    "echo $((1 + 1))",
    "echo $((x + 1))",
    "echo $((y))",
    "echo `echo \"$x\"`",
    "x=`cat f`",
    "y=`eval \"$x\"`",
    "echo ${x:-a}",
    "echo \"${x%a*}\"",
    ": \"${y:=$x}\"",
    "echo ${x@P}",
    "echo ${y:x:1}",
    "declare -i y",
    "local y=§",
    "printf -v y %s §",
    "trap 'echo \"$x\"' EXIT",
    "unset y",
    "set -f",
    "set -e",
    "IFS=a",
    "alias g=eval",
    "shopt -s extglob",
    "[[ $x == a ]]",
    "((x))",
    "y=(a b)",
    "echo {a,b} §",
    "echo \"a§b\"'c§d'§",
    "echo $x§ \"$x§\"",
    "echo -- §",
    "./argv §",
    "exec 3>&1",
    "S=sh",
    "$S",
    "\"$S\" -e",
    "$S -c \"$x\"",
    "# it's §\n",
    "true # §\n",
    "y=x",
    "find . -maxdepth 0 -exec echo § \\;",
    "find . -maxdepth 0 -exec sh -c \"$x\" \\;",
    "sh -c 'eval \"$1\"' sh §",
    "sh -c 'x=\"$1\"; echo \"$x\"' sh §",
    "sh -c 'for a do $a; done' sh §",
    "export x; sh -c 'echo $x `echo $x`'",
    "echo $(( $(echo §) ))",
    "echo \"${x:-$(echo §)}\"",
    "h() { \"$@\"; }",
    "h() { for a do sh -c \"$a\"; done; }",
    "h echo §",
    "h sh",
    "trap 'eval \"$x\"' EXIT",
];

const JOINTS: [&str; 10] = ["; ", "; ", "\n", "\n", " && ", " || ", " | ", " | ", " & ", ";"];

/// A small generator: enough for choosing pieces, and the same everywhere.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % bound
    }

    fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }

    fn template(&mut self) -> String {
        if self.below(4) == 0 {
            return (0..2 + self.below(9)).map(|_| self.pick(&PIECES)).collect();
        }
        let mut source = self.pick(STATEMENTS).to_owned();
        for _ in 0..self.below(4) {
            let joint = self.pick(&JOINTS);
            // What stands behind a heredoc's end would be no end any more.
            source.push_str(if source.ends_with("EOF") { "\n" } else { joint });
            source.push_str(self.pick(STATEMENTS));
        }
        for _ in 0..self.below(3) {
            let places: Vec<usize> = source.char_indices().map(|(at, _)| at).collect();
            source.insert_str(places[self.below(places.len())], self.pick(&PIECES));
        }
        source
    }
}

/// Puts templates together at random and runs what the engine admits: the canary must stay away.
fn try_pieces(seed: u64, count: usize, directory: &Path) -> (usize, Vec<String>) {
    let mut chance = Chance(seed);
    let shells = shells();
    let (mut admitted, mut failures) = (0, Vec::new());
    for _ in 0..count {
        let source = chance.template();
        if !source.contains('§') {
            continue;
        }
        let Ok(template) = compile(&source) else { continue };
        let bomb = chance.pick(&BOMBS);
        let Ok(command) = render(&template, bomb) else {
            continue;
        };
        admitted += 1;
        for (_, shell) in &shells {
            run(shell, directory, &command);
            if directory.join("canary").exists() {
                std::fs::remove_file(directory.join("canary")).unwrap();
                failures.push(format!("{shell:?}: {source:?} with {bomb:?} ran {command:?}"));
            }
        }
        // Files that a template made would be read, or run, by the ones behind it.
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            if entry.file_name() != "argv" {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
    (admitted, failures)
}

#[test]
fn whatever_is_admitted_runs_no_value() {
    // More with FUZZ_TEMPLATES=100000, from another place with FUZZ_SEED=2.
    let number = |name: &str, default: u64| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(default)
    };
    let (count, seed) = (number("FUZZ_TEMPLATES", 1_500), number("FUZZ_SEED", 1));
    let directory = directory();
    let (admitted, failures) = try_pieces(
        seed.wrapping_mul(0x9E37_79B9_7F4A_7C15),
        usize::try_from(count).unwrap(),
        directory.path(),
    );
    eprintln!("seed {seed}: {admitted} of {count} templates were admitted and run");
    assert!(
        admitted > 20,
        "hardly any template was admitted: the test tries nothing"
    );
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Templates that once let a value run, or nearly did: each is refused, or runs no value.
const ATTACKS: &[&str] = &[
    // What positional parameters, and other ways into a variable, hold.
    "f() { eval \"${@}\"; }; f §",
    "f() { eval \"${*}\"; }; f §",
    "f() { eval \"${10}\"; }; f a b c d e f g h i §",
    "f() { for a do eval \"$a\"; done; }; f §",
    "f() { for a; do eval \"$a\"; done; }; f §",
    "f() { for a\ndo eval \"$a\"; done; }; f §",
    "set -- §; for a do sh -c \"$a\"; done",
    "for x\nin §; do eval \"$x\"; done",
    "set -- -a §; while getopts a: o; do eval \"$OPTARG\"; done",
    "echo §; eval \"$_\"",
    "printf -v x %s §; eval \"$x\"",
    "y=§; : \"${x:=$y}\"; eval \"$x\"",
    "y=§; : ${x=$y}; eval \"$x\"",
    ": \"${x:=$(printf %s §)}\"; eval \"$x\"",
    "echo § >f; mapfile <f; eval \"$MAPFILE\"",
    "i=; while [ \"$i\" != aaaa ]; do i=a$i; eval \"$z\"; z=\"$y\"; y=\"$x\"; x=§; done",
    "i=; while [ \"$i\" != aa ]; do i=a$i; echo \"${x@P}\"; x=§; done",
    "f() { echo \"${x@P}\"; }; x=§; f",
    "xy=§; eval \"$x\\\ny\"",
    "xy=§; eval $x\\\ny",
    // What bash evaluates as arithmetic.
    "declare -i x; x=§",
    "f() { local -i x; x=§; }; f",
    "typeset -i x; x=§; echo $x",
    "x=§; declare -i x; x=\"$x\"; export x",
    "x=§; y=x; echo $((y))",
    "i=; while [ \"$i\" != aa ]; do i=a$i; x=§; declare -i x; done",
    // Behind what the lexer does not follow.
    "x=§; echo $[1]; eval \"$x\"",
    "x=§; echo \"${y:-\"a\"}\"; eval \"$x\"",
    "echo § \"${y:-\"a\"}\" | sh",
    "{ echo §; echo \"${y:-\"a\"}\"; } | sh",
    "{ echo §; [[ a ]]; } | sh",
    "echo $(\\\n(echo §))",
    "echo $(\\\n(echo § ) )",
    // Backticks.
    "x=§; echo `eval \"$x\"`",
    "x=§; echo `sh -c \"${x}\"`",
    "set -- §; echo `eval $1`",
    "printf %s § | echo `sh`",
    // Code that is read from the input.
    "printf %s § | $SHELL",
    "SHELL=sh; printf %s § | $SHELL",
    "S=sh; printf %s § | \"$S\"",
    "S=sh; printf %s § | \"$S\" -e",
    "S=sh; printf %s § | \"$S\" -s a",
    "S=sh; printf %s § | $S - a",
    "S='sh -s'; printf %s § | $S a",
    "f() { sh; }; printf %s § | f",
    "f() { cat | sh; }; printf %s § | f",
    "printf %s § | xargs -I{} {}",
    "printf %s § | xargs env",
    "printf %s § | xargs nice",
    "printf %s § | xargs timeout 5",
    "printf %s § | xargs env nice -n 5",
    "printf %s 'x -exec '§' ;' | xargs find .",
    "printf %s § | xargs -d '\\n' -I{} env -i PATH=\"$PATH\" sh -c {}",
    "printf %s § | xargs -d '\\n' -I{} busybox sh -c {}",
    "printf %s § | xargs -d '\\n' -I{} ./argv sh -c {}",
    "printf %s § | busybox sh",
    "printf %s § | env sh",
    "printf %s § | exec sh",
    "printf %s § | command sh -",
    // Variables that programs read as code or as a path to it.
    "x=§; PATH=\"$x:$PATH\"; ls",
    "for PATH in § /bin; do ls; done",
    "x=§; BASH_ENV=\"$x\" bash -c :",
    // Words that another program reads as code.
    "set -k; ./argv BASH_ENV=§",
    "jobs -x § ; :",
    "awk -f § /dev/null",
    "x=§ sh -c 'eval \"$x\"'",
    "x=§ sh -c 'eval $x'",
    "sh -c 'eval $1' sh §",
    "sh -c 'f() { eval $x; }; x=$1; f' sh §",
    "x=§ sh -c 'a`eval $x`b'",
    "export x=§; sh -c 'sh -c \"$x\"'",
    "sh -c 'eval \"$1\"' sh §",
    "sh -ec 'for a do eval \"$a\"; done' sh §",
    "bash -c '[[ $1 -eq 1 ]]' bash §",
    "bash -c 'echo $(($1))' bash §",
    "x=§; trap 'eval \"$x\"' EXIT",
    "trap 'eval \"$x\"' EXIT; x=§",
    "x=§; eval 'eval \"$x\"'",
    "echo $((1 + $(printf %s §)))",
    "x=§; echo $((1 + $(printf %s \"$x\")))",
    "echo ${HOME:$(printf %s §)}",
    "x=§; echo ${HOME:$x}",
    "x=§; echo ${HOME[$x]}",
    "y=x; read \"$y\" <<E\n§\nE\neval \"$x\"",
    "while read -r l; do $l; done <<E\n§\nE",
    "read -r -a l <<E\n§\nE\n${l[0]}",
    "S=sh; echo § $[1] | $S",
    "S=sh; echo § $[1] | \"$S\"",
    "find . -maxdepth 0 $*-exec sh -c § \\;",
    "./argv $*sh $*-c §; exec $*sh -c §",
    "touch sh; chmod +x sh; ?? -c §",
    "$1bash -s <<E\n§\nE",
    "eval bash -s <<E\n§\nE",
    "sh -c 'bash -s' <<E\n§\nE",
    "sh -c 'cat | sh' <<E\n§\nE",
    "printf %s § | eval sh",
    "printf %s § | sh -c 'eval \"$(cat)\"'",
    "printf %s § | ./argv sh; retry() { \"$@\"; }; retry sh <<E\n§\nE",
    "retry() { \"$@\"; }; printf %s § | retry sh",
];

#[test]
fn what_once_ran_a_value_does_not() {
    let directory = directory();
    let shells = shells();
    let mut failures = Vec::new();
    for source in ATTACKS {
        let Ok(template) = compile(source) else { continue };
        for bomb in BOMBS {
            let Ok(command) = render(&template, bomb) else {
                continue;
            };
            for (_, shell) in &shells {
                run(shell, directory.path(), &command);
                if directory.path().join("canary").exists() {
                    std::fs::remove_file(directory.path().join("canary")).unwrap();
                    failures.push(format!("{shell:?}: {source:?} with {bomb:?} ran {command:?}"));
                }
            }
        }
        if std::env::var_os("FUZZ_VERBOSE").is_some() {
            eprintln!("admitted: {source:?}");
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Programs of a cluster's that are not here: they note their words, each ended by NUL.
const NOTED: [&str; 12] = [
    "kubectl",
    "curl",
    "psql",
    "df",
    "du",
    "jq",
    "helm",
    "docker",
    "systemctl",
    "journalctl",
    "dig",
    "note",
];

/// What operators write every day, and the words that must arrive.
const ORDINARY: &[(&str, &[&str])] = &[
    ("kubectl get pod § -n §", &["get", "pod", "§", "-n", "§"]),
    (
        "kubectl -n § get pods -o wide | grep -v Running | head -5",
        &["-n", "§", "get", "pods", "-o", "wide"],
    ),
    (
        "kubectl describe pod \"§\" --namespace=§ | tail -n 20",
        &["describe", "pod", "§", "--namespace=§"],
    ),
    (
        "kubectl logs § -c app --tail=100 --since 5m | grep -i -E 'error|fatal' | sort | uniq -c | sort -rn",
        &["logs", "§", "-c", "app", "--tail=100", "--since", "5m"],
    ),
    (
        "kubectl logs -l app=§ --all-containers 2>&1 | tail -50 || true",
        &["logs", "-l", "app=§", "--all-containers"],
    ),
    (
        "kubectl get events --field-selector involvedObject.name=§ --sort-by=.lastTimestamp",
        &[
            "get",
            "events",
            "--field-selector",
            "involvedObject.name=§",
            "--sort-by=.lastTimestamp",
        ],
    ),
    (
        "kubectl get pods -l app=§ -o jsonpath='{.items[*].status.phase}'",
        &[
            "get",
            "pods",
            "-l",
            "app=§",
            "-o",
            "jsonpath={.items[*].status.phase}",
        ],
    ),
    (
        "kubectl get node § -o custom-columns=NAME:.metadata.name,CPU:.status.capacity.cpu",
        &[
            "get",
            "node",
            "§",
            "-o",
            "custom-columns=NAME:.metadata.name,CPU:.status.capacity.cpu",
        ],
    ),
    (
        "kubectl top pod § --containers | awk 'NR>1 { print $2, $3 }'",
        &["top", "pod", "§", "--containers"],
    ),
    (
        "kubectl get pods --no-headers -n § | awk '{ print $1 }' | xargs -r -n 1 echo",
        &["get", "pods", "--no-headers", "-n", "§"],
    ),
    (
        "kubectl rollout status deployment/§ --timeout=60s",
        &["rollout", "status", "deployment/§", "--timeout=60s"],
    ),
    (
        "kubectl exec § -n § -- df -h /data",
        &["exec", "§", "-n", "§", "--", "df", "-h", "/data"],
    ),
    (
        "kubectl exec p -- ls -l -- §",
        &["exec", "p", "--", "ls", "-l", "--", "§"],
    ),
    (
        "kubectl exec p -c app -- sh -c 'du -sh \"$1\" | sort -h' sh §",
        &[
            "exec",
            "p",
            "-c",
            "app",
            "--",
            "sh",
            "-c",
            "du -sh \"$1\" | sort -h",
            "sh",
            "§",
        ],
    ),
    ("timeout 30 kubectl get pod §", &["get", "pod", "§"]),
    (
        "timeout -k 5 30s kubectl logs § --previous || echo none",
        &["logs", "§", "--previous"],
    ),
    ("df -h § | tail -1", &["-h", "§"]),
    ("df -P -- § | awk 'NR==2 { print $5 }'", &["-P", "--", "§"]),
    ("du -sh §/* 2>/dev/null | sort -rh | head -10", &["-sh", "§/*"]),
    (
        "curl -fsS --max-time 10 \"http://prometheus:9090/api/v1/query?query=up&instance=§\"",
        &[
            "-fsS",
            "--max-time",
            "10",
            "http://prometheus:9090/api/v1/query?query=up&instance=§",
        ],
    ),
    (
        "curl -sG http://prometheus:9090/api/v1/query --data-urlencode \"query=up{instance=\\\"§\\\"}\" | head -c 100",
        &[
            "-sG",
            "http://prometheus:9090/api/v1/query",
            "--data-urlencode",
            "query=up{instance=\"§\"}",
        ],
    ),
    (
        "curl -s -o /dev/null -w '%{http_code}' 'http://§/healthz?x=1&y=2#z'",
        &[
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "http://§/healthz?x=1&y=2#z",
        ],
    ),
    (
        "curl -X POST -H 'Content-Type: application/json' -d \"$(printf '%s' x§)\" http://hook",
        &[
            "-X",
            "POST",
            "-H",
            "Content-Type: application/json",
            "-d",
            "x§",
            "http://hook",
        ],
    ),
    (
        "jq -r --arg pod § '.items[] | select(.metadata.name == $pod)' /dev/null",
        &[
            "-r",
            "--arg",
            "pod",
            "§",
            ".items[] | select(.metadata.name == $pod)",
            "/dev/null",
        ],
    ),
    (
        "jq -n --arg a § --arg b § '{a: $a, b: $b}' | cat",
        &["-n", "--arg", "a", "§", "--arg", "b", "§", "{a: $a, b: $b}"],
    ),
    (
        "psql -h db -U app -v ON_ERROR_STOP=1 -v id=§ -c 'select 1'",
        &[
            "-h",
            "db",
            "-U",
            "app",
            "-v",
            "ON_ERROR_STOP=1",
            "-v",
            "id=§",
            "-c",
            "select 1",
        ],
    ),
    (
        "PGHOST=§ psql -d § -Atc 'select count(*) from t'",
        &["-d", "§", "-Atc", "select count(*) from t"],
    ),
    ("note \"$(awk -v x=a 'BEGIN { print x }')\" §", &["a", "§"]),
    (
        "note \"$(v=§ awk 'BEGIN { printf \"%s.\", ENVIRON[\"v\"] }')\"",
        &["§."],
    ),
    ("for p in § b; do note \"$p\"; done", &["§", "b"]),
    ("for n in 1 2; do note \"$n\" §; done", &["1", "§", "2", "§"]),
    (
        "{% for x in source.data.list %}note {{ x }}\n{% endfor %}",
        &["§", "§"],
    ),
    (
        "note{% for x in source.data.list %} --set=v={{ x }}{% endfor %}",
        &["--set=v=§", "--set=v=§"],
    ),
    (
        "{% if source.data.v %}note a §{% else %}note b §{% endif %}",
        &["a", "§"],
    ),
    ("if note -q §; then echo yes; else echo no; fi", &["-q", "§"]),
    ("if [ -z \"§\" ]; then echo none; else note §; fi", &["§"]),
    ("if [ x§ = xnone ] || [ -n '' ]; then exit 1; fi; note §", &["§"]),
    ("case § in nothing) echo none ;; *) note §;; esac", &["§"]),
    (
        "set -eu\nns=§\nnote -n \"$ns\" get pods\nnote \"${ns}\"",
        &["-n", "§", "get", "pods", "§"],
    ),
    ("set -e; set -u; note §", &["§"]),
    ("pod=§ ns=§; note \"$pod\" \"$ns\" \"a-$pod\"", &["§", "§", "a-§"]),
    ("export NS=§; note \"$NS\"; sh -c 'note \"$NS\"'", &["§", "§"]),
    (
        "count=$(echo a | wc -l); i=0; i=$((i + count)); note \"$i\" §",
        &["1", "§"],
    ),
    ("out=$(note a§ 2>&1) || true; echo \"$out\"", &["a§"]),
    (
        "cat <<EOF | tee out >/dev/null\npod: §\nEOF\nnote \"$(cat out)\"",
        &["pod: §"],
    ),
    (
        "cat > q.sql <<'EOF'\nselect 1; -- x § $x\nEOF\npsql -f q.sql; note \"$(cat q.sql)\"",
        &["-f", "q.sql", "select 1; -- x § $x"],
    ),
    (
        "printf '%s\\n' § | while IFS= read -r l; do :; done; note §",
        &["§"],
    ),
    (
        "helm -n § history § --max 5",
        &["-n", "§", "history", "§", "--max", "5"],
    ),
    (
        "docker inspect --format '{% raw %}{{ .State.Status }}{% endraw %}' §",
        &["inspect", "--format", "{{ .State.Status }}", "§"],
    ),
    (
        "docker exec § cat /etc/hosts",
        &["exec", "§", "cat", "/etc/hosts"],
    ),
    ("systemctl status -- § | head -20", &["status", "--", "§"]),
    (
        "journalctl -u § --since '1 hour ago' --no-pager | grep -c node || true",
        &["-u", "§", "--since", "1 hour ago", "--no-pager"],
    ),
    ("dig +short § A", &["+short", "§", "A"]),
    ("echo a b | xargs -n 1 note §", &["§", "a", "§", "b"]),
    (
        "find . -maxdepth 1 -name argv -exec note § {} \\;",
        &["§", "./argv"],
    ),
    ("cd /tmp && note § # it's §", &["§"]),
    ("diag() { note \"$1\" \"$2\"; }\ndiag § x", &["§", "x"]),
    ("(note §) && { note §; } & wait", &["§", "§"]),
    ("NODE_NAME=§ GIT_SHA=§ note \"a\" §", &["a", "§"]),
    ("trap 'rm -f out' EXIT; note §", &["§"]),
    ("trap 'rm -f \"$f\"' EXIT; f=$(mktemp); note §", &["§"]),
    ("bash -c 'set -euo pipefail; note \"$1\" | cat' bash §", &["§"]),
    ("sh -c 'for a do note \"$a\"; done' sh § b", &["§", "b"]),
    ("d=/var/log/$(basename -- §); note \"$d\" §", &["/var/log/§", "§"]),
];

#[test]
fn ordinary_commands_are_admitted_and_deliver() {
    assert!(ORDINARY.len() >= 40);
    let values = [
        "web-1",
        "x; touch canary #",
        "$(touch canary)`touch canary`",
        "it's \"q\" \\ $x {a,b} * ~",
        "a b\tc\né日",
        "'; touch canary; '",
    ];
    let directory = directory();
    std::fs::create_dir(directory.path().join("bin")).unwrap();
    for name in NOTED {
        let path = directory.path().join("bin").join(name);
        write_program(&path, "#!/bin/sh\nprintf '%s\\0' \"$@\" >>\"$HOME/noted\"\n");
    }
    // A busybox that stands alone runs its own `df` whatever PATH says, and notes nothing.
    let obeys_path = |shell: &[&str]| {
        let asked = "PATH=\"$PWD/bin:$PATH\"; df asked";
        run(shell, directory.path(), asked);
        let noted = std::fs::read(directory.path().join("noted")).unwrap_or_default();
        let _ = std::fs::remove_file(directory.path().join("noted"));
        noted == b"asked\0"
    };
    let shells: Vec<_> = shells()
        .into_iter()
        .filter(|(_, shell)| obeys_path(shell))
        .collect();
    assert!(
        shells.len() >= 3,
        "dash and bash, with --posix and without, obey PATH"
    );
    let mut failures = Vec::new();
    for (source, words) in ORDINARY {
        let template = match compile(source) {
            Ok(template) => template,
            Err(error) => {
                failures.push(format!("{source:?} is refused: {error}"));
                continue;
            }
        };
        // Each in a shell of its own, so that `set -e` and `exit` stop nothing else.
        let mut script = "PATH=\"$PWD/bin:$PATH\"\n".to_owned();
        let mut wanted = Vec::new();
        for value in values {
            let command = match render(&template, value) {
                Ok(command) => command,
                Err(error) => {
                    if !(value.contains('\n') && source.contains(" # ")) {
                        failures.push(format!("{source:?} refuses {value:?}: {error}"));
                    }
                    continue;
                }
            };
            script.push_str(&format!("(\n{command}\n)\n"));
            for word in *words {
                wanted.extend_from_slice(word.replace('§', value).as_bytes());
                wanted.push(0);
            }
        }
        for (_, shell) in &shells {
            run(shell, directory.path(), &script);
            let noted = std::fs::read(directory.path().join("noted")).unwrap_or_default();
            let _ = std::fs::remove_file(directory.path().join("noted"));
            if noted != wanted {
                failures.push(format!(
                    "{shell:?}: {source:?}\n  wanted {:?}\n  noted {:?}",
                    String::from_utf8_lossy(&wanted),
                    String::from_utf8_lossy(&noted)
                ));
            }
        }
    }
    assert!(!directory.path().join("canary").exists());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
