//! The one place where secrets are taken out of text, before a model, a transcript, findings or a log get it.
//!
//! Invariants:
//! - Redacting twice changes nothing more.
//! - What is taken out is replaced by `[REDACTED:<kind>#<tag>]`, so that a reader sees that something was there, and
//!   whether two were the same. The tag tells nothing else: it is a keyed digest, and the key never leaves the process.
//! - It errs towards hiding: a hidden harmless value costs a question, a shown secret cannot be taken back.

use std::{borrow::Cow, sync::LazyLock};

use hmac::{Hmac, KeyInit, Mac};
use regex::{Captures, Regex};
use serde_json::{Map, Value};
use service::config::Secret;
use sha2::Sha256;

/// How every replacement begins.
pub const MARK: &str = "[REDACTED:";

/// Names whose value is a secret, as the end of a name in any of its spellings.
const NAMES: &str = r"(?:pass(?:word|wd|phrase)?|pwd|secret|token|credentials?|(?:api|access|secret|private|account|encryption|signing|master|shared|session|ssh|auth)[_.-]?key|apikey)";

/// Shapes that are secrets wherever they stand.
const SHAPES: [(&str, &str); 20] = [
    (
        "private-key",
        r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----[\s\S]*?(?:-----END [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----|\z)",
    ),
    (
        "jwt",
        r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?",
    ),
    ("api-key", r"\bsk-[A-Za-z0-9_-]{16,}"),
    (
        "github-token",
        r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{22,})",
    ),
    ("gitlab-token", r"\bgl(?:pat|dt|rt|ft|soat)-[A-Za-z0-9_-]{20,}"),
    (
        "slack-token",
        r"\b(?:xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-[A-Za-z0-9-]{10,})",
    ),
    (
        "slack-webhook",
        r"https://hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9/_-]+",
    ),
    ("aws-key-id", r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b"),
    ("google-key", r"\bAIza[0-9A-Za-z_-]{35}"),
    ("google-token", r"\bya29\.[0-9A-Za-z_-]{20,}"),
    ("stripe-key", r"\b[rs]k_(?:live|test)_[0-9A-Za-z]{16,}"),
    ("npm-token", r"\bnpm_[A-Za-z0-9]{36}"),
    ("huggingface-token", r"\bhf_[A-Za-z0-9]{30,}"),
    ("sendgrid-key", r"\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"),
    ("vault-token", r"\bhv[sbr]\.[A-Za-z0-9_-]{20,}"),
    ("digitalocean-token", r"\bdo[por]_v1_[a-f0-9]{64}"),
    ("pypi-token", r"\bpypi-[A-Za-z0-9_-]{50,}"),
    ("nats-seed", r"\bS[ACNOUX][A-Z2-7]{56}\b"),
    ("age-key", r"\bAGE-SECRET-KEY-1[0-9A-Z]{50,}"),
    ("token", r"(?i)\bbearer\s+[A-Za-z0-9._~+/-]{16,}=*"),
];

/// A shorter secret of our own is not sought: it would hide ordinary words.
const LITERAL_BYTES_MIN: usize = 8;

/// Takes secrets out of text.
#[derive(Clone)]
pub struct Redactor {
    tags: Tags,
    literals: Vec<String>,
    shapes: Vec<(String, Regex)>,
    authorization: Regex,
    cookie: Regex,
    userinfo: Regex,
    signature: Regex,
    assigned: Regex,
    flag: Regex,
    env_pair: Regex,
    name: Regex,
    secret_yaml: Regex,
    secret_json: Regex,
    secret_json_data: Regex,
}

impl Redactor {
    /// With the operator's patterns (`tools.redact`), and the secrets that this process itself holds.
    ///
    /// # Errors
    /// When a pattern is no regular expression.
    pub fn new<'a>(patterns: &[String], own: impl IntoIterator<Item = &'a Secret>) -> Result<Self, String> {
        const VALUE: &str = r#"("(?:[^"\\\n]|\\.)*"|'[^'\n]*'|\\"(?:[^"\\]|\\[^"])*\\"|[^\s,;&"'}\]\\]+)"#;
        let mut shapes = Vec::new();
        for pattern in patterns {
            let regex = Regex::new(pattern)
                .map_err(|error| format!("tools.redact: `{pattern}` is no regular expression: {error}"))?;
            shapes.push(("configured".to_owned(), regex));
        }
        for (kind, pattern) in SHAPES {
            shapes.push((kind.to_owned(), known(pattern)));
        }
        let own: Vec<&str> = own.into_iter().map(Secret::expose).collect();
        Ok(Self {
            tags: Tags::new(&own),
            literals: own
                .into_iter()
                .map(str::to_owned)
                .filter(|text| text.len() >= LITERAL_BYTES_MIN)
                .collect(),
            shapes,
            authorization: known(
                r#"(?i)\b((?:proxy-)?authorization\\?["']?[ \t]*[:=][ \t]*\\?["']?(?:(?:bearer|basic|token|digest|negotiate|apikey)[ \t]+)?)([^\s"',\\]+)"#,
            ),
            cookie: known(r"(?i)\b((?:set-)?cookie[ \t]*:[ \t]*)([^\r\n]+)"),
            userinfo: known(r#"(?i)\b([a-z][a-z0-9+.-]*://)([^\s/"'<>]*:[^\s/"'<>]+)@"#),
            signature: known(
                r"(?i)([?&](?:sig|signature|x-amz-signature|x-goog-signature|code|key)=)([^\s&#]+)",
            ),
            assigned: known(&format!(
                r#"(?i)([A-Za-z0-9_.-]*{NAMES}\\?["']?[ \t]*(?::|=>?)[ \t]*){VALUE}"#
            )),
            flag: known(&format!(r#"(?i)(--?[a-z0-9-]*{NAMES}[ \t]+){VALUE}"#)),
            env_pair: known(&format!(
                r#"(?i)(\\?"?name\\?"?\s*:\s*\\?["']?[A-Za-z0-9_.-]*{NAMES}\\?["']?\s*,?\s*\\?"?value\\?"?\s*:\s*){VALUE}"#
            )),
            name: known(&format!(r"(?i){NAMES}$")),
            secret_yaml: known(r"(?m)^[ \t-]*kind:[ \t]*Secret[ \t]*$"),
            secret_json: known(r#"\\?"kind\\?"\s*:\s*\\?"Secret\\?""#),
            secret_json_data: known(r#"(\\?"(?:data|stringData)\\?"\s*:\s*)\{([^{}]*)\}"#),
        })
    }

    /// The same, and this secret beside.
    #[must_use]
    pub fn and(&self, secret: &Secret) -> Self {
        let mut both = self.clone();
        both.literals.push(secret.expose().to_owned());
        both.literals.retain(|text| text.len() >= LITERAL_BYTES_MIN);
        both
    }

    /// `text` without secrets.
    pub fn text(&self, text: &str) -> String {
        let mut text = Cow::Borrowed(text);
        for literal in &self.literals {
            if text.contains(literal.as_str()) {
                text = Cow::Owned(text.replace(literal.as_str(), &self.tags.tag("own-key", literal)));
            }
        }
        text = self.kubernetes_secrets(text);
        for (kind, shape) in &self.shapes {
            // A replacement is a literal: a `$` in a configured kind must not refer to a group.
            text = replaced(text, shape, |found| self.tags.tag(kind, &found[0]));
        }
        text = replaced(text, &self.authorization, |found| {
            self.tags.after(found, "authorization")
        });
        text = replaced(text, &self.cookie, |found| self.tags.after(found, "cookie"));
        text = replaced(text, &self.userinfo, |found| match &found[2] {
            redacted if is_tag(redacted) => found[0].to_owned(),
            secret => format!("{}{}@", &found[1], self.tags.tag("credentials", secret)),
        });
        text = replaced(text, &self.signature, |found| self.tags.after(found, "signature"));
        text = replaced(text, &self.env_pair, |found| self.tags.after(found, "value"));
        text = replaced(text, &self.assigned, |found| self.tags.after(found, "value"));
        text = replaced(text, &self.flag, |found| self.tags.after(found, "value"));
        text.into_owned()
    }

    /// `value` without secrets: in every text, and under every name that stands for a secret.
    pub fn value(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(text)),
            Value::Array(items) => Value::Array(items.iter().map(|item| self.value(item)).collect()),
            Value::Object(fields) => Value::Object(self.object(fields)),
            other => other.clone(),
        }
    }

    fn object(&self, fields: &Map<String, Value>) -> Map<String, Value> {
        let is_secret = fields.get("kind").and_then(Value::as_str) == Some("Secret");
        let hidden = |key: &str, value: &Value| match value {
            Value::String(text) if self.name.is_match(key) && !is_harmless(text) => {
                Some(Value::String(self.tags.tag("value", text)))
            }
            Value::Object(data) if is_secret && (key == "data" || key == "stringData") => {
                Some(Value::Object(
                    data.iter()
                        .map(|(key, value)| {
                            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                            let shown = match is_tag(&value) {
                                true => value,
                                false => self.tags.tag("secret-data", &value),
                            };
                            (key.clone(), Value::String(shown))
                        })
                        .collect(),
                ))
            }
            _ => None,
        };
        fields
            .iter()
            .map(|(key, value)| {
                (
                    self.text(key),
                    hidden(key, value).unwrap_or_else(|| self.value(value)),
                )
            })
            .collect()
    }

    /// The data of Secret objects, as YAML or JSON has it.
    fn kubernetes_secrets<'t>(&self, text: Cow<'t, str>) -> Cow<'t, str> {
        let text = if self.secret_json.is_match(&text) {
            replaced(text, &self.secret_json_data, |found| match &found[2] {
                data if is_redacted_data(data) => found[0].to_owned(),
                data => format!("{}{{\"\":\"{}\"}}", &found[1], self.tags.tag("secret-data", data)),
            })
        } else {
            text
        };
        if self.secret_yaml.is_match(&text) {
            Cow::Owned(self.tags.without_yaml_data(&text))
        } else {
            text
        }
    }
}

/// Compiles a pattern of this file.
fn known(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the patterns of this file are valid by test")
}

/// Makes the tags.
#[derive(Clone)]
struct Tags {
    mac: Hmac<Sha256>,
}

impl Tags {
    /// Keyed by the process's own secrets, so that its replicas make the same ones; where it has none, by chance.
    fn new(own: &[&str]) -> Self {
        let chance = uuid::Uuid::new_v4();
        let key = match own.is_empty() {
            true => chance.as_bytes().to_vec(),
            false => own.join("\0").into_bytes(),
        };
        let mac = Hmac::new_from_slice(&key).expect("HMAC takes a key of any length");
        Self { mac }
    }

    fn tag(&self, kind: &str, secret: &str) -> String {
        let digest = self.mac.clone().chain_update(secret).finalize().into_bytes();
        format!("{MARK}{kind}#{:02x}{:02x}]", digest[0], digest[1])
    }

    /// The first group, and a tag where the second was, unless that cannot be a secret.
    fn after(&self, found: &Captures<'_>, kind: &str) -> String {
        let value = &found[2];
        if is_harmless(value.trim_matches(['"', '\'', '\\'])) {
            return found[0].to_owned();
        }
        let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''));
        let quote = quote.map_or_else(
            || {
                if value.starts_with("\\\"") {
                    "\\\"".to_owned()
                } else {
                    String::new()
                }
            },
            String::from,
        );
        format!(
            "{}{quote}{}{quote}",
            &found[1],
            self.tag(kind, value.trim_matches(['"', '\'', '\\']))
        )
    }

    /// YAML with every block under `data:` and `stringData:` masked.
    fn without_yaml_data(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut inside: Option<usize> = None;
        for line in text.split_inclusive('\n') {
            let body = line.trim_start();
            let indent = line.len() - body.len();
            if inside.is_some_and(|outer| indent <= outer && !body.trim().is_empty()) {
                inside = None;
            }
            if inside.is_some() {
                match body.split_once(':').filter(|_| !body.starts_with(MARK)) {
                    Some((key, value)) => {
                        let tag = match value.trim() {
                            value if is_tag(value) => value.to_owned(),
                            value => self.tag("secret-data", value),
                        };
                        out.push_str(&format!("{}{key}: {tag}\n", &line[..indent]));
                    }
                    // A further line of a block text.
                    None if body.trim().is_empty() => out.push_str(line),
                    None => {
                        let tag = match body.trim() {
                            value if is_tag(value) => value.to_owned(),
                            value => self.tag("secret-data", value),
                        };
                        out.push_str(&format!("{}{tag}\n", &line[..indent]));
                    }
                }
                continue;
            }
            let key = body.trim_start_matches("- ").trim_end();
            if key == "data:" || key == "stringData:" {
                inside = Some(indent);
            }
            out.push_str(line);
        }
        out
    }
}

