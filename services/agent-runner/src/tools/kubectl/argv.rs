//! Which kubectl command lines an agent may run: a positive list of verbs, and of flags for each.
//!
//! Invariants:
//! - What is not listed is refused; there is no list of bad things.
//! - The command line that runs is written anew from what was understood, each flag as `--name=value`. So kubectl
//!   cannot read it differently than we did.
//! - No verb changes anything, no flag names a file, a server, an identity, or keeps the command running.

/// The operator's limits, and where the alert is.
pub struct Policy<'a> {
    /// Namespaces that may be read; empty: all.
    pub namespaces: &'a [String],
    /// The namespace of a command that names none; empty: kubectl's own.
    pub namespace: &'a str,
}

/// What a flag takes.
#[derive(Clone, Copy)]
enum Takes {
    /// Nothing, or `=true` and `=false`.
    Switch,
    /// Any text.
    Text,
    /// One of these.
    OneOf(&'static [&'static str]),
    /// An output format: one of these, or with `=…` one of the templates.
    Output(&'static [&'static str]),
}

struct Flag {
    long: &'static str,
    short: Option<char>,
    takes: Takes,
}

const fn flag(long: &'static str, takes: Takes) -> Flag {
    Flag {
        long,
        short: None,
        takes,
    }
}

const fn short(long: &'static str, short: char, takes: Takes) -> Flag {
    Flag {
        long,
        short: Some(short),
        takes,
    }
}

use Takes::{OneOf, Output, Switch, Text};

const NAMESPACE: Flag = short("namespace", 'n', Text);
const ALL_NAMESPACES: Flag = short("all-namespaces", 'A', Switch);
const SELECTOR: Flag = short("selector", 'l', Text);
const FIELD_SELECTOR: Flag = flag("field-selector", Text);
const NO_HEADERS: Flag = flag("no-headers", Switch);
const SORT_BY: Flag = flag("sort-by", Text);

/// Output formats that take a template in the command itself.
const TEMPLATES: [&str; 3] = ["jsonpath", "jsonpath-as-json", "custom-columns"];

struct Verb {
    name: &'static str,
    /// What must follow, for verbs that have verbs of their own.
    subverbs: &'static [&'static str],
    flags: &'static [Flag],
    /// Put in where not given.
    put_in: &'static [(&'static str, &'static str)],
    has_namespace: bool,
    /// Whether words name objects of the cluster, so that Secrets must not be among them.
    names_objects: bool,
}

const NONE: &[(&str, &str)] = &[];

