//! Who may do what on NATS: one table, from which the users of a nats-server are rendered (`fist nats users`).
//!
//! Invariants:
//! - One user for each service, who may write only what the service owns: a runner cannot invent an execution, and
//!   whoever sends alerts can do nothing else.
//! - Nobody but the admin may create, change, purge or delete a stream or a durable consumer; ingest alone may delete
//!   single dead letters.
//! - Who follows a stream may not take what a durable consumer of another service is there for.
//! - Answers, and what a consumer delivers, come on inboxes of the user's own, which no other may listen at.
//!
//! To give a service a right, add it to its row here, and run `make generate`.

use protocol::subjects;

use crate::topology::{
    AGENT, BUDGETS_BUCKET, CLI, DURABLES, Durable, INGEST, SCHEDULER, STARTED_BUCKET, STORE_WRITER, TIMERS,
    TRIALS_BUCKET, WORKFLOW_STATUS, WORKFLOWS_BUCKET,
};

/// What every client's inbox begins with.
const INBOXES: &str = "_INBOX";

/// One user of a nats-server.
#[derive(Clone, Debug)]
pub struct User {
    /// Its name, which is that of its service.
    pub name: &'static str,
    /// Why it is there, in one line.
    pub doc: &'static str,
    /// The variable of the server's environment with its password.
    pub password_variable: &'static str,
    /// What it may do.
    pub rights: Vec<Right>,
}

