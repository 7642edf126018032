//! The second step: the lower gets what the upper says. Nothing of it shows, as the upper covers it.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{OFlags, RenameFlags};

use crate::layer::name::{self, NameBuf};
use crate::layer::remove_tree::{empty_tree, remove_tree};
use crate::layer::upper::{keep_times, make_hidden_dir, move_to};
use crate::layer::{opaque, origin, whiteout};
use crate::sys::copy::Refusals;
use crate::sys::{self, Errno, Result, Stat};

use super::super::progress::{Progress, Unit};
use super::super::{ToolError, join};
use super::entry::{self, Kept, Listing, Named};
use super::{Both, Committed, ancestors, drop_upper};

/// Brings all of the upper into the lower; there are about `entries` names.
pub(super) fn merge(both: &Both, entries: u64) -> super::Result<Committed> {
    let fail = |e| ToolError::at(name::ORPHANS, e);
    let temp_dir = match make_hidden_dir(&both.lower, name::ORPHANS) {
        // An ordinary user may own what is to be changed, and not the root.
        Err(Errno::ACCESS | Errno::PERM) => None,
        made => Some(Arc::new(made.map_err(fail)?)),
    };
    if let Some(temp_dir) = &temp_dir {
        empty_tree(temp_dir).map_err(fail)?;
    }
    let mut merge = Merge {
        both,
        temp_dir,
        kept: ancestors(&both.upper).into_iter().collect(),
        refusals: Refusals::default(),
        links: HashMap::new(),
        done: Committed::default(),
        made: drop_upper::has_begun(&both.upper),
        progress: Progress::new("merging", Unit::Items),
    };
    merge.progress.next("merging", Some(entries));
    merge.walk()?;
    if merge.temp_dir.is_some() {
        keep_times(&both.lower, || {
            sys::at::rmdir_at(&*both.lower, name::ORPHANS)
        })
        .map_err(fail)?;
    }
    Ok(merge.done)
}

/// A directory of both layers.
struct Pair {
    upper: Arc<OwnedFd>,
    lower: Arc<OwnedFd>,
    path: Vec<u8>,
}

enum Step {
    /// To be looked through: the directory of that name; nothing of the lower's shows if `alone`.
    Enter {
        above: Arc<Pair>,
        name: NameBuf,
        alone: bool,
    },
    /// All in it is done.
    Leave(Arc<Pair>),
}

struct Merge<'a> {
    both: &'a Both,
    /// Where objects of the lower are made; without it where they belong.
    temp_dir: Option<Arc<OwnedFd>>,
    /// The upper and what it is in.
    kept: Kept,
    refusals: Refusals,
    /// Where the lower has the copy of a file with several names, by device and number.
    links: HashMap<(u64, u64), (Arc<Pair>, NameBuf)>,
    done: Committed,
    progress: Progress,
    /// All this was done before, and cut off when the upper was being emptied.
    made: bool,
}

const TEMP: &[u8] = b".wh..wh.commit";

