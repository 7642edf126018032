//! The `unionfs` program: parse, run, exit code.

use std::io::Write;
use std::process::ExitCode;

use unionfs::cli::{self, Command};
use unionfs::daemon::{self, Manner};
use unionfs::{ctl, demo, plink, tools};

fn main() -> ExitCode {
    let outcome = match cli::parse(std::env::args_os()) {
        Ok(Command::Mount(mount)) => {
            for line in mount.announce {
                // There is nobody to tell when stderr is gone.
                let _ = writeln!(std::io::stderr(), "{line}");
            }
            let manner = Manner {
                foreground: mount.foreground,
                check: mount.check,
                namespace: mount.namespace,
            };
            return daemon::mount(mount.options, &mount.mountpoint, &manner);
        }
        Ok(Command::Umount { mountpoint }) => {
            daemon::umount(&mountpoint).map_err(|failure| failure.to_string())
        }
        Ok(Command::Upgrade { mountpoint }) => {
            daemon::upgrade(&mountpoint).map_err(|failure| failure.to_string())
        }
        Ok(Command::Ctl(what)) => {
            let mut out = std::io::stdout().lock();
            ctl::run(&what, &mut out).map_err(|failure| failure.to_string())
        }
        Ok(Command::Plink(what)) => {
            let mut out = std::io::stdout().lock();
            plink::run(&what, &mut out).map_err(|failure| failure.to_string())
        }
        Ok(Command::Diff(what)) => {
            let mut out = std::io::stdout().lock();
            tools::diff(&what, &mut out).map_err(|failure| failure.to_string())
        }
        Ok(Command::Apply(what)) => tools::apply(&what).map_err(|failure| failure.to_string()),
        Ok(Command::Check(what)) => {
            let mut out = std::io::stdout().lock();
            tools::check(&what, &mut out).map_err(|failure| failure.to_string())
        }
        Ok(Command::Convert(what)) => tools::convert(&what).map_err(|failure| failure.to_string()),
        Ok(Command::Commit(what)) => {
            let mut out = std::io::stdout().lock();
            tools::commit(&what, &mut out).map_err(|failure| failure.to_string())
        }
        Ok(Command::Run(what)) => match tools::run(&what) {
            Ok(status) => return ExitCode::from(status),
            Err(failure) => Err(failure.to_string()),
        },
        Ok(Command::Demo) => demo::run().map_err(|failure| failure.to_string()),
        Ok(Command::Print(text)) => std::io::stdout()
            .write_all(text.as_bytes())
            .map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            daemon::complain(reason);
            ExitCode::FAILURE
        }
    }
}
