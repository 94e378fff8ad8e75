//! The service as a process of its own.

fn main() -> std::process::ExitCode {
    service::main_with("ingest", ingest::run)
}
