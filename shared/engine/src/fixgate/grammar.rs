//! What each verb of the fix gate may be given: kinds, flags, values.
//!
//! Invariant: positive lists only. A flag that is named here as refused is so for its reason's sake;
//! one that is not named at all is refused too.

use super::{REPLICAS_MAX, Refusal};

/// One verb.
#[derive(Debug)]
pub(super) struct Grammar {
    /// The verb as kubectl has it.
    pub words: &'static [&'static str],
    /// The kind in the configured name, where a verb is allowed kind by kind: `delete pod`.
    pub only: Option<&'static str>,
    pub is_default: bool,
    /// The kinds it may change, as kubectl's singular; each with its other spellings.
    pub kinds: &'static [&'static [&'static str]],
    /// The kind where the verb itself says it.
    pub implied_kind: Option<&'static str>,
    pub is_namespaced: bool,
    pub flags: &'static [(&'static str, Flag)],
    pub required_flag: Option<&'static str>,
    pub example: &'static str,
}

/// What a flag may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flag {
    /// Nothing, or true or false.
    Switch,
    /// A number of replicas.
    Replicas,
    /// A whole number from 1.
    Positive,
    /// Seconds or a Go duration such as `30s`.
    Duration,
    /// A namespace.
    Namespace,
    /// An output format that only prints.
    Output,
    /// `none`, `client`, `server`.
    DryRun,
}

impl Flag {
    pub(super) fn accepts(self, value: &str) -> bool {
        let number = || {
            value
                .parse::<u32>()
                .ok()
                .filter(|_| value.bytes().all(|b| b.is_ascii_digit()) && value.len() <= 9)
        };
        match self {
            Flag::Switch => matches!(value, "true" | "false"),
            Flag::Replicas => number().is_some_and(|n| n <= REPLICAS_MAX),
            Flag::Positive => number().is_some_and(|n| n >= 1),
            Flag::Duration => {
                let digits = value.trim_end_matches(['s', 'm', 'h']);
                value.len() - digits.len() <= 1
                    && !digits.is_empty()
                    && digits.bytes().all(|b| b.is_ascii_digit())
            }
            Flag::Namespace => protocol::ids::Namespace::new(value).is_ok(),
            Flag::Output => matches!(value, "name" | "json" | "yaml" | "wide"),
            Flag::DryRun => matches!(value, "none" | "client" | "server"),
        }
    }

    pub(super) fn expects(self) -> String {
        match self {
            Flag::Switch => "it is true or false".to_owned(),
            Flag::Replicas => format!("it is a whole number, 0 to {REPLICAS_MAX}"),
            Flag::Positive => "it is a whole number from 1".to_owned(),
            Flag::Duration => "it is a duration such as 30s".to_owned(),
            Flag::Namespace => "it is a namespace's name".to_owned(),
            Flag::Output => "it is name, json, yaml or wide".to_owned(),
            Flag::DryRun => "it is none, client or server".to_owned(),
        }
    }
}

const DEPLOYMENT: &[&str] = &["deployment", "deployments", "deploy"];
const DAEMON_SET: &[&str] = &["daemonset", "daemonsets", "ds"];
const STATEFUL_SET: &[&str] = &["statefulset", "statefulsets", "sts"];
const REPLICA_SET: &[&str] = &["replicaset", "replicasets", "rs"];
const POD: &[&str] = &["pod", "pods", "po"];
const JOB: &[&str] = &["job", "jobs"];
const NODE: &[&str] = &["node", "nodes", "no"];

const ROLLED_OUT: &[&[&str]] = &[DEPLOYMENT, DAEMON_SET, STATEFUL_SET];

/// Flags that every verb has.
const COMMON: &[(&str, Flag)] = &[
    ("--namespace", Flag::Namespace),
    ("--output", Flag::Output),
    ("--dry-run", Flag::DryRun),
];

/// The verbs for which kubectl has no `--dry-run`.
pub(super) const WITHOUT_DRY_RUN: &[&[&str]] = &[
    &["rollout", "restart"],
    &["rollout", "pause"],
    &["rollout", "resume"],
];

const DELETE_FLAGS: &[(&str, Flag)] = &[
    ("--grace-period", Flag::Positive),
    ("--ignore-not-found", Flag::Switch),
    ("--now", Flag::Switch),
    ("--timeout", Flag::Duration),
    ("--wait", Flag::Switch),
];

