//! The agent-runner as a process of its own.

fn main() -> std::process::ExitCode {
    service::main_with("agent-runner", agent_runner::run)
}
