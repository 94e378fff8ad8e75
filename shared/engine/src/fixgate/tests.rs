#![allow(clippy::unwrap_used)]

use expect_test::{Expect, expect};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::manifest::Provider;

fn check(commands: &[&str], expect: &Expect) {
    let gate = Gate::default();
    let lines: Vec<String> = commands
        .iter()
        .map(|command| outcome(&gate, command, None))
        .collect();
    expect.assert_eq(&lines.join("\n"));
}

fn outcome(gate: &Gate, command: &str, provenance: Option<Provenance>) -> String {
    let context = GateContext {
        namespace: "prod",
        provenance,
    };
    match gate.check(command, &context) {
        Ok(argv) => format!("{command:?}\n    passes  {}", argv.words().join(" ")),
        Err(refusal) => format!("{command:?}\n    refused {refusal}"),
    }
}

#[test]
fn what_a_runbook_does_passes_with_its_namespace_written_out() {
    check(
        &[
            "kubectl rollout restart deployment/web",
            "kubectl rollout restart deployment web api",
            "kubectl rollout restart deploy/web sts/db deployments.apps/api deployment.v1.apps/x",
            "kubectl rollout undo deployment/web --to-revision=3",
            "kubectl rollout undo deployment/web --to-revision 3",
            "kubectl scale deployment/web --replicas=3",
            "kubectl scale --replicas 0 sts web",
            "kubectl delete pod web-1",
            "kubectl delete pods web-1 web-2",
            "kubectl delete po/web-1",
            "kubectl delete pod web-1 --grace-period=30 --wait=false --ignore-not-found",
            "kubectl cordon node-1.example.com",
            "kubectl uncordon node/node-1",
            "kubectl -n prod delete pod web-1",
            "kubectl delete pod web-1 -nprod",
            "kubectl delete pod web-1 -n=prod",
            "kubectl delete pod web-1 --namespace=prod",
            "kubectl delete pod web-1 --namespace prod",
            "kubectl delete pod -- web-1",
            "  kubectl   delete\tpod 'web-1'  ",
            "kubectl delete pod \"web\"-'1'",
            "kubectl delete \\\n  pod web-1",
            "kubectl delete pod web-1 --dry-run=server -o name",
            "kubectl delete pod web-1 web-1",
        ],
        &expect![[r#"
            "kubectl rollout restart deployment/web"
                passes  kubectl rollout restart deployment/web --namespace=prod
            "kubectl rollout restart deployment web api"
                passes  kubectl rollout restart deployment/web deployment/api --namespace=prod
            "kubectl rollout restart deploy/web sts/db deployments.apps/api deployment.v1.apps/x"
                passes  kubectl rollout restart deployment/web statefulset/db deployment/api deployment/x --namespace=prod
            "kubectl rollout undo deployment/web --to-revision=3"
                passes  kubectl rollout undo deployment/web --to-revision=3 --namespace=prod
            "kubectl rollout undo deployment/web --to-revision 3"
                passes  kubectl rollout undo deployment/web --to-revision=3 --namespace=prod
            "kubectl scale deployment/web --replicas=3"
                passes  kubectl scale deployment/web --replicas=3 --namespace=prod
            "kubectl scale --replicas 0 sts web"
                passes  kubectl scale statefulset/web --replicas=0 --namespace=prod
            "kubectl delete pod web-1"
                passes  kubectl delete pod/web-1 --namespace=prod
            "kubectl delete pods web-1 web-2"
                passes  kubectl delete pod/web-1 pod/web-2 --namespace=prod
            "kubectl delete po/web-1"
                passes  kubectl delete pod/web-1 --namespace=prod
            "kubectl delete pod web-1 --grace-period=30 --wait=false --ignore-not-found"
                passes  kubectl delete pod/web-1 --grace-period=30 --wait=false --ignore-not-found --namespace=prod
            "kubectl cordon node-1.example.com"
                passes  kubectl cordon node-1.example.com
            "kubectl uncordon node/node-1"
                passes  kubectl uncordon node-1
            "kubectl -n prod delete pod web-1"
                passes  kubectl delete pod/web-1 --namespace=prod
            "kubectl delete pod web-1 -nprod"
                passes  kubectl delete pod/web-1 --namespace=prod
            "kubectl delete pod web-1 -n=prod"
                passes  kubectl delete pod/web-1 --namespace=prod
            "kubectl delete pod web-1 --namespace=prod"
                passes  kubectl delete pod/web-1 --namespace=prod
            "kubectl delete pod web-1 --namespace prod"
                passes  kubectl delete pod/web-1 --namespace=prod
            "kubectl delete pod -- web-1"
                passes  kubectl delete pod/web-1 --namespace=prod
            "  kubectl   delete\tpod 'web-1'  "
                passes  kubectl delete pod/web-1 --namespace=prod
            "kubectl delete pod \"web\"-'1'"
                passes  kubectl delete pod/web-1 --namespace=prod
            "kubectl delete \\\n  pod web-1"
                passes  kubectl delete pod/web-1 --namespace=prod
            "kubectl delete pod web-1 --dry-run=server -o name"
                passes  kubectl delete pod/web-1 --dry-run=server --output=name --namespace=prod
            "kubectl delete pod web-1 web-1"
                passes  kubectl delete pod/web-1 --namespace=prod"#]],
    );
}

#[test]
fn everything_else_is_refused_with_the_reason() {
    check(
        &[
            "",
            "  \n ",
            "kubectl",
            "kubectl delete",
            "kubectl delete pod",
            "kubectl rollout restart",
            "kubectl rollout restart deployment",
            "kubectl scale deployment/web",
            "kubectl get pods",
            "kubectl exec web-1 -- sh",
            "kubectl delete ns prod",
            "kubectl delete deployment web",
            "kubectl delete pod,svc web",
            "kubectl delete secret/x",
            "kubectl delete pod web-1 svc/x",
            "kubectl delete pod/web-1 service/x",
            "kubectl delete pod/web-1 web-2",
            "kubectl rollout status deployment/web",
            "kubectl rollout restart pod/web",
            "kubectl rollout restart deployment.example.com/web",
            "kubectl drain node-1",
            "kubectl my-plugin",
            "kubectl-delete pod web-1",
            "/usr/bin/kubectl delete pod web-1",
            "KUBECONFIG=/x kubectl delete pod web-1",
            "sudo kubectl delete pod web-1",
            "helm uninstall web",
            "kubectl delete pod --all",
            "kubectl delete pod -l app=web",
            "kubectl delete pod -lapp=web",
            "kubectl delete pod --selector=app",
            "kubectl delete pod web-1 -A",
            "kubectl delete pod web-1 --all-namespaces",
            "kubectl delete pod web-1 --force",
            "kubectl delete pod web-1 --grace-period=0",
            "kubectl delete pod web-1 --grace-period -1",
            "kubectl delete -f pod.yaml",
            "kubectl delete pod web-1 --kubeconfig=/tmp/x",
            "kubectl --context other delete pod web-1",
            "kubectl --as=admin delete pod web-1",
            "kubectl -s https://evil delete pod web-1",
            "kubectl --token=x delete pod web-1",
            "kubectl delete pod web-1 -n kube-system",
            "kubectl delete pod web-1 -nkube-system",
            "kubectl delete pod web-1 --namespace=kube-system",
            "kubectl -n prod delete pod web-1 -n kube-system",
            "kubectl delete pod web-1 -n",
            "kubectl delete pod web-1 -n ''",
            "kubectl cordon node-1 -n kube-system",
            "kubectl scale deployment/web --replicas=100000",
            "kubectl scale deployment/web --replicas=-1",
            "kubectl scale deployment/web --replicas=+3",
            "kubectl scale deployment/web --replicas=3 --replicas=4",
            "kubectl scale deployment/web --replicas",
            "kubectl rollout restart deployment/web --v=9",
            "kubectl delete pod web-1; kubectl delete ns prod",
            "kubectl delete pod web-1 && true",
            "kubectl delete pod web-1 | sh",
            "kubectl delete pod web-1 &",
            "kubectl delete pod web-1\nkubectl delete ns prod",
            "kubectl delete pod $(cat x)",
            "kubectl delete pod `cat x`",
            "kubectl delete pod $POD",
            "kubectl delete pod \"$POD\"",
            "kubectl delete pod web-*",
            "kubectl delete pod web-{1,2}",
            "kubectl delete pod ~root",
            "kubectl delete pod web-1 > /etc/passwd",
            "kubectl delete pod <x",
            "(kubectl delete pod web-1)",
            "! kubectl delete pod web-1",
            "kubectl delete pod web-1 # gone",
            "kubectl delete pod 'web-1",
            "kubectl delete pod \"web-1",
            "kubectl delete pod web-1\\",
            "kubectl delete pod 'web 1'",
            "kubectl delete pod '$(id)'",
            "kubectl delete pod ''",
            "kubectl delete pod Web_1",
            "kubectl delete pod ..",
            "kubectl delete pod -",
            "kubectl delete pod -- -n kube-system",
            "kubectl delete pod a b c d e f g h i j k",
            "'kubectl delete' pod web-1",
            "kubectl delete pod web-1 -o jsonpath='{.x}'",
        ],
        &expect![[r#"
            ""
                refused the command is empty
            "  \n "
                refused the command is empty
            "kubectl"
                refused it names no verb; allowed are: rollout restart, rollout undo, scale, delete pod, cordon, uncordon
            "kubectl delete"
                refused the verb "delete" is not allowed; allowed are: rollout restart, rollout undo, scale, delete pod, cordon, uncordon
            "kubectl delete pod"
                refused delete pod names no object, which would mean all of them; write as in `kubectl delete pod web-1`
            "kubectl rollout restart"
                refused rollout restart names no object; write as in `kubectl rollout restart deployment/web`
            "kubectl rollout restart deployment"
                refused rollout restart names no object, which would mean all of them; write as in `kubectl rollout restart deployment/web`
            "kubectl scale deployment/web"
                refused scale needs --replicas
            "kubectl get pods"
                refused the verb "get" is not allowed; allowed are: rollout restart, rollout undo, scale, delete pod, cordon, uncordon
            "kubectl exec web-1 -- sh"
                refused the verb "exec" is not allowed; allowed are: rollout restart, rollout undo, scale, delete pod, cordon, uncordon
            "kubectl delete ns prod"
                refused the verb "delete ns" is not allowed; allowed are: rollout restart, rollout undo, scale, delete pod, cordon, uncordon
            "kubectl delete deployment web"
                refused the verb "delete deployment" is not allowed; allowed are: rollout restart, rollout undo, scale, delete pod, cordon, uncordon
            "kubectl delete pod,svc web"
                refused the verb "delete pod,svc" is not allowed; allowed are: rollout restart, rollout undo, scale, delete pod, cordon, uncordon
            "kubectl delete secret/x"
                refused the verb "delete secret/x" is not allowed; allowed are: rollout restart, rollout undo, scale, delete pod, cordon, uncordon
            "kubectl delete pod web-1 svc/x"
                refused "svc/x" mixes `kind name` and `kind/name`; write as in `kubectl delete pod web-1`
            "kubectl delete pod/web-1 service/x"
                refused delete pod of "service" is not allowed; allowed is: pod
            "kubectl delete pod/web-1 web-2"
                refused "web-2" mixes `kind name` and `kind/name`; write as in `kubectl delete pod web-1`
            "kubectl rollout status deployment/web"
                refused the verb "rollout status" is not allowed; allowed are: rollout restart, rollout undo, scale, delete pod, cordon, uncordon
            "kubectl rollout restart pod/web"
                refused rollout restart of "pod" is not allowed; allowed is: deployment, daemonset, statefulset
            "kubectl rollout restart deployment.example.com/web"
                refused rollout restart of "deployment.example.com" is not allowed; allowed is: deployment, daemonset, statefulset
            "kubectl drain node-1"
                refused the verb "drain" is not allowed; allowed are: rollout restart, rollout undo, scale, delete pod, cordon, uncordon
            "kubectl my-plugin"
                refused the verb "my-plugin" is not allowed; allowed are: rollout restart, rollout undo, scale, delete pod, cordon, uncordon
            "kubectl-delete pod web-1"
                refused only kubectl commands pass, and this one begins with "kubectl-delete"
            "/usr/bin/kubectl delete pod web-1"
                refused only kubectl commands pass, and this one begins with "/usr/bin/kubectl"
            "KUBECONFIG=/x kubectl delete pod web-1"
                refused only kubectl commands pass, and this one begins with "KUBECONFIG=/x"
            "sudo kubectl delete pod web-1"
                refused only kubectl commands pass, and this one begins with "sudo"
            "helm uninstall web"
                refused only kubectl commands pass, and this one begins with "helm"
            "kubectl delete pod --all"
                refused --all is not allowed: a fix names what it changes
            "kubectl delete pod -l app=web"
                refused -l is not allowed: a fix names what it changes
            "kubectl delete pod -lapp=web"
                refused -l is not allowed: a fix names what it changes
            "kubectl delete pod --selector=app"
                refused --selector is not allowed: a fix names what it changes
            "kubectl delete pod web-1 -A"
                refused -A is not allowed: a fix names what it changes
            "kubectl delete pod web-1 --all-namespaces"
                refused --all-namespaces is not allowed: a fix names what it changes
            "kubectl delete pod web-1 --force"
                refused --force is not allowed: what it leaves behind may still run
            "kubectl delete pod web-1 --grace-period=0"
                refused --grace-period=0 is not allowed; it is a whole number from 1
            "kubectl delete pod web-1 --grace-period -1"
                refused --grace-period=-1 is not allowed; it is a whole number from 1
            "kubectl delete -f pod.yaml"
                refused -f is not allowed: a fix says all it does in its own line
            "kubectl delete pod web-1 --kubeconfig=/tmp/x"
                refused --kubeconfig is not allowed: where and as whom a fix runs is not its own to say
            "kubectl --context other delete pod web-1"
                refused --context is not allowed: where and as whom a fix runs is not its own to say
            "kubectl --as=admin delete pod web-1"
                refused --as is not allowed: where and as whom a fix runs is not its own to say
            "kubectl -s https://evil delete pod web-1"
                refused -s is not allowed: where and as whom a fix runs is not its own to say
            "kubectl --token=x delete pod web-1"
                refused --token is not allowed: where and as whom a fix runs is not its own to say
            "kubectl delete pod web-1 -n kube-system"
                refused it names the namespace kube-system, and may touch only prod
            "kubectl delete pod web-1 -nkube-system"
                refused it names the namespace kube-system, and may touch only prod
            "kubectl delete pod web-1 --namespace=kube-system"
                refused it names the namespace kube-system, and may touch only prod
            "kubectl -n prod delete pod web-1 -n kube-system"
                refused it gives --namespace twice
            "kubectl delete pod web-1 -n"
                refused --namespace is given without a value
            "kubectl delete pod web-1 -n ''"
                refused --namespace= is not allowed; it is a namespace's name
            "kubectl cordon node-1 -n kube-system"
                refused it names the namespace kube-system, and may touch only prod
            "kubectl scale deployment/web --replicas=100000"
                refused --replicas=100000 is not allowed; it is a whole number, 0 to 1000
            "kubectl scale deployment/web --replicas=-1"
                refused --replicas=-1 is not allowed; it is a whole number, 0 to 1000
            "kubectl scale deployment/web --replicas=+3"
                refused --replicas=+3 is not allowed; it is a whole number, 0 to 1000
            "kubectl scale deployment/web --replicas=3 --replicas=4"
                refused it gives --replicas twice
            "kubectl scale deployment/web --replicas"
                refused --replicas is given without a value
            "kubectl rollout restart deployment/web --v=9"
                refused --v is not allowed for rollout restart; allowed are: --namespace, --output, --dry-run
            "kubectl delete pod web-1; kubectl delete ns prod"
                refused it holds a second command (';'); a fix is one kubectl command, without a shell
            "kubectl delete pod web-1 && true"
                refused it holds a second command ('&'); a fix is one kubectl command, without a shell
            "kubectl delete pod web-1 | sh"
                refused it holds a pipe ('|'); a fix is one kubectl command, without a shell
            "kubectl delete pod web-1 &"
                refused it holds a second command ('&'); a fix is one kubectl command, without a shell
            "kubectl delete pod web-1\nkubectl delete ns prod"
                refused it holds a second line ('\n'); a fix is one kubectl command, without a shell
            "kubectl delete pod $(cat x)"
                refused it holds a substitution ('$'); a fix is one kubectl command, without a shell
            "kubectl delete pod `cat x`"
                refused it holds a substitution ('`'); a fix is one kubectl command, without a shell
            "kubectl delete pod $POD"
                refused it holds a substitution ('$'); a fix is one kubectl command, without a shell
            "kubectl delete pod \"$POD\""
                refused it holds a substitution ('$'); a fix is one kubectl command, without a shell
            "kubectl delete pod web-*"
                refused it holds a pattern that a shell expands ('*'); a fix is one kubectl command, without a shell
            "kubectl delete pod web-{1,2}"
                refused it holds a pattern that a shell expands ('{'); a fix is one kubectl command, without a shell
            "kubectl delete pod ~root"
                refused it holds a pattern that a shell expands ('~'); a fix is one kubectl command, without a shell
            "kubectl delete pod web-1 > /etc/passwd"
                refused it holds a redirection ('>'); a fix is one kubectl command, without a shell
            "kubectl delete pod <x"
                refused it holds a redirection ('<'); a fix is one kubectl command, without a shell
            "(kubectl delete pod web-1)"
                refused it holds a subshell ('('); a fix is one kubectl command, without a shell
            "! kubectl delete pod web-1"
                refused it holds a negation ('!'); a fix is one kubectl command, without a shell
            "kubectl delete pod web-1 # gone"
                refused it holds a comment ('#'); a fix is one kubectl command, without a shell
            "kubectl delete pod 'web-1"
                refused it has an opening ' without a closing one
            "kubectl delete pod \"web-1"
                refused it has an opening " without a closing one
            "kubectl delete pod web-1\\"
                refused it ends with a backslash
            "kubectl delete pod 'web 1'"
                refused "web 1" is not an object's name
            "kubectl delete pod '$(id)'"
                refused "$(id)" is not an object's name
            "kubectl delete pod ''"
                refused "" is not an object's name
            "kubectl delete pod Web_1"
                refused "Web_1" is not an object's name
            "kubectl delete pod .."
                refused ".." is not an object's name
            "kubectl delete pod -"
                refused a bare - reads from standard input, and there is none
            "kubectl delete pod -- -n kube-system"
                refused "-n" is not an object's name
            "kubectl delete pod a b c d e f g h i j k"
                refused it changes 11 objects; at most 10 are allowed
            "'kubectl delete' pod web-1"
                refused only kubectl commands pass, and this one begins with "kubectl delete"
            "kubectl delete pod web-1 -o jsonpath='{.x}'"
                refused --output=jsonpath={.x} is not allowed; it is name, json, yaml or wide"#]],
    );
}

#[test]
fn a_suggestion_needs_a_sound_investigation() {
    let gate = Gate::default();
    let sound = json!({
        "status": "complete", "can_auto_fix": true, "evidence": [{"call_id": "1", "quote": "q", "grounded": true}],
    });
    let with = |key: &str, value: Value| {
        let mut output = sound.clone();
        output[key] = value;
        output
    };
    let outcomes: Vec<String> = [
        (sound.clone(), None),
        (sound.clone(), Some(Provider::Anthropic)),
        (sound.clone(), Some(Provider::Scripted)),
        (with("status", "partial".into()), None),
        (with("status", "inconclusive".into()), None),
        (with("status", Value::Null), None),
        (with("can_auto_fix", false.into()), None),
        (with("can_auto_fix", "true".into()), None),
        (with("evidence", json!([])), None),
        (
            with(
                "evidence",
                json!([{"quote": "a", "grounded": true}, {"quote": "b", "grounded": false}]),
            ),
            None,
        ),
        (json!({}), None),
    ]
    .iter()
    .map(|(output, provider)| {
        let provenance = Provenance::of_output(output, *provider);
        outcome(&gate, "kubectl delete pod web-1", Some(provenance))
            .replace("\"kubectl delete pod web-1\"\n    ", "")
    })
    .collect();
    expect![[r#"
        passes  kubectl delete pod/web-1 --namespace=prod
        passes  kubectl delete pod/web-1 --namespace=prod
        refused it was suggested by a scripted investigation, which is never applied
        refused the investigation that suggested it is partial, not complete
        refused the investigation that suggested it is inconclusive, not complete
        refused the investigation that suggested it is without a status, not complete
        refused the investigation that suggested it says can_auto_fix: false
        refused the investigation that suggested it says can_auto_fix: false
        refused the investigation that suggested it has no evidence that was found in a tool's output
        refused the investigation that suggested it has no evidence that was found in a tool's output
        refused the investigation that suggested it is without a status, not complete"#]]
    .assert_eq(&outcomes.join("\n"));
    let unsound = Provenance::of_output(&json!({}), None);
    assert!(outcome(&gate, " ", Some(unsound)).contains("the command is empty"));
}

#[test]
fn an_alerts_label_is_no_way_round_the_gate() {
    for namespace in ["", "a b", "--all-namespaces", "prod,other", "a/b", "*", "Prod"] {
        let context = GateContext {
            namespace,
            provenance: None,
        };
        let all = Gate::new(&["delete pod".to_owned()], &["*".to_owned()]).unwrap();
        for command in ["kubectl delete pod web-1", "kubectl delete pod web-1 -n prod"] {
            let refusal = all.check(command, &context).unwrap_err().to_string();
            assert!(
                refusal.contains("is not a valid namespace"),
                "{namespace}: {refusal}"
            );
        }
    }
}

#[test]
fn verbs_and_namespaces_are_configurable() {
    let verbs = ["delete  job".to_owned(), "rollout restart".to_owned()];
    let gate = Gate::new(&verbs, &["staging".to_owned()]).unwrap();
    let lines = [
        outcome(&gate, "kubectl delete job/report-1 -n staging", None),
        outcome(&gate, "kubectl delete pod web-1", None),
        outcome(&gate, "kubectl scale deployment/web --replicas=1", None),
        Gate::new(&["drain".to_owned()], &[]).unwrap_err(),
    ];
    expect![[r#"
        "kubectl delete job/report-1 -n staging"
            passes  kubectl delete job/report-1 --namespace=staging
        "kubectl delete pod web-1"
            refused the verb "delete pod" is not allowed; allowed are: delete job, rollout restart
        "kubectl scale deployment/web --replicas=1"
            refused the verb "scale" is not allowed; allowed are: delete job, rollout restart
        "drain" is no verb that the fix gate can check; these are: rollout restart, rollout undo, rollout pause, rollout resume, scale, delete pod, delete job, cordon, uncordon"#]].assert_eq(&lines.join("\n"));
    let all = Gate::new(&verbs, &["*".to_owned()]).unwrap();
    assert!(outcome(&all, "kubectl delete job x -n kube-system", None).contains("passes"));
}

/// Whatever passes is made of nothing but these.
fn is_harmless(word: &str) -> bool {
    word.chars()
        .all(|c| c.is_ascii_alphanumeric() || "-./=".contains(c))
}

proptest! {
    #[test]
    fn never_panics_and_lets_only_plain_words_through(text in ".{0,120}") {
        let context = GateContext { namespace: "prod", provenance: None };
        for command in [text.clone(), format!("kubectl delete pod {text}")] {
            if let Ok(argv) = Gate::default().check(&command, &context) {
                prop_assert!(argv.words().iter().all(|word| is_harmless(word)), "{argv:?}");
                prop_assert_eq!(argv.words().last().map(String::as_str), Some("--namespace=prod"));
            }
        }
    }

    #[test]
    fn no_arrangement_of_parts_leaves_the_namespace(
        parts in prop::collection::vec(prop_oneof![
            Just("kubectl"), Just("delete"), Just("pod"), Just("web-1"), Just("rollout"), Just("restart"),
            Just("deploy/web"), Just("-n"), Just("-nkube-system"), Just("kube-system"), Just("--namespace"),
            Just("--namespace=kube-system"), Just("--"), Just("-o"), Just("--wait"), Just("=x"), Just("-n="),
            Just("''"), Just("--timeout"), Just("-A"), Just("--all"), Just("--force"), Just("prod"),
        ], 0..9),
    ) {
        let command = format!("kubectl {}", parts.join(" "));
        let context = GateContext { namespace: "prod", provenance: None };
        if let Ok(argv) = Gate::default().check(&command, &context) {
            let namespaces: Vec<_> = argv.words().iter().filter(|word| word.starts_with("-n") || word.starts_with("--namespace")).collect();
            prop_assert_eq!(namespaces, ["--namespace=prod"], "{}", command);
        }
    }

    #[test]
    fn splitting_agrees_with_quoting(words in prop::collection::vec("[ -~]{0,12}", 1..6)) {
        prop_assume!(words.iter().any(|word| !word.trim().is_empty()));
        let quoted: Vec<String> = words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
        prop_assert_eq!(parse(&quoted.join(" ")).unwrap(), words);
    }
}
