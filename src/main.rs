//! The `eventflow` command: parses, calls, and exits with the code that says what happened.

fn main() -> std::process::ExitCode {
    eventflow::cli::main()
}
