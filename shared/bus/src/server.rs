//! Finding a nats-server to run: the same places, in the same order, as `scripts/nats-server` installs to.
//!
//! Invariant: what is returned answered `--version` with a version that is new enough.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use crate::connect::{SERVER_VERSION_MIN, is_new_enough};

/// The version that `scripts/nats-server` installs.
pub const SERVER_VERSION_PINNED: &str = "2.15.2";

/// Versions that `scripts/nats-server` may have installed, newest first.
const CACHED_VERSIONS: [&str; 3] = [SERVER_VERSION_PINNED, "2.15.1", "2.15.0"];

/// A nats-server that can be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerBinary {
    /// Where it is.
    pub path: PathBuf,
    /// Its version, such as `2.15.2`.
    pub version: String,
}

/// Where to look.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// `NATS_SERVER_BIN`: this one and no other.
    pub chosen: Option<PathBuf>,
    /// `PATH`.
    pub path: Option<std::ffi::OsString>,
    /// `XDG_CACHE_HOME`, else `~/.cache`.
    pub cache_home: Option<PathBuf>,
}

impl Places {
    /// As this process's environment has them.
    pub fn from_environment() -> Self {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        Self {
            chosen: set("NATS_SERVER_BIN").map(PathBuf::from),
            path: set("PATH"),
            cache_home: set("XDG_CACHE_HOME")
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
                .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".cache"))),
        }
    }
}

/// Finds a nats-server: `NATS_SERVER_BIN`, else on `PATH`, else in the cache directory of the project.
///
/// # Errors
/// One text that names every place looked at, and the remedy.
pub fn find_server(places: &Places) -> Result<ServerBinary, String> {
    if let Some(path) = &places.chosen {
        return probe(path)
            .map_err(|reason| format!("NATS_SERVER_BIN names {}, which {reason}", path.display()));
    }
    let mut looked_at = Vec::new();
    let on_path = places
        .path
        .iter()
        .flat_map(env::split_paths)
        .map(|dir| dir.join("nats-server"));
    let cached = places.cache_home.iter().flat_map(|home| {
        CACHED_VERSIONS.map(|version| {
            home.join("punching-fist")
                .join(format!("nats-server-{version}"))
                .join("nats-server")
        })
    });
    for path in on_path.chain(cached).filter(|path| path.is_file()) {
        match probe(&path) {
            Ok(server) => return Ok(server),
            Err(reason) => looked_at.push(format!("{} {reason}", path.display())),
        }
    }
    let (major, minor) = SERVER_VERSION_MIN;
    let mut text = format!(
        "no nats-server ≥ {major}.{minor} was found (NATS_SERVER_BIN, PATH, the cache directory): run `make nats-server`, or install it and set NATS_SERVER_BIN"
    );
    if !looked_at.is_empty() {
        text.push_str(&format!("; looked at: {}", looked_at.join("; ")));
    }
    Err(text)
}

/// Asks a binary for its version, which it prints as `nats-server: v2.15.2`.
fn probe(path: &Path) -> Result<ServerBinary, String> {
    let output = Command::new(path)
        .arg("--version")
        .output()
        .map_err(|error| format!("cannot be run: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text
        .trim()
        .strip_prefix("nats-server: v")
        .ok_or_else(|| "is no nats-server".to_owned())?
        .to_owned();
    if !is_new_enough(&version) {
        let (major, minor) = SERVER_VERSION_MIN;
        return Err(format!("is version {version}, and ≥ {major}.{minor} is needed"));
    }
    Ok(ServerBinary {
        path: path.to_owned(),
        version,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn fake(directory: &Path, says: &str) -> PathBuf {
        std::fs::create_dir_all(directory).unwrap();
        let path = directory.join("nats-server");
        crate::testing::write_program(&path, &format!("#!/bin/sh\necho '{says}'\n"));
        path
    }

    #[test]
    fn the_chosen_one_wins_and_is_judged() {
        let home = tempfile::tempdir().unwrap();
        let old = fake(&home.path().join("old"), "nats-server: v2.10.1");
        let new = fake(&home.path().join("new"), "nats-server: v2.14.0");
        let places = |chosen: &Path| Places {
            chosen: Some(chosen.to_owned()),
            path: Some(home.path().join("new").into()),
            cache_home: None,
        };
        assert_eq!(find_server(&places(&new)).unwrap().version, "2.14.0");
        let error = find_server(&places(&old)).unwrap_err();
        assert!(
            error.ends_with("which is version 2.10.1, and ≥ 2.12 is needed"),
            "{error}"
        );
        let error = find_server(&places(&home.path().join("none"))).unwrap_err();
        assert!(error.contains("cannot be run"), "{error}");
    }

    #[test]
    fn an_old_one_on_the_path_gives_way_to_the_cache() {
        let home = tempfile::tempdir().unwrap();
        let old = fake(&home.path().join("old"), "nats-server: v2.10.1");
        let other = fake(&home.path().join("other"), "something else");
        let mut places = Places {
            chosen: None,
            path: Some(env::join_paths([old.parent().unwrap(), other.parent().unwrap()]).unwrap()),
            cache_home: Some(home.path().to_owned()),
        };
        let error = find_server(&places).unwrap_err();
        for part in ["make nats-server", "2.10.1", "is no nats-server"] {
            assert!(error.contains(part), "{error}");
        }
        let cached = home.path().join("punching-fist/nats-server-2.15.2");
        let path = fake(&cached, "nats-server: v2.15.2");
        assert_eq!(find_server(&places).unwrap().path, path);
        places.path = Some(
            fake(&home.path().join("good"), "nats-server: v2.12.3")
                .parent()
                .unwrap()
                .into(),
        );
        assert_eq!(find_server(&places).unwrap().version, "2.12.3");
    }
}