/// One thing that a user may do.
#[derive(Clone, Debug)]
pub enum Right {
    /// Everything.
    Everything,
    /// Publish on these subjects.
    Publish(&'static str),
    /// Look at what streams and consumers there are, and how far they are; not at messages.
    Look,
    /// Read messages of a stream.
    Read(&'static str),
    /// Take messages of a durable consumer, acknowledge them, and set aside what cannot be processed; read its stream.
    Take(Durable),
    /// Read a stream, and follow it by consumers that go with their reader.
    Follow(&'static str),
    /// Read a KV bucket, and write to it.
    Keep(&'static str),
    /// Read the object store of large bodies.
    ReadBlobs,
    /// Answer questions on these subjects.
    Answer(&'static str),
    /// Read answers on inboxes as any client names them, though none of another user here.
    AnyInbox,
}

/// The stream of a KV bucket, and of the object store.
const WORKFLOWS_STREAM: &str = "KV_fist-workflows";
const BLOBS_STREAM: &str = "OBJ_fist-blobs";
const BUDGETS_STREAM: &str = "KV_fist-budgets";

/// The subject filter of everything in the object store of large bodies.
const ALL_BLOBS: &str = "$O.fist-blobs.>";

/// The table.
pub fn users() -> Vec<User> {
    use Right::{Answer, AnyInbox, Everything, Follow, Keep, Look, Publish, Read, ReadBlobs, Take};
    let user = |name, password_variable, doc, rights| User {
        name,
        doc,
        password_variable,
        rights,
    };
    vec![
        user(
            "admin",
            "FIST_NATS_ADMIN_PASSWORD",
            "`fist nats init`, `fist doctor`, and people.",
            vec![Everything],
        ),
        user(
            "ingest",
            "FIST_NATS_INGEST_PASSWORD",
            "Starts and cancels executions; answers by events, progress and definitions, which it follows.",
            vec![
                Publish("fist.fact.*.*.start"),
                Publish("fist.fact.*.*.cancel.*"),
                Publish("fist.alert.>"),
                Publish("fist.alerts.*"),
                Publish("fist.query.>"),
                // Dead letters that people look at and purge.
                Publish("$JS.API.STREAM.MSG.DELETE.FIST_DLQ"),
                Read("FIST_DLQ"),
                // What models took, as people ask for it.
                Read(BUDGETS_STREAM),
                Take(INGEST),
                // The status of Workflow objects.
                Take(WORKFLOW_STATUS),
                Keep(WORKFLOWS_BUCKET),
                Keep(STARTED_BUCKET),
                Keep(TRIALS_BUCKET),
                Publish(ALL_BLOBS),
                ReadBlobs,
                Look,
                Follow("FIST_LOG"),
                Follow("FIST_LIVE"),
                Follow(WORKFLOWS_STREAM),
            ],
        ),
        user(
            "scheduler",
            "FIST_NATS_SCHEDULER_PASSWORD",
            "The only one that may arm timers: a schedule can name any subject.",
            vec![
                Publish("fist.cmd.>"),
                Publish("fist.fact.*.*.timer.*"),
                Publish("fist.fact.*.*.dead.*"),
                Publish("fist.timer.set.>"),
                Take(SCHEDULER),
                Take(TIMERS),
                Keep(TRIALS_BUCKET),
                Publish(ALL_BLOBS),
                ReadBlobs,
                Look,
            ],
        ),
        user(
            "cli-runner",
            "FIST_NATS_CLI_PASSWORD",
            "Says how its own tasks went; follows the log for cancellations.",
            vec![
                Publish("fist.fact.*.*.*.*.begun"),
                Publish("fist.fact.*.*.*.*.done"),
                Publish("fist.live.>"),
                Take(CLI),
                Keep(TRIALS_BUCKET),
                Publish(ALL_BLOBS),
                ReadBlobs,
                Look,
                Follow("FIST_LOG"),
            ],
        ),
        user(
            "agent-runner",
            "FIST_NATS_AGENT_PASSWORD",
            "As cli-runner, and the only one that writes transcripts and counts what models took.",
            vec![
                Publish("fist.fact.*.*.*.*.begun"),
                Publish("fist.fact.*.*.*.*.done"),
                Publish("fist.turn.>"),
                Publish("fist.live.>"),
                Take(AGENT),
                Keep(TRIALS_BUCKET),
                Keep(BUDGETS_BUCKET),
                Publish(ALL_BLOBS),
                ReadBlobs,
                Look,
                Follow("FIST_LOG"),
            ],
        ),
        user(
            "store-writer",
            "FIST_NATS_STORE_PASSWORD",
            "Reads the log, and answers questions about the record.",
            vec![
                Take(STORE_WRITER),
                Keep(TRIALS_BUCKET),
                // Answers that fit no message.
                Publish(ALL_BLOBS),
                ReadBlobs,
                Look,
                Answer("fist.query.>"),
            ],
        ),
        user(
            "source",
            "FIST_NATS_SOURCE_PASSWORD",
            "Whatever sends alerts straight to NATS, with any client.",
            vec![Publish("fist.alerts.*"), AnyInbox],
        ),
    ]
}

impl User {
    /// The subjects it may publish on, each once.
    pub fn publish(&self) -> Vec<String> {
        distinct(self.rights.iter().flat_map(Right::publish))
    }

    /// Of these, what it may not have after all: to take from a durable consumer of another service.
    pub fn publish_not(&self) -> Vec<String> {
        let is_followed = |stream: &str| {
            self.rights
                .iter()
                .any(|right| matches!(right, Right::Follow(followed) if *followed == stream))
        };
        let is_own = |durable: &Durable| {
            self.rights
                .iter()
                .any(|right| matches!(right, Right::Take(own) if own.name == durable.name))
        };
        DURABLES
            .iter()
            .filter(|durable| is_followed(durable.stream.name()) && !is_own(durable))
            .map(|durable| {
                format!(
                    "$JS.API.CONSUMER.MSG.NEXT.{}.{}",
                    durable.stream.name(),
                    durable.name
                )
            })
            .collect()
    }

    /// The subjects it may subscribe to, each once.
    pub fn subscribe(&self) -> Vec<String> {
        let own = (!self.has_any_inbox()).then(|| format!("{}.>", inbox_prefix(self.name)));
        distinct(
            own.into_iter()
                .chain(self.rights.iter().flat_map(Right::subscribe)),
        )
    }

    /// Of these, what it may not have after all.
    pub fn subscribe_not(&self) -> Vec<String> {
        if !self.rights.iter().any(|right| matches!(right, Right::AnyInbox)) {
            return Vec::new();
        }
        let others = users().into_iter().filter(|user| user.name != self.name);
        others
            .map(|user| format!("{}.>", inbox_prefix(user.name)))
            .collect()
    }

    fn has_any_inbox(&self) -> bool {
        let any = |right: &Right| matches!(right, Right::AnyInbox | Right::Everything);
        self.rights.iter().any(any)
    }

    fn answers(&self) -> bool {
        self.rights.iter().any(|right| matches!(right, Right::Answer(_)))
    }
}

impl Right {
    fn publish(&self) -> Vec<String> {
        match self {
            Self::Everything => vec![">".to_owned()],
            Self::Publish(subject) => vec![(*subject).to_owned()],
            Self::Look => ["$JS.API.INFO", "$JS.API.STREAM.INFO.*", "$JS.API.CONSUMER.INFO.>"]
                .map(str::to_owned)
                .to_vec(),
            Self::Read(stream) => reads(stream),
            Self::Take(durable) => {
                let (stream, name) = (durable.stream.name(), durable.name);
                let takes = vec![
                    format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}"),
                    format!("$JS.ACK.{stream}.{name}.>"),
                    subjects::ALL_DEAD.replace('>', name),
                ];
                [takes, reads(stream)].concat()
            }
            Self::Follow(stream) => {
                let follows = vec![
                    format!("$JS.API.CONSUMER.CREATE.{stream}"),
                    format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.*"),
                ];
                [follows, reads(stream)].concat()
            }
            Self::Keep(bucket) => [vec![format!("$KV.{bucket}.>")], reads(&format!("KV_{bucket}"))].concat(),
            Self::ReadBlobs => {
                let follows = vec![
                    format!("$JS.API.CONSUMER.CREATE.{BLOBS_STREAM}"),
                    format!("$JS.FC.{BLOBS_STREAM}.>"),
                ];
                [follows, reads(BLOBS_STREAM)].concat()
            }
            Self::Answer(_) | Self::AnyInbox => Vec::new(),
        }
    }

    fn subscribe(&self) -> Vec<String> {
        match self {
            Self::Everything => vec![">".to_owned()],
            Self::Answer(subject) => vec![(*subject).to_owned()],
            Self::AnyInbox => vec![format!("{INBOXES}.>")],
            _ => Vec::new(),
        }
    }
}

/// Reading single messages of a stream: of its leader, or of any replica.
fn reads(stream: &str) -> Vec<String> {
    vec![
        format!("$JS.API.STREAM.MSG.GET.{stream}"),
        format!("$JS.API.DIRECT.GET.{stream}"),
        format!("$JS.API.DIRECT.GET.{stream}.>"),
    ]
}

/// What the inboxes of a user begin with.
pub fn inbox_prefix(user: &str) -> String {
    format!("{INBOXES}.{user}")
}

fn distinct(subjects: impl Iterator<Item = String>) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for subject in subjects {
        if !all.contains(&subject) {
            all.push(subject);
        }
    }
    all
}

/// The table as a nats-server's configuration includes it.
pub fn rendered() -> String {
    let mut text = "\
# Who may do what: made of the table in shared/bus/src/permissions.rs; do not edit. `make generate` writes it.
#
# One user for each service, and each may write only what the service owns: a runner cannot invent an execution, and
# whoever publishes alerts can do nothing else. Nobody but the admin may create, change, purge or delete a stream or a
# durable consumer. Each user's answers come on inboxes of its own (`_INBOX.<user>.>`).
#
# Passwords come from the environment; plain letters and digits, or bcrypt hashes (`nats server passwd`).

authorization {
    users = [
"
    .to_owned();
    for user in users() {
        let list = |subjects: &[String], indent: &str| -> String {
            let lines = subjects
                .iter()
                .map(|subject| format!("\n{indent}    \"{subject}\""));
            format!("[{}\n{indent}]", lines.collect::<String>())
        };
        let (outer, inner) = (" ".repeat(16), " ".repeat(20));
        let but = |allowed: &[String], denied: &[String]| match denied {
            [] => list(allowed, &outer),
            denied => format!(
                "{{\n{inner}allow: {}\n{inner}deny: {}\n{outer}}}",
                list(allowed, &inner),
                list(denied, &inner)
            ),
        };
        let publish = but(&user.publish(), &user.publish_not());
        let subscribe = but(&user.subscribe(), &user.subscribe_not());
        let answers = match user.answers() {
            true => {
                "\n                # Answers to the questions it was asked.\n                allow_responses { max: 1, expires: \"1m\" }"
            }
            false => "",
        };
        text.push_str(&format!(
            "        {{
            # {}
            user: {}
            password: ${}
            permissions {{
                publish: {publish}
                subscribe: {subscribe}{answers}
            }}
        }}
",
            user.doc, user.name, user.password_variable,
        ));
    }
    text.push_str("    ]\n}\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{BLOBS_BUCKET, StreamId};

    #[test]
    fn the_file_in_the_repository_is_what_is_rendered() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/nats/users.conf");
        let file = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            file == rendered(),
            "deploy/nats/users.conf is out of date: run `make generate`"
        );
    }

    #[test]
    fn names_of_streams_are_those_of_the_topology() {
        assert_eq!(WORKFLOWS_STREAM, format!("KV_{WORKFLOWS_BUCKET}"));
        assert_eq!(BLOBS_STREAM, format!("OBJ_{BLOBS_BUCKET}"));
        assert_eq!(BUDGETS_STREAM, format!("KV_{BUDGETS_BUCKET}"));
        assert_eq!(ALL_BLOBS, format!("$O.{BLOBS_BUCKET}.>"));
        for user in users() {
            for right in &user.rights {
                if let Right::Follow(stream) | Right::Read(stream) = right {
                    let is_known = StreamId::ALL.iter().any(|id| id.name() == *stream);
                    assert!(
                        is_known || [WORKFLOWS_STREAM, BUDGETS_STREAM].contains(stream),
                        "{stream}"
                    );
                }
            }
        }
    }

    #[test]
    fn only_the_owner_writes_what_the_log_decides_by() {
        let who = |subject: &str| -> Vec<&str> {
            let may = |user: &User| user.publish().iter().any(|grant| grant == subject);
            users()
                .iter()
                .filter(|user| may(user))
                .map(|user| user.name)
                .collect()
        };
        assert_eq!(who("fist.cmd.>"), ["scheduler"]);
        assert_eq!(who("fist.timer.set.>"), ["scheduler"]);
        assert_eq!(who("fist.fact.*.*.start"), ["ingest"]);
        assert_eq!(who("fist.fact.*.*.*.*.done"), ["cli-runner", "agent-runner"]);
        assert_eq!(who("fist.alerts.*"), ["ingest", "source"]);
        assert_eq!(who("$JS.API.DIRECT.GET.FIST_ALERTS"), ["ingest"]);
        assert_eq!(who("$JS.API.DIRECT.GET.KV_fist-workflows.>"), ["ingest"]);
        assert_eq!(who("$JS.API.STREAM.MSG.GET.FIST_DLQ"), ["ingest"]);
        assert_eq!(who(">"), ["admin"]);
    }
}
