//! The `fist` command.

fn main() -> std::process::ExitCode {
    fist::main()
}