/// Every verb that can be allowed.
pub(super) const ALL: &[Grammar] = &[
    Grammar {
        words: &["rollout", "restart"],
        only: None,
        is_default: true,
        kinds: ROLLED_OUT,
        implied_kind: None,
        is_namespaced: true,
        flags: &[],
        required_flag: None,
        example: "kubectl rollout restart deployment/web",
    },
    Grammar {
        words: &["rollout", "undo"],
        only: None,
        is_default: true,
        kinds: ROLLED_OUT,
        implied_kind: None,
        is_namespaced: true,
        flags: &[("--to-revision", Flag::Positive)],
        required_flag: None,
        example: "kubectl rollout undo deployment/web",
    },
    Grammar {
        words: &["rollout", "pause"],
        only: None,
        is_default: false,
        kinds: &[DEPLOYMENT],
        implied_kind: None,
        is_namespaced: true,
        flags: &[],
        required_flag: None,
        example: "kubectl rollout pause deployment/web",
    },
    Grammar {
        words: &["rollout", "resume"],
        only: None,
        is_default: false,
        kinds: &[DEPLOYMENT],
        implied_kind: None,
        is_namespaced: true,
        flags: &[],
        required_flag: None,
        example: "kubectl rollout resume deployment/web",
    },
    Grammar {
        words: &["scale"],
        only: None,
        is_default: true,
        kinds: &[DEPLOYMENT, STATEFUL_SET, REPLICA_SET],
        implied_kind: None,
        is_namespaced: true,
        flags: &[
            ("--replicas", Flag::Replicas),
            ("--current-replicas", Flag::Replicas),
            ("--timeout", Flag::Duration),
        ],
        required_flag: Some("--replicas"),
        example: "kubectl scale deployment/web --replicas=3",
    },
    Grammar {
        words: &["delete"],
        only: Some("pod"),
        is_default: true,
        kinds: &[POD],
        implied_kind: None,
        is_namespaced: true,
        flags: DELETE_FLAGS,
        required_flag: None,
        example: "kubectl delete pod web-1",
    },
    Grammar {
        words: &["delete"],
        only: Some("job"),
        is_default: false,
        kinds: &[JOB],
        implied_kind: None,
        is_namespaced: true,
        flags: DELETE_FLAGS,
        required_flag: None,
        example: "kubectl delete job report-1",
    },
    Grammar {
        words: &["cordon"],
        only: None,
        is_default: true,
        kinds: &[NODE],
        implied_kind: Some("node"),
        is_namespaced: false,
        flags: &[],
        required_flag: None,
        example: "kubectl cordon node-1",
    },
    Grammar {
        words: &["uncordon"],
        only: None,
        is_default: true,
        kinds: &[NODE],
        implied_kind: Some("node"),
        is_namespaced: false,
        flags: &[],
        required_flag: None,
        example: "kubectl uncordon node-1",
    },
];

impl Grammar {
    /// As the configuration names it.
    pub(super) fn name(&self) -> String {
        let words: Vec<&str> = self.words.iter().copied().chain(self.only).collect();
        words.join(" ")
    }

    /// Whether it is this verb, and where that matters, of this kind.
    pub(super) fn fits(&self, plain: &[String]) -> bool {
        let count = self.words.len();
        let is_verb = plain.len() >= count && self.words.iter().zip(plain).all(|(a, b)| a == b);
        let is_kind = || {
            let written = plain
                .get(count)
                .map(|word| word.split('/').next().unwrap_or(word));
            written.is_some_and(|written| self.kind(written).is_ok())
        };
        is_verb && (self.only.is_none() || is_kind())
    }

    /// kubectl's singular for a kind as written: `deploy`, `deployments.apps`.
    pub(super) fn kind(&self, written: &str) -> Result<&'static str, Refusal> {
        let (plain, group) = written.split_once('.').unwrap_or((written, ""));
        let found = self
            .kinds
            .iter()
            .find(|names| names.contains(&plain))
            .map(|names| names[0]);
        let group_fits = |kind: &str| {
            let own = match kind {
                "pod" | "node" => "",
                "job" => "batch",
                _ => "apps",
            };
            group.is_empty() || (!own.is_empty() && (group == own || group == format!("v1.{own}")))
        };
        found.filter(|kind| group_fits(kind)).ok_or_else(|| {
            let allowed: Vec<&str> = self.kinds.iter().map(|names| names[0]).collect();
            Refusal::new(format!(
                "{} of \"{written}\" is not allowed; allowed is: {}",
                self.name(),
                allowed.join(", ")
            ))
        })
    }
}

/// The flag of this name, or why it is refused.
pub(super) fn flag(grammar: &Grammar, name: &str) -> Result<Flag, String> {
    if let Some((_, flag)) = grammar
        .flags
        .iter()
        .chain(COMMON)
        .find(|(known, _)| *known == name)
    {
        return Ok(*flag);
    }
    let known: Vec<&str> = grammar
        .flags
        .iter()
        .chain(COMMON)
        .map(|(known, _)| *known)
        .collect();
    Err(format!(
        "{name} is not allowed for {}; allowed are: {}",
        grammar.name(),
        known.join(", ")
    ))
}

/// Why a flag is refused with every verb, for those that are asked for most.
pub(super) fn refusal(name: &str) -> Option<String> {
    let why = match name {
        "--kubeconfig"
        | "--context"
        | "--cluster"
        | "--server"
        | "-s"
        | "--user"
        | "--token"
        | "--as"
        | "--as-group"
        | "--as-uid"
        | "--as-user-extra"
        | "--certificate-authority"
        | "--client-certificate"
        | "--client-key"
        | "--insecure-skip-tls-verify"
        | "--tls-server-name"
        | "--username"
        | "--password"
        | "--cache-dir"
        | "--kuberc" => "where and as whom a fix runs is not its own to say",
        "--all" | "-A" | "--all-namespaces" | "-l" | "--selector" | "--field-selector" => {
            "a fix names what it changes"
        }
        "-f" | "--filename" | "-k" | "--kustomize" | "-R" | "--recursive" | "--raw" => {
            "a fix says all it does in its own line"
        }
        "--force" => "what it leaves behind may still run",
        _ => return None,
    };
    Some(format!("{name} is not allowed: {why}"))
}

/// Whether kubectl takes the next word as this flag's value. Of unknown flags it does not matter:
/// they are refused.
pub(super) fn takes_next_word(name: &str) -> bool {
    ALL.iter()
        .flat_map(|grammar| grammar.flags)
        .chain(COMMON)
        .any(|(known, flag)| *known == name && !matches!(flag, Flag::Switch | Flag::DryRun))
}
