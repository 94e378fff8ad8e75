//! Where local commands live: a directory for each, and beside it a small record of who runs it, so that a
//! runner that was killed leaves nothing that the next one cannot find.
//!
//! Invariants:
//! - The record exists before the directory, and is removed after it: a directory without a record is nobody's.
//! - A record is created whole or not at all, by one runner only: it is the lock on its attempt on this machine.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    unistd::Uid,
};
use protocol::{Attempt, ExecutionId, Namespace, StepName, Timestamp};
use serde::{Deserialize, Serialize};

use super::{
    Job,
    processes::{Family, Identity},
};

/// Who runs what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub namespace: Namespace,
    pub execution: ExecutionId,
    pub step: StepName,
    pub attempt: Attempt,
    pub deadline: Timestamp,
    /// The runner's process.
    pub runner: Identity,
    /// Where its pids mean something.
    pub place: String,
    /// The command's first process; absent until it is started.
    pub leader: Option<Identity>,
}

impl Record {
    pub fn new(job: &Job, place: &str) -> Self {
        Self {
            namespace: job.namespace.clone(),
            execution: job.execution,
            step: job.step.clone(),
            attempt: job.attempt,
            deadline: job.deadline,
            runner: Identity::own(),
            place: place.to_owned(),
            leader: None,
        }
    }
}

/// The directory that holds all of a machine's commands.
#[derive(Clone, Debug)]
pub struct WorkDir {
    root: PathBuf,
}

/// What was found where a record should be.
#[derive(Debug, PartialEq)]
pub enum Found {
    Whole(Box<Record>),
    /// Records are made whole, so this one was torn by a crash of the machine.
    Torn,
    Nothing,
}

/// What came of a claim.
#[derive(Debug)]
pub enum Claim {
    /// The attempt is ours; this is its empty directory.
    Ours(PathBuf),
    /// There is a record already.
    Taken,
}

impl WorkDir {
    /// Opens `root`, making it where it is missing.
    ///
    /// # Errors
    /// Where it cannot be made, or belongs to somebody else, who could then read and change what commands do.
    pub fn open(root: &Path) -> io::Result<Self> {
        let about = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", root.display()));
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .map_err(about)?;
        // Canonical, since that is how the system shows it as a process's working directory.
        let root = root.canonicalize().map_err(about)?;
        let metadata = fs::metadata(&root)?;
        if metadata.uid() != Uid::effective().as_raw() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "{} belongs to user {}, and commands would run where that user can change their files: set cli.work_dir to a directory of this user",
                    root.display(),
                    metadata.uid()
                ),
            ));
        }
        Ok(Self { root })
    }

    /// The directory of the command called `name`.
    pub fn home(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn record_path(&self, name: &str) -> PathBuf {
        self.root.join(format!("{name}.json"))
    }

    /// Takes `name` for the runner in `record`.
    pub fn claim(&self, name: &str, record: &Record) -> io::Result<Claim> {
        let draft = self.draft(name, record)?;
        // A hard link is made whole or not at all, and never over what exists.
        let linked = fs::hard_link(&draft, self.record_path(name));
        fs::remove_file(&draft)?;
        match linked {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(Claim::Taken),
            Err(error) => return Err(error),
        }
        let home = self.home(name);
        let made = remove_tree(&home).and_then(|()| fs::DirBuilder::new().mode(0o700).create(&home));
        match made {
            Ok(()) => Ok(Claim::Ours(home)),
            Err(error) => {
                let _ = self.remove(name);
                Err(error)
            }
        }
    }

    /// Replaces the record of a command that is ours.
    pub fn update(&self, name: &str, record: &Record) -> io::Result<()> {
        fs::rename(self.draft(name, record)?, self.record_path(name))
    }

    fn draft(&self, name: &str, record: &Record) -> io::Result<PathBuf> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let draft = self.root.join(format!(".{name}.{}.{count}", record.runner.pid));
        fs::write(&draft, serde_json::to_vec(record)?)?;
        Ok(draft)
    }

    /// The record of `name`.
    pub fn record(&self, name: &str) -> Found {
        found(&self.record_path(name))
    }

    /// The right to clear away what dead runners left, which one process has at a time: two that judged the
    /// same record could otherwise remove what a third has claimed since. `None` while another has it.
    pub fn lock(&self) -> io::Result<Option<Flock<fs::File>>> {
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.root.join(".lock"))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(lock)),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(error.into()),
        }
    }

    /// Removes the directory of a command, and then its record.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        remove_tree(&self.home(name))?;
        match fs::remove_file(self.record_path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Drafts of records: who was killed between writing one and putting it in its place left it behind.
    pub fn drafts(&self) -> io::Result<Vec<(PathBuf, Found)>> {
        let mut drafts = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let path = entry?.path();
            let file = path.file_name().and_then(|file| file.to_str());
            if file.is_some_and(|file| file.starts_with(".workflow-cli-")) {
                drafts.push((path.clone(), found(&path)));
            }
        }
        Ok(drafts)
    }

    /// Names of all commands that have a record.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let file = entry?.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(".json"));
            names.extend(
                name.filter(|name| name.starts_with("workflow-cli-"))
                    .map(str::to_owned),
            );
        }
        Ok(names)
    }

    /// All processes of the command called `name`.
    pub fn family(&self, name: &str, leader: Option<Identity>) -> Family {
        Family {
            leader,
            home: self.home(name),
        }
    }
}

