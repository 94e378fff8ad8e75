//! The cli-runner as a process of its own.

fn main() -> std::process::ExitCode {
    service::main_with("cli-runner", cli_runner::run)
}
