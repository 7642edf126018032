//! `mount.unionfs`: what mount(8) runs for `mount -t unionfs` and fstab lines of that type.
//!
//! It turns the words of mount(8) into those of the daemon and starts it. What the options mean is
//! the daemon's business alone.

mod args;
mod command;

use std::io::Write;
use std::process::ExitCode;

/// The exit codes of mount(8).
mod code {
    pub(crate) const USAGE: u8 = 1;
    pub(crate) const FAILURE: u8 = 32;
}

fn main() -> ExitCode {
    let request = match args::parse(std::env::args_os().skip(1)) {
        Ok(request) => request,
        Err(error) => return fail(code::USAGE, &error),
    };
    let Some(program) = command::find() else {
        let places = command::PLACES.join(", ");
        return fail(
            code::FAILURE,
            &format!("no program unionfs beside this one or in {places}"),
        );
    };
    if request.fake {
        return ExitCode::SUCCESS;
    }
    // Not exec: the daemon's 1 is any failure, but to mount(8) it would mean bad usage.
    match command::build(&program, &request).status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(status) if status.code().is_some() => ExitCode::from(code::FAILURE),
        Ok(status) => fail(code::FAILURE, &format!("{}: {status}", program.display())),
        Err(error) => fail(code::FAILURE, &format!("{}: {error}", program.display())),
    }
}

fn fail(code: u8, reason: &str) -> ExitCode {
    // There is nobody to tell when stderr is gone.
    let _ = writeln!(std::io::stderr(), "mount.unionfs: {reason}");
    ExitCode::from(code)
}
