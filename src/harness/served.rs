//! Whoever serves a mount: threads of this process, or a child.
//!
//! The threads are all begun by one that has left what threads share (umask, working directory), so that
//! nothing they do to themselves (file-system ids, capabilities) is seen by the test's own threads.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::mount::{self, Injected, Mounted, Target};
use crate::options::Options;
use crate::sys;
use crate::sys::mount::Identity;

use super::Error;
use super::builder::Plan;
use super::ending::{self, Seat, identity};
use super::fault::injected;
use super::heir::Heir;

/// How long the mount of a child may take to be there.
const START: Duration = Duration::from_secs(20);
/// How long the server of a mount that is gone may take to end; as long again after it was told to.
const END: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_micros(500);
/// Descriptors that a union may keep open for caching, beside what the tests have open.
const DESCRIPTORS: std::ops::RangeInclusive<u64> = 16..=512;
/// What part of all that the process may have.
const PART: u64 = 16;

/// A mount and its server.
#[derive(Debug)]
pub(super) struct Served {
    server: Server,
    /// Takes the mount away if this process cannot.
    heir: Option<Heir>,
    /// The mount.
    pub identity: Identity,
}

#[derive(Debug)]
enum Server {
    Threads {
        /// The first of them; it ends when all descriptors of theirs are closed.
        first: JoinHandle<()>,
        injected: Option<Arc<Injected>>,
    },
    Child(Box<Child>),
}

impl Served {
    /// Mounts, and waits until the mount answers. After an error nothing is mounted.
    pub fn start(plan: &Plan, mountpoint: &Path) -> Result<Self, Error> {
        let server = match &plan.program {
            None => threads(plan, mountpoint)?,
            Some(program) => Server::Child(Box::new(child(program, plan, mountpoint)?)),
        };
        let identity = identity(mountpoint)?;
        let mut served = Self {
            server,
            heir: Heir::start(mountpoint, identity.device),
            identity,
        };
        if let Err(error) = ending::answers(mountpoint) {
            served.end_anyhow(mountpoint);
            return Err(error);
        }
        Ok(served)
    }

    fn seat<'a>(&self, path: &'a Path) -> Seat<'a> {
        Seat {
            path,
            identity: self.identity,
        }
    }

    /// Unmounts if nobody uses the mount, and waits until nothing touches the layers any more.
    ///
    /// # Errors
    /// What [`Seat::unmount`] gives: then it goes on.
    pub fn end(&mut self, path: &Path) -> Result<(), Error> {
        let seat = self.seat(path);
        // The end waits for requests under way.
        self.delays(false);
        // What was written is in the upper then, even if the mount lives on in another namespace.
        let synced = match seat.is_mounted() {
            true => seat.sync(),
            false => Ok(()),
        };
        seat.unmount().inspect_err(|_| self.delays(true))?;
        self.finish(seat)?;
        synced
    }

    /// Takes the mount away whoever uses it, in a bounded time.
    pub fn end_anyhow(&mut self, path: &Path) {
        let Err(mut error) = self.end(path) else {
            return;
        };
        self.delays(false);
        let seat = self.seat(path);
        if seat.is_mounted() {
            match seat.detach().and_then(|()| self.finish(seat)) {
                Ok(()) => return,
                Err(more) => error = more,
            }
        }
        // A destructor has nobody else to tell.
        crate::daemon::complain(error);
    }

    /// Waits for the server of a mount that is gone. Those who still have files open there are waited
    /// for, but not for ever.
    fn finish(&mut self, seat: Seat<'_>) -> Result<(), Error> {
        self.heir = None;
        if self.has_ended(END) {
            return Ok(());
        }
        seat.abort();
        if let Server::Child(child) = &mut self.server {
            // The kernel ends the connection with it.
            let _ = child.kill();
        }
        match self.has_ended(END) {
            true => Ok(()),
            false => Err(Error::with(
                format_args!("{}: files on it are still open", seat.path.display()),
                "close them before the union is dropped; it is served until then",
            )),
        }
    }

    fn delays(&self, on: bool) {
        if let Server::Threads {
            injected: Some(injected),
            ..
        } = &self.server
        {
            injected.delays(on);
        }
    }

    fn has_ended(&mut self, limit: Duration) -> bool {
        match &mut self.server {
            Server::Threads { first, .. } => {
                let start = Instant::now();
                while !first.is_finished() && start.elapsed() < limit {
                    thread::sleep(PAUSE);
                }
                first.is_finished()
            }
            Server::Child(child) => ended_within(child, limit).is_some(),
        }
    }
}

