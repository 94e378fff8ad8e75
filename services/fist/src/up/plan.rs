//! What `fist up` will do: the configuration with the command line over it, and the defaults of one machine.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use service::config::{Config, Secret};

use crate::{
    args::{Executor, Up},
    failure::Failure,
};

/// Which NATS server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nats {
    /// One of its own, in the directory.
    Own,
    /// The one that the configuration or the command line names.
    Given,
}

/// What will be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where everything is kept.
    pub dir: PathBuf,
    /// The whole configuration.
    pub config: Config,
    /// Which NATS server.
    pub nats: Nats,
    /// Whether the database is this machine's only, so that it must have the whole log by itself where others
    /// read it too.
    pub has_own_database: bool,
}

impl Plan {
    /// Of the command line and this environment.
    pub fn new(asked: &Up, env: Vec<(String, String)>) -> Result<Self, Failure> {
        let dir = match &asked.dir {
            Some(dir) => dir.clone(),
            None => default_dir(&env)?,
        };
        // The file's and the variables' keys have the same checks as what the command line says.
        let mut layers: BTreeMap<String, String> = env.into_iter().collect();
        let over = [
            ("FIST_HTTP_LISTEN", "--http", asked.http.clone()),
            ("FIST_NATS_URL", "--nats", asked.nats.clone()),
            ("FIST_DATABASE_URL", "--database", asked.database.clone()),
            (
                "FIST_CLI_EXECUTOR",
                "--executor",
                asked.executor.map(|executor| match executor {
                    Executor::Local => "local".to_owned(),
                    Executor::Kubernetes => "kubernetes".to_owned(),
                }),
            ),
            (
                "FIST_KUBERNETES_KUBECONFIG",
                "--kubeconfig",
                asked.kubeconfig.as_deref().map(path_text).transpose()?,
            ),
            (
                "FIST_INGEST_WATCH_WORKFLOWS",
                "--watch-workflows",
                asked.watch_workflows.then(|| "true".to_owned()),
            ),
        ];
        let mut given = Vec::new();
        for (variable, option, value) in over {
            if let Some(value) = value {
                layers.insert(variable.to_owned(), value);
                given.push((variable, option));
            }
        }
        let set = Set::read(asked.config.as_deref(), &layers);
        let loaded = Config::load(asked.config.as_deref(), layers.clone().into_iter());
        let mut config = loaded.map_err(|errors| {
            // In the words of who gave it.
            let text = given.iter().fold(errors.to_string(), |text, (variable, option)| {
                text.replace(variable, option)
            });
            Failure::misuse(text)
        })?;
        config.require_secrets()?;
        if asked.kubeconfig.is_some()
            && config.tools.kubeconfig.is_none()
            && config.tools.kubectl_service_account.is_none()
        {
            // Who names a cluster means it for the agents' questions too.
            config.tools.kubeconfig.clone_from(&config.kubernetes.kubeconfig);
        }
        let nats = if set.has("nats", "url") {
            Nats::Given
        } else {
            Nats::Own
        };
        let dir = std::path::absolute(&dir)
            .map_err(|error| Failure::misuse(format!("--dir {}: {error}", dir.display())))?;
        if !set.has("database", "url") {
            config.database.url = Secret::new(sqlite_url(&dir.join("fist.db"))?);
        }
        if config.cli.work_dir.is_none() {
            // Of the directory's own, so that what a killed process left running is found again.
            config.cli.work_dir = Some(dir.join("work"));
        }
        let has_own_database =
            config.database.url.expose().starts_with("sqlite:") && !set.has("database", "consumer");
        Ok(Self {
            dir,
            config,
            nats,
            has_own_database,
        })
    }
}

/// The file that `--kubeconfig` names, wherever kubectl starts later.
fn path_text(path: &Path) -> Result<String, Failure> {
    let wrong = |reason: &str| Failure::misuse(format!("--kubeconfig {}: {reason}", path.display()));
    let whole = path.canonicalize().map_err(|error| wrong(&error.to_string()))?;
    match whole.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(wrong("its name must be UTF-8")),
    }
}

/// Where `fist up` keeps everything, unless told otherwise.
///
/// # Errors
/// That the environment has no home directory.
pub fn default_dir(env: &[(String, String)]) -> Result<PathBuf, Failure> {
    let path = |name: &str| {
        let found = env.iter().find(|(key, value)| key == name && !value.is_empty());
        found
            .map(|(_, value)| PathBuf::from(value))
            .filter(|path| path.is_absolute())
    };
    path("XDG_DATA_HOME")
        .or_else(|| path("HOME").map(|home| home.join(".local/share")))
        .map(|data| data.join("punching-fist"))
        .ok_or_else(|| Failure::misuse("there is no HOME to keep anything in: name a directory with --dir"))
}

/// Which keys are set at all.
struct Set<'a> {
    file: toml::Table,
    variables: &'a BTreeMap<String, String>,
}

impl<'a> Set<'a> {
    fn read(file: Option<&Path>, variables: &'a BTreeMap<String, String>) -> Self {
        // What cannot be read is refused in the configuration's own words.
        let text = file
            .and_then(|file| std::fs::read_to_string(file).ok())
            .unwrap_or_default();
        Self {
            file: text.parse().unwrap_or_default(),
            variables,
        }
    }

