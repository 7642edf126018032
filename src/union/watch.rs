//! Hearing of changes that others make in the layers (`udba=notify`): which directories are watched, and
//! what is noted so that exactly what changed can be looked at again (`look_again`).
//!
//! A directory of a layer is watched from before the first look into it. One that cannot be (a limit, no
//! right to read it, a filesystem that cannot) is one of which nothing is kept for longer than a moment.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::sys::sync::Mutex;
use rustix::event::EventfdFlags;
use smallvec::SmallVec;

use crate::layer::LayerIndex;
use crate::options::Udba;
use crate::sys::Errno;
use crate::sys::watch::{Changed, Event, Waited, Watch};

use super::Union;
use super::inode::{Dir, Inode};

/// Names that are noted as looked for in vain. Beyond that, such answers hold for a moment only.
const MOST_ABSENT: usize = 65_536;
/// What cannot be watched is asked for again after so long.
const MOMENT: Duration = Duration::from_secs(1);
/// Watches of directories that nobody knows any more, before all are made anew.
const MOST_LEFT: usize = 1024;

/// A name of a directory at which something changed.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// The directory, by node id and serial.
    pub dir: (u64, u64),
    /// In which layer.
    pub layer: LayerIndex,
    pub name: Box<[u8]>,
    pub what: Changed,
}

/// What has been heard of.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub changes: Vec<Change>,
    /// Not all was heard: everything has to be looked at.
    pub lost: bool,
    /// Directories that were listed and are not watched.
    pub listed: Vec<u64>,
}

impl Heard {
    /// True when there is nothing to look at.
    pub fn is_nothing(&self) -> bool {
        self.changes.is_empty() && self.listed.is_empty() && !self.lost
    }
}

/// See the module text. Its locks are leaves of the lock order.
#[derive(Debug)]
pub(super) struct Watching {
    pub udba: Udba,
    /// How long descriptors of directories are trusted with [`Udba::Reval`].
    period: Duration,
    watch: Option<Watch>,
    /// Wakes whoever waits for changes.
    wake: OnceLock<OwnedFd>,
    ended: AtomicBool,
    table: Mutex<Table>,
    absent: Mutex<Absent>,
    listed: Mutex<(HashSet<u64>, Option<Instant>)>,
    /// How many directories could not be watched.
    unwatched: AtomicUsize,
    lost: AtomicBool,
    /// The kernel keeps size and times of the files that it knows.
    pub keeps_sizes: AtomicBool,
    trusted_from: Mutex<Option<Instant>>,
}

/// A directory by node id and serial, and the layer.
type Part = (u64, u64, LayerIndex);

/// Which directory has which key.
#[derive(Debug, Default)]
struct Table {
    by_key: HashMap<Box<[u8]>, SmallVec<[Part; 1]>>,
    by_part: HashMap<(u64, LayerIndex), Box<[u8]>>,
    /// Watches that could not be taken away.
    left: usize,
}

/// Names that were looked for in vain, by node id and serial of the directory.
#[derive(Debug, Default)]
struct Absent {
    names: HashMap<(u64, u64), HashSet<Box<[u8]>>>,
    count: usize,
}

impl Table {
    fn forget(&mut self, part: (u64, LayerIndex)) -> Option<Box<[u8]>> {
        let key = self.by_part.remove(&part)?;
        let with = self.by_key.get_mut(&key)?;
        with.retain(|(_, serial, layer)| (*serial, *layer) != part);
        let is_last = with.is_empty();
        if is_last {
            self.by_key.remove(&key);
        }
        is_last.then_some(key)
    }
}