/// Everything an agent may do with kubectl.
static VERBS: [Verb; 10] = [
    Verb {
        name: "get",
        subverbs: &[],
        flags: &[
            NAMESPACE,
            ALL_NAMESPACES,
            SELECTOR,
            FIELD_SELECTOR,
            NO_HEADERS,
            SORT_BY,
            short("output", 'o', Output(&["wide", "json", "yaml", "name"])),
            short("label-columns", 'L', Text),
            flag("show-labels", Switch),
            flag("show-kind", Switch),
            flag("show-managed-fields", Switch),
            flag("ignore-not-found", Switch),
            flag("subresource", OneOf(&["status", "scale"])),
        ],
        put_in: NONE,
        has_namespace: true,
        names_objects: true,
    },
    Verb {
        name: "describe",
        subverbs: &[],
        flags: &[NAMESPACE, ALL_NAMESPACES, SELECTOR, flag("show-events", Switch)],
        put_in: NONE,
        has_namespace: true,
        names_objects: true,
    },
    Verb {
        name: "logs",
        subverbs: &[],
        flags: &[
            NAMESPACE,
            SELECTOR,
            short("container", 'c', Text),
            short("previous", 'p', Switch),
            flag("all-containers", Switch),
            flag("all-pods", Switch),
            flag("since", Text),
            flag("since-time", Text),
            flag("tail", Text),
            flag("timestamps", Switch),
            flag("prefix", Switch),
            flag("limit-bytes", Text),
            flag("max-log-requests", Text),
            flag("ignore-errors", Switch),
        ],
        put_in: &[("tail", "1000")],
        has_namespace: true,
        names_objects: true,
    },
    Verb {
        name: "top",
        subverbs: &["pod", "pods", "po", "node", "nodes", "no"],
        flags: &[
            NAMESPACE,
            ALL_NAMESPACES,
            SELECTOR,
            FIELD_SELECTOR,
            NO_HEADERS,
            SORT_BY,
            flag("containers", Switch),
            flag("sum", Switch),
        ],
        put_in: NONE,
        has_namespace: true,
        names_objects: true,
    },
    Verb {
        name: "events",
        subverbs: &[],
        flags: &[
            NAMESPACE,
            ALL_NAMESPACES,
            NO_HEADERS,
            flag("for", Text),
            flag("types", Text),
            short("output", 'o', Output(&["json", "yaml"])),
        ],
        put_in: NONE,
        has_namespace: true,
        names_objects: true,
    },
    Verb {
        name: "explain",
        subverbs: &[],
        flags: &[
            flag("recursive", Switch),
            flag("api-version", Text),
            flag("output", OneOf(&["plaintext"])),
        ],
        put_in: NONE,
        has_namespace: false,
        names_objects: false,
    },
    Verb {
        name: "api-resources",
        subverbs: &[],
        flags: &[
            flag("api-group", Text),
            flag("namespaced", Switch),
            NO_HEADERS,
            flag("verbs", Text),
            flag("categories", Text),
            flag("sort-by", OneOf(&["name", "kind"])),
            short("output", 'o', OneOf(&["wide", "name"])),
        ],
        put_in: NONE,
        has_namespace: false,
        names_objects: false,
    },
    Verb {
        name: "version",
        subverbs: &[],
        flags: &[
            flag("client", Switch),
            short("output", 'o', OneOf(&["json", "yaml"])),
        ],
        put_in: NONE,
        has_namespace: false,
        names_objects: false,
    },
    Verb {
        name: "rollout",
        subverbs: &["history", "status"],
        flags: &[
            NAMESPACE,
            SELECTOR,
            flag("revision", Text),
            flag("timeout", Text),
            flag("watch", OneOf(&["false"])),
            short("output", 'o', OneOf(&["json", "yaml"])),
        ],
        put_in: NONE,
        has_namespace: true,
        names_objects: true,
    },
    Verb {
        name: "auth",
        subverbs: &["can-i"],
        flags: &[
            NAMESPACE,
            ALL_NAMESPACES,
            NO_HEADERS,
            flag("list", Switch),
            flag("subresource", Text),
            short("quiet", 'q', Switch),
        ],
        put_in: NONE,
        has_namespace: true,
        names_objects: false,
    },
];

/// Characters of one word; object names have at most 253, templates are longer.
const WORD_CHARS_MAX: usize = 4000;

/// The command line that may run, without `kubectl` itself.
///
/// # Errors
/// What is not allowed, and what to do instead.
pub fn allowed(args: &[String], policy: &Policy<'_>) -> Result<Vec<String>, String> {
    let args = match args {
        [first, rest @ ..] if first == "kubectl" => rest,
        all => all,
    };
    if let Some(long) = args
        .iter()
        .find(|arg| arg.chars().count() > WORD_CHARS_MAX || arg.contains('\0'))
    {
        let begin: String = long.chars().take(40).collect();
        return Err(format!("the word `{begin}…` is too long, or holds a NUL"));
    }
    let (verb, rest) = verb(args)?;
    let mut read = Read {
        verb,
        flags: Vec::new(),
        words: Vec::new(),
    };
    read.all(rest)?;
    read.check_subverb()?;
    read.check_words()?;
    read.put_in_namespace(policy)?;
    Ok(read.write())
}

fn verb(args: &[String]) -> Result<(&'static Verb, &[String]), String> {
    let names = || VERBS.iter().map(|verb| verb.name).collect::<Vec<_>>().join(", ");
    let Some((first, rest)) = args.split_first() else {
        return Err(format!("no verb; use {}", names()));
    };
    if first.contains(char::is_whitespace) {
        return Err(
            "each word must be an item of its own: [\"get\", \"pods\"], not [\"get pods\"]".to_owned(),
        );
    }
    if first.starts_with('-') {
        return Err("the verb must come first, and flags after it".to_owned());
    }
    let verb = VERBS.iter().find(|verb| verb.name == first).ok_or_else(|| {
        format!(
            "`kubectl {first}` is not among the reading verbs that an agent has: {}",
            names()
        )
    })?;
    Ok((verb, rest))
}

