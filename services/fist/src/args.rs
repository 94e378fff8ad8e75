//! The command line as it is typed.
//!
//! Invariant: what is said here is said in `docs/cli.md` too; a test compares the two.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

const AFTER_HELP: &str = "\
To begin: `fist up` in one terminal; in another `fist apply -f FILE`, `fist run NAME`, `fist get executions`.
`fist COMMAND --help` has examples.

Exit codes: 0 done (an execution that was followed succeeded), 1 failed or cancelled, 2 misuse or an invalid
manifest, 3 no server, 130 detached by Ctrl-C.

FIST_TOKEN holds the bearer token of a server that asks for one; --token-file names a file that does.";

/// Over the options that every command has.
const OF_ALL: &str = "Which server";

/// Turns an alert into an investigation and, where that is safe, a fix.
#[derive(Debug, Parser)]
#[command(name = "fist", version, after_help = AFTER_HELP, max_term_width = 110)]
pub struct Args {
    #[command(flatten)]
    pub server: Server,
    #[command(subcommand)]
    pub command: Command,
}

/// Which server to ask, and as whom.
#[derive(Clone, Debug, clap::Args)]
pub struct Server {
    /// The server to ask
    #[arg(
        long = "server",
        global = true,
        env = "FIST_SERVER",
        default_value = crate::client::DEFAULT_SERVER,
        value_name = "URL",
        help_heading = OF_ALL
    )]
    pub url: String,
    /// File with the server's bearer token [or FIST_TOKEN with the token itself]
    #[arg(long, global = true, env = "FIST_TOKEN_FILE", value_name = "FILE", help_heading = OF_ALL)]
    pub token_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run everything on this machine: all services, a NATS server, a SQLite database
    Up(Up),
    /// Store workflows; what is no definition is executed once
    Apply(Apply),
    /// Execute a workflow, and follow it to its end
    Run(Run),
    /// List or show executions, workflows, alerts or dead letters
    Get(Get),
    /// Follow an execution to its end
    Watch(Watch),
    /// Print what an execution's finished steps printed; with -f also what running ones print
    Logs(Logs),
    /// Print the report on an execution as Markdown
    Report(Report),
    /// Deliver alerts again that could not be processed
    Replay(Replay),
    /// Remove dead letters for good
    Purge(Purge),
    /// Cancel an execution
    Cancel(Cancel),
    /// Send alerts
    #[command(subcommand)]
    Alert(Alert),
    /// Say what is wrong with workflows, without a server
    Validate(Validate),
    /// Evaluate investigations: play recorded cases to a model, and score what it finds
    Eval(Eval),
    /// Delete a workflow
    Delete(Delete),
    /// Check the server and this machine, and say what to do about what is not well
    Doctor(Doctor),
    /// Print the Kubernetes definition of workflows: `fist crd | kubectl apply --server-side -f -`
    Crd,
    /// Ask one service whether it can work just now, as a health check does
    Health(Health),
    /// Set up NATS
    #[command(subcommand)]
    Nats(Nats),
    /// Repair the database, or check it
    #[command(subcommand)]
    Store(Store),
}

#[derive(Debug, clap::Args)]
#[command(after_help = r"Examples:
  fist up                                       all of it, kept in ~/.local/share/punching-fist
  fist up --dir /tmp/fist --http 127.0.0.1:0    a second one, on a free port
  fist up --nats nats://nats:4222 --database postgres://fist@db/fist
  fist up --executor kubernetes                 commands run as pods of kubectl's current context")]
pub struct Up {
    /// Where everything is kept [default: $XDG_DATA_HOME/punching-fist, else ~/.local/share/punching-fist]
    #[arg(long, env = "FIST_DIR", value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Address and port to listen at; port 0 takes a free one, which is printed and written to DIR/http
    /// [default: http.listen of the configuration, 127.0.0.1:8080]
    #[arg(long, value_name = "HOST:PORT")]
    pub http: Option<String>,
    /// Use this NATS server instead of one of its own
    #[arg(long, value_name = "URL")]
    pub nats: Option<String>,
    /// The database, sqlite://FILE or postgres://USER:PASSWORD@HOST/DATABASE [default: DIR/fist.db]
    #[arg(long, value_name = "URL")]
    pub database: Option<String>,
    /// Where the commands of cli steps run [default: cli.executor of the configuration, local]
    #[arg(long, value_enum)]
    pub executor: Option<Executor>,
    /// Kubeconfig of the cluster [default: kubernetes.kubeconfig of the configuration, else as kubectl has it:
    /// $KUBECONFIG, ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Also run the Workflow objects of the cluster, as ingest.watch_workflows of the configuration does
    #[arg(long)]
    pub watch_workflows: bool,
    /// Configuration file; docs/configuration.md lists its keys
    #[arg(long, env = "FIST_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Executor {
    /// Process groups of this machine
    Local,
    /// A pod for each command
    Kubernetes,
}

