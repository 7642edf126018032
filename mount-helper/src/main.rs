//! `mount.unionfs`: what mount(8) runs for `mount -t unionfs` and fstab lines of that type.
//!
//! It turns the words of mount(8) into those of the daemon and starts it. What the options mean is
//! the daemon's business alone.

mod args;
mod command;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode};

/// The exit codes of mount(8).
mod code {
    pub(crate) const USAGE: u8 = 1;
    /// The system: no program, no process.
    pub(crate) const SYSTEM: u8 = 2;
    /// A defect of ours.
    pub(crate) const INTERNAL: u8 = 4;
    pub(crate) const FAILURE: u8 = 32;
}

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_default();
    run(words).unwrap_or_else(|(code, reason)| {
        let name = Path::new(&name)
            .file_name()
            .unwrap_or("mount.unionfs".as_ref());
        // There is nobody to tell when stderr is gone.
        let _ = writeln!(std::io::stderr(), "{}: {reason}", name.display());
        ExitCode::from(code)
    })
}

fn run(words: impl Iterator<Item = OsString>) -> Result<ExitCode, (u8, String)> {
    let request = args::parse(words).map_err(|error| (code::USAGE, error))?;
    let program = command::find().ok_or_else(|| {
        let places = command::places().collect::<Vec<_>>().join(", ");
        let reason = format!("no program unionfs beside this one or in {places}");
        (code::SYSTEM, reason)
    })?;
    let words = command::words(&request);
    if request.verbose {
        // As above.
        let _ = writeln!(std::io::stdout(), "{}", command::shown(&program, &words));
    }
    // Not exec: the daemon's 1 is any failure, but to mount(8) it would mean bad usage.
    let status = Command::new(&program).args(words).status();
    let told = |what: &dyn std::fmt::Display| format!("{}: {what}", program.display());
    match status {
        Ok(status) if status.success() => Ok(ExitCode::SUCCESS),
        // It has said why.
        Ok(status) if status.code().is_some() => Ok(ExitCode::from(code::FAILURE)),
        Ok(status) => Err((code::INTERNAL, told(&status))),
        Err(error) => Err((code::SYSTEM, told(&error))),
    }
}
