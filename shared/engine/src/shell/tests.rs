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

/// Each template with what comes of it for a plain value, the common words shortened.
fn list(templates: &[&str], expected: Expect) {
    let mut out = String::new();
    for template in templates {
        let result = run(template, "V".into()).replace("line 1 of the template: ", "");
        // Carriage returns, and blanks at a line's end, would not survive in this file.
        let shown = format!(
            "{template}\n  => {}\n",
            result.trim_end().replace('\n', "\n     ")
        );
        out.push_str(&shown.replace('\r', "\\r"));
    }
    expected.assert_eq(&out);
}

#[test]
fn what_is_read_twice_or_begins_a_command() {
    list(
        &[
            "eval \"echo {{v}}\"",
            "sh -c 'echo {{v}}'",
            "sh -c \"echo {{v}}\"",
            "/bin/bash -exc \"echo {{v}}\"",
            "bash -c -e 'echo {{v}}'",
            "bash -o pipefail -c 'echo {{v}}'",
            "sh -c{{v}}",
            "sh {{v}}",
            "sh ./script.sh {{v}}",
            "sh -s -- {{v}}",
            "ssh host uptime {{v}}",
            "ssh -p 22 -i key {{v}} uptime",
            "ssh -o ProxyCommand={{v}} host uptime",
            "x=`echo {{v}}`",
            "awk \"/{{v}}/ { print }\" file",
            "awk -F: -v x={{v}} '{ print x }' file",
            "awk -f prog.awk {{v}}",
            "sed -i 's/x/{{v}}/' file",
            "sed -n -e \"s/x/{{v}}/p\" file",
            "sed -e p {{v}}",
            "sed --expression={{v}} file",
            "perl -ne \"print if /{{v}}/\" file",
            "perl -e 'print $ARGV[0]' {{v}}",
            "python3 -c \"print('{{v}}')\"",
            "python3.12 -c 'import sys; print(sys.argv[1])' {{v}}",
            "python3 -m json.tool {{v}}",
            "python3 {{v}}",
            "node -e \"console.log('{{v}}')\"",
            "jq \".[\\\"{{v}}\\\"]\" file",
            "jq --arg v {{v}} '.[$v]' {{v}}",
            "jq -r --indent 2 '.a' {{v}}",
            "jq --unknown x '.a' {{v}}",
            "psql -h {{v}} -c \"select '{{v}}'\"",
            "mysql -e \"select '{{v}}'\"",
            "make VERSION={{v}} all",
            "watch \"kubectl get pod {{v}}\"",
            "trap \"rm {{v}}\" EXIT",
            "su - app -c \"run {{v}}\"",
            "find . -exec sh -c 'echo {{v}}' \\;",
            "find . -exec sh -c 'echo \"$1\"' sh {{v}} \\; -name {{v}}",
            "find . -exec {{v}} \\;",
            "find {{v}} -name x -delete",
            "xargs sh -c 'echo {{v}}'",
            "echo {{v}} | xargs -I{} sh -c 'echo {}'",
            "echo {{v}} | xargs -n 1 kubectl delete pod",
            "echo {{v}} | sh",
            "cat <<EOF | sh\necho {{v}}\nEOF",
            "sh <<EOF\necho {{v}}\nEOF",
            "sh -s -- {{v}} <<'EOF'\necho \"$1\"\nEOF",
            "bash -s <<EOF\n{{v}}\nEOF",
            "{ sh; } <<EOF\n{{v}}\nEOF",
            "ssh host <<EOF\n{{v}}\nEOF",
            "ssh host 'cat' <<EOF\n{{v}}\nEOF",
            "ssh host sh <<EOF\n{{v}}\nEOF",
            "python3 - <<EOF\nprint(\"{{v}}\")\nEOF",
            "kubectl exec {{v}} -n {{v}} -- sh -c 'echo {{v}}'",
            "kubectl exec {{v}} -c app -- sh -c 'echo \"$1\"' sh {{v}}",
            "kubectl exec pod -- {{v}}",
            "kubectl exec pod -- cat {{v}}",
            "kubectl exec pod -- env X={{v}} sh -c 'echo $X'",
            "kubectl exec -i pod -- sh <<EOF\n{{v}}\nEOF",
            "kubectl run x --image=y -- sh -c \"{{v}}\"",
            "kubectl get pod {{v}} -o jsonpath='{.status.phase}'",
            "kubectl delete pod -- {{v}}",
            "docker exec c sh -c \"echo {{v}}\"",
            "docker exec c bash -lc \"echo {{v}}\"",
            "docker exec {{v}} ls",
            "env sh -c 'echo {{v}}'",
            "env -u A B=c nice -n 5 timeout -k 5 10 sh -c 'echo {{v}}'",
            "env {{v}}",
            "env {{v}}=x cmd",
            "env X={{v}} cmd {{v}}",
            "env -S \"cmd {{v}}\"",
            "env --strange x sh -c 'echo {{v}}'",
            "timeout {{v}} kubectl get pod {{v}}",
            "timeout 5 {{v}}",
            "sudo -u app sh -c 'echo {{v}}'",
            "sudo -i echo {{v}}",
            "docker exec c sh -o pipefail -c \"{{v}}\"",
            "retry 5 eval {{v}}",
            "nsenter -t 1 -m -- sh -c \"{{v}}\"",
            "kubectl debug node/x --image=y -- chroot /host sh -c \"{{v}}\"",
            "tar czf a.tgz --to-command=\"{{v}}\" {{v}}",
            "git -c core.pager={{v}} log",
            "exec {{v}}",
            "command -v {{v}}",
            "time sh -c '{{v}}'",
            "nohup sh -c '{{v}}' &",
            "busybox sh -c '{{v}}'",
            "$SHELL -c \"echo {{v}}\"",
            "\"$SHELL\" -c \"echo {{v}}\"",
            "$SUDO sh -c '{{v}}'",
            "$KUBECTL get pod {{v}}",
            "\"sh\" -c '{{v}}'",
            "s\\h -c '{{v}}'",
            "\"$x\"eval {{v}}",
            "$x\"sh\" -c {{v}}",
            "\"$BIN\"/sh -c {{v}}",
            "\"$BIN/kubectl\" get pod {{v}}",
            "sh \"$OPT\" 'echo {{v}}'",
            "sh \"$DIR/run.sh\" {{v}}",
            "env \"$x\"eval {{v}}",
            "sh ${x} <<E\n{{v}}\nE",
            "ssh \"$HOST\" \"$CMD\" <<E\n{{v}}\nE",
            "sh \"$DIR/run\" <<E\n{{v}}\nE",
            "if sh -c '{{v}}'; then :; fi",
            "x=$(sh -c \"echo {{v}}\")",
            "sh -c \"echo $(printf %s {{v}})\"",
            "sh -c \"$(cat <<EOF\necho {{v}}\nEOF\n)\"",
            ". {{v}}",
            "set {{v}}",
            "unset {{v}}",
            "read {{v}}",
            "printf -v {{v}} x",
            "[ -v {{v}} ]",
            "[ {{v}} -eq 5 ]",
            "test -n {{v}}",
            "declare -i x={{v}}",
            "export {{v}}",
            "export {{v}}=x",
            "let x={{v}}",
        ],
        expect![[r#"
            eval "echo {{v}}"
              => invalid: `eval` reads this as code once more, so that escaping it for the shell is not enough; call the command directly, with the value as one of its arguments
            sh -c 'echo {{v}}'
              => invalid: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            sh -c "echo {{v}}"
              => invalid: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            /bin/bash -exc "echo {{v}}"
              => invalid: `bash` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            bash -c -e 'echo {{v}}'
              => invalid: `bash` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            bash -o pipefail -c 'echo {{v}}'
              => invalid: `bash` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            sh -c{{v}}
              => invalid: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            sh {{v}}
              => invalid: `sh` would run the file that the value names; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            sh ./script.sh {{v}}
              => sh ./script.sh 'V'
            sh -s -- {{v}}
              => invalid: this program runs what it reads, and a value could be among that; give it the code with `-c`, and the value as an argument: sh -c '… "$1"' sh {{ v }}
            ssh host uptime {{v}}
              => invalid: `ssh` reads this as code once more, so that escaping it for the shell is not enough; send it as input: printf '%s\n' {{ v }} | ssh host 'read -r v; … "$v"'
            ssh -p 22 -i key {{v}} uptime
              => ssh -p 22 -i key 'V' uptime
            ssh -o ProxyCommand={{v}} host uptime
              => invalid: `ssh` reads this as code once more, so that escaping it for the shell is not enough; send it as input: printf '%s\n' {{ v }} | ssh host 'read -r v; … "$v"'
            x=`echo {{v}}`
              => invalid: backticks read their content twice; write $( … {{ v }} … )
            awk "/{{v}}/ { print }" file
              => invalid: `awk` reads this as code once more, so that escaping it for the shell is not enough; pass it through the environment: v={{ v }} awk '… ENVIRON["v"] …'
            awk -F: -v x={{v}} '{ print x }' file
              => awk -F: -v x='V' '{ print x }' file
            awk -f prog.awk {{v}}
              => awk -f prog.awk 'V'
            sed -i 's/x/{{v}}/' file
              => invalid: `sed` reads this as code once more, so that escaping it for the shell is not enough; use awk, and pass it through the environment: v={{ v }} awk '… ENVIRON["v"] …'
            sed -n -e "s/x/{{v}}/p" file
              => invalid: `sed` reads this as code once more, so that escaping it for the shell is not enough; use awk, and pass it through the environment: v={{ v }} awk '… ENVIRON["v"] …'
            sed -e p {{v}}
              => sed -e p 'V'
            sed --expression={{v}} file
              => invalid: `sed` reads this as code once more, so that escaping it for the shell is not enough; use awk, and pass it through the environment: v={{ v }} awk '… ENVIRON["v"] …'
            perl -ne "print if /{{v}}/" file
              => invalid: `perl` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: perl -e '… $ARGV[0] …' {{ v }}
            perl -e 'print $ARGV[0]' {{v}}
              => perl -e 'print $ARGV[0]' 'V'
            python3 -c "print('{{v}}')"
              => invalid: `python3` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: python -c '… sys.argv[1] …' {{ v }}
            python3.12 -c 'import sys; print(sys.argv[1])' {{v}}
              => python3.12 -c 'import sys; print(sys.argv[1])' 'V'
            python3 -m json.tool {{v}}
              => python3 -m json.tool 'V'
            python3 {{v}}
              => invalid: `python3` would run the file that the value names; pass it as an argument of its own: python -c '… sys.argv[1] …' {{ v }}
            node -e "console.log('{{v}}')"
              => invalid: `node` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: node -e '… process.argv[1] …' {{ v }}
            jq ".[\"{{v}}\"]" file
              => invalid: `jq` reads this as code once more, so that escaping it for the shell is not enough; pass it as a variable: jq --arg v {{ v }} '… $v …'
            jq --arg v {{v}} '.[$v]' {{v}}
              => jq --arg v 'V' '.[$v]' 'V'
            jq -r --indent 2 '.a' {{v}}
              => jq -r --indent 2 '.a' 'V'
            jq --unknown x '.a' {{v}}
              => invalid: with these options it cannot be told which words are read as code; write them so that each stands by itself, and the value behind them
            psql -h {{v}} -c "select '{{v}}'"
              => invalid: `psql` reads this as code once more, so that escaping it for the shell is not enough; pass it as a variable of the client's, not as a part of the statement
            mysql -e "select '{{v}}'"
              => invalid: `mysql` reads this as code once more, so that escaping it for the shell is not enough; pass it as a variable of the client's, not as a part of the statement
            make VERSION={{v}} all
              => invalid: `make` reads this as code once more, so that escaping it for the shell is not enough; pass it through the environment: v={{ v }} make, and "$$v" in the recipe
            watch "kubectl get pod {{v}}"
              => invalid: `watch` reads this as code once more, so that escaping it for the shell is not enough; call the command directly, with the value as one of its arguments
            trap "rm {{v}}" EXIT
              => invalid: `trap` reads this as code once more, so that escaping it for the shell is not enough; keep it in a variable, and name that in the trap: v={{ v }}; trap 'echo "$v"' EXIT
            su - app -c "run {{v}}"
              => invalid: `su` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            find . -exec sh -c 'echo {{v}}' \;
              => invalid: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            find . -exec sh -c 'echo "$1"' sh {{v}} \; -name {{v}}
              => find . -exec sh -c 'echo "$1"' sh 'V' \; -name 'V'
            find . -exec {{v}} \;
              => invalid: a value cannot be the name of a command; write the name out, and pass the value as an argument
            find {{v}} -name x -delete
              => find 'V' -name x -delete
            xargs sh -c 'echo {{v}}'
              => invalid: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
                 invalid: this program runs what it reads, and a value could be among that; give it the code with `-c`, and the value as an argument: sh -c '… "$1"' sh {{ v }}
            echo {{v}} | xargs -I{} sh -c 'echo {}'
              => invalid: this program runs what it reads, and a value could be among that; give it the code with `-c`, and the value as an argument: sh -c '… "$1"' sh {{ v }}
            echo {{v}} | xargs -n 1 kubectl delete pod
              => echo 'V' | xargs -n 1 kubectl delete pod
            echo {{v}} | sh
              => invalid: this program runs what it reads, and a value could be among that; give it the code with `-c`, and the value as an argument: sh -c '… "$1"' sh {{ v }}
            cat <<EOF | sh
            echo {{v}}
            EOF
              => invalid: line 2 of the template: the program that reads this heredoc runs it as code; give the value as an argument: sh -s -- {{ v }}, and "$1" in the heredoc
            sh <<EOF
            echo {{v}}
            EOF
              => invalid: line 2 of the template: the program that reads this heredoc runs it as code; give the value as an argument: sh -s -- {{ v }}, and "$1" in the heredoc
            sh -s -- {{v}} <<'EOF'
            echo "$1"
            EOF
              => sh -s -- 'V' <<'EOF'
                 echo "$1"
                 EOF
            bash -s <<EOF
            {{v}}
            EOF
              => invalid: line 2 of the template: the program that reads this heredoc runs it as code; give the value as an argument: sh -s -- {{ v }}, and "$1" in the heredoc
            { sh; } <<EOF
            {{v}}
            EOF
              => invalid: line 2 of the template: the program that reads this heredoc runs it as code; give the value as an argument: sh -s -- {{ v }}, and "$1" in the heredoc
            ssh host <<EOF
            {{v}}
            EOF
              => invalid: line 2 of the template: the program that reads this heredoc runs it as code; give the value as an argument: sh -s -- {{ v }}, and "$1" in the heredoc
            ssh host 'cat' <<EOF
            {{v}}
            EOF
              => ssh host 'cat' <<EOF
                 V
                 EOF
            ssh host sh <<EOF
            {{v}}
            EOF
              => invalid: line 2 of the template: the program that reads this heredoc runs it as code; give the value as an argument: sh -s -- {{ v }}, and "$1" in the heredoc
            python3 - <<EOF
            print("{{v}}")
            EOF
              => invalid: line 2 of the template: the program that reads this heredoc runs it as code; give the value as an argument: sh -s -- {{ v }}, and "$1" in the heredoc
            kubectl exec {{v}} -n {{v}} -- sh -c 'echo {{v}}'
              => invalid: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            kubectl exec {{v}} -c app -- sh -c 'echo "$1"' sh {{v}}
              => kubectl exec 'V' -c app -- sh -c 'echo "$1"' sh 'V'
            kubectl exec pod -- {{v}}
              => invalid: a value cannot be the name of a command; write the name out, and pass the value as an argument
            kubectl exec pod -- cat {{v}}
              => kubectl exec pod -- cat 'V'
            kubectl exec pod -- env X={{v}} sh -c 'echo $X'
              => kubectl exec pod -- env X='V' sh -c 'echo $X'
            kubectl exec -i pod -- sh <<EOF
            {{v}}
            EOF
              => invalid: line 2 of the template: the program that reads this heredoc runs it as code; give the value as an argument: sh -s -- {{ v }}, and "$1" in the heredoc
            kubectl run x --image=y -- sh -c "{{v}}"
              => invalid: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            kubectl get pod {{v}} -o jsonpath='{.status.phase}'
              => kubectl get pod 'V' -o jsonpath='{.status.phase}'
            kubectl delete pod -- {{v}}
              => kubectl delete pod -- 'V'
            docker exec c sh -c "echo {{v}}"
              => invalid: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            docker exec c bash -lc "echo {{v}}"
              => invalid: `bash` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            docker exec {{v}} ls
              => docker exec 'V' ls
            env sh -c 'echo {{v}}'
              => invalid: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            env -u A B=c nice -n 5 timeout -k 5 10 sh -c 'echo {{v}}'
              => invalid: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            env {{v}}
              => invalid: a value cannot be the name of a command; write the name out, and pass the value as an argument
            env {{v}}=x cmd
              => invalid: a value cannot be the name of a command; write the name out, and pass the value as an argument
            env X={{v}} cmd {{v}}
              => env X='V' cmd 'V'
            env -S "cmd {{v}}"
              => invalid: `env` reads this as code once more, so that escaping it for the shell is not enough; write the command's words out
            env --strange x sh -c 'echo {{v}}'
              => invalid: with these options it cannot be told which words are read as code; write them so that each stands by itself, and the value behind them
            timeout {{v}} kubectl get pod {{v}}
              => timeout 'V' kubectl get pod 'V'
            timeout 5 {{v}}
              => invalid: a value cannot be the name of a command; write the name out, and pass the value as an argument
            sudo -u app sh -c 'echo {{v}}'
              => invalid: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            sudo -i echo {{v}}
              => invalid: with these options it cannot be told which words are read as code; write them so that each stands by itself, and the value behind them
            docker exec c sh -o pipefail -c "{{v}}"
              => invalid: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            retry 5 eval {{v}}
              => invalid: `eval` and `source` read what follows as code once more; call the command directly
            nsenter -t 1 -m -- sh -c "{{v}}"
              => invalid: with these options it cannot be told which words are read as code; write them so that each stands by itself, and the value behind them
            kubectl debug node/x --image=y -- chroot /host sh -c "{{v}}"
              => invalid: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            tar czf a.tgz --to-command="{{v}}" {{v}}
              => invalid: `tar` reads this as code once more, so that escaping it for the shell is not enough; call the command directly, with the value as one of its arguments
            git -c core.pager={{v}} log
              => invalid: `git` reads this as code once more, so that escaping it for the shell is not enough; call the command directly, with the value as one of its arguments
            exec {{v}}
              => invalid: a value cannot be the name of a command; write the name out, and pass the value as an argument
            command -v {{v}}
              => invalid: with these options it cannot be told which words are read as code; write them so that each stands by itself, and the value behind them
            time sh -c '{{v}}'
              => invalid: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            nohup sh -c '{{v}}' &
              => invalid: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            busybox sh -c '{{v}}'
              => invalid: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            $SHELL -c "echo {{v}}"
              => invalid: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            "$SHELL" -c "echo {{v}}"
              => invalid: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            $SUDO sh -c '{{v}}'
              => invalid: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            $KUBECTL get pod {{v}}
              => $KUBECTL get pod 'V'
            "sh" -c '{{v}}'
              => invalid: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            s\h -c '{{v}}'
              => invalid: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            "$x"eval {{v}}
              => invalid: the name of this command is put together, and could become one that reads code; write it out
            $x"sh" -c {{v}}
              => invalid: the name of this command is put together, and could become one that reads code; write it out
            "$BIN"/sh -c {{v}}
              => invalid: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            "$BIN/kubectl" get pod {{v}}
              => "$BIN/kubectl" get pod 'V'
            sh "$OPT" 'echo {{v}}'
              => invalid: with these options it cannot be told which words are read as code; write them so that each stands by itself, and the value behind them
                 invalid: this program runs what it reads, and a value could be among that; give it the code with `-c`, and the value as an argument: sh -c '… "$1"' sh {{ v }}
            sh "$DIR/run.sh" {{v}}
              => sh "$DIR/run.sh" 'V'
            env "$x"eval {{v}}
              => invalid: with these options it cannot be told which words are read as code; write them so that each stands by itself, and the value behind them
            sh ${x} <<E
            {{v}}
            E
              => invalid: line 2 of the template: the program that reads this heredoc runs it as code; give the value as an argument: sh -s -- {{ v }}, and "$1" in the heredoc
            ssh "$HOST" "$CMD" <<E
            {{v}}
            E
              => invalid: line 2 of the template: the program that reads this heredoc runs it as code; give the value as an argument: sh -s -- {{ v }}, and "$1" in the heredoc
            sh "$DIR/run" <<E
            {{v}}
            E
              => sh "$DIR/run" <<E
                 V
                 E
            if sh -c '{{v}}'; then :; fi
              => invalid: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            x=$(sh -c "echo {{v}}")
              => invalid: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            sh -c "echo $(printf %s {{v}})"
              => invalid: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
                 invalid: this program runs what it reads, and a value could be among that; give it the code with `-c`, and the value as an argument: sh -c '… "$1"' sh {{ v }}
            sh -c "$(cat <<EOF
            echo {{v}}
            EOF
            )"
              => invalid: line 2 of the template: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
                 invalid: line 4 of the template: this program runs what it reads, and a value could be among that; give it the code with `-c`, and the value as an argument: sh -c '… "$1"' sh {{ v }}
            . {{v}}
              => invalid: `.` would run the file that the value names; write the file's name out
            set {{v}}
              => invalid: write `set -- {{ v }}`, so that it cannot be an option
            unset {{v}}
              => invalid: `unset`: the shell reads a variable's name there, and evaluates it; write the name out
            read {{v}}
              => invalid: `read`: the shell reads a variable's name there, and evaluates it; write the name out
            printf -v {{v}} x
              => invalid: with these options it cannot be told which words are read as code; write them so that each stands by itself, and the value behind them
            [ -v {{v}} ]
              => invalid: `[`: the shell reads a variable's name there, and evaluates it; write the name out
            [ {{v}} -eq 5 ]
              => [ 'V' -eq 5 ]
            test -n {{v}}
              => test -n 'V'
            declare -i x={{v}}
              => invalid: no value may follow an option with which the shell evaluates what is assigned (`declare -i` and the like): shells read it in more than one way
            export {{v}}
              => invalid: a value cannot be the name of a variable; write the name out: `export NAME={{ v }}`
            export {{v}}=x
              => invalid: a value cannot be the name of a variable; write the name out: `export NAME={{ v }}`
            let x={{v}}
              => invalid: no value may follow `let`, which evaluates variables; write `$(( … ))`: shells read it in more than one way
        "#]],
    );
}

#[test]
fn names_and_targets() {
    list(
        &[
            "{{v}} x",
            "\"{{v}}\"",
            "./bin/{{v}}",
            "x=1 {{v}}",
            "echo a; {{v}}",
            "echo a | {{v}}",
            "$({{v}})",
            "$(echo {{v}}) a",
            "{{v}}=x",
            "x{{v}}=x cmd",
            "x[{{v}}]=1",
            "x+={{v}}",
            "PATH={{v}} cmd",
            "BASH_ENV={{v}} bash -c :",
            "LD_PRELOAD={{v}} cmd",
            "for {{v}} in a; do :; done",
            "{{v}}() { :; }",
            "echo x > {{v}}",
            "echo x >> \"/tmp/{{v}}\"",
            "cat < {{v}}",
            "cat 2>&{{v}}",
            "cat <<{{v}}\nx\n",
            "cat <<< {{v}}",
            "cat <<<\"a {{v}}\"",
            "cmd &> {{v}}",
            "cmd &> file {{v}}",
            "echo x > \"/tmp/$(basename {{v}})\"",
        ],
        expect![[r#"
            {{v}} x
              => invalid: a value cannot be the name of a command; write the name out, and pass the value as an argument
            "{{v}}"
              => invalid: a value cannot be the name of a command; write the name out, and pass the value as an argument
            ./bin/{{v}}
              => invalid: a value cannot be the name of a command; write the name out, and pass the value as an argument
            x=1 {{v}}
              => invalid: a value cannot be the name of a command; write the name out, and pass the value as an argument
            echo a; {{v}}
              => invalid: a value cannot be the name of a command; write the name out, and pass the value as an argument
            echo a | {{v}}
              => invalid: a value cannot be the name of a command; write the name out, and pass the value as an argument
            $({{v}})
              => invalid: a value cannot be the name of a command; write the name out, and pass the value as an argument
            $(echo {{v}}) a
              => invalid: a value cannot be the name of a command; write the name out, and pass the value as an argument
            {{v}}=x
              => invalid: a value cannot be the name of a command; write the name out, and pass the value as an argument
            x{{v}}=x cmd
              => invalid: a value cannot be the name of a command; write the name out, and pass the value as an argument
            x[{{v}}]=1
              => invalid: a value cannot be the name of a command; write the name out, and pass the value as an argument
            x+={{v}}
              => invalid: a value cannot be the name of a command; write the name out, and pass the value as an argument
            PATH={{v}} cmd
              => invalid: the shell itself reads `PATH`, and a value could make it run something; use another variable
            BASH_ENV={{v}} bash -c :
              => invalid: the shell itself reads `BASH_ENV`, and a value could make it run something; use another variable
            LD_PRELOAD={{v}} cmd
              => invalid: the shell itself reads `LD_PRELOAD`, and a value could make it run something; use another variable
            for {{v}} in a; do :; done
              => invalid: a value cannot be the name of a loop's variable; write the name out
            {{v}}() { :; }
              => invalid: a value cannot be the name of a command; write the name out, and pass the value as an argument
            echo x > {{v}}
              => invalid: a value cannot be the target of a redirection; write the file's name out, or give the value to a program: tee -- {{ v }}
            echo x >> "/tmp/{{v}}"
              => invalid: a value cannot be the target of a redirection; write the file's name out, or give the value to a program: tee -- {{ v }}
            cat < {{v}}
              => invalid: a value cannot be the target of a redirection; write the file's name out, or give the value to a program: tee -- {{ v }}
            cat 2>&{{v}}
              => invalid: a value cannot be the target of a redirection; write the file's name out, or give the value to a program: tee -- {{ v }}
            cat <<{{v}}
            x

              => invalid: a value cannot be the delimiter of a heredoc; write a word of your own
            cat <<< {{v}}
              => invalid: `<<<` is not known to every shell; write printf '%s\n' {{ v }} | …
            cat <<<"a {{v}}"
              => invalid: `<<<` is not known to every shell; write printf '%s\n' {{ v }} | …
            cmd &> {{v}}
              => invalid: a value cannot be the target of a redirection; write the file's name out, or give the value to a program: tee -- {{ v }}
            cmd &> file {{v}}
              => invalid: a value cannot be the name of a command; write the name out, and pass the value as an argument
            echo x > "/tmp/$(basename {{v}})"
              => echo x > "/tmp/$(basename 'V')"
        "#]],
    );
}

#[test]
fn expansions_and_what_shells_differ_in() {
    list(
        &[
            "echo ${x:-{{v}}}",
            "echo ${ {{v}} }",
            "echo \"${x:-{{v}}}\"",
            "echo ${{v}}",
            "echo \"${{v}}\"",
            "echo '${{v}}'",
            "echo \\{{v}}",
            "echo \"\\{{v}}\"",
            "echo '\\{{v}}'",
            "echo $'a{{v}}'",
            "echo $'a'{{v}}",
            "echo {{v}}$'a'",
            "echo $\"a{{v}}\"",
            "echo $'it\\'s' {{v}}",
            "echo a{ {{v}},b}",
            "echo {a,{{v}}}",
            "echo {{v}}{a,b}",
            "echo {a,b}{{v}}",
            "echo \"{a,b}{{v}}\"",
            "echo {a,b} {{v}}",
            "[[ -n {{v}} ]]",
            "if [[ -n $X ]]; then echo {{v}}; fi",
            "(( x = {{v}} ))",
            "echo $[ {{v}} ]",
            "echo $(( x{{v}} ))",
            "echo $(( {{v}}{{v}} ))",
            "echo $((echo {{v}}) | cat)",
            "echo $( (echo {{v}}) | cat)",
            "echo $((1 + $(printf %s {{v}})))",
            "diff <(echo {{v}}) x",
            "echo @(a|{{v}})",
            "x=(a {{v}})",
            "cat <<EOF\n$x{{v}}\nEOF",
            "cat <<EOF\n${x}{{v}} \\{{v}}\nEOF",
            "cat <<EOF\n`echo {{v}}`\nEOF",
            "cat <<EOF\n${{v}}\nEOF",
            "cat <<'EOF'\n${{v}} `{{v}}`\nEOF",
            "function f { echo {{v}}; }",
            "select x in a {{v}}; do :; done",
            "alias k=eval\nk {{v}}",
            "echo \"{{v}}",
            "echo $(echo {{v}}",
        ],
        expect![[r#"
            echo ${x:-{{v}}}
              => invalid: a value cannot stand inside `${ }`, where no quoting is safe; give it to a variable first: v={{ v }}
            echo ${ {{v}} }
              => invalid: a value cannot stand inside `${ }`, where no quoting is safe; give it to a variable first: v={{ v }}
            echo "${x:-{{v}}}"
              => invalid: a value cannot stand inside `${ }`, where no quoting is safe; give it to a variable first: v={{ v }}
            echo ${{v}}
              => invalid: `$` in front of a value would make an expansion of it; leave the `$` out: {{ v }}, not ${{ v }}
            echo "${{v}}"
              => invalid: `$` in front of a value would make an expansion of it; leave the `$` out: {{ v }}, not ${{ v }}
            echo '${{v}}'
              => echo '$V'
            echo \{{v}}
              => invalid: a backslash in front of a value would undo its quotes; leave the backslash out
            echo "\{{v}}"
              => invalid: a backslash in front of a value would undo its quotes; leave the backslash out
            echo '\{{v}}'
              => echo '\V'
            echo $'a{{v}}'
              => invalid: a value beside `$'…'` or `$"…"` is read in more than one way; write the text in plain quotes, or use printf
            echo $'a'{{v}}
              => invalid: a value beside `$'…'` or `$"…"` is read in more than one way; write the text in plain quotes, or use printf
            echo {{v}}$'a'
              => invalid: a value beside `$'…'` or `$"…"` is read in more than one way; write the text in plain quotes, or use printf
            echo $"a{{v}}"
              => invalid: a value beside `$'…'` or `$"…"` is read in more than one way; write the text in plain quotes, or use printf
            echo $'it\'s' {{v}}
              => invalid: no value may follow `\'` inside `$'…'`: shells read it in more than one way
            echo a{ {{v}},b}
              => echo a{ 'V',b}
            echo {a,{{v}}}
              => invalid: a value in a word with an unquoted `{` is read in more than one way; put the braces in quotes
            echo {{v}}{a,b}
              => invalid: a value in a word with an unquoted `{` is read in more than one way; put the braces in quotes
            echo {a,b}{{v}}
              => invalid: a value in a word with an unquoted `{` is read in more than one way; put the braces in quotes
            echo "{a,b}{{v}}"
              => echo "{a,b}"'V'""
            echo {a,b} {{v}}
              => echo {a,b} 'V'
            [[ -n {{v}} ]]
              => invalid: no value may follow `[[`, which not every shell has; write `[ … ]`
            if [[ -n $X ]]; then echo {{v}}; fi
              => invalid: no value may follow `[[`, which not every shell has; write `[ … ]`
            (( x = {{v}} ))
              => invalid: no value may follow `((`, which not every shell has; write `$(( ))`
            echo $[ {{v}} ]
              => invalid: no value may follow `$[ ]`: shells read it in more than one way
            echo $(( x{{v}} ))
              => invalid: inside `$(( ))` a value stands by itself; put a space or an operator in front of it
            echo $(( {{v}}{{v}} ))
              => invalid: inside `$(( ))` a value stands by itself; put a space or an operator in front of it
            echo $((echo {{v}}) | cat)
              => invalid: a value stands inside `$((` that does not end in `))`, which shells read in more than one way
            echo $( (echo {{v}}) | cat)
              => echo $( (echo 'V') | cat)
            echo $((1 + $(printf %s {{v}})))
              => invalid: inside `$(( ))` the shell evaluates what a command prints of a value; only a whole number can stand there: $(( {{ v }} + 1 ))
            diff <(echo {{v}}) x
              => invalid: no value may follow `<( )`, which not every shell has
            echo @(a|{{v}})
              => invalid: no value may follow `(` inside a word: shells read it in more than one way
            x=(a {{v}})
              => invalid: no value may follow `(` behind a word: shells read it in more than one way
            cat <<EOF
            $x{{v}}
            EOF
              => invalid: line 2 of the template: the value would become a part of the variable's name; write ${x} in front of it
            cat <<EOF
            ${x}{{v}} \{{v}}
            EOF
              => invalid: line 2 of the template: a backslash in front of a value would undo its quotes; leave the backslash out
            cat <<EOF
            `echo {{v}}`
            EOF
              => invalid: line 2 of the template: backticks read their content twice; write $( … {{ v }} … )
            cat <<EOF
            ${{v}}
            EOF
              => invalid: line 2 of the template: `$` in front of a value would make an expansion of it; leave the `$` out: {{ v }}, not ${{ v }}
            cat <<'EOF'
            ${{v}} `{{v}}`
            EOF
              => cat <<'EOF'
                 $V `V`
                 EOF
            function f { echo {{v}}; }
              => invalid: no value may follow a word that not every shell knows (select, function, coproc)
            select x in a {{v}}; do :; done
              => invalid: no value may follow a word that not every shell knows (select, function, coproc)
            alias k=eval
            k {{v}}
              => invalid: line 2 of the template: no value may follow `alias`, behind which words mean something else: shells read it in more than one way
            echo "{{v}}
              => invalid: a quote, an expansion or a heredoc is opened and never closed
            echo $(echo {{v}}
              => invalid: what is printed of the value here becomes several words; put double quotes around it: "$( … )"
                 invalid: a quote, an expansion or a heredoc is opened and never closed
        "#]],
    );
}

#[test]
fn variables_that_hold_values() {
    list(
        &[
            "x={{v}}; eval \"echo $x\"",
            "x={{v}}; sh -c \"echo $x\"",
            "x={{v}}; sh -c \"echo \\$1\" sh \"$x\"",
            "x={{v}}; echo $((x + 1))",
            "x={{v}}; echo $(( $x + 1 ))",
            "x={{v}}; [[ $x -eq 1 ]]",
            "x={{v}}; ((x++))",
            "x={{v}}; let x++",
            "x={{v}}; $x",
            "x={{v}}; echo \"$x\" | sh",
            "x={{v}}; sh <<EOF\n$x\nEOF",
            "x={{v}}; echo ${!x}",
            "x={{v}}; echo ${x:-a} ${x%.*} \"${#x}\"",
            "x={{v}}; echo ${y:x:1}",
            "for x in {{v}}; do eval $x; done",
            "x=$(cat {{v}}); eval \"$x\"",
            "set -- {{v}}; eval \"$1\"",
            "x={{v}}; echo $x",
            "x={{v}}; echo \"$x\" ${x%.*} \"a${x}b\"",
            "x={{v}}; y=\"$x\"; eval \"$y\"",
            "x={{v}}; y=$(echo \"$x\"); eval \"$y\"",
            "x=$(kubectl get pod -l app={{v}} -o name); kubectl delete $x",
            "x={{v}}; for y in $x; do :; done",
            "x={{v}}; case $x in a) y=$x;; esac",
            "while :; do eval \"$x\"; x={{v}}; done",
            "f() { eval \"$1\"; }; f {{v}}",
            "f() { kubectl get pod \"$1\"; }; f {{v}}",
            "echo {{v}} | while read -r x; do sh -c \"$x\"; done",
            "echo {{v}} | while read -r x; do kubectl get pod $x; done",
            "x={{v}}; export y=$x",
            "x={{v}}; export y=\"$x\"",
            "export x={{v}}; unset \"$x\"",
        ],
        expect![[r#"
            x={{v}}; eval "echo $x"
              => invalid: `$x` holds a value: `eval` reads this as code once more, so that escaping it for the shell is not enough; call the command directly, with the value as one of its arguments
            x={{v}}; sh -c "echo $x"
              => invalid: `$x` holds a value: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
                 invalid: this program runs what it reads, and a value could be among that; give it the code with `-c`, and the value as an argument: sh -c '… "$1"' sh {{ v }}
            x={{v}}; sh -c "echo \$1" sh "$x"
              => x='V'; sh -c "echo \$1" sh "$x"
            x={{v}}; echo $((x + 1))
              => invalid: `x` would evaluate, as arithmetic or code, a variable that holds a value; write the value itself there: $(( {{ v }} + 1 ))
                 invalid: a quote, an expansion or a heredoc is opened and never closed
            x={{v}}; echo $(( $x + 1 ))
              => invalid: `x` would evaluate, as arithmetic or code, a variable that holds a value; write the value itself there: $(( {{ v }} + 1 ))
                 invalid: a quote, an expansion or a heredoc is opened and never closed
            x={{v}}; [[ $x -eq 1 ]]
              => invalid: a variable that holds a value cannot be used with `[[`, which not every shell has; write `[ … ]`
            x={{v}}; ((x++))
              => invalid: `((` would evaluate, as arithmetic or code, a variable that holds a value; write the value itself there: $(( {{ v }} + 1 ))
            x={{v}}; let x++
              => invalid: a variable that holds a value cannot be used with `let`, which evaluates variables; write `$(( … ))`
            x={{v}}; $x
              => invalid: `$x` holds a value: a value cannot be the name of a command; write the name out, and pass the value as an argument
            x={{v}}; echo "$x" | sh
              => invalid: this program runs what it reads, and a value could be among that; give it the code with `-c`, and the value as an argument: sh -c '… "$1"' sh {{ v }}
            x={{v}}; sh <<EOF
            $x
            EOF
              => invalid: the program that reads this heredoc runs it as code; give the value as an argument: sh -s -- {{ v }}, and "$1" in the heredoc
            x={{v}}; echo ${!x}
              => invalid: `${!x}` evaluates variables as code or arithmetic in some shells; write the value itself where it is needed
            x={{v}}; echo ${x:-a} ${x%.*} "${#x}"
              => invalid: a comment is opened with `{#` and never closed: write `#}`, or for the shell's own `${#x}` write `{% raw %}${#x}{% endraw %}`
            x={{v}}; echo ${y:x:1}
              => invalid: `${y:x:1}` evaluates variables as code or arithmetic in some shells; write the value itself where it is needed
            for x in {{v}}; do eval $x; done
              => invalid: `$x` holds a value: `eval` reads this as code once more, so that escaping it for the shell is not enough; call the command directly, with the value as one of its arguments
            x=$(cat {{v}}); eval "$x"
              => invalid: `$x` holds a value: `eval` reads this as code once more, so that escaping it for the shell is not enough; call the command directly, with the value as one of its arguments
            set -- {{v}}; eval "$1"
              => invalid: `$1` holds a value: `eval` reads this as code once more, so that escaping it for the shell is not enough; call the command directly, with the value as one of its arguments
            x={{v}}; echo $x
              => invalid: `$x` holds a value, which unquoted would become several words; write "$x"
            x={{v}}; echo "$x" ${x%.*} "a${x}b"
              => invalid: `$x` holds a value, which unquoted would become several words; write "$x"
            x={{v}}; y="$x"; eval "$y"
              => invalid: `$y` holds a value: `eval` reads this as code once more, so that escaping it for the shell is not enough; call the command directly, with the value as one of its arguments
            x={{v}}; y=$(echo "$x"); eval "$y"
              => invalid: `$y` holds a value: `eval` reads this as code once more, so that escaping it for the shell is not enough; call the command directly, with the value as one of its arguments
            x=$(kubectl get pod -l app={{v}} -o name); kubectl delete $x
              => x=$(kubectl get pod -l app='V' -o name); kubectl delete $x
            x={{v}}; for y in $x; do :; done
              => invalid: `$x` holds a value, which unquoted would become several words; write "$x"
            x={{v}}; case $x in a) y=$x;; esac
              => x='V'; case $x in a) y=$x;; esac
            while :; do eval "$x"; x={{v}}; done
              => invalid: `$x` holds a value: `eval` reads this as code once more, so that escaping it for the shell is not enough; call the command directly, with the value as one of its arguments
                 invalid: `eval` reads this as code once more, so that escaping it for the shell is not enough; call the command directly, with the value as one of its arguments
            f() { eval "$1"; }; f {{v}}
              => invalid: `$1` holds a value: `eval` reads this as code once more, so that escaping it for the shell is not enough; call the command directly, with the value as one of its arguments
                 invalid: `eval` reads this as code once more, so that escaping it for the shell is not enough; call the command directly, with the value as one of its arguments
                 invalid: this program runs what it reads, and a value could be among that; give it the code with `-c`, and the value as an argument: sh -c '… "$1"' sh {{ v }}
            f() { kubectl get pod "$1"; }; f {{v}}
              => f() { kubectl get pod "$1"; }; f 'V'
            echo {{v}} | while read -r x; do sh -c "$x"; done
              => invalid: `$x` holds a value: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
                 invalid: this program runs what it reads, and a value could be among that; give it the code with `-c`, and the value as an argument: sh -c '… "$1"' sh {{ v }}
            echo {{v}} | while read -r x; do kubectl get pod $x; done
              => echo 'V' | while read -r x; do kubectl get pod $x; done
            x={{v}}; export y=$x
              => invalid: `$x` holds a value, which unquoted would become several words; write "$x"
            x={{v}}; export y="$x"
              => x='V'; export y="$x"
            export x={{v}}; unset "$x"
              => invalid: `$x` holds a value: `unset`: the shell reads a variable's name there, and evaluates it; write the name out
        "#]],
    );
}

#[test]
fn branches_and_loops() {
    list(
        &[
            "echo {% if source.data.e %}\"{% endif %}{{v}}{% if source.data.e %}\"{% endif %}",
            "echo {% if source.data.e %}\"a{% else %}\"b{% endif %} {{v}}\"",
            "{% if source.data.e %}sh -c{% else %}echo{% endif %} {{v}}",
            "{% if source.data.e %}cmd{% endif %} {{v}}",
            "kubectl get pods{% if source.data.e %} -n {{v}}{% endif %} {{v}}",
            "cmd {% for x in source.data.list %}--set {{ x }} {% endfor %}{{v}}",
            "cmd {% for x in source.data.list %}--set={{ x }}{% if not loop.last %},{% endif %}{% endfor %}",
            "cmd \"{% for x in source.data.list %}{{ x }}, {% endfor %}\"",
            "cmd {% for x in source.data.list %}\"{{ x }}{% endfor %}",
            "{% for x in source.data.list %}{% if x == 'a' %}{% continue %}{% endif %}echo {{ x }}\n{% endfor %}",
            "{% for x in source.data.list %}echo {{ x }} {% if x == 'a' %}{% break %}{% endif %};{% endfor %} {{v}}",
            "echo {{ source.data.v | safe }}",
            "{% set x %}{{v}}{% endset %}echo {{ x }}",
            "{% set x %}a{% endset %}echo {{ x }}",
            "{% filter upper %}echo {{v}}{% endfilter %}",
            "{% filter lower %}EVAL {% endfilter %}{{v}}",
            "{% filter replace(from='X', to=source?.data?.v | default(value='x')) %}echo X{% endfilter %} {{v}}",
            "{% filter replace(from='X', to='y') %}echo X{% endfilter %} {{v}}",
            "{% filter trim %} echo {% endfilter %} {{v}}",
            "{% set x | replace(from='a', to=source.data.v) %}a{% endset %}echo {{ x }}",
            "echo {% raw %}{{v}}{% endraw %} {{v}}",
            "echo {{ source.data.missing }}",
            "{{- \" \" -}} echo {{v}}",
        ],
        expect![[r#"
            echo {% if source.data.e %}"{% endif %}{{v}}{% if source.data.e %}"{% endif %}
              => invalid: the branches in front of this end in different quotes, expansions or heredocs; open and close them in the same branch
            echo {% if source.data.e %}"a{% else %}"b{% endif %} {{v}}"
              => echo "b "'V'""
            {% if source.data.e %}sh -c{% else %}echo{% endif %} {{v}}
              => invalid: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            {% if source.data.e %}cmd{% endif %} {{v}}
              => invalid: a value cannot be the name of a command; write the name out, and pass the value as an argument
            kubectl get pods{% if source.data.e %} -n {{v}}{% endif %} {{v}}
              => kubectl get pods 'V'
            cmd {% for x in source.data.list %}--set {{ x }} {% endfor %}{{v}}
              => cmd --set 'a' --set 'b c' 'V'
            cmd {% for x in source.data.list %}--set={{ x }}{% if not loop.last %},{% endif %}{% endfor %}
              => cmd --set='a',--set='b c'
            cmd "{% for x in source.data.list %}{{ x }}, {% endfor %}"
              => cmd ""'a'", "'b c'", "
            cmd {% for x in source.data.list %}"{{ x }}{% endfor %}
              => invalid: the branches in front of this end in different quotes, expansions or heredocs; open and close them in the same branch
            {% for x in source.data.list %}{% if x == 'a' %}{% continue %}{% endif %}echo {{ x }}
            {% endfor %}
              => echo 'b c'
            {% for x in source.data.list %}echo {{ x }} {% if x == 'a' %}{% break %}{% endif %};{% endfor %} {{v}}
              => invalid: a value cannot be the name of a command; write the name out, and pass the value as an argument
            echo {{ source.data.v | safe }}
              => invalid: `safe` is refused in a command, where every value is escaped; leave it out
            {% set x %}{{v}}{% endset %}echo {{ x }}
              => invalid: in a command, `{% set %}` may not hold an expression, since what it prints could be changed after it was escaped; write `{% set name = expression %}`
            {% set x %}a{% endset %}echo {{ x }}
              => echo 'a'
            {% filter upper %}echo {{v}}{% endfilter %}
              => invalid: in a command, `{% filter %}` may not hold an expression, since what it prints could be changed after it was escaped; give the filter to the expression itself: `{{ value | filter }}`
            {% filter lower %}EVAL {% endfilter %}{{v}}
              => invalid: `eval` reads this as code once more, so that escaping it for the shell is not enough; call the command directly, with the value as one of its arguments
            {% filter replace(from='X', to=source?.data?.v | default(value='x')) %}echo X{% endfilter %} {{v}}
              => invalid: in a command, the filters of a section may not read values: these would become the command's own text; give the filter to the expression itself: `{{ value | filter }}`
            {% filter replace(from='X', to='y') %}echo X{% endfilter %} {{v}}
              => echo y 'V'
            {% filter trim %} echo {% endfilter %} {{v}}
              => echo 'V'
            {% set x | replace(from='a', to=source.data.v) %}a{% endset %}echo {{ x }}
              => echo 'V'
            echo {% raw %}{{v}}{% endraw %} {{v}}
              => echo {{ source.data.v }} 'V'
            echo {{ source.data.missing }}
              => refused: `source.data.missing` does not exist: `source.data` has v, e, list
            {{- " " -}} echo {{v}}
              => invalid: a value cannot be the name of a command; write the name out, and pass the value as an argument
        "#]],
    );
}

#[test]
fn a_command_without_values_is_never_refused() {
    list(
        &[
            "echo \"unclosed",
            "[[ $x =~ ^(a|b)$ ]] && ((x++)) && diff <(a) <(b) && echo ${x//a/\"b\"} $'it\\'s'",
            "case x in esac; ) ;; }",
            "eval \"$(ssh-agent)\"",
            "if true\r\nthen echo {{v}}\r\nfi",
        ],
        expect![[r#"
            echo "unclosed
              => echo "unclosed
            [[ $x =~ ^(a|b)$ ]] && ((x++)) && diff <(a) <(b) && echo ${x//a/"b"} $'it\'s'
              => [[ $x =~ ^(a|b)$ ]] && ((x++)) && diff <(a) <(b) && echo ${x//a/"b"} $'it\'s'
            case x in esac; ) ;; }
              => case x in esac; ) ;; }
            eval "$(ssh-agent)"
              => eval "$(ssh-agent)"
            if true\r
            then echo {{v}}\r
            fi
              => if true\r
                 then echo 'V'\r
                 fi
        "#]],
    );
}

#[test]
fn what_a_value_decides() {
    let mut out = String::new();
    for (template, value) in [
        ("echo {{v}}", json!("-rf")),
        ("echo -- {{v}}", json!("-rf")),
        ("echo --x={{v}} a{{v}}", json!("-rf")),
        ("echo {{ source.data.e }}{{v}}", json!("-rf")),
        ("echo \"$x{{v}}\"", json!("-rf")),
        ("echo {{v}}", json!(-5)),
        ("x={{v}}; echo \"$x\"", json!("-rf")),
        ("x={{v}}; echo \"a$x\" -- \"$x\"", json!("-rf")),
        ("for x in {{v}}; do :; done", json!("-rf")),
        ("case {{v}} in {{v}}) ;; esac", json!("-rf")),
        ("kubectl exec p -- cat {{v}}", json!("-rf")),
        ("kubectl exec p -- cat -- {{v}}", json!("-rf")),
        ("timeout 5 cat -- {{v}}", json!("-rf")),
        ("echo {{v}}", json!(null)),
        ("echo {{ 'a' ~ source.data.v }}", json!(null)),
        ("echo {{ [source.data.v] }}", json!(null)),
        (
            "echo {{ source.data.v | default(value='x', boolean=true) }}",
            json!(null),
        ),
        ("echo {{v}}", json!({"a": "it's", "b": [true, null]})),
        ("echo {{v}} {{v}}>f", json!(2)),
        ("echo {{v}}", json!(true)),
        ("echo {{v}}", json!(1.5)),
        ("echo {{v}}", json!("a\0b")),
        ("true # {{v}}", json!("a'b")),
        ("true # {{v}}", json!("a\nb")),
        ("echo $(( {{v}} ))", json!(-5)),
        ("echo $(( {{v}} ))", json!("-5")),
        ("echo $(( {{v}} ))", json!("010")),
        ("echo $(( {{v}} ))", json!("a[$(x)]")),
        ("echo $(( {{v}} ))", json!(1.5)),
        ("cat <<EOF\n{{v}}\nEOF", json!("EOF")),
        ("cat <<EOF\n{{v}}", json!("EOF")),
        ("cat <<EOF\n{{v}}\nEOF", json!("EOFX")),
        ("cat <<EOF\nE{{v}}F\nEOF", json!("O")),
        ("cat <<EOF\nE{{v}}OF\nEOF", json!("")),
        ("cat <<-EOF\n\t{{v}}\nEOF", json!("\tx")),
        ("cat <<-EOF\n\tx{{v}}\nEOF", json!("\tx")),
        ("echo $(cat <<EOF\n{{v}}\nEOF\n)", json!("EOF)")),
        ("cat <<EOF {{v}}\nEOF", json!("a\nb")),
        ("find -- {{v}}", json!("-delete")),
        ("[ -- {{v}} = a ]", json!("-v")),
        ("ls -- {{v}}", json!("-v")),
    ] {
        let result = run(template, value.clone()).replace("line 1 of the template: ", "");
        out.push_str(&format!("{template:?} {value}\n  => {result:?}\n"));
    }
    expect![[r#"
        "echo {{v}}" "-rf"
          => "refused: `source.data.v`: the value begins with `-` and would be read as an option; put it behind a bare `--`, or behind `--option=`"
        "echo -- {{v}}" "-rf"
          => "echo -- '-rf'"
        "echo --x={{v}} a{{v}}" "-rf"
          => "echo --x='-rf' a'-rf'"
        "echo {{ source.data.e }}{{v}}" "-rf"
          => "refused: `source.data.v`: the value begins with `-` and would be read as an option; put it behind a bare `--`, or behind `--option=`"
        "echo \"$x{{v}}\"" "-rf"
          => "refused: `source.data.v`: the value begins with `-` and would be read as an option; put it behind a bare `--`, or behind `--option=`"
        "echo {{v}}" -5
          => "echo '-5'"
        "x={{v}}; echo \"$x\"" "-rf"
          => "refused: `$x`: the value begins with `-` and would be read as an option; put it behind a bare `--`, or behind `--option=`"
        "x={{v}}; echo \"a$x\" -- \"$x\"" "-rf"
          => "x='-rf'; echo \"a$x\" -- \"$x\""
        "for x in {{v}}; do :; done" "-rf"
          => "refused: `source.data.v`: the value begins with `-` and would be read as an option; put it behind a bare `--`, or behind `--option=`"
        "case {{v}} in {{v}}) ;; esac" "-rf"
          => "case '-rf' in '-rf') ;; esac"
        "kubectl exec p -- cat {{v}}" "-rf"
          => "refused: `source.data.v`: the value begins with `-` and would be read as an option; put it behind a bare `--`, or behind `--option=`"
        "kubectl exec p -- cat -- {{v}}" "-rf"
          => "kubectl exec p -- cat -- '-rf'"
        "timeout 5 cat -- {{v}}" "-rf"
          => "timeout 5 cat -- '-rf'"
        "echo {{v}}" null
          => "refused: `source.data.v` is null, which cannot be an argument; give it a value with `| default(value=…, boolean=true)` or test it with `{% if … %}`"
        "echo {{ 'a' ~ source.data.v }}" null
          => "refused: `source.data.v` is null, which cannot be an argument; give it a value with `| default(value=…, boolean=true)` or test it with `{% if … %}`"
        "echo {{ [source.data.v] }}" null
          => "echo '[null]'"
        "echo {{ source.data.v | default(value='x', boolean=true) }}" null
          => "echo 'x'"
        "echo {{v}}" {"a":"it's","b":[true,null]}
          => "echo '{\"a\":\"it'\\''s\",\"b\":[true,null]}'"
        "echo {{v}} {{v}}>f" 2
          => "echo '2' '2'>f"
        "echo {{v}}" true
          => "echo 'true'"
        "echo {{v}}" 1.5
          => "echo '1.5'"
        "echo {{v}}" "a\u0000b"
          => "refused: `source.data.v`: the value holds a NUL, which no command can carry"
        "true # {{v}}" "a'b"
          => "true # a?b"
        "true # {{v}}" "a\nb"
          => "refused: `source.data.v`: the value holds a line break, which would end the comment; leave the value out of it"
        "echo $(( {{v}} ))" -5
          => "echo $(( (-5) ))"
        "echo $(( {{v}} ))" "-5"
          => "echo $(( (-5) ))"
        "echo $(( {{v}} ))" "010"
          => "refused: `source.data.v`: inside `$(( ))` only a whole number can stand, and the value is none"
        "echo $(( {{v}} ))" "a[$(x)]"
          => "refused: `source.data.v`: inside `$(( ))` only a whole number can stand, and the value is none"
        "echo $(( {{v}} ))" 1.5
          => "refused: `source.data.v`: inside `$(( ))` only a whole number can stand, and the value is none"
        "cat <<EOF\n{{v}}\nEOF" "EOF"
          => "refused: the value would make a line that ends the heredoc (`EOF`); choose a delimiter that no value holds"
        "cat <<EOF\n{{v}}" "EOF"
          => "refused: the value would make a line that ends the heredoc (`EOF`); choose a delimiter that no value holds"
        "cat <<EOF\n{{v}}\nEOF" "EOFX"
          => "cat <<EOF\nEOFX\nEOF"
        "cat <<EOF\nE{{v}}F\nEOF" "O"
          => "refused: the value would make a line that ends the heredoc (`EOF`); choose a delimiter that no value holds"
        "cat <<EOF\nE{{v}}OF\nEOF" ""
          => "refused: the value would make a line that ends the heredoc (`EOF`); choose a delimiter that no value holds"
        "cat <<-EOF\n\t{{v}}\nEOF" "\tx"
          => "refused: line 2 of the template: `source.data.v`: the value has a tab at the start of a line, which `<<-` would drop; write `<<`"
        "cat <<-EOF\n\tx{{v}}\nEOF" "\tx"
          => "cat <<-EOF\n\tx\tx\nEOF"
        "echo $(cat <<EOF\n{{v}}\nEOF\n)" "EOF)"
          => "refused: the value would make a line that ends the heredoc (`EOF`); choose a delimiter that no value holds"
        "cat <<EOF {{v}}\nEOF" "a\nb"
          => "refused: `source.data.v`: the value holds a line break, which on the line of a heredoc shells read in more than one way"
        "find -- {{v}}" "-delete"
          => "refused: `source.data.v`: the value begins with `-` and would be read as an option; put it behind a bare `--`, or behind `--option=`"
        "[ -- {{v}} = a ]" "-v"
          => "refused: `source.data.v`: the value begins with `-` and would be read as an option; put it behind a bare `--`, or behind `--option=`"
        "ls -- {{v}}" "-v"
          => "ls -- '-v'"
    "#]].assert_eq(&out);
}

#[test]
fn what_an_attacker_tried() {
    list(
        &[
            "kubectl delete pod $(echo {{v}})",
            "kubectl delete pod \"$(echo {{v}})\"",
            "x=$(printf %s {{v}}); kubectl delete pod $x",
            "x={{v}}; echo a > \"$x\"",
            "x={{v}}; echo a > \"$(basename \"$x\")\"",
            "find -- {{v}}",
            "find . -name {{v}} -- {{v}}",
            "[ a = -- -a {{v}} {{v}} ]",
            "[ {{v}} {{v}} ]",
            "[ {{v}} = {{v}} ]",
            "x={{v}}; y={{v}}; test \"$x\" \"$y\"",
            "scp host:{{v}} .",
            "rsync -a {{v}} host:/x",
            "gcloud compute ssh host --command=\"ls {{v}}\"",
            "gcloud compute ssh host --command \"ls {{v}}\"",
            "docker run --entrypoint=sh image -c \"{{v}}\"",
            "docker exec c awk \"/{{v}}/\" f",
            "docker exec -i c sh <<EOF\n{{v}}\nEOF",
            "docker logs env {{v}}",
            "retry 3 sh <<EOF\n{{v}}\nEOF",
            "echo {{v}} | retry 3 sh",
            "echo {{v}} | grep node",
            "kubectl get node -p {{v}}",
            "awk -f {{v}} file",
            "sed -f {{v}} file",
            "node --require {{v}} x.js",
            "bash --rcfile {{v}} x",
            "PATH=$(dirname {{v}}) ls",
            "x={{v}}; env LD_PRELOAD=\"$x\" ls",
            "GIT_SHA={{v}} NODE_NAME={{v}} ./deploy",
            "for IFS in {{v}}; do :; done",
            "echo {{v}} | read PATH",
            "set -o posix; echo {{v}}",
            "set -H; echo {{v}}",
            "set -euxo pipefail; echo {{v}}",
            "set $x; echo {{v}}",
            "shopt -s extglob; echo {{v}}",
            "x={{v}}; arr=(a b); echo ${arr[0]}",
            "echo {{v}}; arr=(a b)",
            "echo {{v}}; arr=(a b) | sh",
            "cat <<\"E F\"\n{{v}}\nE F\n",
            "echo ${x[0]} {{v}}",
            "f() { echo \"${@:2}\"; }; f {{v}}",
            "x=`echo a-1`; y={{v}}; echo `cut -f 1 x`",
            "y={{v}}; echo `echo y`",
            "echo \"$x\\n{{v}}\"",
            "eval \"$(ssh-agent)\"; echo {{v}}",
            "x={{v}}; eval \"$(ssh-agent)\"; echo \"$x\"",
            "curl -s http://x | sh; echo {{v}}",
            "sh -c 'cat | sh' <<EOF\n{{v}}\nEOF",
            "sh -c 'cat > f' <<EOF\n{{v}}\nEOF",
            "$KUBECTL apply -f - <<EOF\n{{v}}\nEOF",
            "echo {{v}} | $KUBECTL apply -f -",
            "echo {{v}} | \"$BIN/kubectl\" apply -f -",
        ],
        expect![[r#"
            kubectl delete pod $(echo {{v}})
              => invalid: what is printed of the value here becomes several words; put double quotes around it: "$( … )"
            kubectl delete pod "$(echo {{v}})"
              => kubectl delete pod "$(echo 'V')"
            x=$(printf %s {{v}}); kubectl delete pod $x
              => invalid: `$x` holds a value, which unquoted would become several words; write "$x"
            x={{v}}; echo a > "$x"
              => invalid: `$x` holds a value: a value cannot be the target of a redirection; write the file's name out, or give the value to a program: tee -- {{ v }}
            x={{v}}; echo a > "$(basename "$x")"
              => x='V'; echo a > "$(basename "$x")"
            find -- {{v}}
              => find -- 'V'
            find . -name {{v}} -- {{v}}
              => find . -name 'V' -- 'V'
            [ a = -- -a {{v}} {{v}} ]
              => invalid: a value next to another one could become an operator of `test`; write the operator between them
            [ {{v}} {{v}} ]
              => invalid: a value next to another one could become an operator of `test`; write the operator between them
            [ {{v}} = {{v}} ]
              => [ 'V' = 'V' ]
            x={{v}}; y={{v}}; test "$x" "$y"
              => invalid: `$y` holds a value: a value next to another one could become an operator of `test`; write the operator between them
            scp host:{{v}} .
              => invalid: `scp` reads this as code once more, so that escaping it for the shell is not enough; call the command directly, with the value as one of its arguments
            rsync -a {{v}} host:/x
              => rsync -a 'V' host:/x
            gcloud compute ssh host --command="ls {{v}}"
              => invalid: an option such as `--command` takes text that is read as code once more, so that escaping it for the shell is not enough; pass the value as an argument of its own
            gcloud compute ssh host --command "ls {{v}}"
              => invalid: `ssh` reads this as code once more, so that escaping it for the shell is not enough; send it as input: printf '%s\n' {{ v }} | ssh host 'read -r v; … "$v"'
            docker run --entrypoint=sh image -c "{{v}}"
              => invalid: `sh` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            docker exec c awk "/{{v}}/" f
              => invalid: `awk` reads this as code once more, so that escaping it for the shell is not enough; pass it through the environment: v={{ v }} awk '… ENVIRON["v"] …'
            docker exec -i c sh <<EOF
            {{v}}
            EOF
              => invalid: line 2 of the template: the program that reads this heredoc runs it as code; give the value as an argument: sh -s -- {{ v }}, and "$1" in the heredoc
            docker logs env {{v}}
              => docker logs env 'V'
            retry 3 sh <<EOF
            {{v}}
            EOF
              => invalid: line 2 of the template: the program that reads this heredoc runs it as code; give the value as an argument: sh -s -- {{ v }}, and "$1" in the heredoc
            echo {{v}} | retry 3 sh
              => invalid: this program runs what it reads, and a value could be among that; give it the code with `-c`, and the value as an argument: sh -c '… "$1"' sh {{ v }}
            echo {{v}} | grep node
              => echo 'V' | grep node
            kubectl get node -p {{v}}
              => kubectl get node -p 'V'
            awk -f {{v}} file
              => invalid: `awk` reads this as code once more, so that escaping it for the shell is not enough; pass it through the environment: v={{ v }} awk '… ENVIRON["v"] …'
            sed -f {{v}} file
              => invalid: `sed` reads this as code once more, so that escaping it for the shell is not enough; use awk, and pass it through the environment: v={{ v }} awk '… ENVIRON["v"] …'
            node --require {{v}} x.js
              => invalid: `node` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: node -e '… process.argv[1] …' {{ v }}
            bash --rcfile {{v}} x
              => invalid: `bash` reads this as code once more, so that escaping it for the shell is not enough; pass it as an argument of its own: sh -c '… "$1"' sh {{ v }}
            PATH=$(dirname {{v}}) ls
              => invalid: the shell itself reads `PATH`, and a value could make it run something; use another variable
            x={{v}}; env LD_PRELOAD="$x" ls
              => invalid: `$x` holds a value: the shell itself reads `LD_PRELOAD`, and a value could make it run something; use another variable
            GIT_SHA={{v}} NODE_NAME={{v}} ./deploy
              => GIT_SHA='V' NODE_NAME='V' ./deploy
            for IFS in {{v}}; do :; done
              => invalid: the shell itself reads `IFS`, and a value could make it run something; use another variable
            echo {{v}} | read PATH
              => invalid: a variable of the shell's own that is filled from the input may not follow where a variable holds a value, since what becomes of that variable cannot be told; write it in a way that every shell reads alike
            set -o posix; echo {{v}}
              => invalid: no value may follow an option of `set` that may change how the shell reads: shells read it in more than one way
            set -H; echo {{v}}
              => invalid: no value may follow an option of `set` that may change how the shell reads: shells read it in more than one way
            set -euxo pipefail; echo {{v}}
              => set -euxo pipefail; echo 'V'
            set $x; echo {{v}}
              => invalid: no value may follow an option of `set` that may change how the shell reads: shells read it in more than one way
            shopt -s extglob; echo {{v}}
              => invalid: no value may follow `shopt`, which not every shell has
            x={{v}}; arr=(a b); echo ${arr[0]}
              => invalid: `(` behind a word may not follow where a variable holds a value, since what becomes of that variable cannot be told; write it in a way that every shell reads alike
            echo {{v}}; arr=(a b)
              => echo 'V'; arr=(a b)
            echo {{v}}; arr=(a b) | sh
              => invalid: `sh` runs what it reads as code, and behind `(` behind a word it cannot be told whether that is a value
            cat <<"E F"
            {{v}}
            E F

              => invalid: line 2 of the template: no value may follow a heredoc with such a delimiter: shells read it in more than one way
            echo ${x[0]} {{v}}
              => echo ${x[0]} 'V'
            f() { echo "${@:2}"; }; f {{v}}
              => invalid: `${@:2}` evaluates variables as code or arithmetic in some shells; write the value itself where it is needed
                 invalid: a quote, an expansion or a heredoc is opened and never closed
            x=`echo a-1`; y={{v}}; echo `cut -f 1 x`
              => x=`echo a-1`; y='V'; echo `cut -f 1 x`
            y={{v}}; echo `echo y`
              => invalid: backticks read their content twice, and here `y` in them; write $( … )
                 invalid: a quote, an expansion or a heredoc is opened and never closed
            echo "$x\n{{v}}"
              => echo "$x\n"'V'""
            eval "$(ssh-agent)"; echo {{v}}
              => eval "$(ssh-agent)"; echo 'V'
            x={{v}}; eval "$(ssh-agent)"; echo "$x"
              => x='V'; eval "$(ssh-agent)"; echo "$x"
            curl -s http://x | sh; echo {{v}}
              => curl -s http://x | sh; echo 'V'
            sh -c 'cat | sh' <<EOF
            {{v}}
            EOF
              => invalid: line 2 of the template: the program that reads this heredoc runs it as code; give the value as an argument: sh -s -- {{ v }}, and "$1" in the heredoc
            sh -c 'cat > f' <<EOF
            {{v}}
            EOF
              => sh -c 'cat > f' <<EOF
                 V
                 EOF
            $KUBECTL apply -f - <<EOF
            {{v}}
            EOF
              => $KUBECTL apply -f - <<EOF
                 V
                 EOF
            echo {{v}} | $KUBECTL apply -f -
              => invalid: this program runs what it reads, and a value could be among that; give it the code with `-c`, and the value as an argument: sh -c '… "$1"' sh {{ v }}
            echo {{v}} | "$BIN/kubectl" apply -f -
              => echo 'V' | "$BIN/kubectl" apply -f -
        "#]],
    );
}
