//! The `store-writer` process. `--rebuild` builds the database anew from the log, `--verify` compares it with the log;
//! both end then.

use std::process::ExitCode;

use service::Fatal;

fn main() -> ExitCode {
    service::main_with_flags(
        "store-writer",
        &["--rebuild", "--verify"],
        |service, flags| async move {
            if flags.contains(&"--rebuild") {
                store_writer::run_rebuild(service).await
            } else if flags.contains(&"--verify") {
                let verified = store_writer::run_verify(service).await?;
                for difference in &verified.told {
                    tracing::error!(difference, "the database and the log differ");
                }
                match verified.differences {
                    0 => Ok(()),
                    differences => Err(Fatal::new(format!(
                        "the database and the log differ {differences} times; `--rebuild` makes it anew from the log"
                    ))),
                }
            } else {
                store_writer::run(service).await
            }
        },
    )
}
