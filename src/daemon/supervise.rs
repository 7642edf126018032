//! `supervise`: a process that keeps the mount while the one that serves it is replaced.
//!
//! It has one thread, holds what the next server needs (the connection to the kernel, the journal of
//! nodes, handles of the layers, objects without a name) and asks nothing of the mount. A server is
//! forked, not executed, so it has all of that from the start.

mod keeper;
mod layers;
mod signals;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::unistd::{Pid, setpgid};

use self::keeper::{Keeper, Part};
use self::signals::Signals;
use super::Failure;
use super::ready::Notice;
use super::upgrade;
use crate::mount::{Target, journal};
use crate::options::Options;
use crate::sys;
use crate::sys::daemonize::{self, Side};
use crate::sys::handover;

/// True where the kernel sends requests again whose server is gone: from 6.9 on. Whether it does is
/// known for sure when the mount is made; then it is too late to do without.
pub(super) fn is_possible() -> bool {
    sys::kernel_version().is_some_and(|version| version >= (6, 9))
}

/// Which part this process has.
pub(super) enum Role {
    /// It serves the mount.
    Server(Target, Option<Notice>),
    /// It kept the mount, which is over.
    Keeper(Result<(), Failure>),
}

/// Divides this process into one that keeps the mount and one that serves it, and again each time the
/// latter dies. `base` is where relative paths in the arguments begin.
pub(super) fn divide(
    options: &mut Options, base: PathBuf, target: Target, notice: Option<Notice>,
) -> Result<Role, Failure> {
    let keeper = Keeper::new(options, base, &target).map_err(fail)?;
    go_round(keeper, options, Some((target, notice)))
}

/// The same in a program that was executed to go on with a mount; `None` when this one was not.
pub(super) fn go_on(options: &mut Options) -> Option<Result<Role, Failure>> {
    let lines = upgrade::inherited()?;
    Some(
        match lines.and_then(|lines| Keeper::again(options, lines)) {
            Ok((keeper, Part::Server(way))) => serve(keeper, options, way),
            Ok((mut keeper, Part::Keeper(pid, way))) => match keeper.keep(pid, &way, None) {
                Some(end) => Ok(Role::Keeper(end)),
                None => go_round(keeper, options, None),
            },
            Err(error) => Err(fail(error)),
        },
    )
}

fn fail(error: impl std::fmt::Display) -> Failure {
    Failure::new(format_args!("option supervise: {error}"))
}

fn go_round(
    mut keeper: Keeper, options: &mut Options, mut first: Option<(Target, Option<Notice>)>,
) -> Result<Role, Failure> {
    loop {
        let (ours, theirs) = handover::channel().map_err(|e| fail(io::Error::from(e)))?;
        // A server has them wait until it can do what they ask for.
        Signals::hold();
        match daemonize::fork().map_err(fail)? {
            Side::Child => {
                drop(ours);
                if keeper.is_upgrading() {
                    return Err(fail(keeper.execute_server(&theirs)));
                }
                let Some((target, notice)) = first else {
                    return serve(keeper, options, theirs);
                };
                begin(&mut keeper, theirs)?;
                return Ok(Role::Server(target, notice));
            }
            Side::Parent(pid) => {
                drop(theirs);
                Signals::release();
                let notice = first.take().and_then(|(_, notice)| notice);
                keeper.begins();
                if let Some(end) = keeper.keep(pid, &ours, notice) {
                    return Ok(Role::Keeper(end));
                }
            }
        }
    }
}

/// Has this process be a server with what was kept.
fn serve(mut keeper: Keeper, options: &mut Options, way: OwnedFd) -> Result<Role, Failure> {
    begin(&mut keeper, way)?;
    let target = keeper.into_target(options).map_err(fail)?;
    Ok(Role::Server(target, None))
}

/// In a server that looks at signals from now on: those that came since it began come now.
pub(super) fn take_signals() {
    Signals::release();
}

/// Has this process be a server; `way` leads to the one that keeps the mount.
fn begin(keeper: &mut Keeper, way: OwnedFd) -> Result<(), Failure> {
    keeper.signals.leave();
    // Of its own, so that a terminal's signals come once, from the keeper.
    let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
    journal::start(keeper.words, way).map_err(|e| fail(io::Error::from(e)))
}
