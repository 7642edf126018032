//! Writes `docs/OPTIONS.md`, the man pages and the shell completions.

use std::process::ExitCode;

fn main() -> ExitCode {
    for (path, text) in docs_generate::documents() {
        let path = docs_generate::directory().join(path);
        let written = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        if let Err(error) = written.and_then(|()| std::fs::write(&path, text)) {
            eprintln!("{}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
