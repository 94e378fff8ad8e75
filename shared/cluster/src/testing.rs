//! A real cluster for tests: a namespace of the test's own in the cluster that `TEST_KUBECONFIG` names, kubectl
//! as people use it, and a door before the API server that can be shut.
//!
//! | variable | |
//! |---|---|
//! | `TEST_KUBECONFIG` | kubeconfig of a cluster in which the test may do everything; unset: the test is skipped, and with `CI` set it fails; `none`: it is skipped |
//! | `TEST_SHELL_IMAGE` | an image that its nodes have or can pull, with `/bin/sh` and kubectl |
//!
//! Invariant: the namespace and what else was made goes with the value, also when the test panics.

mod door;

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::Value;

pub use door::Door;

static OPENED: AtomicU32 = AtomicU32::new(0);

/// A namespace of a real cluster. Panics where it cannot do what is asked: it is for tests.
pub struct TestCluster {
    kubeconfig: PathBuf,
    namespace: String,
    directory: PathBuf,
    watches: Vec<Child>,
}

/// The kubeconfig of the cluster that tests may use; `None`, after one loud line, where there is none.
pub fn kubeconfig(test: &str) -> Option<PathBuf> {
    let named = std::env::var("TEST_KUBECONFIG").unwrap_or_default();
    if named.is_empty() || named == "none" {
        assert!(
            named == "none" || std::env::var_os("CI").is_none(),
            "TEST_KUBECONFIG names no cluster, and CI is set; say `none` to go on without one"
        );
        eprintln!("SKIPPED: {test}, because TEST_KUBECONFIG names no cluster");
        return None;
    }
    Some(named.into())
}

/// An image with a shell and kubectl that the nodes have.
pub fn shell_image() -> String {
    std::env::var("TEST_SHELL_IMAGE").unwrap_or_else(|_| "punching-fist.test/sh:latest".to_owned())
}

impl TestCluster {
    /// Makes a namespace that enforces the `restricted` standard; `None`, after one loud line, where no cluster
    /// is named.
    pub fn open(test: &str) -> Option<Self> {
        let kubeconfig = kubeconfig(test)?;
        let number = OPENED.fetch_add(1, Ordering::Relaxed);
        let namespace = format!("{test}-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(format!("fist-{namespace}"));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        let cluster = Self {
            kubeconfig,
            namespace,
            directory,
            watches: Vec::new(),
        };
        cluster.apply(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {}\n  labels:\n    pod-security.kubernetes.io/enforce: restricted\n",
            cluster.namespace
        ));
        Some(cluster)
    }

    /// The namespace's name, which no other test has.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A directory for the test's own files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// kubectl, in this namespace.
    pub fn command(&self) -> Command {
        let mut command = Command::new("kubectl");
        command
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(["--namespace", &self.namespace])
            .stdin(Stdio::null());
        command
    }

    /// What kubectl prints.
    ///
    /// # Errors
    /// What it says as it fails.
    pub fn try_kubectl(&self, words: &[&str]) -> Result<String, String> {
        said(self.command().args(words))
    }

    /// What kubectl prints.
    pub fn kubectl(&self, words: &[&str]) -> String {
        self.try_kubectl(words)
            .unwrap_or_else(|error| panic!("kubectl {words:?}: {error}"))
    }

    /// What kubectl says to `apply -f` of this text.
    ///
    /// # Errors
    /// What it says as it refuses.
    pub fn try_apply(&self, manifest: &str) -> Result<String, String> {
        let mut command = self.command();
        command.args(["apply", "-f", "-"]);
        fed(&mut command, manifest)
    }

    /// Applies a manifest.
    pub fn apply(&self, manifest: &str) {
        self.try_apply(manifest)
            .unwrap_or_else(|error| panic!("{error}\n{manifest}"));
    }

    /// Applies a file that other tests apply at the same time.
    pub fn apply_shared(&self, file: &Path) {
        self.kubectl(&[
            "apply",
            "--server-side",
            "--force-conflicts",
            "-f",
            &file.to_string_lossy(),
        ]);
    }

    /// Makes Workflows known to the API server, and waits until they are.
    pub fn define_workflows(&self) {
        let file = "../../deploy/crds/workflows.punching-fist.io.yaml";
        self.apply_shared(&Path::new(env!("CARGO_MANIFEST_DIR")).join(file));
        self.kubectl(&[
            "wait",
            "--for=condition=Established",
            "--timeout=30s",
            "crd/workflows.punching-fist.io",
        ]);
    }

    /// What `kubectl get` gives as JSON.
    pub fn get(&self, words: &[&str]) -> Value {
        let text = self.kubectl(&[&["get"], words, &["-o", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The items of such a list.
    pub fn list(&self, words: &[&str]) -> Vec<Value> {
        self.get(words)["items"].as_array().cloned().unwrap_or_default()
    }

    /// Has kubectl go on for as long as this value lives, and gives the file it writes to.
    pub fn watch(&mut self, name: &str, words: &[&str]) -> PathBuf {
        let path = self.directory.join(name);
        let file = fs::File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let child = self.command().args(words).stdout(file).spawn();
        self.watches
            .push(child.unwrap_or_else(|error| panic!("kubectl: {error}")));
        path
    }

    /// A kubeconfig with the token of a service account of this namespace, for a server that is reached at
    /// `address`.
    pub fn kubeconfig_of(&self, account: &str, address: &str) -> PathBuf {
        let token = self.kubectl(&["create", "token", account, "--duration=2h"]);
        let text = self.kubectl(&["config", "view", "--raw", "--minify", "--flatten", "-o", "json"]);
        let mut config: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let (host, _) = self.server();
        let cluster = &mut config["clusters"][0]["cluster"];
        cluster["tls-server-name"] = host.into();
        cluster["server"] = format!("https://{address}").into();
        config["users"][0]["user"] = serde_json::json!({ "token": token.trim() });
        config["contexts"][0]["context"]["namespace"] = self.namespace.as_str().into();
        let path = self
            .directory
            .join(format!("{account}-{}.kubeconfig", address.replace(':', "-")));
        fs::write(&path, config.to_string()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// Host and port of the API server.
    pub fn server(&self) -> (String, u16) {
        let server = "jsonpath={.clusters[0].cluster.server}";
        let url = self.kubectl(&["config", "view", "--minify", "-o", server]);
        let address = url.trim().trim_start_matches("https://").trim_end_matches('/');
        match address.rsplit_once(':') {
            Some((host, port)) => (
                host.to_owned(),
                port.parse().unwrap_or_else(|error| panic!("{url}: {error}")),
            ),
            None => (address.to_owned(), 443),
        }
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        for watch in &mut self.watches {
            let _ = watch.kill();
            let _ = watch.wait();
        }
        let of_release = format!("app.kubernetes.io/instance={}", self.namespace);
        for words in [
            ["delete", "namespace", &self.namespace, "--wait=false"],
            ["delete", "clusterrole,clusterrolebinding", "-l", &of_release],
        ] {
            let _ = self.try_kubectl(&words);
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn said(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("kubectl: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn fed(command: &mut Command, input: &str) -> Result<String, String> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("kubectl: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(input.as_bytes())
            .map_err(|error| error.to_string())?;
    }
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}
