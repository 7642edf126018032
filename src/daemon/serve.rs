//! From an unmounted union to the end of the daemon.
//!
//! The main thread only waits for events, and never for the mount without a limit, so that
//! whatever hangs there, a signal still ends the process.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::process;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::guard;
use super::log::Log;
use super::ready::Notice;
use super::{Failure, apart, supervise};
use crate::mount::{self, Mounted, Target, Unmounter};
use crate::options::Options;
use crate::sys::{self, daemonize::Task};

/// How long a new mount may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long dirty pages may take to reach the upper when a signal ends the daemon.
const SYNC_TIMEOUT: Duration = Duration::from_secs(5);
/// How long open files are served after a signal.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the second signal waits for the mount to go away.
const HURRY_TIMEOUT: Duration = Duration::from_secs(1);

enum Event {
    /// The mount answered its first requests, or will not.
    Answered(io::Result<()>),
    /// It is no longer served: unmounted, or failed.
    Ended(Result<(), Failure>),
    /// Somebody wants the daemon to end.
    Signal(i32),
}

/// Mounts, tells `notice` when the mount answers, and serves until the mount is gone or a signal
/// comes. After an error nothing is mounted.
pub(super) fn serve(
    options: &Options, target: Target, notice: Option<Notice>, mut log: Log,
) -> Result<(), Failure> {
    if notice.is_some() {
        // The caller's stderr is for one line, and later it is closed.
        panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    }
    let unknown = options.ignored.iter().map(|word| {
        let word = word.as_bytes().escape_ascii();
        format!("option {word} is not known and has no effect")
    });
    for warning in unknown.chain(options.warnings.iter().cloned()) {
        if notice.is_some() {
            // Who starts it sees its stderr, and not its log.
            super::complain(&warning);
        }
        tracing::warn!("{warning}");
    }
    let mut place = Place::of(&target);
    let mut guard = match &place.path {
        Some(path) if options.auto_unmount && !place.adopted && !options.supervise => {
            Some(guard::start(path)?)
        }
        _ => None,
    };
    let prepared = mount::prepare(options, target).map_err(Failure::new)?;
    // Caught from here on, so that no signal can end the process and leave a dead mount.
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP])
        .map_err(|error| Failure::new(format_args!("cannot catch signals: {error}")))?;
    if options.supervise {
        supervise::take_signals();
    }
    // No thread was made yet; what mounting takes stays.
    if let Err(errno) = sys::privileges::give_up() {
        tracing::warn!("capabilities that are not needed could not be given up: {errno}");
    }
    let mounted = prepared.mount().map_err(Failure::new)?;
    let unmounter = mounted.unmounter();
    place.device = place.path.as_deref().and_then(|p| apart::device(p).ok());
    let outcome = log
        .start()
        .and_then(|()| match (&mut guard, place.device) {
            (Some(guard), Some(device)) => guard.arm(device),
            _ => Ok(()),
        })
        .and_then(|()| Daemon::new(mounted, place.clone(), signals))
        .map_err(|error| Failure::new(format_args!("cannot start a thread: {error}")))
        .and_then(|daemon| daemon.live(notice));
    if let Err(failure) = &outcome {
        tracing::error!("{failure}");
        if place.may_be_there() && !place.again {
            // There is no better error to report than the first.
            let _ = unmounter.detach();
        }
    }
    if let Some(guard) = &mut guard {
        guard.disarm();
    }
    outcome
}

/// Where the mount is, as far as this process is concerned.
#[derive(Clone)]
struct Place {
    /// For messages.
    name: PathBuf,
    /// Where it can be reached; `None` when only the descriptor is known.
    path: Option<PathBuf>,
    /// Somebody else has mounted it, and will unmount it.
    adopted: bool,
    /// Another process of ours has served it before.
    again: bool,
    /// The mount's device number, to tell it from another one at the same place.
    device: Option<(u32, u32)>,
}

impl Place {
    fn of(target: &Target) -> Self {
        Self {
            name: target.name().to_owned(),
            path: target.reached_at(),
            adopted: target.is_adopted(),
            again: matches!(target, Target::Again(_)),
            device: None,
        }
    }

    /// False when what is at the place now is not ours: detached earlier, the mount lives on in
    /// open files only.
    fn may_be_there(&self) -> bool {
        let now = self.path.as_deref().and_then(|p| apart::device(p).ok());
        now.is_none() || now == self.device
    }
}

/// True when the kernel says that the connection has ended, as it does when somebody unmounts it.
fn is_over(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    matches!(
        errno,
        Some(libc::ENODEV | libc::ENOTCONN | libc::ECONNABORTED)
    )
}

struct Daemon {
    unmounter: Unmounter,
    place: Place,
    events: Receiver<Event>,
}