#[derive(Debug, clap::Args)]
#[command(after_help = r"Examples:
  fist apply -f disk.yaml
  fist apply -n team-a -f disk.yaml -f pods.yaml
  kubectl get workflow disk -o yaml | fist apply -f -")]
pub struct Apply {
    /// YAML or JSON, several documents at will; `-` reads stdin
    #[arg(short = 'f', long = "filename", required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Namespace of workflows that name none
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Print the server's answers, one a line, or only the names
    #[arg(short, long, value_enum)]
    pub output: Option<Output>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = r#"Examples:
  fist run pod-crash --data pod=web-1 --data namespace=prod --alert severity=critical
  fist run pod-crash --data-json '{"pod": "web-1", "replicas": 3}' --logs
  fist run -f disk.yaml --data mountpoint=/tmp -o json
  fist watch $(fist run pod-crash --data pod=web-1 --detach)"#)]
pub struct Run {
    /// The workflow to invoke, by name
    #[arg(conflicts_with = "file")]
    pub name: Option<String>,
    /// Execute this manifest once instead; `-` reads stdin
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// A value of source.data, as text; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub data: Vec<String>,
    /// source.data as a JSON object; --data goes over it
    #[arg(long, value_name = "JSON")]
    pub data_json: Option<String>,
    /// A part of the alert: name, severity, status, fingerprint, starts_at, labels.KEY, annotations.KEY; may
    /// be repeated
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub alert: Vec<String>,
    /// The workflow's namespace [default: default, or what the manifest says]
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Print the execution's id and do not follow it
    #[arg(long, visible_alias = "no-follow")]
    pub detach: bool,
    /// Also show what commands print, while they run
    #[arg(long, conflicts_with = "detach")]
    pub logs: bool,
    /// Print the execution as the server answers it (at its end; with --detach, the submission)
    #[arg(short, long, value_enum)]
    pub output: Option<Output>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = r"Examples:
  fist get executions --status failed
  fist get execution 0190f5b4                  one, with its steps; the id's beginning is enough
  fist get execution 0190f5b4 --transcript     what its agents were asked, answered and got
  fist get workflow disk -o yaml
  fist get alerts --disposition filtered -o wide
  fist get alerts --audit                      whether anything was lost
  fist get budget -n prod                      what agents have used of today's tokens")]
pub struct Get {
    /// executions (exec, ex), workflows (wf), alerts (al), deadletters (dl, dlq) or budgets (bu); also KIND/ID
    #[arg(value_name = "KIND")]
    pub kind: String,
    /// Only this one; an execution's id may be shortened, a workflow goes by its name
    #[arg(value_name = "ID")]
    pub id: Option<String>,
    #[command(flatten)]
    pub scope: Scope,
    /// Only executions in this state: pending, running, succeeded, failed, cancelled
    #[arg(long)]
    pub status: Option<String>,
    /// Only executions of this workflow
    #[arg(long)]
    pub workflow: Option<String>,
    /// Only alerts that became this: started, merged, filtered, resolved, rejected
    #[arg(long)]
    pub disposition: Option<String>,
    /// Only alerts from this source
    #[arg(long)]
    pub source: Option<String>,
    /// Of alerts, the balance: whether every one that was received has its disposition
    #[arg(long, conflicts_with = "id")]
    pub audit: bool,
    /// Of one execution, what its agents were asked, what models answered and what tools gave
    #[arg(long, conflicts_with = "audit")]
    pub transcript: bool,
    /// With --transcript, only of this step
    #[arg(long, requires = "transcript")]
    pub step: Option<String>,
    /// At most so many, newest first [default: 50]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub limit: Option<u32>,
    /// Go on where the former page ended
    #[arg(long)]
    pub cursor: Option<String>,
    /// Format; json is exactly what the server answers
    #[arg(short, long, value_enum)]
    pub output: Option<Output>,
}

/// Which namespaces.
#[derive(Clone, Debug, clap::Args)]
pub struct Scope {
    /// Of this namespace [default: default]
    #[arg(short, long, conflicts_with = "all_namespaces")]
    pub namespace: Option<String>,
    /// Of all namespaces
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Json,
    Yaml,
    Wide,
    Name,
}

#[derive(Debug, clap::Args)]
#[command(after_help = r"Examples:
  fist watch 0190f5b4 --logs")]
pub struct Watch {
    /// The execution; its id may be shortened
    pub id: String,
    /// Also show what commands print, while they run
    #[arg(long)]
    pub logs: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = r"Examples:
  fist logs 0190f5b4                           what finished steps printed
  fist logs 0190f5b4 --step usage -f           also while it is printed")]
pub struct Logs {
    /// The execution; its id may be shortened
    pub id: String,
    /// Go on until the execution ends
    #[arg(short, long)]
    pub follow: bool,
    /// Only of this step
    #[arg(long)]
    pub step: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = r"Examples:
  fist get deadletters
  fist replay 7 8")]
pub struct Replay {
    /// The dead letters, as `fist get deadletters` lists them
    #[arg(required = true, value_name = "ID", num_args = 1..=500)]
    pub ids: Vec<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = r"Examples:
  fist get deadletters
  fist purge 7 8
  fist purge --before 30d
  fist purge --all")]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(false))]
pub struct Purge {
    /// The dead letters, as `fist get deadletters` lists them
    #[arg(value_name = "ID", num_args = 1..=500, group = "which")]
    pub ids: Vec<String>,
    /// All that are there now
    #[arg(long, group = "which")]
    pub all: bool,
    /// All that were set aside before: so many days (30d), hours (12h) or minutes (5m) ago, or at a time in RFC 3339
    #[arg(long, value_name = "AGE|TIME", group = "which")]
    pub before: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = r"Examples:
  fist report 0190f5b4 >incident.md")]
pub struct Report {
    /// The execution; its id may be shortened
    pub id: String,
}

#[derive(Debug, clap::Args)]
#[command(after_help = r#"Examples:
  fist cancel 0190f5b4 --reason "looked into by hand""#)]
pub struct Cancel {
    /// The execution; its id may be shortened
    pub id: String,
    /// Why, for the record
    #[arg(long)]
    pub reason: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Alert {
    /// Send a payload as it stands, or an alert made of the given parts
    Send(AlertSend),
}

#[derive(Debug, clap::Args)]
#[command(after_help = r"Examples:
  fist alert send --name DiskFilling --severity critical --label mountpoint=/tmp --follow
  fist alert send --name DiskFilling --label mountpoint=/tmp --resolved
  fist alert send --source webhook -f payload.json --wait")]
pub struct AlertSend {
    /// The payload, as the source would post it; `-` reads stdin
    #[arg(
        short = 'f',
        long = "filename",
        value_name = "FILE",
        conflicts_with_all = ["name", "severity", "label", "annotation", "fingerprint", "starts_at", "resolved"]
    )]
    pub file: Option<PathBuf>,
    /// The source to send it as
    #[arg(long, default_value = "alertmanager")]
    pub source: String,
    /// The alert's name
    #[arg(long)]
    pub name: Option<String>,
    /// Its severity
    #[arg(long)]
    pub severity: Option<String>,
    /// A label; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// An annotation; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub annotation: Vec<String>,
    /// Its identity [default: a hash of the labels]
    #[arg(long)]
    pub fingerprint: Option<String>,
    /// When it began, as in 2026-01-31T12:00:00Z [default: now]
    #[arg(long, value_name = "TIME")]
    pub starts_at: Option<String>,
    /// That it is over
    #[arg(long)]
    pub resolved: bool,
    /// Wait until it is recorded, and print what became of it
    #[arg(long)]
    pub wait: bool,
    /// Follow the execution that it starts
    #[arg(long)]
    pub follow: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = r"Examples:
  fist validate -f disk.yaml -f pods.yaml
  fist validate -f - < disk.yaml")]
pub struct Validate {
    /// YAML or JSON, several documents at will; `-` reads stdin
    #[arg(short = 'f', long = "filename", required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Configuration file whose sources and model aliases hold
    #[arg(long, env = "FIST_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = r"Examples:
  fist eval examples/eval --provider scripted            the examples, played by their scripts
  fist eval examples/eval --provider anthropic --model claude-haiku-4-5
  fist eval cases/oom.yaml --provider openai --model qwen3 --endpoint http://127.0.0.1:11434/v1
  fist eval cases --format junit --output report.xml
  fist eval record 0190f5b4 --output cases/oom.yaml      a case from a real execution"
)]
pub struct Eval {
    #[command(subcommand)]
    pub command: Option<EvalCommand>,
    /// Cases: files, or directories whose .yaml, .yml and .json files are cases
    #[arg(required = true, value_name = "DIR|FILE")]
    pub paths: Vec<PathBuf>,
    /// anthropic, openai or scripted [default: llm.default_provider, else the one whose key is there]
    #[arg(long, value_name = "NAME")]
    pub provider: Option<String>,
    /// The model; of scripted a file of llm.scripted_dir [default: the configuration's; of scripted, each case's own
    /// script]
    #[arg(long)]
    pub model: Option<String>,
    /// The model's address; the configuration's key is sent there
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// How the report is written
    #[arg(short = 'o', long, value_enum, default_value = "table")]
    pub format: ReportFormat,
    /// Write the report to this file instead of stdout
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Configuration file: limits, keys, the fix gate, what is redacted
    #[arg(long, env = "FIST_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// A line for each case, and what was not met
    Table,
    /// Everything, with each investigation's output
    Json,
    /// JUnit's XML, as CI systems read it
    Junit,
}

#[derive(Debug, Subcommand)]
pub enum EvalCommand {
    /// Make a case from a real execution
    Record(EvalRecord),
}

#[derive(Debug, clap::Args)]
#[command(after_help = r"Examples:
  fist eval record 0190f5b4 > cases/oom.yaml
  fist eval record 0190f5b4 --step explain -o cases/oom.yaml")]
pub struct EvalRecord {
    /// The execution; its id may be shortened
    pub id: String,
    /// The step of type agent; not needed where there is only one
    #[arg(long)]
    pub step: Option<String>,
    /// Write the case to this file instead of stdout
    #[arg(short = 'o', long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = r"Examples:
  fist delete workflow disk -n team-a")]
pub struct Delete {
    /// workflow (wf); also workflow/NAME
    #[arg(value_name = "KIND")]
    pub kind: String,
    /// Its name
    pub name: Option<String>,
    /// Its namespace
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
}

#[derive(Debug, clap::Args)]
#[command(after_help = r"Examples:
  fist doctor
  fist doctor --server http://fist.example:8080
  fist doctor --nats nats://nats:4222 --config fist.toml
  fist doctor --kubeconfig ~/.kube/config")]
pub struct Doctor {
    /// Configuration file of the server to be
    #[arg(long, env = "FIST_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The directory of a `fist up` on this machine, whose NATS server is then looked at too [default: as
    /// `fist up` has it]
    #[arg(long, env = "FIST_DIR", value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Also check this NATS server, beyond what the server says
    #[arg(long, value_name = "URL")]
    pub nats: Option<String>,
    /// Also check the cluster that this kubeconfig leads to [default: where the configuration means one, as
    /// kubernetes.kubeconfig says]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The namespace in the cluster that steps run in and accounts are of [default: the kubeconfig's]
    #[arg(short, long)]
    pub namespace: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = r"Examples:
  fist health --server http://127.0.0.1:9090   the service whose health.listen that is")]
pub struct Health {}

#[derive(Debug, Subcommand)]
pub enum Nats {
    /// Create or adjust all streams, consumers and buckets; running it again changes nothing
    Init(NatsInit),
    /// Print users with the least permissions for each service, for a nats-server to include
    Users,
}

#[derive(Debug, clap::Args)]
#[command(after_help = r"Examples:
  fist nats init --nats nats://nats:4222")]
pub struct NatsInit {
    /// The NATS server [default: nats.url of the configuration]
    #[arg(long, value_name = "URL")]
    pub nats: Option<String>,
    /// Configuration file, for credentials, replicas and sizes
    #[arg(long, env = "FIST_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Store {
    /// Build the records anew from the log, beside a running `fist up` or other services
    Rebuild(StoreRebuild),
    /// Compare the records with the log, row by row, and change nothing; exit code 1 where they differ
    Verify(StoreVerify),
}

#[derive(Debug, clap::Args)]
#[command(after_help = r"Examples:
  fist store verify
  fist store verify --nats nats://nats:4222 --database postgres://fist@db/fist")]
pub struct StoreVerify {
    #[command(flatten)]
    pub place: StorePlace,
}

#[derive(Debug, clap::Args)]
#[command(after_help = r"Examples:
  fist store rebuild
  fist store rebuild --nats nats://nats:4222 --database postgres://fist@db/fist")]
pub struct StoreRebuild {
    #[command(flatten)]
    pub place: StorePlace,
}

/// Which log and which database.
#[derive(Debug, clap::Args)]
pub struct StorePlace {
    /// The directory of the running `fist up` [default: as `fist up` has it]
    #[arg(long, env = "FIST_DIR", value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Use this NATS server, and not that of a `fist up`
    #[arg(long, value_name = "URL", conflicts_with = "dir")]
    pub nats: Option<String>,
    /// The database [default: that of the `fist up`, else of the configuration]
    #[arg(long, value_name = "URL")]
    pub database: Option<String>,
    /// Configuration file, for credentials
    #[arg(long, env = "FIST_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}
