//! The process that keeps the mount.

mod upgrade;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use self::upgrade::{PATIENCE, Upgrade};
use super::layers::Layers;
use super::signals::Signals;
use crate::daemon::ready::Notice;
use crate::daemon::upgrade::Line;
use crate::daemon::{Failure, apart};
use crate::mount::journal::{self, message};
use crate::mount::{Again, Target};
use crate::options::Options;
use crate::sys::{self, Errno, handover, shared};

/// A server that ends sooner than this after it was ready has perhaps met what ended the last one: a
/// request is sent again until it is answered.
const SHORT: Duration = Duration::from_millis(100);
/// How long the first such end delays the next server; each further one doubles it.
const FIRST_DELAY: Duration = Duration::from_millis(50);
/// The longest delay.
const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// After so many in a row there is no next one.
const MAX_SHORT: u32 = 10;
/// Held objects whose nodes are forgotten are looked for when there are more than this, and twice as
/// many as were left the last time.
const MANY_HELD: usize = 64;
/// And, as what the server says may get lost, after this time: they take space on disk.
const LOOK: Duration = Duration::from_secs(5);

/// What is kept for the next server.
pub(super) struct Keeper {
    pub words: &'static [AtomicU64],
    memory: OwnedFd,
    connection: Option<OwnedFd>,
    /// By the serials of the nodes: their cells, and the objects.
    held: HashMap<u64, (u64, OwnedFd)>,
    /// How many were left the last time that it was looked which nodes are forgotten, and when.
    left: usize,
    looked: Instant,
    layers: Layers,
    pub signals: Signals,
    name: PathBuf,
    adopted: bool,
    auto_unmount: bool,
    /// The mount's device number, once there is one.
    device: Option<(u32, u32)>,
    /// Since when the present server has been serving.
    ready: Option<Instant>,
    /// It was told to end.
    told_to_end: bool,
    /// Servers that ended soon, in a row.
    short: u32,
    /// Where relative paths of the options begin.
    base: PathBuf,
    /// Another program is to go on.
    upgrade: Upgrade,
}

/// What a program that was executed is to be.
pub(super) enum Part {
    /// A server; the way to the keeper.
    Server(OwnedFd),
    /// The keeper, of a server that serves already; the way to it.
    Keeper(Pid, OwnedFd),
}

impl Keeper {
    pub fn new(options: &Options, base: PathBuf, target: &Target) -> io::Result<Self> {
        sys::fd::raise_fd_limit();
        let memory = shared::memory()?;
        let words = shared::map(&memory)?;
        Ok(Self {
            layers: Layers::open(options),
            name: target.name().to_owned(),
            adopted: target.is_adopted(),
            base,
            ..Self::empty(options, words, memory)?
        })
    }

