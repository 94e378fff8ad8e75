//! kubectl command lines under fuzz: what is allowed is looked at by a second judge, as naive as can be, who knows only
//! what must never be there.
#![allow(clippy::unwrap_used)]

use agent_runner::tools::kubectl::argv::{Policy, allowed};
use fuzz::{Target, gist, shape};

/// Verbs that change nothing.
const READING: [&str; 10] = [
    "get",
    "describe",
    "logs",
    "top",
    "events",
    "explain",
    "api-resources",
    "version",
    "rollout",
    "auth",
];
/// What stands behind those that have verbs of their own.
const SUBVERBS: [(&str, &[&str]); 2] = [("rollout", &["history", "status"]), ("auth", &["can-i"])];
/// Parts of flags that lead elsewhere, act as somebody else, read files, or never end.
const NEVER: [&str; 26] = [
    "--kubeconfig",
    "--server",
    "--token",
    "--as",
    "--context",
    "--cluster",
    "--user",
    "--username",
    "--password",
    "--certificate-authority",
    "--client-",
    "--insecure-skip-tls-verify",
    "--tls-server-name",
    "--raw",
    "--filename",
    "--kustomize",
    "--template",
    "--cache-dir",
    "--profile",
    "--watch-only",
    "--follow",
    "--request-timeout",
    "--match-server-version",
    "--vmodule",
    "--log",
    "--warnings-as-errors",
];

/// What is wrong with a command line that was allowed.
fn judge(argv: &[String], policy: &Policy<'_>) -> Result<(), String> {
    let demand = |holds: bool, what: &str| {
        if holds {
            Ok(())
        } else {
            Err(format!("{what}: {argv:?}"))
        }
    };
    let verb = argv.first().map_or("", String::as_str);
    demand(READING.contains(&verb), "it begins with a verb that reads")?;
    if let Some((_, subverbs)) = SUBVERBS.iter().find(|(name, _)| *name == verb) {
        // Flags are written behind the words or before them: the first word decides.
        let first = argv[1..].iter().find(|word| !word.starts_with('-'));
        demand(
            first.is_some_and(|word| subverbs.contains(&word.as_str())),
            "its own verb reads",
        )?;
    }
    for word in &argv[1..] {
        demand(!word.contains('\0'), "no NUL")?;
        if word == "--" {
            break;
        }
        let Some(flag) = word.strip_prefix('-') else {
            continue;
        };
        // Written anew, every flag is long and holds its value.
        demand(flag.starts_with('-'), "no short flag is left")?;
        let (name, value) = word
            .split_once('=')
            .ok_or_else(|| format!("{word} holds its value: {argv:?}"))?;
        demand(
            !NEVER
                .iter()
                .any(|never| name == *never || (never.ends_with('-') && name.starts_with(never))),
            "no such flag",
        )?;
        demand(!name.starts_with("--as"), "nobody else's identity")?;
        if name == "--watch" {
            demand(value == "false", "it does not go on for ever")?;
        }
        if name == "--output" {
            demand(!value.contains("file"), "no file is read")?;
        }
        if name == "--namespace" && !policy.namespaces.is_empty() {
            demand(
                policy.namespaces.iter().any(|namespace| namespace == value),
                "only in the operator's namespaces",
            )?;
        }
        if name == "--all-namespaces" && !policy.namespaces.is_empty() {
            demand(value == "false", "not in all namespaces")?;
        }
    }
    // Who may do what is asked by name; everything else with that name would show one.
    if !["auth", "explain", "api-resources", "version", "logs"].contains(&verb) {
        for word in argv[1..].iter().filter(|word| !word.starts_with('-')) {
            let resources = word.split('/').next().unwrap_or_default();
            let is_secret = resources.split(',').any(|resource| {
                let kind = resource.split('.').next().unwrap_or_default().to_lowercase();
                kind == "secret" || kind == "secrets"
            });
            let is_first = argv[1..].iter().find(|other| !other.starts_with('-')) == Some(word);
            demand(
                !is_secret || !(is_first || word.contains('/')),
                "no Secret is shown",
            )?;
        }
    }
    Ok(())
}