impl Watching {
    /// As `udba` says; `period` is how long things are trusted with [`Udba::Reval`].
    pub fn new(udba: Udba, period: Duration) -> Self {
        let watch = (udba == Udba::Notify).then(open).flatten();
        let wake = OnceLock::new();
        if watch.is_some()
            && let Ok(fd) = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)
        {
            let _ = wake.set(fd);
        }
        Self {
            udba,
            period,
            watch,
            wake,
            ended: AtomicBool::new(false),
            table: Mutex::default(),
            absent: Mutex::default(),
            listed: Mutex::default(),
            unwatched: AtomicUsize::new(0),
            lost: AtomicBool::new(false),
            keeps_sizes: AtomicBool::new(false),
            trusted_from: Mutex::default(),
        }
    }

    /// True when everything that is known has to be asked for again after a while.
    pub fn is_reval(&self) -> bool {
        self.udba == Udba::Reval
    }

    /// True when nothing is to be heard of, nor looked at again.
    pub fn is_off(&self) -> bool {
        self.udba == Udba::None
    }

    /// True when everything that changes is heard of, or nothing is to be.
    pub fn is_sure(&self) -> bool {
        !self.is_reval() && self.unwatched.load(Ordering::Acquire) == 0
    }

    /// True when what is kept is made right by what is heard.
    pub fn is_notify(&self) -> bool {
        self.udba == Udba::Notify
    }

    /// True each time the period has passed.
    pub fn period_is_over(&self) -> bool {
        let period = match self.udba {
            Udba::Reval => self.period,
            Udba::Notify if self.unwatched.load(Ordering::Acquire) > 0 => MOMENT,
            _ => return false,
        };
        let mut from = self.trusted_from.lock();
        let now = Instant::now();
        let is_over = from.is_none_or(|from| now.duration_since(from) >= period);
        if is_over {
            *from = Some(now);
        }
        is_over
    }

    fn wake(&self) {
        if let Some(fd) = self.wake.get() {
            let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
        }
    }

    fn cannot(&self, dir: &Dir, why: Option<Errno>) {
        if dir.unwatched.swap(true, Ordering::AcqRel) {
            return;
        }
        let is_first = self.unwatched.fetch_add(1, Ordering::AcqRel) == 0;
        match why {
            Some(Errno::NOSPC) if is_first => tracing::warn!(
                "udba=notify: the limit of watches is reached (fs.fanotify.max_user_marks, \
                 fs.inotify.max_user_watches): further directories are looked at again after a second"
            ),
            Some(e) if is_first => tracing::warn!(
                "udba=notify: a directory cannot be watched: {}: such ones are looked at again after a second",
                std::io::Error::from(e)
            ),
            _ => {}
        }
        if is_first {
            self.wake();
        }
    }

    /// Names of a directory that the kernel may take for absent.
    pub fn absent_in(&self, dir: &Inode) -> Vec<Box<[u8]>> {
        let absent = self.absent.lock();
        let names = absent.names.get(&(dir.id, dir.serial));
        names.map_or_else(Vec::new, |names| names.iter().cloned().collect())
    }
}

fn open() -> Option<Watch> {
    let result = Watch::by_fanotify().or_else(|e| {
        let e = std::io::Error::from(e);
        tracing::info!(
            "udba=notify: no fanotify ({e}): by inotify, and the upper as with udba=reval"
        );
        Watch::by_inotify()
    });
    match result {
        Ok(watch) => Some(watch),
        Err(e) => {
            let e = std::io::Error::from(e);
            tracing::warn!(
                "udba=notify: nothing can be watched: {e}: all is looked at again after a second"
            );
            None
        }
    }
}

impl Union {
    /// Has changes in a directory's part heard of from now on.
    ///
    /// Precondition: nobody has looked into it through `fd`.
    pub(super) fn watch_part(&self, inode: &Inode, layer: LayerIndex, fd: BorrowedFd<'_>) {
        let state = &self.watching;
        if !state.is_notify() {
            return;
        }
        let Some(dir) = &inode.dir else { return };
        let Some(watch) = &state.watch else {
            return state.cannot(dir, None);
        };
        // Without knowing who makes a change, every one of ours would be taken for another's.
        if !watch.knows_own() && self.layers.is_upper(layer) {
            return state.cannot(dir, None);
        }
        let key = match watch.add(fd) {
            Ok(key) => key,
            Err(e) => {
                state.cannot(dir, Some(e));
                if e == Errno::NOSPC && state.table.lock().left > MOST_LEFT {
                    state.lost.store(true, Ordering::Release);
                    state.wake();
                }
                return;
            }
        };
        let mut table = state.table.lock();
        table.forget((inode.serial, layer));
        table.by_part.insert((inode.serial, layer), key.clone());
        let with = table.by_key.entry(key).or_default();
        with.push((inode.id, inode.serial, layer));
    }

    /// Ends what is watched of an inode that is gone; before its descriptors go.
    pub(super) fn unwatch(&self, inode: &Inode) {
        let state = &self.watching;
        let Some(dir) = inode.dir.as_ref().filter(|_| state.is_notify()) else {
            return;
        };
        if dir.unwatched.load(Ordering::Acquire) {
            state.unwatched.fetch_sub(1, Ordering::AcqRel);
        }
        let mut absent = state.absent.lock();
        if let Some(names) = absent.names.remove(&(inode.id, inode.serial)) {
            absent.count -= names.len();
        }
        drop(absent);
        let Some(watch) = &state.watch else { return };
        for part in inode.stack() {
            let key = state.table.lock().forget((inode.serial, part.layer));
            let Some(key) = key else { continue };
            let fd = self.descriptors.known_dir(inode, part.layer);
            if !watch.remove(&key, fd.as_ref().map(|fd| fd.as_fd())) {
                state.table.lock().left += 1;
            }
        }
    }

    /// Watches the root directory in all its layers.
    pub(super) fn watch_root(&self) {
        if let Ok(root) = self.inodes.get(super::ROOT_ID) {
            for part in root.stack() {
                let layer = self.layers.get(part.layer);
                self.watch_part(&root, part.layer, layer.root().as_fd());
            }
        }
    }

    /// True when nobody says that the directory has changed.
    pub(super) fn is_unwatched(&self, dir: &Inode) -> bool {
        self.watching.unwatched.load(Ordering::Acquire) > 0
            && dir
                .dir
                .as_ref()
                .is_some_and(|dir| dir.unwatched.load(Ordering::Acquire))
    }

