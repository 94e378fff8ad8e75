//! What the repository promises about itself, held by reading it.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every file below `directory` with this ending.
fn files(directory: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                found.extend(files(&path, ending));
            }
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<(String, String)> {
    let root = root();
    files(&root, ".rs")
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (
                path.strip_prefix(&root).unwrap().to_string_lossy().into_owned(),
                text,
            )
        })
        .collect()
}

/// Lines with something in them that must not be there, outside `allowed` files.
fn lines_with(needles: &[String], allowed: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in sources() {
        if allowed.iter().any(|allowed| path.starts_with(allowed)) {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            if needles.iter().any(|needle| line.contains(needle.as_str())) {
                found.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    found
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<String> = sources()
        .into_iter()
        // The tests of a module stand beside it, and what they are for is said there.
        .filter(|(path, text)| !path.ends_with("/tests.rs") && !text.starts_with("//!"))
        .map(|(path, _)| path)
        .collect();
    assert!(silent.is_empty(), "these begin without `//!`: {silent:#?}");
}

#[test]
fn nothing_is_left_unfinished_or_asleep() {
    // Written apart, so that this file is not found by itself.
    let needles: Vec<String> = [
        ["todo", "!("],
        ["unimplemented", "!("],
        ["dbg", "!("],
        ["thread::", "sleep("],
        ["#[ig", "nore"],
        ["FIX", "ME"],
        ["macro_", "rules!"],
    ]
    .iter()
    .map(|parts| parts.concat())
    .collect();
    let found = lines_with(&needles, &[]);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn subjects_are_built_in_one_place() {
    let needles: Vec<String> = [
        "fact", "cmd", "turn", "alert", "alerts", "timer", "live", "dead", "query",
    ]
    .iter()
    .map(|lane| format!("format!(\"fist.{lane}."))
    .collect();
    let found = lines_with(
        &needles,
        &[
            "shared/protocol/src/subjects.rs",
            // The yardstick of the benchmark, which nothing of ours may make faster or slower.
            "services/fist/benches/product/bare.rs",
        ],
    );
    assert!(found.is_empty(), "build these in protocol::subjects: {found:#?}");
}

#[test]
fn the_environment_is_read_in_one_place() {
    let needles = [["env::", "var("], ["env::", "var_os("], ["env::", "vars("]].map(|parts| parts.concat());
    let found: Vec<String> = lines_with(
        &needles,
        &[
            // The one place.
            "shared/service/src/config",
            // Where nats-server is found: by its own documented variables, before any configuration is there.
            "shared/bus/src/server.rs",
            // Test code: how many histories.
            "services/cli-runner/src/runner/simulation.rs",
        ],
    )
    .into_iter()
    .filter(|line| !is_test(line))
    .collect();
    assert!(found.is_empty(), "read these through service::config: {found:#?}");
}

/// Tests and benchmarks may look at `CI`, `PATH` and the like.
fn is_test(line: &str) -> bool {
    let path = line.split(':').next().unwrap_or_default();
    ["/tests/", "/benches/", "/e2e/", "testing", "tests.rs"]
        .iter()
        .any(|part| path.contains(part))
        || path.starts_with("tests/")
        || ["\"CI\"", "UPDATE_EXPECT", "\"PATH\""]
            .iter()
            .any(|variable| line.contains(variable))
}

#[test]
fn no_second_tls_library_is_built() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    for banned in ["openssl-sys", "native-tls", "aws-lc-sys", "async-std", "smol"] {
        assert!(
            !lock.contains(&format!("name = \"{banned}\"")),
            "{banned} is in Cargo.lock"
        );
    }
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut broken = Vec::new();
    for path in files(&root(), ".md") {
        let text = fs::read_to_string(&path).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = target.split('#').next().unwrap();
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            if !path.parent().unwrap().join(target).exists() {
                broken.push(format!("{}: {target}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn paths_that_documents_name_exist() {
    let mut missing = Vec::new();
    for name in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"] {
        let text = fs::read_to_string(root().join(name)).unwrap();
        for quoted in text.split('`').skip(1).step_by(2) {
            let is_path = [
                "shared/",
                "services/",
                "tests/",
                "docs/",
                "examples/",
                "scripts/",
                "deploy/",
            ]
            .iter()
            .any(|start| quoted.starts_with(start));
            if is_path && !quoted.contains(['<', '*', ' ']) && !root().join(quoted).exists() {
                missing.push(format!("{name}: {quoted}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// The members of the workspace, by their directories.
fn members() -> Vec<String> {
    let manifests = files(&root(), "Cargo.toml");
    let directories = manifests
        .iter()
        .filter_map(|path| path.parent()?.strip_prefix(root()).ok());
    directories
        .map(|path| path.to_string_lossy().into_owned())
        .filter(|path| !path.is_empty())
        .collect()
}

#[test]
fn the_image_is_built_from_every_crate() {
    let dockerfile = fs::read_to_string(root().join("Dockerfile")).unwrap();
    let copied: Vec<&str> = dockerfile
        .lines()
        .filter(|line| line.starts_with("COPY ") && line.contains("/Cargo.toml "))
        .collect();
    let mut expected: Vec<String> = members()
        .iter()
        .map(|member| format!("COPY {member}/Cargo.toml {member}/"))
        .collect();
    expected.sort();
    let mut found = copied;
    found.sort_unstable();
    assert_eq!(found, expected, "the Dockerfile's dependency layer copies these");
}

/// That layer has manifests and no sources: a target whose file is not named is looked for, and missed.
#[test]
fn manifests_name_the_files_of_their_targets() {
    let mut unnamed = Vec::new();
    for member in members() {
        let path = root().join(&member).join("Cargo.toml");
        let manifest: toml::Table = fs::read_to_string(&path).unwrap().parse().unwrap();
        for kind in ["bin", "test", "example", "bench"] {
            for target in manifest
                .get(kind)
                .and_then(|list| list.as_array())
                .into_iter()
                .flatten()
            {
                if target.get("path").is_none() {
                    unnamed.push(format!("{member}: [[{kind}]] {}", target["name"]));
                }
            }
        }
    }
    assert!(unnamed.is_empty(), "give these a `path`: {unnamed:#?}");
}

/// `.dockerignore` sends nothing but these directories to the daemon.
#[test]
fn what_is_compiled_in_is_part_of_the_crates() {
    let needles = [["include_", "str!("], ["include_", "bytes!("]].map(|parts| parts.concat());
    let mut outside = Vec::new();
    for (path, text) in sources() {
        let is_tested_only =
            path.contains("/tests/") || path.starts_with("tests/") || path.ends_with("tests.rs");
        if is_tested_only {
            continue;
        }
        for rest in needles
            .iter()
            .flat_map(|needle| text.split(needle.as_str()).skip(1))
        {
            let named = rest.split('"').nth(1).unwrap_or_default();
            let directory = Path::new(&path).parent().unwrap();
            let mut place = PathBuf::new();
            for part in directory.join(named).components() {
                match part {
                    std::path::Component::ParentDir => {
                        place.pop();
                    }
                    part => place.push(part),
                }
            }
            if !place.starts_with("shared") && !place.starts_with("services") {
                outside.push(format!("{path}: {}", place.display()));
            }
        }
    }
    assert!(
        outside.is_empty(),
        "the image's build cannot see these: {outside:#?}"
    );
}
