//! From an unmounted union to the end of the daemon.
//!
//! The main thread only waits for events, and never for the mount without a limit, so that
//! whatever hangs there, a signal still ends the process.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::log::Log;
use super::ready::Notice;
use super::{Failure, apart};
use crate::mount::{self, Mounted, Unmounter};
use crate::options::Options;
use crate::sys::daemonize::Task;

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
    options: &Options, mountpoint: &Path, notice: Option<Notice>, mut log: Log,
) -> Result<(), Failure> {
    if notice.is_some() {
        // The caller's stderr is for one line, and later it is closed.
        panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    }
    for word in &options.ignored {
        tracing::warn!("option {} is not known and has no effect", word.display());
    }
    let prepared = mount::prepare(options, mountpoint).map_err(Failure::new)?;
    // Caught from here on, so that no signal can end the process and leave a dead mount.
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP])
        .map_err(|error| Failure::new(format_args!("cannot catch signals: {error}")))?;
    let mounted = prepared.mount().map_err(Failure::new)?;
    let unmounter = mounted.unmounter();
    let outcome = log
        .start()
        .and_then(|()| Daemon::new(mounted, mountpoint, signals))
        .map_err(|error| Failure::new(format_args!("cannot start a thread: {error}")))
        .and_then(|daemon| daemon.live(notice));
    if let Err(failure) = &outcome {
        tracing::error!("{failure}");
        // Often it is unmounted already; there is no better error to report than the first.
        let _ = unmounter.detach();
    }
    outcome
}

struct Daemon {
    unmounter: Unmounter,
    mountpoint: PathBuf,
    /// The mount's device number, to tell it from another one at the same place.
    device: (u32, u32),
    events: Receiver<Event>,
}

impl Daemon {
    fn new(mounted: Mounted, mountpoint: &Path, signals: Signals) -> io::Result<Self> {
        let (sender, events) = mpsc::channel();
        let unmounter = mounted.unmounter();
        let device = apart::device(mountpoint)?;
        let mountpoint = mountpoint.to_owned();
        spawn("serve", sender.clone(), move || Event::Ended(run(mounted)))?;
        let hurried = unmounter.clone();
        let to_main = sender.clone();
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || watch(signals, &to_main, &hurried))?;
        let path = mountpoint.clone();
        spawn("probe", sender, move || {
            Event::Answered(apart::within(ANSWER_TIMEOUT, Task::Probe, &path))
        })?;
        Ok(Self {
            unmounter,
            mountpoint,
            device,
            events,
        })
    }

    fn live(self, notice: Option<Notice>) -> Result<(), Failure> {
        match self.events.recv() {
            Ok(Event::Answered(Ok(()))) => {}
            Ok(Event::Answered(Err(error))) => {
                return Err(Failure::new(format_args!(
                    "the mount does not answer: {error}"
                )));
            }
            Ok(Event::Ended(outcome)) => {
                outcome?;
                return Err(Failure::new("it was unmounted before it answered"));
            }
            Ok(Event::Signal(signal)) => {
                return Err(Failure::new(format_args!(
                    "{} before the mount answered",
                    name(signal)
                )));
            }
            Err(_) => return Err(Failure::new("nobody serves the mount")),
        }
        tracing::info!("mounted on {}", self.mountpoint.display());
        if let Some(notice) = notice {
            notice.give().map_err(|error| {
                Failure::new(format_args!(
                    "the caller is gone before the mount answered: {error}"
                ))
            })?;
        }
        match self.events.recv() {
            Ok(Event::Ended(outcome)) => {
                tracing::info!("unmounted from {}", self.mountpoint.display());
                outcome
            }
            Ok(Event::Signal(signal)) => {
                tracing::info!("{}: unmounting {}", name(signal), self.mountpoint.display());
                self.stop()
            }
            Ok(Event::Answered(_)) | Err(_) => Err(Failure::new("nobody serves the mount")),
        }
    }

    /// Writes back, takes the mount away, and serves what is open for a while longer.
    fn stop(self) -> Result<(), Failure> {
        if apart::device(&self.mountpoint).is_ok_and(|device| device != self.device) {
            // Detached earlier, only open files keep it alive: what is there now is not ours.
            tracing::info!("{} was unmounted before", self.mountpoint.display());
        } else {
            // Pages written through shared mappings exist only in the kernel until then.
            if let Err(error) = apart::within(SYNC_TIMEOUT, Task::Sync, &self.mountpoint) {
                tracing::warn!("sync of {}: {error}", self.mountpoint.display());
            }
            self.unmounter.detach().map_err(Failure::new)?;
        }
        match self.wait_for_end() {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => {
                tracing::warn!("files on {} are still open", self.mountpoint.display());
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
    match panic::catch_unwind(AssertUnwindSafe(|| mounted.run())) {
        Ok(outcome) => outcome.map_err(Failure::new),
        Err(_) => Err(Failure::new("the daemon panicked")),
    }
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