impl Merge<'_> {
    fn walk(&mut self) -> super::Result<()> {
        let root = Arc::new(Pair {
            upper: Arc::clone(&self.both.upper),
            lower: Arc::clone(&self.both.lower),
            path: Vec::new(),
        });
        let mut steps = vec![Step::Leave(Arc::clone(&root))];
        self.read(&root, false, &mut steps)?;
        while let Some(step) = steps.pop() {
            match step {
                Step::Enter { above, name, alone } => {
                    let path = join(&above.path, &name);
                    let open = || {
                        Ok(Arc::new(Pair {
                            upper: Arc::new(sys::at::open_dir_path(&*above.upper, &name, true)?),
                            lower: Arc::new(entry::open_for_change(&above.lower, &name)?),
                            path: path.clone(),
                        }))
                    };
                    let pair = open().map_err(|e| refused(&path, e))?;
                    steps.push(Step::Leave(Arc::clone(&pair)));
                    self.read(&pair, alone, &mut steps)?;
                }
                Step::Leave(pair) => self
                    .leave(&pair)
                    .map_err(|e| ToolError::at(&pair.path, e))?,
            }
        }
        Ok(())
    }

    /// Brings all of one directory but what is in directories below it.
    fn read(&mut self, pair: &Arc<Pair>, alone: bool, steps: &mut Vec<Step>) -> super::Result<()> {
        let fail = |e| refused(&pair.path, e);
        let from = Listing::read(&pair.upper).map_err(fail)?;
        if alone || from.opaque {
            self.clear(pair, &from).map_err(fail)?;
        }
        for (name, named) in &from.names {
            let path = join(&pair.path, name);
            self.name(pair, name, named, steps)
                .map_err(|e| refused(&path, e))?;
            self.progress.add(1);
        }
        Ok(())
    }

    /// Removes what the upper hides by being opaque.
    fn clear(&mut self, pair: &Pair, from: &Listing) -> Result<()> {
        let there = Listing::read(&pair.lower)?;
        for (name, named) in &there.names {
            if named.marker {
                self.unlink_marker(&pair.lower, name)?;
            }
            let stays = from.names.get(name).is_some_and(|own| own.real.is_some());
            if !stays && (named.real.is_some() || named.whiteout) {
                self.remove(&pair.lower, name)?;
            }
        }
        if !self.both.is_layer || there.opaque {
            return Ok(());
        }
        match from.by_attribute {
            true => opaque::set_attr(pair.lower.as_fd(), b""),
            false => make_marker(&pair.lower, name::OPAQUE),
        }
    }

    fn name(
        &mut self, pair: &Arc<Pair>, name: &NameBuf, named: &Named, steps: &mut Vec<Step>,
    ) -> Result<()> {
        let lower = &pair.lower;
        let there = match whiteout::entry(lower.as_fd(), name, false) {
            // It may be in the way.
            Ok(whiteout::Entry::Whiteout) => Some(sys::stat::stat_at(lower, name)?),
            Ok(whiteout::Entry::Real(stat)) => Some(stat),
            Ok(whiteout::Entry::Nothing) => None,
            Err(e) => return Err(e),
        };
        let Some(stat) = &named.real else {
            return self.hide(pair, name, named, there.is_some());
        };
        let hidden = self.both.is_layer
            && whiteout::marker(lower.as_fd(), name)? == whiteout::Marker::Whiteout;
        if stat.kind().is_dir() {
            if !there.is_some_and(|there| there.kind().is_dir()) {
                if there.is_some() {
                    self.remove(lower, name)?;
                }
                // What hid the names below the lower goes on doing so.
                let hides = self.both.is_layer && (there.is_some() || hidden);
                self.make_dir(lower, name, hides.then_some(hidden))?;
            }
            steps.push(Step::Enter {
                above: Arc::clone(pair),
                name: name.clone(),
                alone: named.marker,
            });
        } else {
            if there.is_some_and(|there| there.kind().is_dir()) {
                self.remove(lower, name)?;
            }
            let there = there.filter(|there| !there.kind().is_dir());
            self.put(pair, name, stat, there.as_ref())?;
        }
        let needless = hidden
            && match stat.kind().is_dir() {
                true => Listing::read(&sys::at::open_dir_path(lower, name, true)?)?.opaque,
                false => true,
            };
        match needless {
            true => self.unlink_marker(lower, name),
            false => Ok(()),
        }
    }

    /// A directory that hides what is below it is so from the start, `by_file` or by an attribute.
    fn make_dir(&self, lower: &OwnedFd, name: &NameBuf, by_file: Option<bool>) -> Result<()> {
        let temp = self.temp(lower);
        remove_tree(temp, TEMP)?;
        sys::at::mkdir_at(temp, TEMP, 0o700)?;
        match by_file {
            Some(true) => {
                let dir = sys::at::open_dir_path(temp, TEMP, true)?;
                make_marker(&dir, name::OPAQUE)?;
            }
            Some(false) => opaque::set_attr(temp.as_fd(), TEMP)?,
            None => {}
        }
        self.publish(lower, name)
    }

    /// Where an object is made that belongs into `lower`.
    fn temp<'t>(&'t self, lower: &'t OwnedFd) -> &'t OwnedFd {
        self.temp_dir.as_deref().unwrap_or(lower)
    }

    fn publish(&self, lower: &OwnedFd, name: &NameBuf) -> Result<()> {
        let temp = self.temp(lower);
        let to = (lower.as_fd(), name.as_slice());
        move_to((temp.as_fd(), TEMP), to, RenameFlags::empty())?;
        // Of two names of one file rename(2) leaves both.
        remove_tree(temp, TEMP)
    }

    /// The upper has a whiteout.
    fn hide(&mut self, pair: &Pair, name: &NameBuf, named: &Named, there: bool) -> Result<()> {
        let lower = &pair.lower;
        if self.both.is_layer {
            if let (true, Some(marker)) = (named.marker, name::whiteout_of(name)) {
                make_marker(lower, &marker)?;
            } else {
                if there {
                    self.remove(lower, name)?;
                }
                return sys::at::mknod_at(lower, name, libc::S_IFCHR, 0);
            }
        }
        match there {
            true => self.remove(lower, name),
            false => Ok(()),
        }
    }

    /// Brings an object that is no directory; there is no directory at its place.
    fn put(
        &mut self, pair: &Arc<Pair>, name: &NameBuf, stat: &Stat, there: Option<&Stat>,
    ) -> Result<()> {
        let from = (pair.upper.as_fd(), name.as_slice());
        let to = (pair.lower.as_fd(), name.as_slice());
        self.done.objects += 1;
        let number = (stat.dev, stat.ino);
        let is_same = |there: &Stat| (there.dev, there.ino) == number;
        if there.is_some_and(is_same) {
            return Ok(());
        }
        entry::strip(from.0, from.1)?;
        let temp = self.temp(&pair.lower);
        remove_tree(temp, TEMP)?;
        match sys::at::link_at(from.0, from.1, temp, TEMP) {
            Ok(()) => return self.publish(&pair.lower, name),
            Err(
                Errno::XDEV
                | Errno::MLINK
                | Errno::PERM
                | Errno::OPNOTSUPP
                | Errno::NOSYS
                | Errno::ACCESS,
            ) => {}
            Err(e) => return Err(e),
        }
        let temp = (temp.as_fd(), TEMP);
        if let Some((first, first_name)) = self.links.get(&number) {
            let first_stat = sys::stat::stat_at(&*first.lower, first_name)?;
            if there.is_some_and(|there| (there.dev, there.ino) == (first_stat.dev, first_stat.ino))
            {
                return Ok(());
            }
            match sys::at::link_at(&*first.lower, first_name, temp.0, TEMP) {
                Ok(()) => return self.publish(&pair.lower, name),
                Err(Errno::MLINK) => {}
                Err(e) => return Err(e),
            }
        }
        if let Some(there) = there
            && entry::is_copied(from, stat, to, there, self.made)?
        {
            self.note_link(number, stat, pair, name);
            return Ok(());
        }
        entry::copy(from, stat, temp, &self.refusals, self.both.owners)?;
        self.done.copied += 1;
        self.publish(&pair.lower, name)?;
        self.note_link(number, stat, pair, name);
        Ok(())
    }

    fn note_link(&mut self, number: (u64, u64), stat: &Stat, pair: &Arc<Pair>, name: &NameBuf) {
        if stat.nlink > 1 {
            self.links.insert(number, (Arc::clone(pair), name.clone()));
        }
    }

    /// Removes a name of the lower with all below it.
    fn remove(&mut self, lower: &OwnedFd, name: &NameBuf) -> Result<()> {
        let stat = sys::stat::stat_at(lower, name)?;
        if self.kept.contains(&(stat.dev, stat.ino)) {
            return Err(Errno::BUSY);
        }
        self.done.removed += 1;
        remove_tree(lower, name)
    }

    fn unlink_marker(&self, lower: &OwnedFd, name: &[u8]) -> Result<()> {
        let Some(marker) = name::whiteout_of(name) else {
            return Ok(());
        };
        match sys::at::unlink_at(lower, &marker) {
            Err(Errno::NOENT) => Ok(()),
            result => result,
        }
    }

    /// The directory's own attributes come last, since its entries change its times.
    fn leave(&mut self, pair: &Pair) -> Result<()> {
        // The upper's directories cease to be copies: what they were made from shows before all are gone.
        for attr in origin::INO_ATTRS {
            match sys::xattr::remove(pair.upper.as_fd(), b"", attr) {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => {}
                Err(e) => return Err(e),
            }
        }
        let stat = sys::stat::fstat(&*pair.upper)?;
        if self.temp_dir.is_none() {
            // What an earlier attempt has left.
            remove_tree(&*pair.lower, TEMP)?;
        }
        let (from, to) = (
            (pair.upper.as_fd(), &b""[..]),
            (pair.lower.as_fd(), &b""[..]),
        );
        entry::give(from, &stat, to, self.both.owners)
    }
}

fn make_marker(dir: &OwnedFd, name: &[u8]) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    match sys::at::open_at(dir, name, flags, 0o444, false) {
        Ok(_) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(e),
    }
}

/// What stands in the way, where the words of the system do not say.
fn refused(path: &[u8], errno: Errno) -> ToolError {
    match errno {
        Errno::BUSY | Errno::XDEV => ToolError::about(
            path,
            "is a mount point, or holds one, or the upper; unmount or move that first",
        ),
        e => ToolError::at(path, e),
    }
}
