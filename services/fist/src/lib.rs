//! The command line: `fist up` runs every service in one process, and every other command asks a server
//! over HTTP.
//!
//! Invariants:
//! - Data goes to stdout and everything else to stderr; colours go to terminals only.
//! - The exit code is one of [`failure::Code`], and every error says in words what is wrong and what to do.

pub mod args;
pub mod client;
mod commands;
pub mod events;
pub mod failure;
mod manifests;
pub mod show;
pub mod up;

use std::process::ExitCode;

use clap::Parser;

use args::Args;
use failure::Failure;

/// Reads the command line, does what it says, and gives the exit code.
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version are answers, everything else is misuse.
            let code = if error.use_stderr() {
                failure::Code::Misuse
            } else {
                failure::Code::Succeeded
            };
            let _ = error.print();
            return code.into();
        }
    };
    service::install_crypto();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return told(&Failure::failed(format!("cannot start: {error}"))),
    };
    let outcome = runtime.block_on(Box::pin(commands::run(args)));
    // A read of stdin that nobody waits for any more must not hold up the end.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => code.into(),
        Err(failure) => told(&failure),
    }
}

fn told(failure: &Failure) -> ExitCode {
    show::note(&failure.message);
    failure.code.into()
}
