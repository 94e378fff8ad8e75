//! The directory of `fist up`: who has it, and what others find in it.
//!
//! Invariants:
//! - One process at a time has it, for as long as it holds the lock; the system frees the lock of a killed one.
//! - Files that others read are whole at any moment, and what opens NATS is for this user only.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use service::config::Config;

use crate::failure::Failure;

/// A directory that is ours.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    _lock: File,
}

/// How to reach the nats-server of a `fist up`, and its database.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Running {
    /// Its address.
    pub url: String,
    /// The user.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<String>,
    /// Where the records are.
    pub database: String,
    /// How the consumer is called that remembers how far they are; absent where an older build wrote this.
    #[serde(default)]
    pub consumer: Option<String>,
}

const LOCK: &str = "lock";
const HTTP: &str = "http";
const NATS: &str = "nats.json";
const IDENTITY: &str = "identity";

/// The nats-server that the process with this directory said it runs.
pub fn running(dir: &Path) -> Option<Running> {
    serde_json::from_str(&fs::read_to_string(dir.join(NATS)).ok()?).ok()
}

impl Directory {
    /// Opens it, making it where it is missing, and takes its lock.
    ///
    /// # Errors
    /// That another process has it, by its number; or the system's reason.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let cannot = |error: std::io::Error| {
            Failure::failed(format!(
                "cannot use the directory {}: {error}; choose another with --dir",
                path.display()
            ))
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(cannot)?;
        let path = path.canonicalize().map_err(cannot)?;
        let mut lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join(LOCK))
            .map_err(cannot)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(taken(&path, lock)),
            Err(TryLockError::Error(error)) => return Err(cannot(error)),
        }
        lock.set_len(0).map_err(cannot)?;
        lock.write_all(format!("{}\n", std::process::id()).as_bytes())
            .map_err(cannot)?;
        let directory = Self { path, _lock: lock };
        // What the one before said does not hold any more.
        directory.forget();
        Ok(directory)
    }

    /// Where it is, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A name of this directory that no other has, for as long as it is there.
    pub fn identity(&self) -> Result<String, Failure> {
        let file = self.path.join(IDENTITY);
        match fs::read_to_string(&file) {
            Ok(text) => return Ok(text.trim().to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(Failure::failed(format!(
                    "cannot read {}: {error}",
                    file.display()
                )));
            }
        }
        let identity = uuid::Uuid::now_v7().simple().to_string();
        replace(&file, &format!("{identity}\n"), 0o644)?;
        Ok(identity)
    }

    /// Says where the API is.
    pub fn write_http(&self, url: &str) -> Result<(), Failure> {
        self.write(HTTP, &format!("{url}\n"), 0o644)
    }

    /// Says how to reach NATS, to this user only.
    pub fn write_nats(&self, config: &Config) -> Result<(), Failure> {
        let running = Running {
            url: config.nats.url.clone(),
            user: config.nats.user.clone(),
            password: config
                .nats
                .password
                .as_ref()
                .map(|password| password.expose().to_owned()),
            database: config.database.url.expose().to_owned(),
            consumer: Some(config.database.consumer.clone()),
        };
        let text = serde_json::to_string_pretty(&running)
            .map_err(|error| Failure::failed(format!("{NATS} cannot be written: {error}")))?;
        self.write(NATS, &text, 0o600)
    }

    /// The end: nothing runs here any more.
    pub fn close(self) {
        self.forget();
    }

    fn forget(&self) {
        for name in [HTTP, NATS] {
            let _ = fs::remove_file(self.path.join(name));
        }
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> Result<(), Failure> {
        replace(&self.path.join(name), text, mode)
    }
}

/// Writes a file that is whole at any moment.
pub fn replace(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| Failure::failed(format!("cannot write {}: {error}", path.display()));
    let draft = path.with_extension("draft");
    let _ = fs::remove_file(&draft);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&draft)
        .map_err(cannot)?;
    file.write_all(text.as_bytes()).map_err(cannot)?;
    fs::rename(&draft, path).map_err(cannot)
}

fn taken(path: &Path, mut lock: File) -> Failure {
    let mut pid = String::new();
    let _ = Read::by_ref(&mut lock).take(32).read_to_string(&mut pid);
    let who = match pid.trim() {
        "" => "another process".to_owned(),
        pid => format!("process {pid}"),
    };
    Failure::failed(format!(
        "{} is in use by another `fist up` ({who}): end that one, or choose another directory with --dir",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/one");
        let first = Directory::open(&path).unwrap();
        let failure = Directory::open(&path).unwrap_err();
        assert!(
            failure
                .message
                .contains(&format!("process {}", std::process::id())),
            "{failure}"
        );
        first.write_http("http://x").unwrap();
        drop(first);
        let second = Directory::open(&path).unwrap();
        assert!(!path.join(HTTP).exists(), "what the first one said is forgotten");
        let identity = second.identity().unwrap();
        assert_eq!(second.identity().unwrap(), identity);
        second.close();
    }

    #[test]
    fn what_opens_nats_is_for_this_user_only() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(dir.path()).unwrap();
        directory.write_nats(&Config::default()).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir.path().join(NATS)), 0o600);
        assert_eq!(running(dir.path()).unwrap().url, Config::default().nats.url);
    }
}