fn ended_within(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    loop {
        // One that cannot be waited for any more has ended.
        match child.try_wait() {
            Ok(None) if start.elapsed() < limit => thread::sleep(PAUSE),
            Ok(status) => return status,
            Err(_) => return Some(ExitStatus::default()),
        }
    }
}

fn threads(plan: &Plan, mountpoint: &Path) -> Result<Server, Error> {
    let faults = (!plan.faults.is_empty()).then(|| Arc::new(injected(&plan.faults)));
    let (told, started) = mpsc::channel();
    let options = plan.options.clone();
    let target = Target::Directory(mountpoint.to_owned());
    let to_inject = faults.clone();
    let thread = thread::Builder::new().name("unionfs".to_owned());
    let work = move || serve(&options, target, to_inject, &told);
    let thread = thread.spawn(work);
    let first = thread.map_err(|e| Error::new(format_args!("cannot start a thread: {e}")))?;
    let started = started.recv();
    started.unwrap_or_else(|_| Err(Error::new("the thread that mounts has ended")))?;
    Ok(Server::Threads {
        first,
        injected: faults,
    })
}

/// All that the first thread does.
fn serve(
    options: &Options, target: Target, injected: Option<Arc<Injected>>,
    told: &Sender<Result<(), Error>>,
) {
    let outcome = mount_here(options, target, injected);
    let mounted = match outcome {
        Ok(mounted) => mounted,
        Err(error) => {
            let _ = told.send(Err(error));
            return;
        }
    };
    // Whoever mounts waits for it.
    let _ = told.send(Ok(()));
    if let Err(error) = mounted.run() {
        tracing::error!("{error}");
    }
}

fn mount_here(
    options: &Options, target: Target, injected: Option<Arc<Injected>>,
) -> Result<Mounted, Error> {
    sys::cred::leave_shared_state().map_err(|e| {
        let reason = format_args!(
            "no thread with a umask of its own: {}",
            std::io::Error::from(e)
        );
        Error::with(reason, "add `.spawned(\"unionfs\")`, or allow unshare(2)")
    })?;
    for warning in &options.warnings {
        tracing::warn!("{warning}");
    }
    let prepared = mount::prepare_within(options, target, descriptors()).map_err(Error::new);
    let mut prepared = prepared?;
    if let Some(injected) = injected {
        prepared.inject(injected);
    }
    prepared.mount().map_err(Error::new)
}

/// How many descriptors a union may keep open. There may be many, and the tests need some too; with few
/// the union closes and opens more often.
pub(super) fn descriptors() -> usize {
    let part = sys::fd::fd_limit() / PART;
    let part = part.clamp(*DESCRIPTORS.start(), *DESCRIPTORS.end());
    usize::try_from(part).unwrap_or(16)
}

fn child(program: &Path, plan: &Plan, mountpoint: &Path) -> Result<Child, Error> {
    let fail = |reason: &dyn std::fmt::Display| {
        let reason = format_args!("{}: {reason}", program.display());
        Error::with(
            reason,
            "name the program of this version, built and in reach",
        )
    };
    let before = identity(mountpoint)?;
    let said = sys::throwaway::nameless_file().map_err(|e| fail(&e))?;
    let mut said = File::from(said);
    let stderr = said.try_clone().map_err(|e| fail(&e))?;
    let mut command = Command::new(program);
    command.arg("-f");
    for word in &plan.words {
        command.arg("-o").arg(word);
    }
    command.arg("--").arg(mountpoint);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.stderr(stderr).spawn().map_err(|e| fail(&e))?;
    let start = Instant::now();
    while identity(mountpoint)? == before {
        let gone = ended_within(&mut child, PAUSE);
        if gone.is_none() && start.elapsed() < START {
            continue;
        }
        let _ = child.kill();
        let _ = child.wait();
        let mut text = String::new();
        let _ = said.rewind();
        let _ = said.read_to_string(&mut text);
        let last = text.lines().last().unwrap_or("it did not mount");
        return Err(Error::new(last.strip_prefix("unionfs: ").unwrap_or(last)));
    }
    Ok(child)
}