fn replaced<'t>(text: Cow<'t, str>, regex: &Regex, by: impl Fn(&Captures<'_>) -> String) -> Cow<'t, str> {
    match regex.replace_all(&text, by) {
        Cow::Borrowed(_) => text,
        Cow::Owned(new) => Cow::Owned(new),
    }
}

/// Whether this is one of our replacements and nothing else, or as much of it as a pattern takes for a value: to its
/// `#`, or to its last bracket.
fn is_tag(value: &str) -> bool {
    static TAG: LazyLock<Regex> = LazyLock::new(|| known(r"^\[REDACTED:[a-z-]+(?:#[0-9a-f]{4}\]?)?$"));
    TAG.is_match(value)
}

/// Whether the data of a Secret's JSON was replaced already, as a whole.
fn is_redacted_data(data: &str) -> bool {
    let parts = data.trim().trim_start_matches(['\\', '"']).strip_prefix(':');
    parts.is_some_and(|value| is_tag(value.trim_matches(['\\', '"'])))
}

/// `text` without the tags: what deployments with different keys agree on.
pub fn untagged(text: &str) -> String {
    static TAG: LazyLock<Regex> = LazyLock::new(|| known(r"(\[REDACTED:[a-z-]+)#[0-9a-f]{4}\]"));
    TAG.replace_all(text, "$1]").into_owned()
}

/// What stands for no value, for a reference to one, or was redacted before.
fn is_harmless(value: &str) -> bool {
    let is_word = [
        "", "true", "false", "null", "nil", "none", "~", "|", ">", "{", "[",
    ]
    .iter()
    .any(|word| value.eq_ignore_ascii_case(word));
    is_word || value.starts_with('<') || is_tag(value) || value.starts_with("${") || value.starts_with("$(")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn redactor() -> Redactor {
        Redactor::new(
            &["CUSTOMER-[0-9]+".to_owned()],
            [&Secret::new("own-operator-key")],
        )
        .unwrap()
    }

    /// Texts with a secret, and the secret.
    fn planted() -> Vec<(String, &'static str)> {
        const S: &str = "hunter2xyzzy";
        let shapes = [
            "sk-ant-api03-abcdefghijklmnopqrstuvwxyz",
            "sk-proj-abcdefghijklmnopqrst",
            "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
            "github_pat_11ABCDEFG0abcdefghijklmn_opq",
            "glpat-abcdefghij0123456789",
            "xoxb-123456789012-abcdefghij",
            "AKIAIOSFODNN7EXAMPLE",
            "AIzaSyA1234567890abcdefghijklmnopqrstuv",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
            "hvs.abcdefghijklmnopqrstuvwx",
            "CUSTOMER-4711",
            "own-operator-key",
            "sk_live_abcdefghijklmnop1234",
        ];
        let mut texts: Vec<(String, &'static str)> = Vec::new();
        for shape in shapes {
            texts.push((format!("before {shape} after"), shape));
            texts.push((format!("{{\"x\": \"{shape}\"}}"), shape));
        }
        for text in [
            "password=§",
            "Password: §",
            "db.password = \"§\"",
            "DB_PASSWORD: §",
            "export API_KEY='§'",
            "\"apiKey\":\"§\"",
            "{\\\"password\\\":\\\"§\\\"}",
            "client_secret=§&x=1",
            "--token §",
            "--password=§",
            "Authorization: Basic §",
            "authorization: §",
            "\"Authorization\": \"Bearer §\"",
            "X-Api-Key: §",
            "Set-Cookie: session=§; Path=/",
            "postgres://app:§@db:5432/x",
            "redis://:§@cache",
            "amqp://u:p@§@mq/",
            "https://h/x?sig=§",
            "https://h/x?a=1&token=§",
            "AccountKey=§;EndpointSuffix=x",
            "passphrase: §",
            "        - name: DB_PASSWORD\n          value: §",
            "{\"name\":\"APP_TOKEN\",\"value\":\"§\"}",
            "      DB_PASSWORD:                §",
            "aws_secret_access_key = §",
            "PGPASSWORD=§ psql",
            "apiVersion: v1\ndata:\n  x: §\nkind: Secret\nmetadata:\n  name: y\n",
            "apiVersion: v1\nitems:\n- apiVersion: v1\n  stringData:\n    x: |\n      §\n  kind: Secret\n",
            "{\"kind\": \"Secret\", \"data\": {\"x\": \"§\"}}",
            "{\\\"data\\\":{\\\"x\\\":\\\"§\\\"},\\\"kind\\\":\\\"Secret\\\"}",
            "-----BEGIN RSA PRIVATE KEY-----\n§\n-----END RSA PRIVATE KEY-----",
            "-----BEGIN OPENSSH PRIVATE KEY-----\n§",
        ] {
            texts.push((text.replace("§", S), S));
        }
        texts
    }

    #[test]
    fn planted_secrets_are_gone_and_stay_gone() {
        let redactor = redactor();
        let mut failed = Vec::new();
        for (text, secret) in planted() {
            assert!(text.contains(secret), "the corpus itself: {text}");
            let once = redactor.text(&text);
            if once.contains(secret) || !once.contains(MARK) {
                failed.push(format!("{text} -> {once}"));
            }
            assert_eq!(redactor.text(&once), once, "twice");
        }
        assert!(failed.is_empty(), "{}", failed.join("\n"));
    }

    #[test]
    fn what_an_investigation_needs_stays() {
        let redactor = redactor();
        for text in [
            "web-7d4b9c6f5-x2x8z   0/1   CrashLoopBackOff   12 (3m ago)   40m",
            "automountServiceAccountToken: true",
            "secretName: web-tls",
            "      DB_PASSWORD:  <set to the key 'password' in secret 'db'>  Optional: false",
            "- name: DB_PASSWORD\n  valueFrom:\n    secretKeyRef:\n      key: password\n      name: db",
            "tokenExpirationSeconds: 3607",
            "image: registry.example.com:5000/app@sha256:0123456789abcdef",
            "node_filesystem_avail_bytes{instance=\"10.0.0.1:9100\"} 12",
            "Last State: Terminated, Reason: OOMKilled, Exit Code: 137",
            "http://prometheus:9090/api/v1/query?query=up",
            "the bearer authentication failed",
        ] {
            assert_eq!(redactor.text(text), text);
        }
    }

    #[test]
    fn values_are_redacted_by_name_too() {
        let redactor = redactor();
        let redacted = redactor.value(&json!({
            "password": "hunter2", "pod": "web", "n": 1,
            "nested": [{"kind": "Secret", "data": {"a": "aHVudGVyMg=="}}, "token=hunter2"],
        }));
        assert_eq!(redactor.value(&redacted), redacted);
        assert_eq!(
            untagged(&redacted.to_string()),
            json!({
                "password": "[REDACTED:value]", "pod": "web", "n": 1,
                "nested": [{"kind": "Secret", "data": {"a": "[REDACTED:secret-data]"}}, "token=[REDACTED:value]"],
            })
            .to_string()
        );
    }

    #[test]
    fn other_parts_of_a_secret_object_stay() {
        let text = "apiVersion: v1\ndata:\n  a: aHVudGVyMg==\n\n  b: |\n    more\nkind: Secret\nmetadata:\n  name: db\n";
        assert_eq!(
            untagged(&redactor().text(text)),
            "apiVersion: v1\ndata:\n  a: [REDACTED:secret-data]\n\n  b: [REDACTED:secret-data]\n    \
             [REDACTED:secret-data]\nkind: Secret\nmetadata:\n  name: db\n"
        );
    }

    #[test]
    fn a_tag_tells_whether_two_are_the_same_and_nothing_else() {
        let text = "DB_PASSWORD=hunter2xyzzy\nOLD_PASSWORD=correcthorse\nPGPASSWORD=hunter2xyzzy";
        let tags = |redactor: &Redactor| -> Vec<String> {
            let redacted = redactor.text(text);
            redacted
                .lines()
                .filter_map(|line| Some(line.split_once('=')?.1.to_owned()))
                .collect()
        };
        let first = tags(&redactor());
        assert!(first[0] == first[2] && first[0] != first[1], "{first:?}");
        // A replica with the same keys agrees; another deployment does not, so nobody can look a secret up.
        assert_eq!(first, tags(&redactor()));
        assert_ne!(
            first,
            tags(&Redactor::new(&[], [&Secret::new("another-key")]).unwrap())
        );
        let by_chance = || tags(&Redactor::new(&[], []).unwrap());
        assert_ne!(by_chance(), by_chance());
    }

    #[test]
    fn one_redacted_part_hides_no_other() {
        let redactor = redactor();
        for text in [
            "{\"kind\":\"Secret\",\"stringData\":{\"a\":\"own-operator-key\",\"db\":\"hunter2xyzzy\"}}",
            "{\\\"data\\\":{\\\"a\\\":\\\"[REDACTED:\\\",\\\"x\\\":\\\"hunter2xyzzy\\\"},\\\"kind\\\":\\\"Secret\\\"}",
            "apiVersion: v1\ndata:\n  x: \"[REDACTED:own-key#ab12]:hunter2xyzzy\"\nkind: Secret\n",
            "password=\"own-operator-key:hunter2xyzzy\"",
            "postgres://own-operator-key:hunter2xyzzy@db/x",
            "postgres://[REDACTED:own-key#ab12]:hunter2xyzzy@db/x",
        ] {
            let once = redactor.text(text);
            assert!(!once.contains("hunter2xyzzy"), "{text} -> {once}");
            assert_eq!(redactor.text(&once), once, "{text}");
        }
        let data = json!({"kind": "Secret", "data": {"a": "[REDACTED:own-key#ab12]:hunter2xyzzy"}});
        let once = redactor.value(&data);
        assert!(!once.to_string().contains("hunter2xyzzy"), "{once}");
        assert_eq!(redactor.value(&once), once);
    }
}
