//! What is known of the pseudo-links: which copy stands for which lower file.
//!
//! The names of the entries are read at mount; a record is read when its file is first met.

use crate::sys::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::sys::sync::{Mutex, MutexGuard, RwLock};

use crate::layer::plink::{PlinkDir, Record};
use crate::sys::{Errno, Result};

use super::rank::{Rank, Ranked};

/// How far an entry can be relied on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum State {
    /// Its name was read, no more.
    Unread,
    /// There is a record of ours; its lower file was not met.
    Read,
    /// And the lower file is the one of the record.
    Fits,
    /// No entry of ours, or of another lower file: it counts for nothing.
    Foreign,
}

/// A lower file with several names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    /// While unread, only the copy's number in it means something.
    pub record: Record,
    /// The copy's inode number; the record has another one where someone has copied the upper.
    pub copy: u64,
    pub state: State,
}

impl Group {
    /// One whose lower file was met.
    pub fn met(record: Record) -> Self {
        Self {
            record,
            copy: record.upper,
            state: State::Fits,
        }
    }

    /// True when the record counts.
    pub fn is_ours(&self) -> bool {
        matches!(self.state, State::Read | State::Fits)
    }

    /// Names that the lower still gives the file.
    pub fn left(&self) -> u32 {
        self.record.links.saturating_sub(self.record.gone)
    }
}

#[derive(Debug, Default)]
struct Table {
    /// By the number that the union shows.
    groups: HashMap<u64, Group>,
    /// That number, by the copy's own inode number.
    uppers: HashMap<u64, u64>,
    /// Entries of a copy beyond its first.
    more: HashMap<u64, u32>,
}

/// Held while the names of such a file change (rank 4).
#[derive(Debug)]
pub(super) struct Changing<'a> {
    steps: &'a AtomicU64,
    _guard: MutexGuard<'a, ()>,
    _rank: Ranked,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.steps.fetch_add(1, Ordering::SeqCst);
    }
}

/// See the module text. The table is a leaf of the lock order.
#[derive(Debug)]
pub(super) struct Plinks {
    /// Where they are on disk; none without an upper.
    disk: Option<PlinkDir>,
    /// All names follow the copy.
    follow: bool,
    /// There is anything in the table.
    any: AtomicBool,
    table: RwLock<Table>,
    changing: Mutex<()>,
    /// Counts how often that was locked and unlocked: odd while it is.
    steps: AtomicU64,
    /// A file, and its copy, of which the disk says less than the table: only a note does. Changed while
    /// `changing` is locked; a leaf.
    behind: Mutex<Option<(u64, u64)>>,
}

impl Plinks {
    /// An empty table.
    pub fn new(disk: Option<PlinkDir>, follow: bool) -> Self {
        Self {
            follow: follow && disk.is_some(),
            disk,
            any: AtomicBool::new(false),
            table: RwLock::default(),
            changing: Mutex::new(()),
            steps: AtomicU64::new(0),
            behind: Mutex::new(None),
        }
    }

    /// Reads the names of the entries on disk.
    pub fn load(&self) -> Result<()> {
        let Some(disk) = &self.disk else {
            return Ok(());
        };
        let entries = disk.list()?;
        if entries.is_empty() {
            return Ok(());
        }
        let mut table = self.table.write();
        table.groups.reserve(entries.len());
        table.uppers.reserve(entries.len());
        for (number, upper, real) in entries {
            if upper != 0 {
                // The inode is what counts, should someone have copied the directory.
                if table.uppers.insert(real, number).is_some() {
                    *table.more.entry(real).or_default() += 1;
                }
            }
            let record = Record {
                upper,
                ..Record::default()
            };
            let new = Group {
                record,
                copy: if upper == 0 { 0 } else { real },
                state: State::Unread,
            };
            // Of two for one file, the one that is ours; a copy before the lack of one.
            let is_better = |old: &Group| {
                old.record.upper == 0 || disk.record(number, upper).ok().flatten().is_some()
            };
            let known = table.groups.get(&number);
            if known.is_none_or(|old| upper != 0 && is_better(old)) {
                table.groups.insert(number, new);
            }
        }
        self.any.store(true, Ordering::Release);
        Ok(())
    }

    /// The files on disk.
    pub fn disk(&self) -> Option<&PlinkDir> {
        self.disk.as_ref()
    }