impl Daemon {
    fn new(mounted: Mounted, place: Place, signals: Signals) -> io::Result<Self> {
        let (sender, events) = mpsc::channel();
        let unmounter = mounted.unmounter();
        spawn("serve", sender.clone(), move || Event::Ended(run(mounted)))?;
        let hurried = unmounter.clone();
        let to_main = sender.clone();
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || watch(signals, &to_main, &hurried))?;
        match place
            .path
            .clone()
            .filter(|_| !place.adopted && !place.again)
        {
            Some(path) => spawn("probe", sender, move || {
                Event::Answered(apart::within(ANSWER_TIMEOUT, Task::Probe, &path))
            })?,
            // The first request was answered. What users may ask, and where, is not for us to
            // try on a mount that is not ours. Nobody has hung up: the receiver is here.
            None => drop(sender.send(Event::Answered(Ok(())))),
        }
        Ok(Self {
            unmounter,
            place,
            events,
        })
    }

    fn live(self, notice: Option<Notice>) -> Result<(), Failure> {
        match self.events.recv() {
            Ok(Event::Answered(Ok(()))) => {}
            Ok(Event::Answered(Err(error))) if !is_over(&error) && self.place.may_be_there() => {
                return Err(Failure::new(format_args!(
                    "the mount does not answer: {error}"
                )));
            }
            // An end so early is one like any other, but to a caller who was to be told of a mount:
            // somebody has unmounted it already, or wants it to end.
            Ok(Event::Answered(Err(_))) if notice.is_none() => return self.served_to_the_end(),
            Ok(Event::Ended(outcome)) if notice.is_none() => return outcome,
            Ok(Event::Ended(Err(failure))) => return Err(failure),
            Ok(Event::Answered(Err(_)) | Event::Ended(Ok(()))) => {
                return Err(Failure::new("it was unmounted before it answered"));
            }
            Ok(Event::Signal(signal)) if notice.is_none() => return self.stop(signal),
            Ok(Event::Signal(signal)) => {
                return Err(Failure::new(format_args!(
                    "{} before the mount answered",
                    name(signal)
                )));
            }
            Err(_) => return Err(Failure::new("nobody serves the mount")),
        }
        tracing::info!("mounted on {}", self.place.name.display());
        if let Some(notice) = notice {
            notice.give().map_err(|error| {
                Failure::new(format_args!(
                    "the caller is gone before the mount answered: {error}"
                ))
            })?;
        }
        if let Some(journal) = mount::journal::active()
            && !self.place.again
        {
            journal.tell_ready();
        }
        self.served_to_the_end()
    }

    /// Waits for the end, or a reason to make one.
    fn served_to_the_end(self) -> Result<(), Failure> {
        match self.events.recv() {
            Ok(Event::Ended(outcome)) => {
                tracing::info!("unmounted from {}", self.place.name.display());
                outcome
            }
            Ok(Event::Signal(signal)) => self.stop(signal),
            Ok(Event::Answered(_)) | Err(_) => Err(Failure::new("nobody serves the mount")),
        }
    }

    /// Writes back, takes the mount away, and serves what is open for a while longer.
    fn stop(self, signal: i32) -> Result<(), Failure> {
        let place = self.place.name.display();
        tracing::info!("{}: unmounting {place}", name(signal));
        if self.place.may_be_there() {
            // Pages written through shared mappings exist only in the kernel until then.
            if let Some(path) = self.place.path.as_deref()
                && let Err(error) = apart::within(SYNC_TIMEOUT, Task::Sync, path)
            {
                tracing::warn!("sync of {place}: {error}");
            }
            self.unmounter.detach().map_err(Failure::new)?;
        } else {
            tracing::info!("{place} was unmounted before");
        }
        if self.place.adopted {
            // Still mounted, it would only gain new users while we wait for the old ones.
            return Ok(());
        }
        match self.wait_for_end() {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => {
                tracing::warn!("files on {place} are still open");
                Ok(())
            }
            Err(RecvTimeoutError::Disconnected) => Ok(()),
        }
    }

    fn wait_for_end(&self) -> Result<Result<(), Failure>, RecvTimeoutError> {
        loop {
            if let Event::Ended(outcome) = self.events.recv_timeout(DRAIN_TIMEOUT)? {
                return Ok(outcome);
            }
        }
    }
}

/// Does `work` in a thread of its own and sends what comes out.
fn spawn<T: Send + 'static>(
    thread_name: &str, sender: Sender<T>, work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<()> {
    thread::Builder::new()
        .name(thread_name.to_owned())
        .spawn(move || {
            // Nobody listens any more when the process is about to end.
            let _ = sender.send(work());
        })?;
    Ok(())
}

/// Serves until the mount is gone. A panic is an end too, or the main thread would wait for ever.
fn run(mounted: Mounted) -> Result<(), Failure> {
    let outcome = match panic::catch_unwind(AssertUnwindSafe(|| mounted.run())) {
        Ok(outcome) => outcome.map_err(Failure::new),
        Err(_) => Err(Failure::new("the daemon panicked")),
    };
    if let (Err(failure), Some(_)) = (&outcome, mount::journal::active()) {
        // The mount is as it was: another server goes on.
        tracing::error!("{failure}");
        process::abort();
    }
    outcome
}

/// The first signal asks the main thread to end in order, the second does not wait for that.
fn watch(mut signals: Signals, main: &Sender<Event>, unmounter: &Unmounter) {
    let mut asked = false;
    for signal in signals.forever() {
        if !asked {
            asked = main.send(Event::Signal(signal)).is_ok();
            continue;
        }
        let (sender, done) = mpsc::channel();
        let unmounter = unmounter.clone();
        if spawn("hurry", sender, move || unmounter.detach().is_ok()).is_ok() {
            // The process ends whether or not the mount could be taken away.
            let _ = done.recv_timeout(HURRY_TIMEOUT);
        }
        process::exit(128 + signal);
    }
}

fn name(signal: i32) -> &'static str {
    signal_hook::low_level::signal_name(signal).unwrap_or("a signal")
}
