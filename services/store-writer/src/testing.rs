//! A PostgreSQL of a test's own: made, started, stopped and removed by the test, with no need of an installed
//! service. For tests only; nothing of the service uses it.
//!
//! Invariants:
//! - The server listens on a free port of 127.0.0.1 and on a socket in its own directory, and dies with the
//!   value, also when the test panics.
//! - Where PostgreSQL is not installed, one loud line says so; under `CI` that is a failure.

use std::{
    fs, io,
    net::TcpListener,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
};

/// A running server with a database named `postgres`, for the user `postgres`, who needs no password.
#[derive(Debug)]
pub struct TestPostgres {
    directory: PathBuf,
    programs: PathBuf,
    owner: Option<(u32, u32)>,
    port: u16,
    /// Whether what is committed is on the disk.
    is_durable: bool,
}

impl TestPostgres {
    /// Starts a server; `None`, after one loud line, where PostgreSQL is not installed.
    ///
    /// # Panics
    /// When it is installed and does not start, and when it is not installed and the variable `CI` is set.
    pub fn start() -> Option<Self> {
        Self::start_with(false)
    }

    /// As [`TestPostgres::start`], and what is committed is on the disk as in production; for measuring.
    ///
    /// # Panics
    /// As [`TestPostgres::start`].
    pub fn start_durable() -> Option<Self> {
        Self::start_with(true)
    }

    fn start_with(is_durable: bool) -> Option<Self> {
        let Some(programs) = programs() else {
            assert!(
                std::env::var_os("CI").is_none(),
                "PostgreSQL is not installed (no initdb on PATH or in /usr/lib/postgresql/*/bin), and CI is set"
            );
            eprintln!(
                "SKIPPED: a PostgreSQL test, because there is no initdb on PATH or in /usr/lib/postgresql/*/bin"
            );
            return None;
        };
        let owner = is_root().then(|| {
            user_id("postgres")
                .or_else(|| user_id("nobody"))
                .expect("a user other than root")
        });
        let server = Self {
            directory: fresh_directory(owner).expect("a directory for PostgreSQL"),
            programs,
            owner,
            port: free_port().expect("a free port"),
            is_durable,
        };
        let data = server.data();
        server.run(
            "initdb",
            &[
                "-D",
                &data,
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--no-sync",
            ],
        );
        server.start_again();
        Some(server)
    }

    /// The address of `database`.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Makes an empty database and gives its address.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn create_database(&self, name: &str) -> String {
        let port = self.port.to_string();
        self.run(
            "createdb",
            &["-h", "127.0.0.1", "-p", &port, "-U", "postgres", name],
        );
        self.url(name)
    }

    /// Starts the server again with this certificate (PEM) and its key, by which clients may encrypt.
    ///
    /// # Panics
    /// When it does not start.
    pub fn with_certificate(&self, certificate: &str, key: &str) {
        let data = PathBuf::from(self.data());
        for (name, text) in [("server.crt", certificate), ("server.key", key)] {
            let path = data.join(name);
            fs::write(&path, text).expect("the certificate is written");
            // PostgreSQL wants its key for itself.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode is set");
            if let Some((user, group)) = self.owner {
                chown(&path, Some(user), Some(group)).expect("its owner is set");
            }
        }
        self.stop();
        let config = data.join("postgresql.conf");
        let mut text = fs::read_to_string(&config).expect("a configuration");
        text.push_str("\nssl = on\n");
        fs::write(&config, text).expect("the configuration is written");
        self.start_again();
    }

    /// What psql prints for a statement, without headings, a row a line.
    ///
    /// # Panics
    /// When the server refuses.
    pub fn query(&self, database: &str, statement: &str) -> String {
        let output = self
            .output(
                "psql",
                &[
                    "-X",
                    "-A",
                    "-t",
                    "-v",
                    "ON_ERROR_STOP=1",
                    "-d",
                    &self.url(database),
                    "-c",
                    statement,
                ],
            )
            .expect("psql can be run");
        assert!(
            output.status.success(),
            "psql failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Stops the server at once, as a crash would; its data stay.
    ///
    /// # Panics
    /// When it does not stop.
    pub fn stop(&self) {
        self.run("pg_ctl", &["-D", &self.data(), "-m", "immediate", "-w", "stop"]);
    }

    /// Starts the server that [`TestPostgres::stop`] stopped, at the same address.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_again(&self) {
        let sockets = self.directory.display();
        let fsync = if self.is_durable { "on" } else { "off" };
        let options = format!(
            "-p {} -k {sockets} -c listen_addresses=127.0.0.1 -c fsync={fsync}",
            self.port
        );
        let log = self.directory.join("server.log").display().to_string();
        self.run(
            "pg_ctl",
            &["-D", &self.data(), "-l", &log, "-o", &options, "-w", "start"],
        );
    }

    fn data(&self) -> String {
        self.directory.join("data").display().to_string()
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let output = self
            .output(program, arguments)
            .expect("PostgreSQL's programs can be run");
        assert!(
            output.status.success(),
            "{program} failed: {}{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            fs::read_to_string(self.directory.join("server.log")).unwrap_or_default(),
        );
    }

    fn output(&self, program: &str, arguments: &[&str]) -> io::Result<Output> {
        let mut command = Command::new(self.programs.join(program));
        command
            .args(arguments)
            .current_dir(&self.directory)
            .env("LC_ALL", "C");
        if let Some((user, group)) = self.owner {
            // PostgreSQL refuses to run as root.
            command.uid(user).gid(group);
        }
        // A daemon that inherits a pipe keeps it open; files do not wait for anybody.
        let capture = |name: &str| fs::File::create(self.directory.join(name));
        let status = command
            .stdin(std::process::Stdio::null())
            .stdout(capture("out")?)
            .stderr(capture("err")?)
            .status()?;
        Ok(Output {
            status,
            stdout: fs::read(self.directory.join("out"))?,
            stderr: fs::read(self.directory.join("err"))?,
        })
    }
}

impl Drop for TestPostgres {
    fn drop(&mut self) {
        // It may be stopped already.
        let _ = self.output("pg_ctl", &["-D", &self.data(), "-m", "immediate", "-w", "stop"]);
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Where `initdb`, `pg_ctl` and the others are: the newest installed version, else those on PATH.
fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let mut installed: Vec<PathBuf> = versions.map(|version| version.path().join("bin")).collect();
    installed.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path);
    let mut candidates = installed.into_iter().rev().chain(on_path);
    candidates.find(|directory| directory.join("initdb").is_file() && directory.join("pg_ctl").is_file())
}

/// A directory that this process's own files would be given to.
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

fn user_id(name: &str) -> Option<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd").ok()?;
    let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

fn fresh_directory(owner: Option<(u32, u32)>) -> io::Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let directory = std::env::temp_dir().join(format!("fist-postgres-{}-{count}", std::process::id()));
    // Left by a process of the same id that was killed.
    remove_if_there(&directory)?;
    fs::create_dir(&directory)?;
    if let Some((user, group)) = owner {
        chown(&directory, Some(user), Some(group))?;
    }
    Ok(directory)
}

fn remove_if_there(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn free_port() -> io::Result<u16> {
    // Between here and the server's start another process could take it; the start then fails loudly.
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