    /// True when that is so for the inode, or a directory in which it has a name.
    pub(super) fn is_in_unwatched(&self, inode: &Inode) -> bool {
        if self.watching.unwatched.load(Ordering::Acquire) == 0 {
            return false;
        }
        let place = inode.place.read();
        self.is_unwatched(inode) || place.all().any(|alias| self.is_unwatched(&alias.parent))
    }

    /// True when nothing that is known of an inode is right for longer than a moment.
    pub(super) fn rechecks(&self, inode: &Inode) -> bool {
        self.watching.is_reval() || self.is_in_unwatched(inode)
    }

    /// Notes that a name was looked for in vain, or is there.
    ///
    /// Precondition: the tree lock is held since before the look.
    pub(super) fn note_absent(&self, dir: &Inode, name: &[u8], is_absent: bool) {
        if !self.watching.is_notify() {
            return;
        }
        let mut absent = self.watching.absent.lock();
        let key = (dir.id, dir.serial);
        if !is_absent {
            if absent.count > 0
                && let Some(names) = absent.names.get_mut(&key)
                && names.remove(name)
            {
                absent.count -= 1;
            }
        } else if absent.count < MOST_ABSENT
            && absent.names.entry(key).or_default().insert(name.into())
        {
            absent.count += 1;
        }
    }

    /// True when the kernel may be told for good that there is no such name.
    pub fn may_keep_absent(&self, dir: u64, name: &[u8]) -> bool {
        let state = &self.watching;
        if !state.is_notify() {
            return true;
        }
        let Ok(dir) = self.inodes.get(dir) else {
            return false;
        };
        let absent = state.absent.lock();
        let names = absent.names.get(&(dir.id, dir.serial));
        names.is_some_and(|names| names.contains(name)) && !self.is_unwatched(&dir)
    }

    /// Notes that the kernel has got a listing of a directory that is not watched.
    pub(super) fn note_listed(&self, dir: &Inode) {
        if self.is_unwatched(dir) {
            self.watching.listed.lock().0.insert(dir.id);
        }
    }

    /// Says whether the kernel keeps size and times of the files that it knows.
    pub fn kernel_keeps_sizes(&self, keeps: bool) {
        self.watching.keeps_sizes.store(keeps, Ordering::Release);
    }

    /// True when files may change without our hearing of it, so that the kernel has to find out by their
    /// times, and must ask for listings.
    pub fn changes_unheard(&self) -> bool {
        let state = &self.watching;
        let is_sure = || {
            let watch = state.watch.as_ref();
            watch.is_some_and(Watch::is_unlimited) && state.unwatched.load(Ordering::Acquire) == 0
        };
        state.is_reval() || (state.is_notify() && !is_sure())
    }

    /// True when the layers may change behind the union.
    pub fn may_change(&self) -> bool {
        !self.watching.is_off()
    }

    /// True when somebody has to wait for changes.
    pub(crate) fn hears(&self) -> bool {
        self.watching.watch.is_some()
    }

    /// Has everything looked at again, as changes may not have been heard of.
    pub(crate) fn doubt_everything(&self) {
        self.watching.lost.store(true, Ordering::Release);
        self.watching.wake();
    }

    /// Has [`Self::next_heard`] return `None`.
    pub(crate) fn stop_hearing(&self) {
        self.watching.ended.store(true, Ordering::Release);
        self.watching.wake();
    }

    /// Waits until something is heard of, or a moment has passed. `None` at the end.
    pub(crate) fn next_heard(&self) -> Option<Heard> {
        let state = &self.watching;
        let (watch, wake) = (state.watch.as_ref()?, state.wake.get()?);
        let limit = match state.unwatched.load(Ordering::Acquire) {
            0 => Duration::from_secs(3600),
            _ => MOMENT,
        };
        let waited = watch.wait(wake.as_fd(), limit);
        if waited == Ok(Waited::Stop) {
            let _ = rustix::io::read(wake, &mut [0_u8; 8]);
        }
        if state.ended.load(Ordering::Acquire) {
            return None;
        }
        let mut heard = Heard::default();
        let (listed, last) = &mut *state.listed.lock();
        if last.is_none_or(|last| last.elapsed() >= MOMENT) {
            *last = Some(Instant::now());
            heard.listed = listed.drain().collect();
        }
        heard.lost = state.lost.swap(false, Ordering::AcqRel);
        if heard.lost {
            watch.remove_all();
            *state.table.lock() = Table::default();
        }
        let read = watch.read(|event| match event {
            Event::Lost => heard.lost = true,
            Event::Of(key, name, what) => {
                let table = state.table.lock();
                for &(id, serial, layer) in table.by_key.get(key).into_iter().flatten() {
                    heard.changes.push(Change {
                        dir: (id, serial),
                        layer,
                        name: name.into(),
                        what,
                    });
                }
            }
        });
        if let Err(e) = waited.map(|_| ()).and(read) {
            tracing::error!(
                "udba=notify: changes cannot be read: {}",
                std::io::Error::from(e)
            );
            heard.lost = true;
            std::thread::sleep(MOMENT);
        }
        Some(heard)
    }
}