fn found(path: &Path) -> Found {
    match fs::read(path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).map_or(Found::Torn, |record| Found::Whole(Box::new(record)))
        }
        Err(_) => Found::Nothing,
    }
}

/// Removes `path` with all that is in it, also where a command left directories that may not be written to.
fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            make_writable(path);
            fs::remove_dir_all(path)
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Links are not followed: what they lead to is not ours.
fn make_writable(directory: &Path) {
    let _ = fs::set_permissions(directory, fs::Permissions::from_mode(0o700));
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            make_writable(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn record() -> Record {
        Record {
            namespace: Namespace::default(),
            execution: ExecutionId::derive(&["x"]),
            step: StepName::new("s").unwrap(),
            attempt: Attempt::FIRST,
            deadline: Timestamp::from_millis(0),
            runner: Identity::own(),
            place: "here".into(),
            leader: None,
        }
    }

    #[test]
    fn a_name_is_claimed_once_until_it_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let work_dir = WorkDir::open(&root.path().join("a/b")).unwrap();
        let name = "workflow-cli-x";
        let Claim::Ours(home) = work_dir.claim(name, &record()).unwrap() else {
            panic!("taken")
        };
        assert_eq!(fs::metadata(&home).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(matches!(work_dir.claim(name, &record()).unwrap(), Claim::Taken));
        assert_eq!(work_dir.names().unwrap(), [name]);
        let started = Record {
            leader: Some(Identity {
                pid: 7,
                start_ticks: Some(8),
            }),
            ..record()
        };
        work_dir.update(name, &started).unwrap();
        assert_eq!(work_dir.record(name), Found::Whole(Box::new(started)));
        work_dir.remove(name).unwrap();
        assert_eq!(
            fs::read_dir(&work_dir.root).unwrap().count(),
            0,
            "no drafts, no records, no directories"
        );
        assert!(matches!(work_dir.claim(name, &record()).unwrap(), Claim::Ours(_)));
    }

    #[test]
    fn drafts_that_were_left_are_found() {
        let root = tempfile::tempdir().unwrap();
        let work_dir = WorkDir::open(root.path()).unwrap();
        let draft = work_dir.draft("workflow-cli-x", &record()).unwrap();
        let found = work_dir.drafts().unwrap();
        assert_eq!(found, [(draft, Found::Whole(Box::new(record())))]);
        assert_eq!(work_dir.names().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn one_process_clears_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let work_dir = WorkDir::open(root.path()).unwrap();
        let first = work_dir.lock().unwrap();
        assert!(first.is_some() && work_dir.lock().unwrap().is_none());
        drop(first);
        assert!(work_dir.lock().unwrap().is_some());
    }

    #[test]
    fn directories_without_write_permission_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("file"), "x").unwrap();
        fs::set_permissions(&inner, fs::Permissions::from_mode(0o500)).unwrap();
        remove_tree(&root.path().join("a")).unwrap();
        assert!(!root.path().join("a").exists());
    }
}