/// A command line as understood.
struct Read {
    verb: &'static Verb,
    flags: Vec<(&'static str, String)>,
    words: Vec<String>,
}

impl Read {
    fn all(&mut self, args: &[String]) -> Result<(), String> {
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            if let Some(long) = arg.strip_prefix("--") {
                let (name, value) = match long.split_once('=') {
                    Some((name, value)) => (name, Some(value.to_owned())),
                    None => (long, None),
                };
                let flag = self.verb.flags.iter().find(|flag| flag.long == name);
                let flag = flag.ok_or_else(|| self.unknown(&format!("--{name}")))?;
                self.flag(flag, value, &mut args)?;
            } else if let Some(cluster) = arg.strip_prefix('-') {
                self.short(cluster, &mut args)?;
            } else {
                self.words.push(arg.clone());
            }
        }
        Ok(())
    }

    /// `-n x`, `-nx`, `-n=x`, `-A`: one short flag at a time, since a cluster can hide one.
    fn short<'a>(
        &mut self,
        cluster: &str,
        args: &mut impl Iterator<Item = &'a String>,
    ) -> Result<(), String> {
        let mut chars = cluster.chars();
        let first = chars
            .next()
            .ok_or("a single `-` is no argument; there is no input to read")?;
        let rest = chars.as_str();
        let flag = self.verb.flags.iter().find(|flag| flag.short == Some(first));
        let flag = flag.ok_or_else(|| self.unknown(&format!("-{first}")))?;
        let value = match (rest, flag.takes) {
            ("", _) => None,
            (_, Switch) => {
                return Err(format!("write `-{cluster}` as flags apart, by their long names"));
            }
            (rest, _) => Some(rest.strip_prefix('=').unwrap_or(rest).to_owned()),
        };
        self.flag(flag, value, args)
    }

    fn flag<'a>(
        &mut self,
        flag: &'static Flag,
        value: Option<String>,
        args: &mut impl Iterator<Item = &'a String>,
    ) -> Result<(), String> {
        let name = flag.long;
        let value = match (flag.takes, value) {
            (Switch, None) => "true".to_owned(),
            (Switch, Some(value)) if value == "true" || value == "false" => value,
            (Switch, Some(_)) => return Err(format!("`--{name}` takes no value")),
            (_, Some(value)) => value,
            (_, None) => args
                .next()
                .cloned()
                .ok_or_else(|| format!("`--{name}` needs a value"))?,
        };
        let is_allowed = match flag.takes {
            Switch | Text => true,
            OneOf(values) => values.contains(&value.as_str()),
            Output(values) => {
                let template = value.split_once('=').map(|(format, _)| format);
                values.contains(&value.as_str())
                    || (self.verb.name == "get" && template.is_some_and(|format| TEMPLATES.contains(&format)))
            }
        };
        if !is_allowed {
            return Err(match flag.takes {
                OneOf(values) => {
                    format!("`--{name}={value}` is not allowed; use {}", values.join(", "))
                }
                Output(values) => format!(
                    "`--{name}={value}` is not allowed; use {}, and with get also jsonpath=… or custom-columns=…",
                    values.join(", ")
                ),
                Switch | Text => format!("`--{name}={value}` is not allowed"),
            });
        }
        if self.flags.iter().any(|(known, _)| *known == name) {
            return Err(format!("`--{name}` is given twice"));
        }
        self.flags.push((name, value));
        Ok(())
    }

    fn unknown(&self, shown: &str) -> String {
        let names: Vec<String> = self
            .verb
            .flags
            .iter()
            .map(|flag| format!("--{}", flag.long))
            .collect();
        format!(
            "`{shown}` is not allowed with `kubectl {}`; allowed are {}",
            self.verb.name,
            names.join(", ")
        )
    }

    fn check_subverb(&self) -> Result<(), String> {
        let subverbs = self.verb.subverbs;
        let is_known = subverbs.is_empty()
            || self
                .words
                .first()
                .is_some_and(|word| subverbs.contains(&word.as_str()));
        if is_known {
            return Ok(());
        }
        Err(format!(
            "`kubectl {}` must be followed by one of {}",
            self.verb.name,
            subverbs.join(", ")
        ))
    }

    fn check_words(&self) -> Result<(), String> {
        for (at, word) in self.words.iter().enumerate() {
            // `auth can-i '*' /healthz` asks about paths and wildcards, and reads nothing.
            let extra = if self.verb.name == "auth" { "*/" } else { "" };
            let is_plain = !word.is_empty()
                && !word.starts_with('/')
                && !word.contains("//")
                && !word.contains("..")
                && word
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "._-:,/".contains(c));
            let is_extra = word.is_ascii() && word.starts_with(|c| extra.contains(c));
            if !is_plain && !is_extra {
                return Err(format!("`{word}` is no type or name of an object"));
            }
            let is_first = at == self.verb.subverbs.len().min(1);
            if self.verb.names_objects && names_secrets(word, is_first) {
                return Err("Secrets are never shown; look at what refers to them instead".to_owned());
            }
        }
        Ok(())
    }

    fn put_in_namespace(&mut self, policy: &Policy<'_>) -> Result<(), String> {
        if !self.verb.has_namespace {
            return Ok(());
        }
        let value = |name: &str| {
            self.flags
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| value.as_str())
        };
        let is_limited = !policy.namespaces.is_empty();
        let limits = || {
            format!(
                "the operator lets agents read only {}",
                policy.namespaces.join(", ")
            )
        };
        if value("all-namespaces") == Some("true") {
            return if is_limited {
                Err(format!("all namespaces are too many: {}", limits()))
            } else {
                Ok(())
            };
        }
        match value("namespace") {
            Some(given)
                if given.is_empty() || given.contains(|c: char| !c.is_ascii_alphanumeric() && c != '-') =>
            {
                Err(format!("`{given}` is no namespace"))
            }
            Some(given) if is_limited && !policy.namespaces.iter().any(|known| known == given) => {
                Err(format!("the namespace {given} may not be read: {}", limits()))
            }
            Some(_) => Ok(()),
            None if is_limited && !policy.namespaces.iter().any(|known| known == policy.namespace) => {
                Err(format!("name a namespace by --namespace: {}", limits()))
            }
            None => {
                if !policy.namespace.is_empty() {
                    self.flags.push(("namespace", policy.namespace.to_owned()));
                }
                Ok(())
            }
        }
    }

    fn write(self) -> Vec<String> {
        let mut argv = vec![self.verb.name.to_owned()];
        let is_given = |name: &str| self.flags.iter().any(|(known, _)| *known == name);
        let is_status =
            self.verb.name == "rollout" && self.words.first().is_some_and(|word| word == "status");
        let mut flags: Vec<String> = Vec::new();
        if is_status && !is_given("watch") {
            flags.push("--watch=false".to_owned());
        }
        let is_bounded =
            is_given("tail") || is_given("limit-bytes") || is_given("since") || is_given("since-time");
        for (name, value) in self.verb.put_in.iter().filter(|_| !is_bounded) {
            flags.push(format!("--{name}={value}"));
        }
        flags.extend(
            self.flags
                .into_iter()
                .map(|(name, value)| format!("--{name}={value}")),
        );
        argv.extend(self.words);
        argv.extend(flags);
        argv
    }
}

