//! The `store-writer` process. `--rebuild` builds the database anew from the log, and ends.

use std::process::ExitCode;

fn main() -> ExitCode {
    service::main_with_flags("store-writer", &["--rebuild"], |service, flags| async move {
        if flags.contains(&"--rebuild") {
            store_writer::run_rebuild(service).await
        } else {
            store_writer::run(service).await
        }
    })
}