#[test]
fn the_judge_objects() {
    let policy = Policy {
        namespaces: &["web".to_owned()],
        namespace: "",
    };
    for bad in [
        "delete pod x",
        "get pods -w",
        "get pods --watch=true",
        "get pods --kubeconfig=/x",
        "get pods --as=root",
        "get secret/x",
        "get pods,secrets",
        "get Secrets.v1",
        "rollout restart deploy/x",
        "get pods --namespace=other",
        "get pods --all-namespaces=true",
        "get pods --output=go-template-file=/etc/passwd",
        "get pods --raw=/api",
        "logs x --follow=true",
        "get pods --client-key=/x",
        "",
    ] {
        let argv: Vec<String> = bad.split_whitespace().map(str::to_owned).collect();
        assert!(judge(&argv, &policy).is_err(), "{bad}");
    }
}

#[test]
fn what_is_allowed_only_reads() {
    let lines = [
        "get pods -n web -o wide",
        "get pod/web-1 -o=yaml",
        "kubectl get deploy,svc -A --no-headers",
        "describe node worker-1",
        "logs web-1 -c app --tail=20 -p",
        "logs -l app=web --since 5m",
        "top pods --containers",
        "events --for pod/web-1 --types=Warning",
        "explain pods.spec --recursive",
        "api-resources -o name",
        "version --client",
        "rollout history deploy/web --revision=2",
        "rollout status deploy/web --watch=false",
        "auth can-i list pods --list",
        "get pods -o jsonpath={.items[*].metadata.name}",
        "get pods -o custom-columns=N:.metadata.name",
        "get cm -- x",
        "get secret x",
        "get pods --raw /api",
        "get -f x",
        "delete pod x",
        "rollout restart deploy/x",
    ];
    let target = Target {
        name: "kubectl",
        crate_dir: env!("CARGO_MANIFEST_DIR"),
        tmp_dir: env!("CARGO_TARGET_TMPDIR"),
        // One word a line.
        seeds: lines.iter().map(|line| line.replace(' ', "\n")).collect(),
        words: &[
            "\n-n\n",
            "\n--namespace=",
            "\n-A",
            "\n--all-namespaces",
            "\n-o\n",
            "\n-ojson",
            "\n--output=jsonpath=",
            "\n--output=go-template-file=",
            "\n-l\n",
            "\n--",
            "\n--kubeconfig=/x",
            "\n-s\n",
            "\n--server=http://x",
            "\n--token\nx",
            "\n--as=root",
            "\n--raw=/api",
            "\n-f\n/x",
            "\n-w",
            "\n--watch",
            "\n--follow",
            "\nsecret",
            "\nsecrets/x",
            "\npods,secrets",
            "\nSecret.v1.",
            "=",
            "=true",
            "=false",
            ",",
            "/",
            "\nexec",
            "\napply",
            "\n--client-key=x",
            "\n-",
            "web",
            "other",
            "\nget",
            "\nrollout\nrestart",
            "\n-vpc",
            "\n-pf",
        ],
    };
    let namespaces = ["web".to_owned(), "shop".to_owned()];
    let policies = [
        Policy {
            namespaces: &[],
            namespace: "",
        },
        Policy {
            namespaces: &[],
            namespace: "default",
        },
        Policy {
            namespaces: &namespaces,
            namespace: "web",
        },
        Policy {
            namespaces: &namespaces,
            namespace: "",
        },
    ];
    fuzz::fuzz(&target, |text| {
        let words: Vec<String> = text.split('\n').map(str::to_owned).collect();
        let mut shapes = Vec::new();
        for policy in &policies {
            match allowed(&words, policy) {
                Ok(argv) => {
                    judge(&argv, policy).unwrap();
                    let again = allowed(&argv, policy)
                        .unwrap_or_else(|reason| panic!("{argv:?} is refused now: {reason}"));
                    assert_eq!(again, argv, "what was written anew is read the same");
                    let flags: Vec<&str> = argv
                        .iter()
                        .filter_map(|word| word.split('=').next().filter(|name| name.starts_with('-')))
                        .collect();
                    shapes.push(format!("{} {} {}", argv[0], flags.join(" "), argv.len()));
                }
                Err(reason) => {
                    assert!(!reason.is_empty(), "a refusal has a reason");
                    shapes.push(gist(reason));
                }
            }
        }
        shape(shapes)
    });
}
