//! kubectl, reading only; `argv.rs` decides what may run.
//!
//! Invariants: there is no shell; the process sees none of our environment but what leads it to the cluster; its
//! home is private, so that no `kuberc` or plugin of the machine is read; it dies with its call. Where it runs as an
//! account of its own, that account's token is the only one it is led to.

pub mod argv;

use std::{
    fs::{DirBuilder, OpenOptions},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::Command,
};

use super::{Surroundings, Tool, ToolError, cut::HeadTail};
use crate::kubernetes::{Investigator, Pass};

/// Times the shown size that is read of an output, so that redaction sees whole objects before they are cut.
const READ_FACTOR: usize = 16;
/// Bytes of what kubectl says on its second output.
const STDERR_BYTES_MAX: usize = 4096;
/// What kubectl says where the server knows the token no more.
const UNAUTHORIZED: &str = "You must be logged in to the server";

struct Kubectl {
    bin: String,
    kubeconfig: Option<PathBuf>,
    namespaces: Vec<String>,
    namespace: String,
    output_bytes_max: usize,
    request_timeout: String,
    env: Vec<(String, String)>,
    home: PrivateHome,
    investigator: Option<Arc<Investigator>>,
}

/// Makes the tool.
///
/// # Errors
/// When its private directory cannot be made.
pub fn make(surroundings: &Surroundings<'_>) -> Result<Box<dyn Tool>, String> {
    // PATH for credential plugins of a kubeconfig; the rest is how a pod finds its API server.
    let has_account = surroundings.investigator.is_some();
    let leads_to_cluster = |name: &str| match name {
        "PATH" | "NO_PROXY" => true,
        // With an account of its own, nothing may lead it to ours.
        "KUBERNETES_SERVICE_HOST" | "KUBERNETES_SERVICE_PORT" => !has_account,
        _ => false,
    };
    let tools = surroundings.tools;
    Ok(Box::new(Kubectl {
        bin: tools.kubectl_bin.clone(),
        kubeconfig: tools.kubeconfig.clone(),
        namespaces: tools.kubectl_namespaces.clone(),
        namespace: surroundings.namespace.to_owned(),
        output_bytes_max: surroundings.output_bytes_max,
        request_timeout: format!("{}ms", surroundings.timeout_ms),
        env: service::config::process_env()
            .filter(|(name, _)| leads_to_cluster(name))
            .collect(),
        home: PrivateHome::new().map_err(|error| format!("its home directory cannot be made: {error}"))?,
        investigator: surroundings.investigator.cloned(),
    }))
}

impl Tool for Kubectl {
    fn description(&self) -> String {
        let mut text = format!(
            "Reads the Kubernetes cluster: runs kubectl with these words, without a shell. Verbs: get, describe, logs, \
             top, events, explain, api-resources, version, rollout history, rollout status, auth can-i. Nothing can be \
             changed, watched or followed; Secrets are never shown. Logs show the last 1000 lines unless --tail, --since \
             or --limit-bytes say otherwise. Where no namespace is named, it is {}.",
            if self.namespace.is_empty() {
                "the default one"
            } else {
                &self.namespace
            }
        );
        if !self.namespaces.is_empty() {
            text.push_str(&format!(
                " Namespaces that may be read: {}.",
                self.namespaces.join(", ")
            ));
        }
        text
    }

    fn schema(&self) -> Value {
        json!({
            "type": "object",
            "required": ["args"],
            "additionalProperties": false,
            "properties": {
                "args": {
                    "type": "array",
                    "description": "The words after `kubectl`, each an item: [\"get\", \"pods\", \"-n\", \"web\"]",
                    "minItems": 1,
                    "maxItems": 60,
                    "items": {"type": "string", "maxLength": 4000},
                },
            },
        })
    }

    fn check(&self, arguments: &Value) -> Result<(), ToolError> {
        self.allowed(arguments).map(|_| ())
    }

    fn call<'a>(&'a self, arguments: &'a Value) -> BoxFuture<'a, Result<String, ToolError>> {
        Box::pin(async {
            let argv = self.allowed(arguments)?;
            let given = match &self.investigator {
                Some(investigator) => self.run_as(investigator, &argv).await,
                None => self.run(&argv, self.kubeconfig.as_deref()).await,
            };
            given.map_err(ToolError::Failed)
        })
    }
}

impl Kubectl {
    /// The words to run, where all of them may be.
    fn allowed(&self, arguments: &Value) -> Result<Vec<String>, ToolError> {
        let args: Vec<String> = arguments["args"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|arg| arg.as_str().map(str::to_owned))
            .collect();
        let policy = argv::Policy {
            namespaces: &self.namespaces,
            namespace: &self.namespace,
        };
        argv::allowed(&args, &policy).map_err(ToolError::Refused)
    }

    async fn run_as(&self, investigator: &Investigator, argv: &[String]) -> Result<String, String> {
        let first = self.run_with(investigator.pass().await?, argv).await;
        match first {
            // Its account was made anew, for example; what only reads can be tried again.
            (number, Err(said)) if said.contains(UNAUTHORIZED) => {
                investigator.forget(number).await;
                self.run_with(investigator.pass().await?, argv).await.1
            }
            (_, given) => given,
        }
    }

    async fn run_with(&self, pass: Pass, argv: &[String]) -> (u64, Result<String, String>) {
        let given = match self.home.keep(&pass) {
            Ok(kubeconfig) => self.run(argv, Some(&kubeconfig.0)).await,
            Err(error) => Err(format!(
                "the kubeconfig of its account cannot be written: {error}"
            )),
        };
        (pass.number, given)
    }

