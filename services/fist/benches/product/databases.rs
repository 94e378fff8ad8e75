//! The databases that store-writer can have: SQLite, and PostgreSQL where it is installed.

use std::sync::Arc;

use store_writer::testing::TestPostgres;

use crate::{Bench, world::unique};

/// A kind of database.
#[derive(Clone)]
pub enum Database {
    Sqlite(Arc<tempfile::TempDir>),
    Postgres(Arc<TestPostgres>),
}

impl Database {
    /// All that there are here. PostgreSQL, with commits that are on the disk, is started once a run.
    pub fn all(bench: &mut Bench) -> Vec<Self> {
        if bench.databases.is_empty() {
            let directory = tempfile::tempdir().unwrap();
            bench.databases.push(Self::Sqlite(Arc::new(directory)));
            let postgres = TestPostgres::start_durable();
            bench
                .databases
                .extend(postgres.map(|server| Self::Postgres(Arc::new(server))));
        }
        bench.databases.clone()
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "SQLite",
            Self::Postgres(_) => "PostgreSQL",
        }
    }

    /// The address of a new, empty one.
    pub fn fresh(&self) -> String {
        let name = format!("bench_{}", unique());
        match self {
            Self::Sqlite(directory) => format!("sqlite://{}/{name}.db", directory.path().display()),
            Self::Postgres(server) => server.create_database(&name),
        }
    }
}
