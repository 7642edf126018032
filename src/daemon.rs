//! The life of a mounted union as a process: start, background, signals, end.

mod apart;
mod fstab;
mod guard;
mod log;
mod ready;
mod serve;
mod supervise;
mod umount;
mod upgrade;

use std::fmt::Display;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::mount::{self, Target};
use crate::options::Options;
use crate::sys;
use crate::sys::daemonize::{self, Side};

use supervise::Role;
pub use umount::umount;
pub use upgrade::upgrade;

pub(crate) use apart::device;

/// Why something could not be done: one line for the user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The user has to be told.
    #[error("{0}")]
    Untold(String),
    /// Another process has told the user already.
    #[error("the daemon ended before the mount answered")]
    Told,
}

impl Failure {
    pub(crate) fn new(reason: impl Display) -> Self {
        Self::Untold(reason.to_string())
    }
}

/// How a mount is to be made.
#[derive(Debug, Clone, Default)]
pub struct Manner {
    /// Serve in this process.
    pub foreground: bool,
    /// Check what can be checked, mount nothing.
    pub check: bool,
    /// The mount namespace to mount in and to find the layers in, as a file of /proc.
    pub namespace: Option<PathBuf>,
}

/// Tells the user on stderr, in one line whatever names it holds.
pub fn complain(reason: impl Display) {
    let mut line = String::from("unionfs: ");
    for c in reason.to_string().chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line.push('\n');
    // There is nobody to tell when stderr is gone.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Mounts and serves. In the background it returns in two processes: in the caller's as soon as
/// the mount answers or it is clear that it never will, in the daemon's when it was unmounted.
///
/// With the option `remount` a running mount is changed instead, and nothing is served.
///
/// Must be called before any thread is made.
#[must_use]
pub fn mount(options: Options, mountpoint: &Path, manner: &Manner) -> ExitCode {
    match start(options, mountpoint, manner) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Told) => ExitCode::FAILURE,
        Err(failure) => {
            complain(failure);
            ExitCode::FAILURE
        }
    }
}

fn start(mut options: Options, mountpoint: &Path, manner: &Manner) -> Result<(), Failure> {
    if options.supervise_auto {
        options.supervise = supervise::is_possible();
    }
    // Before anything is opened: a descriptor that was passed on is known by its number only.
    if let Some(role) = supervise::go_on(&mut options) {
        return play(role?, &options, manner.foreground);
    }
    let target = Target::new(mountpoint).map_err(Failure::new)?;
    if let Some(namespace) = &manner.namespace {
        // Here and not in a caller, as what starts a program (the loader, libraries) need not be there.
        sys::mount::enter_namespace(namespace).map_err(|errno| {
            let error = std::io::Error::from(errno);
            Failure::new(format_args!("option -N: {}: {error}", namespace.display()))
        })?;
    }
    let base = std::env::current_dir().unwrap_or_default();
    let target = make_absolute(&mut options, target)?;
    let done = match (options.remount, manner.check) {
        (true, true) => Some(mount::check_remount(&options, target.name())),
        (true, false) => Some(mount::remount(&options, target.name())),
        (false, true) => Some(mount::check(&options, &target)),
        (false, false) => None,
    };
    if let Some(outcome) = done {
        return outcome.map_err(Failure::new);
    }
    let foreground = manner.foreground;
    if let Some(name) = fstab::name(options.source.as_deref(), target.name()) {
        options.source = Some(name);
    }
    // What is wrong with it the caller is to be told.
    log::filter(&options)?;
    let notice = if foreground {
        None
    } else {
        let (reader, writer) = ready::pipe()?;
        let side = daemonize::fork()
            .map_err(|error| Failure::new(format_args!("cannot start the daemon: {error}")))?;
        match side {
            Side::Parent(child) => {
                drop(writer);
                return reader.wait(child);
            }
            Side::Child => drop(reader),
        }
        // What else the caller has open (locks, pipes) is not for a daemon to keep.
        match &target {
            Target::Connection { fd, .. } => daemonize::close_others(&[writer.fd(), fd.as_fd()]),
            Target::Directory(_) | Target::Again(_) => daemonize::close_others(&[writer.fd()]),
        }
        Some(writer.into_daemon()?)
    };
    let role = if options.supervise {
        supervise::divide(&mut options, base, target, notice)?
    } else {
        Role::Server(target, notice)
    };
    play(role, &options, foreground)
}

fn play(role: Role, options: &Options, foreground: bool) -> Result<(), Failure> {
    match role {
        Role::Keeper(outcome) => {
            if let Err(failure @ Failure::Untold(_)) = &outcome
                && let Ok(mut log) = log::init(log::filter(options)?, options, foreground)
            {
                // Whoever would be told may be gone.
                let _ = log.start();
                tracing::error!("{failure}");
            }
            outcome
        }
        Role::Server(target, notice) => {
            let log = log::init(log::filter(options)?, options, foreground)?;
            let again = matches!(target, Target::Again(_));
            let outcome = serve::serve(options, target, notice, log);
            if again && let Err(failure) = &outcome {
                // Whoever would be told is gone.
                tracing::error!("{failure}");
            }
            outcome
        }
    }
}

/// The daemon leaves the directory it was started in, so paths must not depend on it.
fn make_absolute(options: &mut Options, target: Target) -> Result<Target, Failure> {
    let relative = matches!(&target, Target::Directory(path) if path.is_relative());
    let mut base = PathBuf::new();
    if relative || options.has_relative_paths() {
        base = std::env::current_dir()
            .map_err(|error| Failure::new(format_args!("the current directory: {error}")))?;
        options.make_absolute(&base);
    }
    Ok(match target {
        Target::Directory(path) => {
            let path = base.join(path);
            // Without symlinks, so that it names the same place for ever. One that is not there
            // is reported when the layers are opened.
            Target::Directory(std::fs::canonicalize(&path).unwrap_or(path))
        }
        other => other,
    })
}