    async fn run(&self, argv: &[String], kubeconfig: Option<&Path>) -> Result<String, String> {
        let mut command = Command::new(&self.bin);
        command
            .args(argv)
            .arg(format!("--request-timeout={}", self.request_timeout))
            .env_clear()
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .env("HOME", self.home.path())
            .current_dir(self.home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some(kubeconfig) = kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        let mut child = command.spawn().map_err(|error| {
            format!(
                "`{}` cannot be started: {error}; the operator must install kubectl (tools.kubectl_bin)",
                self.bin
            )
        })?;
        let stdout = collect(
            child.stdout.take(),
            self.output_bytes_max.saturating_mul(READ_FACTOR),
        );
        let stderr = collect(child.stderr.take(), STDERR_BYTES_MAX);
        let (stdout, stderr, status) = tokio::join!(stdout, stderr, child.wait());
        let status = status.map_err(|error| format!("kubectl could not be waited for: {error}"))?;
        let stderr = stderr.trim();
        if status.success() {
            return Ok(match stderr.is_empty() {
                true => stdout,
                false => format!("{stdout}\n[kubectl also said]\n{stderr}"),
            });
        }
        let code = status
            .code()
            .map_or_else(|| "a signal".to_owned(), |code| format!("exit code {code}"));
        Err(format!("kubectl ended with {code}: {stderr}\n{stdout}")
            .trim_end()
            .to_owned())
    }
}

async fn collect(stream: Option<impl AsyncRead + Unpin>, bytes_max: usize) -> String {
    let mut kept = HeadTail::new(bytes_max);
    let mut buffer = vec![0; 16 * 1024];
    if let Some(mut stream) = stream {
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            kept.push(&buffer[..count]);
        }
    }
    kept.finish()
}

/// A directory that only we may enter, gone with the tool.
struct PrivateHome(PathBuf);

/// A file of one call, gone with it.
struct PrivateFile(PathBuf);

impl Drop for PrivateFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "kubectl's kubeconfig could not be removed");
        }
    }
}

impl PrivateHome {
    fn new() -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("fist-kubectl-{}", uuid::Uuid::now_v7().simple()));
        // Fails where somebody was there first, so nothing can have been planted in it.
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }

    /// Writes down where the account's token leads.
    fn keep(&self, pass: &Pass) -> std::io::Result<PrivateFile> {
        let text = pass.endpoint.kubeconfig(pass.token.expose())?;
        let path = self
            .0
            .join(format!("kubeconfig-{}", uuid::Uuid::now_v7().simple()));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        let kept = PrivateFile(path);
        file.write_all(text.as_bytes())?;
        Ok(kept)
    }
}

impl Drop for PrivateHome {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "kubectl's private directory could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::Map;

    use super::*;
    use crate::redact::Redactor;

    /// A stand-in for kubectl that prints how it was called.
    fn tool(dir: &Path, script: &str) -> Box<dyn Tool> {
        let bin = dir.join("kubectl");
        bus::testing::write_program(&bin, &format!("#!/bin/sh\n{script}\n"));
        let mut config = service::Config::default().tools;
        config.kubectl_bin = bin.display().to_string();
        config.kubeconfig = Some("/kubeconfig".into());
        make(&Surroundings {
            tools: &config,
            output_bytes_max: 100,
            timeout_ms: 5000,
            env: &Map::new(),
            namespace: "prod",
            investigator: None,
            earlier: None,
            redactor: &Redactor::new(&[], []).unwrap(),
        })
        .unwrap()
    }

    #[tokio::test]
    async fn the_process_gets_the_words_and_nothing_of_ours() {
        let dir = tempfile::tempdir().unwrap();
        let tool = tool(
            dir.path(),
            r#"printf '<%s>' "$@"; echo; echo "home=$(ls -A "$HOME" | wc -l | tr -d ' ')"; env | cut -d= -f1 | sort | tr '\n' ' '"#,
        );
        let given = tool
            .call(&json!({"args": ["get", "pods", "-l", "a=$(id)"]}))
            .await
            .unwrap();
        let mut lines = given.lines();
        assert_eq!(
            lines.next(),
            Some("<get><pods><--selector=a=$(id)><--namespace=prod><--request-timeout=5000ms>")
        );
        assert_eq!(lines.next(), Some("home=0"));
        let names: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
        let known = ["HOME", "KUBECONFIG", "PATH", "PWD", "OLDPWD", "SHLVL", "_"];
        assert!(names.iter().all(|name| known.contains(name)), "{names:?}");
    }

    #[tokio::test]
    async fn failure_and_flood_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let failing = tool(
            dir.path(),
            "echo 'Error from server (NotFound): no such pod' >&2; exit 1",
        );
        assert_eq!(
            failing.call(&json!({"args": ["get", "pod", "x"]})).await,
            Err(ToolError::Failed(
                "kubectl ended with exit code 1: Error from server (NotFound): no such pod".into()
            ))
        );
        let flooding = tool(dir.path(), "yes 0123456789 | head -c 1000000");
        let given = flooding.call(&json!({"args": ["get", "pods"]})).await.unwrap();
        assert!(
            given.len() < 2000 && given.contains("bytes left out here"),
            "{}",
            given.len()
        );
        let refused = flooding.call(&json!({"args": ["delete", "pod", "x"]})).await;
        assert!(matches!(refused, Err(ToolError::Refused(_))), "{refused:?}");
    }
}
