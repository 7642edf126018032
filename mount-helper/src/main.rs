//! The `unionfs` program: parse, run, exit code.

fn main() -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}
