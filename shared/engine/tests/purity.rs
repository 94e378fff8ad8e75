//! The engine is pure: its dependencies bring no runtime, no network, no database, no chance.

#![allow(clippy::unwrap_used)]

use std::process::Command;

#[test]
fn no_runtime_and_no_io_crate_is_reached() {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "-p",
            "engine",
            "-e",
            "normal",
            "--prefix",
            "none",
            "--offline",
            "--locked",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let tree = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        tree.lines().any(|line| line.starts_with("protocol v")),
        "this is the engine's tree: {tree}"
    );
    for name in [
        "tokio",
        "async-nats",
        "kube",
        "k8s-openapi",
        "sqlx",
        "reqwest",
        "hyper",
        "axum",
        "mio",
        "async-std",
        "smol",
        "socket2",
        "getrandom",
        "rand",
        "rustls",
        "bus",
        "service",
    ] {
        let found = tree.lines().find(|line| line.split(' ').next() == Some(name));
        assert_eq!(found, None, "`cargo tree -p engine -i {name}` says who brings it");
    }
}