    /// The number of names of a file could not be written down; the note of the change says it.
    ///
    /// Precondition: a change is under way.
    pub fn fall_behind(&self, number: u64, upper: u64) {
        *self.behind.lock() = Some((number, upper));
    }

    /// Writes down what could not be, before another change takes the place of its note.
    ///
    /// Precondition: a change is under way.
    ///
    /// # Errors
    /// That it still cannot be; the note is there still.
    pub fn catch_up(&self) -> Result<()> {
        let Some((number, upper)) = *self.behind.lock() else {
            return Ok(());
        };
        let disk = self.disk().ok_or(Errno::ROFS)?;
        match self.group(number) {
            Some(group) => disk.set_record(number, &group.record)?,
            None => disk.remove(number, upper)?,
        }
        *self.behind.lock() = None;
        Ok(())
    }

    /// The directory of the entries, if there is one.
    pub fn dir(&self) -> Option<Arc<OwnedFd>> {
        self.disk.as_ref().and_then(PlinkDir::get)
    }

    /// True when all names of a file follow its copy.
    pub fn follow(&self) -> bool {
        self.follow
    }

    /// True when the table is not empty; costs next to nothing.
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// What is known of the lower file with this number.
    pub fn group(&self, number: u64) -> Option<Group> {
        if !self.any() {
            return None;
        }
        self.table.read().groups.get(&number).copied()
    }

    /// The number of the file whose entry the upper's inode has.
    pub fn number_of(&self, upper: u64) -> Option<u64> {
        if !self.any() {
            return None;
        }
        self.table.read().uppers.get(&upper).copied()
    }

    /// Entries that the upper's inode has: links that are no names.
    pub fn entries_of(&self, upper: u64) -> u64 {
        if !self.any() {
            return 0;
        }
        let table = self.table.read();
        if !table.uppers.contains_key(&upper) {
            return 0;
        }
        1 + u64::from(table.more.get(&upper).copied().unwrap_or(0))
    }

    /// Numbers of all files that have an entry of ours, or may have one, and of their copies.
    pub fn all(&self) -> Vec<(u64, Group)> {
        let table = self.table.read();
        let groups = table.groups.iter();
        groups.map(|(number, group)| (*number, *group)).collect()
    }

    /// Writes down what is now known.
    pub fn set(&self, number: u64, group: Group) {
        let mut table = self.table.write();
        if let Some(old) = table.groups.insert(number, group)
            && old.copy != group.copy
            && old.state != State::Foreign
        {
            table.uppers.remove(&old.copy);
        }
        if group.copy != 0 && group.state != State::Foreign {
            table.uppers.insert(group.copy, number);
        }
        self.any.store(true, Ordering::Release);
    }

    /// Forgets a file whose names are all gone.
    pub fn remove(&self, number: u64) {
        let mut table = self.table.write();
        if let Some(old) = table.groups.remove(&number) {
            table.uppers.remove(&old.copy);
        }
    }

    /// Forgets an entry that is not ours and is gone.
    pub fn forget_entry(&self, number: u64, upper: u64, copy: u64) {
        let mut table = self.table.write();
        if let Some(more) = table.more.get_mut(&copy).filter(|more| **more > 0) {
            *more -= 1;
        } else {
            table.uppers.remove(&copy);
        }
        let is_it = |group: &Group| group.record.upper == upper && group.state == State::Foreign;
        if table.groups.get(&number).is_some_and(is_it) {
            table.groups.remove(&number);
        }
    }

    /// Keeps the names of such files as they are for others than this thread.
    pub fn change(&self) -> Changing<'_> {
        let rank = Ranked::enter(Rank::Links);
        let guard = self.changing.lock();
        self.steps.fetch_add(1, Ordering::SeqCst);
        Changing {
            steps: &self.steps,
            _guard: guard,
            _rank: rank,
        }
    }

    /// Calls `look`, which compares what is on disk with the table, at a moment at which neither
    /// changes.
    ///
    /// Precondition: nothing of rank 4 or above is held.
    pub fn while_unchanged<T>(&self, mut look: impl FnMut() -> T) -> T {
        let before = self.steps.load(Ordering::SeqCst);
        if before.is_multiple_of(2) {
            let seen = look();
            if self.steps.load(Ordering::SeqCst) == before {
                return seen;
            }
        }
        let _changing = self.change();
        look()
    }
}