    /// One that keeps nothing yet.
    fn empty(options: &Options, words: &'static [AtomicU64], memory: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            words,
            memory,
            connection: None,
            held: HashMap::new(),
            left: 0,
            looked: Instant::now(),
            layers: Layers::none(options.lowers.len()),
            signals: Signals::new()?,
            name: PathBuf::new(),
            adopted: false,
            auto_unmount: options.auto_unmount,
            device: None,
            ready: None,
            told_to_end: false,
            short: 0,
            base: PathBuf::new(),
            upgrade: Upgrade::No,
        })
    }

    /// From what the program passed on that kept the mount before.
    pub fn again(options: &mut Options, lines: Vec<Line>) -> io::Result<(Self, Part)> {
        sys::fd::raise_fd_limit();
        let mut part = None;
        let malformed = || io::Error::from(io::ErrorKind::InvalidData);
        let mut memory = None;
        let mut names = HashMap::new();
        let mut connection = None;
        let mut held = HashMap::new();
        let mut layers = Layers::none(options.lowers.len());
        for line in lines {
            match line {
                Line::Name(what, name) => drop(names.insert(what, name)),
                Line::Descriptor(what, (cell, serial), fd) => match what.as_str() {
                    "memory" => memory = Some(fd),
                    "connection" => connection = Some(fd),
                    "held" => drop(held.insert(serial, (cell, fd))),
                    "keeper" => part = Some(Part::Server(fd)),
                    "server" => {
                        let pid = i32::try_from(cell).map_err(|_| malformed())?;
                        part = Some(Part::Keeper(Pid::from_raw(pid), fd));
                    }
                    _ => layers.put(&what, cell, fd),
                },
            }
        }
        let memory = memory.ok_or_else(malformed)?;
        let mut name = |what: &str| names.remove(what).ok_or_else(malformed);
        let base = name("base")?;
        options.make_absolute(&base);
        let words = shared::map(&memory)?;
        let mut keeper = Self {
            connection,
            left: held.len(),
            held,
            layers,
            name: name("name")?,
            adopted: name("adopted")?.as_os_str() == "yes",
            base,
            ..Self::empty(options, words, memory)?
        };
        keeper.device = keeper.device_now();
        let part = part.ok_or_else(malformed)?;
        if matches!(part, Part::Keeper(..)) {
            keeper.ready = Some(Instant::now());
            journal::end_upgrade(words, Ok(()));
            // A server lets them come when it can do what they ask for.
            Signals::release();
        }
        Ok((keeper, part))
    }

    /// What the next server begins with. The options name the layers by what is kept of them.
    pub fn into_target(self, options: &mut Options) -> io::Result<Target> {
        let fd = self.connection.ok_or(Errno::NOTCONN)?;
        let layers = self.layers.put_into(options);
        let held = self.held.into_iter();
        Ok(Target::Again(Box::new(Again {
            fd,
            name: self.name,
            adopted: self.adopted,
            held: held.map(|(serial, (_, fd))| (serial, fd)).collect(),
            layers,
        })))
    }

    /// A new server begins.
    pub fn begins(&mut self) {
        self.ready = None;
        self.told_to_end = false;
    }

    /// Keeps what the server `pid` sends until it ends. `None` when there is to be another.
    pub fn keep(
        &mut self, pid: Pid, socket: &OwnedFd, mut notice: Option<Notice>,
    ) -> Option<Result<(), Failure>> {
        let is_first = self.connection.is_none();
        let status = loop {
            // Looked at first: what it sent before it ended is then there.
            let status = waitpid(pid, Some(WaitPidFlag::WNOHANG));
            let there = self.take_messages(socket);
            // Not before: until then somebody waits who can be told.
            if self.ready.is_some()
                && let Some(notice) = notice.take()
            {
                // Nobody can be told if that fails.
                let _ = notice.leave();
            }
            match status {
                Ok(WaitStatus::StillAlive) => {}
                Ok(status) => break Some(status),
                Err(_) => break None,
            }
            self.pass_signals_on(pid);
            self.upgrade_on(pid, socket);
            let limit = match self.is_upgrading() {
                true => Some(PATIENCE),
                false => (!self.held.is_empty()).then_some(LOOK),
            };
            // A socket whose other end is closed would wake this process again and again.
            self.signals.wait(there.then_some(socket), limit);
        };
        // However it ended: the old program has not.
        let has_refused = self.is_upgrading() && self.ready.is_none();
        self.next_upgrade();
        if self.is_upgrading() && !self.signals.asked_to_end() {
            return None;
        }
        match status {
            _ if has_refused => self.next(),
            Some(WaitStatus::Exited(_, 0)) => Some(Ok(())),
            // It said why, and has taken the mount away.
            Some(WaitStatus::Exited(..)) if is_first && self.ready.is_none() => {
                Some(Err(Failure::Told))
            }
            // The caller still waits, and nobody could tell him.
            Some(status) if is_first && self.ready.is_none() => {
                self.unmount();
                let reason = format_args!("the daemon ended before the mount answered: {status:?}");
                Some(Err(Failure::new(reason)))
            }
            _ => self.next(),
        }
    }

    fn pass_signals_on(&mut self, pid: Pid) {
        let taken: Vec<Signal> = self.signals.taken().collect();
        for signal in taken {
            // Before it serves it does not look at signals. Who insists does not want to wait for that.
            let insists = self.told_to_end && self.ready.is_none();
            let _ = kill(pid, if insists { Signal::SIGKILL } else { signal });
            self.told_to_end = true;
        }
    }

    /// Waits until another server may begin; says how it ends if none may.
    fn next(&mut self) -> Option<Result<(), Failure>> {
        if self.ready.is_none_or(|since| since.elapsed() < SHORT) {
            self.short += 1;
        } else {
            self.short = 0;
        }
        if self.short > MAX_SHORT {
            self.end();
            return Some(Err(Failure::new("the daemon dies again and again")));
        }
        if self.short > 1 && !self.signals.asked_to_end() {
            let delay = FIRST_DELAY * 2_u32.saturating_pow((self.short - 2).min(16));
            self.signals.wait(None, Some(delay.min(LONGEST_DELAY)));
        }
        self.signals.asked_to_end().then(|| {
            self.end();
            Ok(())
        })
    }

    /// Nobody serves the mount any more: takes it away if that was asked for, now or at the mount.
    fn end(&self) {
        if self.auto_unmount || self.signals.asked_to_end() {
            self.unmount();
        }
    }

    fn unmount(&self) {
        let is_ours = || apart::device(&self.name).ok() == self.device;
        if !self.adopted && self.device.is_some() && is_ours() {
            let path = self.name.as_os_str();
            if sys::mount::unmount(path.as_bytes(), true) == Err(Errno::PERM) {
                let _ = sys::fusermount::unmount(&self.name, true);
            }
        }
    }

    /// Returns whether the server has its end still.
    fn take_messages(&mut self, socket: &OwnedFd) -> bool {
        let there = loop {
            match handover::receive(socket) {
                Ok(Some(([message::CONNECTION, ..], Some(fd)))) => {
                    self.connection = Some(fd);
                    self.device = self.device_now();
                }
                Ok(Some(([message::DROPPED, _, serial], _))) => {
                    self.held.remove(&serial);
                }
                Ok(Some(([message::READY, ..], _))) => self.ready = Some(Instant::now()),
                Ok(Some(([message::HELD, cell, serial], Some(fd)))) => {
                    self.held.insert(serial, (cell, fd));
                }
                Ok(Some(([message::UPGRADE, ..], _))) => self.ask_upgrade(),
                Ok(Some(_)) => {}
                // No room for a descriptor: one object less survives.
                Err(Errno::MFILE) => self.drop_forgotten(),
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        let many = self.held.len() > MANY_HELD.max(2 * self.left);
        if many || (!self.held.is_empty() && self.looked.elapsed() >= LOOK) {
            self.drop_forgotten();
        }
        there
    }

    fn device_now(&self) -> Option<(u32, u32)> {
        if self.adopted {
            return None;
        }
        apart::device(&self.name).ok()
    }

    /// Lets go of objects whose nodes are forgotten.
    fn drop_forgotten(&mut self) {
        let words = self.words;
        self.held
            .retain(|serial, (cell, _)| journal::is_live(words, *cell, *serial));
        self.left = self.held.len();
        self.looked = Instant::now();
    }
}