    fn has(&self, section: &str, key: &str) -> bool {
        let variable = format!("FIST_{section}_{key}").to_uppercase();
        let in_file = self
            .file
            .get(section)
            .and_then(|section| section.get(key))
            .and_then(toml::Value::as_str);
        match self.variables.get(&variable) {
            Some(value) => !value.is_empty(),
            None => in_file.is_some_and(|value| !value.is_empty()),
        }
    }
}

/// The URL of a file; what has a meaning in URLs is escaped.
fn sqlite_url(path: &Path) -> Result<String, Failure> {
    let Some(text) = path.to_str() else {
        return Err(Failure::misuse(format!(
            "--dir {}: its name must be UTF-8",
            path.display()
        )));
    };
    let escaped = text.replace('%', "%25").replace('?', "%3F").replace('#', "%23");
    Ok(format!("sqlite://{escaped}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};

    fn plan(arguments: &[&str], env: &[(&str, &str)]) -> Result<Plan, Failure> {
        let args = Args::try_parse_from(["fist", "up"].iter().chain(arguments)).unwrap();
        let Command::Up(up) = args.command else {
            panic!("not up")
        };
        let env = env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Plan::new(&up, env)
    }

    #[test]
    fn everything_is_in_the_directory() {
        let plan = plan(&["--dir", "/x/a b%"], &[]).unwrap();
        assert_eq!(plan.nats, Nats::Own);
        assert_eq!(plan.config.database.url.expose(), "sqlite:///x/a b%25/fist.db");
        assert_eq!(plan.config.cli.work_dir, Some("/x/a b%/work".into()));
        assert_eq!(plan.config.http.listen, "127.0.0.1:8080");
    }

    #[test]
    fn the_command_line_wins_over_variables() {
        let env = [
            ("FIST_HTTP_LISTEN", "127.0.0.1:1"),
            ("FIST_DATABASE_URL", "sqlite:///elsewhere.db"),
            ("HOME", "/home/x"),
        ];
        let plan = plan(&["--http", "127.0.0.1:0", "--nats", "nats://n:4222"], &env).unwrap();
        assert_eq!(plan.config.http.listen, "127.0.0.1:0");
        assert_eq!(plan.config.database.url.expose(), "sqlite:///elsewhere.db");
        assert_eq!(
            (plan.nats, plan.config.nats.url.as_str()),
            (Nats::Given, "nats://n:4222")
        );
        assert_eq!(plan.dir, Path::new("/home/x/.local/share/punching-fist"));
        assert!(plan.has_own_database);
    }

    #[test]
    fn a_nats_server_in_the_file_is_used() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[nats]\nurl = \"nats://127.0.0.1:4222\"\n").unwrap();
        let given = plan(&["--dir", "/x", "--config", file.path().to_str().unwrap()], &[]).unwrap();
        assert_eq!(given.nats, Nats::Given);
        // An empty variable says: not set.
        let own = plan(&["--dir", "/x"], &[("FIST_NATS_URL", "nats://127.0.0.1:4222")]).unwrap();
        assert_eq!(own.nats, Nats::Given);
    }

    #[test]
    fn a_named_cluster_is_the_one_for_pods_and_for_questions() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().canonicalize().unwrap();
        let words = ["--dir", "/x", "--kubeconfig", path.to_str().unwrap()];
        let both = plan(&[&words[..], &["--executor", "kubernetes"]].concat(), &[]).unwrap();
        assert_eq!(both.config.cli.executor, service::config::Executor::Kubernetes);
        assert_eq!(both.config.kubernetes.kubeconfig.as_ref(), Some(&path));
        assert_eq!(both.config.tools.kubeconfig.as_ref(), Some(&path));
        assert!(!both.config.ingest.watch_workflows);
        let watching = plan(&[&words[..], &["--watch-workflows"]].concat(), &[]).unwrap();
        assert!(watching.config.ingest.watch_workflows);
        let of_its_own = [("FIST_TOOLS_KUBECONFIG", "/theirs")];
        let theirs = plan(&words, &of_its_own).unwrap();
        assert_eq!(theirs.config.tools.kubeconfig, Some("/theirs".into()));
        assert_eq!(theirs.config.cli.executor, service::config::Executor::Local);
        let by_account = [("FIST_TOOLS_KUBECTL_SERVICE_ACCOUNT", "investigator")];
        assert_eq!(plan(&words, &by_account).unwrap().config.tools.kubeconfig, None);
    }

    #[test]
    fn what_cannot_be_is_misuse() {
        for (arguments, env, part) in [
            (
                vec!["--dir", "/x", "--kubeconfig", "/no/such/kubeconfig"],
                vec![],
                "--kubeconfig /no/such/kubeconfig: No such file",
            ),
            (vec![], vec![], "--dir"),
            (
                vec!["--dir", "/x", "--http", "nonsense"],
                vec![],
                "--http = \"nonsense\"",
            ),
        ] {
            let failure = plan(&arguments, &env).unwrap_err();
            assert_eq!(failure.code, crate::failure::Code::Misuse);
            assert!(failure.message.contains(part), "{failure}");
        }
    }
}