/// Whether a word means Secrets: as the first word, or before a `/`, in any case, with or without version and group.
fn names_secrets(word: &str, is_first: bool) -> bool {
    word.split(',').any(|part| {
        let (kind, has_name) = match part.split_once('/') {
            Some((kind, _)) => (kind, true),
            None => (part, false),
        };
        let base = kind.split('.').next().unwrap_or_default().to_ascii_lowercase();
        (is_first || has_name || word.contains(',')) && matches!(base.as_str(), "secret" | "secrets")
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn argv(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    fn run(line: &str, namespaces: &[&str]) -> Result<String, String> {
        let namespaces: Vec<String> = namespaces.iter().map(|name| (*name).to_owned()).collect();
        let policy = Policy {
            namespaces: &namespaces,
            namespace: "prod",
        };
        allowed(&argv(line), &policy).map(|argv| argv.join(" "))
    }

    #[test]
    fn hostile_command_lines_are_refused() {
        let refused: Vec<&str> = HOSTILE
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        assert!(refused.len() >= 150, "{}", refused.len());
        for line in refused {
            let result = run(line, &[]);
            assert!(result.is_err(), "{line} -> {result:?}");
        }
        for args in [
            vec!["get pods"],
            vec!["get\u{a0}pods"],
            vec!["get", "pods;id"],
            vec!["get", ""],
            vec!["get", "pods", "\0"],
            vec![],
        ] {
            let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
            assert!(
                allowed(
                    &args,
                    &Policy {
                        namespaces: &[],
                        namespace: ""
                    }
                )
                .is_err(),
                "{args:?}"
            );
        }
    }

    #[test]
    fn legitimate_command_lines_run_and_are_written_anew() {
        let lines: Vec<&str> = LEGITIMATE
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        assert!(lines.len() >= 60, "{}", lines.len());
        for line in lines {
            let (line, expected) = line.split_once(" => ").unwrap_or((line, ""));
            let written = run(line, &[]).unwrap_or_else(|error| panic!("{line}: {error}"));
            if !expected.is_empty() {
                assert_eq!(written, expected, "{line}");
            }
            for word in argv(&written).iter().filter(|word| word.starts_with('-')) {
                assert!(word.starts_with("--") && word.contains('='), "{line}: {word}");
            }
            // Writing anew what was written changes nothing.
            assert_eq!(run(&written, &[]).unwrap(), written);
        }
    }

    #[test]
    fn namespaces_are_limited_by_the_operator() {
        let limits = ["prod", "web"];
        assert_eq!(run("get pods", &limits).unwrap(), "get pods --namespace=prod");
        assert_eq!(
            run("get pods -n web", &limits).unwrap(),
            "get pods --namespace=web"
        );
        assert!(
            run("get pods -A", &limits)
                .unwrap_err()
                .contains("only prod, web")
        );
        assert!(run("get pods --all-namespaces=true", &limits).is_err());
        assert!(
            run("get pods -n kube-system", &limits)
                .unwrap_err()
                .contains("may not be read")
        );
        assert!(
            run("get pods", &["web"])
                .unwrap_err()
                .contains("name a namespace")
        );
        assert!(
            run("get pods -n web --namespace=kube-system", &limits)
                .unwrap_err()
                .contains("twice")
        );
    }

    /// What we write is understood by the real program: it fails for want of a cluster, not of understanding.
    #[test]
    fn kubectl_itself_understands_what_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let kubectl = |args: &[String]| {
            let mut command = std::process::Command::new("kubectl");
            // A port that nobody listens on.
            command
                .args(args)
                .args(["--server=http://127.0.0.1:1", "--request-timeout=1s"]);
            command.env("HOME", dir.path()).env_remove("KUBECONFIG").output()
        };
        if let Err(error) = kubectl(&argv("version --client")) {
            assert!(std::env::var_os("CI").is_none(), "no kubectl: {error}");
            eprintln!("SKIPPED: our command lines were not shown to kubectl, since there is none: {error}");
            return;
        }
        let lines = LEGITIMATE
            .lines()
            .map(|line| line.split(" => ").next().unwrap_or_default().trim());
        for line in lines.filter(|line| !line.is_empty()) {
            let written = argv(&run(line, &[]).unwrap());
            let output = kubectl(&written).unwrap();
            let said = String::from_utf8_lossy(&output.stderr).to_lowercase();
            for complaint in [
                "unknown",
                "invalid argument",
                "flag",
                "usage",
                "must be",
                "error: ",
            ] {
                assert!(!said.contains(complaint), "{written:?}: {said}");
            }
        }
    }

    const LEGITIMATE: &str = "
        get pods => get pods --namespace=prod
        kubectl get pods => get pods --namespace=prod
        get pods -n web => get pods --namespace=web
        get pods -nweb => get pods --namespace=web
        get pods -n=web => get pods --namespace=web
        get pods --namespace web => get pods --namespace=web
        get pods -A => get pods --all-namespaces=true
        get po,svc,deploy -o wide
        get pod web-1 -o yaml
        get pod/web-1 -ojson
        get pod web-1 -o=jsonpath={.status.phase} => get pod web-1 --output=jsonpath={.status.phase} --namespace=prod
        get pods -o custom-columns=NAME:.metadata.name
        get pods -o jsonpath-as-json={.items[*].status}
        get pods --sort-by=.metadata.creationTimestamp
        get pods --field-selector status.phase!=Running
        get pods -l app=web,tier!=db
        get pods -l app=web --show-labels --no-headers
        get pods -L app
        get all
        get nodes
        get events --sort-by .lastTimestamp
        get deployments.apps web
        get deployment.v1.apps/web
        get hpa,pdb
        get pvc data-0 --ignore-not-found
        get clusterrole system:node
        get configmap web-config -o yaml
        get externalsecrets.external-secrets.io
        get pod secrets
        get serviceaccount secret-reader
        get deploy web --subresource=status
        get --namespace web pods
        describe pod web-1
        describe pods -l app=web
        describe node node-1
        describe deploy/web --show-events=true
        describe ingress web -n web
        logs web-1 => logs web-1 --tail=1000 --namespace=prod
        logs web-1 --tail 50 => logs web-1 --tail=50 --namespace=prod
        logs web-1 --tail -1
        logs web-1 -c app -p
        logs web-1 --previous --timestamps
        logs deploy/web --since=1h => logs deploy/web --since=1h --namespace=prod
        logs -l app=web --all-containers --prefix --max-log-requests=10
        logs web-1 --since-time=2026-01-01T00:00:00Z
        logs job/migrate --limit-bytes=10000
        top pods
        top pod web-1 --containers
        top nodes --sort-by=cpu
        top pods -A --sum
        events
        events --for pod/web-1
        events --types=Warning -A
        events -o json
        explain pods.spec.containers
        explain deployment --api-version=apps/v1 --recursive
        explain secrets
        api-resources
        api-resources --namespaced=false -o name
        api-resources --api-group=apps
        version
        version --client -o json
        rollout history deploy/web
        rollout history deployment web --revision=3
        rollout status deploy/web => rollout status deploy/web --watch=false --namespace=prod
        rollout status deploy/web --watch=false => rollout status deploy/web --watch=false --namespace=prod
        rollout status sts/db --timeout=5s -n db
        auth can-i list pods
        auth can-i --list
        auth can-i get secrets
        auth can-i * *
        auth can-i get /healthz
    ";

    const HOSTILE: &str = "
        delete pod web-1
        apply -f x
        create deploy x
        create token default
        edit deploy web
        patch deploy web -p {}
        replace -f x
        scale deploy web --replicas=0
        set image deploy/web app=evil
        label pod web-1 a=b
        annotate pod web-1 a=b
        taint nodes n a=b:NoSchedule
        cordon n
        drain n
        uncordon n
        exec web-1 -- sh
        exec -it web-1 sh
        attach web-1
        cp web-1:/etc/passwd x
        port-forward web-1 80
        proxy
        proxy --port=0
        run x --image=evil
        expose deploy web
        debug node/n -it --image=x
        autoscale deploy web --max=1
        certificate approve x
        config view
        config view --raw
        config set-credentials x
        cluster-info
        cluster-info dump
        diff -f x
        kustomize .
        get -k .
        plugin list
        krew install x
        whoami
        options
        completion bash
        alpha x
        wait pod/x --for=delete
        rollout restart deploy/web
        rollout undo deploy/web
        rollout pause deploy/web
        rollout resume deploy/web
        rollout
        rollout deploy/web
        rollout --watch=false
        auth whoami
        auth reconcile -f x
        auth
        top
        top secrets
        api-versions
        Get pods
        GET pods
        -n web get pods
        --namespace=web get pods
        --server=http://evil get pods
        -s http://evil get pods
        -- get pods
        get pods --server=http://evil
        get pods --server http://evil
        get pods -s http://evil
        get pods -shttp://evil
        get pods --token=x
        get pods --token x
        get pods --kubeconfig=/etc/passwd
        get pods --kubeconfig /etc/passwd
        get pods --as=system:admin
        get pods --as system:admin
        get pods --as-group=system:masters
        get pods --as-uid=1
        get pods --as-user-extra=a=b
        get pods --user=admin
        get pods --username=a
        get pods --password=b
        get pods --cluster=x
        get pods --context=x
        get pods --certificate-authority=/x
        get pods --client-certificate=/x
        get pods --client-key=/x
        get pods --insecure-skip-tls-verify
        get pods --insecure-skip-tls-verify=true
        get pods --tls-server-name=x
        get pods --cache-dir=/tmp/x
        get pods --cache-dir /tmp/x
        get pods --profile=cpu
        get pods --profile-output=/tmp/x
        get pods --log-file=/tmp/x
        get pods --log-dir=/tmp
        get pods --kuberc=/x
        get pods --vmodule=x
        get pods --v=9
        get pods -v=9
        get pods -v9
        get pods -v 9
        get pods --disable-compression
        get pods --match-server-version
        get pods --request-timeout=0
        get pods --warnings-as-errors
        get -f x
        get -f=x
        get -fx
        get --filename=x
        get --filename x
        get -R -f x
        get -k x
        get --kustomize=x
        get --raw=/api/v1/secrets
        get --raw /api/v1/secrets
        get --ra=/api
        get --raw=/
        get /api/v1/secrets
        get pods --template={{.}}
        get pods -o go-template={{.}}
        get pods -o go-template-file=/etc/passwd
        get pods -o=go-template-file=/etc/passwd
        get pods -ogo-template-file=/etc/passwd
        get pods -o template={{.}}
        get pods -o templatefile=/etc/passwd
        get pods -o jsonpath-file=/etc/passwd
        get pods --output=jsonpath-file=/etc/passwd
        get pods --output jsonpath-file=/etc/passwd
        get pods -o custom-columns-file=/etc/passwd
        get pods -o kyaml
        get pods -o
        get pods -w
        get pods --watch
        get pods --watch=true
        get pods --watch-only
        get pods --output-watch-events
        get pods -Aw
        get pods -wA
        get pods -Awide
        get pods -AA
        get pods -Ao json
        get pods --all
        get pods --name
        get pods --namespac=x
        get pods --namespace
        get pods --namespace=
        get pods -n ../x
        get pods -n x,y
        get pods -n a -n b
        get pods --all-namespaces=maybe
        get pods --
        get pods -- -f x
        get pods -
        get secrets
        get secret
        get Secret
        get SECRETS
        get secrets -o yaml
        get secret x
        get secret/x
        get secrets/x
        get Secret/x
        get secrets.v1
        get secrets.v1.
        get secret.v1./x
        get secrets. x
        get pods,secrets
        get secrets,pods
        get pods,Secret
        get pod/x secret/y
        get pod/x,secret/y
        get all,secrets
        get -o jsonpath={.data} secrets
        get -o yaml secret/x
        get --namespace=x secret y
        get -n x secret y
        get --show-labels secrets
        get secrets -l a=b
        get secrets --field-selector metadata.name=x
        get secrets --ignore-not-found
        describe secret x
        describe secrets
        describe secret/x
        describe secrets.v1./x
        describe pod,secret
        describe pod/x secret/y
        describe -f x
        describe pods --watch
        logs secret/x
        logs -f web-1
        logs web-1 -f
        logs web-1 --follow
        logs web-1 --follow=true
        logs web-1 -pf
        logs web-1 -fp
        logs web-1 --insecure-skip-tls-verify-backend
        logs web-1 --pod-running-timeout=99h
        events --watch
        events -w
        events -o jsonpath={.x}
        rollout status deploy/web --watch
        rollout status deploy/web --watch=true
        rollout status deploy/web -w
        rollout history -f x
        rollout status secret/x
        explain pods --output=plaintext-openapiv2
        api-resources --cached --cache-dir=/x
        version --server=x
        get pods $(id)
        get `id`
        get pods;id
        get pods|id
        get pods&id
        get pods>x
        get *
        get pods web-*
        get pods ~root
        get pods @x
        get http://evil
        get pods ../x
        auth can-i list pods --as=system:admin
        auth can-i list pods --as system:admin
    ";
}
