//! `[cli]`: steps that run a command.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::reader::Section;

/// Steps of type cli. `config.default.toml` says what each key means.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "config.default.toml documents each key")]
pub struct Cli {
    pub concurrency: usize,
    pub executor: Executor,
    pub default_image: String,
    pub work_dir: Option<PathBuf>,
    pub path: String,
    pub kubeconfig: Option<PathBuf>,
    pub output_inline_bytes_max: usize,
    pub output_spill_bytes_max: usize,
    pub kill_grace_ms: u64,
    pub pod_namespace: Option<String>,
    pub pod_service_account: String,
    pub pod_fix_service_account: String,
    pub pod_start_timeout_ms: u64,
    pub pod_image_pull_policy: String,
    pub pod_requests: BTreeMap<String, String>,
    pub pod_limits: BTreeMap<String, String>,
}

/// Where commands run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Executor {
    /// Process groups of this machine.
    Local,
    /// A pod for each task.
    Kubernetes,
}

/// When an image is pulled.
const PULL_POLICIES: [&str; 4] = ["IfNotPresent", "Always", "Never", "default"];

impl Cli {
    pub(super) fn read(section: &mut Section<'_>) -> Self {
        let executors = [("local", Executor::Local), ("kubernetes", Executor::Kubernetes)];
        let cli = Self {
            concurrency: section.count("concurrency", 1..=1024),
            executor: section.one_of("executor", &executors),
            default_image: section.text("default_image"),
            work_dir: section.path("work_dir"),
            path: section.text("path"),
            kubeconfig: section.path("kubeconfig"),
            output_inline_bytes_max: section.count("output_inline_bytes_max", 1024..=256 * 1024),
            output_spill_bytes_max: section.count("output_spill_bytes_max", 1024..=1024 * 1024 * 1024),
            kill_grace_ms: section.number("kill_grace_ms", 0..=300_000),
            pod_namespace: section.optional("pod_namespace"),
            pod_service_account: section.text("pod_service_account"),
            pod_fix_service_account: section.text("pod_fix_service_account"),
            pod_start_timeout_ms: section.number("pod_start_timeout_ms", 1000..=86_400_000),
            pod_image_pull_policy: section
                .one_of(
                    "pod_image_pull_policy",
                    &PULL_POLICIES.map(|policy| (policy, policy)),
                )
                .to_owned(),
            pod_requests: section.table("pod_requests"),
            pod_limits: section.table("pod_limits"),
        };
        if cli.output_spill_bytes_max < cli.output_inline_bytes_max {
            section.problem(
                "output_spill_bytes_max",
                "must not be less than cli.output_inline_bytes_max",
            );
        }
        cli
    }
}
